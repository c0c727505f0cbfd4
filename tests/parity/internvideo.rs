//! InternVideo2-CLIP fixtures: both towers, their published files, the query tokenizer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tpo::heads::temporal::features::{CLIP_TEMPERATURE, InternVideo2Files, with_endpoints};
use tpo::llm::text_tower::{QUERY_LENGTH, QUERY_PREFIX, QueryTokenizer, text_rules};
use tpo::llm::{LlmConfig, LoraConfig, TextTower, TextTowerConfig};
use tpo::vision::internvideo2::load::vision_rules;
use tpo::vision::internvideo2::position::{TableGrid, interpolate, sincos_3d};
use tpo::vision::internvideo2::{InternVideo2, InternVideo2Config, VisionLoadOptions};
use tpo::weights::{KeyMap, LoadReport};

use super::check::{Report, floats, parameters};
use super::fixture::{Failure, Fixture, Values};
use super::text::tokenizer_file;
use super::weights::{Stored, load_from};

fn video_tower(fixture: &Fixture, device: &Device) -> Result<InternVideo2, Failure> {
    let mut config = InternVideo2Config::from_reference_json(fixture.config())?;
    config.rms_norm_eps = fixture.json["rmsnorm_eps"].as_f64().unwrap_or(1e-6);
    config.pool_norm_eps = fixture.json["pool_layernorm_eps"].as_f64().unwrap_or(1e-5);
    let tower = config.init(device)?;
    load_from(tower, &fixture.weights_file(), &Stored(&vision_rules()?))
}

/// The output of every block.
fn block_outputs(tower: &InternVideo2, input: Tensor<3>) -> Vec<Tensor<3>> {
    let blocks = tower.blocks.iter();
    blocks
        .scan(input, |x, block| {
            *x = block.forward(x.clone());
            Some(x.clone())
        })
        .collect()
}

pub fn vision(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let tower = video_tower(fixture, device)?;
    let hidden = fixture.json["mlp_hidden"].as_u64().ok_or("no mlp_hidden")?;
    let found = tower.config().mlp_hidden();
    report.expect("mlp_hidden", found as u64 == hidden, || found.to_string());

    for name in ["video", "image"] {
        report.part(|report| {
            let frames = fixture.tensor::<5>(&format!("in.{name}"), device)?;
            let [b, t, ..] = frames.dims();
            let patches = tower.patch_embed.forward(frames.clone());
            let [_, n, d] = patches.dims();
            let patches = patches.reshape([b, t, n / t, d]);
            report.close(fixture, &format!("mid.{name}.patch"), patches)?;
            let input = tower.input(frames.clone())?;
            let blocks = block_outputs(&tower, input.clone());
            for (i, block) in blocks.iter().enumerate() {
                let key = format!("mid.{name}.block.{i}");
                if fixture.has(&key) {
                    report.close(fixture, &key, block.clone())?;
                }
            }
            let key = format!("mid.{name}.block0.attn");
            if fixture.has(&key) {
                let block = tower.blocks.first().ok_or("no blocks")?;
                let attended = block.attn.forward(block.norm1.forward(input));
                report.close(fixture, &key, attended)?;
            }
            let key = format!("mid.{name}.pos_embed");
            if fixture.has(&key) {
                report.close(fixture, &key, tower.position_table(t == 1))?;
            }
            let key = format!("mid.{name}.pool.cross_attn");
            if fixture.has(&key) {
                let last = blocks.last().ok_or("no blocks")?.clone();
                report.close(fixture, &key, tower.clip_projector.forward(last))?;
            }
            let out = tower.forward(frames)?;
            report.close(fixture, &format!("out.{name}_embed"), out)
        })?;
    }

    report.part(|report| {
        let frames = fixture.tensor::<4>("in.frames8fps", device)?;
        let [count, c, h, w] = frames.dims();
        let per_clip = tower.config().num_frames;
        let clips = frames.reshape([count / per_clip, per_clip, c, h, w]);
        let features = with_endpoints(tower.forward(clips)?);
        let [rows, _] = features.dims();
        report.close(fixture, "out.v_feat_tef", features)?;
        let ones = Tensor::<1>::ones([rows], device);
        report.close(fixture, "out.v_feat_mask", ones)
    })?;
    report.nothing_left(fixture);
    Ok(report)
}

