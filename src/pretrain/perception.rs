//! The vision encoder learns what its tokens show, and the connector to pass it on.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use tpo_data::ImageTransform;
use tpo_data::synthetic::{Clip, RenderedFrame, RowsConfig, Split, World};
use tpo_vision::{QFormerConnector, UmtConfig, VideoEncoder};

use super::patches::{PatchHead, PatchLabels};
use super::{Mover, OnStep, PretrainStep, Schedule, learning};
use crate::error::{Error, Result};
use crate::model::TpoConfig;

/// How encoder and connector are pretrained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerceptionPretraining {
    /// Steps and rates.
    pub schedule: Schedule,
    /// Clips of a step.
    pub clips: usize,
    /// Seed of the world; the clips are those of its training split.
    pub world: u64,
    /// Share of the clips whose outlines have no name ([`RowsConfig::irregular`]), 0–1.
    #[serde(default)]
    pub irregular: f64,
}

/// What turns frames into visual tokens of the language model.
#[derive(Module, Debug)]
pub struct Perception {
    /// The vision encoder.
    pub encoder: VideoEncoder,
    /// The connector.
    pub connector: QFormerConnector,
}

/// Encoder, connector and the heads that are thrown away.
#[derive(Module, Debug)]
struct Reader {
    perception: Perception,
    of_tokens: PatchHead,
    of_queries: PatchHead,
}

/// Teaches a vision encoder to know what each of its tokens shows (how much of it is covered, when, and
/// the outline, colour, event, box and displacement of the shape) and a connector to pass that on:
/// each query answers for one place in the frame, over as many time steps as there are tokens to a
/// query. Clips never repeat.
///
/// BLIP-2 teaches its Q-Former with captions (arXiv 2301.12597, section 3.2); the world knows more
/// of a clip than a caption says. Without this, a language model of this size learns to answer from
/// the words of the question alone.
///
/// `heard` gets the scores of every step: those of the connector's tokens as `shape`, `colour`,
/// `event`, `quiet`, `box error` and `cover error`, the encoder's as `encoder shape` and `encoder
/// event`.
///
/// # Errors
/// [`Error::Config`] for frames that are not cut into whole tokens and for queries among which the
/// tokens cannot be shared out; the errors of the world, the encoder and the connector.
pub fn pretrain_perception(
    perception: Perception,
    config: &TpoConfig,
    options: &PerceptionPretraining,
    device: &Device,
    heard: &mut OnStep<'_, Perception>,
) -> Result<Perception> {
    let world = world_for(config, options)?;
    let parts = config.vision.umt().zip(config.connector.qformer());
    let (vision, connector) = parts.ok_or_else(|| Error::Config {
        problems: "perception is pretrained for a UMT and a Q-Former; this model has others".into(),
    })?;
    let queries = connector.qformer.n_query();
    let cells = (vision.img_size / vision.patch_size).pow(2);
    let times = config.input.frames / vision.tubelet_size;
    let groups = queries / cells;
    if groups == 0 || !queries.is_multiple_of(cells) || !times.is_multiple_of(groups) {
        return Err(Error::Config {
            problems: format!(
                "{queries} queries cannot share {times} time steps of {cells} places: their number \
                 must be {cells} times a divisor of {times}"
            ),
        });
    }
    let (dim, d_llm) = (vision.encoder_embed_dim, connector.d_llm);
    let mut reader = learning(Reader {
        perception,
        of_tokens: PatchHead::new(dim, cells, 1, device),
        of_queries: PatchHead::new(d_llm, cells, times / groups, device),
    });
    let schedule = &options.schedule;
    let mut mover = Mover::new(&reader, schedule)?;
    for step in 0..schedule.steps {
        let first = step * options.clips as u64;
        let clips = (first..first + options.clips as u64).map(|i| world.clip(Split::Train, i));
        let (frames, labels) = batch(clips, config, vision, device)?;
        let tokens = reader.perception.encoder.encode(frames.autodiff())?;
        let visual = reader.perception.connector.forward(tokens.clone(), None)?;
        let (of_tokens, seen) = reader.of_tokens.loss(tokens, &labels);
        let (of_queries, passed) = reader.of_queries.loss(visual, &labels);
        let loss = of_tokens + of_queries;
        let value = f64::from(loss.clone().inner().into_scalar::<f32>());
        reader = mover.step(step, reader, &loss)?;
        let told = PretrainStep {
            step: step + 1,
            steps: schedule.steps,
            values: &[
                ("loss", value),
                ("shape", passed.shape),
                ("colour", passed.colour),
                ("event", passed.event),
                ("quiet", passed.quiet),
                ("box error", passed.box_error),
                ("cover error", passed.cover_error),
                ("encoder shape", seen.shape),
                ("encoder event", seen.event),
            ],
            part: &reader.perception,
        };
        if !heard(told)? {
            break;
        }
    }
    Ok(reader.perception.valid().no_grad())
}

/// The world whose clips are as long and as large as the encoder reads them.
fn world_for(config: &TpoConfig, options: &PerceptionPretraining) -> Result<World> {
    let rows = RowsConfig {
        irregular: Some(options.irregular),
        ..RowsConfig::new([], 1, options.world)
    };
    let world = rows.world(config.input.frames, config.input.size);
    if world.side != config.input.size || world.frames != config.input.frames {
        return Err(Error::Config {
            problems: format!(
                "clips of {} frames of {} pixels do not fit an encoder of {} frames of {}",
                world.frames, world.side, config.input.frames, config.input.size
            ),
        });
    }
    Ok(World::new(world, options.world)?)
}

/// Clips as the encoder reads them, and what their tokens show.
fn batch(
    clips: impl Iterator<Item = Clip>,
    config: &TpoConfig,
    vision: &UmtConfig,
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
