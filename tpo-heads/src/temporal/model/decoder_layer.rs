//! One layer of the span decoder.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig};
use burn::tensor::{Bool, Device, Tensor};
use tpo_core::nn::{
    LayerNorm, LayerNormConfig, Linear, LinearConfig, attention_with_dropout, merge_heads,
    split_heads,
};
use tpo_core::ops::AttentionOptions;
use tpo_vision::{DropPath, DropPathConfig};

use crate::temporal::layers::{FeedForward, LayerSizes, WeightInit, linear};

/// What the decoder looks at.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Encoded clips `[batch, clips, d_model]`.
    pub values: Tensor<3>,
    /// Positions of the clips, same shape.
    pub positions: Tensor<3>,
    /// `[batch, clips]`, `true` hides a clip.
    pub padding: Option<Tensor<2, Bool>>,
}

/// Positional side of the queries, both `[batch, queries, d_model]`.
#[derive(Debug, Clone)]
pub struct Queries {
    /// Positional query.
    pub position: Tensor<3>,
    /// Modulated sine embedding of the span.
    pub sine: Tensor<3>,
}

/// The output projection of an attention whose input projections lie in the layer around it.
#[derive(Module, Debug)]
pub struct OutputProjection {
    /// `[d_model, d_model]`.
    pub out_proj: Linear,
}

/// Self-attention of the queries, cross-attention to the clips, feed-forward.
///
/// Names are the reference's: `sa_` of self-attention, `ca_` of cross-attention; content and
/// position are projected apart.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Content of queries.
    pub sa_qcontent_proj: Linear,
    /// Position of queries.
    pub sa_qpos_proj: Linear,
    /// Content of keys.
    pub sa_kcontent_proj: Linear,
    /// Position of keys.
    pub sa_kpos_proj: Linear,
    /// Values.
    pub sa_v_proj: Linear,
    /// Output of self-attention.
    pub self_attn: OutputProjection,
    /// Content of queries.
    pub ca_qcontent_proj: Linear,
    /// Position of queries; the first layer alone has it.
    pub ca_qpos_proj: Option<Linear>,
    /// Content of keys.
    pub ca_kcontent_proj: Linear,
    /// Position of keys.
    pub ca_kpos_proj: Linear,
    /// Values.
    pub ca_v_proj: Linear,
    /// Sine embedding of the queries' spans.
    pub ca_qpos_sine_proj: Linear,
    /// Output of cross-attention.
    pub cross_attn: OutputProjection,
    /// The feed-forward part.
    pub feed_forward: FeedForward,
    /// After self-attention.
    pub norm1: LayerNorm,
    /// After cross-attention.
    pub norm2: LayerNorm,
    /// After the feed-forward part.
    pub norm3: LayerNorm,
    /// Of attention weights.
    pub dropout: Dropout,
    /// Stochastic depth of the three branches, per sample.
    pub drop_path: DropPath,
    heads: usize,
}

impl DecoderLayer {
    /// The first layer also projects the positional queries for cross-attention.
    pub(super) fn new(sizes: &LayerSizes, first: bool, device: &Device) -> Self {
        let d = sizes.d_model;
        let proj = || linear(d, d, WeightInit::Transformer, device);
        let norm = || LayerNormConfig::new(d).init(device);
        let out = || OutputProjection {
            out_proj: LinearConfig::new(d, d).init(device),
        };
        Self {
            sa_qcontent_proj: proj(),
            sa_qpos_proj: proj(),
            sa_kcontent_proj: proj(),
            sa_kpos_proj: proj(),
            sa_v_proj: proj(),
            self_attn: out(),
            ca_qcontent_proj: proj(),
            ca_qpos_proj: first.then(proj),
            ca_kcontent_proj: proj(),
            ca_kpos_proj: proj(),
            ca_v_proj: proj(),
            ca_qpos_sine_proj: proj(),
            cross_attn: out(),
            feed_forward: FeedForward::new(sizes, device),
            norm1: norm(),
            norm2: norm(),
            norm3: norm(),
            dropout: DropoutConfig::new(sizes.dropout).init(),
            drop_path: DropPathConfig::new(sizes.dropout).init(),
            heads: sizes.heads,
        }
    }

    /// `[batch, queries, d_model]` to the same.
    pub fn forward(&self, x: Tensor<3>, queries: &Queries, memory: &Memory) -> Tensor<3> {
        let branch = self.self_attention(x.clone(), &queries.position);
        let x = self.norm1.forward(x + self.drop_path.forward(branch));
        let branch = self.cross_attention(x.clone(), queries, memory);
        let x = self.norm2.forward(x + self.drop_path.forward(branch));
        let branch = self.feed_forward.forward(x.clone());
        self.norm3.forward(x + self.drop_path.forward(branch))
    }

    fn self_attention(&self, x: Tensor<3>, position: &Tensor<3>) -> Tensor<3> {
        let q =
            self.sa_qcontent_proj.forward(x.clone()) + self.sa_qpos_proj.forward(position.clone());
        let k =
            self.sa_kcontent_proj.forward(x.clone()) + self.sa_kpos_proj.forward(position.clone());
        let v = self.sa_v_proj.forward(x);
        let heads = |x| split_heads(x, self.heads);
        let (qkv, options) = ([q, k, v].map(heads), AttentionOptions::default());
        let out = attention_with_dropout(qkv, options, &self.dropout);
        self.self_attn.out_proj.forward(merge_heads(out))
    }

    fn cross_attention(&self, x: Tensor<3>, queries: &Queries, memory: &Memory) -> Tensor<3> {
        let mut q = self.ca_qcontent_proj.forward(x);
        let mut k = self.ca_kcontent_proj.forward(memory.values.clone());
        let k_pos = self.ca_kpos_proj.forward(memory.positions.clone());
        if let Some(proj) = &self.ca_qpos_proj {
            q = q + proj.forward(queries.position.clone());
            k = k + k_pos.clone();
        }
        let v = self.ca_v_proj.forward(memory.values.clone());
        let sine = self.ca_qpos_sine_proj.forward(queries.sine.clone());
        // Content and position lie side by side in every head.
        let heads = |x| split_heads(x, self.heads);
        let q = Tensor::cat(vec![heads(q), heads(sine)], 3);
        let k = Tensor::cat(vec![heads(k), heads(k_pos)], 3);
        let options = AttentionOptions {
            key_padding: memory.padding.clone(),
            ..AttentionOptions::default()
        };
        let out = attention_with_dropout([q, k, heads(v)], options, &self.dropout);
        self.cross_attn.out_proj.forward(merge_heads(out))
    }
}
