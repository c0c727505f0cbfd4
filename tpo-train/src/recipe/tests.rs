mod shared;

use super::*;
use crate::stage::StageLength;

const SMALL: &str = r#"
name = "small"
model = { preset = "mini" }

[[stages]]
name = "heads"
length = { steps = 10 }
batch_size = 2
[[stages.groups]]
name = "region"
patterns = ["heads.region.**", "task_tokens.region"]
learning_rate = 1e-4
[stages.data]
sources = [{ name = "made", synthetic = { tasks = ["region"], rows = 8 } }]

[[stages]]
name = "all"
length = { epochs = 1 }
batch_size = 2
groups = [{ name = "all", patterns = ["**"], learning_rate = 1e-5 }]
"#;

fn read(text: &str, overrides: &[&str]) -> Result<Recipe> {
    Recipe::read(text, "r.toml", overrides)
}

fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    match read(text, overrides) {
        Err(TrainError::InvalidRecipe { problems, .. }) => problems,
        other => panic!("expected problems, found {other:?}"),
    }
}

/// Exactly these problems, each by a part of its text.
fn assert_told(found: &[String], expected: &[&str]) {
    for want in expected {
        assert!(
            found.iter().any(|p| p.contains(want)),
            "`{want}` is not in\n{}",
            found.join("\n")
        );
    }
    assert_eq!(found.len(), expected.len(), "{}", found.join("\n"));
}

#[test]
fn defaults_and_round_trip() {
    let recipe = read(SMALL, &[]).unwrap();
    assert_eq!(recipe.seed, 42);
    assert_eq!(recipe.checkpoints.keep_last, 3);
    assert_eq!((recipe.stage_seed(0), recipe.stage_seed(1)), (42, 43));
    let source = &recipe.stages[0].data.as_ref().unwrap().sources[0];
    assert_eq!((source.weight, source.repeat, source.limit), (1.0, 1, None));
    let text = recipe.to_toml().unwrap();
    // Defaults are written out.
    assert!(
        text.contains("accumulation = 1") && text.contains("temperature = 1.0"),
        "{text}"
    );
    assert_eq!(read(&text, &[]).unwrap(), recipe);
}

#[test]
fn a_value_that_no_stage_found_is_missed_in_the_last_one_evaluated() {
    let evaluation = r#"evaluation = { data = { sources = [
        { name = "held-out", synthetic = { tasks = ["region"], rows = 8 } } ] } }"#;
    let with = |text: &str, stage: &str| {
        let name = format!("[[stages]]\nname = \"{stage}\"");
        assert!(text.contains(&name));
        text.replace(&name, &format!("{name}\n{evaluation}"))
    };
    let first = with(SMALL, "heads");
    assert!(read(&first, &[]).unwrap().is_last_evaluated("heads"));
    let both = read(&with(&first, "all"), &[]).unwrap();
    assert!(!both.is_last_evaluated("heads") && both.is_last_evaluated("all"));
}

#[test]
fn every_mistake_is_in_one_error() {
    let text = SMALL
        .replace("name = \"small\"", "nmae = \"small\"\nseed = \"x\"")
        .replace(
            "preset = \"mini\"",
            "preset = \"mini\", lora = { rank = 0, alpha = 1.0, dropuot = 0.5 }",
        )
        .replace("steps = 10", "stesp = 10")
        .replacen("batch_size = 2", "batch_size = -2\nprecision = \"f8\"", 1)
        .replace("learning_rate = 1e-4", "learning_rate = 0.0")
        .replace("rows = 8", "rows = 0")
        .replace("length = { epochs = 1 }", "")
        .replace("patterns = [\"**\"]", "patterns = [\"a..b\"], wd = 1");
    let found = problems(&text, &[]);
    let expected = [
        "line 2: nmae: unknown key `nmae`, did you mean `name`?",
        "name: is missing",
        "line 3: seed: invalid type: string \"x\", expected u64",
        "dropuot: unknown key `dropuot`, did you mean `dropout`?",
        "model.lora.rank is 0",
        "stages[0].length: unknown value `stesp`, did you mean `steps`?",
        "line 9: stages[0].batch_size: invalid value: integer `-2`",
        "line 10: stages[0].precision: unknown value `f8`",
        "learning_rate is 0; must be above 0",
        "data.sources[0] `made`.synthetic.rows is 0",
        "stages[1].length: is missing",
        "stages[1].groups[0].wd: unknown key `wd`",
        "patterns: `a..b` has an empty segment",
    ];
    assert_told(&found, &expected);

    let not_toml = read("name = [", &[]).unwrap_err().to_string();
    assert!(
        not_toml.starts_with("r.toml: TOML parse error at line 1"),
        "{not_toml}"
    );
    assert!(!problems("", &[]).is_empty());
    assert!(!problems("stages = 3", &[]).is_empty());
    assert!(!problems("model = 3\nname = []\nstages = [1]", &[]).is_empty());
}

