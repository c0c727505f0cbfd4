//! Clips of the synthetic world as rows of a feed.

#[path = "common/heads.rs"]
mod heads;

use std::sync::Arc;

use burn::tensor::{TensorData, Tolerance};
use heads::{Truths, registry};
use serde_json::json;
use tpo_core::head::FrameSource;
use tpo_core::prompt::TextEncoder;
use tpo_core::token::TaskRegistry;
use tpo_core::truth::{Truth, TruthPlace, TruthTarget};
use tpo_data::feed::{Collated, Cursor, Feed, FeedConfig, MixtureSpec, SourceSpec};
use tpo_data::prompts::LayoutEncoder;
use tpo_data::schema::Target;
use tpo_data::synthetic::{RowsConfig, Split, WorldRows, WorldTask};
use tpo_data::{DataError, ImageTransform, MediaLimits};

/// Characters as ids, the model's tokens as one id each, BOS 1.
struct Chars(TaskRegistry);

impl TextEncoder for Chars {
    fn encode_with_bos(&self, text: &str) -> tpo_core::Result<Vec<u32>> {
        let (mut ids, mut rest) = (vec![1], text);
        while let Some(c) = rest.chars().next() {
            let token = self.0.tokens().find(|t| rest.starts_with(&t.token));
            let (id, length) = match token {
                Some(t) => (t.id, t.token.len()),
                None => (100 + c as u32, c.len_utf8()),
            };
            ids.push(id);
            rest = &rest[length..];
        }
        Ok(ids)
    }
}

const ALL: [WorldTask; 4] = [
    WorldTask::Region,
    WorldTask::Temporal,
    WorldTask::Mask,
    WorldTask::Chat,
];

fn rows(tasks: &[WorldTask], rows: u64) -> RowsConfig {
    RowsConfig {
        side: Some(32),
        ..RowsConfig::new(tasks, rows, 5)
    }
}

fn config(sources: Vec<SourceSpec>) -> FeedConfig {
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(sources),
        ..FeedConfig::default()
    };
    config.frames.num_frames = 8;
    config.frames.transform = ImageTransform::vision().with_size([16, 16]);
    config.order.batch_size = 3;
    config.loader.epochs = Some(1);
    config
}

fn open(config: &FeedConfig) -> Result<Feed, DataError> {
    let registry = registry();
    let encoder = LayoutEncoder {
        slots: Arc::new(|_| Ok(3)),
        max_tokens: 4096,
        ..LayoutEncoder::videochat(Arc::new(Chars(registry.clone())), 2)
    };
    let start = Cursor::default();
    Feed::open(config, &registry, encoder, Arc::new(Truths), start)
}

fn all(mut feed: Feed) -> Vec<Collated> {
    let mut batches = Vec::new();
    while let Some(batch) = feed.next_batch().unwrap() {
        batches.push(batch);
    }
    batches
}

#[test]
fn one_clip_carries_turns_of_all_tasks() {
    let mut world = rows(&ALL, 12);
    world.queries_per_clip = 8;
    let batches = all(open(&config(vec![SourceSpec::world(world)])).unwrap());
    assert_eq!(batches.len(), 4);
    let registry = registry();
    let mut several = 0;
    for batch in &batches {
        assert!(batch.skipped.is_empty(), "{:?}", batch.skipped);
        assert_eq!(batch.visuals.len(), batch.samples.len());
        for (_, _, dims) in &batch.visuals {
            assert_eq!(*dims, [8, 3, 16, 16]);
        }
        for (i, sample) in batch.samples.iter().enumerate() {
            let calls: Vec<&str> = sample
                .sample
                .calls
                .iter()
                .map(|c| c.task.as_str())
                .collect();
            for task in ["region", "temporal", "mask"] {
                let tokens = registry.get(task).unwrap();
                let ids = &batch.tokens.ids[i];
                let slots = ids.iter().filter(|id| **id == tokens.placeholder.id);
                let called = calls.iter().filter(|c| **c == task).count();
                assert_eq!(slots.count(), called, "{task}");
                assert!(called > 0, "{task} in {}", sample.sample.id);
                several += usize::from(called > 1);
                // The routing token is learned as often.
                let routed = batch.labels[i]
                    .iter()
                    .filter(|l| **l == i64::from(tokens.routing.id));
                assert_eq!(routed.count(), called);
            }
            // Every call knows the question of its own turn.
            for (call, truth) in sample.sample.calls.iter().zip(&sample.truths) {
                assert_eq!(call.query, truth.query);
            }
            let questions: Vec<_> = sample.sample.calls.iter().map(|c| &c.query).collect();
            assert!(questions.windows(2).all(|w| w[0] != w[1]));
        }
        for task in ["temporal", "mask"] {
            let targets = batch.targets.get::<Truth>(task).unwrap();
            let called = batch.samples.iter().flat_map(|s| &s.sample.calls);
            let called = called.filter(|c| c.task == task).count();
            assert_eq!(targets.map(<[_]>::len), Some(called));
        }
    }
    assert!(several > 0, "some head is called twice in one conversation");
}

