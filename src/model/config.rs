//! A whole model in one configuration: the file `tpo.json`.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tpo_core::config::MOST;
use tpo_core::head::{HeadConfigs, HeadSet, ModelSizes};
use tpo_core::model::{CallOrder, TpoModel};
use tpo_core::ops::QuantFormat;
use tpo_core::token::TaskRegistry;
use tpo_core::traits::VisualShape;
use tpo_core::weights::{KeyRules, KeyTables};
use tpo_data::prompts::PromptLayout;
use tpo_data::prompts::qwen::QwenLayout;
use tpo_data::prompts::videochat::VideoChatLayout;
use tpo_data::{FrameSampling, ImageTransform};
use tpo_heads::temporal::{CgDetrConfig, TemporalHead};
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::{LlmConfig, LlmError};

use super::families::onevision::Names;
use super::{ConnectorConfig, FeatureTowers, Tpo, VisionConfig};
use crate::error::{Error, Result};

/// Version of the configuration file written beside weights.
pub(crate) const FORMAT: u32 = 2;

/// Tokens of text of a usual prompt: as many as VideoChat's prompts have in all.
pub(crate) const TEXT: usize = 1024;

/// How frames are put before the encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputConfig {
    /// Frames sampled from a video.
    pub frames: usize,
    /// Side of the square frames in pixels; the aspect ratio is not kept (reference).
    pub size: usize,
    /// Which frames.
    #[serde(default = "middle", skip_serializing_if = "is_middle")]
    pub sampling: FrameSampling,
    /// Antialiased resizing, as torchvision's default has been since 0.17. SigLIP's is always.
    pub antialias: bool,
}

fn middle() -> FrameSampling {
    FrameSampling::Middle
}

fn is_middle(sampling: &FrameSampling) -> bool {
    *sampling == middle()
}

/// How conversations are laid out for the language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// `[INST] <Video>..</Video>[/INST] [INST] question [/INST] answer` (VideoChat2 and VideoChat-TPO).
    VideoChat,
    /// ChatML with a system turn and one `<image>` for each visual (LLaVA-OneVision's `qwen_1_5`).
    Qwen,
}

impl PromptStyle {
    /// The layout of that name.
    pub fn layout(self) -> Arc<dyn PromptLayout> {
        match self {
            Self::VideoChat => Arc::new(VideoChatLayout),
            Self::Qwen => Arc::new(QwenLayout),
        }
    }
}

/// Sizes of all parts, and the tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TpoConfig {
    /// Version of this file.
    pub format: u32,
    /// Frames.
    pub input: InputConfig,
    /// Vision encoder.
    pub vision: VisionConfig,
    /// Connector.
    pub connector: ConnectorConfig,
    /// Language model.
    pub llm: LlmConfig,
    /// Layout of conversations.
    pub prompt: PromptStyle,
    /// The heads by name.
    pub heads: HeadConfigs,
    /// Frozen towers whose features the temporal head reads.
    pub features: FeatureTowers,
    /// Task tokens and their ids.
    pub tasks: TaskRegistry,
    /// When heads are called: as the published code does unless the file says otherwise, as in
    /// training for what recipes train.
    #[serde(default, skip_serializing_if = "is_default")]
    pub call_order: CallOrder,
}

fn is_default(order: &CallOrder) -> bool {
    *order == CallOrder::default()
}

/// How the linear layers of a model's parts are quantised; `None` for as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quantize {
    /// Of the language model: those of the blocks, and the output layer, which has 8 bits in every format.
    pub llm: Option<QuantFormat>,
    /// Of the blocks of the vision encoder.
    pub vision: Option<QuantFormat>,
}

impl From<QuantFormat> for Quantize {
    /// The language model alone.
    fn from(format: QuantFormat) -> Self {
        Self {
            llm: Some(format),
            vision: None,
        }
    }
}

