use burn::nn::LinearConfig;
use burn::tensor::Device;

use super::memory::PROCESS;
use super::*;

const RECIPE: &str = r#"
name = "small"
model = { preset = "mini" }
[[stages]]
name = "heads"
length = { epochs = 3 }
batch_size = 2
accumulation = 4
precision = "bf16"
schedule = { warmup_ratio = 0.2 }
groups = [{ name = "second", patterns = ["1.**"], learning_rate = 1e-4 }]
[stages.data]
sources = [
    { name = "made", synthetic = { tasks = ["region"], rows = 10 }, repeat = 2 },
    { name = "read", annotations = "a.jsonl", limit = 7 },
]
"#;

fn shape() -> ModelShape {
    let device = Device::flex();
    let module = vec![
        LinearConfig::new(3, 5).init(&device),
        LinearConfig::new(5, 2).init(&device),
    ];
    let parts = vec![
        PartShape::new("first", ["0."], 10),
        PartShape::new("second", ["1."], 4),
    ];
    let shape = ModelShape::of("two", &module, vec!["region".into()], parts);
    assert!(!module[0].weight.is_initialized());
    shape
}

#[test]
fn numbers_worked_by_hand() {
    let recipe = Recipe::read::<&str>(RECIPE, "r", &[]).unwrap();
    let told = recipe.explain(&shape(), &[], &|_| Some(100)).unwrap();
    let stage = &told.stages[0];
    // 15 + 5 and 10 + 2
    assert_eq!(told.parameters, 32);
    assert_eq!(
        stage.trainable_of,
        [("first".into(), 0), ("second".into(), 12)]
    );
    // 10 · 2 + 7 samples are 14 micro-batches of 2, three times, in steps of 4.
    assert_eq!((stage.samples, stage.steps), (Some(27), Some(11)));
    let memory = MemoryEstimate {
        weights: 64,
        gradients: 48,
        optimizer: 144,
        checkpoint: 0,
        process: PROCESS,
        batches: 0,
        // (5 + 2) values · 4 rows · batch 2 · 2 bytes, and twice as much in flight; the first part
        // is before all that learns, and has less in flight than that: (3 + 5) · 10 · 2 · 2 · 2
        activations: 640,
        checkpointed: 640,
        accelerator: 0,
        accelerator_checkpointed: 0,
    };
    assert_eq!(stage.memory, memory);
    let text = told.to_string();
    for want in [
        "small: two, 32 parameters, seed 42",
        "3 epochs of 27 samples = 11 steps, 3 of them warm-up",
        "8 = 2 a forward pass x 4 of gradient accumulation",
        "first frozen, second 12",
        "second          2          12           1e-4",
    ] {
        assert!(text.contains(want), "{want}:\n{text}");
    }
    let unknown = recipe.explain(&shape(), &[], &|_| None).unwrap();
    assert_eq!(unknown.stages[0].steps, None);
    assert!(unknown.to_string().contains("not known yet"));
}

/// What learns (12 values of two bytes, masters and moments) is held twice where checkpoints are written
/// between steps: at a cadence of their own, or as the best of an evaluation.
#[test]
fn a_checkpoint_in_writing_is_counted() {
    let estimate = |more: &str, best: &str| {
        let text = RECIPE.replace("batch_size = 2", &format!("batch_size = 2\n{more}"));
        let text = text.replace("[[stages]]", &format!("{best}\n[[stages]]"));
        let recipe = Recipe::read::<&str>(&text, "r", &[]).unwrap();
        let told = recipe.explain(&shape(), &[], &|_| Some(100)).unwrap();
        (told.stages[0].memory, told.to_string())
    };
    let best = r#"checkpoints = { keep_best = { metric = "eval/loss", goal = "min" } }"#;
    let evaluated = "evaluate_every = { steps = 2 }\nevaluation = { data = { sources = [\
                     { name = \"e\", annotations = \"e.jsonl\" }] } }";
    let (without, _) = estimate("", "");
    assert_eq!(without.checkpoint, 0);
    assert_eq!(estimate(evaluated, "").0.checkpoint, 0);
    for (more, best) in [("checkpoint_every = { steps = 2 }", ""), (evaluated, best)] {
        let (memory, text) = estimate(more, best);
        assert_eq!(memory.checkpoint, 24 + 144);
        assert_eq!(memory.total(true), without.total(true) + 168);
        assert!(text.contains("checkpoint in writing"), "{text}");
    }
}

/// One quantised weight is unpacked at a time, computed again or not.
#[test]
fn a_quantised_weight_is_unpacked_in_either_case() {
    let recipe = Recipe::read::<&str>(RECIPE, "r", &[]).unwrap();
    let mut shape = shape();
    shape.quantized.insert("0.weight".into(), 8);
    let told = recipe.explain(&shape, &[], &|_| Some(100)).unwrap();
    let memory = told.stages[0].memory;
    // 15 values of two bytes.
    assert_eq!(
        (memory.accelerator, memory.accelerator_checkpointed),
        (30, 30)
    );
}

/// Muon keeps one moment of a matrix, AdamW two of the bias.
#[test]
fn muon_keeps_one_moment() {
    let text = RECIPE.replace("learning_rate = 1e-4", "learning_rate = 1e-4, muon = {}");
    let recipe = Recipe::read::<&str>(&text, "r", &[]).unwrap();
    let told = recipe.explain(&shape(), &[], &|_| Some(100)).unwrap();
    // 10 · 4 + 2 · 8 bytes, and 12 · 4 of the 32-bit copies.
    assert_eq!(told.stages[0].memory.optimizer, 104);
    let shown = told.to_string();
    assert!(
        shown.contains("matrices of second: Muon 0.95, 5 iterations"),
        "{shown}"
    );
    for (change, said) in [
        ("muon = { momentum = 1.0 }", "momentum is 1"),
        ("muon = { iterations = 0 }", "iterations is 0"),
        ("muon = { beta = 0.9 }", "beta"),
    ] {
        let wrong = text.replace("muon = {}", change);
        let error = Recipe::read::<&str>(&wrong, "r", &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn problems_of_all_stages_at_once() {
    let mut recipe = Recipe::read::<&str>(RECIPE, "r", &[]).unwrap();
    recipe.stages.push(recipe.stages[0].clone());
    recipe.stages[1].name = "again".into();
    recipe.stages[0].groups[0].patterns = vec!["heads.regoin.**".into()];
    recipe.stages[1].groups[0].patterns = vec!["2.**".into()];
    recipe.stages[1]
        .loss
        .heads
        .insert("regin".into(), Default::default());
    let Err(TrainError::InvalidRecipe { problems, .. }) = recipe.explain(&shape(), &[], &|_| None)
    else {
        panic!("must be refused");
    };
    for (problem, want) in problems.iter().zip([
        "stages[0] `heads`: group `second`, pattern `heads.regoin.**`: matches no parameter",
        "stages[1] `again`.loss.heads: the model has no head `regin`, did you mean `region`?",
        "stages[1] `again`: group `second`, pattern `2.**`: matches no parameter",
    ]) {
        assert!(problem.starts_with(want), "{problem}");
    }
    assert_eq!(problems.len(), 3, "{problems:#?}");
}
