//! The error type of this crate.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with [`TrainError`].
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// What can be wrong with a recipe, or between a recipe and a module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The text is not TOML, or not a recipe: a field that does not exist, is missing or has
    /// another type.
    #[error("{origin}: {message}")]
    Recipe {
        /// Where the text came from, for example a file name.
        origin: String,
        /// The parser's message with line, column and the line itself.
        message: String,
    },
    /// Values that are out of range or contradict each other.
    #[error("the plan has {}:{}", Count(problems.len(), "problem"), List(problems))]
    InvalidPlan {
        /// Every problem: where in the plan, what was found, what is accepted.
        problems: Vec<String>,
    },
    /// The groups do not fit the module.
    #[error(
        "the parameter groups do not fit the module, {}:{}",
        Count(problems.len(), "problem"),
        List(problems)
    )]
    Groups {
        /// Every problem.
        problems: Vec<GroupProblem>,
    },
    /// The module is not the one that the groups were resolved on.
    #[error(
        "the groups were resolved on a module of other parameters; resolve them again. \
         Only in the groups ({}): {}. Only in the module ({}): {}",
        missing.len(), Some5(missing), unexpected.len(), Some5(unexpected)
    )]
    OtherModule {
        /// Paths that were resolved and are not in the module, or have another shape there.
        missing: Vec<String>,
        /// Paths of the module that were not resolved, or had another shape.
        unexpected: Vec<String>,
    },
    /// Everything that is wrong with a recipe.
    #[error("{origin} has {}:{}", Count(problems.len(), "problem"), List(problems))]
    InvalidRecipe {
        /// Where the recipe came from, for example a file name.
        origin: String,
        /// Every problem: line, key, what was found, what is accepted.
        problems: Vec<String>,
    },
    /// The operating system refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint that is not whole, or not what it should be.
    #[error("{path}: {why}", path = path.display())]
    Checkpoint {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A run is to continue with another recipe.
    #[error(
        "{checkpoint} was written with another recipe, {}:{}\nContinue with the old recipe, or start a \
         new run whose `model.start` is this checkpoint",
        Count(changes.len(), "change"), List(changes), checkpoint = checkpoint.display()
    )]
    ChangedRecipe {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// Key, old value, new value.
        changes: Vec<String>,
    },
    /// From reading or writing weights.
    #[error(transparent)]
    Weights(#[from] tpo_core::weights::WeightsError),
    /// State of an optimizer that does not fit the parameters.
    #[error("optimizer state `{name}`: {why}")]
    OptimizerState {
        /// The parameter or tensor.
        name: String,
        /// What does not fit.
        why: String,
    },
    /// A position that is none of the data stream.
    #[error("{why} (position {cursor})")]
    Cursor {
        /// The position.
        cursor: String,
        /// What is wrong with it.
        why: String,
    },
    /// The data stream cannot continue.
    #[error("{what}: {source}")]
    Data {
        /// Which file, row or batch.
        what: String,
        /// What happened there.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model refused a micro-batch.
    #[error("stage `{stage}`, step {step}, samples {}: {source}", Some5(samples))]
    Model {
        /// Name of the stage.
        stage: String,
        /// The step that was being taken, from 1.
        step: u64,
        /// Samples of the micro-batch.
        samples: Vec<String>,
        /// The model's answer.
        #[source]
        source: tpo_core::CoreError,
    },
    /// A loss or gradient that is infinite or not a number. The weights are those of the step
    /// before.
    #[error(
        "stage `{stage}`, step {step}: {what} is {value}, samples {}. The weights were not \
         changed. A smaller learning rate, clipping or f32 may help; look at these samples first",
        Some5(samples)
    )]
    NotFinite {
        /// Name of the stage.
        stage: String,
        /// The step that was being taken, from 1.
        step: u64,
        /// A loss term, or the norm of the gradients.
        what: String,
        /// Its value.
        value: f64,
        /// Samples of the micro-batch, or of the whole step.
        samples: Vec<String>,
    },
    /// Steps without anything to learn from.
    #[error(
        "stage `{stage}`, step {step}: no row of the last {steps} steps reaches a trainable parameter, \
         of the last one samples {}. They have no labels, call no head that learns, or the loss \
         weights switch both off. Add rows that do or raise their share, or let more learn",
        Some5(samples)
    )]
    NothingToLearn {
        /// Name of the stage.
        stage: String,
        /// The last step, from 1.
        step: u64,
        /// Steps in a row of which nothing could be learned.
        steps: u64,
        /// Samples of the last step.
        samples: Vec<String>,
    },
    /// Heads with a learning rate that the data of a stage do not call, or of which its loss weighs a
    /// term that does not exist.
    #[error(
        "stage `{stage}`: after {steps} steps ({samples} samples) these heads have a learning rate \
         and had no loss with a weight, or (as HEAD/TERM) no term of the name that the stage's `loss` \
         gives: {}. Their data must hold rows with an annotation of the head's task, whose \
         answer calls it. Add such rows or raise their share, and name the terms as they stand in \
         metrics.jsonl (`loss/HEAD/TERM`); or leave `heads.NAME` and \
         `task_tokens.NAME` out of the groups; or, if they come later, set \
         `heads_must_fire_within` to more steps (0: no limit)",
        heads.join(", ")
    )]
    SilentHeads {
        /// Name of the stage.
        stage: String,
        /// Steps done in it.
        steps: u64,
        /// Samples seen in it, of all workers.
        samples: u64,
        /// Names of the heads, or of a head and a term: `region/l2`.
        heads: Vec<String>,
    },
    /// Another worker of a data-parallel run failed or ended.
    #[error("worker {rank} of {world}: {why}")]
    Worker {
        /// This worker.
        rank: usize,
        /// Number of workers.
        world: usize,
        /// What happened.
        why: String,
    },
}

