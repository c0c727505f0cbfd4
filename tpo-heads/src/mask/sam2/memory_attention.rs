//! A frame's features attend to memories.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};

use super::attention::Attention;
use super::config::MemoryAttentionConfig;
use super::rope::AxialRope;
use crate::HeadsError;

/// Share of the position encoding that is added to the input (reference implementation).
const INPUT_POSITIONS: f64 = 0.1;

/// Self-attention, attention to the memories and an MLP, each after a norm and with a residual.
#[derive(Module, Debug)]
pub struct MemoryAttentionLayer {
    /// Pixels to pixels, with rotary positions.
    pub self_attn: Attention,
    /// Pixels to memories, with rotary positions.
    pub cross_attn_image: Attention,
    /// To the hidden width.
    pub linear1: Linear,
    /// Back.
    pub linear2: Linear,
    /// Before the self-attention.
    pub norm1: LayerNorm,
    /// Before the attention to the memories.
    pub norm2: LayerNorm,
    /// Before the MLP.
    pub norm3: LayerNorm,
    /// On all three branches and within the MLP, in training.
    pub dropout: Dropout,
}

/// The memory attention.
#[derive(Module, Debug)]
pub struct MemoryAttention {
    /// The layers.
    pub layers: Vec<MemoryAttentionLayer>,
    /// After the last layer.
    pub norm: LayerNorm,
    #[module(skip)]
    config: MemoryAttentionConfig,
}

/// What a frame attends to.
#[derive(Debug, Clone)]
pub struct MemoryInput {
    /// Memories of whole frames one after the other, then object pointers cut to the same width:
    /// `[batch, keys, memory_dim]`.
    pub memory: Tensor<3>,
    /// Position encodings of the same shape, added to the keys.
    pub positions: Tensor<3>,
    /// Tokens of object pointers at the end, which get no rotary position.
    pub pointer_tokens: usize,
}

impl MemoryAttentionConfig {
    /// Creates the layers. Values are drawn on first use.
    pub fn init(&self, device: &Device) -> MemoryAttention {
        let dim = self.d_model;
        let norm = || LayerNormConfig::new(dim).init(device);
        let layer = || MemoryAttentionLayer {
            self_attn: Attention::new(dim, dim, dim, self.num_heads, device),
            cross_attn_image: Attention::new(dim, self.kv_in_dim, dim, self.num_heads, device),
            linear1: LinearConfig::new(dim, self.dim_feedforward).init(device),
            linear2: LinearConfig::new(self.dim_feedforward, dim).init(device),
            norm1: norm(),
            norm2: norm(),
            norm3: norm(),
            dropout: DropoutConfig::new(self.dropout).init(),
        };
        MemoryAttention {
            layers: (0..self.num_layers).map(|_| layer()).collect(),
            norm: norm(),
            config: self.clone(),
        }
    }
}

impl MemoryAttentionLayer {
    fn forward(
        &self,
        x: Tensor<3>,
        keys: &Tensor<3>,
        input: &MemoryInput,
        rope: &AxialRope,
    ) -> Tensor<3> {
        let pixels = x.dims()[1];
        let y = self.norm1.forward(x.clone());
        let y = self
            .self_attn
            .forward_rotary(y.clone(), y.clone(), y, rope, pixels);
        let x = x + self.dropout.forward(y);
        let rotated = keys.dims()[1] - input.pointer_tokens;
        let y = self.cross_attn_image.forward_rotary(
            self.norm2.forward(x.clone()),
            keys.clone(),
            input.memory.clone(),
            rope,
            rotated,
        );
        let x = x + self.dropout.forward(y);
        let y = relu(self.linear1.forward(self.norm3.forward(x.clone())));
        let y = self.linear2.forward(self.dropout.forward(y));
        x + self.dropout.forward(y)
    }
}

impl MemoryAttention {
    /// The architecture.
    pub fn config(&self) -> &MemoryAttentionConfig {
        &self.config
    }

    /// Rotations for features of `[rows, columns]`; make them once per clip.
    pub fn rope(&self, grid: [usize; 2], device: &Device) -> AxialRope {
        let head_dim = self.config.d_model / self.config.num_heads;
        AxialRope::new(grid, head_dim, self.config.rope_theta, device)
    }

    /// Conditions a frame's features on memories.
    ///
    /// # Shapes
    /// - `features` `[batch, rows·columns, d_model]`; output the same
    /// - `positions` `[1 or batch, rows·columns, d_model]`, the sine encoding of the pixels
    /// - `rope` for the same grid
    ///
    /// # Errors
    /// [`HeadsError::Shape`] when the memories are not whole frames of the grid before the
    /// pointers, or the tensors do not fit together.
    pub fn forward(
        &self,
        features: Tensor<3>,
        positions: Tensor<3>,
        input: &MemoryInput,
        rope: &AxialRope,
    ) -> Result<Tensor<3>, HeadsError> {
        self.check(&features, &positions, input, rope)?;
        let dtype = features.dtype();
        let mut x = features + positions.cast(dtype) * INPUT_POSITIONS;
        let keys = input.memory.clone() + input.positions.clone().cast(input.memory.dtype());
        for layer in &self.layers {
            x = layer.forward(x, &keys, input, rope);
        }
        Ok(self.norm.forward(x))
    }

    fn check(
        &self,
        features: &Tensor<3>,
        positions: &Tensor<3>,
        input: &MemoryInput,
        rope: &AxialRope,
    ) -> Result<(), HeadsError> {
        let shape = |what: &'static str, expected: String, found: &[usize]| {
            Err(HeadsError::Shape {
                place: "MemoryAttention::forward",
                what,
                expected,
                found: found.to_vec(),
            })
        };
        let (dim, width, grid) = (self.config.d_model, self.config.kv_in_dim, rope.len());
        let [batch, pixels, found] = features.dims();
        if pixels != grid || found != dim {
            return shape(
                "features",
                format!("[batch, {grid}, {dim}]"),
                &features.dims(),
            );
        }
        let [n, p, d] = positions.dims();
        if (n != 1 && n != batch) || [p, d] != [grid, dim] {
            let expected = format!("[1 or {batch}, {grid}, {dim}]");
            return shape("positions", expected, &positions.dims());
        }
        let [memories, keys, found] = input.memory.dims();
        let whole = keys
            .checked_sub(input.pointer_tokens)
            .is_some_and(|keys| keys.is_multiple_of(grid));
        if memories != batch || keys == 0 || found != width || !whole {
            let expected = format!(
                "[{batch}, frames·{grid} + {}, {width}]",
                input.pointer_tokens
            );
            return shape("memory", expected, &input.memory.dims());
        }
        if input.positions.dims() != input.memory.dims() {
            let expected = format!("{:?} as the memory", input.memory.dims());
            return shape("memory positions", expected, &input.positions.dims());
        }
        Ok(())
    }
}
