//! Errors of the language-model crate.

use thiserror::Error;

/// Result with [`LlmError`].
pub type Result<T, E = LlmError> = std::result::Result<T, E>;

/// What can go wrong in a language model: configuration, tokenizer, cache, generation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LlmError {
    /// A configuration whose numbers do not fit together.
    #[error("model configuration: {problems}")]
    Config {
        /// Every problem, separated by semicolons.
        problems: String,
    },
    /// Something this decoder does not build.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked for and what exists.
        what: String,
    },
    /// A tensor of the wrong shape.
    #[error("{place}: expected {expected}, found {found:?}")]
    Shape {
        /// The function.
        place: &'static str,
        /// Expected shape in words.
        expected: String,
        /// Shape found.
        found: Vec<usize>,
    },
    /// No room for more positions.
    #[error(
        "the cache holds {len} of {capacity} positions and {new} more were fed; \
         create it with a larger capacity or shorten the prompt"
    )]
    CacheFull {
        /// Positions held.
        len: usize,
        /// Positions that fit.
        capacity: usize,
        /// Positions to add.
        new: usize,
    },
    /// A prompt that the model has too few positions for.
    #[error(
        "the prompt has {tokens} tokens and the model {positions} positions; shorten the prompt, or take \
         a model with a longer context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Positions of the model.
        positions: usize,
    },
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of a tokenizer directory that is missing, damaged or of another kind.
    #[error("{path}: {problem}", path = path.display())]
    TokenizerFile {
        /// The file or directory; `<memory>` for bytes.
        path: std::path::PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Text that the tokenizer cannot encode, or ids it cannot decode.
    #[error("tokenizer: cannot {action}: {problem}")]
    Tokenize {
        /// `encode` or `decode`.
        action: &'static str,
        /// Why.
        problem: String,
    },
    /// An id that is not in the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocab_size} ids")]
    UnknownTokenId {
        /// The id.
        id: u32,
        /// Ids from 0 to this one, exclusive, can exist.
        vocab_size: usize,
    },
    /// A token that cannot be added to the vocabulary.
    #[error("cannot add token `{token}`: {problem}")]
    AddedToken {
        /// The token.
        token: String,
        /// Why, and what would work.
        problem: String,
    },
    /// Task tokens, tokenizer and weights that do not fit each other.
    #[error("the vocabulary has problems:\n  - {}", problems.join("\n  - "))]
    Vocabulary {
        /// Every problem: which token, what was found where, what to do.
        problems: Vec<String>,
    },
    /// A chat template that does not compile or does not accept the messages.
    #[error("chat template: {problem}")]
    ChatTemplate {
        /// The template engine's message with its line, or the template's own.
        problem: String,
    },
    /// Sampling settings outside their range.
    #[error("sampling settings: {problems}")]
    Sampling {
        /// Every problem, separated by semicolons.
        problems: String,
    },
    /// Logits no token can be chosen from.
    #[error("logits: {problem}")]
    Logits {
        /// The first bad value and its index, or why nothing is left.
        problem: String,
    },
    /// A download from a model hub that failed.
    #[error("hub repository `{repo}` at revision `{revision}`: {problem}")]
    Hub {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What failed and what to do.
        problem: String,
    },
    /// Weights that cannot be loaded.
    #[error(transparent)]
    Weights(#[from] tpo_core::weights::WeightsError),
}

impl From<LlmError> for tpo_core::CoreError {
    fn from(error: LlmError) -> Self {
        tpo_core::CoreError::part("language model", error)
    }
}
