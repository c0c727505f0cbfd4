//! The tracker unrolled over a clip, on the autodiff graph.
//!
//! One run forward from a prompt on the first frame: the same functions in the same order as
//! [`TrackState`](super::TrackState), with memories that stay on the graph.

use std::collections::BTreeMap;

use burn::tensor::{FloatDType, Tensor};
use tpo_core::ops::{floats, indices};

use super::bank::Window;
use super::options::Direction;
use super::prompts::BOX_POINTS;
use super::step::{self, Constants, Decoded, Recalled};
use crate::HeadsError;
use crate::mask::sam2::{
    MaskDecoderOutput, MaskSource, PointPrompt, PromptEmbedding, Sam2, Sam2Features,
};

/// Prompts of one kind for several objects on the first frame.
#[derive(Debug, Clone)]
pub(in crate::mask) enum FirstPrompts {
    /// Equally many points for every object, in pixels of the model's input.
    Points(Vec<Vec<PointPrompt>>),
    /// Masks `[n, image_size, image_size]` of zeros and ones.
    Masks(Tensor<3>),
    /// Tokens `[n, tokens, dim]` in place of those of a box.
    Tokens(Tensor<3>),
}

impl FirstPrompts {
    fn objects(&self) -> usize {
        match self {
            Self::Points(points) => points.len(),
            Self::Masks(masks) => masks.dims()[0],
            Self::Tokens(tokens) => tokens.dims()[0],
        }
    }
}

/// What the decoder offered for some consecutive objects on a frame.
#[derive(Debug, Clone)]
pub(in crate::mask) struct Candidates {
    /// Index of the frame.
    pub(in crate::mask) frame: usize,
    /// Index of the first object.
    pub(in crate::mask) first: usize,
    /// All masks, before absent objects lose theirs.
    pub(in crate::mask) output: MaskDecoderOutput,
    /// Whether the tracker chooses among the several masks, not the single one.
    pub(in crate::mask) multimask: bool,
}

/// A run.
#[derive(Debug)]
pub(in crate::mask) struct Unrolled {
    /// Of all frames in order; frames whose masks were given have none.
    pub(in crate::mask) candidates: Vec<Candidates>,
    /// Logits the tracker keeps, `[objects, low side, low side]` per frame; holes not filled.
    pub(in crate::mask) low_res: Vec<Tensor<3>>,
    /// Whether the object is visible, logits `[objects, 1]` per frame.
    pub(in crate::mask) scores: Vec<Tensor<2>>,
}

/// What later frames attend to.
struct Kept {
    memory: Tensor<3>,
    pointer: Tensor<2>,
}

/// Prompts objects on the first frame and follows them to the last, as one batch.
///
/// `frames` holds the features of every frame, one row per clip, and `clips` the clip of every
/// object. The groups of `prompts` follow each other in the order of the objects.
///
/// # Errors
/// Those of the parts.
pub(in crate::mask) fn unroll(
    model: &Sam2,
    frames: &[Sam2Features],
    clips: &[usize],
    prompts: &[FirstPrompts],
) -> Result<Unrolled, HeadsError> {
    let c = Constants::new(model)?;
    let window = Window::new(model.config(), None);
    let objects: usize = prompts.iter().map(FirstPrompts::objects).sum();
    let images = frames.first().map_or(0, |f| f.embedding.dims()[0]);
    let fits = objects > 0 && clips.len() == objects && clips.iter().all(|clip| *clip < images);
    if !fits {
        return Err(HeadsError::Shape {
            place: "unroll",
            what: "objects",
            expected: format!("a clip below {images} for each of {objects} objects, at least one"),
            found: clips.to_vec(),
        });
    }
    let rows = indices(clips.iter().copied(), &c.device);
    let own = (0..images).eq(clips.iter().copied());
    let of_objects = |features: &Sam2Features| {
        let pick = |x: Tensor<4>| if own { x } else { x.select(0, rows.clone()) };
        features.clone().map(pick)
    };

    let mut run = Unrolled {
        candidates: Vec::new(),
        low_res: Vec::new(),
        scores: Vec::new(),
    };
    let (mut prompted, mut tracked) = (BTreeMap::new(), BTreeMap::new());
    let limit = window.pointer_limit(Some(frames.len()));
    for (at, frame) in frames.iter().enumerate() {
        let features = of_objects(frame);
        let decoded = if at == 0 {
            first_frame(model, &c, &features, prompts, &mut run)?
        } else {
            let count = Some(frames.len());
            let selection =
                window.select(at, Direction::Forward, count, &prompted, &tracked, |_| true);
            let kept = |frame: usize| prompted.get(&frame).or_else(|| tracked.get(&frame));
            let recalled = Recalled {
                memories: selection
                    .memories
                    .iter()
                    .filter_map(|(_, t)| kept(*t).map(|k: &Kept| &k.memory))
                    .collect(),
                pointers: selection
                    .pointers
                    .iter()
                    .filter_map(|(_, t)| kept(*t).map(|k| &k.pointer))
                    .collect(),
            };
            let output = step::follow(model, &c, &features, &selection, limit, &[recalled])?;
            let multimask = step::multimask(&model.config().tracking, 0, false);
            let decoded = step::settle(model, &output, multimask);
            run.candidates.push(Candidates {
                frame: at,
                first: 0,
                output,
                multimask,
            });
            decoded
        };
        if at + 1 < frames.len() {
            let memory = if at == 0 {
                prompt_memory(model, &c, &features, &decoded)?
            } else {
                let masks = c.full(decoded.low_res.clone());
                let score = decoded.score.clone().cast(FloatDType::F32);
                let source = MaskSource::Tracking;
                step::encode_memory(model, &c, &features, masks, score, source)?
            };
            let kept = Kept {
                memory,
                pointer: decoded.pointer,
            };
            if at == 0 {
                prompted.insert(at, kept);
            } else {
                tracked.insert(at, kept);
            }
        }
        run.low_res.push(decoded.low_res);
        run.scores.push(decoded.score);
    }
    Ok(run)
}

