//! Entry to the CPU kernels.

use std::sync::Arc;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::Shape;
use pulp::Arch;

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
            windows: None,
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

/// Picks the kernel and runs it.
pub(super) fn solve(p: &Problem) -> Attended {
    if p.k_len == 0 || p.rows() == 0 || p.batch == 0 || p.v.width == 0 || p.k.width == 0 {
        return Attended {
            out: vec![0.0; p.lines() * p.heads * p.v.width],
            log_sum: vec![f32::NEG_INFINITY; p.batch * p.kv_heads * p.rows()],
        };
    }
    if p.rows() <= few_rows::MAX_ROWS {
        few_rows::attention(p, Arch::new())
    } else {
        flash::attention(p, Arch::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::{Cpu, Fixed};

    fn random(seed: usize, dims: [usize; 4]) -> FlexTensor {
        let values = (0..dims.iter().product())
            .map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 300.0 - 1.7)
            .collect();
        from_floats(values, Shape::new(dims), burn::tensor::DType::F32)
    }

    fn both(p: &Problem, cpu: impl Cpu) -> [Vec<f32>; 2] {
        [
            flash::attention(p, cpu).out,
            few_rows::attention(p, cpu).out,
        ]
    }

    /// Narrower vectors and fewer registers take other tile sizes: all must agree.
    #[test]
    fn instruction_sets_agree() {
        for (dim, v_dim) in [(5, 9), (64, 64), (88, 40), (128, 20)] {
            let options = AttentionOptions {
                causal: true,
                ..Default::default()
            };
            let inputs = Inputs::new(
                [
                    random(1, [1, 4, 70, dim]),
                    random(2, [1, 2, 610, dim]),
                    random(3, [1, 2, 610, v_dim]),
                ],
                None,
                options,
            );
            let p = inputs.problem();
            let [flash, few] = both(&p, Arch::new());
            let mut others = both(&p, Fixed(pulp::Scalar::new())).to_vec();
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                others.extend(both(&p, Fixed(v3)));
            }
            others.push(few);
            for other in others {
                let error = flash.iter().zip(&other).map(|(a, b)| (a - b).abs());
                assert!(error.fold(0.0, f32::max) < 1e-5);
            }
        }
    }
}
