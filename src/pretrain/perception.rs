//! The vision encoder learns what its tokens show, and the connector to pass it on.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::geometry::{Layout, VideoNewline};
use tpo_core::traits::{Connector as _, LanguageModel, VisionEncoder, VisualShape};
use tpo_data::Frame;
use tpo_data::synthetic::{Clip, RowsConfig, Split, World};
use tpo_llm::CausalLm;

use super::patches::{PatchHead, PatchLabel, labels};
use super::{OnStep, Schedule, pretrain, value};
use crate::error::{Error, Result};
use crate::model::{Connector, ConnectorConfig, Tpo, TpoConfig, Vision, VisionConfig};

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

/// Encoder, connector, what reads their rows one after the other, and the heads that are thrown away.
#[derive(Module, Debug)]
struct Reader {
    vision: Vision,
    connector: Connector,
    /// Of an encoder of single pictures: the first half of the language model.
    lower: Option<CausalLm>,
    of_tokens: PatchHead,
    of_rows: PatchHead,
    of_hidden: Option<PatchHead>,
}

/// Where tokens and rows are in a clip.
struct Places {
    /// Frames that a token covers.
    tubelet: usize,
    /// Sides of a token's place and of a row's in pixels.
    sides: [usize; 2],
    /// Time steps that a row is about.
    steps: usize,
    /// Whether every token is of one picture alone.
    pictures: bool,
}

/// Teaches a vision encoder to know what each of its tokens shows (how much of it is covered, when, and
/// the outline, colour, event, box and displacement of the shape) and a connector to pass that on.
/// Clips never repeat.
///
/// Each query of a Q-Former answers for one place in the frame, over as many time steps as there are
/// tokens to a query. Where the encoder sees one picture at a time (SigLIP), neither it nor the connector
/// can know what happens: there the first half of the language model's blocks learn it, from the rows of
/// the frames so far, and the other half has something to read from its first step on.
///
/// BLIP-2 teaches its Q-Former with captions (arXiv 2301.12597, section 3.2); the world knows more
/// of a clip than a caption says. Without this, a language model of this size learns to answer from
/// the words of the question alone.
///
/// `heard` gets the scores of every step: those of what is read last as `shape`, `colour`, `event`,
/// `quiet`, `box error` and `cover error`, the encoder's as `encoder shape` and, where it sees time,
/// `encoder event`.
///
/// # Errors
/// [`Error::Config`] for other encoders and connectors, for frames that are not cut into whole tokens and
/// for queries among which the tokens cannot be shared out; the errors of the world and of the parts.
pub fn pretrain_perception(
    model: &Tpo,
    config: &TpoConfig,
    options: &PerceptionPretraining,
    device: &Device,
    heard: &mut OnStep<'_>,
) -> Result<Tpo> {
    let world = world_for(config, options)?;
    let places = Places::of(config)?;
    let (size, frames) = (config.input.size, config.input.frames);
    let [cells, row_cells] = places.sides.map(|side| (size / side).pow(2));
    let (dim, d_llm) = config.connector.widths();
    let half = model.llm.model.layers.len().div_ceil(2);
    let of_rows = || PatchHead::new(d_llm, row_cells, places.steps, device);
    let mut reader = Reader {
        vision: model.vision.clone(),
        connector: model.connector.clone(),
        lower: None,
        of_tokens: PatchHead::new(dim, cells, 1, device),
        of_rows: of_rows(),
        of_hidden: None,
    };
    if places.pictures {
        let mut lower = model.llm.clone();
        lower.model.layers.truncate(half);
        reader.lower = Some(lower);
        reader.of_tokens = reader.of_tokens.of_pictures();
        reader.of_rows = reader.of_rows.of_pictures();
        reader.of_hidden = Some(of_rows());
    }
    let count = frames / places.tubelet / places.steps * row_cells;
    let shape = VisualShape::video((size as u32, size as u32), frames);
    let loss = |reader: &Reader, step: u64| {
        let first = step * options.clips as u64;
        let clips = (first..first + options.clips as u64).map(|i| world.clip(Split::Train, i));
        let (frames, [of_token, of_row]) = batch(clips, config, &places, device)?;
        let tokens = reader.vision.encode(frames.autodiff())?;
        let visuals = vec![shape; options.clips];
        let rows = reader
            .connector
            .connect(tokens.clone(), &visuals, None)?
            .rows;
        let all = rows.dims()[0] / options.clips;
        let rows = rows.reshape([options.clips, all, d_llm]);
        // Without the newline at the end.
        let rows = rows.narrow(1, 0, count);
        let (mut loss, seen) = reader.of_tokens.loss(tokens, &of_token);
        let (of_rows, mut last) = reader.of_rows.loss(rows.clone(), &of_row);
        loss = loss + of_rows;
        if let (Some(lower), Some(head)) = (&reader.lower, &reader.of_hidden) {
            let (of_hidden, read) = head.loss(lower.hidden(rows, None)?, &of_row);
            loss = loss + of_hidden;
            last = read;
        }
        let mut values = vec![
            ("loss", value(&loss)),
            ("shape", last.shape),
            ("colour", last.colour),
            ("event", last.event),
            ("quiet", last.quiet),
            ("box error", last.box_error),
            ("cover error", last.cover_error),
            ("encoder shape", seen.shape),
        ];
        if !places.pictures {
            values.push(("encoder event", seen.event));
        }
        Ok(Some((loss, values)))
    };
    let with = |reader: Reader| {
        let mut model = model.clone();
        model.vision = reader.vision;
        model.connector = reader.connector;
        let lower = reader.lower.into_iter().flat_map(|lm| lm.model.layers);
        for (block, learned) in model.llm.model.layers.iter_mut().zip(lower) {
            *block = learned;
        }
        model
    };
    pretrain(reader, &options.schedule, loss, with, heard)
}

