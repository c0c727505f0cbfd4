//! Comparing a checkpoint with the layout it should have.

mod gguf;
mod layouts;
mod onevision;
mod parts;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::ParamId;
use serde::Serialize;

use tpo_core::weights::{
    Checkpoint, GgufFile, KeyMap, KeyRules, KeyTarget, Manifest, ManifestTensor, ParamInfo,
    ParamKind, Refusal, Result, TensorEntry, differences, file_name,
};

use crate::model::Names;
use layouts::published_form_layout;
pub use layouts::{hugging_face_llm_layout, internvideo2_clip_layout, videochat_tpo_layout};
pub use parts::{LoraSummary, PartSpec, PartSummary, account, videochat_tpo_parts};

/// Which layout a checkpoint is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LayoutChoice {
    /// A language model by its config.json, LLaVA-OneVision by names and its config.json or sizes,
    /// VideoChat-TPO or InternVideo2-CLIP by names and sizes, or none
    #[default]
    Auto,
    /// The published VideoChat-TPO checkpoint
    #[cfg_attr(feature = "cli", value(name = "videochat-tpo"))]
    Videochat,
    /// InternVideo2-CLIP-1B, its published files merged
    #[cfg_attr(feature = "cli", value(name = "internvideo2-clip"))]
    InternVideo2Clip,
    /// No comparison; files and index are checked all the same
    None,
}

/// What a checkpoint holds and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The checkpoint.
    pub path: PathBuf,
    /// Names of its files.
    pub files: Vec<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors by data type.
    pub dtypes: BTreeMap<String, usize>,
    /// What each part holds.
    pub parts: Vec<PartSummary>,
    /// The layout it was compared with.
    pub layout: Option<String>,
    /// Differences from the layout.
    pub differences: Refusal,
    /// Layers with half an adapter, or with ranks that differ.
    pub broken_adapters: Vec<String>,
    /// Oddities that are not errors.
    pub notes: Vec<String>,
}

impl Inspection {
    /// Whether nothing is wrong.
    pub fn is_fine(&self) -> bool {
        self.differences.is_empty() && self.broken_adapters.is_empty()
    }

    /// What is wrong, one paragraph each.
    pub fn problems(&self) -> Vec<String> {
        let mut out = Vec::new();
        if !self.differences.is_empty() {
            out.push(self.differences.to_string());
        }
        if let Some(first) = self.broken_adapters.first() {
            out.push(format!(
                "{}: {} layers have half a LoRA adapter or two different ranks in it, the first \
                 is `{first}`; the checkpoint is incomplete, save it again",
                self.path.display(),
                self.broken_adapters.len()
            ));
        }
        out
    }
}

/// Reads the headers of the checkpoint at `path` and compares them with a layout; of a GGUF file
/// its own.
///
/// # Errors
/// Whatever [`Checkpoint::open`] or [`GgufModel::open`](tpo_llm::GgufModel::open) finds damaged; differences from the layout are not errors but part of
/// the result.
pub fn inspect(path: &Path, choice: LayoutChoice) -> crate::error::Result<Inspection> {
    if GgufFile::is_one(path) {
        return gguf::inspect(path, choice);
    }
    let checkpoint = Checkpoint::open(path)?;
    let mut notes = checkpoint.notes().to_vec();
    if choice == LayoutChoice::Auto
        && let Some(names) = Names::of(&checkpoint)
    {
        let found = onevision::compare(&checkpoint, names, &mut notes)?;
        return Ok(report(
            &checkpoint,
            &found.parts,
            found.layout,
            found.differences,
            notes,
        ));
    }
    let layout = match choice {
        LayoutChoice::None => None,
        LayoutChoice::Videochat => Some(videochat_tpo_layout()?),
        LayoutChoice::InternVideo2Clip => Some(internvideo2_clip_layout()?),
        LayoutChoice::Auto => recognise(&checkpoint, &mut notes)?,
    };
    let tpo = match &layout {
        Some(layout) => layout.name.starts_with("videochat-tpo"),
        None => looks_like_tpo(&checkpoint),
    };
    let specs = if tpo {
        videochat_tpo_parts()
    } else {
        top_level_parts(&checkpoint)
    };
    let found = match &layout {
        Some(layout) => compare_with(layout, &checkpoint),
        None => Refusal {
            checkpoint: path.to_path_buf(),
            ..Refusal::default()
        },
    };
    let layout = layout.map(|l| l.name);
    Ok(report(&checkpoint, &specs, layout, found, notes))
}

/// What `checkpoint` holds, by these parts.
fn report(
    checkpoint: &Checkpoint,
    specs: &[PartSpec],
    layout: Option<String>,
    differences: Refusal,
    notes: Vec<String>,
) -> Inspection {
    let found = Manifest::of(checkpoint);
    let parts = account(&found, specs);
    let mut dtypes = BTreeMap::new();
    for t in &found.tensors {
        *dtypes.entry(t.type_name()).or_default() += 1;
    }
    Inspection {
        path: checkpoint.path().to_path_buf(),
        files: checkpoint.files().map(file_name).collect(),
        tensors: checkpoint.len(),
        bytes: checkpoint.bytes(),
        dtypes,
        broken_adapters: parts
            .iter()
            .filter_map(|p| p.lora.as_ref())
            .flat_map(|l| l.broken.clone())
            .collect(),
        parts,
        layout,
        differences,
        notes,
    }
}

/// Names of adapters in both of PEFT's spellings mean the same.
fn adapter_rules() -> KeyRules {
    KeyRules::new().lora("default")
}

fn path_of(rules: &KeyRules, key: &str) -> String {
    match rules.module_path(key) {
        KeyTarget::Path(path) => path,
        _ => key.to_string(),
    }
}

