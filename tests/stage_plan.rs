//! The paper's stages: `recipes/videochat_tpo` are Table 17, and name parameters that the model has.

use std::path::Path;

use burn::tensor::Device;
use tpo::llm::config::videochat_lora;
use tpo::prelude::*;
use tpo::train::{Decay, LossWeights, Precision, Recipe, Stage, StageLength};

fn stages() -> Vec<Stage> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/videochat_tpo");
    let open = |file: &str| Recipe::open::<&str>(folder.join(file), &[]);
    let files = ["stage1.toml", "stage2.toml", "stage3.toml"];
    let recipes = files.map(|file| open(file).unwrap_or_else(|e| panic!("{e}")));
    recipes.into_iter().flat_map(|r| r.stages).collect()
}

/// Parts of the table and where they are. Of the temporal head its `model` learns: what else the
/// checkpoint has of it are constants and leftovers. SAM 2 and the base LLM are in no group.
const PARTS: [(&str, &[&str]); 9] = [
    ("vision", &["vision.**"]),
    ("connector", &["connector.**"]),
    ("temporal_head", &["heads.temporal.model.**"]),
    ("region_head", &["heads.region.**"]),
    (
        "mask_adapter",
        &[
            "heads.mask.track_embed.**",
            "heads.mask.track_embed_decode2.**",
        ],
    ),
    ("temporal_token", &["task_tokens.temporal"]),
    ("region_token", &["task_tokens.region"]),
    ("mask_token", &["task_tokens.mask"]),
    ("lora", &["llm.**.lora.*"]),
];

/// Columns: run, total batch, epochs, then the rates of the parts; 0 is frozen.
///
/// The triples of stage 2 are read as temporal, mask, region, as the prose has them. Where the prose
/// has other rates or batches than the table, this is the table.
const TABLE_17: [(&str, usize, u64, [f64; 9]); 6] = [
    (
        "task-assignment",
        128,
        1,
        [0., 0., 0., 0., 0., 0., 0., 0., 2e-5],
    ),
    (
        "region-head",
        128,
        1,
        [0., 0., 0., 1e-4, 0., 0., 1e-4, 0., 2e-5],
    ),
    (
        "temporal-head",
        64,
        25,
        [0., 0., 1e-4, 0., 0., 2e-4, 0., 0., 2e-5],
    ),
    (
        "mask-adapter",
        128,
        3,
        [0., 0., 0., 0., 1e-4, 0., 0., 1e-4, 2e-5],
    ),
    ("tasks", 256, 1, [2e-5; 9]),
    ("tasks-and-conversation", 256, 3, [2e-5; 9]),
];

#[test]
fn the_recipes_are_table_17() {
    let stages = stages();
    assert_eq!(stages.len(), TABLE_17.len());
    for (stage, (name, batch, epochs, rates)) in stages.iter().zip(TABLE_17) {
        assert_eq!(stage.name, name);
        assert_eq!(stage.total_batch(), batch, "{name}");
        assert_eq!(stage.length, StageLength::Epochs(epochs), "{name}");
        assert_eq!(stage.weight_decay, 0.02, "{name}");
        assert_eq!(stage.precision, Precision::Bf16, "{name}");
        let schedule = &stage.schedule;
        assert_eq!(
            (schedule.decay, schedule.warmup_ratio),
            (Decay::Cosine, 0.2)
        );
        // Published training arguments.
        assert_eq!((schedule.floor, stage.clip_norm), (0.05, Some(1.0)));
        let adamw = &stage.adamw;
        assert_eq!(
            (adamw.beta_1, adamw.beta_2, adamw.epsilon),
            (0.9, 0.999, 1e-5)
        );
        assert_eq!(stage.batch_size, 2);

        for ((part, patterns), rate) in PARTS.iter().zip(rates) {
            let group = stage.group(part);
            assert_eq!(
                group.map_or(0.0, |g| g.learning_rate),
                rate,
                "{name}, {part}"
            );
            if let Some(group) = group {
                assert_eq!(group.patterns, *patterns, "{name}, {part}");
                assert!(group.weight_decay.is_none() && group.muon.is_none());
            }
        }
        let learn = rates.iter().filter(|r| **r != 0.0).count();
        assert_eq!(stage.groups.len(), learn, "{name}");

        // Equation 1 has no factors. Stage 1 minimises the language model's loss alone.
        let heads = if name == "task-assignment" { 0.0 } else { 1.0 };
        let expected = LossWeights {
            other_heads: heads,
            ..LossWeights::default()
        };
        assert_eq!(stage.loss, expected, "{name}");
    }
    let sources = |s: &Stage| s.data.as_ref().unwrap().sources.len();
    let sources: Vec<usize> = stages.iter().map(sources).collect();
    assert_eq!(sources, [7, 5, 6, 2, 10, 14]);
}

#[test]
fn every_stage_resolves_on_the_model() {
    let device = Device::flex().autodiff();
    let mut config = TpoConfig::nano(300);
    config.llm = config.llm.lora(videochat_lora());
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    let stages = stages();
    let groups: Vec<_> = stages
        .iter()
        .map(|stage| stage.resolve(&model).unwrap())
        .collect();
    for groups in &groups {
        let layer = "llm.model.layers.0.self_attn.q_proj";
        assert!(groups.group_of(&format!("{layer}.lora.a")).is_some());
        assert!(groups.group_of(&format!("{layer}.weight")).is_none());
        // SAM 2 is never trained.
        assert!(
            groups
                .trainable()
                .all(|p| !p.path.starts_with("heads.mask.sam."))
        );
        assert_eq!(groups.groups[0].weight_decay, Some(0.02));
    }
    // Stage 1 trains the adapters alone, stage 2 adds the head and its token, stage 3 the encoder
    // and the connector.
    assert!(groups[0].group_of("task_tokens.region").is_none());
    for path in [
        "task_tokens.region",
        "heads.region.decoder.output.weight",
        "task_tokens.mask",
        "heads.mask.track_embed.layers.0.weight",
        "heads.mask.track_embed_decode2.layers.1.bias",
        "connector.project_up.weight",
        "vision.encoder.blocks.0.attn.qkv.weight",
    ] {
        assert!(groups[5].group_of(path).is_some(), "{path}");
    }
    let trainable: Vec<usize> = groups.iter().map(|g| g.num_trainable()).collect();
    assert!(trainable[0] < trainable[1] && trainable[1] < trainable[5]);
}
