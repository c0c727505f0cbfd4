//! The rows, and the work each of them cannot do without.

use burn::tensor::FloatDType;
use tpo::core::ops::QuantFormat;

use crate::Outcome;

/// Number format of weights and activations; over quantised weights activations are `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
}

impl Format {
    const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// As the twins call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Of activations.
    pub fn float(self) -> FloatDType {
        match self {
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
            _ => FloatDType::F32,
        }
    }

    /// Of weights, if they are blocks.
    pub fn quantized(self) -> Option<QuantFormat> {
        match self {
            Self::Q8_0 => Some(QuantFormat::Q8_0),
            Self::Q4_0 => Some(QuantFormat::Q4_0),
            _ => None,
        }
    }

    /// Bytes of a weight; a block of 32 has a scale of two bytes.
    fn bytes(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::F16 | Self::Bf16 => 2.0,
            Self::Q8_0 => 34.0 / 32.0,
            Self::Q4_0 => 18.0 / 32.0,
        }
    }
}

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    VitL,
    InternVideo2,
    /// The tower over so many pictures.
    Siglip(usize),
    QFormer,
    /// Projector and pooled rows of a video.
    OneVision,
    Sam2Tiny,
    Sam2Large,
    Sam2Track,
    MistralPrefill,
    MistralDecode,
    /// One token after so many.
    SmolLm2Decode(usize),
    SmolLm2Prompt,
    Qwen2Prefill,
    Qwen2Decode,
    RegionHead,
    CgDetr,
    CgDetrTrain,
    LoraStep,
    /// [`Task::LoraStep`] with every block's activations computed again.
    LoraStepCheckpointed,
    AdamWStep,
    TpoStep,
    VideoDecode,
    CheckpointSave,
    CheckpointLoad,
    /// The training loader: open, decode, transform, collate.
    VideoLoader,
    /// The machine's own limits: a large matrix product and a pass over memory.
    Peak,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub task: Task,
    pub format: Format,
    /// What one sample is, for the reader.
    pub what: String,
    /// Floating point operations of one sample, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes one sample must read from memory: every weight it uses, once, and the cache.
    pub bytes: f64,
}

impl Row {
    /// The row of the same name in `twin.py`, which takes the dtype as an option and recomputes
    /// nothing.
    pub fn twin_name(&self) -> &str {
        ["-f16", "-bf16", "-checkpointed"]
            .iter()
            .find_map(|suffix| self.name.strip_suffix(suffix))
            .unwrap_or(&self.name)
    }

    /// Whether a sample is one new token.
    pub fn is_decode(&self) -> bool {
        matches!(
            self.task,
            Task::MistralDecode | Task::SmolLm2Decode(_) | Task::Qwen2Decode
        )
    }
}

/// Clips of a batch of the loader row, and batches timed together.
pub const LOADER_BATCH: usize = 4;
pub const LOADER_BATCHES: usize = 8;
/// New tokens per sample group of the SmolLM2 rows.
pub const SMOLLM2_NEW: usize = 64;
/// Tokens before them.
const SMOLLM2_PAST: [usize; 3] = [32, 512, 1000];
/// Tokens of its prompt.
pub const SMOLLM2_PROMPT: usize = 256;
/// Tokens of the Mistral prefill, and positions before the decoded token.
pub const MISTRAL_PREFILL: usize = 256;
/// Pictures of LLaVA-OneVision's videos, and the rows that its connector makes of them.
pub const OV_FRAMES: usize = 32;
pub const OV_ROWS: usize = OV_FRAMES * 14 * 14 + 1;

/// Layers and tokens of the LoRA step.
pub const LORA_LAYERS: usize = 2;
pub const LORA_TOKENS: usize = 512;
/// Samples of the nano model's training step.
pub const TPO_ROWS: usize = 4;
/// Tensors of the checkpoint rows, and the shape of each.
pub const CHECKPOINT_TENSORS: usize = 16;
pub const CHECKPOINT_SHAPE: [usize; 2] = [1024, 4096];

