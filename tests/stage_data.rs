//! Recipes on files and on the synthetic world: what is learned, resumed and refused.

#[path = "common/alone.rs"]
mod alone;
#[path = "common/npy.rs"]
mod npy;

use std::any::Any;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alone::alone;
use burn::tensor::{Device, Tensor};
use npy::write_npy;
use serde_json::{Value, json};
use tpo::core::head::HeadContext;
use tpo::data::synthetic::{RowsConfig, WorldRows, WorldTask};
use tpo::data::{MediaLimits, VideoReader};
use tpo::features::{ExtractOptions, FeatureTowers, TemporalTowers, extract_reader, extract_video};
use tpo::heads::mask::MaskTarget;
use tpo::heads::temporal::TemporalTarget;
use tpo::heads::temporal::features::{TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES};
use tpo::prelude::*;
use tpo::train::checkpoint::{CheckpointStore, Retention, files};
use tpo::train::observe::read_metrics;
use tpo::train::recipe::{ModelSpec, Recipe};
use tpo::train::trainer::{FeedData, Purpose, RunEnd, TrainBatch};
use tpo::train::{Stage, TrainData, TrainError};
use tpo::training::{
    self, DataContext, RecipeModel, RunOptions, RunSummary, recipe_model, run_recipe_with,
};

fn stage_data(
    purpose: Purpose,
    stage: &Stage,
    seed: u64,
    context: &DataContext,
) -> tpo::train::Result<FeedData> {
    training::stage_data::<BuiltInHeads>(purpose, stage, seed, context)
}

