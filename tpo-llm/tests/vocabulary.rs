//! New tokens on an existing base: rows, ids, files, and the check that all three fit.

mod common;

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor, TensorData};
use common::{fixture, fixture_path, videochat_tpo};
use serde_json::{Value, json};
use tpo_core::nn::Weight;
use tpo_core::traits::LanguageModel;
use tpo_core::weights::{Checkpoint, KeyRules, LoadOptions, SaveOptions, load_module, save_module};
use tpo_llm::config::LORA_TARGETS;
use tpo_llm::decoder::{LoraAdapter, OutputLayer};
use tpo_llm::tokenizer::{AddedToken, SentencePieceOptions, Tokenizer};
use tpo_llm::vocabulary::{check, problems};
use tpo_llm::{CausalLm, LlmConfig, LlmError, LoraConfig, TokenPlan, VocabularyRows};

const ROWS: usize = 53;

/// The adapter of the output layer.
fn adapter(lm: &mut CausalLm) -> Option<&mut LoraAdapter> {
    match &mut lm.lm_head {
        OutputLayer::Own(head) => head.lora.as_mut(),
        OutputLayer::Tied(tied) => tied.lora.as_mut(),
    }
}

/// Untied, tied, and both with an adapter on the output layer.
fn models(device: &Device) -> Vec<CausalLm> {
    let base = LlmConfig::new(ROWS, 40, 28, 2, 4, 2, 6);
    let lora = LoraConfig::new(3, 6.0, LORA_TARGETS.map(String::from).to_vec());
    let configs = [
        base.clone(),
        base.clone().with_tie_word_embeddings(true),
        base.clone().lora(lora.clone()),
        base.with_tie_word_embeddings(true).lora(lora),
    ];
    let models = configs.iter().map(|config| {
        device.seed(5);
        let mut lm = config.init(device).unwrap();
        if let Some(lora) = adapter(&mut lm) {
            let normal = Distribution::Normal(0.0, 0.3);
            lora.b = lora.b.clone().map(|b| {
                let learns = b.is_require_grad();
                b.random_like(normal).set_require_grad(learns)
            });
        }
        lm
    });
    models.collect()
}

fn grown(used: usize, total: usize) -> VocabularyRows {
    VocabularyRows { used, total }
}

fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec().unwrap()
}

fn logits(lm: &CausalLm) -> Tensor<2> {
    let device = lm.model.embed_tokens.weight.device();
    let ids = TensorData::new(vec![3i64, 11, 36, 0, 7], [1, 5]);
    let embeds = lm.embed(Tensor::<2, Int>::from_data(ids, &device));
    lm.logits(lm.hidden(embeds, None).unwrap()).squeeze_dim(0)
}

/// Columns `range` of logits, to the bit.
fn columns(logits: &Tensor<2>, range: std::ops::Range<usize>) -> Vec<u32> {
    let cut = logits.clone().slice_dim(1, range);
    values(cut).iter().map(|v| v.to_bits()).collect()
}

/// Mean of the first rows in 64 bits.
fn mean(table: &[f32], width: usize, used: usize) -> Vec<f64> {
    let column = |i: usize| (0..used).map(move |r| f64::from(table[r * width + i]));
    (0..width)
        .map(|i| column(i).sum::<f64>() / used as f64)
        .collect()
}

fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() < 1e-6, "{what}: {a} and {b}");
    }
}