/// Rows that are not SmolLM2's.
#[rustfmt::skip]
const ROWS: [(&str, Task, Format, &str); 27] = {
    use Format::{Bf16, F16, F32};
    [
        ("vit-l", Task::VitL, F32, "16x224x224, 23 blocks, 3136 tokens"),
        ("internvideo2-1b", Task::InternVideo2, F32, "8x224x224, 40 blocks, 2049 tokens, pooling"),
        ("siglip-tile", Task::Siglip(1), F32, "384x384, 26 blocks, 729 tokens"),
        ("siglip-video", Task::Siglip(OV_FRAMES), F32, "32x384x384, 26 blocks, 729 tokens each"),
        ("onevision-connector", Task::OneVision, F32, "32x729 tokens to 6,273 rows of 896"),
        ("qformer", Task::QFormer, F32, "96 queries over 3136 tokens"),
        ("sam2-tiny", Task::Sam2Tiny, F32, "Hiera-T and pyramid, 1024x1024"),
        ("sam2-large", Task::Sam2Large, F32, "Hiera-L and pyramid, 1024x1024"),
        ("sam2-track", Task::Sam2Track, F32, "1024x1024 encoded, 7 memories, 16 pointers: mask and memory"),
        ("mistral-prefill", Task::MistralPrefill, F32, "one layer, 256 tokens"),
        ("mistral-prefill-bf16", Task::MistralPrefill, Bf16, "one layer, 256 tokens"),
        ("mistral-decode", Task::MistralDecode, F32, "1 token after 256"),
        ("mistral-decode-f16", Task::MistralDecode, F16, "1 token after 256"),
        ("mistral-decode-bf16", Task::MistralDecode, Bf16, "1 token after 256"),
        ("qwen2-0.5b-prefill", Task::Qwen2Prefill, F32, "6,273 rows, 24 layers, the next token"),
        ("qwen2-0.5b-decode", Task::Qwen2Decode, F32, "1 token after 6,273"),
        ("qwen2-0.5b-decode-bf16", Task::Qwen2Decode, Bf16, "1 token after 6,273"),
        ("region-head", Task::RegionHead, F32, "one box, 4096-2048-4"),
        ("cgdetr", Task::CgDetr, F32, "75 clips, 32 words"),
        ("cgdetr-train", Task::CgDetrTrain, F32, "4 x (75 clips, 32 words), losses and gradients"),
        ("lora-step", Task::LoraStep, F32, "2 Mistral layers, 512 tokens: gradients and AdamW"),
        ("lora-step-checkpointed", Task::LoraStepCheckpointed, F32, "the same with checkpointed blocks (twin: without)"),
        ("adamw-step", Task::AdamWStep, F32, "clipping and AdamW, 448 tensors, 42M values"),
        ("tpo-step", Task::TpoStep, F32, "nano model, 4 clips of 8x64x64, whole step"),
        ("video-decode", Task::VideoDecode, F32, "open, 16 middle frames to RGB"),
        ("checkpoint-save", Task::CheckpointSave, F32, "16 x [1024, 4096], on the disk, summed"),
        ("checkpoint-load", Task::CheckpointLoad, F32, "16 x [1024, 4096], sums checked"),
    ]
};

/// All rows of the table.
pub fn all() -> impl Iterator<Item = Row> {
    let new = |name: String, task, format, what: String| {
        let (flops, bytes) = work(task, format);
        Row {
            name,
            task,
            format,
            what,
            flops,
            bytes,
        }
    };
    let rows = ROWS
        .into_iter()
        .map(move |(name, task, format, what)| new(name.into(), task, format, what.into()));
    let smollm2 = Format::ALL.into_iter().flat_map(move |format| {
        let suffix = match format {
            Format::F32 => String::new(),
            other => format!("-{}", other.name()),
        };
        let decode = SMOLLM2_PAST.into_iter().map({
            let suffix = suffix.clone();
            move |past| {
                let what = format!("{SMOLLM2_NEW} tokens after {past}, per token");
                let name = format!("smollm2-decode-{past}{suffix}");
                new(name, Task::SmolLm2Decode(past), format, what)
            }
        });
        let name = format!("smollm2-prompt{suffix}");
        let what = format!("a prompt of {SMOLLM2_PROMPT} tokens");
        decode.chain([new(name, Task::SmolLm2Prompt, format, what)])
    });
    let what = "batches of 4 clips of 16x224x224, per clip";
    let loader = new(
        "video-loader".into(),
        Task::VideoLoader,
        Format::F32,
        what.into(),
    );
    rows.chain(smollm2).chain([loader])
}

/// The machine's limits; no row of the table.
pub fn peak() -> Row {
    Row {
        name: "peak".into(),
        task: Task::Peak,
        format: Format::F32,
        what: String::new(),
        flops: 0.0,
        bytes: 0.0,
    }
}