impl TrainError {
    /// Wraps an I/O error with what was being done to which file.
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_path_buf();
        move |source| TrainError::Io {
            action,
            path,
            source,
        }
    }
}

/// A problem between parameter groups and a module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupProblem {
    /// A pattern with a mistake in it.
    #[error("group `{group}`, pattern `{pattern}`: {why}")]
    InvalidPattern {
        /// Name of the group.
        group: String,
        /// The pattern as written.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A pattern that matches no floating-point parameter.
    #[error(
        "group `{group}`, pattern `{pattern}`: matches no parameter{}",
        Near(nearest)
    )]
    Unmatched {
        /// Name of the group.
        group: String,
        /// The pattern as written.
        pattern: String,
        /// What exists in its place, best guess first: patterns that would match, each of them
        /// the given one with one segment replaced or `.**` added. Empty when nothing is near.
        nearest: Vec<String>,
    },
    /// A pattern of adapters for a model that has none.
    #[error(
        "group `{group}`, pattern `{pattern}`: matches no parameter, for the model has no adapters; give it \
         some: model.lora = {{ rank = 16, alpha = 32.0 }}"
    )]
    NoAdapters {
        /// Name of the group.
        group: String,
        /// The pattern as written.
        pattern: String,
    },
    /// An exclusion (`!pattern`) that takes nothing away from its group.
    #[error(
        "group `{group}`, pattern `{pattern}`: excludes no parameter that the other patterns of \
         the group match; remove it"
    )]
    UselessExclusion {
        /// Name of the group.
        group: String,
        /// The pattern as written.
        pattern: String,
    },
    /// A group whose exclusions leave nothing.
    #[error("group `{group}`: its exclusions leave no parameter")]
    Empty {
        /// Name of the group.
        group: String,
    },
    /// Two groups of one name.
    #[error("group `{group}` is given more than once; each name may appear once")]
    DuplicateName {
        /// The name.
        group: String,
    },
    /// Parameters that two groups match.
    #[error(
        "groups `{first}` and `{second}` both match {}: {}; narrow one of them, for example with \
         a `!` pattern",
        Count(paths.len(), "parameter"), Some5(paths)
    )]
    Overlap {
        /// The group that comes first.
        first: String,
        /// The other group.
        second: String,
        /// Paths of the parameters.
        paths: Vec<String>,
    },
    /// A parameter that is in the module at two places, of which the groups treat one otherwise.
    #[error(
        "`{path}` ({}) and `{tied}` ({}) are one parameter; match both or neither",
        group.as_deref().unwrap_or("frozen"), tied_group.as_deref().unwrap_or("frozen")
    )]
    Tied {
        /// The first path.
        path: String,
        /// Group of the first path; `None` is frozen.
        group: Option<String>,
        /// The other path.
        tied: String,
        /// Group of the other path; `None` is frozen.
        tied_group: Option<String>,
    },
}

/// `1 problem`, `2 problems`.
struct Count(usize, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

/// One item per line.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|item| write!(f, "\n  - {item}"))
    }
}

/// The first five, and how many more there are.
struct Some5<'a>(&'a [String]);

impl fmt::Display for Some5<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let shown = self.0.len().min(5);
        f.write_str(&self.0[..shown].join(", "))?;
        match self.0.len() - shown {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The hint of an unmatched pattern.
struct Near<'a>(&'a [String]);

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            near => write!(f, "; would match: {}", near.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        let paths: Vec<String> = (0..7).map(|i| format!("p{i}")).collect();
        let problem = GroupProblem::Overlap {
            first: "a".into(),
            second: "b".into(),
            paths,
        };
        let text = TrainError::Groups {
            problems: vec![problem],
        }
        .to_string();
        assert!(
            text.contains(", 1 problem:\n  - groups `a` and `b`"),
            "{text}"
        );
        assert!(
            text.contains("7 parameters: p0, p1, p2, p3, p4 and 2 more;"),
            "{text}"
        );
    }
}
