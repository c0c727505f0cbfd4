//! LLaVA-OV-TPO: LLaVA-OneVision (arXiv 2408.03326) with TPO's task heads. The base is published, in four layouts of
//! names ([`Names`]) and two kinds of `config.json`; the model with heads is not, so its sizes are ours.

mod names;
pub(crate) mod parts;
pub(crate) mod published;
pub(crate) mod written;

use tpo_core::geometry::UnpadRule;
use tpo_core::model::CallOrder;
use tpo_data::FrameSampling;
use tpo_heads::mask::MaskHeadConfig;
use tpo_heads::mask::sam2::Sam2Config;
use tpo_heads::region::RegionHeadConfig;
use tpo_heads::temporal::{CgDetrConfig, TemporalHeadConfig};
use tpo_llm::LlmConfig;
use tpo_llm::config::videochat_lora;
use tpo_vision::{OneVisionConnectorConfig, SiglipConfig};

pub use names::Names;
pub(crate) use names::{connector_keys, llm_keys, open_named, prepared, tower_keys};

use super::videochat::{heads, videochat_tasks};
use crate::model::{
    ConnectorConfig, FORMAT, FeatureTowers, InputConfig, OwnClips, PromptStyle, TpoConfig,
    VisionConfig,
};

/// The first task token: the spare rows of Qwen2's vocabulary begin at 151646, where the base has `<image>` and
/// `<video>`.
const FIRST_TASK_TOKEN: u32 = 151_648;
/// Frames of a video that the base was trained with.
const FRAMES: usize = 32;

impl TpoConfig {
    /// LLaVA-OV-TPO on `llava-onevision-qwen2-0.5b-ov`: SigLIP so400m, 32 frames of 384 pixels, Qwen2-0.5B. Its output
    /// layer is the embedding, with an adapter of its own: the rows of the task tokens begin equal, so that only an
    /// adapter there can learn the differences between them.
    pub fn llava_ov_tpo_0_5b() -> Self {
        llava_ov_tpo(LlmConfig::qwen2_0_5b())
    }

    /// LLaVA-OV-TPO on `llava-onevision-qwen2-7b-ov`, the base of the paper: SigLIP so400m, 32 frames of 384 pixels,
    /// Qwen2-7B.
    pub fn llava_ov_tpo_7b() -> Self {
        llava_ov_tpo(LlmConfig::qwen2_7b())
    }
}

/// A model of the published build around this language model, with new adapters (Table 17).
fn llava_ov_tpo(llm: LlmConfig) -> TpoConfig {
    let connector = OneVisionConnectorConfig::one_vision(llm.hidden_size, UnpadRule::Original);
    around(
        SiglipConfig::so400m_patch14_384(),
        connector,
        llm.lora(videochat_lora()),
        FIRST_TASK_TOKEN,
    )
}

/// The means of the model's own visual tokens, a frame each second: where the temporal head has no second tower.
pub(crate) fn tower_means() -> FeatureTowers {
    FeatureTowers::Own(OwnClips {
        frames_per_second: 1.0,
        frames_per_clip: 1,
        features_per_clip: 1,
    })
}

/// A model of these parts, and heads of the published proportions for them: the temporal head reads the video tower
/// of InternVideo2-CLIP and the language model's own hidden states, so that CG-DETR's published tensors fit, but for
/// those of the width of its text. [`TpoConfig::set_features`] takes [`tower_means`] in its place.
fn around(
    vision: SiglipConfig,
    connector: OneVisionConnectorConfig,
    llm: LlmConfig,
    first_task_token: u32,
) -> TpoConfig {
    let d_llm = llm.hidden_size;
    let temporal = CgDetrConfig {
        d_text: d_llm,
        ..CgDetrConfig::videochat_tpo()
    };
    TpoConfig {
        format: FORMAT,
        input: InputConfig {
            frames: FRAMES,
            size: vision.image_size,
            sampling: FrameSampling::Linspace,
            antialias: true,
        },
        vision: VisionConfig::Siglip(vision),
        connector: ConnectorConfig::OneVision(connector),
        llm,
        prompt: PromptStyle::Qwen,
        heads: heads(
            &RegionHeadConfig::for_llm(d_llm),
            &TemporalHeadConfig::new(temporal).with_start_end(true),
            &MaskHeadConfig::new(d_llm, d_llm, Sam2Config::videochat_tpo()),
        ),
        features: FeatureTowers::InternVideo2Video,
        tasks: videochat_tasks(first_task_token),
        call_order: CallOrder::AsTrained,
    }
}