/// The row of that name, `peak` included.
pub fn find(name: &str) -> Outcome<Row> {
    let found = all()
        .chain([peak()])
        .find(|row| row.name == name)
        .ok_or_else(|| {
            let names: Vec<String> = all().map(|row| row.name).collect();
            format!("no row `{name}`; rows are {}", names.join(", "))
        });
    Ok(found?)
}

/// (floating point operations, bytes) of one sample.
fn work(task: Task, format: Format) -> (f64, f64) {
    let (flops, weights, cached) = match task {
        Task::VitL => vit(3136.0, 1024.0, 23.0),
        Task::InternVideo2 => internvideo2(2049.0, 1408.0, 6144.0, 40.0),
        Task::Siglip(pictures) => siglip(pictures as f64),
        Task::OneVision => {
            let weights = 1152.0 * QWEN2.d + QWEN2.d * QWEN2.d;
            (2.0 * 729.0 * OV_FRAMES as f64 * weights, weights, 0.0)
        }
        Task::QFormer => qformer(96.0, 768.0, 3136.0, 1024.0),
        Task::Sam2Tiny => hiera(96.0, [1, 2, 7, 2], [8, 4, 14, 7], &[5, 7, 9]),
        Task::Sam2Large => hiera(144.0, [2, 6, 36, 4], [8, 4, 16, 8], &[23, 33, 43]),
        Task::Sam2Track => track_step(7.0, 16.0),
        Task::MistralPrefill => llama_layer(&MISTRAL, MISTRAL_PREFILL, 0),
        Task::MistralDecode => llama_layer(&MISTRAL, 1, MISTRAL_PREFILL),
        // The middle of the tokens stands for all of them.
        Task::SmolLm2Decode(past) => smollm2(1, past + SMOLLM2_NEW / 2),
        Task::SmolLm2Prompt => smollm2(SMOLLM2_PROMPT, 0),
        Task::Qwen2Prefill => qwen2(OV_ROWS, 0),
        Task::Qwen2Decode => qwen2(1, OV_ROWS),
        Task::RegionHead => {
            let weights = 4096.0 * 2048.0 + 2048.0 * 4.0;
            (2.0 * weights, weights, 0.0)
        }
        Task::CgDetr => cg_detr(1.0, false),
        Task::CgDetrTrain => cg_detr(4.0, true),
        Task::LoraStep | Task::LoraStepCheckpointed => {
            let (flops, weights, _) = llama_layer(&MISTRAL, LORA_TOKENS, 0);
            let layers = LORA_LAYERS as f64;
            // Forward, and the gradient of the input; that of a frozen weight is not taken.
            let passes = if task == Task::LoraStep { 2.0 } else { 3.0 };
            (passes * layers * flops, passes * layers * weights, 0.0)
        }
        Task::AdamWStep => {
            // Adapters of seven layers, rank 16, 32 times; reads w, m, v, g (twice, for the norm),
            // writes w, m, v.
            let values = 32.0 * 16.0 * (2.0 * 8192.0 + 2.0 * 5120.0 + 3.0 * 18432.0);
            (16.0 * values, 8.0 * values, 0.0)
        }
        Task::TpoStep => {
            let rows = TPO_ROWS as f64;
            let encoder = vit(128.0, 128.0, 4.0);
            let connector = qformer(24.0, 128.0, 128.0, 128.0);
            let llm = llama_layer(&MINI, 40, 0);
            let once = encoder.0 + connector.0 / 3.0 + 4.0 * llm.0;
            let weights = encoder.1 + connector.1 / 3.0 + 4.0 * llm.1;
            (3.0 * rows * once, 3.0 * weights, 0.0)
        }
        Task::CheckpointSave | Task::CheckpointLoad => {
            let [rows, columns] = CHECKPOINT_SHAPE.map(|n| n as f64);
            (0.0, CHECKPOINT_TENSORS as f64 * rows * columns, 0.0)
        }
        Task::VideoDecode | Task::VideoLoader | Task::Peak => (0.0, 0.0, 0.0),
    };
    let cache = match format {
        Format::F16 | Format::Bf16 => 2.0,
        _ => 4.0,
    };
    (flops, weights * format.bytes() + cached * cache)
}

fn smollm2(new: usize, past: usize) -> (f64, f64, f64) {
    llama(&SMOLLM2, 30.0, 49152.0, new, past)
}

fn qwen2(new: usize, past: usize) -> (f64, f64, f64) {
    llama(&QWEN2, 24.0, 151_936.0, new, past)
}

