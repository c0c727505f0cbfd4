//! VideoChat-TPO: the published sizes, the tiny model of the same build, and the names in its
//! checkpoints.

use tpo_core::head::{HeadConfigs, HeadSet};
use tpo_core::model::CallOrder;
use tpo_core::token::{TaskRegistry, TaskTokens, TokenId};
use tpo_core::weights::{KeyRules, KeyTables};
use tpo_data::FrameSampling;
use tpo_heads::mask::{MaskHead, MaskHeadConfig};
use tpo_heads::region::{RegionHead, RegionHeadConfig};
use tpo_heads::temporal::{TemporalHead, TemporalHeadConfig};
use tpo_llm::LlmConfig;
use tpo_llm::config::videochat_lora;
use tpo_vision::connector::qformer::{QFORMER_KEYS, QFORMER_KEYS_INVERSE, QFORMER_UNUSED_KEYS};
use tpo_vision::umt::{UMT_KEYS, UMT_KEYS_INVERSE};
use tpo_vision::{QFormerConnectorConfig, UmtConfig};

use crate::error::Result;
use crate::model::{
    BuiltInHeads, ConnectorConfig, FORMAT, FeatureTowers, InputConfig, PromptStyle, Tpo, TpoConfig,
    VisionConfig,
};

/// The paper's model: UMT, Q-Former, a Llama-family decoder, the three built-in heads.
pub type VideoChatTpo = Tpo<BuiltInHeads>;

impl TpoConfig {
    /// VideoChat-TPO with Mistral-7B, as published: 16 frames of 224 pixels, 96 visual slots,
    /// LoRA of rank 16 kept beside the weights.
    pub fn videochat_tpo() -> Self {
        Self {
            format: FORMAT,
            input: InputConfig {
                frames: 16,
                sampling: FrameSampling::Middle,
                size: 224,
                antialias: true,
            },
            vision: VisionConfig::Umt(UmtConfig::large()),
            connector: ConnectorConfig::QFormer(QFormerConnectorConfig::videochat_tpo()),
            llm: LlmConfig::mistral_7b().lora(videochat_lora()),
            prompt: PromptStyle::VideoChat,
            heads: heads(
                &RegionHeadConfig::videochat_tpo(),
                &TemporalHeadConfig::videochat_tpo(),
                &MaskHeadConfig::videochat_tpo(),
            ),
            features: FeatureTowers::InternVideo2,
            tasks: videochat_tasks(32_000),
            call_order: CallOrder::AsReference,
        }
    }

    /// A tiny model of the same build, for tests and first tries, for a vocabulary of `vocab_size` whose
    /// last seven ids are the task tokens in the reference's order.
    pub fn nano(vocab_size: usize) -> Self {
        Self {
            tasks: videochat_tasks(vocab_size.saturating_sub(7) as u32),
            ..Self::small(LlmConfig::mini(vocab_size))
        }
    }

    /// A tiny encoder, connector and heads around any language model, without tasks yet.
    pub(crate) fn small(llm: LlmConfig) -> Self {
        let vision = UmtConfig::mini();
        Self {
            format: FORMAT,
            input: InputConfig {
                frames: vision.num_frames,
                sampling: FrameSampling::Middle,
                size: vision.img_size,
                antialias: true,
            },
            connector: ConnectorConfig::QFormer(QFormerConnectorConfig::mini(llm.hidden_size)),
            heads: heads(
                &RegionHeadConfig::for_llm(llm.hidden_size),
                // Features of the model's own encoder and language model.
                &TemporalHeadConfig::mini(llm.hidden_size, vision.encoder_embed_dim)
                    .with_clip_seconds(0.5),
                &MaskHeadConfig::mini(llm.hidden_size),
            ),
            prompt: PromptStyle::VideoChat,
            features: FeatureTowers::own(),
            tasks: TaskRegistry::new(),
            call_order: CallOrder::default(),
            vision: VisionConfig::Umt(vision),
            llm,
        }
    }
}

/// Configurations of the three heads. They are plain numbers, which JSON always holds.
pub(super) fn heads(
    region: &RegionHeadConfig,
    temporal: &TemporalHeadConfig,
    mask: &MaskHeadConfig,
) -> HeadConfigs {
    let add = || {
        HeadConfigs::default()
            .with::<RegionHead>(region)?
            .with::<TemporalHead>(temporal)?
            .with::<MaskHead>(mask)
    };
    add().unwrap_or_default()
}

