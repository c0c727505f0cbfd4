//! InternVideo2-CLIP in a folder: opened when a head first needs it, one tower after the other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::CoreError;
use tpo_core::weights::{DtypePolicy, LoadOptions, module_params};
use tpo_heads::HeadsError;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, ClipInput, InternVideo2Features, InternVideo2Files,
    QueryFeatureExtractor, TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES, TextTowerFeatures,
};
use tpo_llm::LlmConfig;
use tpo_llm::text_tower::{QueryTokenizer, TextTowerConfig};
use tpo_vision::InternVideo2Config;
use tpo_vision::internvideo2::{VisionFileKind, VisionLoadOptions};

use super::{FeatureCache, HeadProgress, HeadStep, TemporalTowers, hash_file};
use crate::error::{Error, Result};
use crate::model::memory::{available_memory, gib};

/// Files of a folder of towers, in the order of [`InternVideo2Files`], and the tokenizer's.
pub(super) const TOWER_FILES: [&str; 4] = [
    "vision.safetensors",
    "text.safetensors",
    "clip.safetensors",
    "tokenizer.model",
];
/// What the identity of the video tower begins with.
pub(crate) const VIDEO_TOWER: &str = "internvideo2-clip";
/// Sizes of towers other than the published ones, beside their files.
const SIZES_FILE: &str = "towers.json";
/// Working memory of a batch of clips in f32, measured with the 1B tower: four clips of 250 MB.
const ACTIVATIONS: u64 = 1 << 30;

/// Where and how towers are opened.
#[derive(Debug, Clone, Default)]
pub struct TowerOptions {
    /// Dtype of the weights in memory. `None` for the files' own on an accelerator; on the CPU for f32
    /// where the larger tower then takes half of what is available or less, else bf16.
    pub dtype: Option<FloatDType>,
    /// Bytes that the towers, and a model that is opened beside them, may take on the CPU; `None` for what
    /// is available when one is opened. A session or a run that is bounded itself leaves them what its model
    /// does not take.
    pub memory: Option<u64>,
    /// Notes the hashes of the files, which the keys of its entries are made of.
    pub cache: Option<FeatureCache>,
    /// Hears how many bytes of a tower have been read.
    pub progress: Option<HeadProgress>,
}

/// The files of both towers, and what of them is in memory.
pub(super) struct Folder {
    files: InternVideo2Files,
    tokenizer: PathBuf,
    video: InternVideo2Config,
    text: TextTowerConfig,
    input: ClipInput,
    device: Device,
    dtype: DtypePolicy,
    /// Bytes of the video tower and of the text tower on the CPU.
    bytes: (u64, u64),
    options: TowerOptions,
    /// Bytes that both may take on the CPU, where that is bounded.
    within: Mutex<Option<u64>>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    video: Option<Arc<InternVideo2Features>>,
    text: Option<Arc<TextTowerFeatures>>,
}

impl TemporalTowers {
    /// InternVideo2-CLIP from a folder with `vision.safetensors` (the stage-2 model),
    /// `text.safetensors` (InternVL-C), `clip.safetensors` (the CLIP post-training) and
    /// `tokenizer.model`; the video tower alone, for a model that reads its own language model, with neither
    /// `text.safetensors` nor `tokenizer.model`. A `towers.json` says the sizes of towers other than the published ones: `vision`
    /// as the reference's `vision_encoder`, `text` as a `config.json` of Hugging Face.
    ///
    /// Nothing is read but sizes: a tower is opened, strictly, when it is first asked for features that
    /// no cache has. Where the CPU's memory does not hold both, opening one gives the other up.
    ///
    /// # Errors
    /// [`Error::ModelDir`] naming every file that is not there, and for sizes that cannot be read. Later,
    /// of the towers: everything that is missing, unexpected or of another shape in the files, and
    /// [`CoreError::MissingFeatures`] for a tower that does not fit into memory.
    pub fn open(dir: impl AsRef<Path>, device: &Device, options: TowerOptions) -> Result<Self> {
        let dir = dir.as_ref();
        let missing: Vec<&str> = TOWER_FILES
            .into_iter()
            .filter(|name| !dir.join(name).is_file())
            .collect();
        // Those of the text tower.
        let video_alone = missing == [TOWER_FILES[1], TOWER_FILES[3]];
        if !missing.is_empty() && !video_alone {
            return Err(Error::ModelDir {
                path: dir.to_path_buf(),
                why: format!(
                    "not a folder of InternVideo2-CLIP: it lacks {}; tools/pth_to_safetensors.py \
                     writes them from the published files (see `tpo features --help`)",
                    missing.join(", ")
                ),
            });
        }
        let [vision, text_file, clip, tokenizer] = TOWER_FILES.map(|name| dir.join(name));
        let (video, text) = sizes(dir)?;
        let parameters = |params: Vec<_>| params.iter().map(elements).sum::<u64>();
        let plain = Device::flex();
        let counts = (
            parameters(module_params(&video.init(&plain)?)),
            if video_alone {
                0
            } else {
                parameters(module_params(&text.init(&plain)?))
            },
        );
        let memory = options.memory.or_else(available_memory);
        let dtype = options.dtype.or_else(|| {
            let roomy = memory.is_none_or(|bytes| counts.0.max(counts.1) * 4 <= bytes / 2);
            on_cpu(device).then_some(if roomy {
                FloatDType::F32
            } else {
                FloatDType::BF16
            })
        });
        let size = dtype.map_or(4, |d| burn::tensor::DType::from(d).size() as u64);
        let folder = Arc::new(Folder {
            files: InternVideo2Files {
                vision,
                vision_kind: VisionFileKind::Stage2,
                text: text_file,
                clip: Some(clip),
            },
            tokenizer,
            input: InternVideo2Features::input_of(&video),
            video,
            text,
            device: device.clone(),
            dtype: dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast),
            bytes: (counts.0 * size + ACTIVATIONS, counts.1 * size),
            within: Mutex::new(options.memory),
            options,
            held: Mutex::default(),
        });
        let query = QueryTower(folder.clone(), OnceLock::new());
        Ok(Self {
            video: Some(Arc::new(VideoTower(folder.clone(), OnceLock::new()))),
            text: (!video_alone).then(|| Arc::new(query) as _),
            folder: Some(folder),
        })
    }
}