fn text_config(llama: &Value, lora: &Value, clip_dim: &Value) -> Result<TextTowerConfig, Failure> {
    let decoder = LlmConfig::from_hf_json(&llama.to_string())?;
    let number = |key: &str| lora[key].as_u64().ok_or(format!("no integer `{key}`"));
    let targets: Vec<String> = serde_json::from_value(lora["lora_targets"].clone())?;
    let adapters = LoraConfig::new(
        number("lora_r")? as usize,
        number("lora_alpha")? as f64,
        targets,
    );
    let clip_dim = clip_dim.as_u64().ok_or("no clip_embed_dim")? as usize;
    let pad = llama["pad_token_id"].as_u64().unwrap_or(0) as u32;
    Ok(TextTowerConfig::of(decoder, adapters, clip_dim).with_pad_token_id(pad))
}

fn text_tower(fixture: &Fixture, device: &Device) -> Result<TextTower, Failure> {
    let config = fixture.config();
    let tower = text_config(config, config, &config["clip_embed_dim"])?.init(device)?;
    load_from(tower, &fixture.weights_file(), &Stored(&text_rules()?))
}

fn rows_of(fixture: &Fixture) -> Result<Vec<Vec<u32>>, Failure> {
    Ok(fixture
        .int_rows("in.input_ids")?
        .into_iter()
        .map(|row| row.into_iter().map(|id| id as u32).collect())
        .collect())
}

