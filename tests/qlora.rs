//! QLoRA from recipes: adapters and a head that learn on a quantised base.

#[path = "common/alone.rs"]
mod alone;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use alone::alone;
use burn::module::{ModuleVisitor, Param};
use burn::tensor::Int;
use tpo::Error;
use tpo::core::ops::QuantFormat;
use tpo::export::{ExportOptions, LoraExport, export_model};
use tpo::prelude::*;
use tpo::train::Recipe;
use tpo::train::checkpoint::files;
use tpo::train::observe::read_metrics;
use tpo::train::run_directory::find_checkpoint;
use tpo::training::{RunOptions, RunSummary, explain, run_recipe};
use tpo::weights::{Checkpoint, PathStack};

/// Two stages: other adapters in the second, whose start adds the first ones to the weights.
const RECIPE: &str = r#"
name = "qlora"
seed = 5
[model]
directory = "assets/mini"
quantize = "q8_0"
lora = { rank = 4, alpha = 8.0, dropout = 0.1 }
[logging]
tensorboard = false
curves = false
[every_stage]
batch_size = 2
clip_norm = 1.0
checkpoint_every = { steps = 2 }
data = { sources = [{ name = "w", synthetic = { tasks = ["region"], rows = 16, seed = 1 } }] }
groups = [
    { name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 2e-3 },
    { name = "region", patterns = ["heads.region.**", "task_tokens.region"], learning_rate = 1e-3 },
]
[[stages]]
name = "first"
length = { steps = 4 }
[[stages]]
name = "second"
length = { steps = 3 }
lora = { rank = 2, alpha = 2.0, dropout = 0.0, targets = ["q_proj", "down_proj"] }
"#;

fn recipe(overrides: &[&str]) -> Recipe {
    Recipe::read(RECIPE, "qlora.toml", overrides).unwrap()
}

/// One run at a time: adapters are drawn from the device's generator, which all tests of a process share.
fn train(
    recipe: &Recipe,
    dir: &Path,
    change: impl FnOnce(&mut RunOptions),
) -> tpo::Result<RunSummary> {
    let _alone = alone();
    let mut options = RunOptions::new(dir, &Device::flex());
    change(&mut options);
    run_recipe(recipe, &options)
}

fn losses(dir: &Path) -> Vec<f64> {
    let records = read_metrics(dir.join("metrics.jsonl")).unwrap();
    records.iter().map(|r| r.values["loss"]).collect()
}

/// Words of the quantised weights by path.
fn words(model: &impl Module) -> BTreeMap<String, Vec<u32>> {
    #[derive(Default)]
    struct Read(PathStack, BTreeMap<String, Vec<u32>>);
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            if let Ok(words) = param.val().into_data().try_to_vec::<u32>() {
                self.1.insert(self.0.path(), words);
            }
        }
    }
    let mut read = Read::default();
    model.visit(&mut read);
    read.1
}

fn quantised_mini() -> Session {
    let options = SessionOptions {
        quantize: QuantFormat::Q8_0.into(),
        dtype: Some(FloatDType::F32),
        ..SessionOptions::default()
    };
    let device = Device::flex();
    Session::open("assets/mini", &device, options, None)
        .unwrap()
        .0
}

/// The mini model with the elements that its quantised weights stand for, as a directory.
fn write_dequantised(dir: &Path) {
    let session = quantised_mini();
    let (mut model, mut config) = (session.model().clone(), session.config().clone());
    for block in &mut model.llm.model.layers {
        let (attention, mlp) = (&mut block.self_attn, &mut block.mlp);
        for linear in [
            &mut attention.q_proj,
            &mut attention.k_proj,
            &mut attention.v_proj,
            &mut attention.o_proj,
            &mut mlp.gate_proj,
            &mut mlp.up_proj,
            &mut mlp.down_proj,
        ] {
            assert!(linear.weight.format().is_some());
            linear.weight = linear.weight.val().into();
        }
    }
    if let Some(head) = model.llm.lm_head.own_mut() {
        head.weight = head.weight.val().into();
    }
    config.llm.quantization = None;
    let tokenizer = ["tokenizer.json", "tokenizer_config.json"].map(|name| {
        let bytes = std::fs::read(Path::new("assets/mini").join(name)).unwrap();
        (name.to_string(), bytes)
    });
    export_model(model, &config, &tokenizer, dir, &ExportOptions::default()).unwrap();
}

