//! SAM 2 learns to follow a shape from its box.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tpo_core::geometry::Mask;
use tpo_data::synthetic::{RowsConfig, Split, World};
use tpo_heads::mask::sam2::Sam2;
use tpo_heads::mask::track::Resize;
use tpo_heads::mask::train::{
    PromptMix, Sam2TrainConfig, VideoMaskBatch, VideoObject, VideoPrompt, video_losses,
};

use super::{Mover, OnStep, PretrainStep, Schedule, learning};
use crate::error::Result;
use crate::model::TpoConfig;

/// How SAM 2 is pretrained: on single frames first, then through video.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskPretraining {
    /// Steps and rates.
    pub schedule: Schedule,
    /// Steps on single frames, of those in all.
    pub images: u64,
    /// Frames of a step on single frames, each of a clip of its own.
    pub image_clips: usize,
    /// Clips of a step through video.
    pub clips: usize,
    /// Frames of a clip in a step through video.
    pub frames: usize,
    /// Weight of the focal loss.
    pub focal: f64,
    /// Weight of the dice loss.
    pub dice: f64,
    /// Seed of the world; the clips are those of its training split.
    pub world: u64,
    /// Seed of prompts and of the frames that are cut out.
    pub seed: u64,
}

/// Teaches SAM 2 to segment a shape from its box and to follow it. Clips never repeat.
///
/// `heard` gets the terms of every step as `loss`, `focal`, `dice`, `iou` and `object`.
///
/// # Errors
/// Those of the world and of [`video_losses`].
pub fn pretrain_masks(
    sam: Sam2,
    config: &TpoConfig,
    options: &MaskPretraining,
    device: &Device,
    heard: &mut OnStep<'_, Sam2>,
) -> Result<Sam2> {
    let rows = RowsConfig::new([], 1, options.world);
    let world = World::new(
        rows.world(config.input.frames, config.input.size),
        options.world,
    )?;
    let mix = PromptMix::new().with_mask(0.0).with_click(0.0);
    let losses = Sam2TrainConfig::new()
        .with_focal(options.focal)
        .with_dice(options.dice)
        .with_prompts(mix.clone());
    let schedule = &options.schedule;
    let mut sam = learning(sam);
    let mut mover = Mover::new(&sam, schedule)?;
    let image = sam.config().image_size;
    let mut next = 0u64;
    for step in 0..schedule.steps {
        let (count, length) = if step < options.images {
            (options.image_clips, 1)
        } else {
            (options.clips, options.frames.min(world.config().frames))
        };
        let clips = next..next + count as u64;
        next = clips.end;
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed ^ (step << 20));
        let mut batch = VideoMaskBatch {
            frames: Tensor::empty([0, 0, 0, 0, 0], device),
            objects: Vec::new(),
        };
        let mut frames = Vec::new();
        for (at, index) in clips.enumerate() {
            let start = rng.random_range(0..=world.config().frames - length);
            let (seen, objects) = cut(&world, index, start, length, image, device)?;
            frames.push(seen);
            for masks in objects {
                if let Some(prompt) = VideoPrompt::sample(&masks[0], &mix, &mut rng) {
                    batch.objects.push(VideoObject {
                        clip: at,
                        prompt,
                        masks: masks.into_iter().map(Some).collect(),
                    });
                }
            }
        }
        batch.frames = Tensor::cat(frames, 0);
        let terms = video_losses(&sam, &batch, &losses)?;
        let Some(total) = terms.total() else { continue };
        let value = |x: &Tensor<1>| f64::from(x.clone().inner().into_scalar::<f32>());
        let mut told = vec![("loss", value(&total))];
        for term in terms.terms() {
            let name = match term.name.as_str() {
                "video_focal" => "focal",
                "video_dice" => "dice",
                "video_iou" => "iou",
                _ => "object",
            };
            told.push((name, value(&term.value)));
        }
        sam = mover.step(step, sam, &total)?;
        let told = PretrainStep {
            step: step + 1,
            steps: schedule.steps,
            values: &told,
            part: &sam,
        };
        if !heard(told)? {
            break;
        }
    }
    Ok(sam.valid().no_grad())
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