fn elements(param: &tpo_core::weights::ParamInfo) -> u64 {
    param.shape.iter().product::<usize>() as u64
}

fn on_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

/// Sizes of the towers in a folder: the published ones, unless it says others.
fn sizes(dir: &Path) -> Result<(InternVideo2Config, TextTowerConfig)> {
    let path = dir.join(SIZES_FILE);
    let mut video = InternVideo2Config::internvideo2_1b();
    let mut text = TextTowerConfig::internvideo2_clip();
    if !path.is_file() {
        return Ok((video, text));
    }
    let bad = |why: String| Error::ModelDir {
        path: path.clone(),
        why: format!(
            "not the sizes of two towers: {why}; expected {{\"vision\": {{..}}, \"text\": {{..}}}}"
        ),
    };
    let written = std::fs::read(&path).map_err(Error::feature_io(&path))?;
    let written: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&written).map_err(|e| bad(e.to_string()))?;
    for (part, sizes) in &written {
        match part.as_str() {
            "vision" => {
                video = InternVideo2Config::from_reference_json(sizes)
                    .map_err(|e| bad(e.to_string()))?;
            }
            "text" => {
                let decoder = LlmConfig::from_hf_json(&sizes.to_string());
                let decoder = decoder.map_err(|e| bad(e.to_string()))?;
                text.decoder = TextTowerConfig::of(
                    decoder,
                    TextTowerConfig::internvideo2_lora(),
                    text.clip_embed_dim,
                )
                .decoder;
            }
            other => return Err(bad(format!("there is no tower `{other}`"))),
        }
    }
    text.clip_embed_dim = video.clip_embed_dim;
    Ok((video, text))
}

impl Folder {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn within(&self) -> MutexGuard<'_, Option<u64>> {
        self.within.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the larger tower on the CPU.
    pub(super) fn larger(&self) -> u64 {
        let (video, text) = self.bytes;
        if on_cpu(&self.device) {
            video.max(text)
        } else {
            0
        }
    }

    /// Bytes of the towers that are in the CPU's memory.
    pub(super) fn open(&self) -> u64 {
        if !on_cpu(&self.device) {
            return 0;
        }
        let (held, (video, text)) = (self.held(), self.bytes);
        let of = |there: bool, bytes: u64| if there { bytes } else { 0 };
        of(held.video.is_some(), video) + of(held.text.is_some(), text)
    }

    pub(super) fn keep_within(&self, bytes: u64) {
        let own = self.options.memory.unwrap_or(bytes);
        *self.within() = Some(own.min(bytes));
    }

