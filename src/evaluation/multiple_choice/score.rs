//! Accuracy of multiple-choice answers, per task and in the mean.

use serde::Serialize;

use super::ChoiceRule;

/// Accuracy within one group of questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupAccuracy {
    /// Name of the group (a task, a duration).
    pub name: String,
    /// Answers counted right.
    pub correct: usize,
    /// Questions in the denominator.
    pub counted: usize,
    /// Questions seen.
    pub questions: usize,
    /// Answers in which the rule sees no option letter.
    pub unreadable: usize,
    /// Of those, the ones the rule counts right all the same.
    pub unreadable_counted_right: usize,
    /// Per cent; `None` where nothing is in the denominator.
    pub accuracy: Option<f64>,
}

/// Collects answers of one grouping.
#[derive(Debug, Clone)]
pub struct ChoiceTally {
    rule: ChoiceRule,
    groups: Vec<GroupAccuracy>,
}

/// The scores of a set of answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceScores {
    /// The rule by which answers were read.
    pub rule: ChoiceRule,
    /// Right answers over all questions in the denominator, in per cent: MVBench's `Avg` and
    /// Video-MME's overall accuracy. `None` without questions.
    pub overall: Option<f64>,
    /// Plain mean of the groups' accuracies, in per cent: the paper's average over tasks. Equal
    /// to `overall` where all groups have the same number of questions, as in MVBench.
    pub mean_of_groups: Option<f64>,
    /// Answers in which the rule sees no option letter.
    pub unreadable: usize,
    /// Per group, in order of appearance.
    pub groups: Vec<GroupAccuracy>,
}

impl ChoiceTally {
    /// No answers yet.
    pub fn new(rule: ChoiceRule) -> Self {
        Self {
            rule,
            groups: Vec::new(),
        }
    }

    /// Makes a group appear, and at this place, even if it gets no question.
    pub fn declare(&mut self, name: &str) -> &mut Self {
        self.group(name);
        self
    }

    fn group(&mut self, name: &str) -> &mut GroupAccuracy {
        let at = self.groups.iter().position(|g| g.name == name);
        let at = at.unwrap_or_else(|| {
            self.groups.push(GroupAccuracy {
                name: name.into(),
                correct: 0,
                counted: 0,
                questions: 0,
                unreadable: 0,
                unreadable_counted_right: 0,
                accuracy: None,
            });
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    /// Adds the answer to a question of `group` whose right option is `truth`.
    pub fn add(&mut self, group: &str, answer: &str, truth: &str) {
        let rule = self.rule;
        let correct = rule.is_correct(answer, truth);
        let unreadable = rule.letter(answer).is_none();
        let group = self.group(group);
        group.questions += 1;
        group.unreadable += unreadable as usize;
        group.unreadable_counted_right += (unreadable && correct) as usize;
        // Video-MME's script divides by the answers it could read.
        group.counted += !(unreadable && rule == ChoiceRule::VideoMme) as usize;
        group.correct += correct as usize;
    }

    /// The scores so far.
    pub fn scores(&self) -> ChoiceScores {
        let share =
            |correct: usize, of: usize| (of > 0).then(|| correct as f64 / of as f64 * 100.0);
        let mut groups = self.groups.clone();
        for g in &mut groups {
            g.accuracy = share(g.correct, g.counted);
        }
        let sum = |f: fn(&GroupAccuracy) -> usize| groups.iter().map(f).sum::<usize>();
        let known: Vec<f64> = groups.iter().filter_map(|g| g.accuracy).collect();
        ChoiceScores {
            rule: self.rule,
            overall: share(sum(|g| g.correct), sum(|g| g.counted)),
            mean_of_groups: (!known.is_empty())
                .then(|| known.iter().sum::<f64>() / known.len() as f64),
            unreadable: sum(|g| g.unreadable),
            groups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_by_hand() {
        let mut tally = ChoiceTally::new(ChoiceRule::MvBench);
        tally.add("order", "(A) x", "(A) x");
        tally.add("order", "(B)", "(A) x");
        tally.add("count", "(", "(C) x");
        let scores = tally.scores();
        assert_eq!(scores.overall, Some(2.0 / 3.0 * 100.0));
        assert_eq!(scores.mean_of_groups, Some(75.0));
        assert_eq!(
            (scores.unreadable, scores.groups[1].unreadable_counted_right),
            (1, 1)
        );
        assert_eq!(scores.groups[0].name, "order");
    }

    #[test]
    fn video_mme_leaves_unread_answers_out() {
        let mut tally = ChoiceTally::new(ChoiceRule::VideoMme);
        tally.declare("short").declare("long");
        tally.add("short", "C", "C");
        tally.add("short", "no idea", "C");
        let scores = tally.scores();
        assert_eq!((scores.overall, scores.unreadable), (Some(100.0), 1));
        assert_eq!(scores.groups[1].accuracy, None);
        assert_eq!(ChoiceTally::new(ChoiceRule::Letter).scores().overall, None);
    }
}
