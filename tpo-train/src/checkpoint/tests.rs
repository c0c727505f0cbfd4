use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, TensorData};
use serde::{Deserialize, Serialize};
use tpo_core::weights::TensorSource;

use super::disk::{Disk, FileSystem, Sink};
use super::*;
use crate::error::TrainError;
use crate::recipe::{Goal, Recipe};

const RECIPE: &str = r#"
name = "small"
model = { preset = "mini" }
[[stages]]
name = "all"
length = { steps = 10 }
batch_size = 2
groups = [{ name = "all", patterns = ["**"], learning_rate = 1e-4 }]
"#;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct State {
    cursor: u64,
}

fn linear() -> Linear {
    LinearConfig::new(3, 2).init(&Device::flex())
}

fn values(linear: &Linear) -> Vec<f32> {
    let weight = linear.weight.val().into_data().try_to_vec::<f32>().unwrap();
    let bias = linear.bias.as_ref().unwrap().val().into_data();
    [weight, bias.try_to_vec::<f32>().unwrap()].concat()
}

fn moments() -> Vec<(String, TensorData)> {
    vec![("weight.m".into(), TensorData::from([[1.5_f32, -2.0]]))]
}

fn write(store: &CheckpointStore, step: u64, linear: &Linear) -> crate::Result<SavedCheckpoint> {
    write_scored(store, step, linear, None, false)
}

fn write_scored(
    store: &CheckpointStore,
    step: u64,
    linear: &Linear,
    score: Option<f64>,
    end: bool,
) -> crate::Result<SavedCheckpoint> {
    let mut draft = store.begin(step, "all")?.score(score).stage_end(end);
    draft.module(files::WEIGHTS, linear, &|_| true)?;
    let moments = moments();
    let sources = moments
        .iter()
        .map(|(key, data)| TensorSource::from_data(key, data));
    draft.tensors(files::OPTIMIZER, sources.collect::<Result<_, _>>()?)?;
    draft.json(files::STATE, &State { cursor: step })?;
    draft.bytes(files::RECIPE, RECIPE.as_bytes())?;
    draft.commit()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|n| n != ".lock")
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), Retention::ALL);
    assert!(store.newest().unwrap().0.is_none());
    let saved = linear();
    write(&store, 3, &saved).unwrap();

    let (found, skipped) = store.newest().unwrap();
    let found = found.unwrap();
    assert!(skipped.is_empty());
    assert_eq!(
        (found.manifest().step, found.manifest().stage.as_str()),
        (3, "all")
    );
    let other = linear();
    assert_ne!(values(&other), values(&saved));
    let loaded = found.load_module(files::WEIGHTS, other, &|_| true).unwrap();
    assert_eq!(values(&loaded), values(&saved));
    assert_eq!(found.tensors(files::OPTIMIZER).unwrap(), moments());
    assert_eq!(
        found.json::<State>(files::STATE).unwrap(),
        State { cursor: 3 }
    );
    assert_eq!(found.recipe().unwrap().name, "small");
    let absent = found.text("other.txt").unwrap_err().to_string();
    assert!(absent.contains("state.json"), "{absent}");
}

#[test]
fn the_trained_part_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), Retention::ALL);
    let saved = linear();
    let mut draft = store.begin(1, "all").unwrap();
    draft
        .module(files::WEIGHTS, &saved, &|p| p == "bias")
        .unwrap();
    let checkpoint = draft.commit().unwrap();
    let other = linear();
    let weight = other.weight.val().into_data();
    let loaded = checkpoint
        .load_module(files::WEIGHTS, other.clone(), &|p| p == "bias")
        .unwrap();
    assert_eq!(loaded.weight.val().into_data(), weight);
    assert_eq!(
        loaded.bias.unwrap().val().into_data(),
        saved.bias.as_ref().unwrap().val().into_data()
    );
    // A stage that trains the weight too cannot start from it.
    let error = checkpoint
        .load_module(files::WEIGHTS, other, &|_| true)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("lacks 1 parameters that are trained, weight"),
        "{error}"
    );
    let wide = LinearConfig::new(3, 4).init(&Device::flex());
    let error = checkpoint
        .load_module(files::WEIGHTS, wide, &|_| false)
        .unwrap_err();
    assert!(matches!(error, TrainError::Weights(_)), "{error}");
}

