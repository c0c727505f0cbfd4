//! Heads that a stage lets learn, and whether its data call them.

use std::collections::{BTreeMap, BTreeSet};

use super::Stage;
use crate::groups::{ResolvedGroup, ResolvedGroups};

/// Where a model keeps its heads and their task tokens: `heads.NAME.**`, `task_tokens.NAME`.
const PLACES: [&str; 2] = ["heads.", "task_tokens."];

/// Steps that a stage goes on while a head with a learning rate has had no loss.
pub(super) const FIRE_WITHIN: u64 = 50;

/// Names of the heads of which a parameter or the task token is in one of the groups.
pub fn learning_heads(groups: &ResolvedGroups) -> BTreeSet<String> {
    let places = groups.groups.iter().flat_map(places);
    places.map(|(head, _)| head.to_string()).collect()
}

/// Heads of a group's parameters with the place they are at (`heads.point`), each once.
fn places(group: &ResolvedGroup) -> BTreeSet<(&str, &str)> {
    let params = group.params.iter();
    let paths = params.flat_map(|p| std::iter::once(&p.path).chain(&p.tied));
    paths.filter_map(|path| place(path)).collect()
}

/// The head to which a path belongs, and where that head or its task token is.
pub(crate) fn place(path: &str) -> Option<(&str, &str)> {
    let root = PLACES.iter().find(|root| path.starts_with(**root))?.len();
    let end = path[root..].find('.').map_or(path.len(), |at| root + at);
    Some((&path[root..end], &path[..end]))
}

impl Stage {
    /// Heads that learn in this stage: those of [`learning_heads`] whose loss has a weight.
    pub fn learning_heads(&self, groups: &ResolvedGroups) -> BTreeSet<String> {
        let mut heads = learning_heads(groups);
        heads.retain(|head| self.loss.head(head) != 0.0);
        heads
    }

    /// Problems between what learns in this stage, what its data call and what its losses weigh; to
    /// be asked before the first step. `groups` are the stage's, resolved; `calls` are the tasks that
    /// the rows of its data call.
    ///
    /// One problem for every group and head that none of the rows calls or whose loss weighs nothing;
    /// empty when there is none. The task token of a head without a weight learns from the language
    /// model's loss alone.
    pub fn uncalled_heads(&self, groups: &ResolvedGroups, calls: &BTreeSet<String>) -> Vec<String> {
        let mut all: Vec<&str> = calls.iter().map(String::as_str).collect();
        if all.is_empty() {
            all.push("none");
        }
        let mut problems = Vec::new();
        for group in &groups.groups {
            let at = format!("stage `{}`: group `{}` gives", self.name, group.name);
            let mut by_head: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (head, place) in places(group) {
                if self.loss.head(head) == 0.0 && place.starts_with(PLACES[0]) {
                    problems.push(format!(
                        "{at} `{place}` a learning rate, and its loss the weight 0; give \
                         `loss.heads.{head}.weight` a value, or leave it out of the group"
                    ));
                } else if !calls.contains(head) {
                    by_head.entry(head).or_default().push(format!("`{place}`"));
                }
            }
            problems.extend(by_head.into_iter().map(|(head, places)| {
                format!(
                    "{at} {} a learning rate, and none of its rows calls `{head}` (heads that they \
                     call: {}); add rows with an annotation of task `{head}`, or leave it out of the \
                     group",
                    places.join(" and "),
                    all.join(", ")
                )
            }));
        }
        problems
    }

    /// What to say of heads whose loss the stage names though none of its rows calls them and no group
    /// lets them learn: the weight is without effect. Arguments as [`Stage::uncalled_heads`].
    pub fn unheard_losses(&self, groups: &ResolvedGroups, calls: &BTreeSet<String>) -> Vec<String> {
        let learning = learning_heads(groups);
        let weighed = self.loss.heads.iter().filter(|(_, w)| w.weight != 0.0);
        let unheard =
            weighed.filter(|(head, _)| !calls.contains(*head) && !learning.contains(*head));
        let say = |(head, _)| {
            format!(
                "stage `{}`: loss.heads.{head} weighs the loss of a head that none of its rows calls; add \
                 rows with an annotation of task `{head}`, or leave it out of the loss",
                self.name
            )
        };
        unheard.map(say).collect()
    }
}

