//! A recipe that starts from a checkpoint and draws some parts anew.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use serde_json::{Value, json};
use tpo::VideoChatTpo;
use tpo::export::{ExportOptions, export_model};
use tpo::train::recipe::{Recipe, SavedWeights};
use tpo::training::{self, RecipeModel, RunOptions, run_recipe};
use tpo::weights::PathStack;

const RECIPE: &str = r#"
name = "base"
seed = 3
[model]
preset = "nano"
[checkpoints]
weights = "all"
[logging]
curves = false
[[stages]]
name = "all"
length = { steps = 1 }
batch_size = 1
data = { sources = [{ name = "w", synthetic = { tasks = ["chat"], rows = 2, seed = 1 } }] }
groups = [{ name = "llm", patterns = ["llm.**"], learning_rate = 1e-2 }]
"#;

fn recipe_model(recipe: &Recipe, device: &Device) -> tpo::Result<RecipeModel> {
    training::recipe_model(recipe, device)
}

/// Parameters by path.
fn values(model: &VideoChatTpo) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Read {
        path: PathStack,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data().convert::<f32>();
            self.found
                .insert(self.path.path(), data.try_to_vec().unwrap());
        }
    }
    let mut read = Read::default();
    model.visit(&mut read);
    read.found
}

/// A safetensors file without the tensors whose names begin so.
fn without(from: &Path, to: &Path, names: &str) {
    let bytes = std::fs::read(from).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(length);
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap();
    let (mut kept, mut values) = (BTreeMap::new(), Vec::new());
    for (name, mut entry) in header {
        if name.starts_with(names) || name == "__metadata__" {
            continue;
        }
        let [begin, end] = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize);
        entry["data_offsets"] = json!([values.len(), values.len() + end - begin]);
        values.extend_from_slice(&data[begin..end]);
        kept.insert(name, entry);
    }
    let header = serde_json::to_vec(&kept).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(to, [&length[..], &header, &values].concat()).unwrap();
}

#[test]
fn fresh_parts_are_those_of_the_seed() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let base = Recipe::read::<&str>(RECIPE, "base", &[]).unwrap();
    let run = dir.path().join("base");
    let ended = run_recipe(&base, &RunOptions::new(&run, &device)).unwrap();
    let trained = values(&ended.model.model);

    let mut next = base.clone();
    next.seed = 9;
    let drawn = values(&recipe_model(&next, &device).unwrap().model);
    next.model.start = Some(run);
    next.model.fresh = vec!["heads.region.**".into(), "task_tokens.region".into()];
    let found = values(&recipe_model(&next, &device).unwrap().model);

    assert_eq!(found.len(), trained.len());
    let mut fresh = 0;
    for (path, values) in &found {
        let anew = path.starts_with("heads.region.") || path == "task_tokens.region";
        fresh += usize::from(anew);
        let from = if anew { &drawn } else { &trained };
        assert_eq!(values, &from[path], "{path}");
    }
    assert!(fresh > 4, "{fresh}");
    assert_ne!(trained["task_tokens.region"], drawn["task_tokens.region"]);

    // The same from an exported model, whose halves become whole again.
    let exported = dir.path().join("exported");
    let (model, config) = (ended.model.model, &ended.model.config);
    let half = ExportOptions {
        dtype: Some(FloatDType::F16),
        ..ExportOptions::default()
    };
    export_model(
        model,
        config,
        &ended.model.tokenizer_files,
        &exported,
        &half,
    )
    .unwrap();
    let mut over = next.clone();
    over.model.start = Some(exported);
    let mut lacking = over.clone();
    lacking.checkpoints.weights = SavedWeights::Trained;
    let problems = recipe_model(&lacking, &device).unwrap_err().to_string();
    assert!(problems.contains("checkpoints.weights"), "{problems}");
    let over = recipe_model(&over, &device).unwrap();
    assert!(over.start.is_none());
    let halves = values(&over.model);
    for (path, values) in &found {
        let anew = path.starts_with("heads.region.") || path == "task_tokens.region";
        for (a, b) in values.iter().zip(&halves[path]) {
            let bound = if anew { 0.0 } else { 1e-3 * a.abs() + 1e-6 };
            assert!((a - b).abs() <= bound, "{path}: {a} and {b}");
        }
    }

    // A start that lacks weights is refused with their names; what is fresh may be lacking.
    let lacking = dir.path().join("lacking");
    std::fs::create_dir(&lacking).unwrap();
    for name in ["tpo.json", "tokenizer.json"] {
        std::fs::copy(dir.path().join("exported").join(name), lacking.join(name)).unwrap();
    }
    let (from, to) = (
        dir.path().join("exported"),
        lacking.join("model.safetensors"),
    );
    without(&from.join("model.safetensors"), &to, "loc_decoder.");
    let mut start = base.clone();
    start.model.start = Some(lacking);
    let error = recipe_model(&start, &device).unwrap_err().to_string();
    assert!(
        error.contains("loc_decoder") && error.contains("model.fresh"),
        "{error}"
    );
    start.model.fresh = vec!["heads.region.decoder.**".into()];
    recipe_model(&start, &device).unwrap();

    next.model.fresh = vec!["head:depth.**".into(), "!llm.**".into()];
    let problems = recipe_model(&next, &device).unwrap_err().to_string();
    assert!(
        problems.contains("head:depth.**") && problems.contains("!llm.**"),
        "{problems}"
    );
    next.model.start = None;
    let problems = next.validate().unwrap_err().to_string();
    assert!(problems.contains("model.fresh"), "{problems}");
}
