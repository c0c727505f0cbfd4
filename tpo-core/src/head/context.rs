//! What a head may need besides the task embedding.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::error::{CoreError, Result};
use crate::geometry::BoxXyxy;

/// Frames of one sample, decoded on demand and at the size a head asks for.
pub trait FrameSource: Send + Sync {
    /// Number of frames.
    fn len(&self) -> usize;
    /// Whether there are no frames.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Frames `[frames, 3, size, size]`, values 0–1 before any normalisation.
    fn frames(&self, size: usize) -> Result<Tensor<4>>;
    /// One frame `[1, 3, size, size]`, values 0–1. A source that streams overrides this, so
    /// that a head may walk through a long video without holding it.
    ///
    /// # Errors
    /// [`CoreError::MissingInput`] past the last frame.
    fn frame(&self, index: usize, size: usize) -> Result<Tensor<4>> {
        if index >= self.len() {
            return Err(CoreError::MissingInput {
                head: "FrameSource::frame".into(),
                what: "a frame at that index",
                hint: "ask for an index below FrameSource::len()",
            });
        }
        Ok(self.frames(size)?.narrow(0, index, 1))
    }
}

/// Feature rows of one sample, computed by a frozen tower or read from a file.
///
/// A head names what it wants, for example the video features of the temporal head; who calls
/// the model decides where they come from.
pub trait FeatureSource: Send + Sync {
    /// Rows `[rows, width]` under a name; `None` when the source has none by that name.
    fn features(&self, name: &str) -> Result<Option<Tensor<2>>>;

    /// Why there are none under a name, and how to supply them: the end of the message of the head
    /// that needs them.
    fn missing(&self, _name: &str) -> String {
        "set Sample::features".into()
    }
}

impl fmt::Debug for dyn FrameSource + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.len())
    }
}

impl fmt::Debug for dyn FeatureSource + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("features")
    }
}

impl FeatureSource for HashMap<String, Tensor<2>> {
    fn features(&self, name: &str) -> Result<Option<Tensor<2>>> {
        Ok(self.get(name).cloned())
    }
}

/// One call of a head in a conversation that calls several: what was asked for in its own turn.
#[derive(Debug, Clone, Default)]
pub struct TaskCall {
    /// Name of the head.
    pub task: String,
    /// What its turn asked for.
    pub query: Option<String>,
    /// Boxes of the question of its turn, normalised.
    pub boxes: Vec<BoxXyxy>,
    /// Features that differ from call to call, such as those of the query. The sample's are asked
    /// for what these do not have.
    pub features: Option<Arc<dyn FeatureSource>>,
}

/// One sample of a batch or of a conversation: what is known of it besides ids and pictures.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Identity in messages, for example `refcoco.jsonl:17`; may be empty.
    pub id: String,
    /// Task of the row, for counts in logs; empty when there is none.
    pub task: String,
    /// Name of the media; samples of one name are never each other's negatives.
    pub media: Option<String>,
    /// `(width, height)` of the source in pixels.
    pub size: Option<(u32, u32)>,
    /// Duration of the source in seconds.
    pub duration: Option<f64>,
    /// Times of the sampled frames in seconds.
    pub timestamps: Vec<f64>,
    /// The user's question.
    pub query: Option<String>,
    /// Boxes the question is about, normalised.
    pub boxes: Vec<BoxXyxy>,
    /// The frames, for heads that look again.
    pub frames: Option<Arc<dyn FrameSource>>,
    /// Features of frozen towers, for heads that read them.
    pub features: Option<Arc<dyn FeatureSource>>,
    /// The calls of heads in the order of their task tokens. Empty where one question is all there
    /// is: `query`, `boxes` and `features` are those of every call then.
    pub calls: Vec<TaskCall>,
}

impl Sample {
    /// A sample of which only the identity is known.
    pub fn named(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            ..Self::default()
        }
    }
}

/// The batch as a head sees it.
#[derive(Debug, Clone, Default)]
pub struct HeadContext<'a> {
    /// One entry per sample of the batch; empty when the caller knows nothing.
    pub samples: &'a [Sample],
    /// For each task token the index of its sample.
    pub rows: &'a [usize],
}