#[test]
fn a_run_is_that_on_the_dequantised_base_and_resumes_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let whole = train(&recipe(&[]), &at("whole"), |_| {}).unwrap();

    // The losses of the first stage; the second begins with sums that are quantised again.
    write_dequantised(&at("plain"));
    let directory = format!("model.directory={}", at("plain").display());
    let mut plain = recipe(&[&directory]);
    plain.model.quantize = None;
    train(&plain, &at("float"), |_| {}).unwrap();
    let (ours, theirs) = (losses(&at("whole")), losses(&at("float")));
    assert_eq!(ours.len(), 7);
    for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let limit = if step < 4 { 2e-3 } else { 5e-2 };
        assert!((a - b).abs() < limit * b, "step {step}: {a} and {b}");
    }

    // The base is fixed in a stage, and the first checkpoints do not hold it.
    let base = words(quantised_mini().model());
    let store = at("whole").join("checkpoints");
    let keys = |step: u64| -> Vec<String> {
        let dir = store.join(format!("step-{step:08}"));
        let weights = Checkpoint::open(dir.join(files::WEIGHTS)).unwrap();
        weights.tensors().map(|t| t.key.clone()).collect()
    };
    assert!(keys(4).iter().all(|k| !k.ends_with(".packed")));
    let held = keys(7);
    let packed = held.iter().filter(|k| k.ends_with(".packed")).count();
    assert_eq!(packed, base.len());
    assert!(words(&whole.model.model) != base);

    // Stopped in either stage, it ends with the same bytes.
    for (stop, name) in [(2, "early"), (6, "late")] {
        let stopped = |o: &mut RunOptions| o.stop_after = Some(stop);
        train(&recipe(&[]), &at(name), stopped).unwrap();
        let resumed = train(&recipe(&[]), &at(name), |o| o.resume = true).unwrap();
        assert_eq!(resumed.resumed_at, Some(stop));
        let read = |run: &str, file: &str| {
            let checkpoint = find_checkpoint(at(run)).unwrap();
            std::fs::read(checkpoint.dir().join(file)).unwrap()
        };
        for file in [files::WEIGHTS, files::OPTIMIZER, files::STATE] {
            assert!(read("whole", file) == read(name, file), "{name}: {file}");
        }
        assert!(words(&resumed.model.model) == words(&whole.model.model));
    }

    // What is exported opens quantised, adapters beside or merged, and answers with a box.
    for (lora, name) in [
        (LoraExport::Adapters, "adapters"),
        (LoraExport::Merged, "merged"),
    ] {
        let (model, built) = (whole.model.model.clone(), &whole.model);
        let options = ExportOptions {
            lora,
            ..ExportOptions::default()
        };
        let (config, files) = (&built.config, &built.tokenizer_files);
        export_model(model, config, files, at(name), &options).unwrap();
        let options = SessionOptions::default();
        let (mut session, _) = Session::open(at(name), &Device::flex(), options, None).unwrap();
        let llm = &session.config().llm;
        assert_eq!(llm.quantization, Some(QuantFormat::Q8_0));
        assert_eq!(llm.lora.is_some(), lora == LoraExport::Adapters);
        session
            .load_video("assets/bouncing_shapes.mp4", None)
            .unwrap();
        let question = Question::new("Where is the red circle at the start?");
        let reply = session.ask(question).unwrap().collect_reply().unwrap();
        assert_eq!(reply.tasks[0].task, "region", "{name}: {}", reply.text);
    }
    // And so does the run itself.
    let options = SessionOptions::default();
    let session = Session::open_checkpoint(at("late"), &Device::flex(), options).unwrap();
    assert!(words(session.model()) == words(&whole.model.model));
}

#[test]
fn what_cannot_be_is_refused_before_a_weight_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let refused = |recipe: &Recipe, memory| {
        let options = |o: &mut RunOptions| o.memory = memory;
        let error = train(recipe, &run, options).unwrap_err();
        assert!(!run.exists());
        error
    };
    // Quantised weights do not learn.
    let groups = "stages.0.groups.lora.patterns=llm.model.layers.**";
    let text = explain::<BuiltInHeads>(&recipe(&[groups]))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("is quantised and cannot learn") && text.contains("q_proj.weight"),
        "{text}"
    );
    // Nor do weights that nobody trained become better by it.
    let random = recipe(&["model.preset=mini"]);
    let text = refused(&random, None).to_string();
    assert!(text.contains("random weights are not quantised"), "{text}");
    // A table says what would fit.
    let error = refused(&recipe(&["model.quantize=q4_0"]), Some(1 << 20));
    assert!(matches!(error, Error::Memory { .. }));
    let text = error.to_string();
    for says in ["learning", "--dtype bf16 --quantize q8_0", "free memory"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let need = |quantize: &str| {
        let told = explain::<BuiltInHeads>(&recipe(&[quantize])).unwrap();
        told.stages[0].memory
    };
    let [q8, q4] = ["q8_0", "q4_0"].map(|f| need(&format!("model.quantize={f}")).weights);
    assert!(q4 < q8);
    // Less than one format needs is enough for another.
    let enough = need("model.quantize=q8_0").total(true);
    let text = refused(&recipe(&[]), Some(enough)).to_string();
    assert!(text.contains("give --dtype"), "{text}");
}

/// The program's flags stand for keys of the recipe.
#[test]
fn flags_of_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qlora.toml");
    std::fs::write(&path, RECIPE).unwrap();
    let tpo = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command.arg("train").arg(&path).args(["--device", "cpu"]);
        let done = command.args(args).output().unwrap();
        let text = [done.stdout, done.stderr].map(|t| String::from_utf8(t).unwrap());
        (done.status.success(), text.concat())
    };
    let (done, text) = tpo(&["--explain", "--dtype", "bf16"]);
    assert!(done && text.contains(", bf16"), "{text}");
    let (done, text) = tpo(&["--dtype", "f16"]);
    assert!(!done && text.contains("train in bf16"), "{text}");
    let out = dir.path().join("run").display().to_string();
    let (done, text) = tpo(&["--memory", "0.01", "--quantize", "none", "--out", &out]);
    assert!(
        !done && text.contains("asked for") && text.contains("--dtype f32 "),
        "{text}"
    );
    assert!(!Path::new(&out).exists());
    // A quantised base is exported as such, and the program says so.
    let model = dir.path().join("model").display().to_string();
    let (done, text) = tpo(&[
        "--quiet",
        "--out",
        &out,
        "--quantize",
        "q4_0",
        "--export",
        &model,
        "--merge",
    ]);
    assert!(
        done && text.contains("written as q4_0") && text.contains("quantised again"),
        "{text}"
    );
    assert!(Path::new(&model).join("tpo.json").is_file());
}
