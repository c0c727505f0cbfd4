//! Your own head, added from outside the tpo crates: called by its routing token, trained
//! through its task token, with gradients into the language model.

use std::sync::Mutex;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tpo::core::CoreError;
use tpo::core::model::{GenerateEvent, GenerateOptions, GenerateRow};
use tpo::core::prompt::PromptIds;
use tpo::llm::{CausalLm, LlmConfig};
use tpo::model::videochat_tasks;
use tpo::prelude::*;
use tpo::vision::{QFormerConnector, QFormerConnectorConfig, UmtConfig, VideoEncoder};

/// Counts something, except in a sample that is uncountable: one number from the task embedding.
#[derive(Module, Debug)]
struct CountHead {
    mlp: Mlp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountConfig {
    #[serde(default = "hidden")]
    hidden: usize,
}

fn hidden() -> usize {
    16
}

impl TaskHead for CountHead {
    type Config = CountConfig;
    type Target = f32;
    type Output = Tensor<2>;
    type Prediction = f32;

    const NAME: &'static str = "count";

    fn init(config: &CountConfig, sizes: &ModelSizes, device: &Device) -> tpo::core::Result<Self> {
        let mlp = MlpConfig::new(vec![sizes.llm, config.hidden, 1]).init(device);
        Ok(Self { mlp })
    }

    fn target(&self, truth: &Truth) -> tpo::core::Result<f32> {
        truth.to_value()
    }

    fn forward(&self, task: Tensor<2>, context: &HeadContext<'_>) -> tpo::core::Result<Tensor<2>> {
        if context.sample(0).is_some_and(|s| s.id == "uncountable") {
            return Err(CoreError::Prompt {
                why: "it cannot be counted".into(),
            });
        }
        Ok(self.mlp.forward(task))
    }

    fn loss(
        &self,
        output: &Tensor<2>,
        targets: &[f32],
        _: &HeadContext<'_>,
    ) -> tpo::core::Result<LossTerms> {
        let target = Tensor::<1>::from_floats(targets, &output.device()).unsqueeze_dim(1);
        let l1 = (output.clone() - target).abs().mean();
        Ok(LossTerms::new().with("l1", l1, 0.5))
    }

