//! A model, batches and stages small enough to train in milliseconds.

pub use crate::alone::alone;
use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use tpo::VideoChatTpo;
use tpo::core::prompt::PromptIds;
use tpo::core::traits::VisualInput;
use tpo::core::weights::PathStack;
use tpo::llm::{LlmConfig, LoraConfig, config::LORA_TARGETS};
use tpo::model::{ConnectorConfig, VisionConfig};
use tpo::prelude::*;
use tpo::train::trainer::TrainBatch;
use tpo::train::{LrSchedule, ParamGroupSpec, Precision, Stage, StageLength, TrainError};
use tpo::vision::{QFormerConfig, QFormerConnectorConfig, UmtConfig};

use crate::generated::GeneratedData;

const VOCAB: usize = 48;
const SLOTS: usize = 6;

/// Sizes; `dropout` is that of adapters and connector.
pub fn config(dropout: f64) -> TpoConfig {
    let mut config = TpoConfig::nano(VOCAB);
    config.vision = VisionConfig::Umt(UmtConfig::new(16, 8, 16, 3, 2).with_num_frames(2));
    config.input.frames = 2;
    config.input.size = 16;
    let mut qformer = QFormerConfig::new(16, 2, 2, 32, 16)
        .with_num_query_token(4)
        .with_extra_num_query_token(SLOTS - 4)
        .with_vocab_size(16)
        .with_max_position_embeddings(8);
    qformer.hidden_dropout_prob = dropout;
    qformer.attention_probs_dropout_prob = dropout;
    qformer.drop_path_rate = 0.0;
    config.connector = ConnectorConfig::QFormer(QFormerConnectorConfig::new(qformer, 24));
    let mut lora = LoraConfig::new(4, 8.0, LORA_TARGETS.map(String::from).to_vec());
    lora.dropout = dropout;
    config.llm = LlmConfig::new(VOCAB, 24, 40, 2, 2, 1, 12).lora(lora);
    let temporal = TemporalHeadConfig::mini(24, 16).with_clip_seconds(0.5);
    let heads = HeadConfigs::default().with::<RegionHead>(&RegionHeadConfig::for_llm(24));
    let heads = heads.and_then(|h| h.with::<TemporalHead>(&temporal));
    let heads = heads.and_then(|h| h.with::<MaskHead>(&MaskHeadConfig::mini(24)));
    config.heads = heads.unwrap();
    config
}

/// The path under which the golden run knows a parameter: heads were a list then, and their tokens
/// had numbers.
fn golden_path(path: &str) -> String {
    let places = [
        ("heads.region.", "heads.head."),
        ("heads.temporal.", "heads.rest.head."),
        ("heads.mask.", "heads.rest.rest.head."),
        ("task_tokens.region", "task_tokens.0"),
        ("task_tokens.temporal", "task_tokens.1"),
        ("task_tokens.mask", "task_tokens.2"),
    ];
    let found = places.iter().find_map(|(now, then)| {
        let rest = path.strip_prefix(now)?;
        Some(format!("{then}{rest}"))
    });
    found.unwrap_or_else(|| path.to_string())
}

/// A model whose weights are a function of their paths.
pub fn model(config: &TpoConfig) -> VideoChatTpo {
    struct Fill(PathStack);
    impl ModuleMapper for Fill {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.0.path();
            let shape = param.lazy_shape();
            let n = shape.num_elements();
            // Norms near one, everything else about 1/√width.
            let norm = path.contains("norm") && path.ends_with("weight") || path.ends_with("gamma");
            let (mean, spread) = match (norm, shape.len()) {
                (true, _) => (1.0, 0.1),
                (false, 1) => (0.0, 0.1),
                _ => (0.0, 0.6 / (shape[shape.len() - 1] as f32).sqrt().min(4.0)),
            };
            let seed = golden_path(&path).bytes().fold(7u64, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
            });
            let values: Vec<f32> = (0..n)
                .map(|i| mean + spread * noise(seed, i as u64))
                .collect();
            param.map(|t| Tensor::from_data(TensorData::new(values, shape), &t.device()))
        }
    }
    let model = config.init(&Device::flex()).unwrap();
    model.map(&mut Fill(PathStack::default()))
}

/// A number in ±1 from two numbers.
pub fn noise(seed: u64, index: u64) -> f32 {
    let bits = tpo::core::seed::mix(seed, index) >> 40;
    bits as f32 / (1u64 << 23) as f32 - 1.0
}

