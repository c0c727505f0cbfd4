//! SAM 2 learns to follow a shape from its box.

use burn::tensor::{Device, Tensor, TensorData};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tpo_core::geometry::Mask;
use tpo_core::ops::Resize;
use tpo_data::synthetic::{RowsConfig, Split, World};
use tpo_heads::mask::sam2::Sam2;
use tpo_heads::mask::train::{
    PromptMix, Sam2TrainConfig, VideoMaskBatch, VideoObject, VideoPrompt, video_losses,
};

use super::{OnStep, Schedule, pretrain, value};
use crate::error::Result;
use crate::model::{Tpo, TpoConfig};

/// Frames of a step on single frames, each of a clip of its own.
const IMAGE_CLIPS: usize = 16;
/// Clips of a step through video.
const CLIPS: usize = 4;
/// Weight of the focal loss.
const FOCAL: f64 = 20.0;

/// How SAM 2 is pretrained: on single frames first, then through video.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskPretraining {
    /// Steps and rates.
    pub schedule: Schedule,
    /// Steps on single frames, of those in all.
    pub images: u64,
    /// Frames of a clip in a step through video.
    pub frames: usize,
    /// Weight of the dice loss.
    pub dice: f64,
    /// Seed of the world; the clips are those of its training split.
    pub world: u64,
    /// Seed of prompts and of the frames that are cut out.
    pub seed: u64,
}

/// Teaches SAM 2 of a model to segment a shape from its box and to follow it. Clips never repeat.
///
/// `heard` gets the terms of every step as `loss`, `focal`, `dice`, `iou` and `object`.
///
/// # Errors
/// Those of the world and of [`video_losses`].
pub fn pretrain_masks(
    model: &Tpo,
    config: &TpoConfig,
    options: &MaskPretraining,
    device: &Device,
    heard: &mut OnStep<'_>,
) -> Result<Tpo> {
    let rows = RowsConfig::new([], 1, options.world);
    let world = World::new(
        rows.world(config.input.frames, config.input.size),
        options.world,
    )?;
    let mix = PromptMix::new().with_mask(0.0).with_click(0.0);
    let losses = Sam2TrainConfig::new()
        .with_focal(FOCAL)
        .with_dice(options.dice)
        .with_prompts(mix.clone());
    let sam = model.heads.mask.sam.clone();
    let image = sam.config().image_size;
    let mut next = 0u64;
    let loss = |sam: &Sam2, step: u64| {
        let (count, length) = if step < options.images {
            (IMAGE_CLIPS, 1)
        } else {
            (CLIPS, options.frames.min(world.config().frames))
        };
        let clips = next..next + count as u64;
        next = clips.end;
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed ^ (step << 20));
        let (mut frames, mut found) = (Vec::new(), Vec::new());
        for (at, index) in clips.enumerate() {
            let start = rng.random_range(0..=world.config().frames - length);
            let (seen, objects) = cut(&world, index, start, length, image, device)?;
            frames.push(seen);
            for masks in objects {
                if let Some(prompt) = VideoPrompt::sample(&masks[0], &mix, &mut rng) {
                    found.push(VideoObject {
                        clip: at,
                        prompt,
                        masks: masks.into_iter().map(Some).collect(),
                    });
                }
            }
        }
        let batch = VideoMaskBatch {
            frames: Tensor::cat(frames, 0),
            objects: found,
        };
        let terms = video_losses(sam, &batch, &losses)?;
        let Some(total) = terms.total() else {
            return Ok(None);
        };
        let mut values = vec![("loss", value(&total))];
        for term in terms.terms() {
            let name = match term.name.as_str() {
                "video_focal" => "focal",
                "video_dice" => "dice",
                "video_iou" => "iou",
                _ => "object",
            };
            values.push((name, value(&term.value)));
        }
        Ok(Some((total, values)))
    };
    let with = |sam| {
        let mut model = model.clone();
        model.heads.mask.sam = sam;
        model
    };
    pretrain(sam, &options.schedule, loss, with, heard)
}

/// Frames `[1, length, 3, image, image]` of a clip, 0–1, and the masks of its shapes on them.
fn cut(
    world: &World,
    index: u64,
    start: usize,
    length: usize,
    image: usize,
    device: &Device,
) -> Result<(Tensor<5>, Vec<Vec<Mask>>)> {
    let clip = world.clip(Split::Train, index);
    let side = clip.scene.side;
    let rendered: Vec<_> = (start..start + length)
        .map(|f| clip.scene.render(f))
        .collect();
    let mut planes = Vec::with_capacity(3 * length * side * side);
    for frame in &rendered {
        for channel in 0..3 {
            let values = frame.rgb().iter().skip(channel).step_by(3);
            planes.extend(values.map(|v| f32::from(*v) / 255.0));
        }
    }
    let data = TensorData::new(planes, [3 * length, side, side]);
    let resize = Resize::new([side; 2], [image; 2], false, device);
    let frames = resize.apply(Tensor::from_data(data, device));
    let objects = (0..clip.scene.objects.len())
        .map(|object| rendered.iter().map(|f| f.mask(object)).collect())
        .collect();
    Ok((frames.reshape([1, length, 3, image, image]), objects))
}
