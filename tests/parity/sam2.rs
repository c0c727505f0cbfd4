//! SAM 2 without a video: image encoder, prompts, decoder, memory encoder.

use burn::tensor::{Device, FloatDType, Tensor};
use tpo::core::geometry::BoxPixels;
use tpo::heads::mask::sam2::{
    MaskDecoder, MaskSource, PointPrompt, PromptEmbedding, PromptEncoder, Sam2, Sam2Config,
    sam2_videochat_tpo_keys,
};
use tpo::vision::hiera::sine_encoding;

use super::check::Report;
use super::fixture::{Failure, Fixture};
use super::weights::{Stored, compare_gradients, load};

/// Architecture of a SAM 2 fixture. Dropout is off in the fixtures.
pub fn config(fixture: &Fixture) -> Result<Sam2Config, Failure> {
    let decoder = &fixture.json["mask_decoder"];
    let mut config =
        Sam2Config::from_reference_json(fixture.config(), decoder.is_object().then_some(decoder))?;
    config.memory_attention.dropout = 0.0;
    Ok(config)
}

/// The model of a SAM 2 fixture with its weights.
pub fn model(fixture: &Fixture, device: &Device) -> Result<Sam2, Failure> {
    let rules = sam2_videochat_tpo_keys()?;
    load(config(fixture)?.init(device)?, fixture, &Stored(&rules))
}

/// Channels-last to the reference's order.
fn channels_first(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}

/// The reference's order to channels-last.
fn channels_last(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// Every pixel `factor` by `factor` times.
pub fn enlarge(x: Tensor<4>, factor: usize) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    x.reshape([b * c, h, 1, w, 1])
        .expand([b * c, h, factor, w, factor])
        .reshape([b, c, h * factor, w * factor])
}

/// Frames and masks are stored small; enlarged they have the side of the model's image.
fn full_size(fixture: &Fixture, key: &str, device: &Device) -> Result<Tensor<4>, Failure> {
    let low = fixture.tensor::<4>(key, device)?;
    let (side, stored) = (fixture.usize("image_size")?, low.dims()[3]);
    if stored == 0 || side % stored != 0 {
        return Err(format!("`{key}` is {stored} wide, the image {side}").into());
    }
    Ok(enlarge(low, side / stored))
}

/// Frames of a fixture, `[frames, 3, side, side]`.
pub fn frames(fixture: &Fixture, device: &Device) -> Result<Tensor<4>, Failure> {
    full_size(fixture, "in.frames_lowres", device)
}

/// Mask logits for the memory encoder, `[masks, side, side]`.
fn memory_logits(fixture: &Fixture, device: &Device) -> Result<Tensor<3>, Failure> {
    let logits = full_size(fixture, "in.memenc.mask_logits_lowres", device)?;
    let [n, masks, h, w] = logits.dims();
    Ok(logits.reshape([n * masks, h, w]))
}

pub fn modules(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let plain = device;
    let device = &plain.clone().autodiff();
    let rules = sam2_videochat_tpo_keys()?;
    let model = model(fixture, device)?;
    let config = model.config().clone();

    let frame = frames(fixture, device)?.narrow(0, 0, 1);
    let stages = model.image_encoder.trunk.forward(frame.clone())?;
    for (stage, map) in stages.into_iter().enumerate() {
        let key = format!("mid.trunk.{stage}");
        if fixture.has(&key) {
            report.close(fixture, &key, channels_first(map))?;
        }
    }
    let features = model.encode_image(frame)?;
    let high_res = &features.high_res;
    let maps = [&high_res[0], &high_res[1], &features.embedding];
    for (level, map) in maps.into_iter().enumerate() {
        let key = format!("out.fpn.{level}");
        report.close(fixture, &key, channels_first(map.clone()))?;
        let [_, h, w, _] = map.dims();
        let positions = sine_encoding(h, w, config.image_encoder.d_model, plain);
        let key = format!("out.pos.{level}");
        report.close(fixture, &key, channels_first(positions))?;
    }

    let prompts = &model.sam_prompt_encoder;
    let dense = prompts.dense_encoding();
    report.close(fixture, "out.dense_pe", channels_first(dense))?;
    let side = config.image_size as f32;
    let corners: Vec<f32> = fixture
        .floats("in.box_norm")?
        .iter()
        .map(|x| x * side)
        .collect();
    let [x0, y0, x1, y1] = corners[..] else {
        return Err("in.box_norm must have four numbers".into());
    };
    let corners = PointPrompt::corners(&BoxPixels { x0, y0, x1, y1 }).to_vec();
    let embedded = prompts.embed_points(&[corners])?;
    report.close(fixture, "out.prompt_embed", embedded.clone())?;

    let given = fixture.tensor::<3>("in.box_embed", device)?.require_grad();
    let prompt = PromptEmbedding {
        sparse: given.clone(),
        dense: prompts.no_mask(1),
    };
    let embedding = model.without_memory(features.embedding.clone());
    let output = model.decode(embedding, &features.high_res, &prompt)?;
    let many = model.choose(&output, true);
    for (name, masks) in [("multi", &many), ("single", &model.choose(&output, false))] {
        let key = |part: &str| format!("out.dec.{name}.{part}");
        report.close(fixture, &key("masks"), masks.masks.clone())?;
        report.close(fixture, &key("iou"), masks.iou.clone())?;
        report.close(fixture, &key("tokens"), masks.tokens.clone())?;
        report.close(fixture, &key("obj"), masks.object_score.clone())?;
    }
    let delta = config.tracking.dynamic_multimask_stability_delta;
    report.close(fixture, "out.dec.stability", output.stability(delta))?;

    let logits = memory_logits(fixture, device)?;
    for (name, source) in [("pts", MaskSource::Prompt), ("trk", MaskSource::Tracking)] {
        let memory = model.encode_memory(
            features.embedding.clone(),
            logits.clone(),
            many.object_score.clone(),
            source,
        )?;
        let [_, h, w, width] = memory.dims();
        let positions = sine_encoding(h, w, width, plain);
        report.close(
            fixture,
            &format!("out.memenc.{name}.feat"),
            channels_first(memory),
        )?;
        report.close(
            fixture,
            &format!("out.memenc.{name}.pos"),
            channels_first(positions),
        )?;
    }

    let cotangent = fixture.tensor::<4>("in.mask_cotangent", device)?;
    let loss = (many.masks * cotangent).mean();
    let loss = loss + (given.clone() - embedded.detach()).abs().mean();
    report.close(fixture, "out.loss", loss.clone())?;
    let grads = loss.backward();
    compare_gradients(&mut report, fixture, "grad.", &model, &rules, &grads)?;
    let grad = given.grad(&grads).ok_or("the prompt got no gradient")?;
    report.close(fixture, "grad.in.box_embed", grad)?;

    inference(&mut report, fixture, plain)?;
    report.nothing_left(fixture);
    Ok(report)
}

