//! Trains the region head of a tiny model, saves the model, opens it again and asks it.
//!
//! `cargo run --release --example train_a_head` takes a few seconds. The recipe stands in the code
//! here; `tpo train FILE` takes it from a file, and docs/TRAINING.md explains every key.

use tpo::export::{ExportOptions, export_model};
use tpo::prelude::*;
use tpo::train::Recipe;
use tpo::train::observe::{METRICS_FILE, read_metrics};
use tpo::training::{RunOptions, explain, run_recipe};

const RECIPE: &str = r#"
name = "train-a-head"
model = { preset = "nano" }

[[stages]]
name = "region"
length = { steps = 30 }
batch_size = 4
clip_norm = 1.0
data = { sources = [
    { name = "shapes", synthetic = { tasks = ["region"], rows = 64, seed = 1 } },
] }
# What no pattern names stays as it is.
groups = [
    { name = "region", patterns = ["heads.region.**", "task_tokens.region"], learning_rate = 1e-3 },
    { name = "llm", patterns = ["llm.**"], learning_rate = 1e-3 },
]
"#;

fn main() -> tpo::Result<()> {
    let recipe = Recipe::read::<&str>(RECIPE, "train_a_head", &[])?;
    // Steps, parameters and memory, before anything is loaded.
    println!("{}", explain::<BuiltInHeads>(&recipe)?);

    let device = DeviceChoice::Auto.open()?;
    let options = RunOptions::new("runs/train-a-head", &device);
    let summary = run_recipe::<BuiltInHeads>(&recipe, &options)?;
    let records = read_metrics(format!("runs/train-a-head/{METRICS_FILE}"))?;
    for record in records.iter().filter(|r| r.step % 10 == 0) {
        println!("step {}: {:?}", record.step, record.values);
    }

    let built = summary.model;
    let options = ExportOptions {
        overwrite: true,
        ..ExportOptions::default()
    };
    let dir = "models/train-a-head";
    export_model(
        built.model,
        &built.config,
        &built.tokenizer_files,
        dir,
        &options,
    )?;
    let (mut session, _) = Session::open(dir, &device, SessionOptions::default(), None)?;
    session.load_video("assets/bouncing_shapes.mp4", None)?;
    let question = Question::new("Where is the red circle?").with_task("region");
    let reply = session.ask(question)?.collect_reply()?;
    for output in reply.tasks {
        println!("{} {}", output.task, output.to_json());
    }
    Ok(())
}
