//! Multiple-choice questions: reading the option out of an answer, accuracy per task.
//!
//! Benchmarks differ in how they read an answer, and the rule moves the score by points; a score
//! therefore always carries its [`ChoiceRule`].

mod files;
mod rule;
mod score;

pub use files::{ChoiceRow, VideoMmeQuestion, VideoMmeVideo, read_mvbench, read_video_mme};
pub use rule::ChoiceRule;
pub use score::{ChoiceScores, ChoiceTally, GroupAccuracy};