fn run_recipe(recipe: &Recipe, options: &RunOptions) -> tpo::Result<RunSummary> {
    training::run_recipe(recipe, options)
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

/// Rows about a real video of 4 s, 320 x 240 pixels: conversations and annotations of every head.
fn rows() -> Vec<Value> {
    let video = || json!({"video": "bouncing_shapes.mp4"});
    let full = Mask(ndarray_like(24, 32, |y, x| {
        (4..12).contains(&y) && (6..20).contains(&x)
    }));
    let rle = serde_json::to_value(Rle::encode(&full)).unwrap();
    vec![
        json!({"media": video(), "turns": [
            {"question": "Where is the ball?", "answer": "It is at <task:region>."},
            {"question": "What moves?", "answer": "Shapes."}],
            "annotations": [{"task": "region", "query": "the ball", "box_pixels": [10, 20, 90, 100]}]}),
        json!({"media": video(), "annotations": [
            {"task": "temporal", "query": "the ball bounces", "spans": [[1.0, 2.5]]}]}),
        json!({"media": {"video": "bouncing_shapes.mp4", "range": [1.0, 3.0]}, "annotations": [
            {"task": "mask", "query": "the square", "track": [
                {"time": 1.0, "rle": rle}, {"time": 2.0, "rle": rle}]}]}),
        // A track of boxes, as LaSOT has them, beside a region and a moment.
        json!({"media": video(), "annotations": [
            {"task": "mask", "prompt_box": [0.1, 0.1, 0.3, 0.4], "track": [
                {"frame": 0, "box": [0.1, 0.1, 0.3, 0.4]}, {"frame": 50, "box": [0.2, 0.1, 0.4, 0.4]}]},
            {"task": "region", "query": "the star", "box": [0.5, 0.5, 0.75, 0.9]},
            {"task": "temporal", "query": "the star turns", "spans": [[0.0, 1.5], [3.0, 4.0]],
             "saliency": {"clip_seconds": 1.0, "clips": [0, 3], "scores": [[4, 3, 4], [1, 2, 2]]}}]}),
        json!({"turns": [{"question": "Say yes.", "answer": "Yes."}]}),
        json!({"media": video(), "turns": [{"question": "How many?", "options": ["one", "three"], "correct": 1}]}),
    ]
}

fn ndarray_like(
    height: usize,
    width: usize,
    pixel: impl Fn(usize, usize) -> bool,
) -> ndarray::Array2<bool> {
    ndarray::Array2::from_shape_fn((height, width), |(y, x)| pixel(y, x))
}

fn write_rows(dir: &Path) -> PathBuf {
    let path = dir.join("rows.jsonl");
    let text: String = rows().iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(&path, text).unwrap();
    path
}

/// A recipe of one stage on these sources, in which every head learns.
fn recipe(sources: &str, more: &str) -> Recipe {
    let text = format!(
        r#"
name = "files"
model = {{ preset = "nano", lora = {{ rank = 2, alpha = 4.0, dropout = 0.1 }} }}

[[stages]]
name = "all"
length = {{ steps = 3 }}
batch_size = 2
clip_norm = 1.0
checkpoint_every = {{ steps = 1 }}
heads_must_fire_within = 0
{more}
data = {{ sources = [{sources}] }}
groups = [
    {{ name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-3 }},
    {{ name = "perception", patterns = ["vision.**", "connector.**"], learning_rate = 1e-3 }},
    {{ name = "region", patterns = ["heads.region.**", "task_tokens.region"], learning_rate = 1e-3 }},
    {{ name = "temporal", patterns = ["heads.temporal.model.**", "task_tokens.temporal"], learning_rate = 1e-3 }},
    {{ name = "mask", patterns = ["heads.mask.track_embed.**", "heads.mask.track_embed_decode2.**", "task_tokens.mask"], learning_rate = 1e-3 }},
]
"#
    );
    Recipe::read(&text, "r.toml", &[] as &[&str]).unwrap_or_else(|e| panic!("{e}"))
}

fn file_source(path: &Path) -> String {
    format!(
        "{{ name = \"video\", annotations = {:?}, media = {:?} }}",
        path.display().to_string(),
        assets().display().to_string()
    )
}

fn last_files(dir: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let store = CheckpointStore::new(dir.join("checkpoints"), Retention::ALL);
    let found = store.newest().unwrap().0.expect("a checkpoint");
    assert_eq!(found.manifest().step, 3);
    [files::WEIGHTS, files::OPTIMIZER, files::STATE]
        .into_iter()
        .map(|name| (name, std::fs::read(found.dir().join(name)).unwrap()))
        .collect()
}

/// A stream that breaks off, as a killed run does.
struct Cut {
    inner: Box<dyn TrainData>,
    left: usize,
}

impl TrainData for Cut {
    fn next_batch(&mut self, device: &Device) -> tpo::train::Result<TrainBatch> {
        if self.left == 0 {
            return Err(TrainError::Data {
                what: "the stream".into(),
                source: "cut".into(),
            });
        }
        self.left -= 1;
        self.inner.next_batch(device)
    }
    fn see(&mut self, model: &dyn Any) {
        self.inner.see(model);
    }
    fn skipped(&self) -> u64 {
        self.inner.skipped()
    }
    fn batches_per_epoch(&self) -> u64 {
        self.inner.batches_per_epoch()
    }
    fn cursor(&self) -> Value {
        self.inner.cursor()
    }
    fn seek(&mut self, cursor: &Value) -> tpo::train::Result<()> {
        self.inner.seek(cursor)
    }
}

#[test]
fn a_file_of_real_videos_trains_and_resumes_in_the_middle_of_an_epoch() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = write_rows(dir.path());
    let mut text = std::fs::read_to_string(&path).unwrap();
    // A bad row changes nothing, and is counted.
    text.push_str("{\"nonsense\": 1}\n");
    std::fs::write(&path, &text).unwrap();
    let recipe = recipe(&file_source(&path), "");
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let device = Device::flex();
    let done = run_recipe(&recipe, &RunOptions::new(&whole, &device)).unwrap();
    assert_eq!(done.end, RunEnd::Finished);
    let records = read_metrics(whole.join("metrics.jsonl")).unwrap();
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|r| r.values["skipped"] == 1.0));
    // Five rows with a video in batches of two and one of text: four batches an epoch.
    let (_, context) = open(&recipe);
    let data = stage_data(Purpose::Train, &recipe.stages[0], 42, &context).unwrap();
    assert_eq!(data.batches_per_epoch(), 4);

    let broken =
        run_recipe_with::<BuiltInHeads>(&recipe, &RunOptions::new(&cut, &device), &mut |purpose,
                                                                                        stage,
                                                                                        _,
                                                                                        seed,
                                                                                        (
            config,
            tokenizer,
        )| {
            let context = DataContext::new(config, tokenizer);
            let inner = Box::new(stage_data(purpose, stage, seed, &context)?);
            Ok(Box::new(Cut { inner, left: 2 }))
        });
    assert!(broken.unwrap_err().to_string().contains("cut"));
    let options = RunOptions {
        resume: true,
        ..RunOptions::new(&cut, &device)
    };
    let resumed = run_recipe(&recipe, &options).unwrap();
    assert_eq!(resumed.resumed_at, Some(2));
    let (a, b) = (last_files(&whole), last_files(&cut));
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{name} differs");
    }
    // Stopped on purpose, it comes to the same.
    let early = dir.path().join("early");
    let options = RunOptions {
        stop_after: Some(1),
        ..RunOptions::new(&early, &device)
    };
    assert_eq!(run_recipe(&recipe, &options).unwrap().end, RunEnd::Stopped);
    let options = RunOptions {
        resume: true,
        ..RunOptions::new(&early, &device)
    };
    let resumed = run_recipe(&recipe, &options).unwrap();
    assert_eq!(
        (resumed.resumed_at, resumed.end),
        (Some(1), RunEnd::Finished)
    );
    let b = last_files(&early);
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{name} differs");
    }
    let records = read_metrics(early.join("metrics.jsonl")).unwrap();
    assert!(records.iter().all(|r| r.values["skipped"] == 1.0));
    // With other rows it is another run.
    std::fs::write(&path, text + &rows()[1].to_string()).unwrap();
    let error = run_recipe(&recipe, &options).unwrap_err().to_string();
    let expected = "the data of stage `all` are not those of the checkpoint: the data, mixture";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_stage_mixes_files_and_worlds() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = write_rows(dir.path());
    let world = r#"{ name = "shapes", repeat = 2, weight = 3.0, limit = 3, synthetic = {
        tasks = ["region", "temporal", "mask", "chat"], rows = 5, seed = 3, queries_per_clip = 6 } }"#
        .replace('\n', " ");
    let sources = format!("{}, {world}", file_source(&path));
    let recipe = recipe(&sources, "loss = { language = 1.0 }");
    let out = dir.path().join("run");
    let done = run_recipe(&recipe, &RunOptions::new(&out, &Device::flex())).unwrap();
    assert_eq!(done.end, RunEnd::Finished);
    let records = read_metrics(out.join("metrics.jsonl")).unwrap();
    let names: Vec<&String> = records.iter().flat_map(|r| r.values.keys()).collect();
    for part in ["lm", "region/l1", "temporal/", "mask/embedding"] {
        assert!(names.iter().any(|n| n.contains(part)), "{part}: {names:?}");
    }
    for record in &records {
        assert!(record.values["loss"].is_finite());
    }
}

