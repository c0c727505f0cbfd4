//! Named comparisons of this crate's modules with fixtures of the reference.
//!
//! Sizes come from the fixture's config, so any fixture of the same kind can be passed.

use burn::tensor::{Device, Int, Tensor};
use tpo_core::traits::Instruction;
use tpo_vision::connector::qformer::{QFORMER_KEYS, QFORMER_UNUSED_KEYS};
use tpo_vision::umt::UMT_KEYS;
use tpo_vision::umt::position::{ClipGrid, clip_table};
use tpo_vision::{QFormer, QFormerConfig, UmtConfig, VideoEncoder};

use super::fixture::{Fixture, gradients, rewrite, values};

/// One tensor of a fixture against ours.
#[derive(Debug, Clone)]
pub struct Comparison {
    pub name: String,
    /// `||ours - reference|| / max(||reference||, 1e-7)`.
    pub rel_l2: f64,
    pub tolerance: f64,
}

impl Comparison {
    pub fn is_within(&self) -> bool {
        self.rel_l2 <= self.tolerance
    }
}

fn compare(fixture: &Fixture, key: &str, ours: &[f32]) -> Comparison {
    let reference = fixture.values(key);
    assert_eq!(ours.len(), reference.len(), "{key}: number of elements");
    let square = |sum: f64, value: f64| sum + value * value;
    let difference = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| f64::from(*a) - f64::from(*b))
        .fold(0.0, square);
    let norm = reference.iter().map(|v| f64::from(*v)).fold(0.0, square);
    Comparison {
        name: key.to_string(),
        rel_l2: difference.sqrt() / norm.sqrt().max(1e-7),
        tolerance: fixture.tolerance(key),
    }
}

/// The encoder of a `vit_video*` fixture with its weights.
pub fn video_encoder(fixture: &Fixture, device: &Device) -> VideoEncoder {
    let mut json = fixture.json["config"].clone();
    json["ckpt_num_frame"] = fixture.json["ckpt_num_frame"].clone();
    let config = UmtConfig::from_hf_json(&json).unwrap();
    let encoder = VideoEncoder::new(&config, device).unwrap();
    fixture.load(encoder, UMT_KEYS, &[])
}

/// Clip of a `vit_video*` fixture: `in.<name>` enlarged by repeating pixels.
pub fn clip(fixture: &Fixture, name: &str, device: &Device) -> Tensor<5> {
    let scale = fixture.json["input_upsample"].as_u64().unwrap() as usize;
    let low: Tensor<5> = fixture.float(&format!("in.{name}"), device);
    let [batch, frames, channels, height, width] = low.dims();
    low.reshape([batch * frames * channels * height, 1, width, 1])
        .repeat(&[1, scale, 1, scale])
        .reshape([batch, frames, channels, height * scale, width * scale])
}

/// Values and gradients of a `vit_video*` fixture. `device` must support autodiff.
pub fn umt(fixture: &Fixture, device: &Device) -> Vec<Comparison> {
    let encoder = video_encoder(fixture, device);
    let mut done = Vec::new();

    let frames = clip(fixture, "video_lowres", device)
        .detach()
        .require_grad();
    let [_, steps, _, height, width] = frames.dims();
    let vit = encoder.encoder.forward(frames.clone()).unwrap();
    done.push(compare(fixture, "out.vit", &values(vit.clone())));
    let tokens = encoder.forward(frames.clone()).unwrap();
    done.push(compare(fixture, "out.vision_ln", &values(tokens.clone())));
    let image = clip(fixture, "image_lowres", device);
    let image = encoder.forward(image).unwrap();
    done.push(compare(fixture, "out.image_vision_ln", &values(image)));

    let stride = fixture.json["pos_embed_row_stride"].as_u64().unwrap() as usize;
    let dim = tokens.dims()[2];
    for (key, frames, stride) in [
        ("mid.pos_embed", steps, stride),
        ("mid.img_pos_embed", 1, 1),
    ] {
        let table = encoder
            .encoder
            .position_table(frames, height, width, device)
            .unwrap();
        let rows: Vec<f32> = values(table)
            .chunks(dim)
            .step_by(stride)
            .flatten()
            .copied()
            .collect();
        done.push(compare(fixture, key, &rows));
    }

    let cotangent: Tensor<3> = fixture.float("in.cotangent", device);
    let elements = cotangent.shape().num_elements() as f64;
    let loss = (tokens * cotangent).sum() / elements;
    done.push(compare(fixture, "out.loss", &values(loss.clone())));
    let grads = loss.backward();
    let ours = gradients(&encoder, &grads);
    for key in fixture.keys("grad.") {
        let name = format!("grad.{key}");
        if key == "in.video_lowres" {
            let shape = fixture.array("in.video_lowres").shape.clone();
            let (low_width, scale) = (shape[4], width / shape[4]);
            let grad = frames.grad(&grads).unwrap();
            let lines = shape[..4].iter().product::<usize>();
            let grad = grad
                .reshape([lines, scale, low_width, scale])
                .sum_dim(1)
                .sum_dim(3);
            done.push(compare(fixture, &name, &values(grad)));
        } else {
            done.push(compare(fixture, &name, &ours[&rewrite(key, UMT_KEYS)]));
        }
    }
    done
}