impl<'a> HeadContext<'a> {
    /// The sample of the `token`-th task token, if the caller described it.
    pub fn sample(&self, token: usize) -> Option<&'a Sample> {
        self.samples.get(*self.rows.get(token)?)
    }

    /// The call of `head` that the `token`-th task token is, if the caller told its calls apart.
    ///
    /// Task tokens are in row-major order, so the n-th token of a sample is its n-th call.
    pub fn call(&self, head: &str, token: usize) -> Option<&'a TaskCall> {
        let row = *self.rows.get(token)?;
        let before = self.rows[..token].iter().filter(|r| **r == row).count();
        let calls = &self.samples.get(row)?.calls;
        calls.iter().filter(|c| c.task == head).nth(before)
    }

    /// The sample of the `token`-th task token with query and boxes of its own turn.
    pub fn asked(&self, head: &str, token: usize) -> Option<Sample> {
        let mut sample = self.sample(token)?.clone();
        if let Some(call) = self.call(head, token) {
            sample.query.clone_from(&call.query);
            sample.boxes.clone_from(&call.boxes);
        }
        Some(sample)
    }

    /// `(width, height)` in pixels of the source of the `token`-th task token.
    pub fn require_size(&self, head: &str, token: usize) -> Result<(u32, u32)> {
        self.sample(token)
            .and_then(|s| s.size)
            .ok_or_else(|| CoreError::MissingInput {
                head: head.into(),
                what: "the size of the video or image in pixels",
                hint: "ask about a video or an image (Sample::size)",
            })
    }

    /// Feature rows `[rows, width]` of the `token`-th task token: of its call, or else of its
    /// sample.
    ///
    /// # Errors
    /// [`CoreError::MissingFeatures`] when neither has them; those of their sources.
    pub fn require_features(&self, head: &str, token: usize, name: &str) -> Result<Tensor<2>> {
        let own = self.call(head, token).and_then(|c| c.features.as_deref());
        let sample = self.sample(token).and_then(|s| s.features.as_deref());
        for source in [own, sample].into_iter().flatten() {
            if let Some(rows) = source.features(name)? {
                return Ok(rows);
            }
        }
        Err(CoreError::MissingFeatures {
            head: head.into(),
            name: name.into(),
            hint: match sample.or(own) {
                Some(source) => source.missing(name),
                None => "set Sample::features".into(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn features(name: &str, value: f32) -> HashMap<String, Tensor<2>> {
        let rows = Tensor::from_floats([[value]], &Device::flex());
        HashMap::from([(name.to_string(), rows)])
    }

    #[test]
    fn tokens_find_their_calls() {
        let call = |task: &str, n: f32| TaskCall {
            task: task.into(),
            query: Some(format!("{task} {n}")),
            boxes: vec![BoxXyxy::from([0.0, 0.0, n / 10.0, 1.0])],
            features: Some(Arc::new(features("text", n))),
        };
        let first = vec![call("a", 1.0), call("b", 2.0), call("a", 3.0)];
        let second = vec![call("a", 4.0)];
        let video = Arc::new(features("video", 9.0));
        let sample = |calls| Sample {
            query: Some("the sample's".into()),
            features: Some(video.clone()),
            calls,
            ..Sample::default()
        };
        let samples = [sample(first), sample(second), sample(vec![])];
        let context = HeadContext {
            samples: &samples,
            rows: &[0, 0, 1, 2],
        };
        let asked: Vec<_> = (0..4)
            .map(|i| context.asked("a", i).and_then(|s| s.query))
            .collect();
        let expected = ["a 1", "a 3", "a 4", "the sample's"].map(|q| Some(q.to_string()));
        assert_eq!(asked, expected);
        assert_eq!(context.asked("a", 1).unwrap().boxes[0].x1, 0.3);
        let value = |i: usize, name: &str| {
            let rows = context.require_features("a", i, name)?;
            Ok::<_, CoreError>(rows.into_scalar::<f32>())
        };
        assert_eq!(value(1, "text").unwrap(), 3.0);
        assert_eq!(value(1, "video").unwrap(), 9.0);
        assert!(value(3, "text").is_err());
        assert!(context.asked("a", 4).is_none());
    }
}
