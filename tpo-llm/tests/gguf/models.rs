//! Small models in GGUF files.

use burn::tensor::{TensorData, bf16, f16};
use serde_json::Value;
use tpo_core::weights::BlockType;
use tpo_llm::{GgufModel, LlmError};

use crate::common::{fixture, text};
use crate::gguf_bytes::Gguf;

/// Name and number of every type that is read.
pub const TYPES: [(&str, u32); 8] = [
    ("F32", 0),
    ("F16", 1),
    ("BF16", 30),
    ("Q8_0", 8),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q4_K", 12),
    ("Q6_K", 14),
];

pub const HIDDEN: usize = 256;
pub const INNER: usize = 512;
pub const ROWS: usize = 448;
/// Query heads, key and value heads.
pub const HEADS: [usize; 2] = [4, 2];
pub const LAYERS: usize = 2;

/// Numbers that look random.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Of −1 to 1.
    fn unit(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }

    /// Lines of a tensor of this type, and the values they stand for.
    fn lines(&mut self, kind: &str, elements: usize) -> (Vec<u8>, Vec<f32>) {
        let blocks = match kind {
            "F32" | "F16" | "BF16" => {
                let values: Vec<f32> = (0..elements).map(|_| self.unit() * 0.1).collect();
                return match kind {
                    "F32" => (
                        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                        values,
                    ),
                    "F16" => {
                        let halves = values.iter().map(|v| f16::from_f32(*v));
                        (
                            halves.clone().flat_map(f16::to_le_bytes).collect(),
                            halves.map(f16::to_f32).collect(),
                        )
                    }
                    _ => {
                        let halves = values.iter().map(|v| bf16::from_f32(*v));
                        (
                            halves.clone().flat_map(bf16::to_le_bytes).collect(),
                            halves.map(bf16::to_f32).collect(),
                        )
                    }
                };
            }
            "Q8_0" => BlockType::Q8_0,
            "Q4_0" => BlockType::Q4_0,
            "Q4_1" => BlockType::Q4_1,
            "Q4_K" => BlockType::Q4K,
            _ => BlockType::Q6K,
        };
        // Any bits, with scales that keep the values small.
        let largest = match blocks {
            BlockType::Q8_0 => 0.1 / 127.0,
            BlockType::Q4_0 | BlockType::Q4_1 => 0.1 / 15.0,
            BlockType::Q4K => 0.1 / 63.0 / 15.0,
            BlockType::Q6K => 0.1 / 127.0 / 32.0,
        };
        let mut bytes: Vec<u8> = (0..elements / blocks.elements() * blocks.bytes())
            .map(|_| self.next() as u8)
            .collect();
        for block in bytes.chunks_exact_mut(blocks.bytes()) {
            let places: &[usize] = match blocks {
                BlockType::Q8_0 | BlockType::Q4_0 => &[0],
                BlockType::Q4_1 | BlockType::Q4K => &[0, 2],
                BlockType::Q6K => &[208],
            };
            for at in places {
                let scale = f16::from_f32(self.unit() * largest);
                block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        let values = blocks.decode(&bytes);
        (bytes, values)
    }
}

/// Rows as llama.cpp's conversion puts them for Llama: pairs of rotate-half RoPE side by side.
pub fn interleaved(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row, width) = (bytes.len() / rows, rows / heads);
    let from = |to: usize| {
        let (head, at) = (to / width, to % width);
        head * width + at % 2 * (width / 2) + at / 2
    };
    (0..rows)
        .flat_map(|to| bytes[from(to) * row..][..row].to_vec())
        .collect()
}

/// Keys and tokenizer of a model.
pub fn header(arch: &str) -> Gguf {
    let key = |name: &str| format!("{arch}.{name}");
    let tokenizer = &fixture("tokenizer_json.json")["byte_level"]["tokenizer"];
    with_vocabulary(Gguf::default(), tokenizer)
        .text("general.architecture", arch)
        .u32(&key("context_length"), 1024)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), INNER as u32)
        .u32(&key("block_count"), LAYERS as u32)
        .u32(&key("attention.head_count"), HEADS[0] as u32)
        .u32(&key("attention.head_count_kv"), HEADS[1] as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 5e4)
        .text("tokenizer.ggml.pre", "gpt-2")
        .text(
            "tokenizer.chat_template",
            "{% for m in messages %}[{{ m.content }}]{% endfor %}",
        )
}

