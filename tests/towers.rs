//! The temporal head without its towers, with towers in a folder, with features that were computed before.

#[path = "common/alone.rs"]
mod alone;
#[path = "common/npy.rs"]
mod npy;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use alone::alone;
use burn::tensor::{Device, FloatDType, Tensor};
use npy::write_npy;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tpo::data::synthetic::{Split, WorldConfig};
use tpo::evaluation::*;
use tpo::features::{
    CacheUse, ExtractOptions, FeatureCache, FeatureFolder, TemporalTowers, TowerOptions,
    extract_video,
};
use tpo::heads::temporal::features::{
    InternVideo2Features, LanguageModelFeatures, TextTowerFeatures,
};
use tpo::llm::text_tower::text_rules;
use tpo::llm::tokenizer::Tokenizer;
use tpo::llm::{LlmConfig, QueryTokenizer, TextTowerConfig};
use tpo::model::Quantize;
use tpo::model::memory::{ModelMemory, choose_format};
use tpo::prelude::*;
use tpo::train::recipe::Recipe;
use tpo::training::run_recipe;
use tpo::vision::InternVideo2Config;
use tpo::vision::internvideo2::load::vision_rules;
use tpo::weights::{SaveOptions, save_module};
use tpo::{HeadProgress, HeadStep, TrackFrames};

const QUERY: &str = "When does the circle turn?";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn video() -> PathBuf {
    root("assets/bouncing_shapes.mp4")
}

fn options() -> SessionOptions {
    SessionOptions {
        max_new_tokens: 6,
        ..SessionOptions::default()
    }
}

