//! Recipes of several files.

use std::path::Path;

use super::super::*;
use super::assert_told;
use crate::stage::StageLength;

const BASE: &str = r#"
name = "base"
model = { preset = "nano", lora = { rank = 4, alpha = 8.0, targets = ["q_proj", "v_proj"] } }

[every_stage]
batch_size = 2
clip_norm = 1.0
groups = [
    { name = "layers", patterns = ["llm.model.layers.**"], learning_rate = 1e-3, muon = {} },
    { name = "words", patterns = ["llm.**", "!llm.model.layers.**"], learning_rate = 1e-3 },
]

[[stages]]
name = "all"
length = { epochs = 3 }
batch_size = 8
[stages.data]
sources = [
    { name = "world", weight = 2.0, synthetic = { tasks = ["chat"], rows = 8, seed = 1, grey = 0.5 } },
    { name = "file", annotations = "a.jsonl" },
]
"#;

const OWN: &str = r#"
extends = "base.toml"
name = "own"
model = { directory = "runs/base", lora = { targets = ["k_proj"] } }

[[stages]]
name = "first"
length = { steps = 5 }
groups = [{ name = "heads", patterns = ["heads.**"], learning_rate = 2e-3 }, { name = "words", learning_rate = 5e-4 }]

[[stages]]
name = "all"
length = { steps = 10 }
[stages.data]
sources = [
    { name = "world", synthetic = { seed = 7 } },
    { name = "looks", synthetic = { tasks = ["chat"], rows = 4 } },
    { name = "file", synthetic = { tasks = ["region"], rows = 2 } },
    { name = "last", annotations = "b.jsonl" },
]
"#;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn problems(dir: &Path, name: &str, overrides: &[&str]) -> Vec<String> {
    match Recipe::open(dir.join(name), overrides) {
        Err(TrainError::InvalidRecipe { problems, .. }) => problems
            .iter()
            .map(|p| p.replace(&dir.display().to_string(), "DIR"))
            .collect(),
        other => panic!("expected problems, found {other:?}"),
    }
}

#[test]
fn tables_by_key_lists_by_name_all_else_replaced() {
    let dir = folder(&[("base.toml", BASE), ("own.toml", OWN)]);
    let recipe = Recipe::open::<&str>(dir.path().join("own.toml"), &[]).unwrap();
    assert_eq!(recipe.name, "own");
    let model = &recipe.model;
    assert_eq!(
        (model.preset.as_ref(), model.directory.is_some()),
        (None, true)
    );
    let lora = model.lora.as_ref().unwrap();
    assert_eq!(
        (lora.rank, lora.targets.as_slice()),
        (4, &["k_proj".to_string()][..])
    );

    // A new stage before the known one that follows it; what every stage has, unless it says otherwise.
    let [first, all] = recipe.stages.as_slice() else {
        panic!("{:?}", recipe.stages)
    };
    assert_eq!((first.name.as_str(), all.name.as_str()), ("first", "all"));
    assert_eq!((first.batch_size, all.batch_size), (2, 8));
    assert_eq!((first.clip_norm, all.clip_norm), (Some(1.0), Some(1.0)));
    assert_eq!(all.length, StageLength::Steps(10));
    let groups = |stage: &Stage| -> Vec<(String, f64, bool)> {
        let of = |g: &crate::ParamGroupSpec| (g.name.clone(), g.learning_rate, g.muon.is_some());
        stage.groups.iter().map(of).collect()
    };
    let group = |name: &str, rate, muon| (name.to_string(), rate, muon);
    let words = [group("heads", 2e-3, false), group("words", 5e-4, false)];
    assert_eq!(groups(first)[0], group("layers", 1e-3, true));
    assert_eq!(groups(first)[1..], words);
    assert_eq!(
        groups(all),
        [group("layers", 1e-3, true), group("words", 1e-3, false)]
    );

    let sources = &all.data.as_ref().unwrap().sources;
    let names: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["world", "looks", "file", "last"]);
    let world = sources[0].synthetic.as_ref().unwrap();
    assert_eq!(
        (sources[0].weight, world.seed, world.grey),
        (2.0, 7, Some(0.5))
    );
    assert!(sources[2].annotations.is_none() && sources[2].synthetic.is_some());

    // Nothing of it is left in what lies beside a checkpoint.
    let text = recipe.to_toml().unwrap();
    assert!(
        !text.contains("extends") && !text.contains("every_stage"),
        "{text}"
    );
    assert_eq!(
        Recipe::read::<&str>(&text, "resolved", &[]).unwrap(),
        recipe
    );
}

