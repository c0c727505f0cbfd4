//! Box encoder (question side) and box decoder (answer side).

use burn::config::Config;
use burn::module::Module;
use burn::tensor::activation::relu;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use tpo_core::Result;
use tpo_core::geometry::{BoxPixels, BoxXyxy};
use tpo_core::head::{
    Drawing, HeadContext, HeadKeys, HeadMetric, HeadSpec, LossTerms, ModelSizes, Shape, TaskHead,
};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_core::truth::Truth;
use tpo_core::weights::{self, KeyRules};

use super::keys::REGION_KEYS;
use super::loss::{RegionLossWeights, region_loss};
use super::metric::BoxAccuracy;

/// Configuration of a [`RegionHead`].
#[derive(Config, Debug)]
pub struct RegionHeadConfig {
    /// Width of the language model.
    pub d_llm: usize,
    /// Width of the hidden layer of both MLPs; the reference uses half of `d_llm`.
    pub hidden: usize,
    /// Weights of the loss terms.
    #[config(default = "RegionLossWeights::reference()")]
    pub loss: RegionLossWeights,
}

impl RegionHeadConfig {
    /// VideoChat-TPO: 4096 → 2048 → 4 (reference implementation).
    pub fn videochat_tpo() -> Self {
        Self::new(4096, 2048)
    }

    /// The reference's proportions for any language model.
    pub fn for_llm(d_llm: usize) -> Self {
        Self::new(d_llm, (d_llm / 2).max(1))
    }

    /// Creates the head.
    pub fn init(&self, device: &Device) -> RegionHead {
        RegionHead {
            encoder: BoxEncoder {
                input: LinearConfig::new(4, self.hidden).init(device),
                output: LinearConfig::new(self.hidden, self.d_llm).init(device),
            },
            decoder: BoxDecoder {
                input: LinearConfig::new(self.d_llm, self.hidden).init(device),
                output: LinearConfig::new(self.hidden, 4).init(device),
            },
            loss: self.loss.clone(),
        }
    }
}

/// Boxes of a question to embeddings: Linear, ReLU, Linear.
#[derive(Module, Debug)]
pub struct BoxEncoder {
    /// `[hidden, 4]`.
    pub input: Linear,
    /// `[d_llm, hidden]`.
    pub output: Linear,
}

impl BoxEncoder {
    /// Normalised xyxy boxes `[n, 4]` to `[n, d_llm]`.
    pub fn forward(&self, boxes: Tensor<2>) -> Tensor<2> {
        self.output.forward(relu(self.input.forward(boxes)))
    }
}

/// Task embeddings to boxes: Linear, ReLU, Linear, **no sigmoid**.
#[derive(Module, Debug)]
pub struct BoxDecoder {
    /// `[hidden, d_llm]`.
    pub input: Linear,
    /// `[4, hidden]`.
    pub output: Linear,
}

impl BoxDecoder {
    /// `[n, d_llm]` to normalised xyxy boxes `[n, 4]`, not confined to 0–1.
    pub fn forward(&self, task: Tensor<2>) -> Tensor<2> {
        self.output.forward(relu(self.input.forward(task)))
    }
}

/// The region head.
#[derive(Module, Debug)]
pub struct RegionHead {
    /// Question side.
    pub encoder: BoxEncoder,
    /// Answer side.
    pub decoder: BoxDecoder,
    #[module(skip)]
    loss: RegionLossWeights,
}

/// A predicted box.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RegionPrediction {
    /// The head's four numbers as they are: normalised, possibly outside 0–1 or reversed.
    pub raw: BoxXyxy,
    /// The box put in order and confined to the image, normalised.
    pub normalised: BoxXyxy,
    /// The same in pixels of the source; `None` when the caller did not say its size.
    pub pixels: Option<BoxPixels>,
}

impl TaskHead for RegionHead {
    type Config = RegionHeadConfig;
    type Target = BoxXyxy;
    type Output = Tensor<2>;
    type Prediction = RegionPrediction;

    const NAME: &'static str = "region";
    const SCORED_BY_BENCHMARKS: bool = true;

    fn spec() -> HeadSpec {
        HeadSpec::new(Self::NAME, "<box_begin>", "<boxes>")
    }

    fn init(config: &RegionHeadConfig, sizes: &ModelSizes, device: &Device) -> Result<Self> {
        sizes.check(Self::NAME, "d_llm", config.d_llm, sizes.llm)?;
        Ok(config.init(device))
    }

    fn target(&self, truth: &Truth) -> Result<BoxXyxy> {
        truth.to_box()
    }

    fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> Result<Tensor<2>> {
        Ok(self.decoder.forward(task))
    }

    fn loss(
        &self,
        output: &Tensor<2>,
        targets: &[BoxXyxy],
        _: &HeadContext<'_>,
    ) -> Result<LossTerms> {
        for (i, b) in targets.iter().enumerate() {
            b.check(&format!("region target {i}"))?;
        }
        let flat: Vec<f32> = targets.iter().flat_map(|b| b.to_array()).collect();
        let boxes = TensorData::new(flat, [targets.len(), 4]);
        let boxes = Tensor::<2>::from_data(boxes, &output.device());
        Ok(region_loss(
            output.clone().cast(FloatDType::F32),
            boxes,
            &self.loss,
        ))
    }

    fn decode(
        &self,
        output: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> Result<Vec<RegionPrediction>> {
        let flat: Vec<f32> = output.into_data().iter::<f32>().collect();
        Ok(flat
            .chunks_exact(4)
            .enumerate()
            .map(|(i, b)| {
                let raw = BoxXyxy::from([b[0], b[1], b[2], b[3]]);
                let normalised = raw.clamped();
                let size = context.sample(i).and_then(|s| s.size);
                RegionPrediction {
                    raw,
                    normalised,
                    pixels: size.map(|(w, h)| normalised.to_pixels(w as f32, h as f32)),
                }
            })
            .collect())
    }

    /// `acc@0.5` and `mean_iou` (referring expression comprehension).
    fn metrics(
        &self,
        output: Tensor<2>,
        targets: &[BoxXyxy],
        context: &HeadContext<'_>,
    ) -> Result<Vec<HeadMetric>> {
        let mut accuracy = BoxAccuracy::new(0.5);
        for (found, target) in self.decode(output, context)?.iter().zip(targets) {
            accuracy.update(Some(&found.normalised), target);
        }
        let metric = |name: &str, mean: Option<f64>| {
            Some(HeadMetric {
                name: name.into(),
                mean: mean?,
                count: accuracy.count,
            })
        };
        Ok([
            metric("acc@0.5", accuracy.accuracy()),
            metric("mean_iou", accuracy.mean_iou()),
        ]
        .into_iter()
        .flatten()
        .collect())
    }

    fn draw(prediction: &RegionPrediction) -> Drawing {
        let [x0, y0, x1, y1] = prediction.normalised.to_array();
        Drawing::text(format!("[{x0:.2}, {y0:.2}, {x1:.2}, {y1:.2}]"))
            .with(Shape::Box(prediction.normalised))
    }

    fn keys() -> weights::Result<HeadKeys> {
        let own = KeyRules::new().owns(["loc_encoder.", "loc_decoder."]);
        let rules = REGION_KEYS
            .iter()
            .fold(own, |rules, (key, path)| rules.prefix(key, path));
        Ok(HeadKeys {
            token: "box_token".into(),
            rules: vec![rules],
        })
    }

    fn encode_boxes(&self, boxes: Tensor<2>) -> Option<Tensor<2>> {
        Some(self.encoder.forward(boxes))
    }
}
