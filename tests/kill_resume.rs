//! A run that is killed ten times ends with the same bytes as one that is not.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tpo::train::checkpoint::{CheckpointStore, Retention, files};
use tpo::train::observe::read_metrics;
use tpo::train::recipe::Goal;

const KILLS: usize = 10;
const STEPS: u64 = 20;

/// Two stages, accumulation, epochs that end in the middle of a step, dropout in the adapters, a
/// checkpoint at every other step, evaluations between them, and other adapters in the second
/// stage.
const RECIPE: &str = r#"
name = "killed"
model = { preset = "nano", lora = { rank = 4, alpha = 8.0, dropout = 0.1 } }
checkpoints = { keep_last = 2, keep_best = { metric = "eval/region/mean_iou" } }

[[stages]]
name = "first"
length = { steps = 11 }
batch_size = 1
accumulation = 2
weight_decay = 0.02
clip_norm = 1.0
checkpoint_every = { steps = 2 }
evaluate_every = { steps = 3 }
evaluation = { batches = 2, batch_size = 2, data = { sources = [
    { name = "held-out", synthetic = { tasks = ["region"], rows = 5, seed = 9 } },
] } }
data = { sources = [
    { name = "boxes", synthetic = { tasks = ["region"], rows = 7 } },
    { name = "chat", synthetic = { tasks = ["chat"], rows = 4 }, weight = 0.5 },
] }
groups = [
    { name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-3 },
    { name = "region", patterns = ["heads.region.**", "task_tokens.region"], learning_rate = 1e-3 },
]

[[stages]]
name = "second"
length = { steps = 9 }
batch_size = 1
accumulation = 2
clip_norm = 1.0
schedule = { warmup_ratio = 0.5, floor = 0.05 }
checkpoint_every = { steps = 2 }
evaluate_every = { steps = 2 }
evaluation = { batches = 1, data = { sources = [
    { name = "held-out", synthetic = { tasks = ["region"], rows = 5, seed = 9 } },
] } }
lora = { rank = 3, alpha = 3.0, dropout = 0.2, targets = ["q_proj", "v_proj"] }
data = { sources = [{ name = "boxes", synthetic = { tasks = ["region"], rows = 7 } }] }
groups = [
    { name = "connector", patterns = ["connector.**"], learning_rate = 1e-4 },
    { name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-4 },
]
"#;

fn train(recipe: &Path, out: &Path, resume: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
    command.arg("train").arg(recipe).arg("--out").arg(out);
    command.args(["--device", "cpu", "--quiet"]);
    if resume {
        // Nothing depends on the number of threads, and one does not wait for itself.
        command.args(["--resume", "--threads", "1"]);
    }
    command
}

fn logged(out: &Path) -> u64 {
    let records = read_metrics(out.join("metrics.jsonl")).unwrap_or_default();
    records.last().map_or(0, |r| r.step)
}

/// Kills the child when `step` is logged and `more` has passed. `false` when it ended before.
fn kill_at(mut child: Child, out: &Path, step: u64, more: Duration) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while logged(out) < step {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the run failed");
            return false;
        }
        assert!(Instant::now() < deadline, "step {step} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(more);
    // SIGKILL on Unix.
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// The files that a run is judged by: those of its last checkpoint.
fn last_files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let store = CheckpointStore::new(out.join("checkpoints"), Retention::ALL);
    let (found, skipped) = store.newest().unwrap();
    assert!(skipped.is_empty(), "{skipped:?}");
    let found = found.expect("a checkpoint");
    assert_eq!(found.manifest().step, STEPS);
    [files::WEIGHTS, files::OPTIMIZER, files::STATE]
        .into_iter()
        .map(|name| {
            (
                name.to_string(),
                std::fs::read(found.dir().join(name)).unwrap(),
            )
        })
        .collect()
}

/// Steps whose checkpoints are not whole yet: hidden folders.
fn drafts(out: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(out.join("checkpoints"))
        .into_iter()
        .flatten();
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let step = |name: String| {
        name.strip_prefix(".step-")?
            .strip_suffix(".tmp")?
            .parse()
            .ok()
    };
    names.filter_map(step).collect()
}

/// Kills the child while it writes the checkpoint of `step` or of a later one. `false` when that was
/// whole before the child was dead.
fn kill_in_a_write(mut child: Child, out: &Path, step: u64) -> bool {
    let writes = || drafts(out).iter().any(|draft| *draft >= step);
    let deadline = Instant::now() + Duration::from_secs(120);
    while !writes() {
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        assert!(Instant::now() < deadline, "step {step} is not written");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    writes()
}

/// Checkpoints of all weights, after every step: one is being written most of the time.
#[test]
fn kills_in_the_middle_of_a_write_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    let text = RECIPE
        .replace(
            "checkpoint_every = { steps = 2 }",
            "checkpoint_every = { steps = 1 }",
        )
        .replace("keep_last = 2,", "keep_last = 2, weights = \"all\",");
    std::fs::write(&recipe, text).unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    assert!(
        train(&recipe, &whole, false)
            .output()
            .unwrap()
            .status
            .success()
    );

    let mut tries = 0;
    for step in [3, 9, 14] {
        loop {
            let child = train(&recipe, &killed, tries > 0)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            tries += 1;
            if kill_in_a_write(child, &killed, step) {
                break;
            }
            assert!(
                tries < 12,
                "step {step}: no kill comes before the end of a write"
            );
        }
    }
    let done = train(&recipe, &killed, true).output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(drafts(&killed), Vec::<u64>::new());
    let (expected, found) = (last_files(&whole), last_files(&killed));
    for (name, bytes) in &expected {
        assert!(bytes == &found[name], "{name} differs");
    }
}