impl Places {
    fn of(config: &TpoConfig) -> Result<Self> {
        let (size, frames) = (config.input.size, config.input.frames);
        let refuse = |problems: String| Err(Error::Config { problems });
        match (&config.vision, &config.connector) {
            (VisionConfig::Umt(vision), ConnectorConfig::QFormer(connector)) => {
                let queries = connector.qformer.n_query();
                let cells = (vision.img_size / vision.patch_size).pow(2);
                let times = frames / vision.tubelet_size;
                let groups = queries / cells;
                if groups == 0 || !queries.is_multiple_of(cells) || !times.is_multiple_of(groups) {
                    return refuse(format!(
                        "{queries} queries cannot share {times} time steps of {cells} places: their \
                         number must be {cells} times a divisor of {times}"
                    ));
                }
                Ok(Self {
                    tubelet: vision.tubelet_size,
                    sides: [vision.patch_size; 2],
                    steps: times / groups,
                    pictures: false,
                })
            }
            (VisionConfig::Siglip(vision), ConnectorConfig::OneVision(connector)) => {
                let video = VisualShape::video((size as u32, size as u32), frames);
                let (side, newline) = match connector.packing.layout(&video)? {
                    Layout::Frames { side, newline, .. } => (side.max(1), newline),
                    Layout::Flat { .. } | Layout::Tiles { .. } => (1, VideoNewline::Grid),
                };
                let whole = size.is_multiple_of(vision.patch_size) && size.is_multiple_of(side);
                if !whole || matches!(newline, VideoNewline::Grid | VideoNewline::Frame) {
                    return refuse(format!(
                        "frames of {size} pixels are not whole patches of {} and {side} rows a side, or \
                         newlines stand between rows of frames: neither is pretrained",
                        vision.patch_size
                    ));
                }
                Ok(Self {
                    tubelet: 1,
                    sides: [vision.patch_size, size / side],
                    steps: 1,
                    pictures: true,
                })
            }
            _ => refuse(
                "perception is pretrained for a UMT and a Q-Former or a SigLIP and OneVision's \
                 connector; this model has others"
                    .into(),
            ),
        }
    }
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

/// Clips as the encoder reads them, and what their tokens and their rows show.
fn batch(
    clips: impl Iterator<Item = Clip>,
    config: &TpoConfig,
    places: &Places,
    device: &Device,
) -> Result<(Tensor<5>, [Vec<Vec<PatchLabel>>; 2])> {
    let transform = config.transform();
    let (mut pixels, mut all) = (Vec::new(), [Vec::new(), Vec::new()]);
    for clip in clips {
        let frames = clip.scene.render_all();
        let shown = frames.iter().map(|f| f.to_frame());
        let shown: Vec<Frame> = shown.collect::<std::result::Result<_, _>>()?;
        pixels.push(transform.apply_tensor(&shown, device)?);
        for (all, side) in all.iter_mut().zip(places.sides) {
            all.push(labels(&clip, &frames, places.tubelet, side));
        }
    }
    Ok((Tensor::cat(pixels, 0), all))
}