/// Decodes the prompts.
fn first_frame(
    model: &Sam2,
    c: &Constants,
    features: &Sam2Features,
    prompts: &[FirstPrompts],
    run: &mut Unrolled,
) -> Result<Decoded, HeadsError> {
    let tracking = &model.config().tracking;
    let (mut parts, mut first) = (Vec::with_capacity(prompts.len()), 0);
    for group in prompts {
        let n = group.objects();
        let features = features.clone().map(|x| x.narrow(0, first, n));
        let no_mask = || model.sam_prompt_encoder.no_mask(n);
        let (count, prompt) = match group {
            FirstPrompts::Masks(masks) if tracking.use_mask_input_as_output_without_sam => {
                parts.push(step::given_mask(model, c, &features, masks.clone())?);
                first += n;
                continue;
            }
            FirstPrompts::Masks(masks) => (
                0,
                PromptEmbedding {
                    sparse: step::no_points(model, n)?,
                    dense: step::dense_mask(model, c, masks.clone())?,
                },
            ),
            FirstPrompts::Points(points) => (
                points.first().map_or(0, Vec::len),
                PromptEmbedding {
                    sparse: model.sam_prompt_encoder.embed_points(points, true)?,
                    dense: no_mask(),
                },
            ),
            FirstPrompts::Tokens(tokens) => (
                BOX_POINTS,
                PromptEmbedding {
                    sparse: tokens.clone(),
                    dense: no_mask(),
                },
            ),
        };
        let embedding = model.without_memory(features.embedding.clone());
        let output = model.decode(embedding, features.high_res.as_ref(), &prompt)?;
        let multimask = step::multimask(tracking, count, true);
        parts.push(step::settle(model, &output, multimask));
        run.candidates.push(Candidates {
            frame: 0,
            first,
            output,
            multimask,
        });
        first += n;
    }
    Ok(Decoded::cat(&parts))
}

/// Memories of the prompted frame: of hole-filled, enlarged masks, which are constants.
fn prompt_memory(
    model: &Sam2,
    c: &Constants,
    features: &Sam2Features,
    decoded: &Decoded,
) -> Result<Tensor<3>, HeadsError> {
    let holes = model.config().tracking.fill_hole_area;
    let outputs = step::to_outputs(&decoded.inner(), holes)?;
    let maps: Vec<Tensor<3>> = outputs.iter().map(|o| c.tensor(&o.low_res)).collect();
    let scores: Vec<f32> = outputs.iter().map(|o| o.score).collect();
    let scores = floats(scores, [outputs.len(), 1], &c.device);
    let masks = c.full(Tensor::cat(maps, 0));
    step::encode_memory(model, c, features, masks, scores, MaskSource::Prompt)
}
