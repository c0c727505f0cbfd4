//! A head of your own through every door: it answers "Point at the red star." with a point (x, y).
//! This is a whole program, with the command line of `tpo` for the built-in heads and this one:
//!
//! ```sh
//! cargo run --release --example point_rows -- runs/point-data
//! cargo run --release --example point_head -- train recipes/point/mini.toml --export runs/point-model
//! cargo run --release --example point_head -- evaluate --model runs/point-model \
//!     --data runs/point-data/held_out/rows.jsonl --out runs/point-held-out
//! cargo run --release --example point_head -- synthetic out/world held_out 1
//! cargo run --release --example point_head -- chat --model runs/point-model \
//!     --video out/world/held_out-000000.gif --at 0 --ask "Point at the orange star."
//! ```
//!
//! docs/ADDING_A_HEAD.md walks through it.

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use tpo::core::Result;
use tpo::prelude::*;

/// Sizes, under `heads.point` in `tpo.json` and `[model.heads.point]` in recipes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PointConfig {
    /// Width of the hidden layer; absent: that of the language model.
    hidden: Option<usize>,
}

#[derive(Module, Debug)]
struct PointHead {
    mlp: Mlp,
}

/// Where it is, normalised.
#[derive(Debug, Clone, Copy, Serialize)]
struct Point {
    x: f32,
    y: f32,
}

impl TaskHead for PointHead {
    type Config = PointConfig;
    type Target = [f32; 2];
    type Output = Tensor<2>;
    type Prediction = Point;

    const NAME: &'static str = "point"; // the model says <point_begin>, the task token is at <point>

    fn init(config: &PointConfig, sizes: &ModelSizes, device: &Device) -> Result<Self> {
        let hidden = config.hidden.unwrap_or(sizes.llm);
        let mlp = MlpConfig::new(vec![sizes.llm, hidden, 2]).init(device);
        Ok(Self { mlp })
    }

    /// An annotation `{"task": "point", "query": "red star", "value": [0.3, 0.7]}`.
    fn target(&self, truth: &Truth) -> Result<[f32; 2]> {
        let point: [f32; 2] = truth.to_value()?;
        if point.iter().all(|v| (0.0..=1.0).contains(v)) {
            return Ok(point);
        }
        Err(truth.unusable(format!("{point:?} is no [x, y] between 0 and 1")))
    }

    fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> Result<Tensor<2>> {
        Ok(self.mlp.forward(task)) // [n, d_llm] -> [n, 2]
    }

    fn loss(
        &self,
        out: &Tensor<2>,
        targets: &[[f32; 2]],
        _: &HeadContext<'_>,
    ) -> Result<LossTerms> {
        let truth = TensorData::new(targets.concat(), [targets.len(), 2]);
        let truth = Tensor::<2>::from_data(truth, &out.device());
        let difference = out.clone().cast(FloatDType::F32) - truth;
        Ok(LossTerms::new().with("l1", difference.abs().mean(), 2.0))
    }

    fn decode(&self, out: Tensor<2>, _: &HeadContext<'_>) -> Result<Vec<Point>> {
        let values: Vec<f32> = out
            .into_data()
            .iter::<f32>()
            .map(|v| v.clamp(0.0, 1.0))
            .collect();
        Ok(values
            .chunks_exact(2)
            .map(|v| Point { x: v[0], y: v[1] })
            .collect())
    }

    /// The distance, and whether it is within 0.05; no answer is as far as can be.
    fn score(&self, answer: Option<&Point>, target: &[f32; 2]) -> Vec<(&'static str, f64)> {
        let distance = answer.map_or(2f64.sqrt(), |p| {
            f64::from((p.x - target[0]).hypot(p.y - target[1]))
        });
        vec![
            ("distance", distance),
            ("within 0.05", f64::from(distance <= 0.05)),
        ]
    }

    fn draw(point: &Point) -> Drawing {
        Drawing::text(format!("({:.2}, {:.2})", point.x, point.y))
            .with(Shape::Point([point.x, point.y]))
    }
}

tpo::core::heads! {
    struct MyHeads { region: RegionHead, temporal: TemporalHead, mask: MaskHead, point: PointHead }
}

fn main() -> std::process::ExitCode {
    tpo::cli::main::<MyHeads>()
}
