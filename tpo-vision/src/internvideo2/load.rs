//! Loading the tower from the files it is published in.
//!
//! The tower is made of two files; where both have a tensor, the later one is used (reference
//! implementation):
//!
//! 1. the stage-2 file (`InternVideo2-stage2_1b-224p-f4`): all of `vision_encoder.*`, with a
//!    position table for 4 frames that is interpolated; everything else in it is another model's;
//! 2. the CLIP file (`1B_clip`): final names, holds the retrained `vision_encoder.clip_projector.*`.
//!
//! Both are published as PyTorch pickles; `tools/pth_to_safetensors.py` rewrites one as
//! safetensors without changing a name. Keys may be wrapped in `module.` or `model.`.
//!
//! The reference loads with `strict=False`, so a misspelt key leaves random weights in place.
//! Here every parameter must come from a file, and every `vision_encoder.` key that is not on the
//! list of unused ones must have a parameter.

use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use tpo_core::weights::{
    Checkpoint, KeyMap, KeyRules, KeyScope, KeyTarget, Layer, LoadOptions, LoadReport, TensorEntry,
    WeightsError, load_layers, read_tensor,
};

use super::InternVideo2;
use super::position::{TableGrid, interpolate};
use crate::error::{Result, VisionError};

/// Prefix of the tower's keys in a merged checkpoint.
pub const VISION_PREFIX: &str = "vision_encoder.";

/// Keys of the stage-2 file that are known to be unused, with the reason. The reference drops
/// every key that contains one of these words.
pub const VISION_UNUSED_KEYS: &[(&str, &str)] = &[
    ("clip_decoder", "decoder of the distillation stage"),
    ("mae_decoder", "decoder of the masked-autoencoder stage"),
    ("clip_pos_embed", "positions of the distillation decoder"),
    ("clip_img_pos_embed", "image positions of that decoder"),
    (
        "img_pos_embed",
        "image positions; the mean of the video's are used",
    ),
];

/// What the first file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VisionFileKind {
    /// A stage-2 model: keys start with `vision_encoder.`, other parts are skipped.
    #[default]
    Stage2,
    /// A bare tower: keys without that prefix.
    Bare,
}

/// The files of the tower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionFiles {
    /// The stage-2 file or a bare tower.
    pub vision: PathBuf,
    /// What it is.
    pub kind: VisionFileKind,
    /// The CLIP file, whose tensors replace those of the first; `None` to keep the first's pooling.
    pub clip: Option<PathBuf>,
}

/// Options of [`InternVideo2::load`].
#[derive(Debug, Clone)]
pub struct VisionLoadOptions<'a> {
    /// Steps in time of the stored position table (`vision_ckpt_t_size` of the reference).
    pub table_steps: usize,
    /// How tensors are read. Names and shapes are always checked strictly.
    pub load: LoadOptions<'a>,
}

impl Default for VisionLoadOptions<'_> {
    fn default() -> Self {
        Self {
            table_steps: 4,
            load: LoadOptions::default(),
        }
    }
}

/// What keys may be wrapped in.
const WRAPPERS: &[&str] = &["module.", "model."];

/// The table between the keys of a merged checkpoint (`vision_encoder.*`) and the tower's paths.
///
/// # Errors
/// None in practice; the patterns are constants.
pub fn vision_rules() -> Result<KeyRules, WeightsError> {
    KeyRules::new()
        .owns([VISION_PREFIX])
        .wrapped_in(WRAPPERS)
        .rewrite(&[(r"^vision_encoder\.", "")], &[("^", VISION_PREFIX)])?
        .ignore_all(VISION_UNUSED_KEYS)
}

/// The table of a bare tower, whose keys lack [`VISION_PREFIX`].
fn bare_rules() -> Result<KeyRules, WeightsError> {
    let rules = KeyRules::new().wrapped_in(WRAPPERS);
    rules.ignore_all(VISION_UNUSED_KEYS)
}

/// The table of the CLIP file, which holds final names only; a key of neither tower is a mistake.
fn final_rules() -> Result<KeyRules, WeightsError> {
    vision_rules()?
        .owns(["text_encoder.", "temp"])
        .ignore_all(&[
            (r"^text_encoder\.", "the text tower's"),
            ("^temp$", "temperature of the contrastive loss"),
        ])
}

