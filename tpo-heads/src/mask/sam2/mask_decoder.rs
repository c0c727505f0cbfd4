//! Masks from an image embedding and prompt tokens.

use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, FloatDType, Int, Tensor};
use tpo_core::nn::{
    Conv2d, Conv2dConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Mlp, MlpConfig,
    UpConv2x2,
};
use tpo_core::ops;

use super::config::MaskDecoderConfig;
use super::prompt_encoder::{MAP_NORM_EPS, PromptEmbedding};
use super::two_way::TwoWayTransformer;
use crate::HeadsError;

/// Two transposed convolutions that quadruple the sides.
#[derive(Module, Debug)]
pub struct MaskUpscaling {
    /// Doubles the sides, `dim` to `dim / 4` channels.
    pub conv1: UpConv2x2,
    /// After `conv1` and the coarser high-resolution feature.
    pub norm: LayerNorm,
    /// Doubles the sides again, to `dim / 8` channels.
    pub conv2: UpConv2x2,
}

/// The mask decoder.
#[derive(Module, Debug)]
pub struct MaskDecoder {
    /// Tokens and pixels attend to each other.
    pub transformer: TwoWayTransformer,
    /// Token of the IoU prediction `[1, dim]`.
    pub iou_token: Embedding,
    /// Tokens of the masks `[1 + multimask outputs, dim]`.
    pub mask_tokens: Embedding,
    /// Token of the object score `[1, dim]`.
    pub obj_score_token: Embedding,
    /// From the image embedding to the resolution of the masks.
    pub output_upscaling: MaskUpscaling,
    /// Makes the feature of stride 4 for the decoder.
    pub conv_s0: Conv2d,
    /// Makes the feature of stride 8 for the decoder.
    pub conv_s1: Conv2d,
    /// From a mask token to the weights of its mask, one per token.
    pub output_hypernetworks_mlps: Vec<Mlp>,
    /// Predicts the IoU of every mask.
    pub iou_prediction_head: Mlp,
    /// Predicts the object score.
    pub pred_obj_score_head: Mlp,
    #[module(skip)]
    config: MaskDecoderConfig,
}

/// What the decoder predicts: everything, the single mask first, or the masks chosen from it.
#[derive(Debug, Clone)]
pub struct MaskDecoderOutput {
    /// Logits `[batch, masks, 4·rows, 4·columns]`; of everything `1 + multimask outputs` masks.
    pub masks: Tensor<4>,
    /// Predicted IoU `[batch, masks]`.
    pub iou: Tensor<2>,
    /// Tokens the object pointer is made of: those of the masks, or the single mask's token alone,
    /// `[batch, tokens, dim]`.
    pub tokens: Tensor<3>,
    /// Logit of the object being visible `[batch, 1]`.
    pub object_score: Tensor<2>,
}

impl MaskDecoderConfig {
    /// Creates the decoder. Values are drawn on first use.
    pub fn init(&self, device: &Device) -> MaskDecoder {
        let dim = self.dim;
        let (quarter, eighth) = (dim / 4, dim / 8);
        let masks = self.num_multimask_outputs + 1;
        let token = |rows| EmbeddingConfig::new(rows, dim).with_std(1.0).init(device);
        let high_res = |channels: usize| Conv2dConfig::new(dim, channels, 1).init(device);
        let mut iou_widths = vec![dim];
        iou_widths.extend(vec![
            self.iou_head_hidden_dim;
            self.iou_head_depth.saturating_sub(1)
        ]);
        iou_widths.push(masks);
        MaskDecoder {
            transformer: TwoWayTransformer::new(self, device),
            iou_token: token(1),
            mask_tokens: token(masks),
            obj_score_token: token(1),
            output_upscaling: MaskUpscaling {
                conv1: UpConv2x2::new(dim, quarter, device),
                norm: LayerNormConfig::new(quarter)
                    .with_eps(MAP_NORM_EPS)
                    .init(device),
                conv2: UpConv2x2::new(quarter, eighth, device),
            },
            conv_s0: high_res(eighth),
            conv_s1: high_res(quarter),
            output_hypernetworks_mlps: (0..masks)
                .map(|_| MlpConfig::new(vec![dim, dim, dim, eighth]).init(device))
                .collect(),
            iou_prediction_head: MlpConfig::new(iou_widths).init(device),
            pred_obj_score_head: MlpConfig::new(vec![dim, dim, dim, 1]).init(device),
            config: self.clone(),
        }
    }
}