/// Packed turns are laid out as rows with one turn each, but for the clip, which comes once.
#[test]
fn packed_turns_are_rows_of_their_own() {
    let mut world = rows(&ALL, 6);
    world.queries_per_clip = 5;
    let source = |packed_turns| SourceSpec {
        packed_turns,
        ..SourceSpec::world(world.clone())
    };
    let whole = all(open(&config(vec![source(false)])).unwrap());
    let packed_turns = all(open(&config(vec![source(true)])).unwrap());
    for (whole, packed_turns) in whole.iter().zip(&packed_turns) {
        assert!(whole.tokens.turns.is_empty() && whole.tokens.packed_turns().is_none());
        let map = packed_turns.tokens.packed_turns().unwrap();
        packed_turns.tokens.check().unwrap();
        for (i, turns) in map.iter().enumerate() {
            let ids = &packed_turns.tokens.ids[i];
            let shared = turns.iter().take_while(|t| **t == 0).count();
            let visual = &packed_turns.tokens.visual[i];
            assert!(visual[..shared].iter().filter(|v| **v).count() == 3);
            assert!(visual[shared..].iter().all(|v| !v));
            assert_eq!(turns.iter().max(), Some(&5));
            // Every turn begins as the first one and ends with the end of text.
            for turn in 1..=5 {
                let at = turns.iter().position(|t| *t == turn).unwrap();
                let end = turns.iter().rposition(|t| *t == turn).unwrap();
                assert_eq!(ids[at..at + 2], [1, 100 + u32::from(b' ')]);
                assert!(turns[at..=end].iter().all(|t| *t == turn));
                assert_eq!(ids[end], 2);
            }
            // What is learned, and what heads are called on, is the same.
            let learned = |b: &Collated| -> Vec<i64> {
                let labels = b.labels[i].iter().copied();
                labels
                    .filter(|l| *l != tpo_core::model::IGNORE_LABEL)
                    .collect()
            };
            assert_eq!(learned(whole), learned(packed_turns));
            assert_eq!(whole.samples[i].truths, packed_turns.samples[i].truths);
            // Later turns of a dialogue have no BOS.
            let real = |b: &Collated| b.tokens.mask[i].iter().filter(|m| **m).count();
            assert_eq!(real(packed_turns), real(whole) + 4);
        }
    }
}

#[test]
fn one_turn_a_row_asks_the_tasks_in_turn() {
    let batches = all(open(&config(vec![SourceSpec::world(rows(&ALL, 8))])).unwrap());
    let mut tasks: Vec<(u64, String)> = batches
        .iter()
        .flat_map(|b| &b.samples)
        .map(|s| {
            assert!(s.truths.len() <= 1);
            let task = s.truths.first().map_or("chat", |t| t.task.as_str());
            (s.line, task.to_string())
        })
        .collect();
    tasks.sort();
    let tasks: Vec<&str> = tasks.iter().map(|(_, t)| t.as_str()).collect();
    let once = ["region", "temporal", "mask", "chat"];
    assert_eq!(tasks, [once, once].concat());
}

