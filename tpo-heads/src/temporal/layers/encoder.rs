//! Post-norm transformer encoder.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear};
use tpo_vision::{DropPath, DropPathConfig};

use super::{PRelu, PReluConfig, SelfAttention, SelfAttentionConfig, WeightInit, linear};

/// Configuration of [`FeedForward`] and of the layers around it.
#[derive(Config, Debug)]
pub struct FeedForwardConfig {
    /// Width of input and output.
    pub d_model: usize,
    /// Width of the hidden layer.
    pub d_hidden: usize,
    /// Probability of dropping a hidden element while training.
    pub dropout: f64,
    /// Whether the weights start Xavier uniform (inside the transformer) or with PyTorch's default.
    pub in_transformer: bool,
}

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

impl FeedForwardConfig {
    /// Creates the layers.
    pub fn init(&self, device: &Device) -> FeedForward {
        let init = if self.in_transformer {
            WeightInit::Transformer
        } else {
            WeightInit::Default
        };
        FeedForward {
            linear1: linear(self.d_model, self.d_hidden, init, device),
            activation: PReluConfig::new().init(device),
            linear2: linear(self.d_hidden, self.d_model, init, device),
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

impl FeedForward {
    /// `[batch, length, d_model]` to the same.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = self.activation.forward(self.linear1.forward(x));
        self.linear2.forward(self.dropout.forward(hidden))
    }
}

/// Configuration of [`EncoderLayer`].
#[derive(Config, Debug)]
pub struct EncoderLayerConfig {
    /// The feed-forward part; its dropout rate is that of the whole layer.
    pub feed_forward: FeedForwardConfig,
    /// Number of attention heads.
    pub heads: usize,
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

impl EncoderLayerConfig {
    /// Creates the layer.
    pub fn init(&self, device: &Device) -> EncoderLayer {
        let ff = &self.feed_forward;
        let norm = LayerNormConfig::new(ff.d_model);
        EncoderLayer {
            self_attn: SelfAttentionConfig::new(ff.d_model, self.heads, ff.dropout).init(device),
            feed_forward: ff.init(device),
            norm1: norm.init(device),
            norm2: norm.init(device),
            drop_path: DropPathConfig::new(ff.dropout).init(),
        }
    }
}

impl EncoderLayer {
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

/// Configuration of [`Encoder`].
#[derive(Config, Debug)]
pub struct EncoderConfig {
    /// Every layer.
    pub layer: EncoderLayerConfig,
    /// How many.
    pub depth: usize,
}

/// Encoder layers one after another.
#[derive(Module, Debug)]
pub struct Encoder {
    /// In order.
    pub layers: Vec<EncoderLayer>,
}

impl EncoderConfig {
    /// Creates the layers.
    pub fn init(&self, device: &Device) -> Encoder {
        Encoder {
            layers: (0..self.depth).map(|_| self.layer.init(device)).collect(),
        }
    }
}

impl Encoder {
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
