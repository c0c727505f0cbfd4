//! Whole models: their configuration, their parts, their directories.

pub mod assemble;
pub mod average;
mod config;
mod directory;
pub mod export;
pub mod families;
pub mod inspect;
pub mod memory;
pub(crate) mod mini;
mod parts;
mod towers;

use tpo_core::model::TpoModel;
use tpo_heads::mask::MaskHead;
use tpo_heads::region::RegionHead;
use tpo_heads::temporal::TemporalHead;
use tpo_llm::CausalLm;

pub(crate) use config::{FORMAT, TEXT, no_head};
pub use config::{InputConfig, PromptStyle, Quantize, TpoConfig};
pub use directory::CONFIG_FILE;
pub(crate) use directory::{
    byte_tokenizer, byte_tokenizer_files, load_model, load_over, model_tokenizer, open_weights,
    published_config, read_config, read_config_of, tokenizer_files,
};
pub use families::onevision::Names;
pub use families::videochat::{VideoChatTpo, videochat_tasks, videochat_tpo_keys};
pub use parts::{Connector, ConnectorConfig, Vision, VisionConfig};
pub use towers::{FeatureTowers, OwnClips};

tpo_core::heads! {
    /// The heads that come with the library: a box, time spans, masks through the video.
    pub struct BuiltInHeads {
        region: RegionHead,
        temporal: TemporalHead,
        mask: MaskHead,
    }
}

/// A model of built-in parts with any heads.
pub type Tpo<H = BuiltInHeads> = TpoModel<Vision, Connector, CausalLm, H>;
