//! The vision encoder learns what its tokens show.

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use tpo_data::ImageTransform;
use tpo_data::synthetic::{Clip, RenderedFrame, Split, World};
use tpo_vision::VideoEncoder;

use super::patches::{PatchHead, PatchLabels, PatchScores};
use super::{Heard, Schedule, learning};
use crate::config::TpoConfig;
use crate::error::{Error, Result};

/// How the encoder is pretrained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderPretraining {
    /// Steps and rates.
    pub schedule: Schedule,
    /// Clips of a step.
    pub clips: usize,
    /// Seed of the world; the clips are those of its training split.
    pub world: u64,
}

/// An encoder and the head that is thrown away.
#[derive(Module, Debug)]
struct Reader {
    encoder: VideoEncoder,
    head: PatchHead,
}

/// Teaches a vision encoder to know what each of its tokens shows: how much of it is covered, and
/// the outline, colour, event, box and displacement of the shape. Clips never repeat.
///
/// `heard` gets the scores of every step as `loss`, `shape`, `colour`, `event`, `box error` and
/// `cover error`.
///
/// # Errors
/// [`Error::Config`] for frames that are not cut into whole tokens; the errors of the world and the
/// encoder.
pub fn pretrain_encoder(
    encoder: VideoEncoder,
    config: &TpoConfig,
    options: &EncoderPretraining,
    device: &Device,
    heard: &mut Heard<'_>,
) -> Result<VideoEncoder> {
    let rows = tpo_data::synthetic::RowsConfig::new([], 1, options.world);
    let world = rows.world(config.input.frames, config.input.size);
    if world.side != config.input.size || world.frames != config.input.frames {
        return Err(Error::Config {
            problems: format!(
                "clips of {} frames of {} pixels do not fit an encoder of {} frames of {}",
                world.frames, world.side, config.input.frames, config.input.size
            ),
        });
    }
    let world = World::new(world, options.world)?;
    let head = PatchHead::new(config.vision.encoder_embed_dim, device);
    let mut reader = learning(Reader { encoder, head });
    let schedule = &options.schedule;
    let mut optimizer = AdamWConfig::new()
        .with_weight_decay(schedule.weight_decay as f32)
        .init();
    for step in schedule.first..schedule.steps {
        let first = step * options.clips as u64;
        let clips = (first..first + options.clips as u64).map(|i| world.clip(Split::Train, i));
        let (frames, labels) = batch(clips, config, device)?;
        let tokens = reader.encoder.encode(frames.autodiff())?;
        let (loss, scores) = reader.head.loss(tokens, &labels);
        let value = f64::from(loss.clone().inner().into_scalar::<f32>());
        let grads = GradientsParams::from_grads(loss.backward(), &reader);
        reader = optimizer.step(schedule.rate(step), reader, grads);
        if !heard(step + 1, schedule.steps, &named(value, scores)) {
            break;
        }
    }
    Ok(reader.encoder.valid())
}

fn named(loss: f64, scores: PatchScores) -> [(&'static str, f64); 6] {
    [
        ("loss", loss),
        ("shape", scores.shape),
        ("colour", scores.colour),
        ("event", scores.event),
        ("box error", scores.box_error),
        ("cover error", scores.cover_error),
    ]
}

/// Clips as the encoder reads them, and what their tokens show.
fn batch(
    clips: impl Iterator<Item = Clip>,
    config: &TpoConfig,
    device: &Device,
) -> Result<(Tensor<5>, Vec<PatchLabels>)> {
    let side = config.input.size;
    let transform = ImageTransform::vision()
        .with_size([side; 2])
        .with_antialias(config.input.antialias);
    let plan = transform.plan(side, side)?;
    let (mut values, mut labels, mut number) = (Vec::new(), Vec::new(), 0);
    for clip in clips {
        let frames: Vec<RenderedFrame> = clip.scene.render_all();
        for frame in &frames {
            let start = values.len();
            values.resize(start + 3 * side * side, 0.0f32);
            plan.apply_into(&frame.to_frame()?, &mut values[start..])?;
        }
        let vision = &config.vision;
        labels.push(PatchLabels::new(
            &clip,
            &frames,
            vision.tubelet_size,
            vision.patch_size,
        ));
        number += 1;
    }
    let shape = [number, config.input.frames, 3, side, side];
    let frames = Tensor::from_data(TensorData::new(values, shape), device);
    Ok((frames, labels))
}
