//! Supervision by masks through the frozen decoder.

use std::collections::HashMap;

use burn::module::Module;
use burn::tensor::{FloatDType, Tensor, TensorData};
use tpo_core::head::{FrameSource, HeadContext, LossTerms};
use tpo_core::{CoreError, Result};

use super::head::{HEAD, MaskHead, MaskOutput};
use super::loss::{MaskSupervision, SupervisedMask, actual_iou, dice_loss, focal_loss};
use super::sam2::{PromptEmbedding, Sam2, Sam2Features};
use super::target::{MaskTarget, coverage};
use super::track::VideoFrame;
use crate::HeadsError;

/// The frames of the `token`-th task token.
pub(super) fn require_frames<'a>(
    context: &HeadContext<'a>,
    token: usize,
) -> Result<&'a (dyn FrameSource + 'static)> {
    context
        .sample(token)
        .and_then(|s| s.frames.as_deref())
        .ok_or_else(|| CoreError::MissingInput {
            head: HEAD.into(),
            what: "the frames of the video or image",
            hint: "set Sample::frames",
        })
}

/// Losses of one mask, `[1]` each.
struct Supervised {
    focal: Tensor<1>,
    dice: Tensor<1>,
    iou: Tensor<1>,
}

/// Adds the terms `focal`, `dice` and `iou`, means over all supervised masks of the batch.
pub(super) fn supervise(
    head: &MaskHead,
    config: &MaskSupervision,
    output: &MaskOutput,
    targets: &[MaskTarget],
    context: &HeadContext<'_>,
    terms: LossTerms,
) -> Result<LossTerms> {
    let tracked = output.prompt.gradient_checkpointing_strategy().is_some();
    // Images have no path to the prompt, so their encoder runs without a graph.
    let encoder = head.sam.valid();
    // The decoder lies between the prompt and the loss: on the graph, its parameters not.
    let decoder = head.sam.clone().no_grad();
    let mut encoded: HashMap<(usize, usize), Sam2Features> = HashMap::new();
    let mut all = Vec::new();
    for (token, target) in targets.iter().enumerate() {
        let prompt = output.prompt.clone().narrow(0, token, 1);
        for given in target.masks.iter().take(config.max_frames) {
            let sample = context.rows.get(token).copied().unwrap_or(token);
            let features = match encoded.get(&(sample, given.frame)) {
                Some(features) => features.clone(),
                None => {
                    let source = require_frames(context, token)?;
                    let features = encode(&encoder, source, given.frame)?;
                    let features = if tracked {
                        on_graph(features, &prompt)
                    } else {
                        features
                    };
                    encoded.insert((sample, given.frame), features.clone());
                    features
                }
            };
            let mask = given.mask.decode()?;
            let [rows, columns] = decoder.config().prompt_encoder.grid().map(|n| 4 * n);
            let values = coverage(&mask, rows, columns)?;
            let truth = TensorData::new(values, [1, rows * columns]);
            let truth = Tensor::<2>::from_data(truth, &prompt.device()).cast(FloatDType::F32);
            all.push(compare(&decoder, config, features, prompt.clone(), truth)?);
        }
    }
    if all.is_empty() {
        return Ok(terms);
    }
    let mean =
        |part: fn(&Supervised) -> Tensor<1>| Tensor::cat(all.iter().map(part).collect(), 0).mean();
    Ok(terms
        .with("focal", mean(|s| s.focal.clone()), config.focal)
        .with("dice", mean(|s| s.dice.clone()), config.dice)
        .with("iou", mean(|s| s.iou.clone()), config.iou))
}

fn encode(sam: &Sam2, source: &dyn FrameSource, frame: usize) -> Result<Sam2Features> {
    let like = sam.no_mem_embed.val();
    let image = source.frame(frame, sam.config().image_size)?;
    let image = image.inner().to_device(&like.device());
    let image = VideoFrame::from_unit_range(image, [1, 1]).image;
    Ok(sam.encode_image(image.cast(like.dtype()))?)
}

/// The features as constants of the graph that `like` is on.
pub(super) fn on_graph(features: Sam2Features, like: &Tensor<3>) -> Sam2Features {
    let Some(strategy) = like.gradient_checkpointing_strategy() else {
        return features;
    };
    features.map(|x| x.autodiff().with_gradient_checkpointing_strategy(strategy))
}

fn compare(
    decoder: &Sam2,
    config: &MaskSupervision,
    features: Sam2Features,
    prompt: Tensor<3>,
    truth: Tensor<2>,
) -> std::result::Result<Supervised, HeadsError> {
    let prompt = PromptEmbedding {
        sparse: prompt,
        dense: decoder.sam_prompt_encoder.no_mask(1),
    };
    let embedding = decoder.without_memory(features.embedding);
    let output = decoder.decode(embedding, features.high_res.as_ref(), &prompt)?;
    let chosen = match config.mask {
        SupervisedMask::Single => output.single(),
        SupervisedMask::BestOfSeveral => output.multiple(),
    };
    let [_, masks, rows, columns] = chosen.masks.dims();
    let logits = chosen
        .masks
        .cast(FloatDType::F32)
        .reshape([masks, rows * columns]);
    let truth = truth.expand([masks, rows * columns]);
    let focal = focal_loss(logits.clone(), truth.clone(), config.alpha, config.gamma);
    let dice = dice_loss(logits.clone(), truth.clone());
    let predicted = chosen.iou.cast(FloatDType::F32).reshape([masks]);
    let iou = (predicted - actual_iou(logits, truth)).abs();
    let best = match config.mask {
        SupervisedMask::Single => 0,
        SupervisedMask::BestOfSeveral => {
            let sum = focal.clone() * config.focal + dice.clone() * config.dice;
            lowest(sum)
        }
    };
    Ok(Supervised {
        focal: focal.narrow(0, best, 1),
        dice: dice.narrow(0, best, 1),
        iou: iou.narrow(0, best, 1),
    })
}

fn lowest(values: Tensor<1>) -> usize {
    let values: Vec<f32> = values.detach().into_data().iter::<f32>().collect();
    (0..values.len())
        .min_by(|a, b| values[*a].total_cmp(&values[*b]))
        .unwrap_or(0)
}