/// Compares names, shapes and kinds the way loading into a module of this layout would.
fn compare_with(layout: &Manifest, checkpoint: &Checkpoint) -> Refusal {
    let rules = adapter_rules();
    let params: Vec<ParamInfo> = layout
        .tensors
        .iter()
        .filter(|t| !t.optional || checkpoint.get(&t.key).is_some())
        .map(|t| ParamInfo {
            path: path_of(&rules, &t.key),
            shape: t.shape.clone(),
            kind: if t.is_float() {
                ParamKind::Float
            } else {
                ParamKind::Int
            },
            id: ParamId::new(),
        })
        .collect();
    differences(&params, checkpoint, &rules)
}

/// Whether most keys are in parts of VideoChat-TPO.
fn looks_like_tpo(checkpoint: &Checkpoint) -> bool {
    let parts = videochat_tpo_parts();
    let owned = checkpoint
        .tensors()
        .filter(|t| parts.iter().any(|p| p.owns(&t.key)))
        .count();
    owned * 2 > checkpoint.len()
}

/// One part per first segment of the keys.
fn top_level_parts(checkpoint: &Checkpoint) -> Vec<PartSpec> {
    let mut names: Vec<&str> = checkpoint
        .tensors()
        .map(|t| t.key.split_inclusive('.').next().unwrap_or(&t.key))
        .collect();
    names.dedup();
    names
        .into_iter()
        .map(|prefix| PartSpec::new(prefix.trim_end_matches('.'), [prefix]))
        .collect()
}

fn recognise(checkpoint: &Checkpoint, notes: &mut Vec<String>) -> Result<Option<Manifest>> {
    let config = checkpoint.dir().join("config.json");
    if config.is_file()
        && let Some(layout) = hugging_face_llm_layout(&config)?
    {
        return Ok(Some(layout));
    }
    let clip = internvideo2_clip_layout()?;
    let there = |t: &&ManifestTensor| {
        let old = t.key.replace(".base_layer.", ".");
        [&t.key, &old]
            .iter()
            .any(|key| checkpoint.get(key).is_some_and(|e| e.shape == t.shape))
    };
    // Nearly all of it: one of its files alone is not the merged model.
    if clip.tensors.iter().filter(there).count() * 10 > clip.tensors.len() * 9 {
        return Ok(Some(clip));
    }
    let layout = videochat_tpo_layout()?;
    let rules = adapter_rules();
    let shapes: BTreeMap<String, &[usize]> = layout
        .tensors
        .iter()
        .map(|t| (path_of(&rules, &t.key), t.shape.as_slice()))
        .collect();
    let named = |t: &TensorEntry| shapes.get(&path_of(&rules, &t.key)).copied();
    let same_name = checkpoint.tensors().filter(|t| named(t).is_some()).count();
    let same_shape = checkpoint
        .tensors()
        .filter(|t| named(t) == Some(&t.shape))
        .count();
    if same_shape * 2 > checkpoint.len() {
        return Ok(Some(layout));
    }
    if let Some(layout) = published_form_layout(checkpoint.dir())? {
        return Ok(Some(layout));
    }
    if same_name * 2 > checkpoint.len() {
        notes.push(format!(
            "{same_name} of {} names are VideoChat-TPO's but only {same_shape} have its sizes: a \
             model of other sizes, not compared with the published layout",
            checkpoint.len()
        ));
    } else {
        notes.push("no known layout: names and shapes were not compared with anything".into());
    }
    Ok(None)
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} tensors, {} bytes in {} file(s)",
            self.path.display(),
            self.tensors,
            self.bytes,
            self.files.len()
        )?;
        writeln!(
            f,
            "\n{:<22}{:>8}{:>16}{:>16}  data types",
            "part", "tensors", "parameters", "bytes"
        )?;
        for part in &self.parts {
            write_part(f, part)?;
        }
        let params: u64 = self.parts.iter().map(|p| p.params).sum();
        writeln!(
            f,
            "{:<22}{:>8}{params:>16}{:>16}  {}",
            "total",
            self.tensors,
            self.bytes,
            dtype_list(&self.dtypes)
        )?;
        match &self.layout {
            Some(layout) if self.is_fine() => {
                writeln!(f, "\nlayout {layout}: every tensor is there with its shape")?;
            }
            Some(layout) => writeln!(f, "\nlayout {layout}: differs, see below")?,
            None => {}
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

fn dtype_list(dtypes: &BTreeMap<String, usize>) -> String {
    let list: Vec<String> = dtypes.iter().map(|(d, n)| format!("{d} {n}")).collect();
    list.join(", ")
}

fn write_part(f: &mut fmt::Formatter<'_>, part: &PartSummary) -> fmt::Result {
    let name = match part.name.as_str() {
        "" => "(no part)",
        name => name,
    };
    write!(
        f,
        "{name:<22}{:>8}{:>16}{:>16}  {}",
        part.tensors,
        part.params,
        part.bytes,
        dtype_list(&part.dtypes)
    )?;
    if part.other_elements > 0 {
        write!(f, " ({} not floating point)", part.other_elements)?;
    }
    writeln!(f)?;
    if let Some(lora) = &part.lora {
        let ranks: Vec<String> = lora.ranks.iter().map(ToString::to_string).collect();
        let targets: Vec<&str> = lora.targets.iter().map(String::as_str).collect();
        writeln!(
            f,
            "  {:<20}{:>8}{:>16}  rank {} on {}",
            "of which LoRA",
            lora.layers * 2,
            lora.params,
            ranks.join(", "),
            targets.join(", ")
        )?;
    }
    Ok(())
}
