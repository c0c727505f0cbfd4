//! A head from outside through every door: recipe, checkpoint, export, session, evaluation; and models
//! whose visuals differ in length.

#[path = "../tpo-core/tests/weights/gguf_bytes.rs"]
mod gguf_bytes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Int, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tpo::core::cancel::CancelToken;
use tpo::core::traits::LanguageModel;
use tpo::core::truth::TruthTarget;
use tpo::core::weights::{Checkpoint, KeyRules, SaveOptions, read_tensor, save_module};
use tpo::data::synthetic::{RowsConfig, Split, WorldRows, WorldTask};
use tpo::evaluation::{
    DataFile, ItemKind, Plan, PlanOptions, Route, RunOutcome, SessionAnswerer, run,
};
use tpo::export::{ExportOptions, export_model};
use tpo::llm::LlmConfig;
use tpo::llm::tokenizer::Tokenizer;
use tpo::model::inspect::{LayoutChoice, inspect};
use tpo::model::{ConnectorConfig, VisionConfig};
use tpo::prelude::*;
use tpo::train::Recipe;
use tpo::training::{RunOptions, recipe_model, run_recipe};
use tpo::vision::{InternVideo2Config, MlpConnectorConfig};
use tpo::{HeadProgress, TrackFrames};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PointConfig {
    hidden: Option<usize>,
}

#[derive(Module, Debug)]
struct PointHead {
    mlp: Mlp,
}

impl TaskHead for PointHead {
    type Config = PointConfig;
    type Target = [f32; 2];
    type Output = Tensor<2>;
    type Prediction = [f32; 2];
    const NAME: &'static str = "point";

    fn init(config: &PointConfig, sizes: &ModelSizes, device: &Device) -> tpo::core::Result<Self> {
        let hidden = config.hidden.unwrap_or(sizes.llm);
        let mlp = MlpConfig::new(vec![sizes.llm, hidden, 2]).init(device);
        Ok(Self { mlp })
    }
    fn target(&self, truth: &Truth) -> tpo::core::Result<[f32; 2]> {
        truth.to_value()
    }
    fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Tensor<2>> {
        Ok(self.mlp.forward(task))
    }
    fn loss(
        &self,
        out: &Tensor<2>,
        targets: &[[f32; 2]],
        _: &HeadContext<'_>,
    ) -> tpo::core::Result<LossTerms> {
        let truth = TensorData::new(targets.concat(), [targets.len(), 2]);
        let truth = Tensor::<2>::from_data(truth, &out.device());
        Ok(LossTerms::new().with("l1", (out.clone() - truth).abs().mean(), 1.0))
    }
    fn decode(&self, out: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Vec<[f32; 2]>> {
        let values: Vec<f32> = out.into_data().iter::<f32>().collect();
        Ok(values.chunks_exact(2).map(|v| [v[0], v[1]]).collect())
    }
    fn score(&self, answer: Option<&[f32; 2]>, target: &[f32; 2]) -> Vec<(&'static str, f64)> {
        let distance = answer.map_or(2.0, |p| (p[0] - target[0]).hypot(p[1] - target[1]));
        vec![("distance", distance.into())]
    }
}

tpo::core::heads! {
    struct MyHeads { region: RegionHead, temporal: TemporalHead, mask: MaskHead, point: PointHead }
}

tpo::core::heads! {
    struct Turned { point: PointHead, region: RegionHead, temporal: TemporalHead, mask: MaskHead }
}

/// Says a number to whatever is annotated: a box, spans or a track, as the built-in heads have them.
#[derive(Module, Debug)]
struct SizeHead {
    mlp: Mlp,
}

impl TaskHead for SizeHead {
    type Config = PointConfig;
    type Target = TruthTarget;
    type Output = Tensor<2>;
    type Prediction = f32;
    const NAME: &'static str = "size";

