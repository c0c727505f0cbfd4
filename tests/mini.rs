//! The model in the box: its files, its card, and that it answers as the card says.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use tpo::data::synthetic::{Split, World, WorldConfig};
use tpo::evaluation::{
    AnswerForm, ItemKind, Plan, PlanOptions, Route, RunOptions, RunOutcome, SessionAnswerer,
    WorldSpec, run,
};
use tpo::prelude::*;

fn asset(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets/mini")
        .join(name)
}

fn mini() -> Session {
    let options = SessionOptions {
        max_new_tokens: 24,
        ..SessionOptions::default()
    };
    tpo::presets::mini(&Device::flex(), options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn it_is_as_small_as_it_says() {
    let files = ["model.safetensors", "tokenizer.json", "tpo.json"];
    let bytes: u64 = files
        .iter()
        .map(|f| std::fs::metadata(asset(f)).unwrap().len())
        .sum();
    assert!(bytes < 10_000_000, "{bytes}");
    let session = mini();
    assert!(session.model().num_params() <= 4_000_000);
    let names: Vec<String> = session
        .model()
        .registry()
        .tasks()
        .iter()
        .map(|t| t.name.clone())
        .collect();
    assert_eq!(names, ["region", "temporal", "mask"]);
}

#[test]
fn the_card_is_of_these_weights() {
    let card = std::fs::read_to_string(asset("README.md")).unwrap();
    let weights = std::fs::read(asset("model.safetensors")).unwrap();
    let hash = blake3::hash(&weights).to_hex();
    assert!(
        card.contains(hash.as_str()),
        "the card does not name these weights; BLAKE3 {hash}"
    );
}

/// Three questions of each kind would be luck; these clips give some hundred.
#[test]
fn it_answers_about_clips_it_never_saw() {
    let session = mini();
    let spec = WorldSpec {
        world: WorldConfig::default(),
        seed: 1,
        split: Split::HeldOut,
        clips: 16,
        choices: false,
    };
    let options = PlanOptions {
        kinds: vec![
            ItemKind::Text,
            ItemKind::Region,
            ItemKind::Temporal,
            ItemKind::Mask,
        ],
        route: Route::Model,
        answers: AnswerForm::Heads,
        ..PlanOptions::default()
    };
    let plan = Plan::synthetic(&spec, options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut model =
        SessionAnswerer::new(&session, "mini", Route::Model, AnswerForm::Heads).unwrap();
    let ended = run(
        &plan,
        &mut model,
        dir.path(),
        &RunOptions::default(),
        &mut |_| true,
    )
    .unwrap();
    let RunOutcome::Done(results) = ended else {
        panic!("stopped");
    };
    assert!(results.failed.is_empty());
    let score = |task: &str, name: &str| {
        let task = results.scores.iter().find(|s| s.task == task).unwrap();
        let score = task.scores.iter().find(|s| s.name == name).unwrap();
        score.value.unwrap()
    };
    for (task, name, least) in LEAST {
        let found = score(task, name);
        assert!(found >= least, "{task} {name}: {found}, at least {least}");
    }
}

/// Some points below what the card says of 200 clips.
const LEAST: [(&str, &str, f64); 4] = [
    ("text", "exact match", 68.0),
    ("region", "Acc@0.5", 74.0),
    ("temporal", "R1@0.5", 68.0),
    ("mask", "J&F", 62.0),
];

/// Its encoder reads frames in pairs; an image is shown to it twice.
#[test]
fn it_answers_about_an_image() {
    let clip = World::new(WorldConfig::default(), 1)
        .unwrap()
        .clip(Split::HeldOut, 12);
    let frame = clip.scene.render_all()[0].to_frame().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("frame.png");
    tpo::draw::save_picture(&tpo::draw::picture(frame).unwrap(), &path).unwrap();
    let mut session = mini();
    session.load_image(&path).unwrap();
    let mut ask = |question: Question| session.ask(question).unwrap().collect_reply().unwrap();
    let words = ask(Question::new("Count the shapes."));
    assert!(!words.text.trim().is_empty());
    let look = clip.scene.objects[0].look.phrase();
    let place = format!("Where is the {look} at the start?");
    let place = ask(Question::new(place).with_task("region"));
    let found: &RegionPrediction = place.prediction().unwrap();
    found.normalised.check("the box").unwrap();
    assert!(place.said.contains('['), "{}", place.said);
}

#[test]
fn the_same_clip_gets_the_same_answer() {
    let clip = World::new(WorldConfig::default(), 3)
        .unwrap()
        .clip(Split::HeldOut, 2);
    let frames: Vec<_> = clip
        .scene
        .render_all()
        .iter()
        .map(|f| f.to_frame().unwrap())
        .collect();
    let it = clip.scene.objects[0].look.phrase();
    let answer = || {
        let mut session = mini();
        session
            .load_frames("clip", frames.clone(), clip.scene.fps)
            .unwrap();
        let reply = session
            .ask(Question::new(format!("Where is the {it} at the start?")))
            .unwrap()
            .collect_reply()
            .unwrap();
        let area = reply
            .tasks
            .iter()
            .find_map(|t| t.get::<RegionPrediction>())
            .map(|r| r.normalised);
        (reply.text, area)
    };
    let (text, area) = answer();
    assert!(area.is_some(), "no box: {text}");
    assert_eq!((text, area), answer());
}
