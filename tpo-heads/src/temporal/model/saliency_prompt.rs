//! The moment-adaptive saliency token (CG-DETR, section 3.3): the context of the video plus those
//! of its learned prompts that the clips spoken of in the text resemble.

use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, Tensor};

/// `x / max(‖x‖, 1e-12)` over the last axis.
pub(in crate::temporal) fn normalise<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let norm = x.clone().square().sum_dim(D - 1).sqrt();
    x / norm.clamp_min(1e-12)
}

/// The token `[batch, 1, d_model]`.
///
/// # Shapes
/// - video `[batch, clips, d_model]`, context `[batch, 1, d_model]`
/// - prompts `[prompts, d_model]`, of which the `keep` most similar are used
/// - text_weight `[batch, clips]`, the attention every clip gave to the text, zero on padding
pub(super) fn saliency_prompt(
    video: Tensor<3>,
    context: Tensor<3>,
    prompts: Tensor<2>,
    keep: usize,
    text_weight: Tensor<2>,
) -> Tensor<3> {
    let [batch, clips, d] = video.dims();
    let count = prompts.dims()[0];
    let dtype = video.dtype();
    let like =
        normalise((video - context.clone()).cast(FloatDType::F32)).reshape([batch * clips, d]);
    let rows = normalise(prompts.clone().cast(FloatDType::F32));
    let similarity = softmax(like.matmul(rows.transpose()), 1).reshape([batch, clips, count]);
    // Importance sums to the number of clips, then the mean over clips is taken: together the
    // share of each clip in the whole.
    let weight = text_weight.cast(FloatDType::F32).detach();
    let share = weight.clone() / weight.sum_dim(1);
    let scores = share
        .reshape([batch, 1, clips])
        .matmul(similarity)
        .reshape([batch, count]);
    let keep = keep.clamp(1, count);
    let (_, at) = scores.clone().detach().topk_with_indices(keep, 1);
    let chosen = scores.gather(1, at.clone()).reshape([batch, 1, keep]);
    let rows = prompts
        .select(0, at.reshape([batch * keep]))
        .reshape([batch, keep, d]);
    chosen.cast(dtype).matmul(rows) + context
}