/// All layers over `new` tokens after `past` others, and the output layer over the last.
fn llama(c: &Llama, layers: f64, vocab: f64, new: usize, past: usize) -> (f64, f64, f64) {
    let (flops, weights, cached) = llama_layer(c, new, past);
    let head = vocab * c.d;
    (
        layers * flops + 2.0 * head,
        layers * weights + head,
        layers * cached,
    )
}

/// Each picture by itself.
fn siglip(pictures: f64) -> (f64, f64, f64) {
    let (tokens, d, hidden, blocks) = (729.0, 1152.0, 4304.0, 26.0);
    let weights = 3.0 * 14.0 * 14.0 * d + blocks * (4.0 * d * d + 2.0 * d * hidden);
    let attention = 4.0 * tokens * tokens * d;
    let flops = 2.0 * tokens * weights + blocks * attention;
    (pictures * flops, weights, 0.0)
}

/// Patch embedding and blocks of four products and attention; biases and norms are left out
/// here and below.
fn vit(tokens: f64, d: f64, blocks: f64) -> (f64, f64, f64) {
    let patch = 3.0 * 16.0 * 16.0 * d;
    let block = 12.0 * d * d;
    let attention = 4.0 * tokens * tokens * d;
    let weights = patch + blocks * block;
    (2.0 * tokens * weights + blocks * attention, weights, 0.0)
}

/// As [`vit`], with a hidden layer that is no multiple of the width, and attention pooling: one
/// query, so only its key and value products count.
fn internvideo2(tokens: f64, d: f64, hidden: f64, blocks: f64) -> (f64, f64, f64) {
    let patch = 3.0 * 14.0 * 14.0 * d;
    let block = 4.0 * d * d + 2.0 * d * hidden;
    let pool = 2.0 * d * d;
    let attention = 4.0 * tokens * tokens * d;
    let weights = patch + blocks * block + pool;
    (2.0 * tokens * weights + blocks * attention, weights, 0.0)
}

/// Hiera on 1024x1024 pixels and its pyramid of 256 channels; windows without their padding.
fn hiera(d: f64, stages: [usize; 4], windows: [usize; 4], global: &[usize]) -> (f64, f64, f64) {
    let patch = 3.0 * 7.0 * 7.0 * d;
    let (mut flops, mut weights, mut block) = (2.0 * 65536.0 * patch, patch, 0);
    for (stage, count) in stages.into_iter().enumerate() {
        for at in 0..count {
            let enters = stage > 0 && at == 0;
            let before = stage - usize::from(enters);
            let grid = |stage: usize| (65536 >> (2 * stage)) as f64;
            let width = |stage: usize| d * (1 << stage) as f64;
            let (from, to) = (width(before), width(stage));
            // Keys and values of all pixels, queries that are pooled where a stage begins.
            let (inputs, outputs) = (grid(before), grid(stage));
            let keys = if global.contains(&block) {
                inputs
            } else {
                (windows[before] * windows[before]) as f64
            };
            let first = 3.0 * from * to + if enters { from * to } else { 0.0 };
            let rest = to * to + 8.0 * to * to;
            flops += 2.0 * inputs * first + 2.0 * outputs * rest + 4.0 * outputs * keys * to;
            weights += first + rest;
            block += 1;
        }
        let (pixels, width) = ((65536 >> (2 * stage)) as f64, d * (1 << stage) as f64);
        flops += 2.0 * pixels * width * 256.0;
        weights += width * 256.0;
    }
    (flops, weights, 0.0)
}

/// SAM 2 after the image encoder: four layers of memory attention, mask decoder, memory encoder.
/// Attention to memories sums their 64 channels and projects the sums; a projection before the
/// attention is not needed.
fn track_step(memories: f64, pointers: f64) -> (f64, f64, f64) {
    let (n, d, m) = (4096.0, 256.0, 64.0);
    let keys = memories * n + pointers * d / m;
    let layer_weights = 6.0 * d * d + 2.0 * m * d + 2.0 * d * 2048.0;
    let layer = 2.0 * n * (6.0 * d * d + m * d + 2.0 * d * 2048.0)
        + 2.0 * keys * m * d
        + 4.0 * n * n * d
        + 2.0 * n * keys * (d + m);
    // Pixels attend to eight tokens and back: half the width, twice, and once at the end.
    let decoder_weights = 2.0 * (4.0 * d * d + 4.0 * d * d + 2.0 * d * 2048.0) + 2.0 * d * d;
    let up = n * d * 256.0 + 4.0 * n * 64.0 * 128.0;
    let decoder = 2.0 * (n * 5.0 * d * (d / 2.0) * 2.0 + up);
    // Every halving of the 1024 x 1024 mask quadruples the channels.
    let halvings: f64 = (1..=4).map(|i| 64.0 * n * 9.0 * 4f64.powi(i)).sum();
    let block = 49.0 * d + 8.0 * d * d;
    let encoder_weights = 3.0 * d * d + 2.0 * block + d * m;
    let encoder = 2.0 * (halvings + n * (2.0 * d * d + 2.0 * block + d * m));
    let weights = 4.0 * layer_weights + decoder_weights + encoder_weights;
    (4.0 * layer + decoder + encoder, weights, memories * n * m)
}