#[test]
fn what_cannot_be_exported_is_not_trained() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, out) = (dir.path().join("recipe.toml"), dir.path().join("run"));
    std::fs::write(&recipe, RECIPE).unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("tpo.json"), "{}").unwrap();
    // A model that is there, and no directory.
    for (target, says) in [(&model, "--overwrite"), (&recipe, "another directory")] {
        let mut command = train(&recipe, &out, false);
        let done = command.arg("--export").arg(target).output().unwrap();
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && text.contains(says), "{text}");
        assert!(!out.exists());
    }
    assert_eq!(std::fs::read(model.join("tpo.json")).unwrap(), b"{}");
}

#[test]
fn ten_kills_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));

    let done = train(&recipe, &whole, false).output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );

    // Delays that differ from test run to test run; the seed is printed for the one that fails.
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    println!("seed {seed}");
    let mut kills = 0;
    let mut stages = Vec::new();
    for k in 0..KILLS {
        let noise = tpo::core::seed::mix(seed, k as u64);
        // Spread over the run; the delay reaches into the next step and its checkpoint.
        let step = (1 + k as u64 * (STEPS - 1) / KILLS as u64).max(1);
        let child = train(&recipe, &killed, k > 0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        if !kill_at(child, &killed, step, Duration::from_millis(noise % 120)) {
            break;
        }
        kills += 1;
        // None where the log has been cut back to the last checkpoint and no step has followed.
        let records = read_metrics(killed.join("metrics.jsonl")).unwrap();
        stages.extend(records.last().map(|record| record.stage.clone()));
    }
    println!("{kills} kills, in {stages:?}");
    assert_eq!(kills, KILLS);
    assert!(stages.contains(&"first".into()) && stages.contains(&"second".into()));

    let done = train(&recipe, &killed, true).output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let (expected, found) = (last_files(&whole), last_files(&killed));
    for (name, bytes) in &expected {
        assert!(bytes == &found[name], "{name} differs");
    }
    // Every step is logged once, with the same numbers.
    let numbers = |out: &Path| -> Vec<(u64, Vec<(String, f64)>)> {
        let records = read_metrics(out.join("metrics.jsonl")).unwrap();
        let exact = |name: &str| {
            ["loss", "lr", "grad_norm", "eval"]
                .iter()
                .any(|n| name.starts_with(n))
        };
        records
            .into_iter()
            .map(|r| {
                (
                    r.step,
                    r.values.into_iter().filter(|(n, _)| exact(n)).collect(),
                )
            })
            .collect()
    };
    assert_eq!(numbers(&whole), numbers(&killed));
    let all = numbers(&whole);
    let evaluations = all.iter().filter(|(_, v)| v[0].0.starts_with("eval"));
    let evaluations: Vec<u64> = evaluations.map(|(step, _)| *step).collect();
    assert_eq!(evaluations, [3, 6, 9, 11, 13, 15, 17, 19, 20]);
    assert_eq!((all.len() - evaluations.len()) as u64, STEPS);
    let best = |out: &Path| {
        let store = CheckpointStore::new(out.join("checkpoints"), Retention::ALL);
        let best = store.best(Goal::Max).unwrap().expect("a score");
        (best.manifest().step, best.manifest().score)
    };
    assert_eq!(best(&whole), best(&killed));

    // Another recipe does not continue this run, and says why; a new one does not write over it.
    std::fs::write(
        &recipe,
        RECIPE.replace("accumulation = 2", "accumulation = 4"),
    )
    .unwrap();
    let refused = train(&recipe, &killed, true).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("accumulation: 2 → 4"),
        "{text}"
    );
    std::fs::write(&recipe, RECIPE).unwrap();
    let refused = train(&recipe, &killed, false).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("there is a run here already"),
        "{text}"
    );
    // At the end there is nothing left to do.
    let done = train(&recipe, &killed, true).output().unwrap();
    assert!(done.status.success());
    assert_eq!(last_files(&whole), last_files(&killed));
}

/// What `--explain` says of the stages of the nano recipe is what they take, computed again or not.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_what_was_said() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/nano/stages.toml");
    let measure = |stage: &str, more: &[&str]| -> [f64; 2] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command.args(["train", "--device", "cpu", "--measure", stage]);
        // Every thread has memory of its own.
        command.args(["--threads", "2"]);
        let output = command.args(more).arg(&recipe).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
        match numbers.collect::<Vec<f64>>()[..] {
            [peak, _, estimate] => [peak, estimate],
            _ => panic!("{text}{}", String::from_utf8_lossy(&output.stderr)),
        }
    };
    for stage in ["task-assignment", "co-training"] {
        let [kept, estimate] = measure(stage, &[]);
        let [again, estimate_again] = measure(stage, &["--gradient-checkpointing"]);
        for (peak, estimate) in [(kept, estimate), (again, estimate_again)] {
            assert!(
                (0.6..1.5).contains(&(estimate / peak)),
                "{stage}: {estimate} for {peak}"
            );
        }
        assert!(again < 0.95 * kept, "{stage}: {again} for {kept}");
    }
}
