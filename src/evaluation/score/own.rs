//! Tasks of heads that say themselves what their answers are worth.

use super::super::answer::Predicted;
use super::super::submission::Answered;
use super::{Score, TaskScores, by, grouped};
use crate::error::Result;

/// One account per task, in order of appearance.
pub(super) fn own_tasks(all: &[Answered<'_>]) -> Result<Vec<TaskScores>> {
    let tasks = by(all, |a| a.item.ask.task.as_deref().unwrap_or_default());
    let accounts = tasks.into_iter().map(|(name, of_task)| {
        let silent = |a: &&Answered<'_>| {
            !matches!(
                &a.row.predicted,
                Some(Predicted::Own {
                    answer: Some(_),
                    ..
                })
            )
        };
        Ok(TaskScores {
            task: name.into(),
            metric: format!("means of what the head `{name}` scores, missing answers included"),
            questions: of_task.len(),
            unanswered: of_task.iter().filter(silent).count(),
            scores: means(&of_task),
            groups: grouped(&of_task, |members| Ok(means(members)))?,
        })
    });
    accounts.collect()
}

/// The mean of every score, in order of appearance.
fn means(all: &[Answered<'_>]) -> Vec<Score> {
    let mut sums: Vec<(&str, f64, usize)> = Vec::new();
    for a in all {
        let Some(Predicted::Own { scores, .. }) = &a.row.predicted else {
            continue;
        };
        for (name, value) in scores {
            match sums.iter_mut().find(|s| s.0 == name) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + value, *count + 1),
                None => sums.push((name, *value, 1)),
            }
        }
    }
    let means = sums.into_iter();
    means
        .map(|(name, sum, count)| Score::new(name, sum / count as f64))
        .collect()
}