    /// Reads a tower with `read`, which hears how far it is.
    fn reading<T, E>(
        &self,
        what: &str,
        read: impl FnOnce(&VisionLoadOptions<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let heard = |done: u64, total: u64| {
            if let Some(progress) = &self.options.progress {
                (progress.0)(HeadStep {
                    what,
                    done: done as usize,
                    total: total as usize,
                    cost: None,
                });
            }
        };
        read(&VisionLoadOptions {
            load: LoadOptions {
                dtype: self.dtype,
                progress: Some(&heard),
                ..LoadOptions::default()
            },
            ..VisionLoadOptions::default()
        })
    }

    fn video(&self) -> Result<Arc<InternVideo2Features>, HeadsError> {
        let held = &mut *self.held();
        if let Some(tower) = &held.video {
            return Ok(tower.clone());
        }
        let (video, text) = self.bytes;
        self.make_room(TEMPORAL_VIDEO_FEATURES, video, &mut held.text, text)?;
        let tower = self.video.init(&self.device)?;
        let files = self.files.vision_files();
        let (tower, _) = self.reading("video tower", |load| tower.load(&files, load))?;
        let tower = Arc::new(InternVideo2Features::new(tower));
        Ok(held.video.insert(tower).clone())
    }

    fn text(&self) -> Result<Arc<TextTowerFeatures>, HeadsError> {
        let held = &mut *self.held();
        if let Some(tower) = &held.text {
            return Ok(tower.clone());
        }
        let (video, text) = self.bytes;
        self.make_room(TEMPORAL_TEXT_FEATURES, text, &mut held.video, video)?;
        let tokenizer = QueryTokenizer::from_sentencepiece(&self.tokenizer)?;
        let tower = self.text.init(&self.device)?;
        let files = self.files.text_files();
        let (tower, _) = self.reading("text tower", |load| tower.load(&files, &load.load))?;
        let tower = Arc::new(TextTowerFeatures::new(tower.merge_lora(), tokenizer));
        Ok(held.text.insert(tower).clone())
    }

    /// Gives the other tower up if one of `need` bytes does not fit beside it, but fits without it.
    fn make_room<T>(
        &self,
        name: &str,
        need: u64,
        other: &mut Option<Arc<T>>,
        of_other: u64,
    ) -> Result<(), HeadsError> {
        if !on_cpu(&self.device) {
            return Ok(());
        }
        let beside = if other.is_some() { of_other } else { 0 };
        let bound = *self.within();
        let all = bound.unwrap_or_else(|| {
            let available = available_memory().unwrap_or(u64::MAX);
            available.saturating_add(beside)
        });
        if need <= all.saturating_sub(beside) {
            return Ok(());
        }
        if need <= all {
            *other = None;
            return Ok(());
        }
        Err(HeadsError::Core(CoreError::MissingFeatures {
            head: "temporal".into(),
            name: name.into(),
            hint: format!(
                "their tower takes {:.1} GiB, and {:.1} are available; give it another place or type \
                 (--towers-device, --towers-dtype bf16), a smaller model (--quantize q8_0 or q4_0), or \
                 features that were computed before (--features DIR)",
                gib(need),
                gib(all)
            ),
        }))
    }

    fn identity(&self, tower: &str, files: &[&Path]) -> Result<String, HeadsError> {
        let named = identity_of_files(tower, self.dtype, files, self.options.cache.as_ref());
        named.map_err(|e| HeadsError::FeatureFile {
            path: files.first().map_or_else(PathBuf::new, PathBuf::from),
            why: e.to_string(),
        })
    }
}

/// Names a tower by the bytes of its files and how they are read.
pub(crate) fn identity_of_files(
    tower: &str,
    dtype: DtypePolicy,
    files: &[&Path],
    cache: Option<&FeatureCache>,
) -> Result<String> {
    let mut identity = format!("{tower}:{dtype:?}");
    for path in files {
        let hash = match cache {
            Some(cache) => cache.hash_noted(path)?,
            None => hash_file(path)?,
        };
        identity += &format!(":{hash}");
    }
    Ok(identity)
}

/// What is computed once, unless it fails.
fn once(
    cell: &OnceLock<String>,
    compute: impl FnOnce() -> Result<String, HeadsError>,
) -> Result<String, HeadsError> {
    if let Some(known) = cell.get() {
        return Ok(known.clone());
    }
    let computed = compute()?;
    Ok(cell.get_or_init(|| computed).clone())
}

/// The video tower of a folder.
struct VideoTower(Arc<Folder>, OnceLock<String>);

impl ClipFeatureExtractor for VideoTower {
    fn input(&self) -> &ClipInput {
        &self.0.input
    }

    fn width(&self) -> usize {
        self.0.video.clip_embed_dim
    }

    fn identity(&self) -> Result<String, HeadsError> {
        let files = &self.0.files;
        let files: Vec<&Path> = [&files.vision]
            .into_iter()
            .chain(&files.clip)
            .map(PathBuf::as_path)
            .collect();
        once(&self.1, || self.0.identity(VIDEO_TOWER, &files))
    }

    fn device(&self) -> Device {
        self.0.device.clone()
    }

    fn extract(&self, clips: Tensor<5>) -> Result<Tensor<2>, HeadsError> {
        self.0.video()?.extract(clips)
    }
}

/// The text tower of a folder, with its tokenizer.
struct QueryTower(Arc<Folder>, OnceLock<String>);

impl QueryFeatureExtractor for QueryTower {
    fn width(&self) -> usize {
        self.0.text.decoder.hidden_size
    }

    fn identity(&self) -> Result<String, HeadsError> {
        let files = &self.0.files;
        let files = [&self.0.tokenizer, &files.text]
            .into_iter()
            .chain(&files.clip);
        let files: Vec<&Path> = files.map(PathBuf::as_path).collect();
        once(&self.1, || self.0.identity("internvideo2-text", &files))
    }

    fn extract(&self, query: &str) -> Result<Tensor<2>, HeadsError> {
        self.0.text()?.extract(query)
    }
}