impl TpoConfig {
    /// Reads a configuration, also one of the format before.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn from_json(text: &str) -> std::result::Result<Self, String> {
        let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match value["format"].as_u64() {
            Some(1) => upgrade(&mut value),
            Some(_) => {}
            None => {
                return Err(format!(
                    "it must be an object whose `format` is a number, {FORMAT} in this version; found \
                     `\"format\": {}`",
                    value["format"]
                ));
            }
        }
        Self::deserialize(value).map_err(|e| e.to_string())
    }

    /// Checks that the parts and `H` fit together.
    ///
    /// # Errors
    /// [`Error::Config`] with every problem.
    pub fn validate<H: HeadSet>(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.format != FORMAT {
            problems.push(format!(
                "format {} was written by another version; this one reads {FORMAT} and those before",
                self.format
            ));
        }
        let (frames, tubelet) = self.vision.clip();
        for part in [
            self.vision.validate().map_err(|e| e.to_string()),
            self.connector.validate().map_err(|e| e.to_string()),
            self.llm.validate().map_err(|e| match e {
                // What it says of the whole is said once.
                LlmError::Config { problems } => format!("llm: {problems}"),
                other => other.to_string(),
            }),
            self.tasks.validate().map_err(|e| e.to_string()),
            self.features.validate(frames, tubelet),
        ] {
            problems.extend(part.err());
        }
        let mut equal = |what: &str, a: usize, b: usize| {
            if a != b {
                problems.push(format!("{what}: {a} and {b} must be equal"));
            }
        };
        let (d_vision, d_llm) = self.connector.widths();
        equal(
            "width of `vision` and of `connector`",
            self.vision.dim(),
            d_vision,
        );
        equal(
            "llm.hidden_size and connector.d_llm",
            self.llm.hidden_size,
            d_llm,
        );
        equal(
            "input.size and the side of `vision`",
            self.input.size,
            self.vision.side(),
        );
        if let Some(packing) = self.connector.packing() {
            let (grid, side) = (self.vision.grid(), self.vision.side());
            equal(
                "tokens along a side of `vision` and connector.packing.side",
                grid,
                packing.side,
            );
            let tile = packing.tiling.tile as usize;
            equal(
                "the side of `vision` and connector.packing.tiling.tile",
                side,
                tile,
            );
        }
        let tokens = self.vision.tokens(self.input.frames);
        if self.input.frames == 0 || tokens > MOST {
            problems.push(format!(
                "input.frames is {}, expected 1 or more, and at most {MOST} tokens of `vision` in all",
                self.input.frames
            ));
        }
        problems.extend(self.feature_problems());
        let vocab = self.llm.vocab_size;
        for token in self.tasks.tokens().filter(|t| t.id as usize >= vocab) {
            problems.push(format!(
                "task token `{}` has id {}, the vocabulary ends at {vocab}",
                token.token, token.id
            ));
        }
        let heads: Vec<String> = H::specs().into_iter().map(|s| s.name).collect();
        let tasks = self.tasks.tasks().iter().map(|t| &t.name);
        let named: BTreeSet<&String> = self.heads.0.keys().chain(tasks).collect();
        for name in named.into_iter().filter(|n| !heads.contains(n)) {
            problems.push(no_head(&format!("heads.{name}"), &heads));
        }
        for name in heads.iter().filter(|n| self.tasks.get(n).is_none()) {
            let known: Vec<&str> = self.tasks.tasks().iter().map(|t| &*t.name).collect();
            problems.push(format!(
                "the model lacks this program's head `{name}` (it has: {}); name one that was trained \
                 with it, as docs/ADDING_A_HEAD.md shows: `--model DIR`",
                known.join(", ")
            ));
        }
        // No weight is drawn: a head that cannot be made says why.
        if problems.is_empty()
            && let Err(e) = H::init(&self.heads, &self.sizes(), &Device::flex())
        {
            problems.push(e.to_string());
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Config {
            problems: problems.join("; "),
        })
    }

    /// Seconds of one row of video features: as the temporal head has it, or else as the towers make
    /// them.
    pub fn feature_seconds(&self) -> f64 {
        self.written_seconds()
            .unwrap_or_else(|| self.features.seconds())
    }

    fn written_seconds(&self) -> Option<f64> {
        self.heads.0.get("temporal")?["clip_seconds"].as_f64()
    }

    /// Has the temporal head read features of these towers, which are as wide as the model's encoder or as
    /// InternVideo2-CLIP's (768).
    ///
    /// # Errors
    /// For a configuration of the temporal head that is another head's.
    pub fn set_features(&mut self, features: FeatureTowers) -> Result<()> {
        let mut head = self.heads.get::<TemporalHead>()?;
        head.model.d_video = match features {
            FeatureTowers::Own(_) => self.vision.dim(),
            FeatureTowers::InternVideo2 | FeatureTowers::InternVideo2Video => {
                CgDetrConfig::videochat_tpo().d_video
            }
        };
        head.clip_seconds = features.seconds();
        self.heads = self.heads.clone().with::<TemporalHead>(&head)?;
        self.features = features;
        Ok(())
    }

    /// Whether the temporal head's clips are those of the model's own encoder.
    fn feature_problems(&self) -> Option<String> {
        self.features.own_clips()?;
        let (written, seconds) = (self.written_seconds()?, self.features.seconds());
        ((seconds - written).abs() > 1e-9).then(|| {
            format!("heads.temporal.clip_seconds is {written}, but a feature lasts {seconds} s")
        })
    }

    /// The widths that heads are made for.
    pub fn sizes(&self) -> ModelSizes {
        ModelSizes {
            llm: self.llm.hidden_size,
            vision: self.vision.dim(),
        }
    }

    /// Rows that a visual takes in a prompt.
    ///
    /// # Errors
    /// As [`ConnectorConfig::rows`].
    pub fn rows(&self, visual: &VisualShape) -> tpo_core::Result<usize> {
        let tokens = self.vision.tokens(visual.pictures);
        self.connector.rows(visual, tokens)
    }

    /// From pictures to the pixels that the encoder reads.
    pub fn transform(&self) -> ImageTransform {
        self.vision.transform(self.input.antialias)
    }

    /// Longest prompt in tokens: that of the prompt style, if the language model reads as much.
    pub fn max_prompt(&self) -> usize {
        let layout = self.prompt.layout();
        layout.max_tokens().min(self.llm.max_position_embeddings)
    }

    /// Tokens of the prompt that memory is reckoned for before a model is opened: about a video of its frames or the
    /// largest image, with 1,024 tokens of text, if it reads as much. A longer one, about many images or
    /// after many turns, takes more.
    ///
    /// # Errors
    /// As [`TpoConfig::rows`].
    pub fn usual_prompt(&self) -> Result<usize> {
        let side = u32::try_from(self.input.size).unwrap_or(u32::MAX);
        let video = self.rows(&VisualShape::video((side, side), self.input.frames))?;
        let image = self.connector.most_image_rows(self.vision.tokens(1));
        let usual = video.max(image).saturating_add(TEXT);
        Ok(usual.min(self.max_prompt()))
    }

    /// Ids that end an answer: training writes the first, generation stops at all. Those of the prompt
    /// style, then the tokenizer's own; none where neither has one.
    ///
    /// # Errors
    /// [`Error::Config`] when the tokenizer lacks the token that ends an answer in this prompt style.
    pub fn ends(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (i, token) in self.prompt.layout().ends().iter().enumerate() {
            match tokenizer.token_to_id(token) {
                None if i == 0 => {
                    return Err(Error::Config {
                        problems: format!(
                            "answers end with `{token}` in the model's `prompt` style, and its tokenizer \
                             has no such token; take the tokenizer of the model, or another style"
                        ),
                    });
                }
                id => ids.extend(id),
            }
        }
        let own = tokenizer.eos_id().into_iter();
        for id in own.chain(tokenizer.eos_ids().iter().copied()) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// How the linear layers of parts are quantised.
    pub fn quantization(&self) -> Quantize {
        Quantize {
            llm: self.llm.quantization,
            vision: self.vision.quantization(),
        }
    }

    /// Sets how they are quantised, whatever they were; by default they are not.
    pub(crate) fn set_quantization(&mut self, parts: Quantize) {
        self.llm.quantization = parts.llm;
        *self.vision.quantization_mut() = parts.vision;
    }

    /// Has the linear layers of parts quantised.
    ///
    /// # Errors
    /// [`Error::Config`] when they are in another format already; nothing is then changed.
    pub fn quantize(&mut self, parts: Quantize) -> Result<()> {
        let now = self.quantization();
        for (format, old) in [(parts.llm, now.llm), (parts.vision, now.vision)] {
            if let (Some(format), Some(old)) = (format, old)
                && old != format
            {
                return Err(Error::Config {
                    problems: format!(
                        "the weights are quantised as {} already, and {} is asked for; leave it \
                         out, or quantise the model they were made of",
                        old.name(),
                        format.name()
                    ),
                });
            }
        }
        self.set_quantization(Quantize {
            llm: parts.llm.or(now.llm),
            vision: parts.vision.or(now.vision),
        });
        Ok(())
    }

    /// Creates the model with random weights, drawn on first use from the device's generator
    /// (seed it with [`Device::seed`]).
    ///
    /// # Errors
    /// [`Error::Config`] when the parts do not fit together.
    pub fn init<H: HeadSet>(&self, device: &Device) -> Result<Tpo<H>> {
        self.validate::<H>()?;
        self.assemble(device)
    }

    /// [`TpoConfig::init`] without the checks: the tables may have no rows of new tokens yet.
    pub(crate) fn assemble<H: HeadSet>(&self, device: &Device) -> Result<Tpo<H>> {
        Ok(TpoModel::new(
            self.vision.init(device)?,
            self.connector.init(device)?,
            self.llm.init(device)?,
            H::init(&self.heads, &self.sizes(), device)?,
            self.tasks.clone(),
            device,
        )?)
    }

    /// Checkpoint names ↔ parameters of a model of this configuration, as it is written.
    ///
    /// # Errors
    /// For rules of a head that do not parse.
    pub fn keys<H: HeadSet>(&self) -> Result<KeyTables<'static>> {
        self.keys_named::<H>(Names::default())
    }

    /// [`TpoConfig::keys`] in files of the base with these names. Only LLaVA-OneVision has several.
    ///
    /// # Errors
    /// As [`TpoConfig::keys`].
    pub fn keys_named<H: HeadSet>(&self, names: Names) -> Result<KeyTables<'static>> {
        let mut tables = KeyTables::new();
        for (rules, field) in [
            (self.vision.keys(names)?, "vision."),
            (self.connector.keys(names)?, "connector."),
            (vec![self.connector.llm_keys(&self.llm, names)?], "llm."),
        ] {
            for rules in rules {
                tables = tables.with(rules.within(field));
            }
        }
        for (spec, keys) in H::specs().into_iter().zip(H::keys()?) {
            for rules in keys.rules {
                tables = tables.with(rules.within(&format!("heads.{}.", spec.name)));
            }
            let token = KeyRules::new()
                .owns([keys.token.as_str()])
                .prefix(&keys.token, &format!("task_tokens.{}", spec.name));
            tables = tables.with(token);
        }
        Ok(tables)
    }
}