#[test]
fn new_rows_are_the_mean_and_old_logits_keep_every_bit() {
    // Spare rows alone, spare and new ones, new ones alone.
    for (used, total) in [(47, 49), (47, 60), (ROWS, 55)] {
        for lm in models(&Device::flex()) {
            let (before, tied) = (logits(&lm), lm.lm_head.own().is_none());
            let table = values(lm.model.embed_tokens.weight.val());
            let new = lm.clone().with_vocabulary(grown(used, total)).unwrap();
            let rows = ROWS.max(total);
            assert_eq!(new.table_rows(), [rows; 2]);
            assert_eq!(new.config().vocab_size, rows);
            assert_eq!(new.lm_head.own().is_none(), tied);
            let after = logits(&new);
            assert_eq!(after.dims(), [5, rows]);
            assert_eq!(columns(&after, 0..used), columns(&before, 0..used));
            // Spare rows that nobody asked for.
            let rest = total.min(ROWS)..ROWS;
            assert_eq!(columns(&after, rest.clone()), columns(&before, rest));

            let found = values(new.model.embed_tokens.weight.val());
            assert_eq!(found[..used * 40], table[..used * 40]);
            let row = mean(&table, 40, used);
            for id in used..total {
                close(&found[id * 40..][..40], &row, "embedding");
            }
            // By linearity the logit of a new token is the mean of the used ones, adapter included.
            for (place, logits) in values(after).chunks(rows).enumerate() {
                let mean = mean(&values(before.clone())[place * ROWS..], 1, used);
                for id in used..total {
                    close(&logits[id..=id], &mean, "logit");
                }
            }
        }
    }
}

#[test]
fn merged_adapters_get_the_same_rows() {
    let lm = models(&Device::flex()).remove(2);
    let rows = grown(47, 60);
    let plain = lm.clone().with_vocabulary(rows).unwrap();
    let merged = lm.merge_lora().with_vocabulary(rows).unwrap();
    let expected: Vec<f64> = values(logits(&plain))
        .iter()
        .map(|v| f64::from(*v))
        .collect();
    close(&values(logits(&merged)), &expected, "merged");
    close(
        &values(logits(&merged.unmerge_lora())),
        &expected,
        "unmerged",
    );
}

#[test]
fn gradients_reach_new_rows_and_stay_what_they_were_at_old_ones() {
    let device = Device::flex().autodiff();
    for lm in models(&device) {
        let new = lm.clone().with_vocabulary(grown(47, 60)).unwrap();
        let weight = |lm: &CausalLm| match lm.lm_head.own() {
            Some(head) => head.weight.val(),
            None => lm.model.embed_tokens.weight.val(),
        };
        let gradient = |lm: &CausalLm, columns: std::ops::Range<usize>| {
            let loss = logits(lm).slice_dim(1, columns).square().sum();
            values(weight(lm).grad(&loss.backward()).unwrap())
        };
        let (before, after) = (gradient(&lm, 0..47), gradient(&new, 0..47));
        assert_eq!(after[..47 * 40], before[..47 * 40]);
        let at_new = gradient(&new, 58..59);
        assert!(at_new[58 * 40..59 * 40].iter().all(|g| *g != 0.0));
        assert!(at_new[59 * 40..].iter().all(|g| *g == 0.0));
    }
    // What does not learn does not begin to.
    let mut lm = models(&device).remove(0);
    if let Weight::Float(table) = &mut lm.model.embed_tokens.weight {
        *table = table.clone().set_require_grad(false);
    }
    let new = lm.with_vocabulary(grown(ROWS, 55)).unwrap();
    assert!(!new.model.embed_tokens.weight.val().is_require_grad());
    assert!(new.lm_head.own().unwrap().weight.val().is_require_grad());
}

/// A sum of 5,000 rows in bfloat16 would stop at 256.
#[test]
fn sums_are_in_32_bits() {
    let mut lm = LlmConfig::new(5_000, 8, 8, 1, 1, 1, 8)
        .init(&Device::flex())
        .unwrap();
    let embed = &mut lm.model.embed_tokens;
    embed.weight = (embed.weight.val().zeros_like() + 1.5)
        .cast(FloatDType::BF16)
        .into();
    let new = lm.with_vocabulary(grown(5_000, 5_001)).unwrap();
    let table = new.model.embed_tokens.weight.val();
    assert_eq!((table.dtype(), table.dims()), (DType::BF16, [5_001, 8]));
    let row = table.slice_dim(0, 5_000..5_001).cast(FloatDType::F32);
    assert_eq!(values(row), [1.5; 8]);
}