fn open(recipe: &Recipe) -> (RecipeModel, DataContext) {
    let built = recipe_model(recipe, &Device::flex()).unwrap();
    let context = DataContext::new(&built.config, &built.tokenizer);
    (built, context)
}

#[test]
fn every_token_of_a_conversation_drives_its_head() {
    let _lock = alone();
    let world = r#"{ name = "shapes", synthetic = { tasks = ["region", "temporal", "mask", "chat"], rows = 4, seed = 3, queries_per_clip = 8 } }"#;
    let recipe = recipe(world, "");
    let (built, context) = open(&recipe);
    let mut data = stage_data(Purpose::Train, &recipe.stages[0], 1, &context).unwrap();
    let device = Device::flex();
    // The features are of a model; nobody has shown one.
    let error = data.next_batch(&device).unwrap_err().to_string();
    assert!(error.contains("TrainData::see"), "{error}");
    let start = {
        let fresh = stage_data(Purpose::Train, &recipe.stages[0], 1, &context).unwrap();
        fresh.cursor()
    };
    data.seek(&start).unwrap();
    data.see(&built.model);
    let batch = data.next_batch(&device).unwrap();
    let mut counts = BTreeMap::new();
    for task in ["region", "temporal", "mask"] {
        let id = built.config.tasks.get(task).unwrap().placeholder.id;
        let (_, length) = batch.batch.tokens.shape();
        let at = batch.batch.tokens.positions_of(id);
        let rows: Vec<usize> = at.iter().map(|p| p / length).collect();
        let context = HeadContext {
            samples: &batch.samples,
            rows: &rows,
        };
        assert!(rows.len() > 2, "{task} is called {} times", rows.len());
        for token in 0..rows.len() {
            let call = context.call(task, token).expect("its call");
            assert!(call.query.is_some());
            if task == "temporal" {
                let features = |name| context.require_features(task, token, name).unwrap();
                // One row per frame of the clip.
                assert_eq!(features(TEMPORAL_VIDEO_FEATURES).dims()[0], 16);
                let text = features(TEMPORAL_TEXT_FEATURES).into_data();
                let query = call.query.as_deref().unwrap();
                let towers = towers(&built);
                let own = towers
                    .text
                    .as_ref()
                    .unwrap()
                    .extract(query)
                    .unwrap()
                    .into_data();
                assert_eq!(text, own, "{query}");
            }
        }
        counts.insert(task, rows.len());
    }
    let targets = &batch.batch.targets;
    let temporal = targets.get::<TemporalTarget>("temporal").unwrap().unwrap();
    let masks = targets.get::<MaskTarget>("mask").unwrap().unwrap();
    assert_eq!(
        (temporal.len(), masks.len()),
        (counts["temporal"], counts["mask"])
    );
    assert!(temporal.iter().all(|t| t.saliency.scores.len() == 16));
    let frames = built.config.input.frames;
    assert!(masks.iter().all(|m| m.masks.len() == frames));
    let output = built.model.forward(batch.batch, &batch.samples).unwrap();
    let mut heads: Vec<&str> = output.head_losses.iter().map(|(n, _)| n.as_str()).collect();
    heads.sort_unstable();
    assert_eq!(heads, ["mask", "region", "temporal"]);
    let total: f32 = output.total().unwrap().into_scalar();
    assert!(total.is_finite() && total > 0.0);
}

