//! One question of a benchmark with what is right.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tpo_data::schema::{BoxCoords, FramePosition, Media, Saliency, TrackFrame};
use tpo_data::synthetic::Clip;

/// What a question is about.
#[derive(Debug, Clone, PartialEq)]
pub enum MediaRef {
    /// Text only.
    None,
    /// A file or a folder of frames below `root`.
    File {
        /// As the row has it.
        media: Box<Media>,
        /// Folder of the media files.
        root: PathBuf,
    },
    /// A clip of the synthetic world, rendered when it is looked at.
    Clip(Arc<Clip>),
}

impl MediaRef {
    /// Equal for media that need not be loaded again.
    pub fn key(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::File { media, .. } => {
                let paths = [std::slice::from_ref(&media.path), &media.more].concat();
                format!("{:?}|{}|{:?}", media.kind, paths.join("|"), media.range)
            }
            Self::Clip(clip) => clip.name(),
        }
    }

    /// Start of the part that is looked at, in seconds of the file.
    pub fn start(&self) -> f64 {
        match self {
            Self::File { media, .. } => media.range.map_or(0.0, |r| r.start.max(0.0)),
            _ => 0.0,
        }
    }

    /// The name of the media for submissions: the file without folder and extension.
    pub fn name(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Clip(clip) => clip.name(),
            Self::File { media, .. } => {
                let path = std::path::Path::new(&media.path);
                path.file_stem()
                    .map_or_else(|| media.path.clone(), |s| s.to_string_lossy().into_owned())
            }
        }
    }
}

/// How a question is put.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Ask {
    /// The text. A box stands where the model's box token, or `{box}`, is.
    pub text: String,
    /// Boxes shown in the question.
    pub boxes: Vec<BoxCoords>,
    /// What heads are asked for.
    pub query: Option<String>,
    /// The task whose head must answer.
    pub task: Option<String>,
    /// In front of the prompt.
    pub system: String,
    /// The beginning of the answer.
    pub answer_prefix: String,
    /// Whether it follows the question without a space.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    // not in the hashes of earlier protocols
    pub answer_joined: bool,
}

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// One of several options.
    #[serde(alias = "choice")]
    MultipleChoice,
    /// A short text.
    Text,
    /// A box.
    Region,
    /// Time spans and highlights.
    Temporal,
    /// A mask in every frame.
    Mask,
    /// A box in every frame.
    Track,
    /// What only a head of your own answers.
    Own,
}

impl ItemKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::MultipleChoice,
        Self::Text,
        Self::Region,
        Self::Temporal,
        Self::Mask,
        Self::Track,
        Self::Own,
    ];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultipleChoice => "multiple_choice",
            Self::Text => "text",
            Self::Region => "region",
            Self::Temporal => "temporal",
            Self::Mask => "mask",
            Self::Track => "track",
            Self::Own => "own",
        }
    }
}

/// What is right. `None` where a benchmark keeps it to itself: the question is asked and its
/// answer submitted, not scored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Expected {
    /// An option.
    #[serde(rename = "Choice")] // as in the hashes of earlier protocols
    MultipleChoice {
        /// Texts of the options, without letters.
        options: Vec<String>,
        /// Index of the right one.
        correct: Option<usize>,
    },
    /// A text.
    Text(Option<String>),
    /// A box.
    Region(Option<BoxCoords>),
    /// Time spans in seconds from the start of the clip.
    Temporal {
        /// `[start, end]`.
        spans: Option<Vec<[f64; 2]>>,
        /// Ratings of pieces, counted from the start of the clip.
        saliency: Option<Saliency>,
    },
    /// Masks of annotated frames, counted in the file.
    Mask(Option<Vec<TrackFrame>>),
    /// Boxes of annotated frames, counted in the file.
    Track(Option<Vec<TrackFrame>>),
    /// What the annotation of a task of your own says.
    Own(serde_json::Value),
}

impl Expected {
    /// What is asked for.
    pub fn kind(&self) -> ItemKind {
        match self {
            Self::MultipleChoice { .. } => ItemKind::MultipleChoice,
            Self::Text(_) => ItemKind::Text,
            Self::Region(_) => ItemKind::Region,
            Self::Temporal { .. } => ItemKind::Temporal,
            Self::Mask(_) => ItemKind::Mask,
            Self::Track(_) => ItemKind::Track,
            Self::Own(_) => ItemKind::Own,
        }
    }

    /// Whether it can be scored.
    pub fn is_known(&self) -> bool {
        match self {
            Self::MultipleChoice { correct, .. } => correct.is_some(),
            Self::Text(text) => text.is_some(),
            Self::Region(area) => area.is_some(),
            Self::Temporal { spans, .. } => spans.as_ref().is_some_and(|s| !s.is_empty()),
            Self::Own(_) => true,
            Self::Mask(track) | Self::Track(track) => track.as_ref().is_some_and(|t| !t.is_empty()),
        }
    }
}

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Unique among the questions of its kind; the benchmark's own id where it has one.
    pub id: String,
    /// The row it comes from.
    pub sample: String,
    /// [`Sample::query_id`](tpo_data::schema::Sample::query_id) of the row, as in training.
    pub query_id: Option<String>,
    /// What it is about.
    pub media: MediaRef,
    /// How it is asked.
    pub ask: Ask,
    /// What is right.
    pub expected: Expected,
    /// The group it is also counted in: a task, a kind of question, a split, a duration.
    pub group: String,
}

impl Item {
    /// What it asks for.
    pub fn kind(&self) -> ItemKind {
        self.expected.kind()
    }

    /// Index in the clip of an annotated frame; `None` before its start.
    pub(super) fn frame_in_clip(&self, at: FramePosition, fps: f64) -> Option<usize> {
        let first = (self.media.start() * fps) as usize;
        let frame = match at {
            FramePosition::Frame(n) => n as usize,
            FramePosition::Time(t) => (t * fps).round().max(0.0) as usize,
        };
        frame.checked_sub(first)
    }

    /// Everything that makes the question what it is, for hashing.
    pub(super) fn fingerprint(&self, hasher: &mut blake3::Hasher) {
        let value = serde_json::json!([
            self.id,
            self.sample,
            self.media.key(),
            self.ask,
            self.expected,
            self.group
        ]);
        hasher.update(value.to_string().as_bytes());
        hasher.update(b"\n");
    }
}
