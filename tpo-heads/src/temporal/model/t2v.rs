//! Adaptive cross-attention of the video to the text, with dummy tokens that soak up the weight of
//! clips the text says nothing about (CG-DETR, arXiv 2311.08835, section 3.1).

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::nn::{
    LayerNorm, LayerNormConfig, Linear, LinearConfig, drops, merge_heads, split_heads,
};
use tpo_core::ops;
use tpo_vision::{DropPath, DropPathConfig};

use crate::temporal::layers::{FeedForward, LayerSizes};

/// The text side of the attention.
#[derive(Debug, Clone)]
pub struct TextKeys {
    /// Dummy tokens, then the text `[batch, dummies + tokens, d_model]`.
    pub values: Tensor<3>,
    /// Their positions, same shape.
    pub positions: Tensor<3>,
    /// `true` hides a key from a query: `[batch, heads or 1, clips or 1, dummies + tokens]`.
    pub hidden: Tensor<4, Bool>,
    /// How many keys in front are dummies.
    pub dummies: usize,
}

/// Attention **without input projections**: queries, keys and values are the inputs themselves.
/// The soft-max runs over dummies and text, only the text is summed up.
#[derive(Module, Debug)]
pub struct AdaptiveCrossAttention {
    /// `[d_model, d_model]`.
    pub out_proj: Linear,
    /// Of attention weights.
    pub dropout: Dropout,
    heads: usize,
}

impl AdaptiveCrossAttention {
    /// Xavier uniform, bias zero.
    fn new(sizes: &LayerSizes, device: &Device) -> Self {
        Self {
            out_proj: LinearConfig::new(sizes.d_model, sizes.d_model).init(device),
            dropout: DropoutConfig::new(sizes.dropout).init(),
            heads: sizes.heads,
        }
    }

    /// Attention output and the weights averaged over heads.
    ///
    /// # Shapes
    /// - query `[batch, clips, d_model]`, positions included
    /// - outputs `[batch, clips, d_model]` and `[batch, clips, dummies + tokens]`
    pub fn forward(&self, query: Tensor<3>, text: &TextKeys) -> (Tensor<3>, Tensor<3>) {
        let [batch, clips, d] = query.dims();
        let keys = text.values.dims()[1];
        let heads = self.heads;
        let scale = ((d / heads) as f64).powf(-0.5);
        let q = split_heads(query * scale, heads);
        let k = split_heads(text.values.clone() + text.positions.clone(), heads);
        let v = split_heads(text.values.clone(), heads);
        let hidden = text.hidden.clone();
        // Finite, for half precision; the dummies keep every row alive.
        let scores = q
            .matmul(k.swap_dims(2, 3))
            .mask_fill(hidden.expand([batch, heads, clips, keys]), -6e4);
        let weights = ops::softmax_last(scores);
        let tokens = keys - text.dummies;
        let dropped = if drops(&self.dropout, &weights.device()) {
            self.dropout.forward(weights.clone())
        } else {
            weights.clone()
        };
        let out = dropped
            .narrow(3, text.dummies, tokens)
            .matmul(v.narrow(2, text.dummies, tokens));
        let mean = weights.mean_dim(1).reshape([batch, clips, keys]);
        (self.out_proj.forward(merge_heads(out)), mean)
    }

    /// What a query without keys gets: the bias of the output projection, as `[1, 1, d_model]`.
    fn nothing(&self, like: &Tensor<3>) -> Tensor<3> {
        let d = like.dims()[2];
        match &self.out_proj.bias {
            Some(bias) => bias.val().reshape([1, 1, d]),
            None => Tensor::zeros([1, 1, d], (&like.device(), like.dtype())),
        }
    }
}

/// One layer: attention and feed-forward with residuals.
#[derive(Module, Debug)]
pub struct T2vLayer {
    /// The attention.
    pub self_attn: AdaptiveCrossAttention,
    /// The feed-forward part.
    pub feed_forward: FeedForward,
    /// Before the feed-forward part; the residual goes around it.
    pub norm1: LayerNorm,
    /// At the end.
    pub norm2: LayerNorm,
    /// Stochastic depth of both branches, per sample.
    pub drop_path: DropPath,
}

impl T2vLayer {
    fn after_attention(&self, x: Tensor<3>, attended: Tensor<3>) -> Tensor<3> {
        let [batch, clips, d] = x.dims();
        let attended = attended.expand([batch, clips, d]);
        let x = x + self.drop_path.forward(attended);
        let branch = self.feed_forward.forward(self.norm1.forward(x.clone()));
        self.norm2.forward(x + self.drop_path.forward(branch))
    }
}

/// Text-to-video encoder: the video takes up what the text says about it; the text stays.
#[derive(Module, Debug)]
pub struct T2vEncoder {
    /// In order.
    pub layers: Vec<T2vLayer>,
}

impl T2vEncoder {
    pub(super) fn new(sizes: &LayerSizes, depth: usize, device: &Device) -> Self {
        let norm = LayerNormConfig::new(sizes.d_model);
        let layer = || T2vLayer {
            self_attn: AdaptiveCrossAttention::new(sizes, device),
            feed_forward: FeedForward::new(sizes, device),
            norm1: norm.init(device),
            norm2: norm.init(device),
            drop_path: DropPathConfig::new(sizes.dropout).init(),
        };
        Self {
            layers: (0..depth).map(|_| layer()).collect(),
        }
    }

    /// The video after all layers, and the attention weights averaged over heads and layers.
    ///
    /// # Shapes
    /// - video and positions `[batch, clips, d_model]`
    /// - outputs `[batch, clips, d_model]` and `[batch, clips, dummies + tokens]`
    pub fn forward(
        &self,
        video: Tensor<3>,
        positions: Tensor<3>,
        text: &TextKeys,
    ) -> (Tensor<3>, Tensor<3>) {
        let mut x = video;
        let mut sum: Option<Tensor<3>> = None;
        for layer in &self.layers {
            let (attended, weights) = layer.self_attn.forward(x.clone() + positions.clone(), text);
            x = layer.after_attention(x, attended);
            sum = Some(match sum {
                Some(sum) => sum + weights,
                None => weights,
            });
        }
        let depth = self.layers.len().max(1) as f64;
        let weights = sum.unwrap_or_else(|| {
            let [batch, clips, _] = x.dims();
            Tensor::zeros(
                [batch, clips, text.values.dims()[1]],
                (&x.device(), x.dtype()),
            )
        });
        (x, weights / depth)
    }

    /// The same layers on a token that has no text to attend to: the reference sends its saliency
    /// token through with a key range that is empty.
    pub fn forward_alone(&self, token: Tensor<3>) -> Tensor<3> {
        self.layers.iter().fold(token, |x, layer| {
            let nothing = layer.self_attn.nothing(&x);
            layer.after_attention(x, nothing)
        })
    }
}