/// The seven tokens of VideoChat-TPO in the reference's order, the first with id `base`
/// (published: 32000).
pub fn videochat_tasks(base: u32) -> TaskRegistry {
    let mut registry = TaskRegistry::new();
    let places = [(0, 3), (1, 2), (4, 5)];
    for (spec, (routing, placeholder)) in BuiltInHeads::specs().into_iter().zip(places) {
        let task = TaskTokens {
            name: spec.name,
            routing: TokenId::new(spec.routing, base + routing),
            placeholder: TokenId::new(spec.placeholder, base + placeholder),
        };
        // Names and tokens of the built-in heads differ.
        let _ = registry.register(task);
    }
    registry.box_prompt = Some(TokenId::new("<track_box>", base + 6));
    registry
}

/// Names of the encoder's parameters in checkpoints.
pub(crate) fn umt_keys() -> Result<Vec<KeyRules>> {
    let rules = KeyRules::new()
        .owns(["vision_encoder.", "vision_layernorm."])
        .rewrite(UMT_KEYS, UMT_KEYS_INVERSE)?;
    Ok(vec![rules])
}

/// Names of the Q-Former's parameters in checkpoints.
pub(crate) fn qformer_keys() -> Result<Vec<KeyRules>> {
    let mut rules = KeyRules::new()
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
        rules = rules.ignore(pattern, reason)?;
    }
    Ok(vec![rules])
}

/// Names of the language model's parameters in checkpoints.
pub(crate) fn llm_keys() -> KeyRules {
    KeyRules::new()
        .owns(["lm."])
        .prefix("lm.base_model.model.", "")
        .lora("default")
}

/// Checkpoint names of VideoChat-TPO ↔ parameters of [`VideoChatTpo`].
///
/// Every key has a parameter, but for constants that the reference stores beside its parameters;
/// these are ignored, each with its reason.
///
/// # Errors
/// None in practice: the patterns are constants.
pub fn videochat_tpo_keys() -> Result<KeyTables<'static>> {
    TpoConfig::videochat_tpo().keys::<BuiltInHeads>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::weights::{KeyMap, KeyTarget};

    #[test]
    fn tokens_of_the_reference() {
        let tasks = videochat_tasks(32_000);
        tasks.validate().unwrap();
        let region = tasks.by_routing(32000).unwrap();
        assert_eq!(
            (region.name.as_str(), region.placeholder.id),
            ("region", 32003)
        );
        assert_eq!(tasks.by_routing(32001).unwrap().placeholder.token, "<temp>");
        assert_eq!(tasks.by_routing(32004).unwrap().placeholder.id, 32005);
        assert_eq!(tasks.box_prompt.as_ref().unwrap().id, 32006);
        assert!(tasks.by_routing(32003).is_none());
    }

    #[test]
    fn keys_of_every_part() {
        let map = videochat_tpo_keys().unwrap();
        for (key, path) in [
            ("vision_layernorm.bias", "vision.vision_layernorm.bias"),
            ("query_tokens", "connector.qformer.query_tokens"),
            ("box_token", "task_tokens.region"),
            ("loc_decoder.2.weight", "heads.region.decoder.output.weight"),
            ("temporal_token", "task_tokens.temporal"),
            (
                "cg_model.transformer.encoder.layers.2.linear1.weight",
                "heads.temporal.model.transformer.encoder.layers.2.feed_forward.linear1.weight",
            ),
            (
                "cg_model.input_txt_proj.0.LayerNorm.bias",
                "heads.temporal.model.input_txt_proj.0.layer_norm.bias",
            ),
            (
                "cg_criterion.empty_weight",
                "heads.temporal.criterion.empty_weight",
            ),
            (
                "action_embed.layers.1.bias",
                "heads.temporal.start_end.action_embed.layers.1.bias",
            ),
            (
                "lm.base_model.model.model.layers.3.mlp.up_proj.lora_B.default.weight",
                "llm.model.layers.3.mlp.up_proj.lora.b",
            ),
            ("track_token", "task_tokens.mask"),
            (
                "track_embed_decode2.layers.1.bias",
                "heads.mask.track_embed_decode2.layers.1.bias",
            ),
            (
                "track_embed.layers.0.weight",
                "heads.mask.track_embed.layers.0.weight",
            ),
            (
                "sam.sam_mask_decoder.output_upscaling.3.bias",
                "heads.mask.sam.sam_mask_decoder.output_upscaling.conv2.bias",
            ),
        ] {
            assert_eq!(map.module_path(key), KeyTarget::Path(path.into()));
        }
    }
}
