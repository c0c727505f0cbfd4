//! Entry to the CPU kernels.

use std::sync::Arc;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Shape;

use super::AttentionOptions;
use super::problem::{Attended, Bias, Problem, Rows};
use super::visibility::Visibility;
use super::{few_rows, flash};
use crate::ops::flex::from_floats;

/// An attention call on CPU tensors.
#[derive(Clone, Debug)]
pub(super) struct Inputs {
    pub(super) qkv: [FlexTensor; 3],
    bias: Option<FlexTensor>,
    padding: Option<Arc<[bool]>>,
    scale: f64,
    visibility: Visibility,
}

impl Inputs {
    /// `bias` takes the place of the one in `options`.
    pub(super) fn new(
        qkv: [FlexTensor; 3],
        bias: Option<FlexTensor>,
        options: AttentionOptions,
    ) -> Self {
        let [q_len, dim] = [2, 3].map(|axis| qkv[0].layout().shape()[axis]);
        let k_len = qkv[1].layout().shape()[2];
        let visibility = Visibility::new(&options, q_len, k_len);
        let padding = options
            .key_padding
            .map(|padding| padding.into_data().iter::<bool>().collect());
        Inputs {
            qkv,
            bias,
            padding,
            scale: options.scale.unwrap_or_else(|| (dim as f64).powf(-0.5)),
            visibility,
        }
    }

    pub(super) fn problem(&self) -> Problem<'_> {
        let [q, k, v] = &self.qkv;
        let [batch, heads, q_len, _] = q.layout().shape().dims::<4>();
        let [_, kv_heads, k_len, _] = k.layout().shape().dims::<4>();
        Problem {
            q: Rows::new(q),
            k: Rows::new(k),
            v: Rows::new(v),
            batch,
            heads,
            kv_heads,
            q_len,
            k_len,
            scale: (self.scale * std::f64::consts::LOG2_E) as f32,
            visibility: self.visibility,
            padding: self.padding.as_deref(),
            bias: self.bias.as_ref().map(Bias::new),
        }
    }

    /// `[batch, q_len, heads, v_dim]` values as a `[batch, heads, q_len, v_dim]` view, so that
    /// merging the heads afterwards costs nothing.
    pub(super) fn output(&self, out: Vec<f32>) -> FlexTensor {
        let [q, _, v] = &self.qkv;
        let [batch, heads, q_len, _] = q.layout().shape().dims::<4>();
        let v_dim = v.layout().shape()[3];
        let ordered = from_floats(out, Shape::new([batch, q_len, heads, v_dim]), q.dtype());
        let layout: Layout = ordered.layout().transpose(1, 2);
        ordered.with_layout(layout)
    }
}

/// Picks the kernel.
pub(super) fn forward(inputs: &Inputs) -> Attended {
    let p = inputs.problem();
    if p.k_len == 0 || p.rows() == 0 || p.batch == 0 || p.v.width == 0 || p.k.width == 0 {
        return Attended {
            out: vec![0.0; p.batch * p.q_len * p.heads * p.v.width],
            log_sum: vec![f32::NEG_INFINITY; p.batch * p.kv_heads * p.rows()],
        };
    }
    if p.rows() <= few_rows::MAX_ROWS {
        few_rows::attention(&p)
    } else {
        flash::attention(&p)
    }
}
