//! Tasks of your own heads, by what the heads say their answers are worth.

use super::super::answer::Predicted;
use super::super::submission::Answered;
use super::{Score, TaskScores, grouped, one};
use crate::error::Result;

/// One account per task, in order of appearance.
pub(super) fn own_tasks(all: &[Answered<'_>]) -> Result<Vec<TaskScores>> {
    let task = |a: &Answered<'_>| a.item.ask.task.clone().unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    for a in all {
        if !names.contains(&task(a)) {
            names.push(task(a));
        }
    }
    let accounts = names.into_iter().map(|name| {
        let of_task: Vec<Answered<'_>> = all.iter().filter(|a| task(a) == name).copied().collect();
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
            metric: format!("means of what the head `{name}` scores, missing answers included"),
            questions: of_task.len(),
            unanswered: of_task.iter().filter(silent).count(),
            scores: means(&of_task),
            groups: grouped(&of_task, |members| Ok(means(members)))?,
            task: name,
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
    sums.into_iter()
        .map(|(name, sum, count)| one(name, Some(sum / count as f64)))
        .collect()
}