/// Twelve layers of self-attention and a feed-forward of the queries, every second one with
/// cross-attention.
fn qformer(n: f64, d: f64, keys: f64, context: f64) -> (f64, f64, f64) {
    let own = 4.0 * d * d + 8.0 * d * d;
    let cross_query = 2.0 * d * d;
    let cross_visual = 2.0 * context * d;
    let flops = 12.0 * (2.0 * n * own + 4.0 * n * n * d)
        + 6.0 * (2.0 * n * cross_query + 2.0 * keys * cross_visual + 4.0 * n * keys * d);
    (flops, 12.0 * own + 6.0 * (cross_query + cross_visual), 0.0)
}

/// The temporal head over `n` samples of 75 clips and 32 words. Training adds the passes of foreign
/// texts, moments and sentences, and twice the work of everything for the gradients.
fn cg_detr(n: f64, train: bool) -> (f64, f64, f64) {
    let (d, ff, clips, words, dummies, queries) = (256.0, 1024.0, 75.0, 33.0, 45.0, 10.0);
    let encoder = 4.0 * d * d + 2.0 * d * ff;
    let t2v = d * d + 2.0 * d * ff;
    let decoder_queries = 9.0 * d * d + 2.0 * d * ff;
    let decoder_clips = 3.0 * d * d;
    let inputs = clips * (770.0 * d + d * d) + words * (4096.0 * d + d * d);
    let text = 2.0 * (dummies + words) * encoder;
    let video = 2.0 * clips * t2v + 3.0 * (clips + 1.0) * encoder + clips * d * d;
    let spans =
        3.0 * (queries * decoder_queries + clips * decoder_clips) + 3.0 * queries * 8.0 * d * d;
    let training = video + 2.0 * clips * encoder + (words + dummies + 2.0) * encoder;
    let weights = 770.0 * d
        + 4096.0 * d
        + 9.0 * encoder
        + 2.0 * t2v
        + 3.0 * (decoder_queries + decoder_clips)
        + 12.0 * d * d;
    let once = inputs + text + video + spans + if train { training } else { 0.0 };
    (2.0 * n * once * if train { 3.0 } else { 1.0 }, weights, 0.0)
}

struct Llama {
    d: f64,
    heads: f64,
    kv_heads: f64,
    head_dim: f64,
    ff: f64,
}

const MISTRAL: Llama = Llama {
    d: 4096.0,
    heads: 32.0,
    kv_heads: 8.0,
    head_dim: 128.0,
    ff: 14336.0,
};
const MINI: Llama = Llama {
    d: 128.0,
    heads: 4.0,
    kv_heads: 2.0,
    head_dim: 32.0,
    ff: 352.0,
};
const SMOLLM2: Llama = Llama {
    d: 576.0,
    heads: 9.0,
    kv_heads: 3.0,
    head_dim: 64.0,
    ff: 1536.0,
};

const QWEN2: Llama = Llama {
    d: 896.0,
    heads: 14.0,
    kv_heads: 2.0,
    head_dim: 64.0,
    ff: 4864.0,
};

/// One layer over `new` tokens after `past` others; only visible pairs count.
fn llama_layer(c: &Llama, new: usize, past: usize) -> (f64, f64, f64) {
    let (new, past) = (new as f64, past as f64);
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let weights = 2.0 * c.d * q + 2.0 * c.d * kv + 3.0 * c.d * c.ff;
    let pairs = new * past + new * (new + 1.0) / 2.0;
    (
        2.0 * new * weights + 4.0 * pairs * q,
        weights,
        2.0 * past * kv,
    )
}
