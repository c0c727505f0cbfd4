//! Losses over all frames of a clip.

use burn::tensor::activation::relu;
use burn::tensor::{FloatDType, Tensor};
use tpo_core::head::LossTerms;
use tpo_core::ops::{floats, indices};

use super::batch::{Truth, VideoMaskBatch, VideoObject, first_prompts, ordered};
use super::config::Sam2TrainConfig;
use crate::HeadsError;
use crate::mask::loss::{actual_iou, dice_loss, focal_loss};
use crate::mask::sam2::{Sam2, Sam2Features};
use crate::mask::track::{Candidates, Unrolled, unroll};

/// What the tracker makes of a batch.
#[derive(Debug, Clone)]
pub struct VideoPrediction {
    /// Mask logits `[objects, 4·rows, 4·columns]` of every frame in f32, objects in the order of
    /// the batch: −1024 where the object is not visible, holes not filled.
    pub masks: Vec<Tensor<3>>,
    /// Whether the object is visible, logits `[objects, 1]` of every frame.
    pub scores: Vec<Tensor<2>>,
}

/// Runs the tracker over a batch as training does, on the graph if the model is.
///
/// The results are those of a [`TrackState`](crate::mask::track::TrackState) with default options
/// that is prompted on the first frame and propagates forward.
///
/// # Errors
/// [`HeadsError::Shape`] for a batch that does not fit together, and the errors of the parts.
pub fn video_forward(sam: &Sam2, batch: &VideoMaskBatch) -> Result<VideoPrediction, HeadsError> {
    check(sam, batch)?;
    let objects = ordered(&batch.objects);
    let run = follow(sam, &batch.encode(sam)?, &objects)?;
    // Back to the order of the batch.
    let mut places: Vec<usize> = (0..objects.len()).collect();
    places.sort_by_key(|at| batch.objects[*at].prompt.kind());
    let mut from = vec![0; places.len()];
    for (to, at) in places.into_iter().enumerate() {
        from[at] = to;
    }
    let device = sam.no_mem_embed.val().device();
    let from = indices(from, &device);
    Ok(VideoPrediction {
        masks: run
            .low_res
            .into_iter()
            .map(|m| m.select(0, from.clone()))
            .collect(),
        scores: run
            .scores
            .into_iter()
            .map(|s| s.select(0, from.clone()))
            .collect(),
    })
}

/// The terms `video_focal`, `video_dice`, `video_iou` and `video_object` of SAM 2's training, each
/// a mean over frames and objects. Without objects there are none.
///
/// Of several masks the one with the least focal and dice loss is supervised, and all predicted
/// IoUs are. Frames in which the object is hidden have a loss of the object score only; frames of
/// which nothing is known have none, and neither has the first frame of an object prompted with
/// its mask. Losses are those of the decoder's masks, whether it takes the object for visible or
/// not.
///
/// # Errors
/// [`HeadsError::Shape`] for a batch that does not fit together, [`HeadsError::Config`], and the
/// errors of the parts.
pub fn video_losses(
    sam: &Sam2,
    batch: &VideoMaskBatch,
    config: &Sam2TrainConfig,
) -> Result<LossTerms, HeadsError> {
    config.validate()?;
    if batch.objects.is_empty() {
        return Ok(LossTerms::new());
    }
    check(sam, batch)?;
    losses(sam, &batch.encode(sam)?, &batch.objects, config)
}

/// As [`video_losses`] on features that are encoded.
pub(super) fn losses(
    sam: &Sam2,
    frames: &[Sam2Features],
    objects: &[VideoObject],
    config: &Sam2TrainConfig,
) -> Result<LossTerms, HeadsError> {
    let objects = ordered(objects);
    let run = follow(sam, frames, &objects)?;
    let grid = sam.config().prompt_encoder.grid().map(|n| 4 * n);
    let (several, single): (Vec<_>, Vec<_>) = run.candidates.iter().partition(|c| c.multimask);
    let mut sums: Vec<Sums> = Vec::new();
    for set in [single, several] {
        if !set.is_empty() {
            sums.push(Sums::of(&set, &objects, grid, config)?);
        }
    }
    let masks = sums.iter().map(|s| s.masks).sum::<f64>().max(1.0);
    let known = sums.iter().map(|s| s.known).sum::<f64>().max(1.0);
    let mean = |part: fn(&Sums) -> &Tensor<1>, count: f64| {
        sums.iter()
            .map(|s| part(s).clone())
            .reduce(|a, b| a + b)
            .map(|sum| sum / count)
    };
    let mut terms = LossTerms::new();
    for (name, value, weight) in [
        ("video_focal", mean(|s| &s.focal, masks), config.focal),
        ("video_dice", mean(|s| &s.dice, masks), config.dice),
        ("video_iou", mean(|s| &s.iou, masks), config.iou),
        ("video_object", mean(|s| &s.object, known), config.object),
    ] {
        if let Some(value) = value {
            terms = terms.with(name, value, weight);
        }
    }
    Ok(terms)
}

