//! The tracker unrolled over a clip, on the autodiff graph.
//!
//! One run forward from a prompt on the first frame: the same functions in the same order as
//! [`TrackState`](super::TrackState), with memories that stay on the graph.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use tpo_core::ops::indices;

use super::bank::Window;
use super::options::Direction;
use super::step::{self, Constants, Decoded, Prompts, Recalled};
use crate::HeadsError;
use crate::mask::sam2::{MaskDecoderOutput, MaskSource, Sam2, Sam2Features};

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
    prompts: &[Prompts],
) -> Result<Unrolled, HeadsError> {
    let c = Constants::new(model)?;
    let window = Window::new(model.config());
    let objects: usize = prompts.iter().map(Prompts::objects).sum();
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
                let holes = model.config().tracking.fill_hole_area;
                let outputs = step::to_outputs(&decoded.inner(), holes)?;
                let outputs: Vec<_> = outputs.iter().collect();
                step::prompt_memory(model, &c, &features, &outputs)?
            } else {
                let (low_res, score) = (decoded.low_res.clone(), decoded.score.clone());
                step::encode_memory(model, &c, &features, low_res, score, MaskSource::Tracking)?
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
    prompts: &[Prompts],
    run: &mut Unrolled,
) -> Result<Decoded, HeadsError> {
    let tracking = &model.config().tracking;
    let (mut parts, mut first) = (Vec::with_capacity(prompts.len()), 0);
    for group in prompts {
        let n = group.objects();
        let features = features.clone().map(|x| x.narrow(0, first, n));
        if let (Prompts::Masks(masks), true) =
            (group, tracking.use_mask_input_as_output_without_sam)
        {
            parts.push(step::given_mask(model, c, &features, masks.clone())?);
            first += n;
            continue;
        }
        let (count, prompt) = group.clone().embed(model, c, None)?;
        let embedding = model.without_memory(features.embedding.clone());
        let output = model.decode(embedding, &features.high_res, &prompt)?;
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
