//! Fixtures of the assembled model.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo::core::geometry::BoxXyxy;
use tpo::core::head::{
    FrameSource, HeadConfigs, HeadContext, HeadSet, Sample, TargetSet, TaskHead, TaskOutput,
};
use tpo::core::model::{GenerateEvent, GenerateOptions, GenerateRow, TokenBatch, TpoBatch};
use tpo::core::token::{TaskRegistry, TaskTokens, TokenId};
use tpo::core::traits::{LanguageModel, VisualInput};
use tpo::data::FrameSampling;
use tpo::heads::mask::sam2::Sam2Config;
use tpo::heads::mask::track::{ObjectId, Propagation, SourceFrames, TrackOptions, TrackState};
use tpo::heads::mask::{MaskHead, MaskHeadConfig, MaskPrediction, MaskTarget, PromptSource};
use tpo::heads::region::{REGION_KEYS, RegionHead, RegionHeadConfig, RegionPrediction};
use tpo::heads::temporal::{TemporalHead, TemporalPrediction};
use tpo::llm::{LlmConfig, LoraConfig, config::LORA_TARGETS};
use tpo::model::{BuiltInHeads, ConnectorConfig, VisionConfig, videochat_tpo_keys};
use tpo::vision::{QFormerConfig, QFormerConnectorConfig, UmtConfig};
use tpo::weights::KeyRules;
use tpo::{InputConfig, TpoConfig, VideoChatTpo};

use super::check::Report;
use super::fixture::{Failure, Fixture};
use super::llm::{cross_entropy, mask_rows};
use super::track::Frames;
use super::weights::{Stored, compare_gradients, load_from};
use super::{sam2, temporal, track};

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

/// The tasks of VideoChat-TPO; `id` says the ids of tokens.
pub fn tasks(id: impl Fn(&str) -> Option<u64>) -> Result<TaskRegistry, Failure> {
    let token = |name: &str| -> Result<TokenId, Failure> {
        let id = id(name).ok_or_else(|| format!("no id of `{name}`"))?;
        Ok(TokenId::new(format!("<{name}>"), u32::try_from(id)?))
    };
    let mut tasks = TaskRegistry::new();
    for (name, routing, placeholder) in [
        ("region", "box_begin", "boxes"),
        ("temporal", "time_begin", "temp"),
        ("mask", "track_begin", "tracking"),
    ] {
        tasks.register(TaskTokens {
            name: name.into(),
            routing: token(routing)?,
            placeholder: token(placeholder)?,
        })?;
    }
    tasks.box_prompt = Some(token("track_box")?);
    Ok(tasks)
}

