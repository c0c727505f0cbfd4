//! From prompt tokens to masks of every frame.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use tpo_core::geometry::{BoxXyxy, Rle};
use tpo_core::head::{FrameSource, HeadContext};
use tpo_core::{CoreError, Result};

use super::head::{HEAD, MaskHead, MaskOutput};
use super::prompt::{PromptSource, box_tokens, question_box};
use super::sam2::Sam2;
use super::target::mask_box;
use super::track::{ObjectId, Propagation, SourceFrames, TrackOptions, TrackState};
use crate::HeadsError;

/// The object in one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackedFrame {
    /// Index of the frame in the sample's
    /// [`FrameSource`](tpo_core::head::FrameSource).
    pub frame: usize,
    /// Its pixels at the size of the source; empty where the object is not visible.
    pub mask: Rle,
    /// Box around the mask, normalised ([`mask_box`]); `None` where it is empty.
    pub area: Option<BoxXyxy>,
    /// Whether the object is visible: a logit, above zero if it is.
    pub score: f32,
}

/// A predicted object through the whole video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MaskPrediction {
    /// Height and width of the masks in pixels.
    pub size: [usize; 2],
    /// Every frame, in order.
    pub frames: Vec<TrackedFrame>,
    /// The box of the question if SAM 2 was prompted with it and not with the task token,
    /// normalised.
    pub prompt: Option<BoxXyxy>,
    /// The adapter's auxiliary box for the first frame, put in order and confined to the image,
    /// normalised. The reference trains it and does not use it.
    pub auxiliary: BoxXyxy,
}

impl MaskPrediction {
    /// Number of frames in which the object is visible.
    pub fn visible(&self) -> usize {
        self.frames.iter().filter(|f| f.area.is_some()).count()
    }
}

pub(super) fn decode(
    head: &MaskHead,
    output: MaskOutput,
    context: &HeadContext<'_>,
) -> Result<Vec<MaskPrediction>> {
    // Answers need no graph.
    let sam = head.sam.valid();
    let prompt = output.prompt.inner();
    auxiliary_boxes(output.area)
        .into_iter()
        .enumerate()
        .map(|(token, auxiliary)| {
            let (width, height) = context.require_size(HEAD, token)?;
            let area = match (head.config().prompt, context.asked(HEAD, token)) {
                (PromptSource::QuestionBox, Some(sample)) => question_box(HEAD, &sample)?,
                _ => None,
            };
            let tokens = match area {
                Some(area) => box_tokens(&sam.sam_prompt_encoder, &[area])?,
                None => prompt.clone().narrow(0, token, 1),
            };
            let size = [height as usize, width as usize];
            Ok(MaskPrediction {
                size,
                frames: follow(&sam, tokens, size, context, token)?,
                prompt: area,
                auxiliary,
            })
        })
        .collect()
}

/// The adapter's boxes `[n, 4]`, put in order and confined to the image.
pub(super) fn auxiliary_boxes(area: Tensor<2>) -> Vec<BoxXyxy> {
    let flat: Vec<f32> = area.inner().into_data().iter::<f32>().collect();
    let boxes = flat.chunks_exact(4);
    boxes
        .map(|b| BoxXyxy::from([b[0], b[1], b[2], b[3]]).clamped())
        .collect()
}

/// The frames of the `token`-th task token.
pub(super) fn require_frames<'a>(
    context: &HeadContext<'a>,
    token: usize,
) -> Result<&'a (dyn FrameSource + 'static)> {
    context
        .sample(token)
        .and_then(|s| s.frames.as_deref())
        .ok_or_else(|| CoreError::MissingInput {
            head: HEAD.into(),
            what: "the frames of the video or image",
            hint: "ask about a video or an image (Sample::frames)",
        })
}

/// Prompts the first frame and follows the object to the last. Frames are read one at a time and
/// what is kept of the past does not grow with the video.
fn follow(
    sam: &Sam2,
    tokens: Tensor<3>,
    size: [usize; 2],
    context: &HeadContext<'_>,
    token: usize,
) -> Result<Vec<TrackedFrame>> {
    let source = require_frames(context, token)?;
    let like = sam.no_mem_embed.val().reshape([-1]);
    let frames = SourceFrames::new(source, sam.config().image_size, size, like);
    let mut state = TrackState::init(sam, frames, TrackOptions::default())?;
    state.add_embedding(sam, 0, ObjectId(0), tokens)?;
    state
        .propagate(sam, Propagation::forward())?
        .map(|masks| {
            let masks = masks?;
            let found = masks.masks().into_iter().zip(&masks.objects).next();
            let (mask, object) = found.ok_or(HeadsError::Shape {
                place: "MaskHead::decode",
                what: "objects of a frame",
                expected: "one".into(),
                found: vec![0],
            })?;
            Ok(TrackedFrame {
                frame: masks.frame,
                area: mask_box(&mask),
                mask: Rle::encode(&mask),
                score: object.score,
            })
        })
        .collect()
}