impl MaskDecoder {
    /// The architecture.
    pub fn config(&self) -> &MaskDecoderConfig {
        &self.config
    }

    /// Predicts all masks.
    ///
    /// # Shapes
    /// - `image` `[batch or 1, rows, columns, dim]`; one image serves all prompts of the batch
    /// - `positions` `[1, rows, columns, dim]`, [`PromptEncoder::dense_encoding`]
    /// - `prompt` for `batch` items
    /// - `high_res` `[batch or 1, 4·rows, 4·columns, dim / 8]` and `[batch or 1, 2·rows, 2·columns,
    ///   dim / 4]`
    ///
    /// # Errors
    /// [`HeadsError::Shape`] for tensors that do not fit together.
    ///
    /// [`PromptEncoder::dense_encoding`]: super::PromptEncoder::dense_encoding
    pub fn forward(
        &self,
        image: Tensor<4>,
        positions: Tensor<4>,
        prompt: &PromptEmbedding,
        high_res: &[Tensor<4>; 2],
    ) -> Result<MaskDecoderOutput, HeadsError> {
        let [batch, prompts, _] = prompt.sparse.dims();
        self.check(&image, &positions, prompt, high_res)?;
        let [_, rows, columns, dim] = image.dims();

        let tokens = [&self.obj_score_token, &self.iou_token, &self.mask_tokens];
        let dtype = image.dtype();
        let tokens = Tensor::cat(tokens.map(|t| t.weight.val().cast(dtype)).to_vec(), 0);
        let own = tokens.dims()[0];
        let mut tokens = tokens.unsqueeze::<3>().expand([batch, own, dim]);
        if prompts > 0 {
            tokens = Tensor::cat(vec![tokens, prompt.sparse.clone().cast(dtype)], 1);
        }
        let pixels = image + prompt.dense.clone().cast(dtype);
        let pixels = pixels.reshape([batch, rows * columns, dim]);
        let positions = positions
            .cast(dtype)
            .reshape([1, rows * columns, dim])
            .expand([batch, rows * columns, dim]);
        let (tokens, pixels) = self.transformer.forward(pixels, positions, tokens);

        let masks = self.output_hypernetworks_mlps.len();
        let mask_tokens = tokens.clone().narrow(1, 2, masks);
        let pixels = self.upscale(pixels.reshape([batch, rows, columns, dim]), high_res);
        let channels = pixels.dims()[3];
        let weights = self
            .output_hypernetworks_mlps
            .iter()
            .enumerate()
            .map(|(i, mlp)| mlp.forward(mask_tokens.clone().narrow(1, i, 1)))
            .collect();
        let weights: Tensor<3> = Tensor::cat(weights, 1);
        let pixels = pixels.reshape([batch, 16 * rows * columns, channels]);
        let logits =
            weights
                .matmul(pixels.swap_dims(1, 2))
                .reshape([batch, masks, 4 * rows, 4 * columns]);

        let iou = self
            .iou_prediction_head
            .forward(tokens.clone().narrow(1, 1, 1))
            .reshape([batch, masks]);
        let object = tokens.narrow(1, 0, 1).reshape([batch, dim]);
        Ok(MaskDecoderOutput {
            masks: logits,
            iou: sigmoid(iou),
            tokens: mask_tokens,
            object_score: self.pred_obj_score_head.forward(object),
        })
    }

    /// Four times the sides, with the high-resolution features added on the way.
    fn upscale(&self, pixels: Tensor<4>, high_res: &[Tensor<4>; 2]) -> Tensor<4> {
        let up = &self.output_upscaling;
        let x = up.conv1.forward(pixels) + high_res[1].clone();
        let x = ops::gelu(up.norm.forward(x));
        ops::gelu(up.conv2.forward(x) + high_res[0].clone())
    }

