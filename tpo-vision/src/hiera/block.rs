//! A block of the trunk.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig, in_parts};
use tpo_core::ops::{self, WindowAttention};

use super::config::{BlockShape, HieraConfig};
use crate::drop_path::{DropPath, DropPathConfig};

/// Pixels of a batch that go through a block's windows or its MLP at once, without gradients: the hidden layer and
/// the queries, keys and values of a whole large image take most of the memory.
const PIXELS: usize = 2048;

/// Multi-head attention within windows, with pooled queries where a stage begins.
#[derive(Module, Debug)]
pub struct HieraAttention {
    /// Projection to query, key and value, `[3·dim_out, dim]`.
    pub qkv: Linear,
    /// Output projection `[dim_out, dim_out]`.
    pub proj: Linear,
    #[module(skip)]
    options: WindowAttention,
}

/// The two layers of a block's MLP, `layers.0` and `layers.1`, with an exact (erf) GELU between.
#[derive(Module, Debug)]
pub struct HieraMlp {
    /// The layers.
    pub layers: Vec<Linear>,
}

/// A pre-norm block. Where a stage begins, `proj` widens the shortcut and both branches are
/// max-pooled.
#[derive(Module, Debug)]
pub struct HieraBlock {
    /// Norm before the attention.
    pub norm1: LayerNorm,
    /// The attention.
    pub attn: HieraAttention,
    /// Norm before the MLP.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: HieraMlp,
    /// Widens the normed input to the shortcut of a block that changes the width.
    pub proj: Option<Linear>,
    /// Stochastic depth of both branches.
    pub drop_path: DropPath,
}

impl HieraAttention {
    /// `[batch, height, width, dim]` to `[batch, height, width, dim_out]`, sides halved if the
    /// block pools.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let qkv = self.qkv.forward(x);
        let padding = match &self.qkv.bias {
            // Padding is zero before the projection.
            Some(bias) => bias.val().cast(qkv.dtype()),
            None => Tensor::zeros([qkv.dims()[3]], (&qkv.device(), qkv.dtype())),
        };
        self.proj
            .forward(ops::window_attention(qkv, padding, self.options))
    }
}

impl HieraMlp {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let last = self.layers.len().saturating_sub(1);
        self.layers.iter().enumerate().fold(x, |x, (at, layer)| {
            let x = layer.forward(x);
            if at < last { ops::gelu(x) } else { x }
        })
    }
}

impl HieraBlock {
    pub(super) fn new(
        config: &HieraConfig,
        shape: BlockShape,
        drop_path: f64,
        device: &Device,
    ) -> Self {
        let BlockShape {
            dim,
            dim_out,
            heads,
            window,
            pool,
            ..
        } = shape;
        let norm = |width: usize| {
            LayerNormConfig::new(width)
                .with_eps(config.layer_norm_eps)
                .init(device)
        };
        let linear = |from: usize, to: usize| LinearConfig::new(from, to).init(device);
        let hidden = dim_out * config.mlp_ratio;
        Self {
            norm1: norm(dim),
            attn: HieraAttention {
                qkv: linear(dim, 3 * dim_out),
                proj: linear(dim_out, dim_out),
                options: WindowAttention {
                    heads,
                    window,
                    pool,
                },
            },
            norm2: norm(dim_out),
            mlp: HieraMlp {
                layers: vec![linear(dim_out, hidden), linear(hidden, dim_out)],
            },
            proj: (dim != dim_out).then(|| linear(dim, dim_out)),
            drop_path: DropPathConfig::new(drop_path).init(),
        }
    }

    /// `[batch, height, width, dim]` to `[batch, height, width, dim_out]`, sides halved if the
    /// block pools.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self.attn.options.window {
            // Windows do not look at each other.
            Some(window) => {
                let rows = rows_of_a_part(&x);
                in_parts(x, 1, rows, window, |x| self.run(x))
            }
            None => self.run(x),
        }
    }

    fn run(&self, x: Tensor<4>) -> Tensor<4> {
        let normed = self.norm1.forward(x.clone());
        let shortcut = match &self.proj {
            None => x,
            Some(proj) => {
                let shortcut = proj.forward(normed.clone());
                if self.attn.options.pool {
                    ops::max_pool_2x2(shortcut)
                } else {
                    shortcut
                }
            }
        };
        let x = shortcut + self.drop_path.forward(self.attn.forward(normed));
        let rows = rows_of_a_part(&x);
        in_parts(x, 1, rows, 1, |x| {
            let branch = self.mlp.forward(self.norm2.forward(x.clone()));
            x + self.drop_path.forward(branch)
        })
    }
}

/// Rows of a map `[batch, height, width, dim]` with [`PIXELS`] pixels.
fn rows_of_a_part(x: &Tensor<4>) -> usize {
    let [batch, _, width, _] = x.dims();
    PIXELS / (batch * width).max(1)
}
