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

use std::collections::HashSet;
use std::path::PathBuf;

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor, TensorData};
use tpo_core::weights::{
    Checkpoint, KeyMap, KeyRules, KeyScope, KeyTarget, LoadOptions, LoadReport, WeightsError,
    load_module,
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

/// The table between the keys of a merged checkpoint (`vision_encoder.*`) and the tower's paths.
///
/// # Errors
/// None in practice; the patterns are constants.
pub fn vision_rules() -> Result<KeyRules, WeightsError> {
    let mut rules = KeyRules::new()
        .owns([VISION_PREFIX])
        .rewrite(&[(r"^vision_encoder\.", "")], &[("^", VISION_PREFIX)])?;
    for (word, reason) in VISION_UNUSED_KEYS {
        rules = rules.ignore(word, reason)?;
    }
    Ok(rules)
}

/// The keys of one file: unwrapped, some left out because another file has them or because they
/// are resized while loading.
struct FileKeys<'a> {
    rules: &'a KeyRules,
    bare: bool,
    /// Paths this file does not provide, with the reason.
    left_out: Vec<(String, String)>,
}

/// A key without the dictionary that PyTorch's files wrap it in.
fn unwrapped(key: &str) -> &str {
    ["module.", "model."]
        .iter()
        .find_map(|w| key.strip_prefix(w))
        .unwrap_or(key)
}

impl KeyMap for FileKeys<'_> {
    fn module_path(&self, key: &str) -> KeyTarget {
        let key = unwrapped(key);
        let target = if self.bare {
            self.rules.module_path(&format!("{VISION_PREFIX}{key}"))
        } else {
            self.rules.module_path(key)
        };
        match target {
            KeyTarget::Path(path) => match self.left_out.iter().find(|(p, _)| *p == path) {
                Some((_, reason)) => KeyTarget::Ignored(reason.clone()),
                None => KeyTarget::Path(path),
            },
            other => other,
        }
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        let key = self.rules.checkpoint_key(path, has)?;
        if self.bare {
            key.strip_prefix(VISION_PREFIX).map(String::from)
        } else {
            Some(key)
        }
    }
}

/// The CLIP file holds final names only; a key of neither tower is a mistake.
struct FinalKeys<'a>(&'a KeyRules);

impl KeyMap for FinalKeys<'_> {
    fn module_path(&self, key: &str) -> KeyTarget {
        let key = unwrapped(key);
        if key.starts_with("text_encoder.") {
            return KeyTarget::Ignored("the text tower's".into());
        }
        if key == "temp" {
            return KeyTarget::Ignored("temperature of the contrastive loss".into());
        }
        self.0.module_path(key)
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        self.0.checkpoint_key(path, has)
    }
}

/// Holds the stored position table on its way to the tower.
#[derive(Module, Debug)]
struct StoredTable {
    pos_embed: Param<Tensor<3>>,
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
        let rules = vision_rules()?;
        let first = Checkpoint::open(&files.vision)?;
        let mut reports = Vec::new();
        let mut keys = FileKeys {
            rules: &rules,
            bare: files.kind == VisionFileKind::Bare,
            left_out: Vec::new(),
        };
        // The later file is loaded first, and the earlier one then leaves out what it provided.
        let mut tower = self;
        let mut later = None;
        if let Some(clip) = &files.clip {
            let part = LoadOptions {
                strict_missing: false,
                strict_unexpected: true,
                strict_mismatched: true,
                scope: KeyScope::Whole,
                ..options.load.clone()
            };
            let checkpoint = Checkpoint::open(clip)?;
            let (loaded, mut report) = load_module(tower, &checkpoint, &FinalKeys(&rules), &part)?;
            tower = loaded;
            let reason = format!("replaced by {}", clip.display());
            keys.left_out.extend(
                report
                    .loaded
                    .iter()
                    .map(|t| (t.path.clone(), reason.clone())),
            );
            // The earlier file must have the rest, or it is rejected.
            report.missing.clear();
            later = Some(report);
        }
        let table = if keys.left_out.iter().any(|(path, _)| path == "pos_embed") {
            None
        } else {
            tower.stored_table(&first, &keys, options)?
        };
        if table.is_some() {
            keys.left_out
                .push(("pos_embed".into(), "interpolated to the clip's size".into()));
        }
        let here: HashSet<&str> = keys.left_out.iter().map(|(p, _)| p.as_str()).collect();
        let mut allow_missing = options.load.allow_missing.clone();
        allow_missing.extend(here.iter().map(|p| format!("^{}$", p.replace('.', r"\."))));
        let strict = LoadOptions {
            strict_missing: true,
            strict_unexpected: true,
            strict_mismatched: true,
            allow_missing,
            scope: match files.kind {
                VisionFileKind::Stage2 => KeyScope::Part,
                VisionFileKind::Bare => KeyScope::Whole,
            },
            ..options.load.clone()
        };
        let (mut tower, mut report) = load_module(tower, &first, &keys, &strict)?;
        if let Some(table) = table {
            tower.pos_embed = tower.pos_embed.map(|stored| {
                let id = stored.id;
                let device = stored.lazy_device();
                let tensor = Tensor::from_data(table.clone(), (&device, table.dtype()));
                stored.transform_for_load(tensor, id)
            });
        }
        report.missing.retain(|m| !here.contains(m.path.as_str()));
        reports.push(report);
        reports.extend(later);
        Ok((tower, reports))
    }

    /// The position table of a file, if it has another shape than the tower's, resized to it.
    fn stored_table(
        &self,
        checkpoint: &Checkpoint,
        keys: &FileKeys<'_>,
        options: &VisionLoadOptions<'_>,
    ) -> Result<Option<TensorData>> {
        let target = KeyTarget::Path("pos_embed".into());
        let Some(joint) = &self.pos_embed else {
            return Ok(None);
        };
        let Some(entry) = checkpoint
            .tensors()
            .find(|t| keys.module_path(&t.key) == target)
        else {
            // Reported as missing with all the others.
            return Ok(None);
        };
        let wanted = joint.lazy_shape();
        let (&[1, rows, dim], dim_wanted) = (&entry.shape[..], wanted[2]) else {
            return Ok(None);
        };
        if rows == wanted[1] || dim != dim_wanted {
            return Ok(None);
        }
        let from = TableGrid::of_table(rows, options.table_steps)?;
        let to = TableGrid {
            steps: self.config().steps(),
            side: self.config().grid(),
        };
        let device = burn::tensor::Device::flex();
        let stored = StoredTable {
            pos_embed: burn::nn::Initializer::Zeros.init([1, rows, dim], &device),
        };
        let only = LoadOptions {
            strict_unexpected: false,
            scope: KeyScope::Prefixes(vec![entry.key.clone()]),
            progress: None,
            ..options.load.clone()
        };
        let (stored, _) = load_module(stored, checkpoint, keys, &only)?;
        let tensor = stored.pos_embed.val();
        let dtype = tensor.dtype();
        let values: Vec<f32> = tensor
            .cast(FloatDType::F32)
            .into_data()
            .try_into_vec()
            .map_err(|_| VisionError::PositionTable {
                rows,
                steps: options.table_steps,
                problem: "its values are not floating point",
            })?;
        let resized = interpolate(&values, dim, from, to)?;
        let data = TensorData::new(resized, [1, to.rows(), dim]);
        Ok(Some(data.convert_dtype(dtype)))
    }
}
