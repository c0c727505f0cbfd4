//! Running a model over a benchmark and scoring it.
//!
//! A [`Plan`] holds the questions of a benchmark file ([`DataFile`], any format of
//! [`tpo::data::readers`](tpo_data::readers) and this project's own) or of the synthetic world
//! ([`WorldSpec`]), worded by [`Prompts`]. [`run()`] asks an [`Answerer`] all of them, several at once, and keeps
//! every answer as a [`PredictionRow`]; an interrupted run continues. Scores come from the
//! metrics of [`files`] in the official formats, and are written with the
//! [`Protocol`] that gave them.
//!
//! ```no_run
//! use tpo::evaluation::{
//!     AnswerForm, DataFile, Plan, PlanOptions, Route, RunOptions, RunOutcome, SessionAnswerer, run,
//! };
//! use tpo::prelude::*;
//!
//! # fn main() -> tpo::Result<()> {
//! let plan = Plan::from_file(&DataFile::new("held_out.jsonl", None), PlanOptions::default())?;
//! let device = DeviceChoice::Auto.open()?;
//! let (session, _) = Session::open("model", &device, SessionOptions::default(), None)?;
//! let mut model = SessionAnswerer::new(&session, "model", Route::Model, AnswerForm::Heads)?;
//! let outcome = run(&plan, &mut model, "runs/held_out", &RunOptions::default(), &mut |p| {
//!     eprintln!("{} of {}", p.done, p.total);
//!     true
//! })?;
//! if let RunOutcome::Done(results) = outcome {
//!     for task in &results.scores {
//!         println!("{} {:?}", task.task, task.scores);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod answer;
mod answerer;
pub mod files;
mod item;
mod log;
pub mod multiple_choice;
mod prompts;
mod protocol;
mod runner;
mod score;
mod side_by_side;
mod source;
mod submission;
mod task_files;
mod world;

pub use answer::{AnswerForm, MediaInfo, Predicted, normalise_text, read_answer};
pub use answerer::{Answered, Answerer, SessionAnswerer};
pub use files::Score;
pub use item::{Ask, Expected, Item, ItemKind, MediaRef};
pub use log::PredictionRow;
pub use prompts::{PUBLISHED_NEW_TOKENS, PromptProtocol, Prompts};
#[cfg(feature = "cli")]
pub(crate) use protocol::compare;
pub use protocol::{AnswererIdentity, DataIdentity, Protocol, Route, VERSION, differences};
pub use runner::{
    Failed, PREDICTIONS_FILE, PROTOCOL_FILE, Plan, PlanOptions, RESULTS_FILE, Results, RunOptions,
    RunOutcome, RunProgress, SUBMISSION_DIR, run,
};
pub use score::{GroupScores, Rules, TaskScores};
pub use source::{DataFile, Items};
pub use world::WorldSpec;
