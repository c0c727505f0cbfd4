//! A head of your own, from nothing to a chat: it counts the bright squares of a clip.
//!
//! `cargo run --release --example own_head`; docs/ADDING_A_HEAD.md walks through this file.

use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};
use tpo::core::head::HeadMetric;
use tpo::core::model::{GenerateEvent, GenerateOptions, PaddingSide, TokenBatch, TpoBatch};
use tpo::core::prompt::PromptIds;
use tpo::core::traits::VisualInput;
use tpo::llm::{CausalLm, LlmConfig};
use tpo::prelude::*;
use tpo::train::trainer::{GeneratedData, TrainBatch, Trainer, evaluate};
use tpo::train::{LossWeights, ParamGroupSpec, Stage, StageLength, TrainOptions};
use tpo::vision::{MlpConnector, MlpConnectorConfig, UmtConfig, VideoEncoder};
use tpo::weights::{Checkpoint, KeyRules, LoadOptions, SaveOptions, load_module, save_module};

/// One number from the task embedding.
#[derive(Module, Debug)]
struct CountHead {
    mlp: Mlp,
}

/// Its part of a configuration: `"heads": { "count": { "hidden": 32 } }`, or nothing.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct CountConfig {
    /// Width of the hidden layer; that of the language model if not given.
    hidden: Option<usize>,
}

impl TaskHead for CountHead {
    type Config = CountConfig;
    type Target = f32;
    type Output = Tensor<2>;
    type Prediction = f32;

    const NAME: &'static str = "count"; // called by <count_begin>, its place is <count>