#[test]
fn chains_and_overrides() {
    let more = "extends = \"../own.toml\"\nname = \"more\"\nevery_stage = { clip_norm = 0.5 }";
    let dir = folder(&[
        ("base.toml", BASE),
        ("own.toml", OWN),
        ("deep/more.toml", more),
    ]);
    let path = dir.path().join("deep/more.toml");
    let overrides = [
        "stages.first.groups.layers.learning_rate=0.5",
        "stages.1.batch_size=1",
        // Of keys that exclude each other the one given replaces the others.
        "model.preset=mini",
        "stages.all.length.epochs=2",
    ];
    let recipe = Recipe::open(&path, &overrides).unwrap();
    assert_eq!(recipe.name, "more");
    assert_eq!(recipe.stages[0].clip_norm, Some(0.5));
    assert_eq!(recipe.stages[0].groups[0].learning_rate, 0.5);
    assert_eq!(recipe.stages[1].batch_size, 1);
    assert_eq!(recipe.stages[1].length, StageLength::Epochs(2));
    assert_eq!(recipe.model.preset.as_deref(), Some("mini"));
    assert!(recipe.model.directory.is_none());
    // A text with the name of a file counts from the folder of that file.
    let read = Recipe::read(more, &path.display().to_string(), &overrides).unwrap();
    assert_eq!(read, recipe);
}

#[test]
fn messages_name_the_file_and_the_line() {
    let base = BASE
        .replace("clip_norm = 1.0", "clip_norm = -1.0")
        .replace("grey = 0.5", "gray = 0.5")
        .replace("learning_rate = 1e-3 }", "learning_rate = 0.0 }");
    let own = OWN.replace("rows = 4 ", "rows = \"4\" ");
    let dir = folder(&[("base.toml", &base), ("own.toml", &own)]);
    let found = problems(dir.path(), "own.toml", &["stages.all.batch_size=0"]);
    let expected = [
        "line 17: stages[1].data.sources[1].synthetic.rows: invalid type: string \"4\"",
        "DIR/base.toml, line 7: stages[0] `first`.clip_norm is -1",
        "DIR/base.toml, line 7: stages[1] `all`.clip_norm is -1",
        // The file itself gives the other stage's rate.
        "DIR/base.toml, line 10: stages[1] `all`.groups[1] `words`.learning_rate is 0",
        "DIR/base.toml, line 16: stages[1] `all`.batch_size is 0",
        "DIR/base.toml, line 19: stages[1].data.sources[0].synthetic.gray: unknown key `gray`, did you mean `grey`?",
    ];
    assert_told(&found, &expected);
}

#[test]
fn bases_that_cannot_be_read() {
    let dir = folder(&[
        ("a.toml", "\nextends = \"sub/b.toml\"\n"),
        ("sub/b.toml", "extends = \"../c.toml\""),
        ("c.toml", "extends = \"./a.toml\""),
        ("self.toml", "extends = \"self.toml\""),
        ("nowhere.toml", "\n\nextends = \"no.toml\""),
        ("number.toml", "extends = 3"),
        ("list.toml", "name = \"x\"\nevery_stage = [1]"),
        ("broken.toml", "extends = \"not.toml\""),
        ("not.toml", "name = ["),
    ]);
    let only = |name: &str| {
        let mut found = problems(dir.path(), name, &[]);
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    };
    let a = only("a.toml");
    let circle = "line 1: extends: goes in a circle: DIR/a.toml → DIR/sub/b.toml → \
                  DIR/sub/../c.toml → ";
    assert!(a.starts_with(circle), "{a}");
    let itself = only("self.toml");
    assert!(itself.contains("DIR/self.toml → DIR/self.toml"), "{itself}");
    let nowhere = only("nowhere.toml");
    assert!(
        nowhere.starts_with("line 3: extends: DIR/no.toml: "),
        "{nowhere}"
    );
    assert!(only("number.toml").contains("must be the path of a recipe"));
    assert!(only("list.toml").starts_with("line 2: every_stage: must be a table"));
    let broken = Recipe::open::<&str>(dir.path().join("broken.toml"), &[]).unwrap_err();
    let broken = broken.to_string();
    assert!(
        broken.contains("not.toml: TOML parse error at line 1"),
        "{broken}"
    );
}

#[test]
fn names_that_come_twice_are_still_mistakes() {
    let own = format!("{OWN}\n[[stages]]\nname = \"all\"\nlength = {{ steps = 1 }}\n");
    let dir = folder(&[("base.toml", BASE), ("own.toml", &own)]);
    let found = problems(dir.path(), "own.toml", &[]);
    assert!(found.iter().any(|p| p.contains("all")), "{found:#?}");
}
