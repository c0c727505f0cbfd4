//! Task Preference Optimization (arXiv 2412.19326) in Rust: video language models that answer
//! with boxes, time spans and masks.
//!
//! ```no_run
//! use tpo::prelude::*;
//!
//! # fn main() -> tpo::Result<()> {
//! let device = DeviceChoice::Auto.open()?;
//! let (mut session, _) = Session::open("VideoChat-TPO", &device, SessionOptions::default(), None)?;
//! session.load_video("clip.mp4", None)?;
//! for event in session.ask(Question::new("Where is the dog?"))? {
//!     match event? {
//!         Event::Text(text) => print!("{text}"),
//!         Event::Task(output) => println!("{}", output.to_json()),
//!         Event::NoHead(task) => println!("(no {task} head in this build)"),
//!         Event::Unanswered(call) => println!("({}: {})", call.task, call.why),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The parts are crates of their own, re-exported here: [`core`] (vocabulary, traits, the
//! assembled model, weight import), [`vision`], [`llm`], [`heads`], [`data`] and [`train`].

#[cfg(feature = "cli")]
pub mod cli;
pub mod curves;
mod device;
pub mod draw;
mod error;
pub mod evaluation;
pub mod features;
mod files;
pub mod model;
pub mod presets;
pub mod pretrain;
mod session;
pub mod training;

pub use tpo_core as core;
pub use tpo_core::weights;
pub use tpo_data as data;
pub use tpo_heads as heads;
pub use tpo_llm as llm;
pub use tpo_train as train;
pub use tpo_vision as vision;

pub use device::DeviceChoice;
pub use error::{Error, Result};
pub use model::{BuiltInHeads, CONFIG_FILE, InputConfig, Tpo, TpoConfig, VideoChatTpo, export};
pub use session::{
    Answer, Event, FrameCost, HeadProgress, HeadStep, Media, PreparedQuestion, Question, Reply,
    Session, SessionOptions, TrackFrames, Unanswered,
};

/// What most programs need.
pub mod prelude {
    pub use burn::module::Module;
    pub use burn::tensor::{Device, FloatDType, Tensor};
    pub use tpo_core::geometry::{BoxPixels, BoxXyxy, Mask, Rle, ScoredSpan, TimeSpan};
    pub use tpo_core::head::{
        Drawing, HeadConfigs, HeadContext, HeadMetric, HeadSet, HeadSpec, LossTerms, ModelSizes,
        Sample, Shape, TargetSet, TaskHead, TaskOutput,
    };
    pub use tpo_core::heads;
    pub use tpo_core::model::{CallOrder, TokenBatch, TpoBatch, TpoModel};
    pub use tpo_core::nn::{Linear, LinearConfig, Mlp, MlpConfig};
    pub use tpo_core::token::{TaskRegistry, TaskTokens, TokenId};
    pub use tpo_core::truth::{Truth, TruthTarget};
    pub use tpo_heads::mask::{
        MaskHead, MaskHeadConfig, MaskLossConfig, MaskPrediction, MaskTarget,
    };
    pub use tpo_heads::region::{RegionHead, RegionHeadConfig, RegionPrediction};
    pub use tpo_heads::temporal::{
        TemporalHead, TemporalHeadConfig, TemporalPrediction, TemporalTarget,
    };

    pub use crate::{
        BuiltInHeads, DeviceChoice, Event, Question, Reply, Session, SessionOptions, Tpo, TpoConfig,
    };
}