/// The configuration behind `tpo_weights` of the fixture's directory.
fn config(weights: &Fixture) -> Result<TpoConfig, Failure> {
    let n = |key: &str| weights.usize(key);
    let shape =
        |key: &str| -> Result<Vec<usize>, Failure> { Ok(weights.stored(key)?.shape.clone()) };
    let tasks = tasks(|token| weights.json["special_ids"][token].as_u64())?;

    let words = shape("w.qformer.bert.embeddings.word_embeddings.weight")?[0];
    let positions = shape("w.qformer.bert.embeddings.position_embeddings.weight")?[0];
    let region = shape("w.loc_decoder.0.weight")?;
    let adapter = shape("w.track_embed.layers.0.weight")?;
    let decoder = &weights.json["sam_mask_decoder"];
    let mut sam = Sam2Config::from_reference_json(
        &weights.json["sam_config"],
        decoder.is_object().then_some(decoder),
    )?;
    sam.memory_attention.dropout = 0.0;
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
            sampling: FrameSampling::Middle,
            size: n("img")?,
            antialias: true,
        },
        vision: VisionConfig::Umt(
            UmtConfig::new(n("img")?, n("ps")?, n("D")?, n("vdepth")?, n("vheads")?)
                .with_num_frames(n("T")?),
        ),
        connector: ConnectorConfig::QFormer(
            QFormerConnectorConfig::new(qformer, n("lh")?).with_unused_projections(true),
        ),
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
        heads: HeadConfigs::default()
            .with::<RegionHead>(&RegionHeadConfig::new(region[1], region[0]))?
            .with::<TemporalHead>(&temporal::head_config(weights, &weights.config()["cg"])?)?
            .with::<MaskHead>(&MaskHeadConfig::new(adapter[1], adapter[0], sam))?,
        tasks,
        // The fixtures bring their features with them.
        features: tpo::features::FeatureTowers::InternVideo2,
        ..TpoConfig::nano(n("lv")?)
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
        turns: Vec::new(),
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
) -> Result<(TargetSet, Vec<Sample>), Failure> {
    let key = |name: &str| format!("{prefix}.{name}");
    let mut samples: Vec<Sample> = (0..rows)
        .map(|row| Sample {
            media: names.get(row).cloned(),
            ..Sample::named(format!("{prefix}:{row}"))
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
    if fixture.has(&key("sam_images")) || fixture.has(&key("sam_images_lowres")) {
        // The box of the question is the object to be followed: one per mask token.
        let boxes = boxes(fixture, &key("input_boxes"))?.concat().into_iter();
        let boxes: Vec<MaskTarget> = boxes.map(MaskTarget::from_box).collect();
        targets = targets.with("mask", boxes);
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
    batch.visuals = VisualInput::clips(fixture.tensor(media, &device)?);
    batch.boxes = boxes(fixture, "in.input_boxes")?;
    batch.labels = Some(labels.clone());
    let rows = batch.tokens.shape().0;
    let names = temporal::names(&fixture.json);
    let (targets, samples) = targets(fixture, "in", rows, &names, &device)?;
    batch.targets = targets;
    let mask = batch.tokens.mask.concat();
    let positions: Vec<(u32, usize)> = batch.tokens.ids.concat().into_iter().zip(0..).collect();
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
        let head = &model.heads.temporal;
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
    let listed = &fixture.json["params_without_grad"];
    without_gradient(&mut report, listed, &model, &map, &grads);
    report.nothing_left(fixture);
    Ok(report)
}

/// Parameters the fixture says get no gradient must get none, or exactly zero.
pub fn without_gradient(
    report: &mut Report,
    listed: &serde_json::Value,
    model: &VideoChatTpo,
    map: &dyn tpo::weights::KeyMap,
    grads: &burn::tensor::Gradients,
) {
    let found = super::check::gradients(model, grads);
    for key in listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|k| k.as_str())
    {
        if let tpo::weights::KeyTarget::Path(path) = map.module_path(key) {
            let zero = found
                .get(&path)
                .is_none_or(|(_, v)| v.iter().all(|g| *g == 0.0));
            report.expect(&format!("no gradient {key}"), zero, || {
                "it got a gradient; the reference gives none".into()
            });
        }
    }
}

/// The likeliest id.
pub fn greedy(logits: &[f32], _: &[u32]) -> tpo::core::Result<u32> {
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    Ok(best as u32)
}

/// `tpo_generate_*` for every head the model has.
pub fn generate(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut model = model(fixture, device)?;
    let head = fixture.tensor::<2>("w.lm.base_model.model.lm_head.base_layer.weight", device)?;
    if let Some(lm_head) = model.llm.lm_head.own_mut() {
        lm_head.weight = head.into();
    }
    let tokens = batch_of(fixture, "in.video_index")?;
    let visuals = VisualInput::clips(fixture.tensor("in.video", device)?);
    let visual = model.encode_visuals(visuals, None)?;
    let boxes = boxes(fixture, "in.input_boxes")?;
    let prompt = model.embed(&tokens, visual, &boxes, device)?;
    if !boxes.is_empty() {
        // The reference's `generate_seg` goes by the token although the question has a box.
        let mask = &mut model.heads.mask;
        *mask = mask.clone().with_prompt(PromptSource::TaskToken);
    }
    let frames = if fixture.has("in.sam_images_lowres") {
        let side = model.heads.mask.config().sam.image_size;
        Some(Arc::new(sam_frames(fixture, side, device)?))
    } else {
        None
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
    let sample = Sample {
        features: features.into_iter().next().map(|f| Arc::new(f) as _),
        duration: fixture.json["duration"].as_f64(),
        boxes: boxes.first().cloned().unwrap_or_default(),
        frames: frames.clone().map(|f| f as Arc<dyn FrameSource>),
        size: video_size(fixture),
        ..Sample::default()
    };
    let row = GenerateRow {
        prompt,
        sample: sample.clone(),
        force: Vec::new(),
        choose: greedy,
    };
    let run = model.generate(vec![row], GenerateOptions::default())?;
    let mut got = Vec::new();
    let mut tasks: Vec<(TaskOutput, Tensor<2>)> = Vec::new();
    for event in run {
        match event?.1? {
            GenerateEvent::Token(id) => got.push(id as i64),
            GenerateEvent::Task { output, embedding } => {
                tasks.push((output, embedding));
            }
            GenerateEvent::NoHead { task, .. } => {
                return Err(format!("the model has no head for `{task}`").into());
            }
            GenerateEvent::Unanswered { task, why, .. } => {
                return Err(format!("`{task}` was not answered: {why}").into());
            }
        }
    }
    report.equal(fixture, "out.new_tokens", &got)?;
    if fixture.json.get("task_head").is_some() {
        // The last start token wins.
        let expected = fixture.json["task_head"].as_str().map(str::to_lowercase);
        let fired = tasks.last().map(|t| t.0.task.clone());
        report.expect("task_head", fired == expected, || {
            format!("head {fired:?} fired, expected {expected:?}")
        });
    }
    for (output, embedding) in tasks {
        if fixture.has("out.prompt_token") {
            let shape = fixture.stored("out.prompt_token")?.shape.clone();
            let values = super::check::floats(embedding.clone())?;
            report.close_values(fixture, "out.prompt_token", &shape, &values, |_| true)?;
        }
        let context = HeadContext {
            samples: std::slice::from_ref(&sample),
            rows: &[0],
        };
        if let Some(p) = output.get::<RegionPrediction>() {
            let key = if fixture.has("out.box") {
                "out.box"
            } else {
                "out.bbox.0"
            };
            report.close_values(fixture, key, &[4], &p.raw.to_array(), |_| true)?;
        }
        if let Some(p) = output.get::<TemporalPrediction>() {
            let expected = temporal::spans_of(&fixture.json["ranked"])?;
            temporal::compare_ranking(&mut report, "ranked", &p.spans, &expected);
            let raw = model.heads.temporal.forward(embedding.clone(), &context)?;
            let raw = raw.cg_detr().ok_or("the simple head has no fixture")?;
            temporal::predictions(&mut report, fixture, raw)?;
        }
        if let Some(p) = output.get::<MaskPrediction>() {
            masks(&mut report, fixture, p)?;
            let head = &model.heads.mask;
            let tokens = head.forward(embedding, &context)?.prompt;
            if fixture.has("out.box_embed") {
                report.close(fixture, "out.box_embed", tokens.clone())?;
            }
            let frames = frames.as_ref().ok_or("no frames")?;
            mask_logits(&mut report, fixture, &head.sam, frames, p.size, tokens)?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// Whether this build has a head for every task the fixture's answer calls.
pub fn can_generate(fixture: &Fixture, device: &Device) -> Result<bool, Failure> {
    let model = model(fixture, device)?;
    let heads = BuiltInHeads::specs();
    Ok(fixture
        .ints("out.new_tokens")?
        .iter()
        .filter_map(|id| model.registry().by_routing(*id as u32))
        .all(|task| heads.iter().any(|s| s.name == task.name)))
}

/// `(width, height)` of the video.
fn video_size(fixture: &Fixture) -> Option<(u32, u32)> {
    let size = &fixture.json["size_hw"][0];
    let side = |at: usize| size[at].as_u64().and_then(|n| u32::try_from(n).ok());
    side(1).zip(side(0))
}

/// Frames of SAM 2; stored small, enlarged they have the side of its image.
fn sam_frames(fixture: &Fixture, side: usize, device: &Device) -> Result<Frames, Failure> {
    let low = fixture.tensor::<5>("in.sam_images_lowres", device)?;
    let [batch, frames, channels, h, w] = low.dims();
    if batch != 1 {
        return Err(format!("{batch} videos, one was expected").into());
    }
    if w == 0 || !side.is_multiple_of(w) {
        return Err(format!("frames are {w} wide, the image {side}").into());
    }
    let low = low.reshape([frames, channels, h, w]);
    Ok(Frames(sam2::enlarge(low, side / w)))
}

/// The masks of the answer, every frame.
fn masks(report: &mut Report, fixture: &Fixture, found: &MaskPrediction) -> Result<(), Failure> {
    for frame in &found.frames {
        let mask = frame.mask.decode()?;
        let flags: Vec<bool> = mask.0.iter().copied().collect();
        let key = format!("out.mask.{}", frame.frame);
        track::bits_of(report, fixture, &key, &flags)?;
    }
    Ok(())
}

/// The logits behind the masks, which an answer does not hold.
fn mask_logits(
    report: &mut Report,
    fixture: &Fixture,
    sam: &tpo::heads::mask::sam2::Sam2,
    frames: &Frames,
    size: [usize; 2],
    tokens: Tensor<3>,
) -> Result<(), Failure> {
    if !fixture.has("out.mask_logits.0") {
        return Ok(());
    }
    let like = sam.no_mem_embed.val().reshape([-1]);
    let frames = SourceFrames::new(frames, sam.config().image_size, size, like);
    let mut state = TrackState::init(sam, frames, TrackOptions::default())?;
    state.add_embedding(sam, 0, ObjectId(0), tokens)?;
    for masks in state.propagate(sam, Propagation::forward())? {
        let masks = masks?;
        let key = format!("out.mask_logits.{}", masks.frame);
        track::logits(report, fixture, &key, &masks)?;
    }
    Ok(())
}
