//! SAM 2's training as a loss of the mask head.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Distribution, Tensor};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tpo_core::Result;
use tpo_core::geometry::Mask;
use tpo_core::head::{HeadContext, LossTerms};

use super::batch::{VideoMaskBatch, VideoObject};
use super::config::Sam2TrainConfig;
use super::losses::losses;
use super::prompt::{Kind, VideoPrompt};
use crate::HeadsError;
use crate::mask::decode::require_frames;
use crate::mask::head::{MaskHead, MaskOutput};
use crate::mask::sam2::{Sam2, Sam2Features};
use crate::mask::target::MaskTarget;

/// Adds the terms of SAM 2's training: of SAM 2 itself if a parameter of it learns, and of the
/// adapter where the task token prompts. Without either there is nothing to add.
pub(in crate::mask) fn supervise_video(
    head: &MaskHead,
    config: &Sam2TrainConfig,
    output: &MaskOutput,
    targets: &[MaskTarget],
    context: &HeadContext<'_>,
    terms: LossTerms,
) -> Result<LossTerms> {
    config.validate()?;
    let learns = learns(&head.sam);
    if !learns && config.prompts.task_token == 0.0 {
        return Ok(terms);
    }
    let mut rng = generator(output);
    let mut planned: Vec<Planned> = Vec::new();
    for (token, target) in targets.iter().enumerate() {
        // A frozen SAM 2 learns nothing from prompts that do not come from the adapter.
        let kind = if learns {
            Kind::sample(&config.prompts, &mut rng)
        } else {
            Some(Kind::Tokens)
        };
        let Some(kind) = kind else { continue };
        let row = context.rows.get(token).copied().unwrap_or(token);
        let frames = require_frames(context, token)?.len();
        planned.push(Planned::new(token, row, kind, frames, target)?);
    }
    let length = planned.iter().map(|p| p.masks.len()).min().unwrap_or(0);
    let length = length.min(config.frames);
    let batch = match length {
        0 => None,
        _ => assemble(head, config, output, context, planned, length, &mut rng)?,
    };
    let Some(batch) = batch else {
        return Ok(terms);
    };
    let added = if learns {
        losses(&head.sam, &batch.encode(&head.sam)?, &batch.objects, config)?
    } else {
        // Images have no path to the prompt, so their encoder runs without a graph.
        let features = batch.encode(&head.sam.valid())?;
        let join = |f: Sam2Features| on_graph(f, &output.prompt);
        let features: Vec<_> = features.into_iter().map(join).collect();
        losses(
            &head.sam.clone().freeze(),
            &features,
            &batch.objects,
            config,
        )?
    };
    Ok(added.terms().iter().fold(terms, |terms, term| {
        terms.with(term.name.clone(), term.value.clone(), term.weight)
    }))
}

/// The features as constants of the graph that `like` is on.
fn on_graph(features: Sam2Features, like: &Tensor<3>) -> Sam2Features {
    let Some(strategy) = like.gradient_checkpointing_strategy() else {
        return features;
    };
    features.map(|x| x.autodiff().with_gradient_checkpointing_strategy(strategy))
}

/// Whether any parameter gets a gradient.
fn learns(sam: &Sam2) -> bool {
    struct Any(bool);
    impl ModuleVisitor for Any {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.val().is_require_grad();
        }
    }
    let mut any = Any(false);
    sam.visit(&mut any);
    any.0
}

