use super::*;
use crate::Recipe;
use burn::nn::LinearConfig;
use burn::tensor::Device;

const SMALLEST: &str = r#"
    name = "r"
    model = { preset = "mini" }

    [[stages]]
    name = "a"
    length = { steps = 10 }
    batch_size = 2

    [[stages.groups]]
    name = "all"
    patterns = ["**"]
    learning_rate = 1e-3
"#;

fn read(text: &str) -> Result<Recipe> {
    Recipe::read::<&str>(text, "r.toml", &[])
}

fn refused(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn defaults() {
    let plan = read(SMALLEST).unwrap();
    let stage = &plan.stages[0];
    assert_eq!(stage.length, StageLength::Steps(10));
    assert_eq!((stage.accumulation, stage.total_batch()), (1, 2));
    assert_eq!((stage.weight_decay, stage.clip_norm), (0.0, None));
    assert_eq!(stage.precision, Precision::F32);
    assert_eq!(stage.schedule, LrSchedule::default());
    assert_eq!(stage.loss, LossWeights::default());
    let (b1, b2, eps) = (stage.adamw.beta_1, stage.adamw.beta_2, stage.adamw.epsilon);
    assert_eq!((b1, b2, eps), (0.9, 0.999, 1e-8));
    assert_eq!(stage.heads_must_fire_within, 50);
    let text = plan.to_toml().unwrap();
    assert!(!text.contains("heads_must_fire_within"), "{text}");
    assert_eq!(read(&text).unwrap(), plan);
    // Another number is kept.
    let off = "batch_size = 2\nheads_must_fire_within = 0";
    let off = read(&SMALLEST.replace("batch_size = 2", off)).unwrap();
    let again = read(&off.to_toml().unwrap()).unwrap();
    assert_eq!((again.stages[0].heads_must_fire_within, &again), (0, &off));
}

#[test]
fn unknown_and_missing_fields_are_errors_with_their_line() {
    for (from, to, says) in [
        ("batch_size = 2", "batchsize = 2", "batchsize"),
        ("batch_size = 2", "", "batch_size: is missing"),
        ("batch_size = 2", "batch_size = -2", "-2"),
        ("steps = 10", "steps = 10, epochs = 1", "stages[0].length"),
        ("steps = 10", "hours = 10", "hours"),
        ("patterns", "pattern", "pattern"),
        (
            "batch_size = 2",
            "batch_size = 2\nschedule.warmup = 1",
            "warmup",
        ),
        ("batch_size = 2", "batch_size = 2\nprecision = \"f8\"", "f8"),
        (
            "batch_size = 2",
            "batch_size = 2\nloss.heads.r.wight = 1",
            "wight",
        ),
    ] {
        assert!(SMALLEST.contains(from));
        let text = refused(&SMALLEST.replace(from, to));
        assert!(text.contains("line "), "{text}");
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn all_problems_at_once() {
    let text = r#"
        name = "r"
        model = { preset = "mini" }

        [[stages]]
        name = "a b"
        length = { epochs = 0 }
        batch_size = 0
        accumulation = 0
        weight_decay = -0.1
        clip_norm = 0.0
        schedule = { warmup_ratio = 2.0 }
        adamw = { beta_1 = 1.0, epsilon = 0.0 }
        loss = { language = -1.0 }
        groups = []

        [[stages]]
        name = "b"
        length = { steps = 1 }
        batch_size = 1
        [[stages.groups]]
        name = ""
        patterns = ["!x", "a..b"]
        learning_rate = 0.0
        weight_decay = nan
        [[stages.groups]]
        name = ""
        patterns = []
        learning_rate = inf

        [[stages]]
        name = "b"
        length = { steps = 1 }
        batch_size = 1
        [[stages.groups]]
        name = "g"
        patterns = ["**"]
        learning_rate = 1.0
    "#;
    let problems = toml::from_str::<Recipe>(text).unwrap().problems();
    let starts = [
        "stages[0] `a b`.name must be",
        "stages[0] `a b`.length.epochs is 0",
        "stages[0] `a b`.batch_size is 0",
        "stages[0] `a b`.accumulation is 0",
        "stages[0] `a b`.weight_decay is -0.1",
        "stages[0] `a b`.clip_norm is 0",
        "stages[0] `a b`.schedule.warmup_ratio is 2",
        "stages[0] `a b`.adamw.beta_1 is 1",
        "stages[0] `a b`.adamw.epsilon is 0",
        "stages[0] `a b`.loss.language is -1",
        "stages[0] `a b`.groups is empty",
        "stages[1] `b`.groups[0] ``.name is empty",
        "stages[1] `b`.groups[0] ``.patterns: `a..b` has an empty segment",
        "stages[1] `b`.groups[0] ``.learning_rate is 0",
        "stages[1] `b`.groups[0] ``.weight_decay is NaN",
        "stages[1] `b`.groups[1] ``: an earlier group",
        "stages[1] `b`.groups[1] ``.name is empty",
        "stages[1] `b`.groups[1] ``.patterns: needs a pattern",
        "stages[1] `b`.groups[1] ``.learning_rate is inf",
        "stages[2] `b`: an earlier stage has this name",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}, want {start}");
    }
    let empty = "name = \"r\"\nmodel = { preset = \"mini\" }\nstages = []";
    let text = refused(empty);
    assert!(
        text.contains("1 problem:") && text.contains("stages is empty"),
        "{text}"
    );
}

#[test]
fn evaluation_and_adapters_are_checked() {
    let with = |line: &str| SMALLEST.replace("batch_size = 2", &format!("batch_size = 2\n{line}"));
    let data = "data = { sources = [{ name = \"a\", annotations = \"a.jsonl\" }] }";
    let plan = read(&with(&format!(
        "evaluation = {{ batches = 3, {data} }}\nlora = {{ rank = 2, alpha = 4.0 }}"
    )))
    .unwrap();
    let stage = &plan.stages[0];
    assert_eq!(stage.evaluation.as_ref().unwrap().batches, Some(3));
    assert_eq!(stage.lora.as_ref().unwrap().rank, 2);
    let again = read(&plan.to_toml().unwrap()).unwrap();
    assert_eq!(again, plan);
    let text = refused(&with(
        "evaluation = { batches = 0, batch_size = 0, data = { sources = [] } }\n\
         lora = { rank = 0, alpha = -1.0, dropout = 1.0, targets = [\"q_proj\", \"q_proj\"] }",
    ));
    for says in [
        "evaluation.batches is 0",
        "evaluation.batch_size is 0",
        "evaluation.data.sources is empty",
        "lora.rank is 0",
        "lora.alpha is -1",
        "lora.dropout is 1",
        "`q_proj` is there twice",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn groups_without_weight_decay_get_the_stages() {
    let mut plan = read(SMALLEST).unwrap();
    let stage = &mut plan.stages[0];
    stage.weight_decay = 0.02;
    stage.groups = vec![
        ParamGroupSpec::new("w", ["weight"], 1e-3),
        ParamGroupSpec {
            weight_decay: Some(0.0),
            ..ParamGroupSpec::new("b", ["bias"], 1e-3)
        },
    ];
    let groups = stage
        .resolve(&LinearConfig::new(2, 3).init(&Device::flex()))
        .unwrap();
    let decay: Vec<_> = groups.groups.iter().map(|g| g.weight_decay).collect();
    assert_eq!(decay, [Some(0.02), Some(0.0)]);
}
