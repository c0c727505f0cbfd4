//! Language models in GGUF files against the same in Hugging Face directories.

mod common;
#[path = "common/fuzzing.rs"]
mod fuzzing;
#[path = "../../tpo-core/tests/weights/gguf_bytes.rs"]
mod gguf_bytes;

use std::path::Path;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, bf16, f16};
use common::{fixture, fixture_path, ids, text};
use gguf_bytes::Gguf;
use sentencepiece_model::SentencePieceModel;
use serde_json::{Value, json};
use tpo_core::ops::QuantFormat;
use tpo_core::traits::LanguageModel;
use tpo_core::weights::{BlockType, TensorSource, write_tensors};
use tpo_llm::chat_template::Message;
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::{CausalLm, GgufModel, HfOptions, LlmError, from_pretrained};

/// Name and number of every type that is read.
const TYPES: [(&str, u32); 8] = [
    ("F32", 0),
    ("F16", 1),
    ("BF16", 30),
    ("Q8_0", 8),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q4_K", 12),
    ("Q6_K", 14),
];

const HIDDEN: usize = 256;
const INNER: usize = 512;
const ROWS: usize = 448;
/// Query heads, key and value heads.
const HEADS: [usize; 2] = [4, 2];
const LAYERS: usize = 2;

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
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
fn interleaved(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
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
fn header(arch: &str) -> Gguf {
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
fn with_vocabulary(file: Gguf, tokenizer: &Value) -> Gguf {
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
fn model(arch: &str, kind: (&str, u32)) -> (Gguf, Vec<(String, TensorData)>) {
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

fn write_directory(dir: &Path, arch: &str, weights: &[(String, TensorData)]) {
    let config = json!({
        "model_type": arch, "vocab_size": ROWS, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS[0],
        "num_key_value_heads": HEADS[1], "rms_norm_eps": 1e-5, "rope_theta": 5e4,
        "max_position_embeddings": 1024, "tie_word_embeddings": arch == "qwen2",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tokenizer = &fixture("tokenizer_json.json")["byte_level"]["tokenizer"];
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut sources: Vec<TensorSource<'_>> = weights
        .iter()
        .map(|(key, data)| TensorSource::from_data(key, data).unwrap())
        .collect();
    let mut bytes = Vec::new();
    write_tensors(&mut sources, &Default::default(), |part| {
        bytes.extend_from_slice(part);
        Ok::<_, tpo_core::weights::WeightsError>(())
    })
    .unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

fn logits(lm: &CausalLm) -> Vec<f32> {
    let device = Device::flex();
    let ids: Vec<i32> = (0..2 * 23).map(|i| i * 37 % ROWS as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [2, 23]), &device);
    let logits = lm.logits(lm.hidden(lm.embed(ids), None).unwrap());
    logits
        .cast(FloatDType::F32)
        .into_data()
        .try_into_vec()
        .unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    square(&mut a.iter().zip(b).map(|(a, b)| a - b)) / square(&mut b.iter().copied())
}

#[test]
fn logits_are_those_of_the_hugging_face_directory() {
    let device = Device::flex();
    let f32s = HfOptions {
        dtype: Some(FloatDType::F32),
        quantize: None,
    };
    for arch in ["llama", "qwen2"] {
        for kind in TYPES {
            let dir = tempfile::tempdir().unwrap();
            let (file, weights) = model(arch, kind);
            let path = dir.path().join("model.gguf");
            std::fs::write(&path, file.bytes()).unwrap();
            write_directory(dir.path(), arch, &weights);
            let ours = from_pretrained(&path, &device, f32s, None).unwrap();
            let theirs = from_pretrained(dir.path(), &device, f32s, None).unwrap();
            let what = format!("{arch} {}", kind.0);
            assert_eq!(ours.lm.config(), theirs.lm.config(), "{what}");
            assert_eq!(ours.report.loaded.len(), weights.len(), "{what}");
            let expected = logits(&theirs.lm);
            assert!(expected.iter().any(|l| l.abs() > 1e-3), "{what}");
            assert_eq!(logits(&ours.lm), expected, "{what}");
            // Two words of the vocabulary's end have no token.
            let sample = "the man <|im_start|> door 12é\n";
            let ids = |t: &Tokenizer| t.encode(sample, t.default_options()).unwrap();
            assert_eq!(ids(&ours.tokenizer), ids(&theirs.tokenizer), "{what}");
            assert_eq!(ours.tokenizer.vocab_size(), theirs.tokenizer.vocab_size());

            // Left alone: the type of the embeddings, or 32 bits.
            let own = GgufModel::open(&path).unwrap();
            let own = own.load(&device, HfOptions::default(), None).unwrap();
            let dtype = own.lm.model.embed_tokens.weight.val().dtype();
            let norm = own.lm.model.norm.weight.val().dtype();
            let wanted = match kind.0 {
                "F16" => FloatDType::F16,
                "BF16" => FloatDType::BF16,
                _ => FloatDType::F32,
            };
            assert_eq!((dtype, norm), (wanted.into(), wanted.into()), "{what}");

            for (format, limit) in [(QuantFormat::Q8_0, 0.03), (QuantFormat::Q4_0, 0.3)] {
                let options = HfOptions {
                    quantize: Some(format),
                    ..f32s
                };
                let packed = from_pretrained(&path, &device, options, None).unwrap();
                let error = distance(&logits(&packed.lm), &expected);
                // Blocks of the format lose nothing.
                let same = kind.0.eq_ignore_ascii_case(format.name());
                let limit = if same { 1e-5 } else { limit };
                assert!(error < limit, "{what} as {}: {error}", format.name());
            }
        }
    }
}

fn opened(file: &Gguf) -> Result<GgufModel, LlmError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    GgufModel::open(path)
}

#[track_caller]
fn refused(file: &Gguf, parts: &[&str]) {
    let message = opened(file).unwrap_err().to_string();
    for part in parts.iter().chain(&["model.gguf"]) {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let (llama, _) = model("llama", TYPES[0]);
    let (qwen, _) = model("qwen2", TYPES[0]);
    let with = || llama.clone();
    refused(
        &with().text("general.architecture", "gemma2"),
        &["`gemma2`", "llama", "qwen2"],
    );
    refused(
        &with().text("llama.rope.scaling.type", "yarn"),
        &["RoPE scaling `yarn`"],
    );
    let linear = with()
        .text("llama.rope.scaling.type", "linear")
        .f32("llama.rope.scaling.factor", 4.0);
    refused(&linear, &["`linear`"]);
    refused(&with().f32("llama.rope.scale_linear", 2.0), &["`linear`"]);
    refused(
        &with().u32("llama.expert_count", 8),
        &["`llama.expert_count` is 8"],
    );
    refused(
        &with().u32("llama.rope.dimension_count", 32),
        &["rope.dimension_count", "32", "64"],
    );
    refused(
        &with().flag("llama.attention.causal", false),
        &["not causal"],
    );
    let window = qwen.clone().u32("qwen2.attention.sliding_window", 128);
    refused(&window, &["sliding window of 128"]);
    let window = with().u32("llama.attention.sliding_window", 128);
    assert_eq!(opened(&window).unwrap().config().sliding_window, Some(128));
    refused(
        &with().without("llama.block_count"),
        &["lacks `llama.block_count`"],
    );
    let list = with().i32s("llama.attention.head_count_kv", &[2, 2]);
    refused(
        &list,
        &["llama.attention.head_count_kv", "a list of 2 whole numbers"],
    );
    refused(
        &with().u32("llama.vocab_size", 9),
        &["llama.vocab_size", "9", "448 rows"],
    );
    assert!(opened(&with().u32("llama.embedding_length", u32::MAX)).is_err());

    let factors = |factor: f32| {
        let bytes = [1.0, factor]
            .iter()
            .flat_map(|f: &f32| f.to_le_bytes())
            .collect();
        with().tensor("rope_freqs.weight", &[2], 0, bytes)
    };
    refused(&factors(8.0), &["rope_freqs.weight", "Llama 3.1"]);
    assert!(opened(&factors(1.0)).is_ok());
}

#[test]
fn weights_are_strict() {
    let device = Device::flex();
    let load = |file: &Gguf| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, file.bytes()).unwrap();
        from_pretrained(&path, &device, HfOptions::default(), None)
    };
    let (file, weights) = model("llama", TYPES[3]);
    let ones = [1.0f32; 32].iter().flat_map(|f| f.to_le_bytes()).collect();
    let neutral = file.clone().tensor("rope_freqs.weight", &[32], 0, ones);
    let report = load(&neutral).unwrap().report;
    assert_eq!(
        (report.loaded.len(), report.ignored.len()),
        (weights.len(), 1)
    );
    let says = |file: &Gguf, parts: &[&str]| {
        let message = load(file).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    };
    let mut lacking = file.clone();
    lacking.tensors.retain(|t| t.name != "blk.1.ffn_up.weight");
    says(&lacking, &["1 missing", "`blk.1.ffn_up.weight`"]);
    let more = file
        .clone()
        .tensor("blk.0.attn_qkv.weight", &[1], 0, vec![0; 4]);
    says(&more, &["1 unexpected", "`blk.0.attn_qkv.weight`"]);
    let other = file.u32("llama.feed_forward_length", 256);
    says(&other, &["mismatched", "`blk.0.ffn_"]);
}

/// Texts on which tokenizers differ.
const TEXTS: [&str; 24] = [
    "",
    " ",
    "the man opens the door",
    "  two leading spaces,\ttab\n\nnewlines ",
    "trailing   \n\n  \n",
    "\r\n\r\n \r\n",
    "1234567890 3.14159 -42 1,000,000 12abc34",
    "٣٤٥ ५६७ ②③ Ⅷ½",
    "don't you'll I'M WE'VE it'S 'twas",
    "Ünïcödé naïve café — “quotes” …",
    "e\u{301}a\u{308} ﬁ Å",
    "你好,世界! 日本語の文。 한국어",
    "🎬🚀👨\u{200d}👩\u{200d}👧 مرحبا שלום",
    "a<|im_start|>b <|im_end|>\n<|im_start|>",
    "<|im_start|><|im_start|> <|endoftext|>",
    "<s> [INST] hi [/INST] </s> <unk>",
    "snake_case CamelCase kebab-case a/b\\c",
    "x = {\"a\": [1, 2.5e-3]}; // comment",
    "$100 + 20% = #5 & ^~|<>",
    "\u{a0}no\u{2003}break\u{3000}space\u{200b}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u{1}\u{7f}\u{fffd}\u{e000}",
    "mixed123text456with789numbers",
    "ends with an apostrophe'",
];

/// The pre-tokenizers of published `tokenizer.json` files, and their normalizers.
fn published() -> [(&'static str, Value, Value, bool); 4] {
    let byte_level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    [
        ("gpt-2", byte_level(true), Value::Null, false),
        (
            "smollm",
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]}),
            Value::Null,
            false,
        ),
        (
            "llama-bpe",
            split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Value::Null,
            true,
        ),
        (
            "qwen2",
            split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            json!({"type": "NFC"}),
            false,
        ),
    ]
}

#[test]
fn byte_level_ids_are_those_of_published_tokenizers() {
    let mut tokenizer = fixture("tokenizer_json.json")["byte_level"]["tokenizer"].clone();
    let (file, _) = model("qwen2", TYPES[0]);
    for (pre, words, normalizer, ignore_merges) in published() {
        tokenizer["pre_tokenizer"] = words;
        tokenizer["normalizer"] = normalizer;
        tokenizer["model"]["ignore_merges"] = ignore_merges.into();
        let theirs =
            Tokenizer::from_tokenizer_json_bytes(tokenizer.to_string().as_bytes()).unwrap();
        let ours = opened(&file.clone().text("tokenizer.ggml.pre", pre))
            .unwrap()
            .tokenizer()
            .unwrap();
        for sample in TEXTS {
            let found = ours.encode_segment(sample).unwrap();
            assert_eq!(
                found,
                theirs.encode_segment(sample).unwrap(),
                "{pre} {sample:?}"
            );
            for skip in [true, false] {
                let decoded = ours.decode(&found, skip).unwrap();
                assert_eq!(
                    decoded,
                    theirs.decode(&found, skip).unwrap(),
                    "{pre} {sample:?}"
                );
            }
        }
        let bos = ours.encode("a", ours.default_options()).unwrap();
        assert_eq!(bos[0] == 0, pre == "llama-bpe", "{pre}");
    }
    // Numbers in threes from the left, as llama.cpp's own default has them.
    let default = opened(&file.clone().text("tokenizer.ggml.pre", "default")).unwrap();
    assert!(
        !default
            .tokenizer()
            .unwrap()
            .encode_segment("12345 a")
            .unwrap()
            .is_empty()
    );
    refused(
        &file.clone().text("tokenizer.ggml.pre", "tekken"),
        &["`tekken`", "qwen2", "smollm"],
    );
    refused(
        &file.clone().without("tokenizer.ggml.pre"),
        &["gguf-new-metadata --pre-tokenizer"],
    );
    refused(
        &file.clone().text("tokenizer.ggml.model", "bert"),
        &["`bert`", "gpt2", "llama"],
    );
    refused(
        &file.clone().u32("tokenizer.ggml.eos_token_id", 9999),
        &["eos_token_id", "9999"],
    );
    refused(
        &file.clone().i32s("tokenizer.ggml.token_type", &[1]),
        &["kinds of 1"],
    );
    refused(
        &file.clone().texts("tokenizer.ggml.merges", &["ab"]),
        &["merge 0 is `ab`"],
    );
    let twice = file
        .clone()
        .texts("tokenizer.ggml.tokens", &["a", "a"])
        .i32s("tokenizer.ggml.token_type", &[1, 1]);
    refused(&twice, &["tokens 0 and 1 are both `a`"]);
    let many = vec!["x"; ROWS + 1];
    refused(&file.texts("tokenizer.ggml.tokens", &many), &["449 tokens"]);
}

/// Mistral's own vocabulary in a GGUF file of a model that is small otherwise.
fn mistral() -> Gguf {
    let bytes = std::fs::read(fixture_path("mistral_v1/tokenizer.model")).unwrap();
    let model = SentencePieceModel::from_slice(&bytes).unwrap();
    let pieces = model.pieces();
    let tokens: Vec<&str> = pieces.iter().map(|p| p.piece()).collect();
    let kinds: Vec<i32> = pieces.iter().map(|p| p.r#type() as i32).collect();
    let scores: Vec<f32> = pieces.iter().map(|p| p.score()).collect();
    let embeddings = vec![0; pieces.len() * 32 / 32 * 34];
    header("llama")
        .without("tokenizer.ggml.merges")
        .without("tokenizer.ggml.pre")
        .u32("llama.embedding_length", 32)
        .u32("llama.attention.head_count", 2)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .text(
            "tokenizer.chat_template",
            "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
        )
        .tensor("token_embd.weight", &[pieces.len(), 32], 8, embeddings)
}

#[test]
fn mistrals_ids_are_those_of_transformers() {
    let model = opened(&mistral()).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.vocab_size(), 32000);
    assert_eq!(tokenizer.eos_ids(), [2]);
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in model.tokenizer_files() {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let again = Tokenizer::from_dir(dir.path()).unwrap();
    let prompt = again
        .apply_chat_template(&[Message::new("user", "Hi")], true)
        .unwrap();
    assert_eq!(prompt, "<s>[INST] Hi [/INST]");
    let cases = fixture("llama_slow.json");
    let mut compared = 0;
    for case in cases["texts"].as_array().unwrap() {
        // The fixture's tokenizer has task tokens, this one has not.
        if common::TASK_TOKENS
            .iter()
            .any(|t| text(&case["text"]).contains(t))
        {
            continue;
        }
        compared += 1;
        let sample = text(&case["text"]);
        let expected = ids(&case["legacy"]["ids"]);
        let found = tokenizer
            .encode(sample, tokenizer.default_options())
            .unwrap();
        assert_eq!(found, expected, "{sample:?}");
        assert_eq!(
            again.encode(sample, again.default_options()).unwrap(),
            expected
        );
    }
    assert!(compared > 50, "{compared}");
    let slow = Tokenizer::from_sentencepiece(
        fixture_path("mistral_v1/tokenizer.model"),
        Default::default(),
    )
    .unwrap();
    for sample in TEXTS {
        let expected = slow.encode_segment(sample).unwrap();
        assert_eq!(
            tokenizer.encode_segment(sample).unwrap(),
            expected,
            "{sample:?}"
        );
    }
    refused(
        &mistral().without("tokenizer.ggml.scores"),
        &["tokenizer.ggml.scores"],
    );
    refused(
        &mistral().f32s("tokenizer.ggml.scores", &[f32::NAN; 32000]),
        &["finite"],
    );
}

#[test]
fn changed_and_cut_files_are_errors_or_models() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = model("llama", TYPES[3]);
    let whole = file.bytes();
    fuzzing::gguf(&whole, dir.path()).unwrap();
    let header = whole.len() - file.tensors.iter().map(|t| t.data.len()).sum::<usize>();
    let mut noise = Noise(3);
    for _ in 0..150 {
        let mut bytes = whole.clone();
        for _ in 0..1 + noise.next() % 4 {
            let at = noise.next() as usize % header;
            bytes[at] = noise.next() as u8;
        }
        fuzzing::gguf(&bytes, dir.path()).unwrap();
        bytes.truncate(noise.next() as usize % whole.len());
        fuzzing::gguf(&bytes, dir.path()).unwrap();
    }
}
