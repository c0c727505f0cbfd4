//! Training of TPO for Rust: recipes, stages, parameter groups, the loop, checkpoints and logs.
//!
//! Task Preference Optimization trains a model in stages, each of which unfreezes other parts of
//! it (paper, Table 17).
//!
//! * [`Recipe`]: a run as TOML. Every mistake is reported at once; [`Recipe::explain`] says what it
//!   would do, from shapes alone.
//! * [`Stage`]: what is learnt, against which loss, for how long. The paper's stages are
//!   `recipes/videochat_tpo`.
//! * [`ParamGroupSpec`]: which parameters learn, and how fast, as patterns over module paths
//!   ([`PathPattern`]): a head is at `heads.NAME`, its task token at `task_tokens.NAME`. [`resolve`] looks the
//!   patterns up in a module: each parameter is in exactly one group or frozen. [`freeze`] makes
//!   the module follow.
//! * [`LrSchedule`]: warm-up, decay and floor as a pure function of the step.
//! * [`trainer`]: the loop, with [`optim`] under it and [`Hooks`] around it.
//! * [`checkpoint`]: directories that are whole or do not count.
//! * [`run_directory`]: hooks that write a run's directory and take it up again, to the same bits.
//! * [`observe`]: progress bars, `metrics.jsonl`, TensorBoard.
//!
//! Nothing here names an encoder, a language model or a head.

mod adapters;
mod before;
mod check;
pub mod checkpoint;
pub mod error;
pub mod explain;
pub mod groups;
pub mod loss;
pub mod observe;
pub mod optim;
pub mod pattern;
pub mod recipe;
pub mod run_directory;
pub mod schedule;
pub mod stage;
mod suggest;
pub mod trainer;

pub use checkpoint::{CheckpointStore, Retention, SavedCheckpoint};
pub use error::{GroupProblem, Result, TrainError};
pub use groups::{
    ParamGroupSpec, ResolvedGroup, ResolvedGroups, ResolvedParam, freeze, resolve, resolve_params,
};
pub use loss::{HeadLossWeights, LossWeights};
pub use optim::{GradientSet, Optimizer, OptimizerState, UpdateReport};
pub use pattern::PathPattern;
pub use recipe::Recipe;
pub use schedule::{Decay, LrSchedule};
pub use stage::{AdamW, Muon, Precision, Stage, StageLength, learning_heads};
pub use trainer::{Hooks, TrainData, TrainEvent, TrainOptions, TrainState, Trainer, train_plan};

// The README's code is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
