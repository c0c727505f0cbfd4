//! Fixtures of the assembled model.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo::core::geometry::BoxXyxy;
use tpo::core::head::{
    FeatureSource, HeadContext, HeadSet, SampleContext, TargetSet, TaskHead, TaskOutput,
};
use tpo::core::model::{GenerateEvent, GenerateOptions, TokenBatch, TpoBatch};
use tpo::core::token::{TaskRegistry, TaskTokens, TokenId};
use tpo::core::traits::LanguageModel;
use tpo::heads::region::{REGION_KEYS, RegionHeadConfig, RegionPrediction};
use tpo::heads::temporal::TemporalPrediction;
use tpo::llm::{LlmConfig, LoraConfig, config::LORA_TARGETS};
use tpo::train::trainer::SampleInfo;
use tpo::vision::{QFormerConfig, QFormerConnectorConfig, UmtConfig};
use tpo::weights::KeyRules;
use tpo::{InputConfig, TpoConfig, VideoChatTpo, videochat_tpo_keys};

use super::check::Report;
use super::fixture::{Failure, Fixture};
use super::llm::{cross_entropy, mask_rows};
use super::temporal;
use super::weights::{Stored, compare_gradients, load_from};

/// The file a fixture takes its weights from: the JSON names it, in the same directory.
pub fn weights_of(fixture: &Fixture) -> Result<PathBuf, Failure> {
    let named = fixture.json["weights"]
        .as_str()
        .ok_or("no `weights` in the JSON")?;
    let file = named.split_whitespace().next().unwrap_or(named);
    Ok(fixture.dir.join(file))
}

pub fn region_rules() -> Result<KeyRules, Failure> {
    let mut rules = KeyRules::new().owns(["loc_encoder.", "loc_decoder."]);
    for (key, path) in REGION_KEYS {
        rules = rules.prefix(key, path);
    }
    Ok(rules)
}

/// The configuration behind `tpo_weights` of the fixture's directory.
fn config(weights: &Fixture) -> Result<TpoConfig, Failure> {
    let n = |key: &str| weights.usize(key);
    let shape =
        |key: &str| -> Result<Vec<usize>, Failure> { Ok(weights.stored(key)?.shape.clone()) };
    let id = |key: &str| -> Result<u32, Failure> {
        let id = weights.json["special_ids"][key].as_u64();
        Ok(id.ok_or_else(|| format!("no special id `{key}`"))? as u32)
    };
    let token =
        |token: &str, key: &str| -> Result<TokenId, Failure> { Ok(TokenId::new(token, id(key)?)) };
    let mut tasks = TaskRegistry::new();
    for (name, routing, placeholder) in [
        ("region", "box_begin", "boxes"),
        ("temporal", "time_begin", "temp"),
        ("mask", "track_begin", "tracking"),
    ] {
        tasks.register(TaskTokens {
            name: name.into(),
            routing: token(&format!("<{routing}>"), routing)?,
            placeholder: token(&format!("<{placeholder}>"), placeholder)?,
        })?;
    }
    tasks.box_prompt = Some(token("<track_box>", "track_box")?);

    let words = shape("w.qformer.bert.embeddings.word_embeddings.weight")?[0];
    let positions = shape("w.qformer.bert.embeddings.position_embeddings.weight")?[0];
    let region = shape("w.loc_decoder.0.weight")?;
    // Everything random is off, as in the fixture.
    let mut qformer = QFormerConfig::new(n("qh")?, n("ql")?, n("qheads")?, n("qi")?, n("D")?)
        .with_num_query_token(n("nq")?)
        .with_extra_num_query_token(n("nx")?)
        .with_vocab_size(words)
        .with_max_position_embeddings(positions);
    qformer.hidden_dropout_prob = 0.0;
    qformer.attention_probs_dropout_prob = 0.0;
    qformer.drop_path_rate = 0.0;
    let targets = LORA_TARGETS.map(String::from).to_vec();
    Ok(TpoConfig {
        input: InputConfig {
            frames: n("T")?,
            size: n("img")?,
            antialias: true,
        },
        vision: UmtConfig::new(n("img")?, n("ps")?, n("D")?, n("vdepth")?, n("vheads")?)
            .with_num_frames(n("T")?),
        connector: QFormerConnectorConfig::new(qformer, n("lh")?).with_unused_projections(true),
        llm: LlmConfig::new(
            n("lv")?,
            n("lh")?,
            n("li")?,
            n("ll")?,
            n("lheads")?,
            n("lkv")?,
            n("lh")? / n("lheads")?,
        )
        .with_rope_theta(weights.f64("theta")?)
        .lora(LoraConfig::new(n("r")?, weights.f64("alpha")?, targets)),
        region: RegionHeadConfig::new(region[1], region[0]),
        temporal: temporal::head_config(weights, &weights.config()["cg"])?,
        tasks,
        // The fixtures bring their features with them.
        features: tpo::features::FeatureTowers::InternVideo2,
        ..TpoConfig::mini(n("lv")?)
    })
}