/// The path of the position table.
const TABLE: &str = "pos_embed";

/// The tensor that becomes the position table.
fn table_of<'a>(checkpoint: &'a Checkpoint, keys: &KeyRules) -> Option<&'a TensorEntry> {
    let target = KeyTarget::Path(TABLE.into());
    let mut tensors = checkpoint.tensors();
    tensors.find(|t| keys.module_path(&t.key) == target)
}

impl InternVideo2 {
    /// Loads the tower from `files`; the returned reports are in their order.
    ///
    /// Tensors stream from the files one at a time. A position table of another number of steps
    /// or another grid is interpolated in time, then in space.
    ///
    /// # Errors
    /// [`VisionError::Weights`] listing everything that is missing, unexpected or of another
    /// shape; [`VisionError::PositionTable`] when the stored table does not have
    /// [`VisionLoadOptions::table_steps`] square steps.
    pub fn load(
        self,
        files: &VisionFiles,
        options: &VisionLoadOptions<'_>,
    ) -> Result<(Self, Vec<LoadReport>)> {
        let (keys, scope) = match files.kind {
            VisionFileKind::Stage2 => (vision_rules()?, KeyScope::Part),
            VisionFileKind::Bare => (bare_rules()?, KeyScope::Whole),
        };
        let final_keys = final_rules()?;
        let first = Checkpoint::open(&files.vision)?;
        let clip = files.clip.as_ref().map(Checkpoint::open).transpose()?;
        let replaced = clip
            .as_ref()
            .is_some_and(|clip| table_of(clip, &final_keys).is_some());
        let table = if replaced {
            None
        } else {
            self.stored_table(&first, &keys, options)?
        };
        let mut layers: Vec<Layer<'_>> = vec![(&first, &keys, scope)];
        if let Some(clip) = &clip {
            layers.push((clip, &final_keys, KeyScope::Whole));
        }
        let left_out = |path: &str| {
            let asked = || options.load.left_out.and_then(|why| why(path));
            let resized = table.is_some() && path == TABLE;
            resized
                .then(|| "interpolated to the clip's size".into())
                .or_else(asked)
        };
        let load = LoadOptions {
            left_out: Some(&left_out),
            ..options.load.clone()
        };
        let (mut tower, reports) = load_layers(self, &layers, &load)?;
        if let Some(table) = table {
            let (device, id) = (tower.pos_embed.lazy_device(), tower.pos_embed.id);
            let dtype = table.dtype();
            let tensor = Tensor::from_data(table, (&device, dtype));
            tower.pos_embed = tower.pos_embed.transform_for_load(tensor, id);
        }
        Ok((tower, reports))
    }

    /// The position table of a file, if it has another shape than the tower's, resized to it.
    fn stored_table(
        &self,
        checkpoint: &Checkpoint,
        keys: &KeyRules,
        options: &VisionLoadOptions<'_>,
    ) -> Result<Option<TensorData>> {
        let Some(entry) = table_of(checkpoint, keys) else {
            // Reported as missing with all the others.
            return Ok(None);
        };
        let wanted = self.pos_embed.lazy_shape();
        let &[1, rows, dim] = &entry.shape[..] else {
            return Ok(None);
        };
        if rows == wanted[1] || dim != wanted[2] {
            return Ok(None);
        }
        let from = TableGrid::of_table(rows, options.table_steps)?;
        let to = TableGrid {
            steps: self.config().steps(),
            side: self.config().grid(),
        };
        let stored = read_tensor(entry)?;
        let dtype = stored.dtype();
        if !dtype.is_float() {
            return Err(VisionError::PositionTable {
                rows,
                steps: options.table_steps,
                problem: "its values are not floating point",
            });
        }
        let values: Vec<f32> = stored.iter::<f32>().collect();
        let resized = interpolate(&values, dim, from, to)?;
        let data = TensorData::new(resized, [1, to.rows(), dim]);
        Ok(Some(data.convert_dtype(options.load.dtype.of(dtype))))
    }
}