fn check(sam: &Sam2, batch: &VideoMaskBatch) -> Result<(), HeadsError> {
    let [clips, frames, channels, height, width] = batch.frames.dims();
    let side = sam.config().image_size;
    if clips * frames == 0 || [channels, height, width] != [3, side, side] {
        return Err(HeadsError::Shape {
            place: "video_losses",
            what: "frames",
            expected: format!("[clips, frames, 3, {side}, {side}], none of them zero"),
            found: batch.frames.dims().to_vec(),
        });
    }
    match batch.objects.iter().find(|o| o.clip >= clips) {
        None => Ok(()),
        Some(object) => Err(HeadsError::Shape {
            place: "video_losses",
            what: "the clip of an object",
            expected: format!("below {clips}"),
            found: vec![object.clip],
        }),
    }
}

fn follow(
    sam: &Sam2,
    frames: &[Sam2Features],
    objects: &[&VideoObject],
) -> Result<Unrolled, HeadsError> {
    let clips: Vec<usize> = objects.iter().map(|o| o.clip).collect();
    unroll(sam, frames, &clips, &first_prompts(objects, sam)?)
}

/// Sums of losses `[1]`, and how many rows they are of.
struct Sums {
    focal: Tensor<1>,
    dice: Tensor<1>,
    iou: Tensor<1>,
    object: Tensor<1>,
    /// Rows in which the object shows.
    masks: f64,
    /// Rows of which something is known.
    known: f64,
}

impl Sums {
    /// Of candidates that are alike in the number of masks; there is at least one.
    fn of(
        set: &[&Candidates],
        objects: &[&VideoObject],
        grid: [usize; 2],
        config: &Sam2TrainConfig,
    ) -> Result<Self, HeadsError> {
        let pixels = grid[0] * grid[1];
        let (mut logits, mut ious, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        let (mut cover, mut shown, mut known) = (Vec::new(), Vec::new(), Vec::new());
        for candidates in set {
            let output = &candidates.output;
            let chosen = if candidates.multimask {
                output.multiple()
            } else {
                output.single()
            };
            let [rows, masks, ..] = chosen.masks.dims();
            let dtype = FloatDType::F32;
            logits.push(chosen.masks.reshape([rows, masks, pixels]).cast(dtype));
            ious.push(chosen.iou.cast(dtype));
            scores.push(chosen.object_score.cast(dtype).reshape([rows]));
            for object in &objects[candidates.first..candidates.first + rows] {
                let truth = Truth::of(object, candidates.frame, grid)?;
                cover.extend(truth.cover);
                shown.push(f32::from(u8::from(truth.visible)));
                known.push(f32::from(u8::from(truth.known)));
            }
        }
        let logits = Tensor::cat(logits, 0);
        let [rows, masks, _] = logits.dims();
        let device = logits.device();
        let total = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>();
        let (mask_rows, known_rows) = (total(&shown), total(&known));
        let (shown, known) = (
            floats(shown, [rows], &device),
            floats(known, [rows], &device),
        );
        let truth: Tensor<3> = floats(cover, [rows, 1, pixels], &device);
        let truth = truth.expand([rows, masks, pixels]);
        let truth = truth.reshape([rows * masks, pixels]);
        let logits = logits.reshape([rows * masks, pixels]);

        let table = |x: Tensor<1>| x.reshape([rows, masks]);
        let focal = focal_loss(logits.clone(), truth.clone(), config.alpha, config.gamma);
        let dice = dice_loss(logits.clone(), truth.clone());
        let (focal, dice) = (table(focal), table(dice));
        let sum = focal.clone() * config.focal + dice.clone() * config.dice;
        let best = sum.detach().argmin(1);
        let actual = table(actual_iou(logits, truth));
        let iou = (Tensor::cat(ious, 0) - actual).abs().mean_dim(1);
        let of_best = |x: Tensor<2>| x.gather(1, best.clone()).reshape([rows]);
        let score = Tensor::cat(scores, 0);
        let magnitude = score.clone().abs().neg().exp().log1p();
        let object = relu(score.clone()) - score * shown.clone() + magnitude;
        Ok(Self {
            focal: (of_best(focal) * shown.clone()).sum(),
            dice: (of_best(dice) * shown.clone()).sum(),
            iou: (iou.reshape([rows]) * shown).sum(),
            object: (object * known).sum(),
            masks: mask_rows,
            known: known_rows,
        })
    }
}
