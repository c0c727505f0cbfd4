//! One row: media, conversation, annotations.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::annotation::{Annotation, BoxCoords};
use crate::ClipRange;

/// One row of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Name of the row in reports; the line number is used without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The video or images; `None` for a row of text only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<Media>,
    /// The conversation about it. Annotations that no answer calls become turns of their own,
    /// asked with a template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<Turn>,
    /// Ground truth of the heads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<Annotation>,
    /// Anything else worth keeping; never read by the project.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub meta: Map<String, Value>,
}

impl Sample {
    /// The name under which features of its query may have been computed before: the row's own, unless it
    /// has several annotations, which share the name.
    pub fn query_id(&self) -> Option<&str> {
        self.id.as_deref().filter(|_| self.annotations.len() <= 1)
    }
}

/// A question and its answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// What the user says. `<box>` is replaced by the next of `boxes`.
    pub question: String,
    /// What the model should say. `<task:NAME>` calls the head NAME on its next annotation.
    /// Empty in rows that are only asked, never trained on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answer: String,
    /// Boxes of the question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boxes: Vec<BoxCoords>,
    /// Choices of a multiple-choice question, without letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Index of the right choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<usize>,
}

impl Turn {
    /// A turn of two texts.
    pub fn new(question: impl Into<String>, answer: impl Into<String>) -> Self {
        Self {
            question: question.into(),
            answer: answer.into(),
            ..Self::default()
        }
    }
}

/// The file a row is about. Paths are relative to the data root (the folder of the JSONL file
/// unless told otherwise).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "MediaFields", into = "MediaFields")]
pub struct Media {
    /// What it is.
    pub kind: MediaKind,
    /// Path of the file, or of the folder of frames.
    pub path: String,
    /// Field `images`: further images that the conversation is about. Sizes, boxes and annotations are of
    /// the first.
    pub more: Vec<String>,
    /// Part of the video in seconds; `None` for all of it.
    pub range: Option<ClipRange>,
    /// `[width, height]` in pixels if the annotation says; checked against the file.
    pub size: Option<[u32; 2]>,
    /// Length of the whole video in seconds if the annotation says.
    pub duration: Option<f64>,
}

/// Kinds of media.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MediaKind {
    /// Field `video`: a video file.
    Video,
    /// Field `image`: a still image.
    Image,
    /// Field `frames` with `fps`: a folder of images in the order of their names.
    Frames {
        /// Frames per second.
        fps: f64,
    },
}

impl Media {
    /// A whole video file.
    pub fn video(path: impl Into<String>) -> Self {
        Self::new(MediaKind::Video, path)
    }

    /// A still image.
    pub fn image(path: impl Into<String>) -> Self {
        Self::new(MediaKind::Image, path)
    }

    /// Still images, in order; `None` without any.
    pub fn images(paths: impl IntoIterator<Item = String>) -> Option<Self> {
        let mut paths = paths.into_iter();
        let first = paths.next()?;
        Some(Self {
            more: paths.collect(),
            ..Self::image(first)
        })
    }

    /// The further images, each by itself.
    pub fn others(&self) -> impl Iterator<Item = Self> {
        self.more.iter().map(Self::image)
    }

    /// A folder of frames.
    pub fn frames(path: impl Into<String>, fps: f64) -> Self {
        Self::new(MediaKind::Frames { fps }, path)
    }

    fn new(kind: MediaKind, path: impl Into<String>) -> Self {
        Self {
            kind,
            path: path.into(),
            more: Vec::new(),
            range: None,
            size: None,
            duration: None,
        }
    }

    /// Whether it has a time axis.
    pub fn is_video(&self) -> bool {
        self.kind != MediaKind::Image
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MediaFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    video: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frames: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<[u32; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration: Option<f64>,
}

impl TryFrom<MediaFields> for Media {
    type Error = String;
    fn try_from(f: MediaFields) -> Result<Self, String> {
        if f.fps.is_some() && f.frames.is_none() {
            return Err("`fps` goes with `frames` only".into());
        }
        let media = match (f.video, f.image, f.images, f.frames) {
            (Some(path), None, None, None) => Self::video(path),
            (None, Some(path), None, None) => Self::image(path),
            (None, None, Some(paths), None) => {
                Self::images(paths).ok_or("`images` is empty; leave `media` out instead")?
            }
            (None, None, None, Some(path)) => {
                Self::frames(path, f.fps.ok_or("`frames` needs `fps`")?)
            }
            _ => {
                return Err(
                    "media has `video`, `image`, `images` or `frames`, exactly one of them".into(),
                );
            }
        };
        Ok(Self {
            range: f.range.map(|[start, end]| ClipRange { start, end }),
            size: f.size,
            duration: f.duration,
            ..media
        })
    }
}

impl From<Media> for MediaFields {
    fn from(m: Media) -> Self {
        let mut fields = Self {
            range: m.range.map(|r| [r.start, r.end]),
            size: m.size,
            duration: m.duration,
            ..Self::default()
        };
        match m.kind {
            MediaKind::Video => fields.video = Some(m.path),
            MediaKind::Image if m.more.is_empty() => fields.image = Some(m.path),
            MediaKind::Image => {
                let paths = std::iter::once(m.path).chain(m.more);
                fields.images = Some(paths.collect());
            }
            MediaKind::Frames { fps } => (fields.frames, fields.fps) = (Some(m.path), Some(fps)),
        }
        fields
    }
}