pub(super) fn fire_within() -> u64 {
    FIRE_WITHIN
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde calls.
pub(super) fn is_default(steps: &u64) -> bool {
    *steps == FIRE_WITHIN
}

#[cfg(test)]
mod tests {
    use burn::module::ParamId;

    use super::*;
    use crate::{HeadLossWeights, ResolvedParam, StageLength};

    fn group(name: &str, paths: &[&str]) -> ResolvedGroup {
        let param = |path: &&str| ResolvedParam {
            path: path.to_string(),
            id: ParamId::new(),
            shape: vec![1],
            tied: Vec::new(),
        };
        ResolvedGroup {
            name: name.into(),
            learning_rate: 1e-3,
            weight_decay: None,
            muon: None,
            params: paths.iter().map(param).collect(),
        }
    }

    fn groups() -> ResolvedGroups {
        let mut groups = ResolvedGroups {
            groups: vec![
                group(
                    "heads",
                    &[
                        "heads.point.mlp.0.weight",
                        "heads.point.mlp.0.bias",
                        "task_tokens.point",
                    ],
                ),
                group(
                    "rest",
                    &[
                        "llm.heads.other",
                        "task_tokens.region",
                        "task_tokens",
                        "connector.w",
                    ],
                ),
            ],
            frozen: group("", &["heads.mask.sam.w"]).params,
        };
        groups.groups[1].params[3].tied = vec!["heads.temporal.w".into()];
        groups
    }

    #[test]
    fn heads_are_read_from_paths() {
        let found: Vec<String> = learning_heads(&groups()).into_iter().collect();
        assert_eq!(found, ["point", "region", "temporal"]);
        let mut stage = Stage::new("s", StageLength::Steps(1), Vec::new());
        stage.loss.other_heads = 0.0;
        let weight = HeadLossWeights::default();
        stage.loss.heads.insert("region".into(), weight);
        let found: Vec<String> = stage.learning_heads(&groups()).into_iter().collect();
        assert_eq!(found, ["region"]);
    }

    #[test]
    fn heads_that_no_row_calls_are_named_with_their_group() {
        let mut stage = Stage::new("point-heads", StageLength::Steps(1), Vec::new());
        let mut calls = BTreeSet::from(["region".to_string()]);
        let found = stage.uncalled_heads(&groups(), &calls);
        assert_eq!(
            found,
            [
                "stage `point-heads`: group `heads` gives `heads.point` and `task_tokens.point` a \
                 learning rate, and none of its rows calls `point` (heads that they call: region); \
                 add rows with an annotation of task `point`, or leave it out of the group",
                "stage `point-heads`: group `rest` gives `heads.temporal` a learning rate, and none \
                 of its rows calls `temporal` (heads that they call: region); add rows with an \
                 annotation of task `temporal`, or leave it out of the group",
            ]
        );
        calls.extend(["point".to_string(), "temporal".into()]);
        assert!(stage.uncalled_heads(&groups(), &calls).is_empty());
        // A head that the losses name and no group.
        let weight = HeadLossWeights::default();
        stage.loss.heads.insert("depth".into(), weight);
        assert!(stage.uncalled_heads(&groups(), &calls).is_empty());
        let found = stage.unheard_losses(&groups(), &calls);
        assert_eq!(found.len(), 1, "{found:?}");
        let says =
            "stage `point-heads`: loss.heads.depth weighs the loss of a head that none of its rows";
        assert!(found[0].starts_with(says), "{found:?}");
        stage.loss.heads.clear();
        // Heads that weigh nothing; their tokens learn from the language model's loss.
        stage.loss.other_heads = 0.0;
        let found = stage.uncalled_heads(&groups(), &calls);
        assert_eq!(found.len(), 2, "{found:?}");
        for (problem, head) in found.iter().zip(["point", "temporal"]) {
            let says = format!("gives `heads.{head}` a learning rate, and its loss the weight 0");
            assert!(problem.contains(&says), "{problem}");
        }
    }
}
