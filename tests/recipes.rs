//! The recipes in `recipes/` say what they mean to, and explain themselves for the real models.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use burn::tensor::Device;
use tpo::core::model::CallOrder;
use tpo::llm::{LORA_TARGETS, LlmConfig, LoraConfig};
use tpo::train::TrainError;
use tpo::train::explain::{Explanation, ModelShape, PartShape};
use tpo::train::recipe::{ModelSpec, Recipe};
use tpo::training;
use tpo::{BuiltInHeads, TpoConfig};

fn explain(recipe: &Recipe) -> tpo::Result<Explanation> {
    training::explain::<BuiltInHeads>(recipe)
}

fn model_shape(spec: &ModelSpec) -> tpo::Result<ModelShape> {
    training::model_shape::<BuiltInHeads>(spec)
}

fn model_config(spec: &ModelSpec) -> tpo::Result<TpoConfig> {
    training::model_config::<BuiltInHeads>(spec)
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recipes")
        .join(name)
}

fn open(name: &str) -> Recipe {
    Recipe::open::<&str>(path(name), &[]).unwrap_or_else(|e| panic!("{e}"))
}

/// The published sizes; what the recipes name is not there.
fn open_paper(name: &str) -> Recipe {
    Recipe::open(path(name), &["model.preset=videochat-tpo"]).unwrap_or_else(|e| panic!("{e}"))
}

const STAGES: [&str; 3] = [
    "videochat_tpo/stage1.toml",
    "videochat_tpo/stage2.toml",
    "videochat_tpo/stage3.toml",
];

/// Groups and data of the mini model's recipes fit its sizes.
#[test]
fn the_mini_models_recipes_fit_it() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    for (folder, sizes, count) in [
        ("mini", "mini", 14),
        ("mini-short", "mini", 2),
        ("mini-ov", "mini-ov", 2),
    ] {
        let change = format!("model.directory={}", assets.join(sizes).display());
        let files = numbered(folder);
        assert_eq!(files.len(), count, "{folder}");
        for file in files {
            let recipe = Recipe::open(&file, &[&change]).unwrap_or_else(|e| panic!("{e}"));
            let told = explain(&recipe).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            assert!(told.stages.iter().all(|s| s.steps.is_some()), "{told}");
        }
    }
}

/// Help names recipes that are there.
#[test]
fn the_recipes_that_help_names_exist() {
    let help = |command: &[&str]| {
        let mut tpo = Command::new(env!("CARGO_BIN_EXE_tpo"));
        let done = tpo.args(command).arg("--help").output().unwrap();
        assert!(done.status.success(), "{command:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let top = help(&[]);
    let lines = top.lines().skip_while(|l| *l != "Commands:").skip(1);
    let commands = lines.take_while(|l| !l.trim().is_empty());
    let commands: Vec<&str> = commands
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"train"), "{top}");
    let mut found = 0;
    for text in commands
        .iter()
        .map(|name| help(&[name]))
        .chain([top.clone()])
    {
        for word in text.split_whitespace() {
            if word.starts_with("recipes/") && word.ends_with(".toml") {
                let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(word);
                assert!(file.is_file(), "{word}");
                found += 1;
            }
        }
    }
    assert!(found > 5, "{found}");
}

/// The recipes of a folder in the order in which they run, without those that others extend.
fn numbered(folder: &str) -> Vec<PathBuf> {
    let there = std::fs::read_dir(path(folder)).unwrap();
    let mut files: Vec<PathBuf> = there.map(|f| f.unwrap().path()).collect();
    files.retain(|f| {
        let name = f.file_name().unwrap().to_string_lossy();
        name.ends_with(".toml") && !name.starts_with("base")
    });
    files.sort();
    for (i, file) in files.iter().enumerate() {
        let name = file.file_name().unwrap().to_string_lossy();
        assert!(name.starts_with(&format!("{:02}-", i + 1)), "{name}");
    }
    files
}

