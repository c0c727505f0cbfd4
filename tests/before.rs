//! What was written when heads were a list, their tokens had numbers and patterns called them
//! `head:NAME`: recipes, checkpoints, `tpo.json`.
//!
//! `fixtures/before` is a run of that time: its recipe, its metrics up to the end, and the
//! checkpoint of the step in the middle.

#[path = "common/alone.rs"]
mod alone;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alone::alone;
use burn::tensor::Device;
use tpo::core::head::HeadSet;
use tpo::core::weights::{Checkpoint, module_params, read_tensor};
use tpo::model::{ConnectorConfig, VisionConfig, videochat_tasks};
use tpo::prelude::*;
use tpo::train::checkpoint::{CheckpointStore, Retention, files};
use tpo::train::observe::read_metrics;
use tpo::train::recipe::Recipe;
use tpo::train::trainer::RunEnd;
use tpo::training::{RunOptions, explain, recipe_model, run_recipe};

/// Places of then and of now.
const PLACES: [(&str, &str); 6] = [
    ("heads.head.", "heads.region."),
    ("heads.rest.head.", "heads.temporal."),
    ("heads.rest.rest.head.", "heads.mask."),
    ("task_tokens.0", "task_tokens.region"),
    ("task_tokens.1", "task_tokens.temporal"),
    ("task_tokens.2", "task_tokens.mask"),
];

fn before() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/before")
}

fn recipe() -> Recipe {
    Recipe::open::<&str>(before().join("recipe.toml"), &[]).unwrap_or_else(|e| panic!("{e}"))
}

/// The checkpoint's weights under the names of now.
fn weights() -> BTreeMap<String, Vec<f32>> {
    let file = before()
        .join("checkpoints/step-00000002")
        .join(files::WEIGHTS);
    let file = Checkpoint::open(file).unwrap();
    let renamed = |key: &str| {
        let found = PLACES.iter().find_map(|(then, now)| {
            let rest = key.strip_prefix(then)?;
            Some(format!("{now}{rest}"))
        });
        found.unwrap_or_else(|| panic!("{key} is not a name of before"))
    };
    let values = |t| read_tensor(t).unwrap().iter::<f32>().collect();
    file.tensors()
        .map(|t| (renamed(&t.key), values(t)))
        .collect()
}

/// Parameters of a model by path.
fn values(model: &Tpo) -> BTreeMap<String, Vec<f32>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all");
    let keys = tpo::weights::KeyRules::new();
    let options = tpo::weights::SaveOptions::default();
    tpo::weights::save_module(model, &keys, &path, &options).unwrap();
    let values = |t| read_tensor(t).unwrap().iter::<f32>().collect();
    let file = Checkpoint::open(&path).unwrap();
    file.tensors().map(|t| (t.key.clone(), values(t))).collect()
}

#[test]
fn patterns_of_before_name_the_same_parameters() {
    let text = std::fs::read_to_string(before().join("recipe.toml")).unwrap();
    let now = text
        .replace("head:", "heads.")
        .replace("token:", "task_tokens.");
    assert_eq!(text.matches("head:").count(), 5);
    let now = Recipe::read::<&str>(&now, "now", &[]).unwrap();
    let then = recipe();
    assert_eq!(then.to_toml().unwrap(), now.to_toml().unwrap());
    assert!(then.changes(&now, 0).is_empty());
    // Exactly the parameters that learned then, which are those the checkpoint holds.
    let told = explain::<BuiltInHeads>(&then).unwrap();
    let learn = told.stages[0].groups.trainable();
    let learn: Vec<String> = learn.map(|p| p.path.clone()).collect();
    assert_eq!(learn.len(), 17);
    let held = weights();
    assert!(
        learn.iter().all(|path| held.contains_key(path)),
        "{learn:?}"
    );
    assert_eq!(learn.len(), held.len());
}

