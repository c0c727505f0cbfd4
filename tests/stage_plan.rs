//! The paper's stages name parameters that the real model has.

use burn::tensor::Device;
use tpo::llm::LoraConfig;
use tpo::prelude::*;
use tpo::train::StagePlan;

#[test]
fn every_stage_resolves_on_the_model() {
    let device = Device::flex().autodiff();
    let mut config = TpoConfig::nano(300);
    config.llm = config.llm.lora(LoraConfig::videochat_tpo());
    let model = config.init(&device).unwrap();
    let plan = StagePlan::videochat_tpo();
    plan.validate().unwrap();
    assert_eq!(plan.stages.len(), 6);
    let mut trainable = Vec::new();
    for stage in &plan.stages {
        let groups = stage.resolve(&model).unwrap();
        assert!(
            groups
                .group_of("llm.model.layers.0.self_attn.q_proj.lora.a")
                .is_some()
        );
        assert!(
            groups
                .group_of("llm.model.layers.0.self_attn.q_proj.weight")
                .is_none()
        );
        // SAM 2 is never trained.
        assert!(
            groups
                .trainable()
                .all(|p| !p.path.starts_with("heads.rest.rest.head.sam."))
        );
        trainable.push(groups.num_trainable());
    }
    // Stage 1 trains the adapters alone, stage 2 adds the head and its token, stage 3 the encoder
    // and the connector.
    let first = plan.stages[0].resolve(&model).unwrap();
    assert!(first.group_of("task_tokens.0").is_none());
    let last = plan.stages.last().unwrap().resolve(&model).unwrap();
    for path in [
        "task_tokens.0",
        "heads.head.decoder.output.weight",
        "task_tokens.2",
        "heads.rest.rest.head.track_embed.layers.0.weight",
        "heads.rest.rest.head.track_embed_decode2.layers.1.bias",
        "connector.project_up.weight",
        "vision.encoder.blocks.0.attn.qkv.weight",
    ] {
        assert!(last.group_of(path).is_some(), "{path}");
    }
    assert!(trainable[0] < trainable[1] && trainable[1] < *trainable.last().unwrap());
}