    fn check(
        &self,
        image: &Tensor<4>,
        positions: &Tensor<4>,
        prompt: &PromptEmbedding,
        high_res: &[Tensor<4>; 2],
    ) -> Result<(), HeadsError> {
        let shape = |what: &'static str, expected: String, found: &[usize]| {
            Err(HeadsError::Shape {
                place: "MaskDecoder::forward",
                what,
                expected,
                found: found.to_vec(),
            })
        };
        let dim = self.config.dim;
        let [batch, _, token_dim] = prompt.sparse.dims();
        let [images, rows, columns, image_dim] = image.dims();
        if (images != batch && images != 1) || image_dim != dim || batch == 0 {
            let expected = format!("[{batch} or 1, rows, columns, {dim}], one item at least");
            return shape("image embedding", expected, &image.dims());
        }
        if token_dim != dim {
            let expected = format!("[batch, tokens, {dim}]");
            return shape("prompt tokens", expected, &prompt.sparse.dims());
        }
        if prompt.dense.dims() != [batch, rows, columns, dim] {
            let expected = format!("[{batch}, {rows}, {columns}, {dim}]");
            return shape("dense prompt", expected, &prompt.dense.dims());
        }
        if positions.dims() != [1, rows, columns, dim] {
            let expected = format!("[1, {rows}, {columns}, {dim}]");
            return shape("pixel positions", expected, &positions.dims());
        }
        for (at, feature) in high_res.iter().enumerate() {
            let (factor, channels) = [(4, dim / 8), (2, dim / 4)][at];
            let [n, h, w, c] = feature.dims();
            if (n != batch && n != 1) || [h, w, c] != [factor * rows, factor * columns, channels] {
                let expected = format!(
                    "[{batch} or 1, {}, {}, {channels}]",
                    factor * rows,
                    factor * columns
                );
                return shape("high-resolution feature", expected, &feature.dims());
            }
        }
        Ok(())
    }
}

impl MaskDecoderOutput {
    /// The masks for an ambiguous prompt: all but the first.
    pub fn multiple(&self) -> Self {
        self.columns(1, self.masks.dims()[1] - 1)
    }

    /// The mask for a clear prompt: the first.
    pub fn single(&self) -> Self {
        self.columns(0, 1)
    }

    fn columns(&self, first: usize, n: usize) -> Self {
        Self {
            masks: self.masks.clone().narrow(1, first, n),
            iou: self.iou.clone().narrow(1, first, n),
            tokens: self.tokens.clone().narrow(1, first, n),
            object_score: self.object_score.clone(),
        }
    }

    /// How stable the single mask is under shifts of the threshold, `[batch, 1]`: its area above
    /// `delta` over that above `-delta`; 1 where the latter is empty.
    pub fn stability(&self, delta: f64) -> Tensor<2> {
        let logits = self
            .masks
            .clone()
            .narrow(1, 0, 1)
            .flatten::<2>(1, 3)
            .cast(FloatDType::F32);
        let inner = logits.clone().greater_scalar(delta).float().sum_dim(1);
        let outer = logits.greater_scalar(-delta).float().sum_dim(1);
        let empty = outer.clone().equal_scalar(0.0);
        let ratio = inner / outer.mask_fill(empty.clone(), 1.0);
        ratio.mask_fill(empty, 1.0)
    }

    /// The single mask where its [`stability`](Self::stability) reaches `threshold`, else the one
    /// of the others with the best predicted IoU. The token is the single mask's in either case.
    pub fn stable(&self, delta: f64, threshold: f64) -> Self {
        let single = self.single();
        let best = self.multiple().best();
        let [batch, _, height, width] = single.masks.dims();
        let unstable = self.stability(delta).lower_scalar(threshold);
        let masks = single.masks.mask_where(
            unstable
                .clone()
                .reshape([batch, 1, 1, 1])
                .expand([batch, 1, height, width]),
            best.masks,
        );
        Self {
            masks,
            iou: single.iou.mask_where(unstable, best.iou),
            tokens: single.tokens,
            object_score: single.object_score,
        }
    }

    /// The mask with the best predicted IoU of every item. Its token goes with it if the tokens
    /// are those of the masks.
    pub fn best(&self) -> Self {
        let [batch, masks, height, width] = self.masks.dims();
        let [_, tokens, dim] = self.tokens.dims();
        let index: Tensor<2, Int> = self.iou.clone().argmax(1);
        let pick = index
            .clone()
            .reshape([batch, 1, 1, 1])
            .expand([batch, 1, height, width]);
        let token = if tokens == masks {
            let pick = index.clone().reshape([batch, 1, 1]).expand([batch, 1, dim]);
            self.tokens.clone().gather(1, pick)
        } else {
            self.tokens.clone()
        };
        Self {
            masks: self.masks.clone().gather(1, pick),
            iou: self.iou.clone().gather(1, index),
            tokens: token,
            object_score: self.object_score.clone(),
        }
    }
}