pub fn text(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    use tpo::core::traits::LanguageModel;

    let mut report = Report::default();
    let tower = text_tower(fixture, device)?;
    let rows = rows_of(fixture)?;
    let mask: Vec<Vec<bool>> = rows
        .iter()
        .map(|row| row.iter().map(|id| *id > 0).collect())
        .collect();
    let expected_mask = fixture.ints("in.attention_mask")?;
    let same = mask.iter().flatten().map(|m| i64::from(*m));
    report.expect("in.attention_mask", same.eq(expected_mask), || {
        format!("{mask:?}")
    });

    let embeds = tower
        .transformer
        .embed(fixture.int_tensor("in.input_ids", device)?);
    let states = tower.transformer.hidden_states(embeds, Some(&mask), None)?;
    let flat: Vec<bool> = mask.iter().flatten().copied().collect();
    let width = tower.dim();
    for (i, state) in states.into_iter().enumerate() {
        let shape = state.dims();
        let values = floats(state)?;
        let keep = |at: usize| flat[at / width];
        for key in [
            format!("mid.hidden.{i}"),
            if i == tower.transformer.config().num_hidden_layers {
                "out.last_hidden_state".into()
            } else {
                String::new()
            },
        ] {
            if fixture.has(&key) {
                report.close_values(fixture, &key, &shape, &values, keep)?;
            }
        }
    }

    let merged = tower.clone().merge_lora();
    let mut pooled = Vec::new();
    for (i, ids) in rows.iter().enumerate() {
        for tower in [&tower, &merged] {
            let features = tower.features(ids)?;
            report.close(fixture, &format!("out.feats.{i}"), features.clone())?;
            let ones = Tensor::<1>::ones([features.dims()[0]], device);
            report.close(fixture, &format!("out.q_feat.{i}"), features)?;
            report.close(fixture, &format!("out.q_mask.{i}"), ones)?;
        }
        pooled.push(tower.clip_embedding(ids)?);
    }
    report.close(fixture, "out.text_embed", Tensor::stack::<2>(pooled, 0))?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Writes the tensors under `prefix` as a file of their own, as they are published.
fn published(fixture: &Fixture, prefix: &str, dir: &Path) -> Result<PathBuf, Failure> {
    let mut bytes = Vec::new();
    for (key, stored) in &fixture.tensors {
        if let Some(name) = key.strip_prefix(prefix) {
            let Values::Float(values) = &stored.values else {
                return Err(format!("`{key}` is not floating point").into());
            };
            let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.push((name.to_string(), stored.shape.clone(), data));
        }
    }
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let path = dir.join(format!("{}safetensors", prefix.trim_start_matches("in.")));
    safetensors::serialize_to_file(views, None, &path)?;
    Ok(path)
}

pub fn loading(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let config = fixture.config();
    let mut vision = InternVideo2Config::from_reference_json(&config["vision"])?;
    // The other blocks are left out of the fixture.
    let in_file = |i: usize| {
        let prefix = format!("in.vision_ckpt.vision_encoder.blocks.{i}.");
        fixture.tensors.keys().any(|k| k.starts_with(&prefix))
    };
    vision.depth = (0..vision.depth).take_while(|i| in_file(*i)).count();
    let text = text_config(&config["llama"], config, &config["clip_embed_dim"])?;

    let dir = tempfile::tempdir()?;
    let file = |prefix: &str| published(fixture, prefix, dir.path());
    let files = InternVideo2Files {
        vision: file("in.vision_ckpt.")?,
        vision_kind: Default::default(),
        text: file("in.text_ckpt.")?,
        clip: Some(file("in.extra_ckpt.")?),
    };
    let options = VisionLoadOptions {
        table_steps: fixture.usize("orig_t_size")?,
        ..VisionLoadOptions::default()
    };
    let (video, reports) = vision.init(device)?.load(&files.vision_files(), &options)?;
    let complete = reports.iter().all(|r| r.is_complete());
    report.expect("vision files", complete, || incomplete(&reports));
    let (text, reports) = text
        .init(device)?
        .load(&files.text_files(), &options.load)?;
    let complete = reports.iter().all(|r| r.is_complete());
    report.expect("text files", complete, || incomplete(&reports));

    compare_state(&mut report, fixture, &video, &vision_rules()?)?;
    compare_state(&mut report, fixture, &text, &text_rules()?)?;
    report.close_values(fixture, "out.state.temp", &[], &[CLIP_TEMPERATURE], |_| {
        true
    })?;

    let mut i = 0;
    while fixture.has(&format!("in.interp.{i}.pos_embed")) {
        let key = format!("in.interp.{i}.pos_embed");
        let &[_, _, dim] = &fixture.stored(&key)?.shape[..] else {
            return Err(format!("`{key}` must have three axes").into());
        };
        let sizes = fixture.ints(&format!("in.interp.{i}.t0_g0_t1_g1"))?;
        let &[t0, g0, t1, g1] = &sizes[..] else {
            return Err("t0_g0_t1_g1 must have four numbers".into());
        };
        let table = fixture.floats(&key)?;
        let from = TableGrid::of_table(table.len() / dim, t0 as usize)?;
        report.expect(&key, from.side as i64 == g0, || format!("{from:?}"));
        let to = TableGrid {
            steps: t1 as usize,
            side: g1 as usize,
        };
        let out = interpolate(&table, dim, from, to)?;
        let key = format!("out.interp.{i}.pos_embed");
        report.close_values(fixture, &key, &[1, to.rows(), dim], &out, |_| true)?;
        i += 1;
    }

    let fresh = InternVideo2Config::from_reference_json(&config["vision"])?.init(device)?;
    report.close(fixture, "out.sincos3d.tiny", fresh.position_table(false))?;
    let full = InternVideo2Config::internvideo2_1b();
    let grid = TableGrid {
        steps: full.steps(),
        side: full.grid(),
    };
    let table = sincos_3d(grid, full.embed_dim);
    let rows = fixture.ints("in.sincos3d.rows")?;
    let picked: Vec<f32> = rows
        .iter()
        .map(|row| *row as usize * full.embed_dim)
        .flat_map(|at| table[at..at + full.embed_dim].iter().step_by(4).copied())
        .collect();
    let shape = [rows.len(), full.embed_dim / 4];
    report.close_values(fixture, "out.sincos3d.full", &shape, &picked, |_| true)?;
    report.nothing_left(fixture);
    Ok(report)
}

fn incomplete(reports: &[LoadReport]) -> String {
    let lines: Vec<String> = reports.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// Compares every parameter with `out.state.<key>`.
fn compare_state<M: Module>(
    report: &mut Report,
    fixture: &Fixture,
    module: &M,
    rules: &dyn KeyMap,
) -> Result<(), Failure> {
    let found: HashMap<_, _> = parameters(module);
    for (path, (shape, values)) in &found {
        let key = rules
            .checkpoint_key(path, &|path| found.contains_key(path))
            .ok_or_else(|| format!("the parameter `{path}` has no key"))?;
        report.close_values(fixture, &format!("out.state.{key}"), shape, values, |_| {
            true
        })?;
    }
    Ok(())
}

/// Weights and inputs of the two tower fixtures, scaled down: pins the norms' epsilon.
pub fn small_amplitude(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Fixture::open(&fixture.dir, "internvideo2_clip_vision")?;
    let mut tower = video_tower(&base, device)?;
    tower.cls_token = tower.cls_token.map(|t| t * 1e-3);
    tower.pos_embed = tower.pos_embed.map(|t| t * 1e-3);
    let proj = &mut tower.patch_embed.proj;
    proj.weight = proj.weight.clone().map(|t| t * 1e-3);
    proj.bias = proj.bias.clone().map(|t| t * 1e-3);
    let video = base.tensor::<5>("in.video", device)?;
    let blocks = block_outputs(&tower, tower.input(video.clone())?);
    let block = blocks.first().ok_or("no blocks")?.clone();
    report.close(fixture, "out.block0", block)?;
    report.close(fixture, "out.video_embed", tower.forward(video)?)?;

    let base = Fixture::open(&fixture.dir, "internvideo2_clip_text")?;
    let mut tower = text_tower(&base, device)?;
    let table = &mut tower.transformer.model.embed_tokens.weight;
    *table = (table.val() * 1e-2).into();
    let rows = rows_of(&base)?;
    let features = tower.features(rows.first().ok_or("no rows")?)?;
    report.close(fixture, "out.text_feats", features)?;
    report.nothing_left(fixture);
    Ok(report)
}

pub fn query_ids(fixture: &Fixture, given: Option<&Path>) -> Result<Report, Failure> {
    let mut report = Report::default();
    let json = &fixture.json;
    let tokenizer = QueryTokenizer::from_sentencepiece(tokenizer_file(fixture, given)?)?;
    let inner = tokenizer.tokenizer();
    let rules = [
        ("prefix", Value::from(QUERY_PREFIX)),
        ("max_length", Value::from(QUERY_LENGTH)),
        ("pad_id", Value::from(tokenizer.pad_id())),
        ("bos", Value::from(inner.bos_id())),
        ("eos", Value::from(inner.eos_id())),
    ];
    for (key, found) in rules {
        report.expect(key, json[key] == found, || {
            format!("{found}, expected {}", json[key])
        });
    }
    let cases = json["cases"].as_array().ok_or("no cases")?;
    for (i, case) in cases.iter().enumerate() {
        let ids = tokenizer.encode(case["text"].as_str().ok_or("no text")?)?;
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        report.expect(&format!("case {i}"), ids == expected, || {
            format!("got {ids:?}, expected {expected:?}")
        });
        let n = ids.iter().filter(|id| **id != tokenizer.pad_id()).count();
        let right = case["n"].as_u64() == Some(n as u64);
        report.expect(&format!("case {i} n"), right, || n.to_string());
    }
    Ok(report)
}
