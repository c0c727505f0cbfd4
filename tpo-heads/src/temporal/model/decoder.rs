//! Span decoder with dynamic anchors (DAB-DETR, arXiv 2201.12329, on one axis).

use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Mlp, MlpConfig};

use super::decoder_layer::{DecoderLayer, Memory, Queries};
use crate::temporal::layers::{LayerSizes, WeightInit, linear, sine_spans};

/// Both sides of a logit are kept at least this far from zero (reference implementation).
const INVERSE_SIGMOID_EPS: f64 = 1e-3;

/// `ln(x / (1 - x))` of values 0–1, with both sides at least 0.001.
pub(super) fn inverse_sigmoid(x: Tensor<3>) -> Tensor<3> {
    let x = x.clamp(0.0, 1.0);
    let other = x.clone().neg().add_scalar(1.0);
    (x.clamp_min(INVERSE_SIGMOID_EPS) / other.clamp_min(INVERSE_SIGMOID_EPS)).log()
}

/// An MLP whose layers start as [`WeightInit`] says; the last may start at zero.
pub(super) fn mlp(widths: &[usize], init: WeightInit, zero_last: bool, device: &Device) -> Mlp {
    let mut mlp = MlpConfig::new(widths.to_vec()).init(device);
    let last = mlp.layers.len().saturating_sub(1);
    for (i, layer) in mlp.layers.iter_mut().enumerate() {
        let init = if zero_last && i == last {
            WeightInit::Zero
        } else {
            init
        };
        *layer = linear(widths[i], widths[i + 1], init, device);
    }
    mlp
}

/// Layers that refine spans from layer to layer.
#[derive(Module, Debug)]
pub struct Decoder {
    /// In order.
    pub layers: Vec<DecoderLayer>,
    /// Of every layer's output.
    pub norm: LayerNorm,
    /// Output to a factor on the positional query, from the second layer on.
    pub query_scale: Mlp,
    /// Sine embedding of a span to a positional query.
    pub ref_point_head: Mlp,
    /// Output to the change of its span, shared by all layers.
    pub bbox_embed: Mlp,
    /// Output to a reference width that modulates the attention over time.
    pub ref_anchor_head: Mlp,
}

/// What every layer says.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// Normalised outputs of all layers below each other `[layers * batch, queries, d_model]`.
    pub hidden: Tensor<3>,
    /// The spans each layer started from, 0–1, `[layers * batch, queries, 2]`.
    pub references: Tensor<3>,
}

impl Decoder {
    pub(super) fn new(sizes: &LayerSizes, depth: usize, device: &Device) -> Self {
        let d = sizes.d_model;
        let init = WeightInit::Transformer;
        Self {
            layers: (0..depth)
                .map(|i| DecoderLayer::new(sizes, i == 0, device))
                .collect(),
            norm: LayerNormConfig::new(d).init(device),
            query_scale: mlp(&[d, d, d], init, false, device),
            ref_point_head: mlp(&[d, d, d], init, false, device),
            bbox_embed: mlp(&[d, d, d, 2], init, true, device),
            ref_anchor_head: mlp(&[d, d, 1], init, false, device),
        }
    }

    /// Decodes from learned spans.
    ///
    /// # Shapes
    /// - queries `[queries, 2]`, logits of (centre, width)
    pub fn forward(&self, queries: Tensor<2>, memory: &Memory) -> Decoded {
        let [batch, _, d] = memory.values.dims();
        let n = queries.dims()[0];
        let device = queries.device();
        let mut output = Tensor::<3>::zeros([batch, n, d], (&device, queries.dtype()));
        let mut reference = sigmoid(queries).reshape([1, n, 2]).expand([batch, n, 2]);
        let (mut hidden, mut references) = (Vec::new(), vec![reference.clone()]);
        for (i, layer) in self.layers.iter().enumerate() {
            let sine = sine_spans(reference.clone(), d);
            let position = self.ref_point_head.forward(sine.clone());
            let mut sine = match i {
                0 => sine,
                _ => sine * self.query_scale.forward(output.clone()),
            };
            let width = sigmoid(self.ref_anchor_head.forward(output.clone()));
            sine = sine * (width / reference.clone().narrow(2, 1, 1));
            output = layer.forward(output, &Queries { position, sine }, memory);
            hidden.push(self.norm.forward(output.clone()));
            if i + 1 < self.layers.len() {
                let change = self.bbox_embed.forward(output.clone());
                let refined = sigmoid(change + inverse_sigmoid(reference));
                references.push(refined.clone());
                reference = refined.detach();
            }
        }
        Decoded {
            hidden: Tensor::cat(hidden, 0),
            references: Tensor::cat(references, 0),
        }
    }
}
