//! A model directory put together from the files its parts were published in.
//!
//! [`assemble`] takes Mistral, UMT, the Q-Former and SAM 2, each from its own file or those of VideoChat2
//! from one, and writes what the published VideoChat-TPO has: the same names and shapes, the seven task
//! tokens, and heads, tokens and adapters that nothing was learned with yet. Or it takes a LLaVA-OneVision and
//! SAM 2, and writes a LLaVA-OV-TPO. The paper's recipes begin there.

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, TensorData};
use tpo_core::weights::{
    Checkpoint, DtypePolicy, KeyMap, LoadOptions, ParamInfo, SaveOptions, SaveReport, TensorEntry,
    TensorSource, WeightsError, differences, match_tensors, module_params, module_tensors,
    read_tensor_as, save_tensors,
};

use super::export::{check_target, move_model, unwritable, write_beside, written};
use super::families::onevision::parts as onevision;
pub use super::families::onevision::parts::BaseFiles;
pub use super::families::parts::PartFiles;
use super::families::parts::{self as videochat, Part, beginnings};
use super::{BuiltInHeads, TpoConfig, model_tokenizer};
use crate::error::{Error, Result};
use crate::export::ExportOptions;

/// Rows of these grow with the vocabulary.
const BY_WORD: [&str; 3] = [
    "llm.model.embed_tokens.weight",
    "llm.lm_head.weight",
    "llm.lm_head.lora.b",
];

/// The published files of a base.
#[derive(Debug, Clone)]
pub enum Published {
    /// Of VideoChat-TPO.
    VideoChat(PartFiles),
    /// Of LLaVA-OV-TPO.
    OneVision(BaseFiles),
}

impl From<&PartFiles> for Published {
    fn from(files: &PartFiles) -> Self {
        Self::VideoChat(files.clone())
    }
}

impl From<&BaseFiles> for Published {
    fn from(files: &BaseFiles) -> Self {
        Self::OneVision(files.clone())
    }
}

/// How a model is put together.
#[derive(Debug, Clone)]
pub struct AssembleOptions {
    /// Sizes of the parts; `None` for the published ones. Those of VideoChat-TPO's language model its own
    /// `config.json` says, those of a LLaVA-OneVision are in the one beside it.
    pub sizes: Option<TpoConfig>,
    /// What is in no file is drawn from this seed.
    pub seed: u64,
    /// Data type, shards, and whether a model that is there is replaced.
    pub export: ExportOptions,
}

impl Default for AssembleOptions {
    /// The published sizes, data types as in the files.
    fn default() -> Self {
        Self {
            sizes: None,
            seed: 42,
            export: ExportOptions::default(),
        }
    }
}

/// A model that is to be put together.
pub(crate) struct Plan {
    /// What is written.
    pub config: TpoConfig,
    /// Rows of the tables of words in the files.
    pub rows: usize,
    /// Rows that are used there, whose mean the new ones become.
    pub used: usize,
    /// The new rows.
    pub new: Range<usize>,
    /// The parts, a later one after those whose file it shares.
    pub parts: Vec<Part>,
    /// Files that are open already.
    pub opened: BTreeMap<PathBuf, Checkpoint>,
    /// All files and directories that are read.
    pub inputs: Vec<PathBuf>,
    /// The tokenizer's files (name, bytes), with the task tokens.
    pub tokenizer: Vec<(String, Vec<u8>)>,
}

/// What a part was made of.
#[derive(Debug, Clone)]
pub struct PartReport {
    /// The part.
    pub part: &'static str,
    /// Its file or directory.
    pub file: PathBuf,
    /// Tensors taken.
    pub tensors: usize,
    /// Their bytes in the file.
    pub bytes: u64,
    /// Tensors of the part that are known to be of no use, with the reason.
    pub ignored: Vec<(String, String)>,
}

/// What was put together.
#[derive(Debug, Clone)]
pub struct Assembly {
    /// What each part was made of.
    pub parts: Vec<PartReport>,
    /// Tensors of the files that are of no part: file, beginning of their names, how many.
    pub not_taken: Vec<(PathBuf, String, usize)>,
    /// What was drawn from the seed: beginning of the paths, how many tensors.
    pub drawn: Vec<(String, usize)>,
    /// What was written.
    pub saved: SaveReport,
}