#[test]
fn incomplete_and_damaged_ones_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), Retention::ALL);
    for step in 1..=6 {
        write(&store, step, &linear()).unwrap();
    }
    let of = |step| dir.path().join(CheckpointStore::name(step));
    // Cut off.
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(of(6).join(files::WEIGHTS))
        .unwrap();
    file.set_len(20).unwrap();
    // One bit.
    let path = of(5).join(files::OPTIMIZER);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::remove_file(of(4).join(MANIFEST_FILE)).unwrap();
    std::fs::write(of(3).join(MANIFEST_FILE), "{\"format\": 1").unwrap();
    std::fs::remove_file(of(2).join(files::STATE)).unwrap();

    let (found, skipped) = store.newest().unwrap();
    assert_eq!(found.unwrap().manifest().step, 1);
    let why: Vec<String> = skipped.iter().map(|s| s.error.to_string()).collect();
    assert_eq!(why.len(), 5, "{why:#?}");
    for want in [
        "has 20 bytes where the manifest says",
        "its BLAKE3 sum is",
        "has no manifest.json",
        "is damaged or of another version",
        "state.json",
    ] {
        assert!(why.iter().any(|w| w.contains(want)), "{want}: {why:#?}");
    }
    let error = SavedCheckpoint::open(of(5)).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint { .. }));

    // Another version, and a manifest that points elsewhere.
    let path = of(1).join(MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
    let error = SavedCheckpoint::open(of(1)).unwrap_err().to_string();
    assert!(error.contains("format 9"), "{error}");
    std::fs::write(&path, text.replace("state.json", "../state.json")).unwrap();
    let error = SavedCheckpoint::open(of(1)).unwrap_err().to_string();
    assert!(error.contains("leaves the directory"), "{error}");
}

#[test]
fn keeps_the_last_the_best_and_the_ends() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention {
        last: 2,
        best: Some(Goal::Max),
    };
    let store = CheckpointStore::new(dir.path(), retention);
    for (step, score, end) in [
        (1, Some(0.2), false),
        (2, Some(0.9), false),
        (3, None, true),
        (4, Some(f64::NAN), false),
        (5, Some(0.5), false),
        (6, Some(0.1), false),
    ] {
        write_scored(&store, step, &linear(), score, end).unwrap();
    }
    let kept: Vec<u64> = store
        .list()
        .unwrap()
        .0
        .iter()
        .map(|c| c.manifest().step)
        .collect();
    assert_eq!(kept, [2, 3, 5, 6]);
    assert_eq!(store.best(Goal::Max).unwrap().unwrap().manifest().step, 2);
    assert_eq!(store.best(Goal::Min).unwrap().unwrap().manifest().step, 6);
    assert_eq!(names(dir.path()).len(), 4);
}

/// A damaged checkpoint ahead of the run does not push out those that the run writes.
#[test]
fn a_damaged_one_ahead_is_not_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Retention {
        last: 1,
        best: None,
    };
    let store = CheckpointStore::new(dir.path(), keep);
    let ahead = write(&store, 500, &linear()).unwrap();
    let weights = ahead.dir().join(files::WEIGHTS);
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    for step in [400, 450] {
        write(&store, step, &linear()).unwrap();
        assert_eq!(store.newest().unwrap().0.unwrap().manifest().step, step);
    }
    assert_eq!(names(dir.path()), ["step-00000450", "step-00000500"]);
}

#[test]
fn the_same_step_again_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), Retention::ALL);
    write(&store, 1, &linear()).unwrap();
    let second = linear();
    let saved = write(&store, 1, &second).unwrap();
    assert_eq!(names(dir.path()), ["step-00000001"]);
    let loaded = saved
        .load_module(files::WEIGHTS, linear(), &|_| true)
        .unwrap();
    assert_eq!(values(&loaded), values(&second));

    // Killed between moving the old one aside and the new one arriving: the old one comes back.
    std::fs::rename(saved.dir(), dir.path().join(".step-00000001.old")).unwrap();
    std::fs::create_dir(dir.path().join(".step-00000009.tmp")).unwrap();
    assert_eq!(store.newest().unwrap().0.unwrap().manifest().step, 1);
    store.begin(2, "all").unwrap();
    assert_eq!(names(dir.path()), ["step-00000001"]);
}

