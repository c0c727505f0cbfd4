//! The model that comes with the library.
//!
//! ```
//! use tpo::prelude::*;
//!
//! # fn main() -> tpo::Result<()> {
//! let device = DeviceChoice::Cpu.open()?;
//! let mut session = tpo::presets::mini(&device, SessionOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! `assets/mini/README.md` says what it learned from, for how long, and how well it answers.

use burn::tensor::Device;
use tpo_core::head::HeadSet;

use crate::error::Result;
use crate::model::mini::unpacked;
pub use crate::model::mini::{mini_config, mini_tokenizer};
use crate::session::{Session, SessionOptions};

/// The trained mini model: all parts and heads of VideoChat-TPO at small width, for 16 frames of 64
/// pixels of the [synthetic world](tpo_data::synthetic). It knows nothing of real video.
///
/// Its files are part of the program; they are unpacked to a temporary folder while they are read.
///
/// # Errors
/// [`Error::ModelDir`](crate::Error::ModelDir) when the temporary folder cannot be written; as [`Session::open`].
pub fn mini(device: &Device, options: SessionOptions) -> Result<Session> {
    mini_with_heads(device, options)
}

/// [`mini`] for a program with any heads, which must be those of the mini model.
///
/// # Errors
/// As [`mini`]; [`Error::Weights`](crate::Error::Weights) naming what the mini model lacks of the heads.
pub fn mini_with_heads<H: HeadSet>(device: &Device, options: SessionOptions) -> Result<Session<H>> {
    let folder = unpacked()?;
    Ok(Session::open_with_heads(folder.path(), device, options, None)?.0)
}