fn towers(built: &RecipeModel) -> TemporalTowers {
    let clips = built.config.features.own_clips();
    let clips = clips.expect("the nano model has towers of its own");
    let size = built.config.input.size;
    TemporalTowers::of_model(&built.model, &built.tokenizer, size, clips).unwrap()
}

#[test]
fn training_reads_the_features_that_a_chat_reads() {
    let _lock = alone();
    let rows = RowsConfig::new([WorldTask::Temporal], 1, 3);
    let source = r#"{ name = "shapes", synthetic = { tasks = ["temporal"], rows = 1, seed = 3 } }"#;
    let mut recipe = recipe(
        source,
        "loss = { heads = { temporal = {} }, other_heads = 0.0 }",
    );
    let groups = &mut recipe.stages[0].groups;
    groups.retain(|group| group.name != "region" && group.name != "mask");
    let (built, context) = open(&recipe);
    let input = &built.config.input;
    let made = WorldRows::new(rows, input.frames, input.size).unwrap();
    let (_, video) = made.row(0, &MediaLimits::default()).unwrap();
    assert_eq!(video.info().frame_count, 16);
    let options = ExtractOptions::default();
    let chat = extract_reader(
        &video,
        &**towers(&built).video.as_ref().unwrap(),
        &options,
        None,
    )
    .unwrap();
    let mut data = stage_data(Purpose::Train, &recipe.stages[0], 1, &context).unwrap();
    data.see(&built.model);
    let batch = data.next_batch(&Device::flex()).unwrap();
    let features = batch.samples[0].features.as_ref().unwrap();
    let own: Tensor<2> = features.features(TEMPORAL_VIDEO_FEATURES).unwrap().unwrap();
    assert_eq!(own.dims(), chat.features.dims());
    let worst: f32 = (own - chat.features).abs().max().into_scalar();
    assert!(worst < 1e-5, "{worst}");
}