/// The nano model in a directory that says it was trained on InternVideo2-CLIP, as VideoChat-TPO's; and
/// in memory, with its own encoder for a tower.
fn write_model(dir: &Path, clip_seconds: f64) -> Session {
    let mut nano = Session::nano(&Device::flex(), 7, options()).unwrap();
    nano.save(dir).unwrap();
    let file = dir.join(tpo::CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["features"] = json!({"kind": "intern_video2"});
    config["heads"]["temporal"]["clip_seconds"] = json!(clip_seconds);
    std::fs::write(&file, config.to_string()).unwrap();
    nano.load_video(video(), None).unwrap();
    nano
}

fn open(dir: &Path, options: SessionOptions) -> Session {
    let (mut session, _) = Session::open(dir, &Device::flex(), options, None).unwrap();
    session.load_video(video(), None).unwrap();
    session
}

fn try_ask(session: &mut Session, query: &str) -> tpo::Result<Reply> {
    session.clear_history();
    let question = Question::new(query).with_task("temporal");
    session.ask(question)?.collect_reply()
}

fn ask(session: &mut Session) -> Reply {
    try_ask(session, QUERY).unwrap()
}

fn spans(reply: &Reply) -> TemporalPrediction {
    assert!(reply.unanswered.is_empty(), "{reply:?}");
    reply.prediction::<TemporalPrediction>().unwrap().clone()
}

/// Why the head did not answer. What else a model of random weights calls in its words is left to it.
fn why(reply: &Reply) -> &str {
    let mut calls = reply.unanswered.iter();
    let call = calls.find(|call| call.task == "temporal");
    assert!(reply.tasks.iter().all(|t| t.task != "temporal"));
    &call.unwrap_or_else(|| panic!("{reply:?}")).why
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn without_towers_the_answer_goes_on_in_words() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut nano = write_model(dir.path(), 0.5);
    let reply = ask(&mut open(dir.path(), options()));
    let remedy = [
        "head `temporal` needs the features `temporal.video`",
        "--towers DIR",
        "vision.safetensors, text.safetensors, clip.safetensors, tokenizer.model",
        "tools/pth_to_safetensors.py",
        "tpo features --help",
        "--features DIR",
    ];
    contains(why(&reply), &remedy);
    let json = serde_json::to_value(&reply).unwrap();
    assert_eq!(json["unanswered"][0]["task"], "temporal");
    assert_eq!(json["unanswered"][0]["why"], why(&reply));
    // The words are those of an answer in which the head spoke.
    let answered = ask(&mut nano);
    spans(&answered);
    assert!(!reply.text.is_empty());
    assert_eq!(reply.text, answered.text);

    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command.args([
            "chat",
            "--device",
            "cpu",
            "--max-new-tokens",
            "6",
            "--task",
            "temporal",
        ]);
        command.args(["--ask", QUERY, "--model"]).arg(dir.path());
        command.arg("--video").arg(video()).args(more);
        command.output().unwrap()
    };
    let output = run(&[]);
    let (said, told) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{told}");
    contains(&said, &["[temporal: not answered]"]);
    contains(&told, &remedy);
    // A folder that is none is an error at once.
    let output = run(&["--towers", "assets"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    contains(
        &told,
        &["it lacks vision.safetensors", "tpo features --help"],
    );
    assert!(!told.contains("frame(s) read"), "{told}");
}

#[test]
fn questions_without_towers_are_counted_as_failed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    write_model(&model, 0.5);
    let (session, _) = Session::open(&model, &Device::flex(), options(), None).unwrap();
    let spec = WorldSpec {
        world: WorldConfig {
            frames: 12,
            side: 32,
            max_objects: 2,
            ..WorldConfig::default()
        },
        seed: 5,
        split: Split::HeldOut,
        clips: 1,
        choices: false,
    };
    let plan = PlanOptions {
        route: Route::Always,
        kinds: vec![ItemKind::Region, ItemKind::Temporal],
        ..PlanOptions::default()
    };
    let plan = Plan::synthetic(&spec, plan).unwrap();
    let of = |kind: ItemKind| plan.items.iter().filter(|i| i.kind() == kind).count();
    assert!(of(ItemKind::Region) > 0 && of(ItemKind::Temporal) > 0);
    let mut model = SessionAnswerer::new(&session, "nano", plan.route, plan.answers).unwrap();
    let out = dir.path().join("run");
    let RunOutcome::Done(results) =
        run(&plan, &mut model, &out, &RunOptions::default(), &mut |_| {
            true
        })
        .unwrap()
    else {
        panic!("stopped")
    };
    assert_eq!(results.failed.len(), of(ItemKind::Temporal));
    contains(&results.failed[0].why, &["--towers DIR"]);
    let tasks: Vec<_> = results
        .scores
        .iter()
        .map(|s| (s.task.as_str(), s.questions))
        .collect();
    assert_eq!(tasks, [("region", of(ItemKind::Region))]);
    let rows = std::fs::read_to_string(out.join("predictions.jsonl")).unwrap();
    assert_eq!(rows.matches("--towers DIR").count(), of(ItemKind::Temporal));
}

#[test]
fn features_that_were_computed_before_give_the_spans_of_their_tower() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (model, features) = (dir.path().join("model"), dir.path().join("features"));
    let mut nano = write_model(&model, 0.5);
    let of_towers = ask(&mut nano);
    let config = nano.config();
    // The nano's own towers, as those that somebody ran over a dataset.
    let tokenizer = Tokenizer::from_dir(&model).unwrap();
    let clips = config.features.own_clips().unwrap();
    let (size, tokenizer) = (config.input.size, Arc::new(tokenizer));
    let towers = TemporalTowers::of_model(nano.model(), &tokenizer, size, clips).unwrap();
    let found = extract_video(
        video(),
        &**towers.video.as_ref().unwrap(),
        &ExtractOptions::default(),
        None,
    )
    .unwrap();
    let text = towers.text.as_ref().unwrap().extract(QUERY).unwrap();
    std::fs::create_dir_all(features.join("text")).unwrap();
    let of_video = features.join("bouncing_shapes.safetensors");
    found.save(&of_video, "nano").unwrap();
    let of_query = features.join("text/When does the circle turn_.npy");
    write_npy(&of_query, &text);

    let session = || {
        let features = FeatureFolder::open(&features).unwrap();
        let options = SessionOptions {
            features: Some(features),
            ..options()
        };
        open(&model, options)
    };
    let read = ask(&mut session());
    assert_eq!(spans(&read), spans(&of_towers));
    // Other features in a file of the same size are other features of a run.
    let fingerprint = || {
        FeatureFolder::open(&features)
            .unwrap()
            .fingerprint()
            .unwrap()
    };
    let before = fingerprint();
    write_npy(&of_query, &(text.clone() * 2.0));
    assert_ne!(fingerprint(), before);
    write_npy(&of_query, &text);
    assert_eq!(fingerprint(), before);
    assert_eq!(read.text, of_towers.text);
    // By the number of the question, as QVHighlights has it.
    std::fs::rename(&of_query, features.join("text/qid17.npy")).unwrap();
    let reply = ask(&mut session());
    contains(
        why(&reply),
        &[
            "there is no",
            "When does the circle turn_.npz|npy|safetensors",
        ],
    );
    let mut numbered = Question::new(QUERY).with_task("temporal");
    numbered.id = Some("17".into());
    let mut by_number = session();
    let reply = by_number.ask(numbered).unwrap().collect_reply().unwrap();
    assert_eq!(spans(&reply), spans(&of_towers));

    // Two towers side by side, in folders of their own.
    let rows = found.features.clone();
    let [n, width] = rows.dims();
    std::fs::remove_file(&of_video).unwrap();
    contains(
        why(&ask(&mut session())),
        &["bouncing_shapes.npz|npy|safetensors"],
    );
    for (tower, columns) in [("1_slowfast", 0..5), ("2_clip", 5..width)] {
        std::fs::create_dir(features.join(tower)).unwrap();
        let part = rows.clone().slice([0..n, columns]);
        write_npy(&features.join(tower).join("bouncing_shapes.npy"), &part);
    }
    let mut beside = session();
    let mut numbered = Question::new(QUERY).with_task("temporal");
    numbered.id = Some("17".into());
    let reply = beside.ask(numbered).unwrap().collect_reply().unwrap();
    assert_eq!(spans(&reply), spans(&of_towers));

    // What is there and does not fit is an error that names the file.
    write_npy(&of_query, &text);
    let error = |rows: Tensor<2>| {
        write_npy(&features.join("bouncing_shapes.npy"), &rows);
        try_ask(&mut session(), QUERY).unwrap_err().to_string()
    };
    let narrow = error(rows.clone().slice([0..n, 0..5]));
    let expected = format!("5 wide, expected {width}");
    contains(&narrow, &["bouncing_shapes.npy", &expected]);
    let short = error(rows.slice([0..2, 0..width]));
    let expected = format!("has 2 rows, expected {n}");
    contains(
        &short,
        &["bouncing_shapes.npy", &expected, "a row every 0.5 s"],
    );
}

