//! Attention with four projections, as the prompt decoder and the memory use it.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_core::ops::{self, AttentionOptions};

use super::rope::AxialRope;

/// Multi-head attention between tokens of possibly different widths.
#[derive(Module, Debug)]
pub struct Attention {
    /// Query projection `[inner, dim]`.
    pub q_proj: Linear,
    /// Key projection `[inner, key_dim]`.
    pub k_proj: Linear,
    /// Value projection `[inner, key_dim]`.
    pub v_proj: Linear,
    /// Output projection `[dim, inner]`.
    pub out_proj: Linear,
    heads: usize,
}

impl Attention {
    /// Queries `dim` wide, keys and values `key_dim`; the heads share `inner` channels, which they
    /// must divide.
    pub fn new(dim: usize, key_dim: usize, inner: usize, heads: usize, device: &Device) -> Self {
        let linear = |from: usize, to: usize| LinearConfig::new(from, to).init(device);
        Self {
            q_proj: linear(dim, inner),
            k_proj: linear(key_dim, inner),
            v_proj: linear(key_dim, inner),
            out_proj: linear(inner, dim),
            heads,
        }
    }

    /// # Shapes
    /// - `q` and output `[batch, queries, dim]`
    /// - `k`, `v` `[batch, keys, key_dim]`
    pub fn forward(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        self.attend(
            self.split(self.q_proj.forward(q)),
            self.split(self.k_proj.forward(k)),
            self.split(self.v_proj.forward(v)),
        )
    }

    /// As [`forward`](Self::forward), with rotary positions on queries and keys. The first
    /// `rotated` keys are one or more grids of `rope` in turn, the others have no position.
    pub fn forward_rotary(
        &self,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        rope: &AxialRope,
        rotated: usize,
    ) -> Tensor<3> {
        let queries = q.dims()[1];
        let q = rope.rotate(self.split(self.q_proj.forward(q)), queries);
        let k = rope.rotate(self.split(self.k_proj.forward(k)), rotated);
        if self.heads == 1 && v.dims()[2] < self.v_proj.shape().0 {
            // The weights of a query sum to one, so the values may be projected after they were
            // summed; a memory is a quarter as wide before the projection as after.
            let [batch, keys, width] = v.dims();
            let sums = ops::attention(
                q.swap_dims(1, 2),
                k.swap_dims(1, 2),
                v.reshape([batch, 1, keys, width]),
                AttentionOptions::default(),
            );
            let sums = sums.reshape([batch, queries, width]);
            return self.out_proj.forward(self.v_proj.forward(sums));
        }
        self.attend(q, k, self.split(self.v_proj.forward(v)))
    }

    /// `[batch, tokens, inner]` to `[batch, tokens, heads, head_dim]`.
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, inner] = x.dims();
        x.reshape([batch, tokens, self.heads, inner / self.heads])
    }

    fn attend(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<3> {
        let [batch, queries, heads, width] = q.dims();
        let out = ops::attention(
            q.swap_dims(1, 2),
            k.swap_dims(1, 2),
            v.swap_dims(1, 2),
            AttentionOptions::default(),
        );
        let out = out.swap_dims(1, 2).reshape([batch, queries, heads * width]);
        self.out_proj.forward(out)
    }
}
