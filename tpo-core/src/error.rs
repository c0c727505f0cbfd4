//! Errors of the vocabulary crate.

use thiserror::Error;

/// Result with [`CoreError`].
pub type Result<T, E = CoreError> = std::result::Result<T, E>;

/// What can go wrong in the vocabulary: geometry, tokens, prompts, model assembly.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CoreError {
    /// A box whose corners are reversed, outside its range or not finite.
    #[error(
        "{place}: box [{x0}, {y0}, {x1}, {y1}] is not usable: {why}; \
         give x0 <= x1 and y0 <= y1 within {range}"
    )]
    InvalidBox {
        /// Where the box came from.
        place: String,
        /// Left edge as given.
        x0: f32,
        /// Top edge as given.
        y0: f32,
        /// Right edge as given.
        x1: f32,
        /// Bottom edge as given.
        y1: f32,
        /// Which rule it breaks.
        why: &'static str,
        /// The accepted range.
        range: String,
    },
    /// A time span that ends before it starts or is not finite.
    #[error("time span [{start}, {end}] s is not usable: {why}")]
    InvalidSpan {
        /// Start in seconds.
        start: f64,
        /// End in seconds.
        end: f64,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// A run-length mask that does not describe its image.
    #[error("run-length mask of {height}x{width} pixels: {why}")]
    InvalidRle {
        /// Image height in pixels.
        height: usize,
        /// Image width in pixels.
        width: usize,
        /// What is wrong.
        why: String,
    },
    /// A tensor of the wrong shape reached a public function.
    #[error("{place}: expected {what} of shape {expected}, found {found:?}")]
    Shape {
        /// The function or input.
        place: &'static str,
        /// Which tensor.
        what: &'static str,
        /// Expected shape in words.
        expected: String,
        /// Shape found.
        found: Vec<usize>,
    },
    /// A task that the registry does not hold, or holds twice.
    #[error("task `{name}`: {why}; registered tasks: {known}")]
    Task {
        /// Name of the task.
        name: String,
        /// What is wrong.
        why: String,
        /// Names that are registered.
        known: String,
    },
    /// A token string that the vocabulary does not hold.
    #[error("token `{token}` of task `{task}` is not in the vocabulary; add it to the tokenizer")]
    MissingToken {
        /// Name of the task.
        task: String,
        /// The token string.
        token: String,
    },
    /// A prompt that cannot be built from its parts.
    #[error("prompt: {why}")]
    Prompt {
        /// What is wrong and what to do.
        why: String,
    },
    /// The number of marked slots and of embeddings to put there differ.
    #[error(
        "{what}: the ids mark {slots} slots but {found} embeddings were given; \
         each must have its own"
    )]
    SlotCount {
        /// Which kind of slot.
        what: String,
        /// Slots marked in the ids.
        slots: usize,
        /// Embeddings given.
        found: usize,
    },
    /// A video or image that cannot be laid out as rows, or a layout that is none.
    #[error("{what}: {why}")]
    Visual {
        /// Which, with its size.
        what: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A configuration with which a head cannot be made.
    #[error("configuration of head `{head}`: {why}")]
    HeadConfig {
        /// Name of the head.
        head: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// An annotation of which a head can make no target.
    #[error("annotation of `{task}`: {why}")]
    Truth {
        /// Name of the task.
        task: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Something a head needs was not supplied.
    #[error("head `{head}` needs {what}, which was not supplied: {hint}")]
    MissingInput {
        /// Name of the head.
        head: String,
        /// What it needs.
        what: &'static str,
        /// How to supply it.
        hint: &'static str,
    },
    /// A head needs features of a frozen tower that nobody supplied.
    #[error("head `{head}` needs the features `{name}`, which were not supplied: {hint}")]
    MissingFeatures {
        /// Name of the head.
        head: String,
        /// Name of the features.
        name: String,
        /// Why, and how to supply them.
        hint: String,
    },
    /// An error of a concrete part (encoder, connector, language model, head).
    #[error("{part}: {source}")]
    Part {
        /// Which part.
        part: &'static str,
        /// The part's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A metric over nothing, or over values it is not defined for.
    #[error("{metric}: {why}; {hint}")]
    Metric {
        /// Which metric.
        metric: &'static str,
        /// What is wrong.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// Turns that do not see each other, for a language model that cannot read them so.
    #[error("turns apart: {why}")]
    TurnsApart {
        /// What is wrong and what to do.
        why: String,
    },
    /// The pool of threads has its size.
    #[error(
        "{wanted} threads cannot be had: the pool runs with {found} already; set their number before \
         anything computes"
    )]
    Threads {
        /// As asked for.
        wanted: usize,
        /// As there are.
        found: usize,
    },
    /// Adapters that a language model cannot have.
    #[error("adapters: {why}")]
    Adapters {
        /// What is wrong and what to do.
        why: String,
    },
}

impl CoreError {
    /// Whether a head could not run because something from outside was not there: features, frames. An
    /// answer goes on without it ([`GenerateEvent::Unanswered`](crate::model::GenerateEvent)).
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::MissingInput { .. } | Self::MissingFeatures { .. }
        )
    }

    /// A visual that cannot be laid out.
    pub fn visual(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Visual {
            what: what.into(),
            why: why.into(),
        }
    }

    /// Wraps the error of a concrete part.
    pub fn part(
        part: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Part {
            part,
            source: Box::new(source),
        }
    }
}
