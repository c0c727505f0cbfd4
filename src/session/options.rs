//! How a session reads and answers.

use burn::tensor::FloatDType;
use tpo_core::cancel::CancelToken;
use tpo_core::model::CallOrder;
use tpo_data::{FrameSampling, MediaLimits};
use tpo_llm::sampling::SamplingConfig;

use crate::features::{FeatureCache, FeatureFolder, TemporalTowers};
use crate::model::Quantize;

pub use crate::features::{FrameCost, HeadProgress, HeadStep};

/// How a session reads and answers.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Dtype of the weights in memory. `None` for the file's own on an accelerator; on the CPU for f32
    /// if that fits, else bf16.
    pub dtype: Option<FloatDType>,
    /// Quantises linear layers while they are read.
    pub quantize: Quantize,
    /// Bytes that the model and its towers may take on the CPU; `None` for what is available
    /// ([`available_memory`](crate::model::memory::available_memory)).
    pub memory: Option<u64>,
    /// Which frames of a video are looked at; `None` as the model says
    /// ([`TpoConfig::input`](crate::TpoConfig)).
    pub sampling: Option<FrameSampling>,
    /// When heads are called; `None` as the model says
    /// ([`TpoConfig::call_order`](crate::TpoConfig)).
    pub call_order: Option<CallOrder>,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Greedy or random choice of tokens.
    pub decoding: SamplingConfig,
    /// Bounds on what a media file may cost.
    pub limits: MediaLimits,
    /// Towers of the temporal head for models that do not use their own encoder, such as the
    /// published VideoChat-TPO (InternVideo2-CLIP), on any device. A question that needs them where they
    /// are missing is answered in words ([`Event::Unanswered`](super::Event)).
    pub towers: Option<TemporalTowers>,
    /// Features of the temporal head that were computed before; towers are asked for what is not there.
    pub features: Option<FeatureFolder>,
    /// Where features of videos, and of queries by `towers`, are kept between sessions; `None` computes
    /// them again.
    pub feature_cache: Option<FeatureCache>,
    /// Which frames of a video the mask head goes through.
    pub track: TrackFrames,
    /// Hears how far a head is that works on many frames, and what that costs.
    pub progress: Option<HeadProgress>,
    /// Stops an answer from another thread, also in the middle of a mask: the answer then ends with
    /// [`CoreError::Cancelled`](tpo_core::CoreError::Cancelled) and is not part of the history.
    pub cancel: CancelToken,
}

/// Which frames of a video the mask head goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrackFrames {
    /// Every frame of the file.
    #[default]
    All,
    /// Those the vision encoder looked at (reference implementation).
    Sampled,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            quantize: Quantize::default(),
            memory: None,
            sampling: None,
            call_order: None,
            max_new_tokens: 200,
            decoding: SamplingConfig::greedy(),
            limits: MediaLimits::default(),
            towers: None,
            features: None,
            feature_cache: None,
            track: TrackFrames::All,
            progress: None,
            cancel: CancelToken::new(),
        }
    }
}