    fn decode(&self, output: Tensor<2>, _: &HeadContext<'_>) -> tpo::core::Result<Vec<f32>> {
        Ok(output.into_data().iter::<f32>().collect())
    }
}

const VOCAB: usize = 60;

tpo::core::heads! {
    struct MyHeads {
        region: RegionHead,
        count: CountHead,
    }
}

type Model = TpoModel<VideoEncoder, QFormerConnector, CausalLm, MyHeads>;

fn model(device: &Device) -> Model {
    let mut tasks = videochat_tasks(50);
    tasks
        .register(TaskTokens {
            name: "count".into(),
            routing: TokenId::new("<count_begin>", 57),
            placeholder: TokenId::new("<count>", 58),
        })
        .unwrap();
    let llm = LlmConfig::mini(VOCAB);
    let vision = UmtConfig::mini();
    let sizes = ModelSizes {
        llm: llm.hidden_size,
        vision: vision.encoder_embed_dim,
    };
    let region = RegionHeadConfig::for_llm(sizes.llm);
    let configs = HeadConfigs::default().with::<RegionHead>(&region).unwrap();
    TpoModel::new(
        VideoEncoder::new(&vision, device).unwrap(),
        QFormerConnectorConfig::mini(sizes.llm)
            .init(device)
            .unwrap(),
        llm.init(device).unwrap(),
        MyHeads::init(&configs, &sizes, device).unwrap(),
        tasks,
        device,
    )
    .unwrap()
}

#[test]
fn it_trains_through_its_token() {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let row = |ids: &[u32]| {
        let mut p = PromptIds::default();
        p.push_text(ids);
        p
    };
    // Two samples, three count tokens, and a region token that none of them can see.
    let rows = [row(&[1, 57, 58, 3, 57, 58]), row(&[1, 57, 58, 50, 53])];
    let tokens = TokenBatch::pad(&rows, 0);
    let mut batch = TpoBatch::new(tokens, &device);
    batch.targets = TargetSet::new().with("count", vec![2.0f32, 3.0, 5.0]);
    let out = model.forward(batch, &[]).unwrap();
    assert_eq!(
        out.head_losses.len(),
        1,
        "only the head with targets has a loss"
    );
    let (name, terms) = &out.head_losses[0];
    assert_eq!(name, "count");
    let total: f32 = terms.total().unwrap().into_scalar();
    let l1: f32 = terms.terms()[0].value.clone().into_scalar();
    assert!((total - 0.5 * l1).abs() < 1e-6);

    let grads = out.total().unwrap().backward();
    let some = |t: Option<Tensor<3>>| t.is_some_and(|g| g.abs().sum().into_scalar::<f32>() > 0.0);
    assert!(
        some(model.task_tokens.get("count").unwrap().val().grad(&grads)),
        "the count token learns"
    );
    assert!(
        !some(model.task_tokens.get("region").unwrap().val().grad(&grads)),
        "the region token does not"
    );
    let q = model.llm.model.layers[0].self_attn.q_proj.weight.val();
    assert!(q.grad(&grads).is_some(), "the language model learns");
}

#[test]
fn wrong_targets_are_errors() {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let mut p = PromptIds::default();
    p.push_text(&[1, 57, 58]);
    let tokens = TokenBatch::pad(&[p], 0);
    for targets in [
        TargetSet::new().with("count", vec![1.0f32, 2.0]),
        TargetSet::new().with("count", vec![1i32]),
    ] {
        let mut batch = TpoBatch::new(tokens.clone(), &device);
        batch.targets = targets;
        let error = model.forward(batch, &[]).unwrap_err().to_string();
        assert!(error.contains("count"), "{error}");
    }
}

#[test]
fn it_is_called_by_its_routing_token_in_both_orders() {
    let device = Device::flex();
    let model = model(&device);
    let prompt = Tensor::<3>::random(
        [1, 5, model.llm.config().hidden_size],
        burn::tensor::Distribution::Default,
        &device,
    );
    let mut embeddings = Vec::new();
    for call_order in [CallOrder::AsReference, CallOrder::AsTrained] {
        let options = GenerateOptions {
            max_new_tokens: 6,
            stop: vec![2],
            call_order,
            ..GenerateOptions::default()
        };
        // A script in place of a sampler: words, count, region, a task without a head, the end.
        let script = [5u32, 57, 50, 54, 9, 2];
        let row = GenerateRow {
            prompt: prompt.clone(),
            sample: Sample::default(),
            force: Vec::new(),
            choose: |_: &[f32], done: &[u32]| Ok(script[done.len()]),
        };
        let run = model.generate(vec![row], options).unwrap();
        let mut seen = Vec::new();
        for event in run {
            match event.unwrap().1.unwrap() {
                GenerateEvent::Token(id) => seen.push(format!("{id}")),
                GenerateEvent::Task { output, embedding } => {
                    if output.task == "count" {
                        assert!(output.get::<f32>().is_some());
                        assert_eq!(output.token, 1);
                        embeddings.push(embedding.into_data().iter::<f32>().collect::<Vec<_>>());
                    }
                    seen.push(output.task);
                }
                GenerateEvent::NoHead { task, .. } => seen.push(format!("no {task}")),
                GenerateEvent::Unanswered { task, why, .. } => panic!("{task}: {why}"),
            }
        }
        let expected = [
            "5", "57", "count", "50", "region", "54", "no mask", "9", "2",
        ];
        assert_eq!(
            seen, expected,
            "answers come in order, each after its token"
        );
    }
    assert_ne!(
        embeddings[0], embeddings[1],
        "the orders see different contexts"
    );
}

/// A row of a batch: its prompt, the tokens it says, what heads know.
type Script = (Tensor<3>, Vec<u32>, Sample);
/// What came of it: names in order, and the numbers behind them.
type Seen = (Vec<String>, Vec<Vec<f32>>);

/// Runs scripts in one batch. Numbers are the logits of every token and the embedding of every call.
fn answers(model: &Model, scripts: &[Script], call_order: CallOrder) -> Vec<Seen> {
    let logits: Vec<_> = scripts.iter().map(|_| Mutex::new(Vec::new())).collect();
    let rows = scripts
        .iter()
        .zip(&logits)
        .map(|((prompt, script, sample), heard)| GenerateRow {
            prompt: prompt.clone(),
            sample: sample.clone(),
            force: Vec::new(),
            choose: move |logits: &[f32], done: &[u32]| {
                heard.lock().unwrap().push(logits.to_vec());
                Ok(script[done.len()])
            },
        });
    let options = GenerateOptions {
        max_new_tokens: 6,
        stop: vec![2],
        call_order,
        ..GenerateOptions::default()
    };
    let mut seen: Vec<Seen> = vec![Default::default(); scripts.len()];
    for event in model.generate(rows.collect(), options).unwrap() {
        let (row, event) = event.unwrap();
        let (names, numbers) = &mut seen[row];
        match event {
            Ok(GenerateEvent::Token(id)) => names.push(id.to_string()),
            Ok(GenerateEvent::Task { output, embedding }) => {
                names.push(output.task);
                numbers.push(embedding.into_data().iter::<f32>().collect());
            }
            Ok(GenerateEvent::NoHead { task, .. }) => names.push(format!("no {task}")),
            Ok(GenerateEvent::Unanswered { task, why, .. }) => panic!("{task}: {why}"),
            Err(e) => names.push(e.to_string()),
        }
    }
    for (seen, logits) in seen.iter_mut().zip(logits) {
        seen.1.append(&mut logits.into_inner().unwrap());
    }
    seen
}

/// Prompts of several lengths, heads called at different steps, in one row twice and in one in vain,
/// answers that end one after the other: every row is as it is alone.
#[test]
fn a_batch_answers_as_its_rows_do_alone() {
    let device = Device::flex();
    let model = model(&device);
    let script = |length: usize, ids: &[u32], id: &str| -> Script {
        let shape = [1, length, model.llm.config().hidden_size];
        let prompt = Tensor::random(shape, burn::tensor::Distribution::Default, &device);
        (prompt, ids.to_vec(), Sample::named(id))
    };
    let scripts = [
        script(5, &[5, 57, 50, 54, 9, 2], ""),
        script(9, &[57, 6, 7, 2], ""),
        script(2, &[8, 57, 11, 2], "uncountable"),
        script(7, &[2], ""),
        script(3, &[5, 6, 7, 8, 57, 50], ""),
        script(9, &[50, 57, 9, 2], ""),
    ];
    for order in [CallOrder::AsReference, CallOrder::AsTrained] {
        let together = answers(&model, &scripts, order);
        for (script, (names, numbers)) in scripts.iter().zip(together) {
            let alone = answers(&model, std::slice::from_ref(script), order).remove(0);
            assert_eq!(names, alone.0);
            assert_eq!(numbers.len(), alone.1.len());
            let pairs = numbers.iter().flatten().zip(alone.1.iter().flatten());
            for (a, b) in pairs {
                assert!((a - b).abs() < 1e-4, "{names:?}: {a} in a batch, {b} alone");
            }
        }
    }
    let failed = &answers(&model, &scripts, CallOrder::AsTrained)[2].0;
    assert!(
        failed.len() == 3 && failed[2].contains("counted"),
        "{failed:?}"
    );
    type Choose = fn(&[f32], &[u32]) -> tpo::core::Result<u32>;
    let none = model.generate::<Choose>(Vec::new(), GenerateOptions::default());
    assert!(none.is_err(), "there is nothing to answer");
}