#[test]
fn a_run_of_before_is_resumed_to_the_same_end() {
    let _lock = alone();
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let at = Path::new("checkpoints/step-00000002");
    std::fs::create_dir_all(dir.path().join(at)).unwrap();
    for entry in std::fs::read_dir(before().join(at)).unwrap() {
        let from = entry.unwrap().path();
        let to = dir.path().join(at).join(from.file_name().unwrap());
        std::fs::copy(&from, to).unwrap();
    }
    let options = RunOptions {
        resume: true,
        ..RunOptions::new(dir.path(), &device)
    };
    let done = run_recipe::<BuiltInHeads>(&recipe(), &options).unwrap();
    assert_eq!((done.resumed_at, done.end), (Some(2), RunEnd::Finished));
    assert!(done.changes.is_empty(), "{:?}", done.changes);

    // The losses of the run that was not interrupted, as the program of then logged them.
    let then = read_metrics(before().join("metrics.jsonl")).unwrap();
    let now = read_metrics(dir.path().join("metrics.jsonl")).unwrap();
    assert_eq!(now.iter().map(|r| r.step).collect::<Vec<_>>(), [3, 4]);
    for (now, then) in now.iter().zip(&then[2..]) {
        assert_eq!(now.step, then.step);
        let losses = |values: &BTreeMap<String, f64>| {
            let name = |n: &str| n.starts_with("loss") || n == "grad_norm";
            let found = values.iter().filter(|(n, _)| name(n));
            found.map(|(n, v)| (n.clone(), *v)).collect::<Vec<_>>()
        };
        let (now, then) = (losses(&now.values), losses(&then.values));
        assert_eq!(now.len(), then.len());
        for ((name, now), (same, then)) in now.iter().zip(&then) {
            assert_eq!(name, same);
            assert!(
                (now - then).abs() <= 1e-4 * then.abs(),
                "{name}: {now}, then {then}"
            );
        }
    }
    // What it writes has the names of now.
    let store = CheckpointStore::new(dir.path().join("checkpoints"), Retention::ALL);
    let newest = store.newest().unwrap().0.unwrap();
    let written = Checkpoint::open(newest.dir().join(files::WEIGHTS)).unwrap();
    let keys: Vec<String> = written.tensors().map(|t| t.key.clone()).collect();
    assert_eq!(keys, weights().into_keys().collect::<Vec<_>>());
}

#[test]
fn a_checkpoint_of_before_is_opened() {
    let _lock = alone();
    let device = Device::flex();
    let mut session =
        Session::open_checkpoint(before(), &device, SessionOptions::default()).unwrap();
    let found = values(session.model());
    assert_eq!(found.len(), module_params(session.model()).len());
    let held = weights();
    for (path, expected) in &held {
        assert_eq!(&found[path], expected, "{path}");
    }
    // It learned, and what is not in the checkpoint is what the recipe draws.
    let drawn = values(
        &recipe_model::<BuiltInHeads>(&recipe(), &device)
            .unwrap()
            .model,
    );
    for (path, drawn) in &drawn {
        assert_eq!(held.contains_key(path), drawn != &found[path], "{path}");
    }
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/bouncing_shapes.mp4");
    session.load_video(clip, None).unwrap();
    let question = Question::new("Where is the red circle?").with_task("region");
    let reply = session.ask(question).unwrap().collect_reply().unwrap();
    assert!(reply.tasks[0].get::<RegionPrediction>().is_some());
}

#[test]
fn a_recipe_starts_from_a_checkpoint_of_before() {
    let _lock = alone();
    let device = Device::flex();
    let text = std::fs::read_to_string(before().join("recipe.toml")).unwrap();
    let start = format!(
        "preset = \"nano\"\nstart = {:?}\nfresh = [\"head:temporal.**\", \"token:temporal\"]",
        before().display().to_string()
    );
    let text = text
        .replace("preset = \"nano\"", &start)
        .replace("seed = 5", "seed = 6");
    let next = Recipe::read::<&str>(&text, "next", &[]).unwrap();
    let found = values(&recipe_model::<BuiltInHeads>(&next, &device).unwrap().model);
    for (path, then) in weights() {
        let fresh = path.contains("temporal");
        assert_eq!(found[&path] != then, fresh, "{path}");
    }
}

#[test]
fn sizes_of_before_are_read() {
    let json = include_str!("../assets/mini/tpo.json");
    let written: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(written["format"], 1, "the file this is about");
    let config = TpoConfig::from_json(json).unwrap();
    config.validate::<BuiltInHeads>().unwrap();
    assert!(matches!(config.vision, VisionConfig::Umt(_)));
    assert!(matches!(config.connector, ConnectorConfig::QFormer(_)));
    let heads: Vec<&String> = config.heads.0.keys().collect();
    assert_eq!(heads, ["mask", "region", "temporal"]);
    for name in ["mask", "region", "temporal"] {
        assert_eq!(config.heads.0[name], written[name], "{name}");
    }
    let first = config.tasks.get("region").unwrap().routing.id;
    assert_eq!(config.tasks, videochat_tasks(first));
    // Written again it is of this format, and says the same.
    let again = serde_json::to_string(&config).unwrap();
    let again = TpoConfig::from_json(&again).unwrap();
    assert!(again.format > 1);
    let text = |c: &TpoConfig| serde_json::to_string(c).unwrap();
    assert_eq!(text(&again), text(&config));
    let order: Vec<String> = BuiltInHeads::specs().into_iter().map(|s| s.name).collect();
    assert_eq!(
        order,
        ["region", "temporal", "mask"],
        "the order of the list"
    );
}