/// Writes the model directory `dir` from the published files of its parts.
///
/// The tables of words get rows for the seven task tokens, each the mean of the rows that are used, added up in
/// at least 32 bits (reference implementation): ids 32000 to 32006 after the 32,000 words of Mistral; of Qwen2
/// ids 151648 to 151654, spare rows after the base's own `<image>` and `<video>`, and the mean of those before
/// these. Heads, task tokens, adapters that
/// the files lack and two projections which never run are drawn from the seed; the Q-Former's extra
/// queries begin at zero where its file has none. Tensors go from file to file one at a time.
///
/// All is written to a folder `.assemble-..` in `dir`, where it is checked that every tensor is there and
/// the tokenizer opens, and then moved to `dir`, in place of a model that is there. The folder is removed
/// when something fails; one that a killed program leaves may be deleted.
///
/// `progress` hears (bytes read, bytes in total).
///
/// # Errors
/// [`Error::Part`] naming the part, its file and every tensor that is missing, unexpected or of another
/// shape; [`Error::ModelDir`] for a file of PyTorch, a language model without the 32,000 words, a directory that
/// is no LLaVA-OneVision, and one that holds a model or an input; [`Error::Config`] when the parts do not fit together;
/// [`Error::Weights`] when a file cannot be read or written. Until the last file is moved, `dir` holds nothing
/// that opens as a new model.
pub fn assemble(
    files: impl Into<Published>,
    dir: impl AsRef<Path>,
    options: &AssembleOptions,
    progress: Option<&dyn Fn(u64, u64)>,
) -> Result<Assembly> {
    let dir = dir.as_ref();
    let sizes = options.sizes.as_ref();
    let mut plan = match files.into() {
        Published::VideoChat(files) => videochat::plan(&files, sizes)?,
        Published::OneVision(files) => onevision::plan(&files, sizes)?,
    };
    let config = &plan.config;
    config.validate::<BuiltInHeads>()?;
    let mut before = config.clone();
    before.llm.vocab_size = plan.rows;
    let device = Device::flex();
    device.seed(options.seed);
    // No weight is drawn before it is asked for.
    let model = config.assemble::<BuiltInHeads>(&device)?;
    let sizes = module_params(&before.assemble::<BuiltInHeads>(&device)?);

    let mut taken: Vec<Taken> = Vec::new();
    let mut reports = Vec::new();
    let opened = &mut plan.opened;
    for part in &plan.parts {
        if !opened.contains_key(&part.file) {
            opened.insert(part.file.clone(), open_part(part)?);
        }
        let Some(checkpoint) = opened.get(&part.file) else {
            continue;
        };
        if part.optional && !checkpoint.tensors().any(|t| part.owns(&t.key)) {
            continue;
        }
        reports.push(take(part, checkpoint, &sizes, &mut taken)?);
    }
    let mut not_taken = Vec::new();
    for (file, checkpoint) in opened.iter() {
        let of_file = |t: &&Taken| t.file == *file;
        let known: HashSet<&str> = taken
            .iter()
            .filter(of_file)
            .map(|t| t.key.as_str())
            .collect();
        let rest = checkpoint.tensors().map(|t| t.key.as_str());
        let rest = beginnings(rest.filter(|key| !known.contains(key)));
        not_taken.extend(rest.into_iter().map(|(of, n)| (file.clone(), of, n)));
    }

    let inputs: Vec<&Path> = plan.inputs.iter().map(PathBuf::as_path).collect();
    check_target(dir, &inputs, true, options.export.overwrite)?;
    let keys = config.keys::<BuiltInHeads>()?;
    let params = module_params(&model);
    let paths: HashSet<&str> = params.iter().map(|p| p.path.as_str()).collect();
    let (dtype, done) = (options.export.save().dtype, Cell::new(0));
    let entries = taken.iter().filter_map(|t| t.tensor.as_ref());
    let total = entries.clone().map(|(entry, _)| entry.len).sum();
    let heard = |entry: &TensorEntry| {
        done.set(done.get() + entry.len);
        if let Some(progress) = progress {
            progress(done.get(), total);
        }
    };
    let mut tensors: Vec<TensorSource<'_>> = Vec::new();
    for (entry, param) in entries.clone() {
        let key = keys.checkpoint_key(&param.path, &|path| paths.contains(path));
        let key = key.unwrap_or_else(|| param.path.clone());
        tensors.push(source(key, entry, param, &plan, dtype, &heard)?);
    }
    let found: HashSet<&str> = entries.map(|(_, param)| param.path.as_str()).collect();
    let drawn = module_tensors(&model, &keys, dtype, &|path| !found.contains(path))?;
    tensors.extend(drawn);
    let save = SaveOptions {
        metadata: BTreeMap::from([("seed".to_string(), options.seed.to_string())]),
        ..options.export.save()
    };
    let mut folder = tempfile::Builder::new();
    let folder = folder.prefix(".assemble-").tempdir_in(dir);
    let folder = folder.map_err(|e| unwritable(dir, e))?;
    write_beside(&written(dir, config)?, &plan.tokenizer, folder.path())?;
    // It takes a moment, the weights a minute.
    model_tokenizer(folder.path(), config)?;
    let mut saved = save_tensors(tensors, folder.path(), &save)?;
    let problems = differences(&params, &Checkpoint::open(folder.path())?, &keys);
    if !problems.is_empty() {
        return Err(WeightsError::Refused(Box::new(problems)).into());
    }
    move_model(folder.path(), dir, &mut saved)?;
    let drawn = params.iter().map(|p| p.path.as_str());
    Ok(Assembly {
        parts: reports,
        not_taken,
        drawn: beginnings(drawn.filter(|path| !found.contains(path))),
        saved,
    })
}

