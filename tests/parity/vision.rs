//! UMT and Q-Former fixtures.

use burn::tensor::{Device, Tensor};
use tpo::core::traits::Instruction;
use tpo::vision::connector::qformer::{
    QFORMER_KEYS, QFORMER_KEYS_INVERSE, QFORMER_UNUSED_KEYS, QFormer, QFormerConfig,
};
use tpo::vision::umt::{UMT_KEYS, UMT_KEYS_INVERSE, UmtConfig, VideoEncoder, position};
use tpo::weights::KeyRules;

use super::check::{Report, floats};
use super::fixture::{Failure, Fixture};
use super::weights::{Stored, compare_gradients, load, load_from};

pub fn vit(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut config = UmtConfig::from_hf_json(fixture.config())?;
    if let Some(frames) = fixture.json["ckpt_num_frame"].as_u64() {
        config.ckpt_num_frame = frames as usize;
    }
    let rules = KeyRules::new().rewrite(UMT_KEYS, UMT_KEYS_INVERSE)?;
    let device = device.clone().autodiff();
    let encoder = load(
        VideoEncoder::new(&config, &device)?,
        fixture,
        &Stored(&rules),
    )?;
    let up = fixture.json["input_upsample"].as_u64().unwrap_or(1) as usize;

    let low = fixture
        .tensor::<5>("in.video_lowres", &device)?
        .require_grad();
    let video = upsample(low.clone(), up);
    let [b, t, _, h, w] = video.dims();
    let tokens = encoder.encoder.forward(video.clone())?;
    let normed = encoder.vision_layernorm.forward(tokens.clone());
    let [_, n, c] = tokens.dims();
    report.close(fixture, "out.vit", tokens.reshape([b, t, n / t, c]))?;
    report.close(fixture, "out.vision_ln", normed.clone())?;
    let cotangent = fixture.tensor::<3>("in.cotangent", &device)?;
    let loss = (normed * cotangent).mean();
    report.close(fixture, "out.loss", loss.clone())?;

    let table = encoder.encoder.position_table(t, h, w, &device)?;
    compare_table(&mut report, fixture, "mid.pos_embed", table)?;

    report.part(|report| {
        let image = upsample(fixture.tensor::<5>("in.image_lowres", &device)?, up);
        let [_, _, _, h, w] = image.dims();
        let out = encoder.forward(image)?;
        report.close(fixture, "out.image_vision_ln", out)?;
        let table = encoder.encoder.position_table(1, h, w, &device)?;
        compare_table(report, fixture, "mid.img_pos_embed", table)
    })?;

    let grads = loss.backward();
    compare_gradients(&mut report, fixture, "grad.", &encoder, &rules, &grads)?;
    let grad = low.grad(&grads).ok_or("the input got no gradient")?;
    report.close(fixture, "grad.in.video_lowres", grad)?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Compares a position table. A large one is stored as every `pos_embed_row_stride`-th row.
fn compare_table(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    table: Tensor<3>,
) -> Result<(), Failure> {
    let [_, rows, dim] = table.dims();
    let stored = &fixture.stored(key)?.shape;
    if stored[..] == [1, rows, dim] {
        return report.close(fixture, key, table);
    }
    let stride = fixture.json["pos_embed_row_stride"]
        .as_u64()
        .ok_or("no pos_embed_row_stride")? as usize;
    let values: Vec<f32> = floats(table)?
        .chunks_exact(dim)
        .step_by(stride)
        .flatten()
        .copied()
        .collect();
    let shape = [1, rows.div_ceil(stride), dim];
    report.close_values(fixture, key, &shape, &values, |_| true)
}

/// Nearest-neighbour enlargement by a whole factor, as the fixture's input is stored.
fn upsample(x: Tensor<5>, factor: usize) -> Tensor<5> {
    let [b, t, c, h, w] = x.dims();
    x.reshape([b * t * c, h, 1, w, 1])
        .expand([b * t * c, h, factor, w, factor])
        .reshape([b, t, c, h * factor, w * factor])
}

pub fn position_tables(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let dim = fixture.usize("d")?;
    let side = (fixture.usize("patches")? as f64).sqrt() as usize;
    let pretrained = fixture.usize("ckpt_frames")?;
    let table = |frames: usize| {
        let grid = position::ClipGrid::new(frames, side * 16, side * 16, 1, 16);
        (position::clip_table(grid, dim, pretrained), grid.tokens())
    };
    let pick = |values: &[f32], rows: &[usize]| -> Vec<f32> {
        rows.iter()
            .flat_map(|r| values[r * dim..(r + 1) * dim].iter().step_by(8).copied())
            .collect()
    };
    for key in fixture.tensors.keys().filter(|k| k.starts_with("in.t")) {
        let name = key.trim_start_matches("in.").trim_end_matches(".rows");
        let frames: usize = name[1..].parse()?;
        let rows: Vec<usize> = fixture.ints(key)?.iter().map(|r| *r as usize).collect();
        let got = pick(&table(frames).0, &rows);
        let shape = [rows.len(), dim.div_ceil(8)];
        report.close_values(fixture, &format!("out.{name}"), &shape, &got, |_| true)?;
    }
    let (image, tokens) = table(1);
    let rows: Vec<usize> = (0..tokens).step_by(5).collect();
    let shape = [rows.len(), dim.div_ceil(8)];
    report.close_values(fixture, "out.img", &shape, &pick(&image, &rows), |_| true)?;
    report.nothing_left(fixture);

    Ok(report)
}

pub fn qformer_rules() -> Result<KeyRules, Failure> {
    let mut rules = KeyRules::new()
        .owns(["qformer.", "query_tokens", "extra_query_tokens"])
        .rewrite(QFORMER_KEYS, QFORMER_KEYS_INVERSE)?;
    for (pattern, reason) in QFORMER_UNUSED_KEYS {
        rules = rules.ignore(pattern, reason)?;
    }
    // The Q-Former itself is the module here; in a connector it is one field of it.
    Ok(rules.rewrite(&[(r"^qformer\.", "")], &[])?)
}

pub fn load_qformer(
    fixture: &Fixture,
    file: &std::path::Path,
    device: &Device,
) -> Result<QFormer, Failure> {
    let config = QFormerConfig::from_hf_json(fixture.config())?;
    load_from(config.init(device)?, file, &Stored(&qformer_rules()?))
}

pub fn qformer(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let device = device.clone().autodiff();
    // Dropout is off in the fixture; a frozen copy of the module would lose its gradients.
    let mut config = QFormerConfig::from_hf_json(fixture.config())?;
    config.hidden_dropout_prob = 0.0;
    config.attention_probs_dropout_prob = 0.0;
    config.drop_path_rate = 0.0;
    let rules = qformer_rules()?;
    let model = load(config.init(&device)?, fixture, &Stored(&rules))?;
    let instruction = Instruction {
        ids: fixture.int_tensor("in.text_ids", &device)?,
        mask: fixture.int_tensor("in.text_attention_mask", &device)?,
    };
    for (name, instruction) in [("notext", None), ("text", Some(&instruction))] {
        report.part(|report| {
            let image = fixture
                .tensor::<3>("in.image_embeds", &device)?
                .require_grad();
            let mut inputs = Vec::new();
            let last = model.hidden(image.clone(), instruction, |x| inputs.push(x.clone()))?;
            for (i, hidden) in inputs.iter().chain([&last]).enumerate() {
                report.close(fixture, &format!("mid.{name}.hidden.{i}"), hidden.clone())?;
            }
            let output = last.clone().narrow(1, 0, model.config().n_query());
            report.close(fixture, &format!("out.{name}.last_hidden_state"), last)?;
            report.close(fixture, &format!("out.{name}.query_output"), output.clone())?;
            let cotangent = fixture.tensor::<3>(&format!("in.{name}.cotangent"), &device)?;
            let loss = (output * cotangent).mean();
            report.close(fixture, &format!("out.{name}.loss"), loss.clone())?;
            let grads = loss.backward();
            let prefix = format!("grad.{name}.");
            compare_gradients(report, fixture, &prefix, &model, &rules, &grads)?;
            let grad = image.grad(&grads).ok_or("the image got no gradient")?;
            report.close(fixture, &format!("{prefix}in.image_embeds"), grad)
        })?;
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// The Q-Former half of `small_amplitude`: queries and image scaled down, which pins the epsilon
/// of its norms.
pub fn qformer_small(
    report: &mut Report,
    small: &Fixture,
    base: &Fixture,
    device: &Device,
) -> Result<(), Failure> {
    let mut model = load_qformer(base, &base.weights_file(), device)?;
    model.query_tokens = model.query_tokens.map(|t| t * 1e-3);
    model.extra_query_tokens = model.extra_query_tokens.map(|p| p.map(|t| t * 1e-3));
    let image = base.tensor::<3>("in.image_embeds", device)? * 1e-3;
    let out = model.forward(image, None)?;
    let shape = out.dims().to_vec();
    report.close_values(
        small,
        "out.qformer.query_output",
        &shape,
        &floats(out)?,
        |_| true,
    )
}
