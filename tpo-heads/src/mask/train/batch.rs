//! Clips with objects to follow.

use burn::tensor::Tensor;
use tpo_core::geometry::Mask;

use super::prompt::{Kind, VideoPrompt};
use crate::HeadsError;
use crate::mask::sam2::{PointLabel, PointPrompt, Sam2, Sam2Features};
use crate::mask::target::coverage;
use crate::mask::track::{Prompts, VideoFrame, mask_prompt};

/// An object of a clip.
#[derive(Debug, Clone)]
pub struct VideoObject {
    /// Index of its clip in the batch.
    pub clip: usize,
    /// What prompts it on the first frame.
    pub prompt: VideoPrompt,
    /// Its pixels in every frame, at any resolution of the frame's aspect: empty where it is
    /// hidden, `None` where nothing is known. A [`VideoPrompt::Mask`] needs that of the first
    /// frame.
    pub masks: Vec<Option<Mask>>,
}

/// Clips of equal length with objects to follow.
#[derive(Debug, Clone)]
pub struct VideoMaskBatch {
    /// `[clips, frames, 3, image_size, image_size]`, values 0–1, on the device of the model.
    pub frames: Tensor<5>,
    /// The objects of all clips, in any order.
    pub objects: Vec<VideoObject>,
}

impl VideoMaskBatch {
    /// Encodes all frames in one pass: the features of every frame, one row per clip.
    pub(super) fn encode(&self, sam: &Sam2) -> Result<Vec<Sam2Features>, HeadsError> {
        let [clips, frames, channels, height, width] = self.frames.dims();
        // Frame after frame, so that the clips of a frame lie together.
        let images = self.frames.clone().swap_dims(0, 1);
        let images = images.reshape([frames * clips, channels, height, width]);
        let images = VideoFrame::from_unit_range(images, [height, width]).image;
        let features = sam.encode_image(images)?;
        let cut = |at: usize| features.clone().map(|x| x.narrow(0, at * clips, clips));
        Ok((0..frames).map(cut).collect())
    }
}

/// Objects in the order in which their prompts are batched.
pub(super) fn ordered(objects: &[VideoObject]) -> Vec<&VideoObject> {
    let mut ordered: Vec<&VideoObject> = objects.iter().collect();
    ordered.sort_by_key(|o| o.prompt.kind());
    ordered
}

/// The prompts of objects that are [`ordered`].
pub(super) fn first_prompts(
    objects: &[&VideoObject],
    sam: &Sam2,
) -> Result<Vec<Prompts>, HeadsError> {
    let side = sam.config().image_size;
    let like = sam.no_mem_embed.val();
    let (device, scale) = (like.device().inner(), side as f32);
    objects
        .chunk_by(|a, b| a.prompt.kind() == b.prompt.kind())
        .map(|group| match group[0].prompt.kind() {
            Kind::Area | Kind::Click => Ok(Prompts::Points(
                group.iter().map(|o| points(o, scale)).collect(),
            )),
            Kind::Tokens => {
                let tokens = group.iter().filter_map(|o| match &o.prompt {
                    VideoPrompt::Tokens(tokens) => Some(tokens.clone().unsqueeze_dim::<3>(0)),
                    _ => None,
                });
                Ok(Prompts::Tokens(Tensor::cat(tokens.collect(), 0)))
            }
            Kind::Mask => {
                let mut masks = Vec::with_capacity(group.len());
                for object in group {
                    let Some(mask) = object.masks.first().and_then(Option::as_ref) else {
                        return Err(HeadsError::Shape {
                            place: "video_losses",
                            what: "masks of an object that is prompted with its mask",
                            expected: "a mask of the first frame".into(),
                            found: vec![object.masks.len()],
                        });
                    };
                    masks.push(mask_prompt(mask, side, &device));
                }
                Ok(Prompts::Masks(Tensor::cat(masks, 0)))
            }
        })
        .collect()
}

fn points(object: &VideoObject, scale: f32) -> Vec<PointPrompt> {
    match &object.prompt {
        VideoPrompt::Area(b) => PointPrompt::corners(&b.to_pixels(scale, scale)).to_vec(),
        // The prompt encoder adds half a pixel to reach a pixel's centre.
        VideoPrompt::Click([x, y]) => vec![PointPrompt::new(
            x * scale - 0.5,
            y * scale - 0.5,
            PointLabel::Positive,
        )],
        VideoPrompt::Mask | VideoPrompt::Tokens(_) => Vec::new(),
    }
}

/// What is true of an object on a frame.
pub(super) struct Truth {
    /// Share of every low-resolution pixel that the object covers, row-major.
    pub(super) cover: Vec<f32>,
    pub(super) known: bool,
    pub(super) visible: bool,
}

impl Truth {
    /// On a grid of `rows` x `columns`.
    pub(super) fn of(
        object: &VideoObject,
        frame: usize,
        [rows, columns]: [usize; 2],
    ) -> Result<Self, HeadsError> {
        let Some(mask) = object.masks.get(frame).and_then(Option::as_ref) else {
            return Ok(Self {
                cover: vec![0.0; rows * columns],
                known: false,
                visible: false,
            });
        };
        Ok(Self {
            cover: coverage(mask, rows, columns)?,
            known: true,
            visible: mask.0.iter().any(|p| *p),
        })
    }
}