#[test]
fn exported_rows_are_the_rows_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = rows(&ALL, 6);
    world.queries_per_clip = 6;
    world.choices = 0.5;
    let made = WorldRows::new(world.clone(), 8, 16).unwrap();
    let path = made.export(dir.path()).unwrap();
    let exported = std::fs::read_to_string(&path).unwrap();
    assert_eq!(exported.lines().count(), 6);
    for (i, line) in exported.lines().enumerate() {
        let exported: serde_json::Value = serde_json::from_str(line).unwrap();
        let (row, _) = made.row(i as u64, &MediaLimits::default()).unwrap();
        assert!(row.id.is_some());
        assert_eq!(row.id.as_deref(), exported["id"].as_str());
    }
    let of = |source: SourceSpec| all(open(&config(vec![source])).unwrap());
    let memory = of(SourceSpec::world(world));
    let files = of(SourceSpec::file(path));
    assert_eq!(memory.len(), files.len());
    for (a, b) in memory.iter().zip(&files) {
        assert_eq!((&a.tokens, &a.labels), (&b.tokens, &b.labels));
        assert!(a.visuals == b.visuals, "the pictures differ");
        for (a, b) in a.samples.iter().zip(&b.samples) {
            assert_eq!(a.truths, b.truths);
            assert_eq!((a.line, a.sample.size), (b.line, b.sample.size));
            assert_eq!(a.sample.duration, b.sample.duration);
            assert_eq!(a.sample.timestamps, b.sample.timestamps);
            let clip = |s: &tpo_data::feed::SampleFacts| -> TensorData {
                let clip = s.clip.as_ref().unwrap();
                clip.frames.frames(24).unwrap().into_data()
            };
            clip(a).assert_approx_eq::<f32>(&clip(b), Tolerance::absolute(0.0));
        }
    }
}

#[test]
fn masks_are_those_of_the_sampled_frames() {
    let world = rows(&[WorldTask::Mask], 3);
    let made = WorldRows::new(world.clone(), 8, 16).unwrap();
    let batches = all(open(&config(vec![SourceSpec::world(world)])).unwrap());
    for sample in batches.iter().flat_map(|b| &b.samples) {
        let (row, video) = made.row(sample.line - 1, &MediaLimits::default()).unwrap();
        let Target::Track(track) = &row.annotations[0].target else {
            panic!("{row:?}");
        };
        let TruthTarget::Track(kept) = &sample.truths[0].target else {
            panic!("{:?}", sample.truths);
        };
        assert_eq!((track.len(), kept.len()), (16, 8));
        let clip = sample.clip.as_ref().unwrap();
        assert_eq!(clip.frames.len(), 8);
        for frame in kept {
            assert_eq!(frame.time, clip.indices[frame.sampled] as f64 / 2.0);
        }
        assert!(matches!(kept[0].place, TruthPlace::Mask(_)) && kept[0].sampled == 0);
        // The clip can be looked at again, at any size.
        let again = clip.frames.frames(32).unwrap().into_data();
        let first = tpo_data::VideoReader::read_frames(&video, &[clip.indices[0]]).unwrap();
        let value = f32::from(first[0].rgb()[0]) / 255.0;
        let found = again.iter::<f32>().next().unwrap();
        assert!((value - found).abs() < 1e-6);
    }
}

#[test]
fn answers_in_words_have_no_tokens() {
    let mut world = rows(&ALL, 4);
    world.queries_per_clip = 4;
    let mut source = SourceSpec::world(world);
    let heads = config(vec![source.clone()]);
    source.textual = true;
    let words = config(vec![source]);
    let a = open(&heads).unwrap().plan().fingerprint();
    assert_ne!(a, open(&words).unwrap().plan().fingerprint());
    let registry = registry();
    for batch in all(open(&words).unwrap()) {
        assert!(batch.skipped.is_empty(), "{:?}", batch.skipped);
        assert_eq!(batch.targets.names().count(), 0);
        for ids in &batch.tokens.ids {
            assert!(registry.tokens().all(|t| !ids.contains(&t.id)));
            let text: String = ids.iter().filter_map(|i| char::from_u32(i - 100)).collect();
            assert!(text.contains("seconds") && text.contains("[0."), "{text}");
        }
        assert!(batch.samples.iter().all(|s| s.sample.calls.is_empty()));
    }
}