/// The vocabulary of a byte-level `tokenizer.json`.
pub fn with_vocabulary(file: Gguf, tokenizer: &Value) -> Gguf {
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut kinds = vec![1; tokens.len()];
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        if id >= tokens.len() {
            tokens.resize(id + 1, String::new());
            kinds.resize(id + 1, 1);
        }
        tokens[id] = text(&added["content"]).to_string();
        kinds[id] = if added["special"] == true { 3 } else { 4 };
    }
    // Rows that no token has.
    for id in tokens.len()..ROWS {
        tokens.push(format!("[PAD{id}]"));
        kinds.push(5);
    }
    let merge = |merge: &Value| match merge {
        Value::String(both) => both.clone(),
        pair => format!("{} {}", text(&pair[0]), text(&pair[1])),
    };
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    file.text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts(
            "tokenizer.ggml.merges",
            &merges.iter().map(merge).collect::<Vec<_>>(),
        )
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 0)
}

/// A model with matrices of this type: the file, and the weights under Hugging Face's names.
pub fn model(arch: &str, kind: (&str, u32)) -> (Gguf, Vec<(String, TensorData)>) {
    let mut noise = Noise(kind.1.into());
    let [q, kv] = HEADS.map(|heads| heads * HIDDEN / HEADS[0]);
    let mut matrices = vec![(
        "token_embd".to_string(),
        "model.embed_tokens".to_string(),
        [ROWS, HIDDEN],
        None,
    )];
    if arch == "llama" {
        matrices.push(("output".into(), "lm_head".into(), [ROWS, HIDDEN], None));
    }
    let mut vectors = vec![(
        "output_norm.weight".to_string(),
        "model.norm.weight".to_string(),
        HIDDEN,
    )];
    for layer in 0..LAYERS {
        let names = |theirs: &str, ours: &str| {
            (
                format!("blk.{layer}.{theirs}"),
                format!("model.layers.{layer}.{ours}"),
            )
        };
        for (theirs, ours, shape, heads) in [
            ("attn_q", "self_attn.q_proj", [q, HIDDEN], Some(HEADS[0])),
            ("attn_k", "self_attn.k_proj", [kv, HIDDEN], Some(HEADS[1])),
            ("attn_v", "self_attn.v_proj", [kv, HIDDEN], None),
            ("attn_output", "self_attn.o_proj", [HIDDEN, q], None),
            ("ffn_gate", "mlp.gate_proj", [INNER, HIDDEN], None),
            ("ffn_up", "mlp.up_proj", [INNER, HIDDEN], None),
            ("ffn_down", "mlp.down_proj", [HIDDEN, INNER], None),
        ] {
            let (theirs, ours) = names(theirs, ours);
            matrices.push((theirs, ours, shape, heads.filter(|_| arch == "llama")));
        }
        for (theirs, ours, width) in [
            ("attn_norm.weight", "input_layernorm.weight", HIDDEN),
            ("ffn_norm.weight", "post_attention_layernorm.weight", HIDDEN),
            ("attn_q.bias", "self_attn.q_proj.bias", q),
            ("attn_k.bias", "self_attn.k_proj.bias", kv),
            ("attn_v.bias", "self_attn.v_proj.bias", kv),
        ] {
            if !theirs.ends_with("bias") || arch == "qwen2" {
                let (theirs, ours) = names(theirs, ours);
                vectors.push((theirs, ours, width));
            }
        }
    }
    let (mut file, mut weights) = (header(arch), Vec::new());
    for (theirs, ours, shape, heads) in matrices {
        let (bytes, values) = noise.lines(kind.0, shape[0] * shape[1]);
        let bytes = match heads {
            Some(heads) => interleaved(&bytes, shape[0], heads),
            None => bytes,
        };
        file = file.tensor(&format!("{theirs}.weight"), &shape, kind.1, bytes);
        weights.push((format!("{ours}.weight"), TensorData::new(values, shape)));
    }
    for (theirs, ours, width) in vectors {
        let (bytes, values) = noise.lines("F32", width);
        file = file.tensor(&theirs, &[width], 0, bytes);
        weights.push((ours, TensorData::new(values, [width])));
    }
    (file, weights)
}

pub fn opened(file: &Gguf) -> Result<GgufModel, LlmError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    GgufModel::open(path)
}

#[track_caller]
pub fn refused(file: &Gguf, parts: &[&str]) {
    let message = opened(file).unwrap_err().to_string();
    for part in parts.iter().chain(&["model.gguf"]) {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}
