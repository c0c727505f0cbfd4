//! A whole model in one configuration, and the checkpoint names of its parts.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use tpo_core::CoreError;
use tpo_core::head::{HeadNode, NoHeads};
use tpo_core::heads;
use tpo_core::model::{CallOrder, TpoModel};
use tpo_core::token::TaskRegistry;
use tpo_core::weights::{KeyRules, KeyTables};
use tpo_heads::mask::sam2::sam2_videochat_tpo_keys;
use tpo_heads::mask::{MaskHead, MaskHeadConfig};
use tpo_heads::region::{REGION_KEYS, RegionHead, RegionHeadConfig};
use tpo_heads::temporal::{TemporalHead, TemporalHeadConfig, cg_detr_rules};
use tpo_llm::{CausalLm, LlmConfig, LoraConfig};
use tpo_vision::connector::qformer::{QFORMER_KEYS, QFORMER_KEYS_INVERSE, QFORMER_UNUSED_KEYS};
use tpo_vision::umt::{UMT_KEYS, UMT_KEYS_INVERSE};
use tpo_vision::{QFormerConnector, QFormerConnectorConfig, UmtConfig, VideoEncoder};

use crate::error::{Error, Result};
use crate::features::FeatureTowers;

/// The heads of [`VideoChatTpo`]: region, temporal, mask.
pub type VideoChatHeads = HeadNode<RegionHead, HeadNode<TemporalHead, HeadNode<MaskHead, NoHeads>>>;

/// The paper's model: UMT, Q-Former, a Llama-family decoder, task heads.
pub type VideoChatTpo = TpoModel<VideoEncoder, QFormerConnector, CausalLm, VideoChatHeads>;

/// Version of the configuration file written beside weights.
const FORMAT: u32 = 1;

/// How frames are put before the encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputConfig {
    /// Frames sampled from a video.
    pub frames: usize,
    /// Side of the square frames in pixels; the aspect ratio is not kept (reference).
    pub size: usize,
    /// Antialiased resizing, as torchvision's default has been since 0.17.
    pub antialias: bool,
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
    pub vision: UmtConfig,
    /// Connector.
    pub connector: QFormerConnectorConfig,
    /// Language model.
    pub llm: LlmConfig,
    /// Region head.
    pub region: RegionHeadConfig,
    /// Temporal head.
    pub temporal: TemporalHeadConfig,
    /// Mask head with its SAM 2.
    pub mask: MaskHeadConfig,
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

impl TpoConfig {
    /// VideoChat-TPO with Mistral-7B, as published: 16 frames of 224 pixels, 96 visual slots,
    /// LoRA of rank 16 kept beside the weights.
    pub fn videochat_tpo() -> Self {
        Self {
            format: FORMAT,
            input: InputConfig {
                frames: 16,
                size: 224,
                antialias: true,
            },
            vision: UmtConfig::large(),
            connector: QFormerConnectorConfig::videochat_tpo(),
            llm: LlmConfig::mistral_7b().lora(LoraConfig::videochat_tpo()),
            region: RegionHeadConfig::videochat_tpo(),
            temporal: TemporalHeadConfig::videochat_tpo(),
            mask: MaskHeadConfig::videochat_tpo(),
            features: FeatureTowers::InternVideo2,
            tasks: TaskRegistry::videochat_tpo(),
            call_order: CallOrder::AsReference,
        }
    }