    fn init(config: &CountConfig, sizes: &ModelSizes, device: &Device) -> tpo::core::Result<Self> {
        let hidden = config.hidden.unwrap_or(sizes.llm);
        let mlp = MlpConfig::new(vec![sizes.llm, hidden, 1]).init(device);
        Ok(Self { mlp })
    }
    fn target(&self, truth: &Truth) -> tpo::core::Result<f32> {
        truth.to_value() // "annotations": [{ "task": "count", "value": 3 }]
    }
    fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Tensor<2>> {
        Ok(self.mlp.forward(task)) // [n, d_llm] -> [n, 1]
    }
    fn loss(
        &self,
        out: &Tensor<2>,
        targets: &[f32],
        _: &HeadContext<'_>,
    ) -> tpo::core::Result<LossTerms> {
        let target = Tensor::<1>::from_floats(targets, &out.device()).unsqueeze_dim(1);
        Ok(LossTerms::new().with("l1", (out.clone() - target).abs().mean(), 1.0))
    }
    fn decode(&self, out: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Vec<f32>> {
        Ok(out.into_data().iter::<f32>().collect())
    }
    fn metrics(
        &self,
        out: Tensor<2>,
        targets: &[f32],
        context: &HeadContext<'_>,
    ) -> tpo::core::Result<Vec<HeadMetric>> {
        let counts = self.decode(out, context)?;
        let right = counts.iter().zip(targets).map(|(c, t)| c.round() == *t);
        Ok(HeadMetric::share_of("accuracy", right)
            .into_iter()
            .collect())
    }
}

heads! {
    /// The heads of the model; `region: RegionHead` could stand beside it.
    struct MyHeads { count: CountHead }
}

type Model = TpoModel<VideoEncoder, MlpConnector, CausalLm, MyHeads>;

/// The vocabulary; a word's id is its place.
const WORDS: &str = "<pad> <s> </s> how many squares ? I see <count_begin> <count>";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn model(device: &Device) -> Outcome<Model> {
    let mut tasks = TaskRegistry::default();
    tasks.register(TaskTokens {
        name: "count".into(),
        routing: TokenId::new("<count_begin>", 9),
        placeholder: TokenId::new("<count>", 10),
    })?;
    let vision = VideoEncoder::new(&UmtConfig::new(16, 8, 32, 3, 2).with_num_frames(2), device)?;
    let connector = MlpConnectorConfig::new(32, 32).init(device)?;
    let llm = LlmConfig::new(WORDS.split(' ').count(), 32, 64, 2, 2, 1, 16).init(device)?;
    let sizes = ModelSizes {
        llm: 32,
        vision: 32,
    };
    let heads = MyHeads::init(&HeadConfigs::default(), &sizes, device)?;
    Ok(TpoModel::new(vision, connector, llm, heads, tasks, device)?)
}

/// The `seed`-th clip `[2 frames, 3, 16, 16]` of four fields, and how many of them are bright.
fn clip(seed: u64) -> (Vec<f32>, f32) {
    let bright = |field: usize| tpo::core::gradient_checkpointing::mix(seed, field as u64) & 1 == 1;
    let field = |i: usize| i / 8 % 2 + i / 128 % 2 * 2;
    let pixel = |i: usize| if bright(field(i)) { 1.0 } else { -1.0 };
    let count = (0..4).filter(|f| bright(*f)).count() as f32;
    ((0..2 * 3 * 256).map(pixel).collect(), count)
}

fn question() -> PromptIds {
    let mut prompt = PromptIds::default();
    prompt.push_text(&[1]);
    prompt.push_visual(8); // 2 frames of 2 x 2 patches
    prompt.push_text(&[3, 4, 5, 6]);
    prompt
}

/// `rows` questions about the clips from `first` on, with the answer "I see <count>".
fn batch(first: u64, rows: u64, device: &Device) -> TrainBatch {
    let mut prompt = question();
    let start = prompt.len();
    prompt.push_text(&[7, 8, 9, 10, 2]);
    let learnt = prompt.ids[start..].iter().map(|id| i64::from(*id));
    let labels: Vec<i64> = vec![-100; start].into_iter().chain(learnt).collect();
    let (pixels, counts): (Vec<_>, Vec<_>) = (first..first + rows).map(clip).unzip();
    let n = rows as usize;
    let tokens = TokenBatch::pad(&vec![prompt; n], PaddingSide::Right, 0);
    let mut batch = TpoBatch::new(tokens, device);
    let pixels = TensorData::new(pixels.concat(), [n, 2, 3, 16, 16]);
    batch.visuals = VisualInput::clips(Tensor::from_data(pixels, device));
    batch.labels = Some(vec![labels; n]);
    batch.targets = TargetSet::new().with("count", counts);
    let named = |i| Sample::named(format!("clip-{i}"));
    let samples = (first..first + rows).map(named).collect();
    TrainBatch { batch, samples }
}

/// What the model answers about a clip: the words, and the head's number.
fn chat(model: &Model, seed: u64, device: &Device) -> Outcome<(String, f32)> {
    let frames = Tensor::<5>::from_data(TensorData::new(clip(seed).0, [1, 2, 3, 16, 16]), device);
    let tokens = TokenBatch::pad(&[question()], PaddingSide::Left, 0);
    let visual = model.encode_visuals(VisualInput::clips(frames), None)?;
    let prompt = model.embed(&tokens, visual, &[], device)?;
    let options = GenerateOptions {
        call_order: CallOrder::AsTrained,
        ..GenerateOptions::default()
    };
    let greedy = |logits: &[f32], _: &[u32]| {
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        Ok(best.unwrap_or(2) as u32)
    };
    let (mut words, mut count) = (Vec::new(), f32::NAN);
    for event in model.generate(prompt, Sample::default(), options, greedy)? {
        match event? {
            GenerateEvent::Token(id) => words.extend(WORDS.split(' ').nth(id as usize)),
            GenerateEvent::Task { output, .. } => count = output.get().copied().unwrap_or(f32::NAN),
            GenerateEvent::NoHead { .. } => {}
        }
    }
    Ok((words.join(" "), count))
}

fn main() -> Outcome<()> {
    let device = Device::flex();
    device.seed(1);
    let everything = ParamGroupSpec::new("all", ["**"], 3e-3);
    let mut stage = Stage::new("count", StageLength::Steps(400), vec![everything]);
    stage.clip_norm = Some(1.0);
    stage.schedule.warmup_ratio = 0.1;
    let mut data = GeneratedData::new(50, |i, device: &Device| Ok(batch(i * 16, 16, device)));
    let mut trainer = Trainer::new(model(&device)?, stage, &data, TrainOptions::new(&device))?;
    while trainer.step_count() < trainer.total_steps() {
        let report = trainer.step(&mut data)?;
        if report.step % 100 == 0 {
            let l1 = report.terms[1].value;
            println!(
                "step {}: loss {:.3}, count/l1 {l1:.3}",
                report.step, report.loss
            );
        }
    }
    let trained = trainer.into_model()?;
    // What a stage's evaluation logs as eval/..: the true answers as input.
    let mut held_out = GeneratedData::new(4, |i, device: &Device| {
        Ok(batch(1_000_000 + i * 16, 16, device))
    });
    let weights = LossWeights::default();
    let at = ("count", 400);
    let found = evaluate(&trained, &mut held_out, 4, &weights, &device, at)?;
    for name in ["lm/token_accuracy", "count/accuracy"] {
        println!("{name}: {:.3}", found[name]);
    }

    let dir = std::env::temp_dir().join(format!("own_head-{}", std::process::id()));
    let keys = KeyRules::new();
    save_module(&trained, &keys, &dir, &SaveOptions::default())?;
    let checkpoint = Checkpoint::open(&dir)?;
    let fresh = model(&device)?;
    let (again, _) = load_module(fresh, &checkpoint, &keys, &LoadOptions::default())?;
    std::fs::remove_dir_all(&dir)?;
    let (words, count) = chat(&again, 7, &device)?;
    let truth = clip(7).1;
    println!("how many squares ? -> {words} = {count:.2} (there are {truth})");
    Ok(())
}