/// `features = "DIR"` of a source takes the place of towers.
#[test]
fn a_source_brings_features_that_were_computed_before() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let (path, features) = (dir.path().join("rows.jsonl"), dir.path().join("features"));
    std::fs::create_dir_all(features.join("text")).unwrap();
    let row = |id: &str, more: Value| {
        let mut media = json!({"video": "bouncing_shapes.mp4"});
        media
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"id": id, "media": media, "annotations": [
            {"task": "temporal", "query": "it bounces", "spans": [[1.0, 2.5]]}]})
    };
    let write = |rows: &[Value]| {
        let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
        std::fs::write(&path, text).unwrap();
    };
    write(&[
        row("17", json!({})),
        row("18", json!({"range": [1.0, 3.0]})),
    ]);
    let source = file_source(&path).replace(
        " }",
        &format!(", features = {:?} }}", features.display().to_string()),
    );
    let loss = "loss = { heads = { temporal = {} }, other_heads = 0.0 }";
    let mut recipe = recipe(&source, loss);
    let groups = &mut recipe.stages[0].groups;
    groups.retain(|group| group.name != "region" && group.name != "mask");
    let (built, mut context) = open(&recipe);
    let towers = towers(&built);
    let video = assets().join("bouncing_shapes.mp4");
    let found = extract_video(
        &video,
        &**towers.video.as_ref().unwrap(),
        &ExtractOptions::default(),
        None,
    )
    .unwrap();
    found
        .save(features.join("bouncing_shapes.safetensors"), "nano")
        .unwrap();
    let text = towers.text.as_ref().unwrap().extract("it bounces").unwrap();
    context.config.features = FeatureTowers::InternVideo2;

    let batch = |context: &DataContext| {
        let mut data = stage_data(Purpose::Evaluate, &recipe.stages[0], 1, context).unwrap();
        data.next_batch(&Device::flex())
    };
    // There is nothing of the queries yet, and no tower to ask.
    let error = batch(&context).err().unwrap();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.contains("text/qid1") && error.contains("--towers DIR"),
        "{error}"
    );
    // A model that reads its own language model needs none.
    context.config.features = FeatureTowers::InternVideo2Video;
    let mut data = stage_data(Purpose::Evaluate, &recipe.stages[0], 1, &context).unwrap();
    data.see(&built.model);
    let samples = data.next_batch(&Device::flex()).unwrap().samples;
    for sample in &samples {
        let call = sample.calls[0].features.as_ref().unwrap();
        let read = call.features(TEMPORAL_TEXT_FEATURES).unwrap().unwrap();
        assert_eq!(read.into_data(), text.clone().into_data());
    }
    assert_eq!(samples.len(), 2);
    context.config.features = FeatureTowers::InternVideo2;
    for id in ["17", "18"] {
        write_npy(&features.join(format!("text/qid{id}.npy")), &text);
    }
    let samples = batch(&context).unwrap().samples;
    let all = found.features.clone();
    for sample in &samples {
        let read = sample
            .features
            .as_ref()
            .unwrap()
            .features(TEMPORAL_VIDEO_FEATURES);
        let read = read.unwrap().unwrap();
        // Half a second a row.
        let expected = match sample.duration {
            Some(seconds) if seconds < 3.0 => all.clone().narrow(0, 2, 4),
            _ => all.clone(),
        };
        assert_eq!(read.into_data(), expected.into_data());
        let call = sample.calls[0].features.as_ref().unwrap();
        let read = call.features(TEMPORAL_TEXT_FEATURES).unwrap().unwrap();
        assert_eq!(read.into_data(), text.clone().into_data());
    }
    assert_eq!(samples.len(), 2);
    // Two rows fewer are taken, as in a session; the last one stands for them.
    let n = all.dims()[0];
    let fewer = all.clone().narrow(0, 0, n - 2);
    write_npy(&features.join("bouncing_shapes.npy"), &fewer);
    let last = fewer.clone().narrow(0, n - 3, 1);
    let filled = Tensor::cat(vec![fewer, last.clone(), last], 0);
    let mut whole = 0;
    for sample in batch(&context).unwrap().samples {
        let read = sample.features.as_ref().unwrap();
        let read = read.features(TEMPORAL_VIDEO_FEATURES).unwrap().unwrap();
        if sample.duration.is_some_and(|seconds| seconds > 3.0) {
            assert_eq!(read.into_data(), filled.clone().into_data());
            whole += 1;
        }
    }
    assert_eq!(whole, 1);
    recipe.stages[0].data.as_mut().unwrap().sources[0].features = Some("absent".into());
    let error = stage_data(Purpose::Train, &recipe.stages[0], 1, &context);
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("features: absent is not a directory"),
        "{error}"
    );
}