/// Small towers in the published files, and the same in memory.
struct Towers {
    dir: PathBuf,
    in_memory: TemporalTowers,
}

impl Towers {
    /// For the temporal head of a model.
    fn of(config: &TpoConfig, dir: &Path) -> Self {
        let head: TemporalHeadConfig = config.heads.get::<TemporalHead>().unwrap();
        let mut video = InternVideo2Config::mini();
        (video.clip_embed_dim, video.depth) = (head.model.d_video, 2);
        Self::write(dir, &video, head.model.d_text)
    }

    fn write(dir: &Path, video: &InternVideo2Config, d_text: usize) -> Self {
        let device = Device::flex();
        let dir = dir.join("towers");
        std::fs::create_dir(&dir).unwrap();
        // The pieces of the tokenizer that Llama and Mistral share.
        let decoder = LlmConfig::new(32_000, d_text, 96, 2, 4, 4, d_text / 4)
            .with_rms_norm_eps(1e-6)
            .with_max_position_embeddings(2048);
        let lora = TextTowerConfig::internvideo2_lora();
        let sizes = json!({
            "vision": {"img_size": 56, "patch_size": 14, "embed_dim": 96, "depth": video.depth,
                       "num_heads": 4, "attn_pool_num_heads": 4, "clip_embed_dim": video.clip_embed_dim},
            "text": {"model_type": "llama", "vocab_size": 32_000, "hidden_size": d_text,
                     "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        });
        std::fs::write(dir.join("towers.json"), sizes.to_string()).unwrap();
        let text = TextTowerConfig::of(decoder, lora, video.clip_embed_dim);
        let (video, text) = (video.init(&device).unwrap(), text.init(&device).unwrap());
        let rules = vision_rules().unwrap();
        for name in ["vision.safetensors", "clip.safetensors"] {
            save_module(&video, &rules, dir.join(name), &SaveOptions::default()).unwrap();
        }
        // InternVL-C's own names have no prefix.
        let file = dir.join("text.safetensors");
        save_module(
            &text,
            &text_rules().unwrap(),
            &file,
            &SaveOptions::default(),
        )
        .unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let named = tensors.tensors().into_iter().map(|(name, tensor)| {
            let name = name.strip_prefix("text_encoder.").unwrap().to_string();
            (name, tensor)
        });
        let renamed = safetensors::serialize(named, None::<HashMap<String, String>>).unwrap();
        std::fs::write(&file, renamed).unwrap();
        let pieces = root("tpo-llm/tests/fixtures/mistral_v1/tokenizer.model");
        std::fs::copy(&pieces, dir.join("tokenizer.model")).unwrap();
        let tokenizer = QueryTokenizer::from_sentencepiece(pieces).unwrap();
        Self {
            dir,
            in_memory: TemporalTowers::new(
                Arc::new(InternVideo2Features::new(video)),
                Arc::new(TextTowerFeatures::new(text.merge_lora(), tokenizer)),
            ),
        }
    }

    fn open(&self, options: TowerOptions) -> TemporalTowers {
        TemporalTowers::open(&self.dir, &Device::flex(), options).unwrap()
    }
}

/// Hears which towers are read, each once per reading.
fn listening() -> (HeadProgress, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let progress = HeadProgress(Arc::new(
        move |HeadStep {
                  what, done, total, ..
              }| {
            if done == total {
                hears.lock().unwrap().push(what.to_string());
            }
        },
    ));
    (progress, heard)
}

#[test]
fn towers_in_a_folder_open_when_the_head_is_first_called() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let config = write_model(&model, 1.0).config().clone();
    let towers = Towers::of(&config, dir.path());
    let session = |towers: TemporalTowers, cache: Option<&FeatureCache>| {
        let options = SessionOptions {
            towers: Some(towers),
            feature_cache: cache.cloned(),
            ..options()
        };
        open(&model, options)
    };
    let expected = spans(&ask(&mut session(towers.in_memory.clone(), None)));
    assert_eq!(expected.saliency.len(), 4);

    let with = |memory: Option<u64>, cache: Option<&FeatureCache>| {
        let (progress, heard) = listening();
        let options = TowerOptions {
            memory,
            cache: cache.cloned(),
            progress: Some(progress),
            ..TowerOptions::default()
        };
        (session(towers.open(options), cache), heard)
    };
    let reads = |heard: &Mutex<Vec<String>>| std::mem::take(&mut *heard.lock().unwrap());
    let (mut lazy, heard) = with(None, None);
    assert!(reads(&heard).is_empty());
    assert_eq!(spans(&ask(&mut lazy)), expected);
    assert_eq!(reads(&heard), ["video tower", "text tower"]);
    lazy.load_video(video(), None).unwrap();
    assert_eq!(spans(&ask(&mut lazy)), expected);
    assert!(reads(&heard).is_empty(), "both stay where there is room");

    // Memory for one: the other goes when it is needed, and comes back for another video.
    let one = towers.open(TowerOptions::default()).bytes_to_open();
    let f32_only = |memory| TowerOptions {
        dtype: Some(FloatDType::F32),
        memory,
        ..TowerOptions::default()
    };
    let (progress, heard) = listening();
    let options = TowerOptions {
        progress: Some(progress),
        ..f32_only(Some(one))
    };
    let mut tight = session(towers.open(options), None);
    assert_eq!(spans(&ask(&mut tight)), expected);
    tight.load_video(video(), None).unwrap();
    assert_eq!(spans(&ask(&mut tight)), expected);
    let both = ["video tower", "text tower"];
    assert_eq!(reads(&heard), [both, both].concat());
    // So it is where a session's own bound leaves the towers that much beside its model.
    let model_takes = ModelMemory::of::<BuiltInHeads>(&config, FloatDType::F32, 6).unwrap();
    let (progress, heard) = listening();
    let options = TowerOptions {
        progress: Some(progress),
        ..f32_only(None)
    };
    let options = SessionOptions {
        towers: Some(towers.open(options)),
        memory: Some(model_takes.total() + one),
        ..self::options()
    };
    let mut tight = open(&model, options);
    // Questions that are answered together leave room for them.
    let left = model_takes.total() - model_takes.weights;
    assert_eq!(tight.batch_that_fits().unwrap(), model_takes.batch(left));
    assert_eq!(spans(&ask(&mut tight)), expected);
    tight.load_video(video(), None).unwrap();
    assert_eq!(spans(&ask(&mut tight)), expected);
    assert_eq!(reads(&heard), [both, both].concat());
    // A tower stays that would go in vain: the video tower takes more than a GiB.
    let (progress, heard) = listening();
    let small = towers.open(TowerOptions {
        progress: Some(progress),
        ..f32_only(Some(one / 2))
    });
    small.text.as_ref().unwrap().extract(QUERY).unwrap();
    let refused = extract_video(
        video(),
        &**small.video.as_ref().unwrap(),
        &ExtractOptions::default(),
        None,
    );
    assert!(refused.is_err());
    small
        .text
        .as_ref()
        .unwrap()
        .extract("When is it blue?")
        .unwrap();
    assert_eq!(reads(&heard), ["text tower"]);
    // Memory for none: the words go on.
    let reply = ask(&mut session(towers.open(f32_only(Some(1 << 20))), None));
    contains(
        why(&reply),
        &["their tower takes", "--towers-dtype bf16", "--features DIR"],
    );

    // Features of the video and of the query are kept; nothing of the towers is read then.
    let cache = FeatureCache::open(dir.path().join("cache")).unwrap();
    let (mut first, heard) = with(None, Some(&cache));
    assert_eq!(spans(&ask(&mut first)), expected);
    assert_eq!(reads(&heard), both);
    let entries = |ending: &str| {
        let files = std::fs::read_dir(dir.path().join("cache")).unwrap();
        let ends = files.filter(|f| f.as_ref().unwrap().path().extension().unwrap() == ending);
        ends.count()
    };
    assert_eq!((entries("safetensors"), entries("hash")), (2, 4));
    let (mut second, heard) = with(None, Some(&cache));
    assert_eq!(spans(&ask(&mut second)), expected);
    assert!(reads(&heard).is_empty());
    let other = try_ask(&mut second, "When is it blue?").unwrap();
    assert_ne!(spans(&other), expected);
    assert_eq!(
        (reads(&heard), entries("safetensors")),
        (vec!["text tower".to_string()], 3)
    );

    // Another number format is another tower.
    let half = TowerOptions {
        dtype: Some(FloatDType::BF16),
        cache: Some(cache.clone()),
        ..TowerOptions::default()
    };
    let half = spans(&ask(&mut session(towers.open(half), Some(&cache))));
    assert_eq!((half.saliency.len(), entries("safetensors")), (4, 5));

    // A damaged file is noticed then, ends that answer, and is named.
    let file = towers.dir.join("vision.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let mut damaged = session(towers.open(TowerOptions::default()), None);
    let error = try_ask(&mut damaged, QUERY).unwrap_err().to_string();
    contains(&error, &["vision.safetensors"]);
    let where_is = Question::new("Where is it?").with_task("region");
    let reply = damaged.ask(where_is).unwrap().collect_reply().unwrap();
    assert_eq!(reply.tasks.len(), 1);
    std::fs::write(towers.dir.join("towers.json"), "{\"audio\": {}}").unwrap();
    let error = TemporalTowers::open(&towers.dir, &Device::flex(), TowerOptions::default());
    contains(
        &error.unwrap_err().to_string(),
        &["towers.json", "no tower `audio`"],
    );
}

/// LLaVA-OV-TPO's: a video tower in files, and the words as the model's own language model reads them.
#[test]
fn a_video_tower_goes_with_the_models_own_language_model() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let nano = write_model(&model, 1.0);
    let towers = Towers::of(nano.config(), dir.path());
    let of_video = towers.in_memory.video.clone().unwrap();
    let tokenizer = Arc::new(Tokenizer::from_dir(&model).unwrap());
    let words = LanguageModelFeatures::new(nano.model().llm.clone(), tokenizer, "llm");
    let both = TemporalTowers::new(of_video.clone(), Arc::new(words));
    let session = |towers: Option<TemporalTowers>, features: Option<FeatureFolder>| {
        let options = SessionOptions {
            towers,
            features,
            ..options()
        };
        open(&model, options)
    };
    let expected = spans(&ask(&mut session(Some(both), None)));

    // The folder has no text tower; a model that reads it says so.
    for name in ["text.safetensors", "tokenizer.model"] {
        std::fs::remove_file(towers.dir.join(name)).unwrap();
    }
    let video_alone = towers.open(TowerOptions::default());
    let reply = ask(&mut session(Some(video_alone), None));
    contains(why(&reply), &["text.safetensors"]);

    let file = model.join(tpo::CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["features"] = json!({"kind": "intern_video2_video"});
    std::fs::write(&file, config.to_string()).unwrap();
    let (progress, heard) = listening();
    let video_alone = towers.open(TowerOptions {
        progress: Some(progress),
        ..TowerOptions::default()
    });
    assert_eq!(spans(&ask(&mut session(Some(video_alone), None))), expected);
    assert_eq!(*heard.lock().unwrap(), ["video tower"]);
    // With a text tower, it is not read.
    assert_eq!(
        spans(&ask(&mut session(Some(towers.in_memory.clone()), None))),
        expected
    );
    // Of the video from a file; of neither.
    let folder = dir.path().join("features");
    std::fs::create_dir(&folder).unwrap();
    let found = extract_video(video(), &*of_video, &ExtractOptions::default(), None).unwrap();
    found
        .save(folder.join("bouncing_shapes.safetensors"), "mini")
        .unwrap();
    let folder = FeatureFolder::open(&folder).unwrap();
    assert_eq!(spans(&ask(&mut session(None, Some(folder)))), expected);
    let reply = ask(&mut session(None, None));
    contains(why(&reply), &["--towers DIR"]);
}

#[test]
fn the_program_gives_towers_a_device_and_a_type_of_their_own() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let config = write_model(&model, 1.0).config().clone();
    let towers = Towers::of(&config, dir.path());
    let chat = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command.args([
            "chat",
            "--max-new-tokens",
            "2",
            "--task",
            "temporal",
            "--ask",
            QUERY,
        ]);
        command
            .arg("--model")
            .arg(&model)
            .arg("--video")
            .arg(video());
        command
            .arg("--timeline")
            .arg(dir.path().join("timeline.png"));
        let output = command.args(more).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (cache, folder) = (dir.path().join("cache"), towers.dir.display().to_string());
    let own = [
        "--towers",
        &folder,
        "--towers-device",
        "cpu",
        "--towers-dtype",
        "f32",
    ];
    let kept = ["--feature-cache", cache.to_str().unwrap()];
    let said = chat(&[&own[..], &kept].concat());
    assert!(!said.contains("not answered"), "{said}");
    assert_eq!(chat(&[&own[..], &kept].concat()), said);

    let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
    command.arg("evaluate").args([
        "--synthetic",
        "1",
        "--task",
        "temporal",
        "--route",
        "always",
    ]);
    command
        .args(["--max-new-tokens", "2", "--model"])
        .arg(&model)
        .args(own)
        .args(kept);
    let out = dir.path().join("run");
    let output = command.arg("--out").arg(&out).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let results = std::fs::read(out.join("results.json")).unwrap();
    let results: Value = serde_json::from_slice(&results).unwrap();
    assert_eq!(results["failed"].as_array().unwrap().len(), 0);
    let named = &results["protocol"]["model"]["settings"]["towers"]["video"];
    contains(named.as_str().unwrap(), &["internvideo2-clip:Cast(F32):"]);
}

#[test]
fn the_program_that_extracts_shares_the_cache() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let towers = Towers::write(dir.path(), &InternVideo2Config::mini(), 64);
    let cache = dir.path().join("cache");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
    command
        .args(["features", "--preset", "mini", "--device", "cpu", "--cache"])
        .arg(&cache);
    command
        .arg("--vision")
        .arg(towers.dir.join("vision.safetensors"));
    command
        .arg("--clip")
        .arg(towers.dir.join("clip.safetensors"))
        .arg(video());
    let output = command
        .arg("--out")
        .arg(dir.path().join("out"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let cache = FeatureCache::open(cache).unwrap();
    let f32_only = TowerOptions {
        dtype: Some(FloatDType::F32),
        ..TowerOptions::default()
    };
    let options = ExtractOptions {
        cache: Some(&cache),
        ..ExtractOptions::default()
    };
    let found = extract_video(
        video(),
        &**towers.open(f32_only).video.as_ref().unwrap(),
        &options,
        None,
    )
    .unwrap();
    assert_eq!(found.cache, CacheUse::Hit);
    // In a number format of its own.
    let output = command
        .args(["--force", "--dtype", "bf16"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let half = TowerOptions {
        dtype: Some(FloatDType::BF16),
        ..TowerOptions::default()
    };
    let found = extract_video(
        video(),
        &**towers.open(half).video.as_ref().unwrap(),
        &options,
        None,
    )
    .unwrap();
    assert_eq!(found.cache, CacheUse::Hit);
}

/// Nothing is ignored in silence: `--memory` is for models that are opened by what fits.
#[test]
fn the_program_refuses_a_bound_that_nothing_goes_by() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
    command.args(["chat", "--preset", "nano", "--memory", "4", "--ask", QUERY]);
    let output = command.arg("--video").arg(video()).output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    contains(&told, &["--memory are for model directories"]);
}

/// A video has the frames of its file, however many of them are followed.
#[test]
fn fewer_frames_are_followed_than_there_are() {
    let _alone = alone();
    let look = |track: TrackFrames| {
        let options = SessionOptions { track, ..options() };
        let mut nano = Session::nano(&Device::flex(), 7, options).unwrap();
        nano.load_video(video(), None).unwrap().clone()
    };
    let [all, sampled] = [TrackFrames::All, TrackFrames::Sampled].map(look);
    assert_eq!(all.followed, Vec::from_iter(0..all.frame_count));
    assert_eq!(sampled.followed, sampled.frames);
    assert_eq!(sampled.frame_count, all.frame_count);
    assert!(sampled.followed.len() < all.frame_count);
}

/// `--track sampled` follows an object through the frames the model looked at, and draws on one of them.
#[test]
fn the_program_follows_fewer_frames() {
    let dir = tempfile::tempdir().unwrap();
    let follow = |track: &[&str]| {
        let picture = dir.path().join("picture.png");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command.args([
            "chat",
            "--device",
            "cpu",
            "--max-new-tokens",
            "2",
            "--task",
            "mask",
        ]);
        command.args(["--ask", "Follow it.", "--box", "0.1,0.1,0.5,0.5", "--video"]);
        command.arg(video()).arg("--out").arg(&picture).args(track);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let all = follow(&[]);
    contains(&all, &["[mask visible in "]);
    assert!(!all.contains("of 16 frames]"), "{all}");
    let sampled = follow(&["--track", "sampled"]);
    contains(&sampled, &["of 16 frames]"]);
    follow(&["--track", "sampled", "--at", "3.9"]);
}

/// Beside the published model on 22 GiB: the larger tower is counted before a weight is read.
#[test]
fn the_table_of_memory_counts_the_towers() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "vision.safetensors",
        "text.safetensors",
        "clip.safetensors",
        "tokenizer.model",
    ] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let choose = |gib: u64| {
        let memory = Some(gib << 30);
        let options = TowerOptions {
            memory,
            ..TowerOptions::default()
        };
        let towers = TemporalTowers::open(dir.path(), &Device::flex(), options).unwrap();
        let config = TpoConfig::videochat_tpo();
        let bytes = towers.bytes_to_open();
        let chosen =
            choose_format::<BuiltInHeads>(&config, None, Quantize::default(), 200, bytes, memory);
        (bytes as f64 / (1_u64 << 30) as f64, chosen)
    };
    // 6.69 billion parameters of two bytes.
    let (towers, refused) = choose(22);
    assert!((12.4..12.6).contains(&towers), "{towers}");
    let refused = refused.unwrap_err().to_string();
    contains(
        &refused,
        &["towers", "12.5", "give --dtype bf16 --quantize q4_0"],
    );
    let (_, chosen) = choose(40);
    assert_eq!(chosen.unwrap(), FloatDType::BF16);
    // A training run counts them beside its largest stage.
    const RECIPE: &str = r#"
name = "beside"
model = { preset = "nano", lora = { rank = 4, alpha = 8.0 } }

[[stages]]
name = "only"
length = { steps = 1 }
batch_size = 1
data = { sources = [{ name = "chat", synthetic = { tasks = ["chat"], rows = 4 } }] }
groups = [{ name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-2 }]
"#;
    let recipe = Recipe::read::<&str>(RECIPE, "r", &[]).unwrap();
    let half = TowerOptions {
        dtype: Some(FloatDType::BF16),
        ..TowerOptions::default()
    };
    let towers = TemporalTowers::open(dir.path(), &Device::flex(), half).unwrap();
    let run = tpo::training::RunOptions {
        towers: Some(towers),
        memory: Some(8 << 30),
        ..tpo::training::RunOptions::new(dir.path().join("run"), &Device::flex())
    };
    let refused = run_recipe::<BuiltInHeads>(&recipe, &run).err().unwrap();
    contains(
        &refused.to_string(),
        &["learning", "towers", "12.5", "leave --towers out"],
    );
    // Of four where there is much room.
    let (towers, chosen) = choose(80);
    assert!((24.8..25.2).contains(&towers), "{towers}");
    assert_eq!(chosen.unwrap(), FloatDType::F32);
}