#[test]
fn overrides_take_the_type_of_what_they_replace() {
    let recipe = read(
        SMALL,
        &[
            "seed=7",
            "stages.heads.batch_size=8",
            "stages[1].groups[0].learning_rate=3",
            "stages.0.schedule.floor=0.1",
            "stages.heads.length={ epochs = 2 }",
            "stages.heads.groups.region.patterns=vision.**,connector.**",
            "stages.heads.clip_norm=1",
            "model.preset=mini-2",
            "logging.tensorboard=false",
            "stages.heads.data.sources.made.synthetic.rows=99",
            "model.lora={ rank = 4, alpha = 8.0 }",
            // Keys that the recipe does not have, of which one is called nearly as another.
            "stages.heads.lora={ rank = 64, alpha = 64.0 }",
            "stages.heads.seed=11",
        ],
    )
    .unwrap();
    let stage = &recipe.stages[0];
    assert_eq!(stage.lora.as_ref().map(|lora| lora.rank), Some(64));
    assert_eq!(stage.seed, Some(11));
    assert_eq!((recipe.seed, stage.batch_size), (7, 8));
    assert_eq!(recipe.stages[1].groups[0].learning_rate, 3.0);
    assert_eq!((stage.schedule.floor, stage.clip_norm), (0.1, Some(1.0)));
    assert_eq!(stage.length, StageLength::Epochs(2));
    assert_eq!(stage.groups[0].patterns, ["vision.**", "connector.**"]);
    assert_eq!(recipe.model.preset.as_deref(), Some("mini-2"));
    assert!(!recipe.logging.tensorboard);
    assert_eq!(
        stage.data.as_ref().unwrap().sources[0]
            .synthetic
            .as_ref()
            .unwrap()
            .rows,
        99
    );
    assert_eq!(recipe.model.lora.unwrap().rank, 4);
}

#[test]
fn overrides_that_do_not_fit_are_all_named() {
    let found = problems(
        SMALL,
        &[
            "sede=7",
            "stages.haeds.batch_size=8",
            "stages.9.batch_size=8",
            "stages.heads.batch_size=1.5",
            "stages.heads.batch_size",
            "seed.x=1",
            "stages.heads.schedule.flor=0.1",
            "stages.heads.batch_size=0",
        ],
    );
    for want in [
        "unknown key `sede`, did you mean `seed`?",
        "no `haeds` in stages, did you mean `heads`?",
        "stages has 2 members, no [9]",
        "`1.5` is not an integer",
        "has no `=`",
        "seed is a integer and has no `x`",
        "unknown key `flor`, did you mean `floor`?",
        "stages[0] `heads`.batch_size is 0",
    ] {
        assert!(
            found.iter().any(|f| f.contains(want)),
            "{found:#?}, want {want}"
        );
    }
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn changes_on_resume() {
    let before = read(SMALL, &[]).unwrap();
    let now = read(
        SMALL,
        &[
            "stages.heads.batch_size=4",
            "logging.every_steps=10",
            "stages.heads.checkpoint_every={ steps = 5 }",
            "stages.all.batch_size=4",
            "stages.heads.groups.region.patterns=vision.**",
        ],
    )
    .unwrap();
    let changes = before.changes(&now, 0);
    let of = |key: &str| changes.iter().find(|c| c.key == key).unwrap();
    assert!(!of("stages[0].batch_size").harmless);
    assert!(!of("stages[0].groups[0].patterns").harmless);
    assert!(of("logging.every_steps").harmless);
    assert!(of("stages[0].checkpoint_every").harmless);
    assert!(of("stages[1].batch_size").harmless);
    assert!(
        !before
            .changes(&now, 1)
            .iter()
            .any(|c| c.key == "stages[1].batch_size" && c.harmless)
    );
    assert_eq!(
        of("stages[0].batch_size").to_string(),
        "stages[0].batch_size: 2 → 4"
    );
    assert_eq!(changes.len(), 5);
    assert!(before.changes(&before, 0).is_empty());
}

#[test]
fn values_are_checked_together() {
    let text = SMALL
        .replace("preset = \"mini\"", "preset = \"mini\", directory = \"d\"")
        .replace(
            "name = \"small\"",
            "name = \"a b\"\nlogging = { every_steps = 0 }\n\
             checkpoints = { keep_last = 0, keep_best = { metric = \"loss\" } }",
        )
        .replacen(
            "batch_size = 2",
            "batch_size = 0\nevaluate_every = { steps = 0 }",
            1,
        );
    let found = problems(&text, &[]);
    // An evaluation without samples, and two mistakes of `keep_best`, come on top of six.
    assert_eq!(found.len(), 9, "{found:#?}");
    for says in [
        "evaluate_every: there is nothing to evaluate on",
        "keep_best.metric is `loss`; must be a value of an evaluation",
        "keep_best: no stage has an `evaluation`",
    ] {
        assert!(found.iter().any(|p| p.contains(says)), "{says}: {found:#?}");
    }
}