#[test]
fn a_temporal_head_without_its_towers_is_refused_before_the_first_batch() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = write_rows(dir.path());
    let recipe = recipe(&file_source(&path), "");
    let (built, mut context) = open(&recipe);
    context.config.features = FeatureTowers::InternVideo2;
    let mut stage = recipe.stages[0].clone();
    let error = stage_data(Purpose::Train, &stage, 1, &context)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("source `video`") && error.contains("--towers"),
        "{error}"
    );
    // With towers it opens, and so it does when the head does not learn.
    context.towers = Some(towers(&built));
    stage_data(Purpose::Train, &stage, 1, &context).unwrap();
    context.towers = None;
    let off = "temporal = { weight = 0.0 }";
    let without = self::recipe(
        &file_source(&path),
        &format!("loss = {{ heads = {{ {off} }} }}"),
    );
    stage = without.stages[0].clone();
    let error = stage_data(Purpose::Train, &stage, 1, &context)
        .err()
        .unwrap();
    let says = "`heads.temporal` a learning rate, and its loss the weight 0";
    assert!(error.to_string().contains(says), "{error}");
    stage.groups.retain(|group| group.name != "temporal");
    stage_data(Purpose::Train, &stage, 1, &context).unwrap();

    let error = TemporalTowers::open(dir.path(), &Device::flex(), Default::default()).unwrap_err();
    let (told, all) = (error.to_string(), "vision.safetensors, text.safetensors");
    assert!(
        told.contains(all) && told.contains("tokenizer.model"),
        "{told}"
    );
}

#[test]
fn unequal_samples_have_targets_of_their_own() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = write_rows(dir.path());
    let recipe = recipe(&file_source(&path), "");
    let (built, context) = open(&recipe);
    let mut stage = recipe.stages[0].clone();
    stage.batch_size = 8;
    let mut data = stage_data(Purpose::Evaluate, &stage, 0, &context).unwrap();
    data.see(&built.model);
    let mut batches = [
        data.next_batch(&Device::flex()).unwrap(),
        data.next_batch(&Device::flex()).unwrap_or_else(|_| {
            data.see(&built.model);
            data.next_batch(&Device::flex()).unwrap()
        }),
    ];
    batches.sort_by_key(|b| b.samples.len());
    let [text, videos] = batches;
    assert_eq!((text.samples.len(), videos.samples.len()), (1, 5));
    assert!(data.bad_rows().first.is_empty(), "{:?}", data.bad_rows());
    let targets = &videos.batch.targets;
    let of = |id: usize| {
        let line = format!("rows.jsonl:{id}");
        videos.samples.iter().position(|s| s.id == line).unwrap()
    };
    // In the order of the samples in the batch.
    let masks = targets.get::<MaskTarget>("mask").unwrap().unwrap();
    let (drawn, boxed) = if of(3) < of(4) {
        (&masks[0], &masks[1])
    } else {
        (&masks[1], &masks[0])
    };
    assert_eq!(boxed, &MaskTarget::from_box([0.1, 0.1, 0.3, 0.4].into()));
    // Of the seconds 1 to 3 the frames nearest to the annotations at 1 and 2 s.
    let frames: Vec<usize> = drawn.masks.iter().map(|m| m.frame).collect();
    assert_eq!((drawn.area, frames[0], frames.len()), (None, 0, 2));
    let sample = &videos.samples[of(3)];
    assert!((sample.timestamps[frames[1]] - 1.0).abs() < 0.15);
    let temporal = targets.get::<TemporalTarget>("temporal").unwrap().unwrap();
    // 4 s are eight rows of half a second.
    assert!(temporal.iter().all(|t| t.saliency.scores.len() == 8));
    let rated = [11.0, 11.0, 0.0, 0.0, 0.0, 0.0, 5.0, 5.0];
    assert!(temporal.iter().any(|t| t.saliency.scores == rated));
    let boxes = targets.get::<BoxXyxy>("region").unwrap().unwrap();
    assert_eq!(boxes.len(), 2);
    let loss = built
        .model
        .forward(videos.batch, &videos.samples)
        .unwrap()
        .total();
    assert!(loss.unwrap().into_scalar::<f32>().is_finite());
}

