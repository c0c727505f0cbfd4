//! The rows, and the work each of them cannot do without.

use burn::tensor::FloatDType;

use crate::Outcome;

/// Storage of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub fn bytes(self) -> f64 {
        if self == Self::F32 { 4.0 } else { 2.0 }
    }

    pub fn burn(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    VitL,
    InternVideo2,
    QFormer,
    MistralPrefill,
    MistralDecode,
    SmolLm2Decode,
    RegionHead,
    CgDetr,
    CgDetrTrain,
    VideoDecode,
    /// The training loader: open, decode, transform, collate.
    VideoLoader,
    /// The machine's own limits: a large matrix product and a pass over memory.
    Peak,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub task: Task,
    pub dtype: Dtype,
    /// What one sample is, for the reader.
    pub what: &'static str,
    /// Floating point operations of one sample, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes one sample must read from memory: every weight it uses, once, and the cache.
    pub bytes: f64,
}

impl Row {
    /// The row of the same name in `twin.py`, which takes the dtype as an option.
    pub fn twin_name(&self) -> &'static str {
        match self.task {
            Task::VitL => "vit-l",
            Task::InternVideo2 => "internvideo2-1b",
            Task::QFormer => "qformer",
            Task::MistralPrefill => "mistral-prefill",
            Task::MistralDecode => "mistral-decode",
            Task::SmolLm2Decode => "smollm2-decode",
            Task::RegionHead => "region-head",
            Task::CgDetr => "cgdetr",
            Task::CgDetrTrain => "cgdetr-train",
            Task::VideoDecode => "video-decode",
            Task::VideoLoader => "video-loader",
            Task::Peak => "peak",
        }
    }

    /// Whether a sample is one new token.
    pub fn is_decode(&self) -> bool {
        matches!(self.task, Task::MistralDecode | Task::SmolLm2Decode)
    }
}

/// Clips of a batch of the loader row, and batches timed together.
pub const LOADER_BATCH: usize = 4;
pub const LOADER_BATCHES: usize = 8;
/// New tokens per sample group of the SmolLM2 rows.
pub const SMOLLM2_NEW: usize = 64;
/// Tokens before them.
pub const SMOLLM2_PROMPT: usize = 32;
/// Tokens of the Mistral prefill, and positions before the decoded token.
pub const MISTRAL_PREFILL: usize = 256;

/// The rows of the table in order.
pub fn all() -> Vec<Row> {
    use Dtype::{Bf16, F16, F32};
    let row = |name, task, dtype, what| {
        let (flops, bytes) = work(task, dtype);
        Row {
            name,
            task,
            dtype,
            what,
            flops,
            bytes,
        }
    };
    let decode = "1 token after 256";
    let smollm2 = "64 tokens after 32, per token";
    vec![
        row(
            "vit-l",
            Task::VitL,
            F32,
            "16x224x224, 23 blocks, 3136 tokens",
        ),
        row(
            "internvideo2-1b",
            Task::InternVideo2,
            F32,
            "8x224x224, 40 blocks, 2049 tokens, pooling",
        ),
        row("qformer", Task::QFormer, F32, "96 queries over 3136 tokens"),
        row(
            "mistral-prefill",
            Task::MistralPrefill,
            F32,
            "one layer, 256 tokens",
        ),
        row("mistral-decode", Task::MistralDecode, F32, decode),
        row("mistral-decode-f16", Task::MistralDecode, F16, decode),
        row("mistral-decode-bf16", Task::MistralDecode, Bf16, decode),
        row("smollm2-decode", Task::SmolLm2Decode, F32, smollm2),
        row("smollm2-decode-bf16", Task::SmolLm2Decode, Bf16, smollm2),
        row("region-head", Task::RegionHead, F32, "one box, 4096-2048-4"),
        row("cgdetr", Task::CgDetr, F32, "75 clips, 32 words"),
        row(
            "cgdetr-train",
            Task::CgDetrTrain,
            F32,
            "4 x (75 clips, 32 words), losses and gradients",
        ),
        row(
            "video-decode",
            Task::VideoDecode,
            F32,
            "open, 16 middle frames to RGB",
        ),
        row(
            "video-loader",
            Task::VideoLoader,
            F32,
            "batches of 4 clips of 16x224x224, per clip",
        ),
    ]
}

/// The row of that name, `peak` included.
pub fn find(name: &str) -> Outcome<Row> {
    if name == "peak" {
        return Ok(Row {
            name: "peak",
            task: Task::Peak,
            dtype: Dtype::F32,
            what: "",
            flops: 0.0,
            bytes: 0.0,
        });
    }
    let rows = all();
    let names: Vec<_> = rows.iter().map(|row| row.name).collect();
    let unknown = format!("no row `{name}`; rows are {}", names.join(", "));
    Ok(rows
        .into_iter()
        .find(|row| row.name == name)
        .ok_or(unknown)?)
}

/// (floating point operations, bytes) of one sample.
fn work(task: Task, dtype: Dtype) -> (f64, f64) {
    let (flops, weights, cached) = match task {
        Task::VitL => vit(3136.0, 1024.0, 23.0),
        Task::InternVideo2 => internvideo2(2049.0, 1408.0, 6144.0, 40.0),
        Task::QFormer => qformer(96.0, 768.0, 3136.0, 1024.0),
        Task::MistralPrefill => llama_layer(&MISTRAL, MISTRAL_PREFILL, 0),
        Task::MistralDecode => llama_layer(&MISTRAL, 1, MISTRAL_PREFILL),
        Task::SmolLm2Decode => {
            // The middle of the 64 tokens stands for all of them.
            let past = SMOLLM2_PROMPT + SMOLLM2_NEW / 2;
            let (flops, weights, cached) = llama_layer(&SMOLLM2, 1, past);
            let head = 49152.0 * 576.0;
            (
                30.0 * flops + 2.0 * head,
                30.0 * weights + head,
                30.0 * cached,
            )
        }
        Task::RegionHead => {
            let weights = 4096.0 * 2048.0 + 2048.0 * 4.0;
            (2.0 * weights, weights, 0.0)
        }
        Task::CgDetr => cg_detr(1.0, false),
        Task::CgDetrTrain => cg_detr(4.0, true),
        Task::VideoDecode | Task::VideoLoader | Task::Peak => (0.0, 0.0, 0.0),
    };
    (flops, (weights + cached) * dtype.bytes())
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
const SMOLLM2: Llama = Llama {
    d: 576.0,
    heads: 9.0,
    kv_heads: 3.0,
    head_dim: 64.0,
    ff: 1536.0,
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
