//! Reading, strictly importing and writing model weights in the safetensors format; reading GGUF.
//!
//! * [`Checkpoint`] reads the headers of a file or of a sharded directory and checks them; no
//!   tensor data is touched.
//! * [`GgufFile`] does the same for a GGUF file, whose tensors become a checkpoint.
//! * [`KeyMap`] translates between checkpoint keys and paths in the module tree. [`KeyRules`] is
//!   the table of one part, [`KeyTables`] composes parts into a model.
//! * [`load_module`] copies a checkpoint into a module. It checks every name and shape first;
//!   when anything is missing, unexpected or of another shape it changes nothing and returns an
//!   error that lists all of it.
//! * [`save_module`] writes a module under the checkpoint's names, one tensor in memory at a
//!   time.
//! * [`differences`] compares a checkpoint with what parameters it should have.
//!
//! Weights are stored in PyTorch's layout (see [`nn`](crate::nn)), so a key is only ever
//! renamed; nothing is transposed.
//!
//! Files are treated as hostile: no size is believed before it is checked against the length of
//! the file, a name in an index may not leave its directory, and no input makes this module
//! panic.

#[cfg(target_endian = "big")]
compile_error!("safetensors and GGUF files are little-endian and are read without swapping bytes");

mod average;
mod checkpoint;
mod error;
mod gguf;
mod header;
mod key_map;
mod load;
mod manifest;
mod nearest;
mod params;
mod plan;
mod read;
mod report;
mod save;
mod source;
mod sparse;
mod write;

pub use average::average_checkpoints;
pub use checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE};
pub use error::{
    MismatchedTensor, MissingTensor, NearTensor, Refusal, UnexpectedTensor, WeightsError,
};
pub use gguf::{BlockType, FromGguf, GgufFile, GgufValue};
pub use header::{TensorEntry, file_name};
pub use key_map::{KeyMap, KeyRules, KeyTables, KeyTarget, check_round_trip};
pub use load::{DtypePolicy, KeyScope, Layer, LeftOut, LoadOptions, load_layers, load_module};
pub use manifest::{Manifest, ManifestTensor, parse_dtype};
pub use nearest::{edit_distance, nearest};
pub use params::{ParamInfo, ParamKind, PathStack, cast_params, module_params};
pub use plan::{differences, match_tensors};
pub use read::{read_tensor, read_tensor_as};
pub use report::{CastTensor, IgnoredTensor, LoadReport, LoadedTensor};
pub use safetensors::Dtype;
pub use save::{SaveOptions, SaveReport, save_module, save_tensors};
pub use source::{TensorSource, module_tensors, write_tensors};
pub use sparse::write_sparse;

/// Result with [`WeightsError`].
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;