#[test]
fn files_and_worlds_mix_and_resume() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.jsonl");
    let text: String = (0..5)
        .map(|i| {
            format!(
                "{}\n",
                json!({"turns": [{"question": format!("{i}?"), "answer": "a"}]})
            )
        })
        .collect();
    std::fs::write(&path, text).unwrap();
    let mut file = SourceSpec::file(path);
    file.limit = Some(4);
    file.repeat = 2;
    let mut world = SourceSpec::world(rows(&[WorldTask::Region], 9));
    world.limit = Some(7);
    world.name = "shapes".into();
    let mut config = config(vec![file, world]);
    config.loader.epochs = Some(2);
    let names = |mut feed: Feed| {
        let mut names = Vec::new();
        while let Some(batch) = feed.next_batch().unwrap() {
            let of = batch
                .samples
                .iter()
                .map(|s| (s.sample.id.clone(), s.truths.clone()));
            names.push((feed.cursor(), of.collect::<Vec<_>>()));
        }
        names
    };
    let whole = names(open(&config).unwrap());
    let in_epoch: Vec<_> = whole
        .iter()
        .take(whole.len() / 2)
        .flat_map(|(_, s)| s.iter().map(|(n, _)| n.as_str()))
        .collect();
    let count = |name: &str| in_epoch.iter().filter(|n| **n == name).count();
    assert_eq!(in_epoch.len(), 4 * 2 + 7);
    assert_eq!((count("text.jsonl:4"), count("text.jsonl:5")), (2, 0));
    assert_eq!((count("shapes:7"), count("shapes:8")), (1, 0));
    for at in 0..whole.len() - 1 {
        let mut feed = open(&config).unwrap();
        feed.seek(whole[at].0).unwrap();
        assert_eq!(names(feed), whole[at + 1..], "from {at}");
    }
    // Another world is another plan.
    let mut other = config.clone();
    if let Some(world) = &mut other.mixture.sources[1].synthetic {
        world.seed += 1;
    }
    assert!(open(&other).unwrap().seek(whole[0].0).is_err());
    // Two processes share an epoch.
    let mut seen: Vec<String> = Vec::new();
    for shard in 0..2 {
        let mut part = config.clone();
        part.loader.epochs = Some(1);
        (part.order.shards, part.order.shard) = (2, shard);
        let found = names(open(&part).unwrap());
        seen.extend(found.into_iter().flat_map(|(_, s)| s).map(|(n, _)| n));
    }
    seen.sort();
    let mut expected: Vec<String> = in_epoch.iter().map(|n| n.to_string()).collect();
    expected.sort();
    assert_eq!(seen, expected);
}

#[test]
fn splits_and_sources() {
    let mut held = rows(&ALL, 4);
    held.split = Split::HeldOut;
    let made = WorldRows::new(held.clone(), 8, 16).unwrap();
    let (row, _) = made.row(2, &MediaLimits::default()).unwrap();
    assert_eq!(row.id.as_deref(), Some("held_out-000002"));
    let chat = SourceSpec {
        name: "chat".into(),
        ..SourceSpec::world(rows(&[WorldTask::Chat], 3))
    };
    let feed = open(&config(vec![SourceSpec::world(held), chat])).unwrap();
    // All rows are about videos: 7 in batches of three.
    assert_eq!(feed.plan().batches(), 3);
    let tasks: Vec<_> = feed.sources().iter().map(|s| s.tasks()).collect();
    assert_eq!(tasks, [vec!["region", "temporal", "mask"], vec![]]);
}

#[test]
fn what_cannot_be_is_told_at_once() {
    let bad = RowsConfig {
        queries_per_clip: 0,
        choices: 2.0,
        frames: Some(3),
        side: Some(5),
        max_objects: Some(0),
        ..RowsConfig::new([WorldTask::Chat, WorldTask::Chat], 0, 0)
    };
    let problems = bad.problems(8, 16);
    let text = problems.join("\n");
    for part in [
        "`chat` twice",
        "rows is 0",
        "queries_per_clip is 0",
        "choices is 2",
        "frames is 3",
        "side is 5",
        "max_objects",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let error = WorldRows::new(bad, 8, 16).unwrap_err();
    assert!(matches!(error, DataError::InvalidSynthetic { .. }));
    assert!(RowsConfig::new([], 1, 0).problems(8, 16)[0].contains("region"));
    let both = SourceSpec {
        annotations: Some("x.jsonl".into()),
        ..SourceSpec::world(rows(&ALL, 1))
    };
    let neither = SourceSpec {
        synthetic: None,
        ..SourceSpec::world(rows(&ALL, 1))
    };
    for source in [both, neither] {
        assert!(open(&config(vec![source])).is_err());
    }
    // Frames follow the model: a multiple of what it reads, at least 12.
    let frames = |read| rows(&ALL, 1).world(read, 16).frames;
    assert_eq!([2, 5, 8, 12, 16, 20].map(frames), [12, 15, 16, 12, 16, 20]);
}
