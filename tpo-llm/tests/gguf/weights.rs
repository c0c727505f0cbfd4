//! Weights and sizes.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use serde_json::json;
use tpo_core::ops::QuantFormat;
use tpo_core::traits::LanguageModel;
use tpo_core::weights::{TensorSource, write_tensors};
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::{CausalLm, GgufModel, HfOptions, from_pretrained};

use crate::common::fixture;
use crate::gguf_bytes::Gguf;
use crate::models::*;

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
                // Blocks of the format lose nothing; the output layer has 8 bits in every format.
                let same = kind.0.eq_ignore_ascii_case(format.name());
                let limit = match format {
                    _ if !same => limit,
                    // Every layer rounds its input to 16 bits.
                    QuantFormat::Q8_0 => 2e-4,
                    QuantFormat::Q4_0 => 1e-2,
                };
                assert!(error < limit, "{what} as {}: {error}", format.name());
            }
        }
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
    for heads in [0, u32::MAX] {
        refused(
            &with().u32("llama.attention.head_count", heads),
            &["`llama.attention.head_count` is", &heads.to_string()],
        );
    }
    refused(&with().u32("llama.block_count", 0), &["num_hidden_layers"]);
    refused(
        &with().f32("llama.attention.layer_norm_rms_epsilon", f32::NAN),
        &["rms_norm_eps"],
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
    let nowhere = from_pretrained("no/such.gguf", &device, HfOptions::default(), None);
    assert!(nowhere.unwrap_err().to_string().contains("no/such.gguf: "));
    let (file, weights) = model("llama", TYPES[3]);
    // A directory is no GGUF file; what is in it is said.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b.gguf"), file.bytes()).unwrap();
    let inside = from_pretrained(dir.path(), &device, HfOptions::default(), None);
    let message = inside.unwrap_err().to_string();
    assert!(
        message.contains("no config.json") && message.contains("b.gguf"),
        "{message}"
    );
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