    /// A tiny model of the same build, for tests and first tries, for a vocabulary of `vocab_size` whose
    /// last seven ids are the task tokens in the reference's order.
    pub fn nano(vocab_size: usize) -> Self {
        let vision = UmtConfig::mini();
        let llm = LlmConfig::mini(vocab_size);
        Self {
            format: FORMAT,
            input: InputConfig {
                frames: vision.num_frames,
                size: vision.img_size,
                antialias: true,
            },
            connector: QFormerConnectorConfig::mini(llm.hidden_size),
            region: RegionHeadConfig::for_llm(llm.hidden_size),
            // Features of the model's own encoder and language model.
            temporal: TemporalHeadConfig::mini(llm.hidden_size, vision.encoder_embed_dim)
                .with_clip_seconds(0.5),
            mask: MaskHeadConfig::mini(llm.hidden_size),
            features: FeatureTowers::own(),
            tasks: TaskRegistry::with_base(vocab_size.saturating_sub(7) as u32),
            call_order: CallOrder::default(),
            vision,
            llm,
        }
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// [`Error::Config`] with every problem.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.format != FORMAT {
            problems.push(format!(
                "format {} was written by another version; this one reads {FORMAT}",
                self.format
            ));
        }
        for part in [
            self.vision.validate().map_err(|e| e.to_string()),
            self.connector.qformer.validate().map_err(|e| e.to_string()),
            self.llm.validate().map_err(|e| e.to_string()),
            self.temporal.validate().map_err(|e| e.to_string()),
            self.mask.validate().map_err(|e| e.to_string()),
            self.tasks.validate().map_err(|e| e.to_string()),
            self.features
                .validate(self.vision.num_frames, self.vision.tubelet_size),
        ] {
            problems.extend(part.err());
        }
        let mut equal = |what: &str, a: usize, b: usize| {
            if a != b {
                problems.push(format!("{what}: {a} and {b} must be equal"));
            }
        };
        equal(
            "vision.encoder_embed_dim and connector.qformer.encoder_width",
            self.vision.encoder_embed_dim,
            self.connector.qformer.encoder_width,
        );
        equal(
            "llm.hidden_size and connector.d_llm",
            self.llm.hidden_size,
            self.connector.d_llm,
        );
        equal(
            "llm.hidden_size and region.d_llm",
            self.llm.hidden_size,
            self.region.d_llm,
        );
        equal(
            "llm.hidden_size and temporal.model.d_text",
            self.llm.hidden_size,
            self.temporal.model.d_text,
        );
        equal(
            "llm.hidden_size and mask.d_llm",
            self.llm.hidden_size,
            self.mask.d_llm,
        );
        equal(
            "input.size and vision.img_size",
            self.input.size,
            self.vision.img_size,
        );
        if let Some(clips) = self.features.own_clips() {
            equal(
                "vision.encoder_embed_dim and temporal.model.d_video",
                self.vision.encoder_embed_dim,
                self.temporal.model.d_video,
            );
            let frames = clips.frames_per_clip as f64 / clips.features_per_clip as f64;
            let seconds = frames / clips.frames_per_second;
            if (seconds - self.temporal.clip_seconds).abs() > 1e-9 {
                problems.push(format!(
                    "temporal.clip_seconds is {}, but a feature lasts {seconds} s",
                    self.temporal.clip_seconds
                ));
            }
        }
        if self.input.frames == 0 {
            problems.push("input.frames must not be zero".into());
        }
        for token in self.tasks.tokens() {
            if token.id as usize >= self.llm.vocab_size {
                problems.push(format!(
                    "task token `{}` has id {}, the vocabulary ends at {}",
                    token.token, token.id, self.llm.vocab_size
                ));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Error::Config {
                problems: problems.join("; "),
            })
        }
    }

    /// Creates the model with random weights, drawn on first use from the device's generator
    /// (seed it with [`Device::seed`]).
    ///
    /// # Errors
    /// [`Error::Config`] when the parts do not fit together.
    pub fn init(&self, device: &Device) -> Result<VideoChatTpo> {
        self.validate()?;
        Ok(TpoModel::new(
            VideoEncoder::new(&self.vision, device)?,
            self.connector.init(device)?,
            self.llm.init(device)?,
            heads![
                self.region.init(device),
                self.temporal.init(device).map_err(CoreError::from)?,
                self.mask.init(device).map_err(CoreError::from)?
            ],
            self.tasks.clone(),
            device,
        )?)
    }
}