/// The full-size position tables of a `vit_posembed_fullsize` fixture.
pub fn position_tables(fixture: &Fixture) -> Vec<Comparison> {
    let number = |name: &str| fixture.json["config"][name].as_u64().unwrap() as usize;
    let (dim, patches, pretrained) = (number("d"), number("patches"), number("ckpt_frames"));
    let side = patches.isqrt();
    let table = |steps: usize| {
        let grid = ClipGrid {
            steps,
            rows: side,
            columns: side,
            native: true,
        };
        clip_table(grid, dim, pretrained)
    };
    let mut done = Vec::new();
    for key in fixture.keys("out.") {
        let name = format!("out.{key}");
        let (steps, rows) = match key.strip_prefix('t') {
            Some(steps) => {
                let rows: Tensor<1, Int> = fixture.int(&format!("in.{key}.rows"), &Device::flex());
                let rows: Vec<i64> = rows.into_data().convert::<i64>().try_to_vec().unwrap();
                let rows = rows.into_iter().map(|row| row as usize).collect();
                (steps.parse().unwrap(), rows)
            }
            None => (1, (0..patches).step_by(5).collect::<Vec<_>>()),
        };
        let table = table(steps);
        let ours: Vec<f32> = rows
            .iter()
            .flat_map(|row| table[row * dim..(row + 1) * dim].iter().step_by(8))
            .copied()
            .collect();
        done.push(compare(fixture, &name, &ours));
    }
    done
}

/// The Q-Former of a `qformer` fixture with its weights.
pub fn q_former(fixture: &Fixture, device: &Device) -> QFormer {
    let config = QFormerConfig::from_hf_json(&fixture.json["config"]).unwrap();
    // The fixture was recorded in evaluation mode; gradients need a training device.
    let config = config
        .with_hidden_dropout_prob(0.0)
        .with_attention_probs_dropout_prob(0.0)
        .with_drop_path_rate(0.0);
    let qformer = config.init(device).unwrap();
    fixture.load(qformer, &q_former_rules(), QFORMER_UNUSED_KEYS)
}

/// The rules of the connector with `qformer.` in front removed: paths of the Q-Former itself.
fn q_former_rules() -> Vec<tpo_vision::KeyRewrite> {
    let mut rules = QFORMER_KEYS.to_vec();
    rules.push((r"^qformer\.", ""));
    rules
}

/// Values and gradients of a `qformer` fixture. `device` must support autodiff.
pub fn qformer(fixture: &Fixture, device: &Device) -> Vec<Comparison> {
    let qformer = q_former(fixture, device);
    let instruction = Instruction {
        ids: fixture.int("in.text_ids", device),
        mask: fixture.int("in.text_attention_mask", device),
    };
    let mut done = Vec::new();
    for (case, instruction) in [("notext", None), ("text", Some(&instruction))] {
        let features: Tensor<3> = fixture.float("in.image_embeds", device).require_grad();
        let trace = qformer.trace(features.clone(), instruction).unwrap();
        for (index, hidden) in trace.hidden.iter().enumerate() {
            let key = format!("mid.{case}.hidden.{index}");
            done.push(compare(fixture, &key, &values(hidden.clone())));
        }
        let last = trace.hidden.last().unwrap().clone();
        let key = format!("out.{case}.last_hidden_state");
        done.push(compare(fixture, &key, &values(last)));
        let output = qformer.forward(features.clone(), instruction).unwrap();
        let key = format!("out.{case}.query_output");
        done.push(compare(fixture, &key, &values(output.clone())));

        let cotangent: Tensor<3> = fixture.float(&format!("in.{case}.cotangent"), device);
        let elements = cotangent.shape().num_elements() as f64;
        let loss = (output * cotangent).sum() / elements;
        let key = format!("out.{case}.loss");
        done.push(compare(fixture, &key, &values(loss.clone())));
        let grads = loss.backward();
        let ours = gradients(&qformer, &grads);
        let prefix = format!("grad.{case}.");
        for key in fixture.keys(&prefix) {
            let name = format!("{prefix}{key}");
            if key == "in.image_embeds" {
                let grad = features.grad(&grads).unwrap();
                done.push(compare(fixture, &name, &values(grad)));
            } else {
                done.push(compare(
                    fixture,
                    &name,
                    &ours[&rewrite(key, &q_former_rules())],
                ));
            }
        }
    }
    done
}

/// The Q-Former output of a `small_amplitude` fixture, which scales the queries and features of
/// the `qformer` fixture by 1e-3 and so shows the epsilon of the norms.
pub fn qformer_small_amplitude(
    small: &Fixture,
    fixture: &Fixture,
    device: &Device,
) -> Vec<Comparison> {
    let mut qformer = q_former(fixture, device);
    qformer.query_tokens = qformer.query_tokens.map(|t| t * 1e-3);
    qformer.extra_query_tokens = qformer
        .extra_query_tokens
        .map(|tokens| tokens.map(|t| t * 1e-3));
    let features: Tensor<3> = fixture.float("in.image_embeds", device) * 1e-3;
    let output = qformer.forward(features, None).unwrap();
    vec![compare(small, "out.qformer.query_output", &values(output))]
}