#[test]
fn one_process_writes() {
    let dir = tempfile::tempdir().unwrap();
    let first = CheckpointStore::new(dir.path(), Retention::ALL);
    write(&first, 1, &linear()).unwrap();
    let second = CheckpointStore::new(dir.path(), Retention::ALL);
    for error in [second.claim(), second.begin(2, "all").map(drop)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("another process writes"), "{error}");
    }
    assert!(second.newest().unwrap().0.is_some());
    drop(first);
    write(&second, 2, &linear()).unwrap();
}

/// A disk on which so many bytes fit and so many renames work.
#[derive(Debug, Clone)]
struct Full {
    bytes: Arc<AtomicU64>,
    renames: bool,
}

struct FullFile {
    inner: Box<dyn Sink>,
    left: Arc<AtomicU64>,
}

impl Write for FullFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::SeqCst) as usize;
        if left == 0 && !bytes.is_empty() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        // As a real one: what still fits is written.
        let n = self.inner.write(&bytes[..bytes.len().min(left)])?;
        self.left.fetch_sub(n as u64, Ordering::SeqCst);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Sink for FullFile {
    fn sync(&mut self) -> io::Result<()> {
        self.inner.sync()
    }
}

impl Disk for Full {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(FullFile {
            inner: FileSystem.create(path)?,
            left: self.bytes.clone(),
        }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.renames {
            FileSystem.rename(from, to)
        } else {
            Err(io::Error::from(io::ErrorKind::PermissionDenied))
        }
    }
}

#[test]
fn a_full_disk_leaves_the_last_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let keep_one = Retention {
        last: 1,
        best: None,
    };
    let store = CheckpointStore::new(dir.path(), keep_one);
    let good = linear();
    let whole = write(&store, 1, &good).unwrap();
    let size: u64 = names(whole.dir())
        .iter()
        .map(|n| std::fs::metadata(whole.dir().join(n)).unwrap().len())
        .sum();
    drop(store);

    // Full after any number of bytes, the manifest's last included.
    for bytes in (0..size).step_by(23).chain(size - 3..size) {
        let disk = Full {
            bytes: Arc::new(AtomicU64::new(bytes)),
            renames: true,
        };
        for step in [1, 2] {
            let store = CheckpointStore::on(disk.clone(), dir.path(), keep_one);
            match write(&store, step, &linear()) {
                Err(TrainError::Io { source, .. }) => {
                    assert_eq!(source.kind(), io::ErrorKind::StorageFull)
                }
                other => panic!("{bytes} bytes: {other:?}"),
            }
            assert_eq!(names(dir.path()), ["step-00000001"], "{bytes} bytes");
        }
    }
    let disk = Full {
        bytes: Arc::new(AtomicU64::new(u64::MAX)),
        renames: false,
    };
    for step in [1, 2] {
        let store = CheckpointStore::on(disk.clone(), dir.path(), keep_one);
        let error = write(&store, step, &linear()).unwrap_err();
        assert!(matches!(error, TrainError::Io { .. }), "{error}");
    }
    let store = CheckpointStore::new(dir.path(), keep_one);
    let (found, skipped) = store.newest().unwrap();
    assert!(skipped.is_empty());
    let found = found.unwrap();
    assert_eq!(found.manifest().step, 1);
    let loaded = found
        .load_module(files::WEIGHTS, linear(), &|_| true)
        .unwrap();
    assert_eq!(values(&loaded), values(&good));
}

#[test]
fn another_recipe_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::new(dir.path(), Retention::ALL);
    let saved = write(&store, 1, &linear()).unwrap();
    let now = |overrides: &[&str]| Recipe::read(RECIPE, "r", overrides).unwrap();
    assert!(saved.check_recipe(&now(&[]), 0).unwrap().is_empty());
    let harmless = saved
        .check_recipe(&now(&["checkpoints.keep_last=9"]), 0)
        .unwrap();
    assert_eq!(harmless[0].key, "checkpoints.keep_last");
    let all = now(&["checkpoints.weights=all"]);
    let error = saved.check_recipe(&all, 0).unwrap_err().to_string();
    assert!(error.contains("checkpoints.weights"), "{error}");
    let other = now(&["stages.all.batch_size=4", "seed=1", "name=x"]);
    let error = saved.check_recipe(&other, 0).unwrap_err().to_string();
    assert!(error.contains("stages[0].batch_size: 2 → 4"), "{error}");
    assert!(
        error.contains("seed: 42 → 1") && !error.contains("name:"),
        "{error}"
    );
}