#[test]
fn words_in_place_of_heads() {
    let _lock = alone();
    let world = r#"{ name = "words", textual = true, synthetic = { tasks = ["region", "temporal"], rows = 3, seed = 3, queries_per_clip = 2 } }"#;
    let mut recipe = recipe(world, "loss = { other_heads = 0.0 }");
    recipe.stages[0].groups.truncate(2);
    let (built, context) = open(&recipe);
    let mut data = stage_data(Purpose::Train, &recipe.stages[0], 1, &context).unwrap();
    let batch = data.next_batch(&Device::flex()).unwrap();
    let tokens = &batch.batch.tokens;
    for task in built.config.tasks.tasks() {
        assert!(tokens.positions_of(task.placeholder.id).is_empty());
        assert!(tokens.positions_of(task.routing.id).is_empty());
    }
    assert_eq!(batch.batch.targets.names().count(), 0);
    assert!(batch.batch.labels.unwrap().concat().iter().any(|l| *l >= 0));
}

#[test]
fn all_problems_of_the_data_are_told_at_once() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = write_rows(dir.path());
    let sources = format!(
        r#"{{ name = "gone", annotations = "no/such.jsonl" }},
        {{ name = "folder", annotations = {:?} }},
        {{ name = "media", annotations = {:?}, media = "no/such/folder" }}"#,
        dir.path().display().to_string(),
        path.display().to_string(),
    )
    .replace('\n', " ");
    let broken = recipe(&sources, "");
    let options = RunOptions::new(dir.path().join("run"), &Device::flex());
    let problems = match run_recipe(&broken, &options).unwrap_err() {
        tpo::Error::Train(TrainError::InvalidRecipe { problems, .. }) => problems,
        error => panic!("{error}"),
    };
    assert_eq!(problems.len(), 3, "{problems:#?}");
    for (problem, part) in problems
        .iter()
        .zip(["no/such.jsonl", "not a file", "not a directory"])
    {
        assert!(
            problem.contains(part) && problem.contains("stages[0] `all`"),
            "{problem}"
        );
    }
    // Nothing was begun.
    assert!(!options.dir.exists());

    // A task that the model does not have, in a file and in a recipe.
    let other = dir.path().join("count.jsonl");
    let row = json!({"media": {"video": "bouncing_shapes.mp4"},
        "annotations": [{"task": "count", "query": "q", "value": 3}]});
    std::fs::write(&other, format!("{row}\n")).unwrap();
    let counting = recipe(&file_source(&other), "");
    let (_, context) = open(&counting);
    let error = stage_data(Purpose::Train, &counting.stages[0], 1, &context)
        .err()
        .unwrap();
    let TrainError::InvalidRecipe { problems, .. } = &error else {
        panic!("{error}");
    };
    assert!(
        problems[0].contains("no task `count`; it has: region, temporal"),
        "{problems:?}"
    );
    // Nothing to use, and why.
    std::fs::write(&other, "{\"turnz\": []}\n").unwrap();
    let error = stage_data(Purpose::Train, &counting.stages[0], 1, &context);
    let text = error.err().unwrap().to_string();
    assert!(
        text.contains("no usable row") && text.contains("turnz"),
        "{text}"
    );
    let text = counting.to_toml().unwrap().replace(
        &format!("annotations = {:?}", other.display().to_string()),
        "synthetic = { tasks = [\"regoin\"], rows = 0, queries_per_clip = 0 }",
    );
    let text = text
        .lines()
        .filter(|l| !l.starts_with("media ="))
        .collect::<Vec<_>>()
        .join("\n");
    let error = Recipe::read(&text, "r.toml", &[] as &[&str])
        .unwrap_err()
        .to_string();
    for part in ["regoin", "rows is 0", "queries_per_clip is 0"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn a_later_stage_is_looked_at_before_the_first() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let world = |tasks: &str| {
        format!(
            r#"{{ name = "w", synthetic = {{ tasks = [{tasks}], rows = 4, seed = 3, queries_per_clip = 8 }} }}"#
        )
    };
    let mut two = recipe(&world(r#""region", "temporal", "mask""#), "");
    let mut later = recipe(&world(r#""region", "temporal""#), "")
        .stages
        .remove(0);
    later.name = "later".into();
    two.stages.push(later);
    let options = RunOptions::new(dir.path().join("run"), &Device::flex());
    let says = "none of its rows calls `mask` (heads that they call: region, temporal)";
    let error = run_recipe(&two, &options).unwrap_err().to_string();
    assert!(
        error.contains("stage `later`") && error.contains(says),
        "{error}"
    );
    assert!(!options.dir.exists());
    let error = training::explain::<BuiltInHeads>(&two).unwrap_err();
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_bad_row_ends_a_strict_stage() {
    let _lock = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = write_rows(dir.path());
    let mut text = std::fs::read_to_string(&path).unwrap();
    text += "{\"turnz\": []}\n";
    std::fs::write(&path, text).unwrap();
    let lenient = recipe(&file_source(&path), "");
    let (_, context) = open(&lenient);
    let data = stage_data(Purpose::Train, &lenient.stages[0], 1, &context).unwrap();
    assert_eq!(data.bad_rows().count, 1);
    let strict = recipe(&file_source(&path), "strict = true");
    let error = stage_data(Purpose::Train, &strict.stages[0], 1, &context).err();
    let error = error.unwrap().to_string();
    assert!(
        error.contains("rows.jsonl:7") && error.contains("`strict`"),
        "{error}"
    );
    // A run may go on with it or without.
    let changes = lenient.changes(&strict, 0);
    assert!(changes.len() == 1 && changes[0].harmless, "{changes:?}");
}

/// In every stage of every recipe on the synthetic world each head that learns is called: a stage of
/// which this is not true is refused.
#[test]
fn the_recipes_call_every_head_that_they_teach() {
    let _lock = alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = format!("directory = {:?}", root.join("assets/mini"));
    let sizes: ModelSpec = toml::from_str(&directory).unwrap();

    let mut recipes: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for folder in ["mini", "mini-short", "nano"] {
        for file in std::fs::read_dir(root.join("recipes").join(folder)).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_name().unwrap().to_string_lossy();
            if name.ends_with(".toml") && !name.starts_with("base") {
                recipes.push((file, Vec::new()));
            }
        }
    }
    let study = std::fs::read_to_string(root.join("recipes/claims/study.toml")).unwrap();
    let study: toml::Value = toml::from_str(&study).unwrap();
    for variant in study["variants"].as_array().unwrap() {
        let set = variant.get("set").and_then(|s| s.as_array()).cloned();
        let set = set.unwrap_or_default().into_iter();
        let set = set.map(|s| s.as_str().unwrap().to_string()).collect();
        let file = variant["recipe"].as_str().unwrap();
        recipes.push((root.join("recipes/claims").join(file), set));
    }
    assert!(recipes.len() > 25, "{}", recipes.len());

    let (mut context, mut refused) = (None, Vec::new());
    for (file, set) in recipes {
        let mut recipe = Recipe::open(&file, &set).unwrap_or_else(|e| panic!("{e}"));
        recipe.model = sizes.clone();
        let context = context.get_or_insert_with(|| open(&recipe).1);
        for stage in &recipe.stages {
            if let Err(e) = stage_data(Purpose::Train, stage, 1, context) {
                refused.push(format!("{} {set:?}: {e}", file.display()));
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