/// Checkpoint names of VideoChat-TPO ↔ parameters of [`VideoChatTpo`].
///
/// Every key has a parameter, but for constants that the reference stores beside its parameters;
/// these are ignored, each with its reason.
pub fn videochat_tpo_keys() -> Result<KeyTables<'static>> {
    let vision = KeyRules::new()
        .owns(["vision_encoder.", "vision_layernorm."])
        .rewrite(UMT_KEYS, UMT_KEYS_INVERSE)?
        .within("vision.");
    let mut connector = KeyRules::new()
        .owns([
            "qformer.",
            "query_tokens",
            "extra_query_tokens",
            "project_up.",
            "project_down.",
            "merge_proj.",
        ])
        .rewrite(QFORMER_KEYS, QFORMER_KEYS_INVERSE)?;
    for (pattern, reason) in QFORMER_UNUSED_KEYS {
        connector = connector.ignore(pattern, reason)?;
    }
    let mut region = KeyRules::new().owns(["loc_encoder.", "loc_decoder."]);
    for (key, path) in REGION_KEYS {
        region = region.prefix(key, path);
    }
    let criterion = KeyRules::new()
        .owns(["cg_criterion."])
        .prefix("cg_criterion.", "criterion.");
    let start_end = KeyRules::new().owns(["temporal_embed.", "action_embed."]);
    let simple = KeyRules::new()
        .owns(["simple_temporal."])
        .prefix("simple_temporal.", "");
    let token = |key: &str, at: usize| {
        KeyRules::new()
            .owns([key])
            .prefix(key, &format!("task_tokens.{at}"))
    };
    let adapter = KeyRules::new().owns(["track_embed.", "track_embed_decode2."]);
    Ok(KeyTables::new()
        .with(vision)
        .with(connector.within("connector."))
        .with(
            KeyRules::new()
                .owns(["lm."])
                .prefix("lm.base_model.model.", "")
                .lora("default")
                .within("llm."),
        )
        .with(region.within("heads.head."))
        .with(cg_detr_rules()?.within("heads.rest.head.model."))
        .with(criterion.within("heads.rest.head."))
        .with(start_end.within("heads.rest.head.start_end."))
        .with(simple.within("heads.rest.head.simple."))
        .with(token("box_token", 0))
        .with(adapter.within("heads.rest.rest.head."))
        .with(sam2_videochat_tpo_keys()?.within("heads.rest.rest.head.sam."))
        .with(token("temporal_token", 1))
        .with(token("track_token", 2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::weights::{KeyMap, KeyTarget};

    #[test]
    fn presets_fit_together() {
        TpoConfig::videochat_tpo().validate().unwrap();
        TpoConfig::nano(300).validate().unwrap();
        let mut bad = TpoConfig::nano(300);
        bad.connector.d_llm += 1;
        bad.input.frames = 0;
        let text = bad.validate().unwrap_err().to_string();
        assert!(
            text.contains("d_llm") && text.contains("input.frames"),
            "{text}"
        );
        let json = serde_json::to_string(&TpoConfig::videochat_tpo()).unwrap();
        serde_json::from_str::<TpoConfig>(&json)
            .unwrap()
            .validate()
            .unwrap();
    }

    #[test]
    fn keys_of_every_part() {
        let map = videochat_tpo_keys().unwrap();
        for (key, path) in [
            ("vision_layernorm.bias", "vision.vision_layernorm.bias"),
            ("query_tokens", "connector.qformer.query_tokens"),
            ("box_token", "task_tokens.0"),
            ("loc_decoder.2.weight", "heads.head.decoder.output.weight"),
            ("temporal_token", "task_tokens.1"),
            (
                "cg_model.transformer.encoder.layers.2.linear1.weight",
                "heads.rest.head.model.transformer.encoder.layers.2.feed_forward.linear1.weight",
            ),
            (
                "cg_model.input_txt_proj.0.LayerNorm.bias",
                "heads.rest.head.model.input_txt_proj.0.layer_norm.bias",
            ),
            (
                "cg_criterion.empty_weight",
                "heads.rest.head.criterion.empty_weight",
            ),
            (
                "action_embed.layers.1.bias",
                "heads.rest.head.start_end.action_embed.layers.1.bias",
            ),
            (
                "lm.base_model.model.model.layers.3.mlp.up_proj.lora_B.default.weight",
                "llm.model.layers.3.mlp.up_proj.lora.b",
            ),
            ("track_token", "task_tokens.2"),
            (
                "track_embed_decode2.layers.1.bias",
                "heads.rest.rest.head.track_embed_decode2.layers.1.bias",
            ),
            (
                "track_embed.layers.0.weight",
                "heads.rest.rest.head.track_embed.layers.0.weight",
            ),
            (
                "sam.sam_mask_decoder.output_upscaling.3.bias",
                "heads.rest.rest.head.sam.sam_mask_decoder.output_upscaling.conv2.bias",
            ),
        ] {
            assert_eq!(map.module_path(key), KeyTarget::Path(path.into()));
        }
    }
}