#[test]
fn the_full_model_explains_at_once() {
    let start = Instant::now();
    let shape = model_shape(&open_paper(STAGES[0]).model).unwrap();
    // Every floating-point value of the published checkpoint: its 16,202,736,564 bytes are bf16 but
    // for one buffer of 512 64-bit integers.
    let parameters: usize = shape.params.iter().map(|p| p.num_values()).sum();
    assert_eq!(parameters, (16_202_736_564 - 512 * 8) / 2);

    for (file, stages) in STAGES.iter().zip([1, 3, 2]) {
        let told = explain(&open_paper(file)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(told.stages.len(), stages);
        println!("{told}\n");
    }
    let elapsed = start.elapsed();
    assert!(elapsed.as_secs_f64() < 2.0, "{elapsed:?}");

    // LoRA of rank 16 on the seven maps of 32 layers and on lm_head, by hand.
    let per_layer = 16 * ((4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3);
    let lora = 32 * per_layer + 16 * (4096 + 32007);
    let first = explain(&open_paper(STAGES[0])).unwrap();
    let stage = &first.stages[0];
    assert_eq!(stage.groups.num_trainable(), lora);
    assert_eq!(stage.groups.groups.len(), 1);
    let of = |part: &str| stage.trainable_of.iter().find(|p| p.0 == part).unwrap().1;
    assert_eq!(
        (of("vision"), of("connector"), of("heads"), of("llm")),
        (0, 0, 0, lora as u64)
    );
    // bf16 weights, 32-bit gradients, two moments and a copy.
    assert_eq!(stage.memory.weights, 2 * parameters as u64);
    assert_eq!(stage.memory.gradients, 4 * lora as u64);
    assert_eq!(stage.memory.optimizer, 12 * lora as u64);
    // SAM 2 learns in no stage.
    for file in STAGES {
        for stage in explain(&open_paper(file)).unwrap().stages {
            assert!(
                !stage.groups.trainable().any(|p| p.path.contains(".sam.")),
                "{file}"
            );
        }
    }
}

#[test]
fn the_nano_recipe_fits_the_nano_model() {
    let recipe = open("nano/stages.toml");
    let told = explain(&recipe).unwrap_or_else(|e| panic!("{e}"));
    println!("{told}");
    assert_eq!(told.stages.len(), 3);
    let device = Device::flex().autodiff();
    let config = model_config(&recipe.model).unwrap();
    assert_eq!(config.call_order, CallOrder::AsTrained);
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    for (stage, told) in recipe.stages.iter().zip(&told.stages) {
        let groups = stage.resolve(&model).unwrap();
        assert_eq!(groups.num_trainable(), told.groups.num_trainable());
        let groups = groups.groups.iter().map(|g| g.name.as_str());
        assert!(groups.eq(told.groups.groups.iter().map(|g| g.name.as_str())));
    }
}

#[test]
fn models_that_do_not_exist_are_named() {
    let problems = |spec: ModelSpec| match model_config(&spec).unwrap_err() {
        tpo::Error::Train(TrainError::InvalidRecipe { problems, .. }) => problems,
        error => panic!("{error}"),
    };
    let mut spec = ModelSpec {
        preset: Some("maxi".into()),
        lora: open("nano/stages.toml").model.lora,
        ..ModelSpec::default()
    };
    spec.lora.as_mut().unwrap().targets = vec!["w_proj".into()];
    let found = problems(spec);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("no layer `w_proj`") || found[1].contains("no layer `w_proj`"));
    assert!(found.iter().any(|p| p.contains("-tpo-7b, mini, nano")));
    let nowhere = ModelSpec {
        directory: Some("no/such/model".into()),
        ..ModelSpec::default()
    };
    assert!(problems(nowhere)[0].contains("no/such/model is not a directory"));
}

/// Peaks that `train --measure` and the bench rows `lora-step` and `lora-step-checkpointed` found, in
/// MiB; see `MemoryEstimate`.
#[test]
fn memory_estimates_are_near_what_was_measured() {
    let near = |what: &str, bytes: u64, measured: f64| {
        let estimate = bytes as f64 / f64::from(1 << 20);
        println!("{what}: {estimate:.0} MiB, measured {measured:.0}");
        assert!(
            (estimate / measured - 1.0).abs() < 0.25,
            "{what}: {estimate}"
        );
    };
    let told = explain(&open("nano/stages.toml")).unwrap();
    let measured = [("region-head", 127.0, 98.0), ("co-training", 200.0, 157.0)];
    for (stage, kept, checkpointed) in measured {
        let found = told.stages.iter().find(|s| s.stage.name == stage).unwrap();
        near(stage, found.memory.total(false), kept);
        near(stage, found.memory.total(true), checkpointed);
    }

    let targets = LORA_TARGETS.into_iter().filter(|t| *t != "lm_head");
    let lora = LoraConfig::new(16, 32.0, targets.map(String::from).collect());
    let config = LlmConfig {
        num_hidden_layers: 2,
        vocab_size: 64,
        ..LlmConfig::mistral_7b()
    };
    let lm = config.lora(lora).init(&Device::flex()).unwrap();
    // The row stops before the output layer.
    let part = PartShape::new("llm", ["model."], 512).with_checkpointed_blocks();
    let shape = ModelShape::of("two layers", &lm, Vec::new(), vec![part]);
    let recipe = Recipe::read::<&str>(
        r#"
        name = "two-layers"
        model = { preset = "nano" }
        [[stages]]
        name = "lora"
        length = { steps = 1 }
        batch_size = 1
        groups = [{ name = "lora", patterns = ["**.lora.*"], learning_rate = 1e-4 }]
        "#,
        "r",
        &[],
    )
    .unwrap();
    let memory = recipe.explain(&shape, &[], &|_| None).unwrap().stages[0].memory;
    near("two layers", memory.total(false), 2118.0);
    near("two layers, checkpointed", memory.total(true), 1973.0);
}
