//! The vision encoder learns what its tokens show, and the connector to pass it on.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_data::Frame;
use tpo_data::synthetic::{Clip, RowsConfig, Split, World};
use tpo_vision::{QFormerConnector, UmtConfig, VideoEncoder};

use super::patches::{PatchHead, PatchLabel, labels};
use super::{OnStep, Schedule, pretrain, value};
use crate::error::{Error, Result};
use crate::model::{Connector, Tpo, TpoConfig, Vision};

/// How encoder and connector are pretrained.
#[derive(Debug, Clone, PartialEq)]
pub struct PerceptionPretraining {
    /// Steps and rates.
    pub schedule: Schedule,
    /// Clips of a step.
    pub clips: usize,
    /// Seed of the world; the clips are those of its training split.
    pub world: u64,
    /// Share of the clips whose outlines have no name ([`RowsConfig::irregular`]), 0–1.
    pub irregular: f64,
}

/// Encoder, connector and the heads that are thrown away.
#[derive(Module, Debug)]
struct Reader {
    encoder: VideoEncoder,
    connector: QFormerConnector,
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
    model: &Tpo,
    config: &TpoConfig,
    options: &PerceptionPretraining,
    device: &Device,
    heard: &mut OnStep<'_>,
) -> Result<Tpo> {
    let world = world_for(config, options)?;
    let sizes = config.vision.umt().zip(config.connector.qformer());
    let (Some((vision, connector)), Vision::Umt(umt), Connector::QFormer(qformer)) =
        (sizes, &model.vision, &model.connector)
    else {
        return Err(Error::Config {
            problems: "perception is pretrained for a UMT and a Q-Former; this model has others"
                .into(),
        });
    };
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
    let reader = Reader {
        encoder: umt.clone(),
        connector: qformer.clone(),
        of_tokens: PatchHead::new(dim, cells, 1, device),
        of_queries: PatchHead::new(d_llm, cells, times / groups, device),
    };
    let loss = |reader: &Reader, step: u64| {
        let first = step * options.clips as u64;
        let clips = (first..first + options.clips as u64).map(|i| world.clip(Split::Train, i));
        let (frames, labels) = batch(clips, config, vision, device)?;
        let tokens = reader.encoder.encode(frames.autodiff())?;
        let visual = reader.connector.forward(tokens.clone(), None)?;
        let (of_tokens, seen) = reader.of_tokens.loss(tokens, &labels);
        let (of_queries, passed) = reader.of_queries.loss(visual, &labels);
        let loss = of_tokens + of_queries;
        let values = vec![
            ("loss", value(&loss)),
            ("shape", passed.shape),
            ("colour", passed.colour),
            ("event", passed.event),
            ("quiet", passed.quiet),
            ("box error", passed.box_error),
            ("cover error", passed.cover_error),
            ("encoder shape", seen.shape),
            ("encoder event", seen.event),
        ];
        Ok(Some((loss, values)))
    };
    let with = |reader: Reader| {
        let mut model = model.clone();
        model.vision = Vision::Umt(reader.encoder);
        model.connector = Connector::QFormer(reader.connector);
        model
    };
    pretrain(reader, &options.schedule, loss, with, heard)
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
) -> Result<(Tensor<5>, Vec<Vec<PatchLabel>>)> {
    let transform = config.transform();
    let (mut pixels, mut all) = (Vec::new(), Vec::new());
    for clip in clips {
        let frames = clip.scene.render_all();
        let shown = frames.iter().map(|f| f.to_frame());
        let shown: Vec<Frame> = shown.collect::<std::result::Result<_, _>>()?;
        pixels.push(transform.apply_tensor(&shown, device)?);
        all.push(labels(
            &clip,
            &frames,
            vision.tubelet_size,
            vision.patch_size,
        ));
    }
    Ok((Tensor::cat(pixels, 0), all))
}