/// What is wrong when something names a head that the program does not have.
pub(crate) fn no_head(at: &str, heads: &[String]) -> String {
    format!(
        "{at}: this program has no such head (it has: {}); use one that names it in `heads!`",
        heads.join(", ")
    )
}

/// Format 1 named one encoder, one connector and three heads at the top.
fn upgrade(value: &mut Value) {
    let Some(table) = value.as_object_mut() else {
        return;
    };
    let mut heads = serde_json::Map::new();
    for name in ["region", "temporal", "mask"] {
        heads.extend(table.remove(name).map(|config| (name.to_string(), config)));
    }
    for (part, kind) in [("vision", "umt"), ("connector", "qformer")] {
        if let Some(Value::Object(part)) = table.get_mut(part) {
            part.insert("kind".into(), kind.into());
        }
    }
    table.insert("format".into(), FORMAT.into());
    table.insert("prompt".into(), "videochat".into());
    table.insert("heads".into(), heads.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BuiltInHeads;

    #[test]
    fn presets_fit_together() {
        TpoConfig::videochat_tpo()
            .validate::<BuiltInHeads>()
            .unwrap();
        TpoConfig::nano(300).validate::<BuiltInHeads>().unwrap();
        let mut bad = TpoConfig::nano(300);
        if let ConnectorConfig::QFormer(connector) = &mut bad.connector {
            connector.d_llm += 1;
        }
        bad.input.frames = 0;
        let text = bad.validate::<BuiltInHeads>().unwrap_err().to_string();
        assert!(
            text.contains("d_llm") && text.contains("input.frames"),
            "{text}"
        );
        let mut other = TpoConfig::nano(300);
        other.heads.0.insert("point".into(), Value::Null);
        let text = other.validate::<BuiltInHeads>().unwrap_err().to_string();
        assert!(text.contains("heads.point"), "{text}");
        // A head of which only the task is written, as models were exported before.
        let mut other = TpoConfig::nano(300);
        let mut tasks = serde_json::to_value(&other.tasks).unwrap();
        tasks["tasks"][0]["name"] = "point".into();
        other.tasks = serde_json::from_value(tasks).unwrap();
        let text = other.validate::<BuiltInHeads>().unwrap_err().to_string();
        assert!(
            text.contains("heads.point: this program has no such head"),
            "{text}"
        );
        let json = serde_json::to_string(&TpoConfig::videochat_tpo()).unwrap();
        TpoConfig::from_json(&json)
            .unwrap()
            .validate::<BuiltInHeads>()
            .unwrap();
    }

    /// Sizes that would take all memory, or for ever, are refused before anything is built.
    #[test]
    fn what_no_machine_could_build_is_refused() {
        let written = serde_json::to_value(TpoConfig::nano(300)).unwrap();
        for (path, part) in [
            ("/input/frames", "input.frames"),
            ("/vision/encoder_depth", "encoder_depth"),
            ("/vision/num_frames", "tokens of a clip"),
            ("/connector/qformer/num_hidden_layers", "num_hidden_layers"),
            ("/connector/d_llm", "d_llm"),
            ("/llm/num_hidden_layers", "num_hidden_layers"),
            ("/heads/region/hidden", "hidden"),
            ("/heads/temporal/model/decoder_layers", "decoder_layers"),
            ("/heads/temporal/max_clips", "max_clips"),
            ("/heads/mask/hidden", "hidden"),
            ("/heads/mask/sam/memory_attention/num_layers", "num_layers"),
            ("/heads/mask/sam/image_encoder/trunk/stages/0", "stages"),
            (
                "/heads/mask/sam/tracking/memory_temporal_stride_for_eval",
                "stride",
            ),
        ] {
            for huge in [10_000_000_000_u64, u64::MAX] {
                let mut value = written.clone();
                *value.pointer_mut(path).expect(path) = huge.into();
                let config = TpoConfig::from_json(&value.to_string()).unwrap();
                let text = config.validate::<BuiltInHeads>().unwrap_err().to_string();
                assert!(text.contains(part), "{path}: {text}");
            }
        }
        for text in ["[]", r#"{"format": "1"}"#, "{}"] {
            let error = TpoConfig::from_json(text).unwrap_err();
            assert!(error.contains("`format` is a number"), "{error}");
        }
        let mut config = TpoConfig::nano(300);
        config.llm.max_position_embeddings = 0;
        assert!(config.validate::<BuiltInHeads>().is_err());
    }

    /// What one part refuses does not happen to the other.
    #[test]
    fn quantising_changes_all_or_nothing() {
        let mut config = TpoConfig::nano(300);
        let vision = Quantize {
            llm: None,
            vision: Some(QuantFormat::Q8_0),
        };
        config.quantize(vision).unwrap();
        let other = Quantize {
            llm: Some(QuantFormat::Q4_0),
            vision: Some(QuantFormat::Q4_0),
        };
        assert!(config.quantize(other).is_err());
        assert_eq!(config.quantization(), vision);
        config.quantize(QuantFormat::Q4_0.into()).unwrap();
        let both = Quantize {
            llm: Some(QuantFormat::Q4_0),
            ..vision
        };
        assert_eq!(config.quantization(), both);
        config.set_quantization(Quantize::default());
        assert_eq!(config.quantization(), Quantize::default());
    }

    #[test]
    fn the_format_before_is_read() {
        let config = TpoConfig::nano(300);
        let mut value = serde_json::to_value(&config).unwrap();
        let table = value.as_object_mut().unwrap();
        let heads = table.remove("heads").unwrap();
        table.extend(heads.as_object().unwrap().clone());
        table.remove("prompt");
        table.insert("format".into(), 1.into());
        for part in ["vision", "connector"] {
            table[part].as_object_mut().unwrap().remove("kind");
        }
        let read = TpoConfig::from_json(&value.to_string()).unwrap();
        let now = |c: &TpoConfig| serde_json::to_string(c).unwrap();
        assert_eq!(now(&read), now(&config));
    }
}
