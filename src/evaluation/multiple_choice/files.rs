//! The files multiple-choice benchmarks exchange.

use std::path::Path;

use serde::Deserialize;

use crate::error::Result;
use crate::evaluation::files::{Problem, Record, SampleId, read_json};

/// An answered question, one JSON line each: `{"id": 7, "task_type": "Action Order",
/// "pred": "(A)", "gt": "(A) Ran."}`; `pred` and `gt` are MVBench's names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ChoiceRow {
    /// The question.
    pub id: SampleId,
    /// Its task, the group it is counted in.
    #[serde(default = "all")]
    pub task_type: String,
    /// What the model answered.
    pub pred: String,
    /// The right option.
    pub gt: String,
}

fn all() -> String {
    "all".into()
}

impl Record for ChoiceRow {
    type Id = SampleId;
    fn id(&self) -> SampleId {
        self.id.clone()
    }
    fn check(&self) -> Result<(), Problem> {
        if self.gt.trim().is_empty() {
            return Err(Problem::new(
                "`gt` is empty",
                "give the right option, as \"(A) text\" or \"A\"",
            ));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct MvBenchFile {
    res_list: Vec<MvBenchAnswer>,
}

#[derive(Deserialize)]
struct MvBenchAnswer {
    #[serde(default = "all", alias = "question_type")]
    task_type: String,
    pred: String,
    gt: String,
}

/// Reads the JSON MVBench's own script writes: `{"acc_dict": .., "res_list": [{"pred", "gt",
/// "task_type"}]}`; MLVU's calls the task `question_type`. Answers without a task are counted in the group `all`.
pub fn read_mvbench(path: impl AsRef<Path>) -> Result<Vec<ChoiceRow>> {
    let file: MvBenchFile = read_json(
        path.as_ref(),
        "the file must be an object with the list `res_list`",
    )?;
    let number = |(i, a): (usize, MvBenchAnswer)| ChoiceRow {
        id: SampleId::Number(i as i64),
        task_type: a.task_type,
        pred: a.pred,
        gt: a.gt,
    };
    Ok(file.res_list.into_iter().enumerate().map(number).collect())
}

/// A video of Video-MME's result file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VideoMmeVideo {
    /// The video.
    pub video_id: String,
    /// `short`, `medium` or `long`.
    #[serde(alias = "duration_category")]
    pub duration: String,
    /// One of six domains.
    #[serde(default, alias = "video_category")]
    pub domain: String,
    /// One of thirty sub-categories.
    #[serde(default, alias = "video_subcategory")]
    pub sub_category: String,
    /// The video could not be watched; it is left out.
    #[serde(default)]
    pub missing: bool,
    /// Its questions.
    pub questions: Vec<VideoMmeQuestion>,
}

/// A question of Video-MME's result file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VideoMmeQuestion {
    /// One of twelve task types.
    #[serde(default)]
    pub task_type: String,
    /// The right option's letter.
    pub answer: String,
    /// What the model answered.
    pub response: String,
}

/// Reads Video-MME's result file: a list of videos with their questions.
pub fn read_video_mme(path: impl AsRef<Path>) -> Result<Vec<VideoMmeVideo>> {
    read_json(
        path.as_ref(),
        "the file must be a list of videos with `questions`",
    )
}