pub fn model(fixture: &Fixture, device: &Device) -> Result<VideoChatTpo, Failure> {
    let file = weights_of(fixture)?;
    let stem = file
        .file_stem()
        .and_then(|s| s.to_str())
        .ok_or("no weights file")?;
    let weights = Fixture::open(&fixture.dir, stem)?;
    let model = config(&weights)?.init(device)?;
    load_from(model, &file, &Stored(&videochat_tpo_keys()?))
}

fn batch_of(fixture: &Fixture, index: &str) -> Result<TokenBatch, Failure> {
    let ids = fixture.int_rows("in.input_ids")?;
    let flags = |key: &str| mask_rows(fixture, key);
    Ok(TokenBatch {
        mask: if fixture.has("in.attention_mask") {
            flags("in.attention_mask")?
        } else {
            ids.iter().map(|r| vec![true; r.len()]).collect()
        },
        visual: flags(index)?,
        ids: ids
            .iter()
            .map(|r| r.iter().map(|id| *id as u32).collect())
            .collect(),
    })
}

pub fn boxes(fixture: &Fixture, prefix: &str) -> Result<Vec<Vec<BoxXyxy>>, Failure> {
    let mut rows = Vec::new();
    while fixture.has(&format!("{prefix}.{}", rows.len())) {
        let flat = fixture.floats(&format!("{prefix}.{}", rows.len()))?;
        rows.push(
            flat.chunks_exact(4)
                .map(|b| BoxXyxy::from([b[0], b[1], b[2], b[3]]))
                .collect(),
        );
    }
    Ok(rows)
}

/// Targets of all heads under `prefix`, and what the heads are told of the `rows` samples. `names`
/// are those of the videos.
pub fn targets(
    fixture: &Fixture,
    prefix: &str,
    rows: usize,
    names: &[String],
    device: &Device,
) -> Result<(TargetSet, Vec<SampleInfo>), Failure> {
    let key = |name: &str| format!("{prefix}.{name}");
    let mut samples: Vec<SampleInfo> = (0..rows)
        .map(|row| SampleInfo {
            media: names.get(row).cloned(),
            ..SampleInfo::named(format!("{prefix}:{row}"))
        })
        .collect();
    let mut targets = TargetSet::new();
    if fixture.has(&key("output_boxes.0")) {
        let boxes: Vec<BoxXyxy> = boxes(fixture, &key("output_boxes"))?.concat();
        targets = targets.with("region", boxes);
    }
    if fixture.has(&key("tvg.src_vid")) {
        targets = targets.with("temporal", temporal::targets(fixture, prefix)?);
        let features = temporal::features(
            fixture,
            [
                &key("tvg.src_vid"),
                &key("tvg.src_vid_mask"),
                &key("tvg.src_txt"),
                &key("tvg.src_txt_mask"),
            ],
            device,
        )?;
        for (sample, features) in samples.iter_mut().zip(features) {
            sample.features = Some(Arc::new(features));
        }
    }
    Ok((targets, samples))
}