/// Rows `first..first + rows` of an endless dataset: a clip, a question, a box in the answer.
/// All rows have equally many labels.
pub fn batch(config: &TpoConfig, first: u64, rows: usize, device: &Device) -> TrainBatch {
    let base = (VOCAB - 7) as u32;
    let (begin, slot) = (base, base + 3);
    let mut prompts = Vec::new();
    let mut labels = Vec::new();
    let mut pixels = Vec::new();
    let mut boxes = Vec::new();
    let mut samples = Vec::new();
    let size = config.input.size;
    for row in first..first + rows as u64 {
        let word = |i: u64| 3 + (tpo::core::seed::mix(row, i) % 30) as u32;
        let mut prompt = PromptIds::default();
        prompt.push_text(&[1]);
        prompt.push_visual(SLOTS);
        prompt.push_text(&[word(0), word(1), word(2), begin, slot, 2]);
        let mut label = vec![-100; prompt.len()];
        let answer = prompt.len() - 3;
        for (label, id) in label[answer..].iter_mut().zip(&prompt.ids[answer..]) {
            *label = i64::from(*id);
        }
        labels.push(label);
        prompts.push(prompt);
        let n = config.input.frames * 3 * size * size;
        pixels.extend((0..n as u64).map(|i| noise(row, i)));
        let corner = [noise(row, 90).abs() * 0.5, noise(row, 91).abs() * 0.5];
        boxes.push(BoxXyxy::from([
            corner[0],
            corner[1],
            corner[0] + 0.3,
            corner[1] + 0.4,
        ]));
        samples.push(Sample {
            task: "region".into(),
            ..Sample::named(format!("row-{row}"))
        });
    }
    let tokens = TokenBatch::pad(&prompts, 0);
    let mut batch = TpoBatch::new(tokens, device);
    let shape = [rows, config.input.frames, 3, size, size];
    let pixels = Tensor::<5>::from_data(TensorData::new(pixels, shape), device);
    batch.visuals = VisualInput::clips(pixels);
    batch.labels = Some(labels);
    batch.targets = TargetSet::new().with("region", boxes);
    TrainBatch { batch, samples }
}

/// The endless dataset in micro-batches of `rows`, 4 to an epoch.
pub fn data(
    config: &TpoConfig,
    rows: usize,
) -> GeneratedData<impl FnMut(u64, &Device) -> Result<TrainBatch, TrainError> + use<>> {
    let config = config.clone();
    GeneratedData::new(4, move |index, device: &Device| {
        Ok(batch(&config, index * rows as u64, rows, device))
    })
}

/// A stage of `steps` steps that trains `patterns`.
pub fn stage(patterns: &[&str], steps: u64, accumulation: usize) -> Stage {
    Stage {
        name: "tiny".into(),
        length: StageLength::Steps(steps),
        batch_size: 1,
        accumulation,
        weight_decay: 0.02,
        clip_norm: Some(1.0),
        precision: Precision::F32,
        schedule: LrSchedule::default(),
        adamw: Default::default(),
        loss: Default::default(),
        data: None,
        evaluation: None,
        strict: false,
        evaluate_every: None,
        checkpoint_every: None,
        lora: None,
        seed: None,
        heads_must_fire_within: 50,
        groups: vec![ParamGroupSpec::new("all", patterns.iter().copied(), 2e-3)],
    }
}

/// Everything the paper's third stage trains.
pub const EVERYTHING: [&str; 5] = [
    "vision.**",
    "connector.**",
    "llm.**.lora.*",
    "heads.region.**",
    "task_tokens.region",
];

/// Bits of all parameters by path.
pub fn bits<M: Module>(module: &M) -> BTreeMap<String, Vec<u8>> {
    struct Collect(PathStack, BTreeMap<String, Vec<u8>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let bytes = param.val().into_data().as_bytes().to_vec();
            self.1.insert(self.0.path(), bytes);
        }
    }
    let mut collect = Collect(PathStack::default(), BTreeMap::new());
    module.visit(&mut collect);
    collect.1
}

/// Largest difference of two sets of f32 parameters, relative to the larger of value and 0.01.
pub fn distance(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) -> (f32, String) {
    assert_eq!(a.len(), b.len());
    let mut worst = (0.0, String::new());
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let chunks = bytes.chunks_exact(4);
        chunks
            .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect()
    };
    for (path, a) in a {
        for (a, b) in floats(a).iter().zip(floats(&b[path])) {
            let error = (a - b).abs() / a.abs().max(0.01);
            if error > worst.0 || error.is_nan() {
                worst = (error, path.clone());
            }
        }
    }
    worst
}

/// The module with these bits.
pub fn with_bits<M: Module>(module: M, bits: BTreeMap<String, Vec<u8>>) -> M {
    struct Put(PathStack, BTreeMap<String, Vec<u8>>);
    impl ModuleMapper for Put {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let bytes = self.1.remove(&self.0.path()).unwrap();
            param.map(|t| {
                let data = TensorData::from_bytes_vec(bytes, t.shape(), t.dtype());
                Tensor::from_data(data, &t.device())
            })
        }
    }
    module.map(&mut Put(PathStack::default(), bits))
}