/// A generator that follows from the device's, which the trainer seeds before every batch.
fn generator(output: &MaskOutput) -> Xoshiro256PlusPlus {
    let device = output.prompt.device().inner();
    let drawn = Tensor::<1>::random([2], Distribution::Default, &device).into_data();
    let bits = drawn.iter::<f32>().map(|v| u64::from(v.to_bits()));
    let seed = bits.fold(0u64, |seed, bits| seed.rotate_left(32) ^ bits);
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A task token before the frames are chosen.
struct Planned {
    token: usize,
    row: usize,
    kind: Kind,
    /// Per frame of the source.
    masks: Vec<Option<Mask>>,
}

impl Planned {
    fn new(
        token: usize,
        row: usize,
        kind: Kind,
        frames: usize,
        target: &MaskTarget,
    ) -> Result<Self> {
        let mut masks: Vec<Option<Mask>> = vec![None; frames];
        for given in &target.masks {
            match masks.get_mut(given.frame) {
                Some(place) => *place = Some(given.mask.decode()?),
                None => {
                    return Err(HeadsError::MaskTarget {
                        token,
                        why: "it has a mask of a frame that the video has not",
                    }
                    .into());
                }
            }
        }
        Ok(Self {
            token,
            row,
            kind,
            masks,
        })
    }

    fn shows(&self, frame: usize) -> bool {
        let mask = self.masks.get(frame).and_then(Option::as_ref);
        mask.is_some_and(|m| m.0.iter().any(|p| *p))
    }

    /// Frames that can be the first of a run of `length` frames in this direction.
    fn starts(&self, length: usize, reverse: bool) -> Vec<usize> {
        let all = if reverse {
            length - 1..self.masks.len()
        } else {
            0..self.masks.len() + 1 - length
        };
        all.filter(|frame| self.shows(*frame)).collect()
    }
}

/// Chooses frames and prompts; `None` if no object can be prompted.
fn assemble(
    head: &MaskHead,
    config: &Sam2TrainConfig,
    output: &MaskOutput,
    context: &HeadContext<'_>,
    planned: Vec<Planned>,
    length: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Result<Option<VideoMaskBatch>> {
    let mut rows: Vec<usize> = planned.iter().map(|p| p.row).collect();
    rows.sort_unstable();
    rows.dedup();
    let (mut clips, mut objects) = (Vec::new(), Vec::new());
    let device = head.sam.no_mem_embed.val().device().inner();
    for row in rows {
        let tokens: Vec<&Planned> = planned.iter().filter(|p| p.row == row).collect();
        let order = choose(&tokens, config, length, rng);
        let mut any = false;
        for planned in &tokens {
            let masks: Vec<Option<Mask>> =
                order.iter().map(|t| planned.masks[*t].clone()).collect();
            let prompt = match (planned.kind, masks.first()) {
                (Kind::Tokens, _) => {
                    let tokens = output.prompt.clone().narrow(0, planned.token, 1);
                    let [_, count, dim] = tokens.dims();
                    Some(VideoPrompt::Tokens(tokens.reshape([count, dim])))
                }
                (kind, Some(Some(mask))) => VideoPrompt::of_kind(kind, mask, &config.prompts, rng),
                _ => None,
            };
            // Hidden where the run starts.
            let Some(prompt) = prompt else { continue };
            any = true;
            objects.push(VideoObject {
                clip: clips.len(),
                prompt,
                masks,
            });
        }
        if let Some(first) = tokens.first().filter(|_| any) {
            let source = require_frames(context, first.token)?;
            let all = source.frames(head.sam.config().image_size)?;
            let all = all.inner().to_device(&device);
            let frames = order.iter().map(|t| all.clone().narrow(0, *t, 1));
            clips.push(Tensor::cat(frames.collect(), 0).unsqueeze_dim::<5>(0));
        }
    }
    Ok((!clips.is_empty()).then(|| VideoMaskBatch {
        frames: Tensor::cat(clips, 0),
        objects,
    }))
}

/// Which frames of a clip are gone through, in order: a task token describes the object where the
/// clip begins, other prompts may start wherever one of the objects shows.
fn choose(
    tokens: &[&Planned],
    config: &Sam2TrainConfig,
    length: usize,
    rng: &mut Xoshiro256PlusPlus,
) -> Vec<usize> {
    let from_start = tokens.iter().any(|p| p.kind == Kind::Tokens);
    let reverse = rng.random::<f64>() < config.reverse;
    let of = tokens[rng.random_range(0..tokens.len())];
    if !from_start {
        for reverse in [reverse, !reverse] {
            let starts = of.starts(length, reverse);
            if !starts.is_empty() {
                let start = starts[rng.random_range(0..starts.len())];
                return (0..length)
                    .map(|i| if reverse { start - i } else { start + i })
                    .collect();
            }
        }
    }
    (0..length).collect()
}