    fn init(_: &PointConfig, sizes: &ModelSizes, device: &Device) -> tpo::core::Result<Self> {
        let mlp = MlpConfig::new(vec![sizes.llm, sizes.llm, 1]).init(device);
        Ok(Self { mlp })
    }
    fn target(&self, truth: &Truth) -> tpo::core::Result<TruthTarget> {
        Ok(truth.target.clone())
    }
    fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Tensor<2>> {
        Ok(self.mlp.forward(task))
    }
    fn loss(
        &self,
        _: &Tensor<2>,
        _: &[TruthTarget],
        _: &HeadContext<'_>,
    ) -> tpo::core::Result<LossTerms> {
        Ok(LossTerms::new())
    }
    fn decode(&self, out: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Vec<f32>> {
        Ok(out.into_data().iter::<f32>().collect())
    }
    fn score(&self, answer: Option<&f32>, target: &TruthTarget) -> Vec<(&'static str, f64)> {
        let size = match target {
            TruthTarget::Box(b) => ("width", f64::from(b.x1 - b.x0)),
            TruthTarget::Moments { spans, .. } => ("seconds", spans[0].end - spans[0].start),
            TruthTarget::Track(frames) => ("first frame", frames[0].time),
            TruthTarget::Value(_) => ("value", 1.0),
        };
        vec![("answered", f64::from(u8::from(answer.is_some()))), size]
    }
}

tpo::core::heads! {
    struct SizeHeads { region: RegionHead, temporal: TemporalHead, mask: MaskHead, size: SizeHead }
}

fn device() -> Device {
    DeviceChoice::Cpu.open().unwrap()
}

/// Clips of the world whose boxes have become points.
fn points(dir: &Path) -> PathBuf {
    let config = RowsConfig {
        split: Split::Train,
        queries_per_clip: 2,
        ..RowsConfig::new([WorldTask::Region], 6, 3)
    };
    let file = WorldRows::new(config, 8, 32).unwrap().export(dir).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let mut out = String::new();
    for line in text.lines() {
        let mut row: Value = serde_json::from_str(line).unwrap();
        for annotation in row["annotations"].as_array_mut().unwrap() {
            let corner = json!([annotation["box"][0], annotation["box"][1]]);
            *annotation = json!({"task": "point", "query": annotation["query"], "value": corner});
        }
        for turn in row["turns"].as_array_mut().unwrap() {
            turn["answer"] = "At <task:point>".into();
        }
        out += &format!("{row}\n");
    }
    std::fs::write(&file, out).unwrap();
    file
}

fn recipe(base: &Path, model: &str, data: &str, heads: &str) -> Recipe {
    let base = format!("directory = \"{}\"\n{model}", base.display());
    recipe_of(&base, data, heads)
}

fn recipe_of(model: &str, data: &str, heads: &str) -> Recipe {
    let text = format!(
        r#"
        name = "own"
        seed = 5
        [model]
        {model}
        [checkpoints]
        keep_last = 1
        [[stages]]
        name = "own"
        length = {{ steps = 2 }}
        batch_size = 2
        data = {{ sources = [{data}] }}
        [[stages.groups]]
        name = "new"
        patterns = [{heads}]
        learning_rate = 1e-3
        [[stages.groups]]
        name = "llm"
        patterns = ["llm.**"]
        learning_rate = 1e-3
        "#
    );
    Recipe::read::<&str>(&text, "own.toml", &[]).unwrap()
}

const OWN: &str = r#""heads.point.**", "task_tokens.point""#;

#[test]
fn a_base_without_the_head_learns_it_and_is_opened_again() {
    let (device, dir) = (device(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let base = Session::nano(&device, 3, SessionOptions::default()).unwrap();
    base.save(at("base")).unwrap();
    let file = points(&at("data"));
    let data = format!(
        r#"{{ name = "points", annotations = "{}" }}"#,
        file.display()
    );
    let recipe = recipe(
        &at("base"),
        r#"task_tokens = { point = "region" }"#,
        &data,
        OWN,
    );

    // Before a step: two new rows, the mean of the others; the token is the other head's.
    let built = recipe_model::<MyHeads>(&recipe, &device).unwrap();
    let rows = base.config().llm.vocab_size;
    let tasks = built.model.registry();
    let point = tasks.require("point").unwrap();
    assert_eq!(
        (point.routing.id, point.placeholder.id),
        (rows as u32, rows as u32 + 1)
    );
    assert_eq!(built.model.llm.table_rows(), [rows + 2; 2]);
    assert_eq!(
        built.tokenizer.token_to_id("<point>"),
        Some(point.placeholder.id)
    );
    let token = |task: &str| built.model.task_token(task).unwrap().into_data();
    token("point").assert_eq(&token("region"), true);
    let table = built
        .model
        .llm
        .embed(Tensor::<2, Int>::from_data([[0, 1]], &device));
    let before = base
        .model()
        .llm
        .embed(Tensor::<2, Int>::from_data([[0, 1]], &device));
    table.into_data().assert_eq(&before.into_data(), true);

    let options = RunOptions::new(at("run"), &device);
    let summary = run_recipe::<MyHeads>(&recipe, &options).unwrap();
    let built = summary.model;
    let ids = || Tensor::<2, Int>::from_data([[5, 9, rows as i64, rows as i64 + 1]], &device);
    let logits = |model: &Tpo<MyHeads>| {
        let hidden = model.llm.hidden(model.llm.embed(ids()), None).unwrap();
        model.llm.logits(hidden).into_data()
    };
    let trained = logits(&built.model);
    let model = built.model.clone();
    export_model(
        model,
        &built.config,
        &built.tokenizer_files,
        at("model"),
        &ExportOptions::default(),
    )
    .unwrap();

    // A new session: the same logits, the head answers, the old ones too.
    let options = SessionOptions::default;
    let (mut session, _) =
        Session::<MyHeads>::open_with_heads(at("model"), &device, options(), None).unwrap();
    logits(session.model()).assert_eq(&trained, true);
    let clip = dir.path().join("data/clips");
    let folder = std::fs::read_dir(clip).unwrap().next().unwrap().unwrap();
    let frames = tpo::data::open_frames(folder.path(), 2.0, &Default::default()).unwrap();
    session.load_reader(Arc::new(frames), None).unwrap();
    for task in ["point", "region", "temporal", "mask"] {
        let question = Question::new("Where is it?").with_task(task);
        let reply = session.ask(question).unwrap().collect_reply().unwrap();
        assert_eq!(reply.tasks[0].task, task);
        assert!(!reply.tasks[0].drawing().text.is_empty());
        if task == "point" {
            assert!(reply.tasks[0].get::<[f32; 2]>().is_some());
        }
    }
    // The run's checkpoint is the same model.
    let run_dir = at("run");
    let again = Session::<MyHeads>::checkpoint_with_heads(run_dir, &device, options()).unwrap();
    logits(again.model()).assert_eq(&trained, true);
    // A program without the head says what is wrong.
    let error = Session::open(at("model"), &device, options(), None).unwrap_err();
    let says = "heads.point: this program has no such head";
    assert!(error.to_string().contains(says), "{error}");
    let error = recipe_model::<BuiltInHeads>(&recipe, &device).unwrap_err();
    let says = "model.task_tokens: `point`: this program has no such head";
    assert!(error.to_string().contains(says), "{error}");

    let mut from_run = recipe.clone();
    from_run.model.task_tokens.clear();
    from_run.model.start = Some(at("run"));
    let error = recipe_model::<BuiltInHeads>(&from_run, &device).unwrap_err();
    let says = "heads that this program does not have: point";
    assert!(error.to_string().contains(says), "{error}");
    // Tokens have the order of the base, whatever that of the program is.
    let turned = recipe_model::<Turned>(&recipe, &device).unwrap().model;
    let order: Vec<&str> = turned.task_tokens.iter().map(|(name, _)| name).collect();
    assert_eq!(order, ["region", "temporal", "mask", "point"]);

    // What was trained is there to go on from: its token is not drawn again, nor are lost weights. Also
    // where its configuration is not written, as in models exported before.
    let json = std::fs::read_to_string(at("model").join("tpo.json")).unwrap();
    let mut sizes: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(sizes["heads"]["point"], json!({ "hidden": null }));
    let mut next = recipe.clone();
    next.model.directory = Some(at("model"));
    for _ in 0..2 {
        let error = recipe_model::<MyHeads>(&next, &device).unwrap_err();
        assert!(error.to_string().contains("leave it out"), "{error}");
        let mut kept = next.clone();
        kept.model.task_tokens.clear();
        let kept = recipe_model::<MyHeads>(&kept, &device).unwrap();
        logits(&kept.model).assert_eq(&trained, true);
        let token = |model: &Tpo<MyHeads>| model.task_token("point").unwrap().into_data();
        token(&kept.model).assert_eq(&token(&built.model), true);
        sizes["heads"].as_object_mut().unwrap().remove("point");
        std::fs::write(at("model").join("tpo.json"), sizes.to_string()).unwrap();
    }
    std::fs::create_dir(at("lacking")).unwrap();
    for (name, from) in [
        ("tpo.json", "model"),
        ("tokenizer.json", "model"),
        ("model.safetensors", "base"),
    ] {
        std::fs::copy(at(from).join(name), at("lacking").join(name)).unwrap();
    }
    next.model.directory = Some(at("lacking"));
    next.model.task_tokens.clear();
    let error = recipe_model::<MyHeads>(&next, &device)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Missing") && error.contains("heads.point.mlp"),
        "{error}"
    );

    // So does this program of a model that lacks it.
    let error = tpo::presets::mini_with_heads::<MyHeads>(&device, options()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("head `point`") && error.contains("--model"),
        "{error}"
    );

    // Its own task is evaluated by its own score.
    let questions = PlanOptions {
        kinds: vec![ItemKind::Own],
        route: Route::Always,
        ..PlanOptions::default()
    };
    let plan = Plan::from_file(&DataFile::new(file, None), questions).unwrap();
    let mut answerer = SessionAnswerer::new(&session, "own", plan.route, plan.answers).unwrap();
    let out = at("scores");
    let done = run(&plan, &mut answerer, &out, &Default::default(), &mut |_| {
        true
    })
    .unwrap();
    let RunOutcome::Done(results) = done else {
        panic!("stopped")
    };
    let scores = &results.scores[0];
    assert_eq!((scores.task.as_str(), scores.unanswered), ("point", 0));
    assert_eq!(scores.scores[0].name, "distance");
    let mean = scores.scores[0].value.unwrap();
    assert!((0.0..2.0).contains(&mean), "{mean}");
}

/// The Hugging Face directory of a model of the architecture `llama` as a GGUF file.
fn as_gguf(dir: &Path, config: &LlmConfig, tokenizer: &Value) -> gguf_bytes::Gguf {
    let words = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); words.len()];
    for (word, id) in words {
        tokens[id.as_u64().unwrap() as usize] = word.clone();
    }
    // The first three are special.
    let kinds: Vec<i32> = (0..tokens.len())
        .map(|id| if id < 3 { 3 } else { 1 })
        .collect();
    let mut file = gguf_bytes::Gguf::default()
        .text("general.architecture", "llama")
        .f32(
            "llama.attention.layer_norm_rms_epsilon",
            config.rms_norm_eps as f32,
        )
        .f32("llama.rope.freq_base", config.rope_theta as f32)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts::<&str>("tokenizer.ggml.merges", &[])
        .i32s("tokenizer.ggml.token_type", &kinds)
        .flag("tokenizer.ggml.add_bos_token", true);
    for (key, value) in [
        ("llama.context_length", config.max_position_embeddings),
        ("llama.embedding_length", config.hidden_size),
        ("llama.feed_forward_length", config.intermediate_size),
        ("llama.block_count", config.num_hidden_layers),
        ("llama.attention.head_count", config.num_attention_heads),
        ("llama.attention.head_count_kv", config.num_key_value_heads),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        file = file.u32(key, value as u32);
    }
    for entry in Checkpoint::open(dir).unwrap().tensors() {
        let mut name = entry.key.clone();
        for (ours, theirs) in [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("model.layers", "blk"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.", "attn_"),
            ("mlp.", "ffn_"),
            ("_proj", ""),
        ] {
            name = name.replace(ours, theirs);
        }
        let data = read_tensor(entry).unwrap();
        let row = data.as_bytes().len() / entry.shape[0];
        let rows: Vec<&[u8]> = data.as_bytes().chunks_exact(row).collect();
        // Llama's pairs of rotary positions lie side by side.
        let half = config.head_dim / 2;
        let paired = name.contains("attn_q") || name.contains("attn_k");
        let from = |to: usize| {
            let (head, at) = (to / (2 * half), to % (2 * half));
            if paired {
                head * 2 * half + at % 2 * half + at / 2
            } else {
                to
            }
        };
        let bytes = (0..rows.len())
            .flat_map(|to| rows[from(to)].to_vec())
            .collect();
        file = file.tensor(&name, &entry.shape, 0, bytes);
    }
    file
}

/// A language model of others, as docs/ADDING_A_HEAD.md takes SmolLM2: its file has no heads, and its
/// tokenizer none of their tokens. A GGUF file is the same model as a directory.
#[test]
fn a_language_model_of_others_learns_the_head_and_is_opened_again() {
    let (device, dir) = (device(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let config = LlmConfig::mini(259).with_tie_word_embeddings(true);
    device.seed(3);
    let lm = config.init(&device).unwrap();
    save_module(&lm, &KeyRules::new(), at("lm"), &SaveOptions::default()).unwrap();
    let json = json!({
        "model_type": "llama", "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_dim,
        "tie_word_embeddings": true, "max_position_embeddings": 1024,
        "rms_norm_eps": config.rms_norm_eps,
    });
    std::fs::write(at("lm/config.json"), json.to_string()).unwrap();
    let tokenizer = include_str!("../assets/byte_tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(tokenizer).unwrap();
    let known = |id: &Value| id.as_u64().unwrap() < 259;
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.retain(|token| known(&token["id"]));
    let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    words.retain(|_, id| known(id));
    std::fs::write(at("lm/tokenizer.json"), tokenizer.to_string()).unwrap();
    let ends = r#"{"bos_token":"<s>","eos_token":"</s>","unk_token":"<unk>"}"#;
    std::fs::write(at("lm/tokenizer_config.json"), ends).unwrap();
    let gguf = as_gguf(&at("lm"), &config, &tokenizer);
    std::fs::write(at("lm.gguf"), gguf.bytes()).unwrap();
    std::fs::write(at("blob"), gguf.bytes()).unwrap();
    let (held, blob) = (&at("lm.gguf"), &at("blob"));
    let [held, blob] = [held, blob].map(|path| inspect(path, LayoutChoice::Auto).unwrap());
    assert_eq!((&held.parts, &held.layout), (&blob.parts, &blob.layout));
    let open = Session::open(at("lm.gguf"), &device, SessionOptions::default(), None);
    let refused = open.err().unwrap().to_string();
    assert!(refused.contains("tpo generate --model"), "{refused}");
    // What opening the model refuses as damaged, inspecting it does too.
    for (damaged, part) in [
        (
            gguf.clone().text("tokenizer.chat_template", "{% if %}"),
            "chat template",
        ),
        (
            gguf.clone()
                .texts("tokenizer.ggml.merges", &["no-such token"]),
            "`no-such`",
        ),
        (gguf.u32("llama.block_count", 0), "num_hidden_layers"),
    ] {
        std::fs::write(at("blob"), damaged.bytes()).unwrap();
        let error = inspect(&at("blob"), LayoutChoice::Auto).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(part) && error.contains("blob"), "{error}");
    }
    assert!(held.is_fine() && held.layout.is_some(), "{held}");
    assert_eq!(held.dtypes["F32"], held.tensors);
    assert!(held.notes[0].contains("tokenizer \"gpt2\""), "{held}");
    let error = inspect(&at("lm.gguf"), LayoutChoice::Videochat).unwrap_err();
    assert!(error.to_string().contains("leave --layout out"), "{error}");

    let model = |llm: &str| {
        let llm = at(llm);
        let llm = llm.display();
        format!("preset = \"nano\"\nllm = \"{llm}\"\nlora = {{ rank = 2, alpha = 4.0 }}")
    };
    let file = points(&at("data"));
    let data = format!(
        r#"{{ name = "points", annotations = "{}" }}"#,
        file.display()
    );
    let directory = recipe_of(&model("lm"), &data, OWN);
    let directory = recipe_model::<MyHeads>(&directory, &device).unwrap();
    let recipe = recipe_of(&model("lm.gguf"), &data, OWN);
    let built = recipe_model::<MyHeads>(&recipe, &device).unwrap();
    // Two tokens for each of four heads, with rows.
    assert_eq!(built.model.llm.table_rows(), [259 + 8; 2]);
    assert!(built.tokenizer.token_to_id("<point_begin>").is_some());
    let logits = |model: &Tpo<MyHeads>| {
        let ids = Tensor::<2, Int>::from_data([[5, 9, 259, 266]], &device);
        let hidden = model.llm.hidden(model.llm.embed(ids), None).unwrap();
        model.llm.logits(hidden).into_data()
    };
    logits(&built.model).assert_eq(&logits(&directory.model), true);
    for text in ["Where is it?", "<s> é\n<point_begin>"] {
        let ids = |t: &Tokenizer| t.encode(text, t.default_options()).unwrap();
        assert_eq!(ids(&built.tokenizer), ids(&directory.tokenizer));
    }
    let run = run_recipe::<MyHeads>(&recipe, &RunOptions::new(at("run"), &device)).unwrap();
    let trained = run.model;
    let (model, options) = (trained.model.clone(), ExportOptions::default());
    export_model(
        model,
        &trained.config,
        &trained.tokenizer_files,
        at("model"),
        &options,
    )
    .unwrap();
    let opened =
        Session::<MyHeads>::open_with_heads(at("model"), &device, Default::default(), None);
    let (mut session, _) = opened.unwrap();
    logits(session.model()).assert_eq(&logits(&trained.model), true);
    let reply = session
        .ask(Question::new("Where is it?").with_task("point"))
        .unwrap();
    let reply = reply.collect_reply().unwrap();
    assert!(reply.tasks[0].get::<[f32; 2]>().is_some());
}

/// Boxes, spans and tracks of your own head are scored by that head, those of the built-in
/// heads as benchmarks do.
#[test]
fn a_head_scores_itself_whatever_its_truths_are() {
    let (device, dir) = (device(), tempfile::tempdir().unwrap());
    let video = dir.path().join("v.mp4");
    std::fs::copy("assets/bouncing_shapes.mp4", video).unwrap();
    let area = json!([0.25, 0.25, 0.75, 0.5]);
    let track: Vec<Value> = (0..8)
        .map(|frame| json!({"frame": frame, "box": area}))
        .collect();
    let row = json!({"id": "r", "media": {"video": "v.mp4"}, "annotations": [
        {"task": "size", "query": "the ball", "box": area},
        {"task": "size", "query": "it moves", "spans": [[0.5, 1.25]]},
        {"task": "size", "query": "the ball", "track": track},
        {"task": "region", "query": "the ball", "box": area},
    ]});
    let file = dir.path().join("rows.jsonl");
    std::fs::write(&file, row.to_string()).unwrap();

    let options = SessionOptions {
        track: TrackFrames::All,
        ..SessionOptions::default()
    };
    let base = Session::nano(&device, 3, SessionOptions::default()).unwrap();
    base.save(dir.path().join("base")).unwrap();
    let recipe = recipe(
        &dir.path().join("base"),
        r#"task_tokens = { size = "region" }"#,
        &format!(r#"{{ name = "rows", annotations = "{}" }}"#, file.display()),
        r#""heads.size.**", "task_tokens.size""#,
    );
    let built = recipe_model::<SizeHeads>(&recipe, &device).unwrap();
    let (model, config) = (built.model, built.config);
    let session = Session::new(model, config, built.tokenizer, &device, options).unwrap();
    let evaluate = |route| {
        let questions = PlanOptions {
            route,
            ..PlanOptions::default()
        };
        let plan = Plan::from_file(&DataFile::new(&file, None), questions).unwrap();
        assert_eq!(plan.items.len(), 4);
        let mut answerer = SessionAnswerer::new(&session, "own", plan.route, plan.answers).unwrap();
        let out = dir.path().join(format!("{route:?}"));
        let done = run(&plan, &mut answerer, out, &Default::default(), &mut |_| {
            true
        });
        match done.unwrap() {
            RunOutcome::Done(results) => results,
            RunOutcome::Stopped(_) => panic!("stopped"),
        }
    };
    let results = evaluate(Route::Always);
    assert!(results.failed.is_empty(), "{:?}", results.failed);
    let [region, size] = &results.scores[..] else {
        panic!("{:?}", results.scores);
    };
    assert_eq!((region.task.as_str(), region.questions), ("region", 1));
    assert_eq!(region.scores[0].name, "Acc@0.25");
    assert_eq!((size.task.as_str(), size.questions), ("size", 3));
    assert_eq!(size.unanswered, 0);
    let found: Vec<_> = size
        .scores
        .iter()
        .map(|s| (s.name.as_str(), s.value.unwrap()))
        .collect();
    assert_eq!(
        found,
        [
            ("answered", 1.0),
            ("width", 0.5),
            ("seconds", 0.75),
            // The first frame that was looked at, as in training.
            ("first frame", 0.2)
        ]
    );
    let metrics = &results.protocol.metrics;
    assert_eq!(metrics.len(), 2, "{metrics:?}");
    assert!(metrics[1].starts_with("own: means of what the task's head scores"));

    // A head that was not called scores what it says of no answer.
    let size = &evaluate(Route::Model).scores[1];
    assert_eq!((size.task.as_str(), size.unanswered), ("size", 3));
    assert_eq!(size.scores[0].value, Some(0.0));
}

#[test]
fn a_head_does_not_take_a_word_of_the_base() {
    let (device, dir) = (device(), tempfile::tempdir().unwrap());
    let base = Session::nano(&device, 3, SessionOptions::default()).unwrap();
    base.save(dir.path()).unwrap();
    let json = std::fs::read_to_string(dir.path().join("tpo.json")).unwrap();
    let mut sizes: Value = serde_json::from_str(&json).unwrap();
    // The tokenizer keeps its words, and the registry forgets that they are of a task.
    sizes["tasks"]["tasks"].as_array_mut().unwrap().remove(0);
    sizes["heads"].as_object_mut().unwrap().remove("region");
    std::fs::write(dir.path().join("tpo.json"), sizes.to_string()).unwrap();
    let world = r#"{ name = "w", synthetic = { tasks = ["region"], rows = 4 } }"#;
    let recipe = recipe(dir.path(), "", world, r#""heads.region.**""#);
    let error = recipe_model::<BuiltInHeads>(&recipe, &device).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`<box_begin>`") && text.contains("`<boxes>`"),
        "{text}"
    );
}

#[test]
fn a_head_that_no_row_calls_is_refused_before_the_first_step() {
    let (device, dir) = (device(), tempfile::tempdir().unwrap());
    let base = Session::nano(&device, 3, SessionOptions::default()).unwrap();
    base.save(dir.path().join("base")).unwrap();
    let world = r#"{ name = "w", synthetic = { tasks = ["region"], rows = 4 } }"#;
    let recipe = recipe(&dir.path().join("base"), "", world, OWN);
    let options = RunOptions::new(dir.path().join("run"), &device);
    let error = run_recipe::<MyHeads>(&recipe, &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("none of its rows calls `point`"), "{error}");
}

#[test]
fn an_answer_is_cancelled_in_the_middle_of_a_mask() {
    let device = device();
    let cancel = CancelToken::new();
    let stop = cancel.clone();
    let options = SessionOptions {
        cancel: cancel.clone(),
        track: TrackFrames::All,
        progress: Some(HeadProgress(Arc::new(move |step| {
            if step.what == "frames" && step.done == 3 {
                stop.cancel();
            }
        }))),
        ..SessionOptions::default()
    };
    let mut session = Session::nano(&device, 1, options).unwrap();
    session
        .load_video("assets/bouncing_shapes.mp4", None)
        .unwrap();
    let follow = || Question::new("Follow it.").with_task("mask");
    let error = session.ask(follow()).unwrap().collect_reply().unwrap_err();
    assert!(
        matches!(error, tpo::Error::Core(tpo::core::CoreError::Cancelled)),
        "{error}"
    );
    assert!(session.history().is_empty());
    // It says so at once until it is reset.
    assert!(session.ask(follow()).unwrap().collect_reply().is_err());
    cancel.reset();
    let words = session.ask(Question::new("What is it?")).unwrap();
    words.collect_reply().unwrap();
    assert_eq!(session.history().len(), 1);
}

/// InternVideo2 before an MLP gives a row per token: an image and a video differ in length.
#[test]
fn visuals_of_unequal_length_in_a_session_and_in_a_batch() {
    let (device, dir) = (device(), tempfile::tempdir().unwrap());
    let base = Session::nano(&device, 3, SessionOptions::default()).unwrap();
    base.save(dir.path().join("sizes")).unwrap();
    let vision = InternVideo2Config::mini();
    let mut config = base.config().clone();
    let d_llm = config.llm.hidden_size;
    config.input.frames = vision.num_frames;
    config.input.size = vision.img_size;
    config.heads = config
        .heads
        .with::<TemporalHead>(
            &TemporalHeadConfig::mini(d_llm, vision.embed_dim).with_clip_seconds(0.5),
        )
        .unwrap();
    config.connector = ConnectorConfig::Mlp(MlpConnectorConfig::new(vision.embed_dim, d_llm));
    config.vision = VisionConfig::InternVideo2(vision);
    let json = serde_json::to_string(&config).unwrap();
    std::fs::write(dir.path().join("sizes/tpo.json"), json).unwrap();

    let mut session: Session = Session::random(
        dir.path().join("sizes"),
        &device,
        1,
        SessionOptions::default(),
    )
    .unwrap();
    let mut lengths = Vec::new();
    let data = points(&dir.path().join("data"));
    let clips = data.parent().unwrap().join("clips");
    let clip = std::fs::read_dir(clips)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    session.load_image(clip.join("0000.png")).unwrap();
    session
        .ask(Question::new("?"))
        .unwrap()
        .collect_reply()
        .unwrap();
    let image = tpo::core::traits::VisualShape::image((32, 32));
    lengths.push(config.rows(&image).unwrap());
    let frames = tpo::data::open_frames(&clip, 2.0, &Default::default()).unwrap();
    session.load_reader(Arc::new(frames), None).unwrap();
    session
        .ask(Question::new("?"))
        .unwrap()
        .collect_reply()
        .unwrap();
    let video = tpo::core::traits::VisualShape::video((32, 32), config.input.frames);
    lengths.push(config.rows(&video).unwrap());
    assert!(lengths[0] < lengths[1], "{lengths:?}");

    // Both in one batch of a training run.
    let name = clip.file_name().unwrap().to_string_lossy().into_owned();
    let row = |media: Value| {
        json!({"media": media, "turns": [{"question": "What?", "answer": "A shape."}]}).to_string()
    };
    let rows = [
        row(json!({"image": format!("clips/{name}/0000.png")})),
        row(json!({"frames": format!("clips/{name}"), "fps": 2.0})),
    ];
    let file = data.parent().unwrap().join("both.jsonl");
    std::fs::write(&file, rows.join("\n")).unwrap();
    let text = format!(
        r#"
        name = "ragged"
        [model]
        sizes = "{}"
        [[stages]]
        name = "both"
        length = {{ steps = 2 }}
        batch_size = 2
        data = {{ sources = [{{ name = "both", annotations = "{}" }}] }}
        [[stages.groups]]
        name = "connector"
        patterns = ["connector.**"]
        learning_rate = 1e-3
        "#,
        dir.path().join("sizes").display(),
        file.display()
    );
    let recipe = Recipe::read::<&str>(&text, "ragged.toml", &[]).unwrap();
    let options = RunOptions::new(dir.path().join("run"), &device);
    let before = recipe_model::<tpo::BuiltInHeads>(&recipe, &device).unwrap();
    let after = run_recipe::<tpo::BuiltInHeads>(&recipe, &options).unwrap();
    let weight = |model: &Tpo| match &model.connector {
        tpo::model::Connector::Mlp(mlp) => mlp.linear_1.weight.val().into_data(),
        _ => panic!("another connector"),
    };
    assert_ne!(weight(&before.model), weight(&after.model.model));
}
