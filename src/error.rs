//! Errors of the facade.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Result with this crate's [enum@Error].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything a session can fail with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A device this build or machine does not have.
    #[error("device `{asked}`: {why}")]
    Device {
        /// What was asked for.
        asked: String,
        /// Why it cannot be opened and what to do.
        why: String,
    },
    /// A model whose parts do not fit together.
    #[error("model configuration: {problems}")]
    Config {
        /// Every problem, separated by semicolons.
        problems: String,
    },
    /// A model directory that is not one.
    #[error("{path}: {why}")]
    ModelDir {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A file that does not hold the part of a model it was given for. Nothing was written.
    #[error("{part} ({flag} {}): {source}{holds}", file.display())]
    Part {
        /// The part.
        part: String,
        /// How its file is given.
        flag: String,
        /// The file.
        file: PathBuf,
        /// What is missing, unexpected or of another shape.
        #[source]
        source: Box<tpo_core::weights::WeightsError>,
        /// What the file holds.
        holds: String,
    },
    /// A model that does not fit into the memory there is. Nothing was read.
    #[error(
        "the model does not fit into the {available} GiB of memory that are available; {remedy} \
         (`--memory GIB` sets another bound)\n{table}"
    )]
    Memory {
        /// GiB there are.
        available: String,
        /// What each number format takes.
        table: String,
        /// What to do.
        remedy: String,
    },
    /// A question that cannot be asked.
    #[error("question: {why}")]
    Question {
        /// What is wrong and what to do.
        why: String,
    },
    /// A picture that cannot be drawn.
    #[error("{what}: {why}")]
    Picture {
        /// Which picture.
        what: String,
        /// Why.
        why: String,
    },
    /// From the vocabulary, the assembled model or a head.
    #[error(transparent)]
    Core(#[from] tpo_core::CoreError),
    /// From the weight import.
    #[error(transparent)]
    Weights(#[from] tpo_core::weights::WeightsError),
    /// From the vision encoder or the connector.
    #[error(transparent)]
    Vision(#[from] tpo_vision::VisionError),
    /// From the language model.
    #[error(transparent)]
    Llm(#[from] tpo_llm::LlmError),
    /// From reading media.
    #[error(transparent)]
    Data(#[from] tpo_data::DataError),
    /// From recipes, training or checkpoints.
    #[error(transparent)]
    Train(#[from] tpo_train::TrainError),
    /// From a head or its feature towers.
    #[error(transparent)]
    Heads(#[from] tpo_heads::HeadsError),
    /// A video too short for one feature.
    #[error(
        "{path} lasts {seconds:.2} s, too short for one feature: the temporal head needs the middle \
         frames of a whole clip of {needed:.2} s",
        path = path.display()
    )]
    ShortVideo {
        /// The video.
        path: PathBuf,
        /// Its duration in seconds.
        seconds: f64,
        /// Seconds of one feature.
        needed: f64,
    },
    /// A feature file or cache that cannot be read or written.
    #[error("features {path}: {source}", path = path.display())]
    FeatureIo {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A run directory that was made under another protocol.
    #[error(
        "{dir}: holds an evaluation of another protocol ({}); give another directory, or start \
         over with --restart",
        differences.join("; "),
        dir = dir.display()
    )]
    EvaluationProtocol {
        /// The run's directory.
        dir: PathBuf,
        /// What differs: `path: then, now`.
        differences: Vec<String>,
    },
    /// An evaluation that cannot continue.
    #[error("{path}: {why}", path = path.display())]
    Evaluation {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A file that cannot be opened or read.
    #[error("cannot read {file}: {source}")]
    File {
        /// The file.
        file: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A line of a file that cannot be used.
    #[error("{file}:{line}: {why}; {hint}")]
    Row {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
        /// What to do.
        hint: String,
    },
    /// Two files that must describe the same samples do not.
    #[error(
        "{predictions} and {truth} do not describe the same samples: {without_prediction} of the \
         ground truth have no prediction (first: {first_without_prediction}), {without_truth} \
         predictions have no ground truth (first: {first_without_truth}); complete the files, or \
         score the {matched} samples both have without strict"
    )]
    Unmatched {
        /// File of predictions.
        predictions: String,
        /// File of the ground truth.
        truth: String,
        /// How many samples both have.
        matched: usize,
        /// How many samples have no prediction.
        without_prediction: usize,
        /// The first of them, or `none`.
        first_without_prediction: String,
        /// How many predictions have no sample.
        without_truth: usize,
        /// The first of them, or `none`.
        first_without_truth: String,
    },
    /// A file of an evaluation that cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    EvaluationIo {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps an error of the operating system.
    pub(crate) fn feature_io(path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::FeatureIo {
            path: path.clone(),
            source,
        }
    }

    /// As [`Self::feature_io`], for a file of an evaluation.
    pub(crate) fn evaluation_io(path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::EvaluationIo {
            path: path.clone(),
            source,
        }
    }

    /// As [`Self::feature_io`], for a file that is scored.
    pub(crate) fn file(path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let file = path.display().to_string();
        move |source| Self::File {
            file: file.clone(),
            source,
        }
    }
}
