//! Stopping a run in which a head that learns is never called, or nothing learns.

use std::collections::BTreeSet;

use tpo_core::head::HeadSet;

use super::event::TermValue;
use crate::error::{Result, TrainError};
use crate::groups::ResolvedGroups;
use crate::stage::Stage;

/// Heads with a learning rate (`region`), and terms of theirs that the stage weighs (`region/l1`), of
/// which there has been no loss since the stage began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SilentHeads(pub BTreeSet<String>);

impl SilentHeads {
    /// All that there is to hear of in a stage, before its first step.
    pub fn new<H: HeadSet>(stage: &Stage, groups: &ResolvedGroups) -> Self {
        let specs = H::specs();
        let mut learning = stage.learning_heads(groups);
        learning.retain(|name| specs.iter().any(|spec| spec.name == *name));
        let heads = stage.loss.heads.iter();
        let terms = heads.filter(|(head, _)| learning.contains(*head));
        let terms = terms.flat_map(|(h, w)| w.terms.keys().map(move |term| format!("{h}/{term}")));
        let terms: Vec<String> = terms.collect();
        learning.extend(terms);
        Self(learning)
    }

    /// For every silent head or term, in order, whether `terms` hold a loss of it; for a head it is one
    /// with a weight. All workers of a run have the same of them, so that these numbers can be added up
    /// over them.
    pub fn fired(&self, terms: &[TermValue]) -> Vec<f64> {
        let of = |silent: &str| {
            terms.iter().any(|t| match t.name.split_once('/') {
                Some((head, _)) => t.name == silent || (head == silent && t.weight != 0.0),
                None => false,
            })
        };
        self.0
            .iter()
            .map(|head| f64::from(u8::from(of(head))))
            .collect()
    }

    /// Forgets the heads that fired on any worker; `fired` is the sum of [`SilentHeads::fired`].
    pub fn hear(&mut self, fired: &[f64]) {
        let mut fired = fired.iter();
        self.0.retain(|_| fired.next().is_none_or(|n| *n == 0.0));
    }

    /// Whether the run may go on after `step` of the stage's `total` steps and `samples` samples.
    pub fn check(&self, stage: &Stage, step: u64, total: u64, samples: u64) -> Result<()> {
        let within = stage.heads_must_fire_within;
        if within == 0 || step < within.min(total) || self.0.is_empty() {
            return Ok(());
        }
        Err(TrainError::SilentHeads {
            stage: stage.name.clone(),
            steps: step,
            samples,
            heads: self.0.iter().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StageLength;

    fn silent(heads: &[&str]) -> SilentHeads {
        SilentHeads(heads.iter().map(|h| h.to_string()).collect())
    }

    fn terms(names: &[&str]) -> Vec<TermValue> {
        let term = |name: &&str| TermValue {
            name: name.to_string(),
            value: 1.0,
            weight: 1.0,
            count: 1,
        };
        names.iter().map(term).collect()
    }

    #[test]
    fn a_head_fires_with_a_loss_of_its_own() {
        let mut heads = silent(&["lm", "mask", "point"]);
        // `lm` is the language model's loss, not that of a head of this name.
        let fired = heads.fired(&terms(&["lm", "pointer/l1", "point/l1", "point/giou"]));
        assert_eq!(fired, [0.0, 0.0, 1.0]);
        heads.hear(&fired);
        assert_eq!(heads, silent(&["lm", "mask"]));
        // Two workers, of which one heard the mask.
        heads.hear(&[0.0, 1.0]);
        assert_eq!(heads, silent(&["lm"]));
        // A term that the stage weighs and the head does not have; a head whose terms weigh nothing.
        let heads = silent(&["point", "point/l1", "point/l2"]);
        let mut weightless = terms(&["point/l1"]);
        weightless[0].weight = 0.0;
        assert_eq!(heads.fired(&weightless), [0.0, 1.0, 0.0]);
        assert_eq!(heads.fired(&terms(&["point/l1"])), [1.0, 1.0, 0.0]);
    }

    #[test]
    fn silence_ends_the_run_after_the_steps_of_the_stage() {
        let mut stage = Stage::new("points", StageLength::Steps(100), Vec::new());
        assert_eq!(stage.heads_must_fire_within, 50);
        let heads = silent(&["mask", "point"]);
        heads.check(&stage, 49, 100, 98).unwrap();
        silent(&[]).check(&stage, 50, 100, 100).unwrap();
        // At the end of a shorter stage.
        heads.check(&stage, 19, 20, 38).unwrap();
        heads.check(&stage, 20, 20, 40).unwrap_err();
        let text = heads.check(&stage, 50, 100, 100).unwrap_err();
        let text = text.to_string();
        for says in [
            "stage `points`",
            "50 steps (100 samples)",
            "mask, point",
            "annotation",
        ] {
            assert!(text.contains(says), "{says}: {text}");
        }
        stage.heads_must_fire_within = 0;
        heads.check(&stage, 5_000, 5_000, 1).unwrap();
    }
}