/// The image encoder and the decoder again without autodiff, which runs other kernels.
fn inference(report: &mut Report, fixture: &Fixture, device: &Device) -> Result<(), Failure> {
    let model = model(fixture, device)?;
    let frame = frames(fixture, device)?.narrow(0, 0, 1);
    let features = model.encode_image(frame)?;
    report.close(
        fixture,
        "out.fpn.2",
        channels_first(features.embedding.clone()),
    )?;
    let prompt = PromptEmbedding {
        sparse: fixture.tensor::<3>("in.box_embed", device)?,
        dense: model.sam_prompt_encoder.no_mask(1),
    };
    let embedding = model.without_memory(features.embedding.clone());
    let output = model.decode(embedding, &features.high_res, &prompt)?;
    let many = model.choose(&output, true);
    report.close(fixture, "out.dec.multi.masks", many.masks)?;
    let logits = memory_logits(fixture, device)?;
    let memory = model.encode_memory(
        features.embedding,
        logits,
        many.object_score,
        MaskSource::Tracking,
    )?;
    report.close(fixture, "out.memenc.trk.feat", channels_first(memory))
}

/// The parts of the model that the stability fixture has weights for.
#[derive(burn::module::Module, Debug)]
struct PromptAndDecoder {
    sam_prompt_encoder: PromptEncoder,
    sam_mask_decoder: MaskDecoder,
}

pub fn stability(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let config = config(fixture)?;
    let rules = sam2_videochat_tpo_keys()?;
    let parts = PromptAndDecoder {
        sam_prompt_encoder: config.prompt_encoder.init(device),
        sam_mask_decoder: config.mask_decoder.init(device),
    };
    let parts = load(parts, fixture, &Stored(&rules))?;
    let number = |key: &str| {
        fixture.json[key]
            .as_f64()
            .ok_or_else(|| format!("no number `{key}`"))
    };
    let (delta, threshold) = (number("stability_delta")?, number("stability_thresh")?);

    let input = |key: &str| fixture.tensor::<4>(key, device).map(channels_last);
    let high_res = [input("in.high_res.0")?, input("in.high_res.1")?];
    let prompt = PromptEmbedding {
        sparse: fixture.tensor("in.sparse", device)?,
        dense: input("in.dense")?,
    };
    let image = input("in.image_embeddings")?;
    let batch = image.dims()[0];
    let output = parts.sam_mask_decoder.forward(
        image,
        parts.sam_prompt_encoder.dense_encoding(),
        &prompt,
        &high_res,
    )?;
    let chosen = output.stable(delta, threshold);
    report.close(fixture, "out.all_masks", output.masks.clone())?;
    report.close(fixture, "out.iou_all", output.iou.clone())?;
    report.close(fixture, "out.tokens", output.tokens.clone())?;
    report.close(fixture, "out.obj", output.object_score.clone())?;
    let stability = output.stability(delta);
    report.close(fixture, "out.stability", stability.clone())?;
    report.close(fixture, "out.masks", chosen.masks)?;
    report.close(fixture, "out.iou", chosen.iou)?;

    // Which items are stable must be the same, whatever the tolerance of the ratio.
    let flags = |values: Vec<f32>| -> Vec<bool> {
        values.iter().map(|v| f64::from(*v) >= threshold).collect()
    };
    let got = flags(super::check::floats(stability.cast(FloatDType::F32))?);
    let expected = flags(fixture.floats("out.stability")?);
    report.expect(
        "stable items",
        got.len() == batch && got == expected,
        || format!("{got:?}, expected {expected:?}"),
    );
    report.nothing_left(fixture);
    Ok(report)
}