/// `tpo_forward_*`: a batch with the losses of the heads it has targets for.
pub fn forward(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let device = device.clone().autodiff();
    let model = model(fixture, &device)?;
    let (media, index) = if fixture.has("in.image") {
        ("in.image", "in.image_idx")
    } else {
        ("in.video", "in.video_idx")
    };
    let mut batch = TpoBatch::new(batch_of(fixture, index)?, &device);
    let labels = fixture.int_rows("in.labels")?;
    batch.frames = Some(fixture.tensor(media, &device)?);
    batch.boxes = boxes(fixture, "in.input_boxes")?;
    batch.labels = Some(labels.clone());
    let rows = batch.tokens.shape().0;
    let names = temporal::names(&fixture.json);
    let (targets, samples) = targets(fixture, "in", rows, &names, &device)?;
    batch.targets = targets;
    let mask = batch.tokens.mask.concat();
    let positions: Vec<(u32, usize)> = batch.tokens.ids.concat().into_iter().zip(0..).collect();
    let samples: Vec<SampleContext<'_>> = samples.iter().map(SampleInfo::context).collect();
    let out = model.forward(batch, &samples)?;
    let [b, s, d] = out.hidden.dims();
    report.close(fixture, "out.text_embeds", out.embeds.clone())?;
    let values = super::check::floats(out.hidden.clone())?;
    report.close_values(fixture, "out.last_hidden", &[b, s, d], &values, |at| {
        mask[at / d]
    })?;
    let logits = model.llm.logits(out.hidden.clone());
    let vocab = model.llm.vocab_size();
    let values = super::check::floats(logits.clone())?;
    report.close_values(fixture, "out.logits", &[b, s, vocab], &values, |at| {
        mask[at / vocab]
    })?;
    report.close(
        fixture,
        "out.lm_loss",
        out.lm_loss.clone().ok_or("no LM loss")?,
    )?;
    // The model computes logits only where there are labels; the long way must agree.
    report.close(fixture, "out.lm_loss", cross_entropy(logits, &labels))?;
    let mut total = out.total().ok_or("no loss")?;
    if fixture.has("in.tvg.src_vid") {
        // The wired head reads unpadded features. On the stored batch with its padding cleared it
        // must say the same; the reference's loss is that of the batch as it is.
        let placeholder = model.registry().require("temporal")?.placeholder.id;
        let at: Vec<i64> = positions
            .into_iter()
            .filter(|(id, _)| *id == placeholder)
            .map(|(_, at)| at as i64)
            .collect();
        let n = at.len();
        let at = Tensor::<1, Int>::from_data(TensorData::new(at, [n]), &device);
        let prompt = out.hidden.clone().reshape([b * s, d]).select(0, at);
        let head = &model.heads.rest.head;
        let wired = out.head_losses.iter().find(|(name, _)| name == "temporal");
        let wired = wired.and_then(|(_, terms)| terms.total());
        let wired = wired.ok_or("the temporal head did not fire")?;
        let cleared = temporal::loss_of_batch(fixture, head, prompt.clone(), true)?;
        let apart = (wired.clone() - cleared.clone()).abs() / cleared.abs();
        report.measure("wired loss", f64::from(apart.into_scalar::<f32>()), 1e-5);
        total = total - wired + temporal::loss_of_batch(fixture, head, prompt, false)?;
    }
    report.close(fixture, "out.loss", total.clone())?;

    let map = videochat_tpo_keys()?;
    let grads = total.backward();
    compare_gradients(&mut report, fixture, "grad.", &model, &map, &grads)?;
    without_gradient(&mut report, fixture, &model, &map, &grads)?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Parameters the fixture says get no gradient must get none, or exactly zero.
fn without_gradient(
    report: &mut Report,
    fixture: &Fixture,
    model: &VideoChatTpo,
    map: &dyn tpo::weights::KeyMap,
    grads: &burn::tensor::Gradients,
) -> Result<(), Failure> {
    let found = super::check::gradients(model, grads);
    let listed = fixture.json["params_without_grad"].as_array();
    for key in listed.into_iter().flatten().filter_map(|k| k.as_str()) {
        if let tpo::weights::KeyTarget::Path(path) = map.module_path(key) {
            let zero = found
                .get(&path)
                .is_none_or(|(_, v)| v.iter().all(|g| *g == 0.0));
            report.expect(&format!("no gradient {key}"), zero, || {
                "it got a gradient; the reference gives none".into()
            });
        }
    }
    Ok(())
}

/// `tpo_generate_*` for every head the model has.
pub fn generate(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut model = model(fixture, device)?;
    let head = fixture.tensor::<2>("w.lm.base_model.model.lm_head.base_layer.weight", device)?;
    if let Some(lm_head) = &mut model.llm.lm_head {
        lm_head.weight = lm_head.weight.clone().map(|_| head);
    }
    let tokens = batch_of(fixture, "in.video_index")?;
    let visual = model.encode_visual(fixture.tensor("in.video", device)?, None)?;
    let prompt = model.embed(&tokens, Some(visual), &[], device)?;
    let greedy = |logits: &[f32], _: &[u32]| {
        let mut best = 0;
        for (i, v) in logits.iter().enumerate() {
            if *v > logits[best] {
                best = i;
            }
        }
        Ok(best as u32)
    };
    let features = if fixture.has("in.v_feat") {
        temporal::features(
            fixture,
            ["in.v_feat", "in.v_mask", "in.q_feat", "in.q_mask"],
            device,
        )?
    } else {
        Vec::new()
    };
    let sample = SampleContext {
        features: features.first().map(|f| f as &dyn FeatureSource),
        duration: fixture.json["duration"].as_f64(),
        ..SampleContext::default()
    };
    let run = model.generate(prompt, sample.clone(), GenerateOptions::default(), greedy)?;
    let mut got = Vec::new();
    let mut task: Option<(TaskOutput, Tensor<2>)> = None;
    for event in run {
        match event? {
            GenerateEvent::Token(id) => got.push(id as i64),
            GenerateEvent::Task { output, embedding } => {
                task = Some((output, embedding));
            }
            GenerateEvent::NoHead { task, .. } => {
                return Err(format!("the model has no head for `{task}`").into());
            }
        }
    }
    report.equal(fixture, "out.new_tokens", &got)?;
    let expected = fixture.json["task_head"].as_str().map(str::to_lowercase);
    let fired = task.as_ref().map(|t| t.0.task.clone());
    report.expect("task_head", fired == expected, || {
        format!("head {fired:?} fired, expected {expected:?}")
    });
    if let Some((output, embedding)) = task {
        if fixture.has("out.prompt_token") {
            let shape = fixture.stored("out.prompt_token")?.shape.clone();
            let values = super::check::floats(embedding.clone())?;
            report.close_values(fixture, "out.prompt_token", &shape, &values, |_| true)?;
        }
        if let Some(p) = output.get::<RegionPrediction>() {
            report.close_values(fixture, "out.box", &[4], &p.raw.to_array(), |_| true)?;
        }
        if let Some(p) = output.get::<TemporalPrediction>() {
            let expected = temporal::spans_of(&fixture.json["ranked"])?;
            temporal::compare_ranking(&mut report, "ranked", &p.spans, &expected);
            let context = HeadContext {
                samples: &[sample],
                rows: &[0],
            };
            let head = &model.heads.rest.head;
            let raw = head.forward(embedding, &context)?;
            temporal::predictions(&mut report, fixture, &raw)?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// Whether this build has a head for every task the fixture's answer calls.
pub fn can_generate(fixture: &Fixture, device: &Device) -> Result<bool, Failure> {
    let model = model(fixture, device)?;
    let heads = model.heads.specs();
    Ok(fixture
        .ints("out.new_tokens")?
        .iter()
        .filter_map(|id| model.registry().by_routing(*id as u32))
        .all(|task| heads.iter().any(|s| s.name == task.name)))
}
