//! The training loop.
//!
//! [`Trainer`] takes a [`TpoModel`](tpo_core::model::TpoModel) through one
//! [`Stage`](crate::Stage); [`train_plan`] goes through all stages of a plan. What it learns from
//! is a [`TrainData`]; what happens is told to [`Hooks`], which also evaluate and keep checkpoints.
//! Nothing here names an encoder, a language model or a head.

mod data;
mod evaluate;
mod event;
mod feed;
mod firing;
mod micro;
mod parallel;
mod plan;
mod prepare;
mod run;
mod state;

pub use data::{Purpose, Sharded, TrainBatch, TrainData};
pub use evaluate::{StageEvaluation, evaluate};
pub use event::{Hooks, Metrics, MicroReport, StepReport, TermValue, TrainEvent};
pub use feed::{FeedData, FindFeatures};
pub use parallel::{Reduce, Worker};
pub use plan::{OpenStage, train_plan};
pub use prepare::prepare;
pub use run::{RunEnd, TrainOptions, Trainer};
pub use state::{TrainState, step_seed};
