//! Post-norm transformer encoder.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear};
use tpo_vision::{DropPath, DropPathConfig};

use super::{LayerSizes, PRelu, SelfAttention, linear};

/// Linear, PReLU, dropout, linear. Its parameters lie in the layer around it, as the reference
/// names them.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// `[d_hidden, d_model]`.
    pub linear1: Linear,
    /// After the first layer.
    pub activation: PRelu,
    /// `[d_model, d_hidden]`.
    pub linear2: Linear,
    /// Of the hidden layer.
    pub dropout: Dropout,
}

impl FeedForward {
    pub(in crate::temporal) fn new(sizes: &LayerSizes, device: &Device) -> Self {
        let (d, hidden) = (sizes.d_model, sizes.d_hidden);
        Self {
            linear1: linear(d, hidden, sizes.init, device),
            activation: PRelu::new(device),
            linear2: linear(hidden, d, sizes.init, device),
            dropout: DropoutConfig::new(sizes.dropout).init(),
        }
    }

    /// `[batch, length, d_model]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = self.activation.forward(self.linear1.forward(x));
        self.linear2.forward(self.dropout.forward(hidden))
    }
}

/// Self-attention and feed-forward, each with a residual and a norm after it.
#[derive(Module, Debug)]
pub struct EncoderLayer {
    /// Attention of the sequence to itself.
    pub self_attn: SelfAttention,
    /// The feed-forward part.
    pub feed_forward: FeedForward,
    /// After attention.
    pub norm1: LayerNorm,
    /// After the feed-forward part.
    pub norm2: LayerNorm,
    /// Stochastic depth of both branches, per sample (reference implementation).
    pub drop_path: DropPath,
}

impl EncoderLayer {
    fn new(sizes: &LayerSizes, device: &Device) -> Self {
        let norm = LayerNormConfig::new(sizes.d_model);
        Self {
            self_attn: SelfAttention::new(sizes, device),
            feed_forward: FeedForward::new(sizes, device),
            norm1: norm.init(device),
            norm2: norm.init(device),
            drop_path: DropPathConfig::new(sizes.dropout).init(),
        }
    }

    /// # Shapes
    /// As [`SelfAttention::forward`].
    pub fn forward(
        &self,
        x: Tensor<3>,
        positions: Tensor<3>,
        padding: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let branch = self.self_attn.forward(x.clone(), positions, padding);
        let x = self.norm1.forward(x + self.drop_path.forward(branch));
        let branch = self.feed_forward.forward(x.clone());
        self.norm2.forward(x + self.drop_path.forward(branch))
    }
}

/// Encoder layers one after another.
#[derive(Module, Debug)]
pub struct Encoder {
    /// In order.
    pub layers: Vec<EncoderLayer>,
}

impl Encoder {
    pub(in crate::temporal) fn new(sizes: &LayerSizes, depth: usize, device: &Device) -> Self {
        Self {
            layers: (0..depth)
                .map(|_| EncoderLayer::new(sizes, device))
                .collect(),
        }
    }

    /// # Shapes
    /// As [`SelfAttention::forward`].
    pub fn forward(
        &self,
        x: Tensor<3>,
        positions: Tensor<3>,
        padding: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        self.layers.iter().fold(x, |x, layer| {
            layer.forward(x, positions.clone(), padding.clone())
        })
    }
}
