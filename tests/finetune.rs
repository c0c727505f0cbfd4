//! The recipes of `recipes/finetune` in small: what has a rate moves, the rest does not, losses fall, and
//! what is exported opens and answers.

#[path = "common/alone.rs"]
mod alone;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use alone::alone;
use burn::module::{ModuleVisitor, Param};
use serde_json::Value;
use tpo::core::ops::QuantFormat;
use tpo::data::synthetic::{RowsConfig, Split, WorldRows, WorldTask};
use tpo::export::{ExportOptions, export_model};
use tpo::prelude::*;
use tpo::train::Recipe;
use tpo::train::observe::read_metrics;
use tpo::training::{RecipeModel, RunOptions, recipe_model, run_recipe};
use tpo::weights::PathStack;

/// Parameters by path.
fn values<M: Module>(model: &M) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Read(PathStack, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            // Frozen ones are held in 16 bits, too.
            let value = param.val().cast(FloatDType::BF16);
            let data = value.into_data().convert::<f32>();
            self.1.insert(self.0.path(), data.try_to_vec().unwrap());
        }
    }
    let mut read = Read::default();
    model.visit(&mut read);
    read.1
}

/// Clips of the synthetic world in files.
fn world(dir: &Path, tasks: &[WorldTask]) -> PathBuf {
    let config = RowsConfig {
        split: Split::Train,
        queries_per_clip: tasks.len(),
        ..RowsConfig::new(tasks.to_vec(), 8, 3)
    };
    WorldRows::new(config, 16, 64).unwrap().export(dir).unwrap()
}

/// A table of boxes of things that the mini model has no word for, as docs/FINETUNING.md has one, and the
/// rows that `data convert` makes of it.
fn table(dir: &Path) -> PathBuf {
    let rows = std::fs::read_to_string(world(dir, &[WorldTask::Region])).unwrap();
    let mut csv = String::from("frames,query,left,top,right,bottom\n");
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let folder = row["media"]["frames"].as_str().unwrap();
        let folder = folder.strip_prefix("clips/").unwrap();
        let sides = row["annotations"][0]["box"].as_array().unwrap().iter();
        let sides: Vec<String> = sides
            .map(|side| (64.0 * side.as_f64().unwrap()).to_string())
            .collect();
        csv += &format!("{folder},the parcel,{}\n", sides.join(","));
    }
    let (table, out) = (dir.join("mine.csv"), dir.join("mine.jsonl"));
    std::fs::write(&table, csv).unwrap();
    let mut convert = Command::new(env!("CARGO_BIN_EXE_tpo"));
    convert
        .args(["data", "convert", "--from", "csv"])
        .arg(&table);
    convert.args(["--media-prefix", "clips/", "--frame-rate", "2", "--out"]);
    let done = convert.arg(&out).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    out
}

/// A recipe of the folder with the mini model and these rows in place of what it names.
fn recipe(name: &str, stage: &str, rows: &Path, more: &[&str]) -> Recipe {
    let file = Path::new("recipes/finetune").join(name);
    let at = format!("stages.{stage}.");
    let mut changes = vec![
        "model.directory=assets/mini".to_string(),
        "model.lora={ rank = 4, alpha = 8.0, dropout = 0.1 }".into(),
        "logging.tensorboard=false".into(),
        "logging.curves=false".into(),
        format!("{at}length={{ steps = 10 }}"),
        format!("{at}batch_size=4"),
        format!("{at}accumulation=1"),
        format!("{at}evaluation.batches=1"),
    ];
    for (place, source) in [("data", "train"), ("evaluation.data", "held-out")] {
        let rows = rows.display();
        changes.push(format!("{at}{place}.sources.{source}.annotations={rows}"));
    }
    changes.extend(more.iter().map(|change| format!("{at}{change}")));
    Recipe::open(file, &changes).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs it and checks what moved, that the loss fell, and that the export answers.
fn fine_tune(recipe: &Recipe) -> TpoConfig {
    let _alone = alone();
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let before: RecipeModel = recipe_model(recipe, &device).unwrap();
    let groups = recipe.stages[0].resolve(&before.model).unwrap();
    let before = values(&before.model);
    let run = dir.path().join("run");
    let built = run_recipe::<BuiltInHeads>(recipe, &RunOptions::new(&run, &device))
        .unwrap()
        .model;
    let after = values(&built.model);
    assert_eq!(before.len(), after.len());
    let moved = |path: &str| before[path] != after[path];
    for group in &groups.groups {
        // Rows without boxes in the question do not reach the region head's encoder; of the temporal head's
        // biases some have no effect, and some move by less than 16 bits tell.
        let params = group.params.iter().map(|p| p.path.as_str());
        let reached: Vec<&str> = params.filter(|p| !p.contains(".region.encoder.")).collect();
        let unmoved: Vec<&&str> = reached.iter().filter(|p| !moved(p)).collect();
        assert!(
            unmoved.len() * 8 < reached.len() || unmoved.is_empty(),
            "{}: {unmoved:?} of {}",
            group.name,
            reached.len()
        );
        let all = ["task_tokens.", "heads.region.", ".lora.b", "heads.mask."];
        assert!(
            !unmoved.iter().any(|p| all.iter().any(|a| p.contains(a))),
            "{unmoved:?}"
        );
    }
    for param in &groups.frozen {
        assert!(!moved(&param.path), "{}", param.path);
    }
    let records = read_metrics(run.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = records
        .iter()
        .filter_map(|r| r.values.get("loss").copied())
        .collect();
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    println!("{}: {losses:?}", recipe.name);
    assert!(mean(&losses[7..]) < 0.9 * mean(&losses[..3]), "{losses:?}");
    assert!(records.iter().any(|r| r.values.contains_key("eval/loss")));

    let (model, out) = (built.model, dir.path().join("model"));
    let options = ExportOptions::default();
    export_model(model, &built.config, &built.tokenizer_files, &out, &options).unwrap();
    let (mut session, _) = Session::open(&out, &device, SessionOptions::default(), None).unwrap();
    session
        .load_video("assets/bouncing_shapes.mp4", None)
        .unwrap();
    let question = Question::new("Where is the red circle at the start?");
    let reply = session.ask(question).unwrap().collect_reply().unwrap();
    assert_eq!(reply.tasks[0].task, "region", "{}", reply.text);
    built.config
}

const FAST: [&str; 2] = [
    "groups.head.learning_rate=3e-3",
    "groups.lora.learning_rate=3e-3",
];

#[test]
fn one_head_on_floats_and_on_a_quantised_base() {
    let dir = tempfile::tempdir().unwrap();
    let rows = table(dir.path());
    let config = fine_tune(&recipe("one-head.toml", "region", &rows, &FAST));
    assert_eq!(config.llm.quantization, None);
    let config = fine_tune(&recipe("qlora.toml", "region", &rows, &FAST));
    assert_eq!(config.llm.quantization, Some(QuantFormat::Q8_0));
}

#[test]
fn the_heads_alone() {
    let dir = tempfile::tempdir().unwrap();
    let rows = table(dir.path());
    fine_tune(&recipe("heads-only.toml", "region", &rows, &FAST[..1]));
}

#[test]
fn all_heads() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = [
        WorldTask::Region,
        WorldTask::Temporal,
        WorldTask::Mask,
        WorldTask::Chat,
    ];
    let rows = world(dir.path(), &tasks);
    let fast = ["heads", "tokens", "lora"].map(|g| format!("groups.{g}.learning_rate=1e-3"));
    let fast: Vec<&str> = fast.iter().map(String::as_str).collect();
    fine_tune(&recipe("all-heads.toml", "heads", &rows, &fast));
}
