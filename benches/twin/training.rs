//! Our side of the training rows.

#[path = "../../tests/common/generated.rs"]
mod generated;

use burn::module::Param;
use burn::tensor::{Device, Distribution, Tensor};
use tpo::TpoConfig;
use tpo::core::geometry::BoxXyxy;
use tpo::core::head::{Sample, TargetSet};
use tpo::core::model::{TokenBatch, TpoBatch};
use tpo::core::prompt::PromptIds;
use tpo::core::traits::{LanguageModel, VisualInput};
use tpo::llm::{LlmConfig, LoraConfig, config::LORA_TARGETS};
use tpo::model::{BuiltInHeads, ConnectorConfig};
use tpo::train::trainer::{TrainBatch, prepare};
use tpo::train::{
    AdamW, GradientSet, Optimizer, ParamGroupSpec, Precision, Recipe, TrainOptions, Trainer,
    resolve,
};

use crate::Outcome;
use crate::rows::{LORA_LAYERS, LORA_TOKENS, TPO_ROWS};

/// One step of a row.
pub type Step = Box<dyn FnMut() -> Outcome<()>>;

fn adapters(dropout: f64, targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|t| t.to_string()).collect();
    let mut lora = LoraConfig::new(16, 32.0, targets);
    lora.dropout = dropout;
    lora
}

fn group(patterns: &[&str]) -> ParamGroupSpec {
    let mut group = ParamGroupSpec::new("all", patterns.iter().copied(), 2e-5);
    group.weight_decay = Some(0.02);
    group
}

/// Forward, backward, clipping and AdamW on the adapters of Mistral layers.
pub fn lora_step(device: &Device, checkpointing: bool) -> Outcome<Step> {
    let config = LlmConfig {
        num_hidden_layers: LORA_LAYERS,
        vocab_size: 64,
        ..LlmConfig::mistral_7b()
    };
    let targets: Vec<&str> = LORA_TARGETS
        .into_iter()
        .filter(|t| *t != "lm_head")
        .collect();
    let lm = config.lora(adapters(0.0, &targets)).init(device)?;
    let groups = resolve(&lm, &[group(&["**.lora.*"])])?;
    let mut optimizer = Optimizer::new(&groups, AdamW::default(), Some(1.0));
    let lm = prepare(lm, &groups, Precision::F32, device, &mut optimizer)?;
    let mut lm = Some(lm);
    let x: Tensor<3> = Tensor::random([1, LORA_TOKENS, 4096], Distribution::Default, device);
    Ok(Box::new(move || {
        let model = lm.take().ok_or("an earlier step failed")?;
        let mut grads = GradientSet::new();
        if checkpointing {
            let mut tape = tpo::core::gradient_checkpointing::Tape::new(None);
            let hidden = model.hidden_checkpointed(x.clone().autodiff(), None, &mut tape)?;
            tape.backward(&hidden.square().mean(), |part| grads.add(&model, part));
        } else {
            let hidden = model.hidden(x.clone().autodiff(), None)?;
            grads.add(&model, &hidden.square().mean().backward());
        }
        lm = Some(optimizer.step(model, grads, 1.0)?.0);
        Ok(())
    }))
}

/// Clipping and AdamW on all adapters of Mistral-7B.
pub fn adamw_step(device: &Device) -> Outcome<Step> {
    let (d, kv, ff, rank) = (4096, 1024, 14336, 16);
    let mut module: Vec<Param<Tensor<2>>> = Vec::new();
    for _ in 0..32 {
        for (a, b) in [(d, d), (d, kv), (d, kv), (d, d), (d, ff), (d, ff), (ff, d)] {
            for shape in [[rank, a], [b, rank]] {
                let value = Tensor::random(shape, Distribution::Default, device);
                module.push(Param::from_tensor(value));
            }
        }
    }
    let groups = resolve(&module, &[group(&["**"])])?;
    let mut optimizer = Optimizer::new(&groups, AdamW::default(), Some(1.0));
    let mut module = Some(prepare(
        module,
        &groups,
        Precision::F32,
        device,
        &mut optimizer,
    )?);
    let mut grads = GradientSet::new();
    for param in groups.trainable() {
        let n = param.num_values();
        grads.insert(
            param.path.clone(),
            Tensor::random([n], Distribution::Default, device),
        );
    }
    Ok(Box::new(move || {
        let taken = module.take().ok_or("an earlier step failed")?;
        module = Some(optimizer.step(taken, grads.clone(), 1.0)?.0);
        Ok(())
    }))
}

const TPO_RECIPE: &str = r#"
name = "bench"
model = { preset = "nano" }

[[stages]]
name = "bench"
length = { steps = 1000000 }
batch_size = 1
weight_decay = 0.02
clip_norm = 1.0
groups = [{ name = "all", learning_rate = 2e-5, patterns = [
    "vision.**", "connector.**", "llm.**.lora.*", "heads.region.**", "task_tokens.region",
] }]
"#;

/// A whole step of the mini model through the trainer, everything but the base LLM learning.
pub fn tpo_step(device: &Device) -> Outcome<Step> {
    const VOCAB: usize = 300;
    let mut config = TpoConfig::nano(VOCAB);
    config.llm = config.llm.lora(adapters(0.0, &LORA_TARGETS));
    if let ConnectorConfig::QFormer(connector) = &mut config.connector {
        connector.qformer.hidden_dropout_prob = 0.0;
        connector.qformer.attention_probs_dropout_prob = 0.0;
        connector.qformer.drop_path_rate = 0.0;
    }
    let model = config.init::<BuiltInHeads>(device)?;
    let mut stage = Recipe::read::<&str>(TPO_RECIPE, "bench", &[])?
        .stages
        .remove(0);
    stage.batch_size = TPO_ROWS;
    let shape = [TPO_ROWS, 8, 3, 64, 64];
    let frames: Tensor<5> = Tensor::random(shape, Distribution::Default, device);
    let begin = (VOCAB - 7) as u32;
    let mut prompt = PromptIds::default();
    prompt.push_text(&[1]);
    prompt.push_visual(24);
    prompt.push_text(&(3..16).collect::<Vec<u32>>());
    prompt.push_text(&[begin, begin + 3]);
    let mut label = vec![-100; prompt.len()];
    let answer = prompt.len() - 8;
    for (label, id) in label[answer..].iter_mut().zip(&prompt.ids[answer..]) {
        *label = i64::from(*id);
    }
    let prompts = vec![prompt; TPO_ROWS];
    let mut data = generated::GeneratedData::new(1, move |_, device: &Device| {
        let mut batch = TpoBatch::new(TokenBatch::pad(&prompts, 0), device);
        batch.visuals = VisualInput::clips(frames.clone());
        batch.labels = Some(vec![label.clone(); TPO_ROWS]);
        let target = BoxXyxy::from([0.2, 0.3, 0.6, 0.7]);
        batch.targets = TargetSet::new().with("region", vec![target; TPO_ROWS]);
        let samples = vec![Sample::named("bench"); TPO_ROWS];
        Ok(TrainBatch { batch, samples })
    });
    let mut trainer = Trainer::new(model, stage, &data, TrainOptions::new(device))?;
    Ok(Box::new(move || {
        trainer.step(&mut data)?;
        Ok(())
    }))
}