/// A tensor of a file: its name, and what it becomes, if it is used.
struct Taken {
    file: PathBuf,
    key: String,
    tensor: Option<(TensorEntry, ParamInfo)>,
}

fn open_part(part: &Part) -> Result<Checkpoint> {
    let torch = ["pth", "pt", "bin", "ckpt"];
    if let Some(kind) = part.file.extension().and_then(|e| e.to_str())
        && torch.contains(&kind)
    {
        return Err(Error::ModelDir {
            path: part.file.clone(),
            why: format!(
                "is a file of PyTorch; `python tools/pth_to_safetensors.py {} {}` writes its tensors as \
                 safetensors, which {} takes",
                part.file.display(),
                part.file.with_extension("safetensors").display(),
                part.flag
            ),
        });
    }
    Checkpoint::open(&part.file).map_err(|source| part.error(source, None))
}

/// Finds the tensors of a part in its file.
fn take(
    part: &Part,
    checkpoint: &Checkpoint,
    sizes: &[ParamInfo],
    taken: &mut Vec<Taken>,
) -> Result<PartReport> {
    let own = sizes.iter().filter(|p| (part.of)(&p.path)).cloned();
    let own: Vec<ParamInfo> = own.collect();
    let other_width = part.of_other_width(checkpoint, &own);
    let left_out = |path: &str| {
        other_width
            .contains(path)
            .then(|| "of another width than the model's; drawn from the seed".into())
    };
    let load = LoadOptions {
        allow_missing: part.may_lack.clone(),
        left_out: Some(&left_out),
        scope: part.scope,
        ..LoadOptions::default()
    };
    let (matched, report) = match_tensors(&own, checkpoint, &part.keys, &load)
        .map_err(|source| part.error(source, Some(checkpoint)))?;
    let (tensors, bytes) = (matched.len(), matched.iter().map(|(t, _)| t.len).sum());
    let used = |(tensor, param): (TensorEntry, ParamInfo)| Taken {
        file: part.file.clone(),
        key: tensor.key.clone(),
        tensor: Some((tensor, param)),
    };
    taken.extend(matched.into_iter().map(used));
    let ignored = report.ignored.into_iter().map(|t| (t.key, t.reason));
    let ignored: Vec<(String, String)> = ignored.collect();
    taken.extend(ignored.iter().map(|(key, _)| Taken {
        file: part.file.clone(),
        key: key.clone(),
        tensor: None,
    }));
    Ok(PartReport {
        part: part.name,
        file: part.file.clone(),
        tensors,
        bytes,
        ignored,
    })
}

/// A tensor of a file as it is written.
fn source<'a>(
    key: String,
    entry: &'a TensorEntry,
    param: &'a ParamInfo,
    plan: &'a Plan,
    dtype: DtypePolicy,
    heard: &'a dyn Fn(&TensorEntry),
) -> Result<TensorSource<'a>> {
    let by_word = BY_WORD.contains(&param.path.as_str());
    let mut shape = param.shape.clone();
    if by_word && let Some(rows) = shape.first_mut() {
        *rows = plan.config.llm.vocab_size;
    }
    let to = dtype.of(entry.element_type()?);
    let read = move || {
        let read = if by_word { DType::F32 } else { to };
        let data = read_tensor_as(entry, read).map_err(|e| e.to_string())?;
        heard(entry);
        if by_word {
            with_mean_rows(data, plan)
        } else {
            Ok(data)
        }
    };
    Ok(TensorSource::when_asked(
        key,
        param.path.clone(),
        shape,
        to,
        read,
    )?)
}

/// A table `[words, width]` of `f32` with the rows of the plan, of which the new ones are each the mean of those that
/// are used ([`CausalLm::with_vocabulary`](tpo_llm::CausalLm::with_vocabulary) does so to a model in memory).
fn with_mean_rows(data: TensorData, plan: &Plan) -> Result<TensorData, String> {
    let [_, width] = data.shape()[..] else {
        return Err(format!(
            "a table of words has two axes, not {:?}",
            data.shape()
        ));
    };
    let mut values = data.try_into_vec::<f32>().map_err(|e| format!("{e:?}"))?;
    let mut mean = vec![0.0_f64; width];
    for row in values.chunks_exact(width).take(plan.used) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, v)| *m += f64::from(*v));
    }
    let mean: Vec<f32> = mean.iter().map(|m| (m / plan.used as f64) as f32).collect();
    let rows = plan.config.llm.vocab_size;
    values.resize(rows * width, 0.0);
    let new = values.chunks_exact_mut(width).enumerate();
    for (_, row) in new.filter(|(i, _)| plan.new.contains(i)) {
        row.copy_from_slice(&mean);
    }
    Ok(TensorData::new(values, [rows, width]))
}