#[test]
fn a_grown_model_is_written_and_read_back() {
    for lm in models(&Device::flex()) {
        let lm = lm.with_vocabulary(grown(47, 60)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let rules = KeyRules::new();
        save_module(&lm, &rules, dir.path(), &SaveOptions::default()).unwrap();
        let fresh = lm.config().init(&Device::flex()).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let (read, _) = load_module(fresh, &checkpoint, &rules, &LoadOptions::default()).unwrap();
        assert_eq!(read.table_rows(), [60; 2]);
        assert_eq!(values(logits(&read)), values(logits(&lm)));
    }
}

#[test]
fn rows_that_cannot_be_are_refused() {
    let lm = models(&Device::flex()).remove(0);
    let same = lm.clone().with_vocabulary(grown(47, 47)).unwrap();
    assert_eq!(same.config(), lm.config());
    for (used, total, says) in [
        (0, 60, "0 ids are said to be in use"),
        (54, 60, "the model has 53 rows"),
        (47, 40, "40 ids in all are fewer than the 47 in use"),
    ] {
        let error = lm.clone().with_vocabulary(grown(used, total)).unwrap_err();
        assert!(matches!(error, LlmError::Vocabulary { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(lm.with_vocabulary(grown(53, usize::MAX)).is_err());
}

fn bytes(spec: &Value) -> Vec<(String, Vec<u8>)> {
    // As published files are written, with line breaks.
    let text = serde_json::to_string_pretty(spec).unwrap();
    vec![
        ("tokenizer.json".into(), text.into_bytes()),
        (
            "tokenizer_config.json".into(),
            b"{\"eos_token\": \"<|im_end|>\"}".to_vec(),
        ),
    ]
}

fn opened(files: &[(String, Vec<u8>)]) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    Tokenizer::from_dir(dir.path()).unwrap()
}

#[test]
fn tokens_are_placed_added_written_and_found_again() {
    let files = bytes(&fixture("tokenizer_json.json")["byte_level"]["tokenizer"]);
    let mut tokenizer = opened(&files);
    let used = tokenizer.vocab_size();
    let first = used as u32;
    let lm = LlmConfig::new(used + 2, 8, 8, 1, 1, 1, 8)
        .init(&Device::flex())
        .unwrap();
    let tokens = ["<point_begin>", "<|im_end|>", "<point>", "<far>", "<point>"];
    let plan = TokenPlan::new(&tokenizer, lm.table_rows()[0], tokens);
    let places: Vec<u32> = plan.ids().map(|(_, id)| id).collect();
    assert_eq!(places, [first, 2, first + 1, first + 2]);
    assert_eq!(plan.rows, grown(used, used + 3));
    assert_eq!(tokenizer.vocab_size(), used, "a plan changes nothing");

    let lm = plan.apply(&mut tokenizer, lm).unwrap();
    assert_eq!(lm.table_rows(), [used + 3; 2]);
    let written = tokenizer.write_added(&files).unwrap();
    assert_eq!(written[1], files[1]);
    let again = opened(&written);
    check(plan.ids(), &again, &lm).unwrap();
    let input = "Where is it?<point_begin><point> There.";
    assert_eq!(
        again.encode_segment(input).unwrap(),
        tokenizer.encode_segment(input).unwrap()
    );
    assert!(again.encode_segment(input).unwrap().contains(&(first + 1)));
    assert_eq!(
        again.decode(&[first, first + 1], true).unwrap(),
        "<point_begin><point>"
    );
    // Nothing is left to write.
    assert_eq!(again.write_added(&written).unwrap(), written);
    // All but the new entries is as it was.
    let (old, new) = (&files[0].1, &written[0].1);
    let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    assert!(new.ends_with(&old[same..]));
}

#[test]
fn files_of_every_form_take_tokens() {
    let spec = fixture("tokenizer_json.json")["byte_level"]["tokenizer"].clone();
    let with_tokens = |files: &[(String, Vec<u8>)]| {
        let mut tokenizer = Tokenizer::from_tokenizer_json_bytes(&files[0].1).unwrap();
        let ids = tokenizer.add_tokens(&[AddedToken::new("<a\"\n>"), AddedToken::special("<b>")]);
        (tokenizer, ids.unwrap())
    };
    let mut none = spec.clone();
    none["added_tokens"] = json!([]);
    let mut absent = spec.clone();
    absent.as_object_mut().unwrap().remove("added_tokens");
    // A token of the key's name.
    let mut named = spec.clone();
    let next = named["model"]["vocab"].as_object().unwrap().len();
    named["model"]["vocab"]["added_tokens"] = json!(next);
    named["model"]["vocab"]["\"added_tokens\": ["] = json!(next + 1);
    for spec in [none, absent, named, spec] {
        let files = bytes(&spec);
        let (tokenizer, ids) = with_tokens(&files);
        let written = tokenizer.write_added(&files[..1]).unwrap();
        let again = Tokenizer::from_tokenizer_json_bytes(&written[0].1).unwrap();
        assert_eq!(again.token_to_id("<a\"\n>"), Some(ids[0]));
        assert_eq!(again.token_to_id("<b>"), Some(ids[1]));
        assert!(again.is_special(ids[1]) && !again.is_special(ids[0]));
    }
    // Another tokenizer's file.
    let (tokenizer, _) = with_tokens(&bytes(&spec_of("byte_level")));
    let error = tokenizer.write_added(&bytes(&spec_of("bert"))).unwrap_err();
    assert!(matches!(error, LlmError::TokenizerFile { .. }), "{error}");
}

fn spec_of(kind: &str) -> Value {
    fixture("tokenizer_json.json")[kind]["tokenizer"].clone()
}

#[test]
fn sentencepiece_files_stay_and_tokens_are_added_again() {
    let name = "mistral_v1/tokenizer.model";
    let model = std::fs::read(fixture_path(name)).unwrap();
    let files = vec![("tokenizer.model".to_string(), model.clone())];
    let mut tokenizer = videochat_tpo(true);
    let plan = TokenPlan::new(&tokenizer, 32_007, ["<point_begin>", "<boxes>"]);
    let places: Vec<u32> = plan.ids().map(|(_, id)| id).collect();
    assert_eq!(places, [32_007, 32_003]);
    tokenizer
        .add_tokens(&[AddedToken::new("<point_begin>")])
        .unwrap();
    assert_eq!(tokenizer.write_added(&files).unwrap(), files);
    let options = SentencePieceOptions::default();
    let mut again = Tokenizer::from_sentencepiece(fixture_path(name), options).unwrap();
    again.add_tokens_with_ids(plan.ids()).unwrap();
    assert!(problems(plan.ids(), &again, [32_008; 2]).is_empty());
}

#[test]
fn all_that_does_not_fit_is_said_at_once() {
    let tokenizer = opened(&bytes(&spec_of("byte_level")));
    let end = tokenizer.vocab_size() as u32;
    let tokens = [
        ("<|im_end|>", 2),
        ("<|im_start|>", 7),
        ("<point>", 2),
        ("<far>", end + 4),
    ];
    let rows = [end as usize + 9, end as usize];
    let found = problems(tokens, &tokenizer, rows);
    let says = [
        "`<|im_start|>` has id 7 in the registry and 1 in the tokenizer".to_string(),
        "`<|im_end|>` and `<point>` have one id, 2".into(),
        "`<point>` (id 2) is not in the tokenizer, and its id 2 is there the token `<|im_end|>`"
            .into(),
        format!("`<far>` (id {}) is not in the tokenizer; add it", end + 4),
        format!("`<far>` has id {} and the output layer {end} rows", end + 4),
    ];
    assert_eq!(found.len(), says.len(), "{found:#?}");
    for (problem, says) in found.iter().zip(says) {
        assert!(problem.starts_with(&says), "{problem}, want {says}");
    }
    let lm = LlmConfig::new(end as usize, 8, 8, 1, 1, 1, 8)
        .init(&Device::flex())
        .unwrap();
    check([("<|im_end|>", 2)], &tokenizer, &lm).unwrap();
    let error = check(tokens, &tokenizer, &lm).unwrap_err().to_string();
    assert!(error.contains("the embedding table"), "{error}");
}
