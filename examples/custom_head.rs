//! A head of one's own, from nothing to a chat: `cargo run --release --example custom_head`.
//!
//! It counts the bright squares of a clip. docs/ADDING_A_HEAD.md walks through this file.

use burn::tensor::TensorData;
use tpo::core::head::{HeadMetric, SampleContext};
use tpo::core::model::{GenerateEvent, GenerateOptions, PaddingSide, TokenBatch, TpoBatch};
use tpo::core::prompt::PromptIds;
use tpo::llm::{CausalLm, LlmConfig};
use tpo::prelude::*;
use tpo::train::trainer::{GeneratedData, SampleInfo, TrainBatch, Trainer, evaluate};
use tpo::train::{LossWeights, ParamGroupSpec, Stage, StageLength, TrainOptions};
use tpo::vision::{MlpConnector, MlpConnectorConfig, UmtConfig, VideoEncoder};
use tpo::weights::{Checkpoint, KeyRules, LoadOptions, SaveOptions, load_module, save_module};

/// One number from the task embedding.
#[derive(Module, Debug)]
struct CountHead {
    mlp: Mlp,
}

impl TaskHead for CountHead {
    type Target = f32;
    type Output = Tensor<2>;
    type Prediction = f32;

    fn spec(&self) -> HeadSpec {
        HeadSpec::new("count", "<count_begin>", "<count>")
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

type Model = TpoModel<
    VideoEncoder,
    MlpConnector,
    CausalLm,
    tpo::core::head::HeadNode<CountHead, tpo::core::head::NoHeads>,
>;

const WORDS: [&str; 11] = [
    "<pad>",
    "<s>",
    "</s>",
    "how",
    "many",
    "squares",
    "?",
    "I",
    "see",
    "<count_begin>",
    "<count>",
];

fn model(device: &Device) -> Result<Model, Box<dyn std::error::Error>> {
    let mut tasks = TaskRegistry::default();
    let (routing, placeholder) = (
        TokenId::new("<count_begin>", 9),
        TokenId::new("<count>", 10),
    );
    tasks.register(TaskTokens {
        name: "count".into(),
        routing,
        placeholder,
    })?;
    let head = CountHead {
        mlp: MlpConfig::new(vec![32, 32, 1]).init(device),
    };
    let vision = VideoEncoder::new(&UmtConfig::new(16, 8, 32, 3, 2).with_num_frames(2), device)?;
    let connector = MlpConnectorConfig::new(32, 32).init(device)?;
    let llm = LlmConfig::new(WORDS.len(), 32, 64, 2, 2, 1, 16).init(device)?;
    Ok(TpoModel::new(
        vision,
        connector,
        llm,
        heads![head],
        tasks,
        device,
    )?)
}

/// The `seed`-th clip `[2 frames, 3, 16, 16]` of four fields, and how many of them are bright.
fn clip(seed: u64) -> (Vec<f32>, f32) {
    let bright = |field: usize| tpo::core::recompute::mix(seed, field as u64) & 1 == 1;
    let pixel = |i: usize| {
        if bright(i / 8 % 2 + i / 128 % 2 * 2) {
            1.0
        } else {
            -1.0
        }
    };
    (
        (0..2 * 3 * 256).map(pixel).collect(),
        (0..4).filter(|f| bright(*f)).count() as f32,
    )
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
    let label = |i: usize| {
        if i < start {
            -100
        } else {
            i64::from(prompt.ids[i])
        }
    };
    let labels: Vec<i64> = (0..prompt.len()).map(label).collect();
    let (pixels, counts): (Vec<_>, Vec<_>) = (first..first + rows).map(clip).unzip();
    let n = rows as usize;
    let mut batch = TpoBatch::new(
        TokenBatch::pad(&vec![prompt; n], PaddingSide::Right, 0),
        device,
    );
    batch.frames = Some(Tensor::from_data(
        TensorData::new(pixels.concat(), [n, 2, 3, 16, 16]),
        device,
    ));
    batch.labels = Some(vec![labels; n]);
    batch.targets = TargetSet::new().with("count", counts);
    let samples = (first..first + rows)
        .map(|i| SampleInfo::named(format!("clip-{i}")))
        .collect();
    TrainBatch { batch, samples }
}

/// What the model answers about a clip: the words, and the head's number.
fn chat(
    model: &Model,
    seed: u64,
    device: &Device,
) -> Result<(String, f32), Box<dyn std::error::Error>> {
    let frames = Tensor::<5>::from_data(TensorData::new(clip(seed).0, [1, 2, 3, 16, 16]), device);
    let tokens = TokenBatch::pad(&[question()], PaddingSide::Left, 0);
    let prompt = model.embed(
        &tokens,
        Some(model.encode_visual(frames, None)?),
        &[],
        device,
    )?;
    let options = GenerateOptions {
        call_order: CallOrder::AsTrained,
        ..GenerateOptions::default()
    };
    let greedy = |logits: &[f32], _: &[u32]| {
        Ok((0..logits.len())
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
            .unwrap_or(2) as u32)
    };
    let (mut words, mut count) = (Vec::new(), f32::NAN);
    for event in model.generate(prompt, SampleContext::default(), options, greedy)? {
        match event? {
            GenerateEvent::Token(id) => words.push(WORDS[id as usize]),
            GenerateEvent::Task { output, .. } => count = output.get().copied().unwrap_or(f32::NAN),
            GenerateEvent::NoHead { .. } => {}
        }
    }
    Ok((words.join(" "), count))
}

/// Mean absolute error of what it says about clips that training did not see.
fn mean_error(model: &Model, device: &Device) -> Result<f32, Box<dyn std::error::Error>> {
    let errors =
        (0..50).map(|i| Ok((chat(model, 1_000_000 + i, device)?.1 - clip(1_000_000 + i).1).abs()));
    Ok(errors.sum::<Result<f32, Box<dyn std::error::Error>>>()? / 50.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    device.seed(1);
    let mut stage = Stage::new(
        "count",
        StageLength::Steps(400),
        vec![ParamGroupSpec::new("all", ["**"], 3e-3)],
    );
    stage.clip_norm = Some(1.0);
    stage.schedule.warmup_ratio = 0.1;
    let mut data = GeneratedData::new(50, |i, device: &Device| Ok(batch(i * 16, 16, device)));
    let mut trainer = Trainer::new(model(&device)?, stage, &data, TrainOptions::new(&device))?;
    while trainer.step_count() < trainer.total_steps() {
        let report = trainer.step(&mut data)?;
        if report.step % 100 == 0 {
            println!(
                "step {}: loss {:.3}, count/l1 {:.3}",
                report.step, report.loss, report.terms[1].value
            );
        }
    }
    let trained = trainer.into_model()?;
    println!(
        "mean error on new clips: {:.3}",
        mean_error(&trained, &device)?
    );
    // What a stage's evaluation logs as eval/..: the true answers as input.
    let mut held_out = GeneratedData::new(4, |i, device: &Device| {
        Ok(batch(1_000_000 + i * 16, 16, device))
    });
    let weights = LossWeights::default();
    let found = evaluate(
        &trained,
        &mut held_out,
        4,
        &weights,
        &device,
        ("count", 400),
    )?;
    for name in ["lm/token_accuracy", "count/accuracy"] {
        println!("{name}: {:.3}", found[name]);
    }

    let dir = std::env::temp_dir().join(format!("custom_head-{}", std::process::id()));
    save_module(&trained, &KeyRules::new(), &dir, &SaveOptions::default())?;
    let (again, _) = load_module(
        model(&device)?,
        &Checkpoint::open(&dir)?,
        &KeyRules::new(),
        &LoadOptions::default(),
    )?;
    std::fs::remove_dir_all(&dir)?;
    let (words, count) = chat(&again, 7, &device)?;
    println!(
        "how many squares ? -> {words} = {count:.2} (there are {})",
        clip(7).1
    );
    Ok(())
}
