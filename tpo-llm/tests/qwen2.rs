//! Qwen2: its sizes, a tokenizer of its form and size, and LLaVA-OneVision's tokens in its spare rows.

mod common;

use burn::tensor::Device;
use common::TASK_TOKENS;
use serde_json::{Value, json};
use tpo_core::prompt::Visual;
use tpo_data::prompts::qwen::{NAMED_TOKENS, QwenLayout};
use tpo_data::prompts::{Opening, PromptLayout, VisualSlots};
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::{LlmConfig, TokenPlan};

/// Entries of Qwen2's vocabulary before its control tokens.
const WORDS: u32 = 151_643;
/// The words that pairs of others merge to, in the spelling of the file.
const MERGES: [(&str, &str); 7] = [
    ("1", "2"),
    ("'", "S"),
    ("\u{120}", "\u{120}"),
    (".", "\u{10a}"),
    ("\u{10a}", "\u{10a}"),
    ("u", "s"),
    ("us", "er"),
];

/// Bytes as a byte-level vocabulary spells them.
fn letters() -> Vec<char> {
    let plain = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || b >= 174;
    let mut next = 256;
    let letters = (0..256).map(|b| {
        if plain(b) {
            return b;
        }
        next += 1;
        next - 1
    });
    letters.map(|c| char::from_u32(c).unwrap()).collect()
}

/// A `tokenizer.json` with everything of Qwen2's but its words.
fn file() -> Value {
    let mut vocab = serde_json::Map::new();
    let mut next = 0;
    let mut add = |word: String| {
        vocab.entry(word).or_insert_with(|| {
            next += 1;
            json!(next - 1)
        });
    };
    letters().iter().for_each(|c| add(c.to_string()));
    add("er".into());
    MERGES.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    (0..WORDS - 256 - 8).for_each(|i| add(format!("<word {i}>")));
    let merges = [("e", "r")].into_iter().chain(MERGES);
    let merges: Vec<String> = merges.map(|(a, b)| format!("{a} {b}")).collect();
    let control = |(id, name): (u32, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let added = [
        (WORDS, "<|endoftext|>"),
        (WORDS + 1, "<|im_start|>"),
        (WORDS + 2, "<|im_end|>"),
    ];
    let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.map(control),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false},
            byte_level,
        ]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges},
    })
}

fn files() -> Vec<(String, Vec<u8>)> {
    let config =
        json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": null});
    let generation = json!({"eos_token_id": [WORDS + 2, WORDS]});
    vec![
        ("tokenizer.json".into(), file().to_string().into()),
        ("tokenizer_config.json".into(), config.to_string().into()),
        (
            "generation_config.json".into(),
            generation.to_string().into(),
        ),
    ]
}

/// A text as its tokens, one after the other.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode_segment(text).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    let piece = |id: &u32| tokenizer.id_to_token(*id).unwrap();
    ids.iter().map(piece).collect()
}

#[test]
fn published_sizes() {
    let large = LlmConfig::qwen2_7b();
    let hf = |vocab: usize, hidden: usize, inner: usize, layers: usize, heads: [usize; 2], tied| {
        let config = json!({
            "model_type": "qwen2", "vocab_size": vocab, "hidden_size": hidden,
            "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads[0], "num_key_value_heads": heads[1],
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "tie_word_embeddings": tied, "sliding_window": 32768, "use_sliding_window": false,
            "max_window_layers": layers, "hidden_act": "silu",
        });
        let mut config = LlmConfig::from_hf_json(&config.to_string()).unwrap();
        // Where a window would begin, if there were one.
        config.window_from_layer = 0;
        config
    };
    assert_eq!(large, hf(152_064, 3584, 18944, 28, [28, 4], false));
    let small = LlmConfig::qwen2_0_5b();
    assert_eq!(small, hf(151_936, 896, 4864, 24, [14, 2], true));
    assert_eq!((large.head_dim, small.head_dim), (128, 64));
    // Parameters of the language models alone; the rest of the manifest's are tower and projector.
    let parameters = |c: &LlmConfig| {
        let (d, kv) = (c.hidden_size, c.num_key_value_heads * c.head_dim);
        let block = 2 * d * d + 2 * d * kv + d + 2 * kv + 3 * d * c.intermediate_size + 2 * d;
        let tables = if c.tie_word_embeddings { 1 } else { 2 };
        c.num_hidden_layers * block + tables * c.vocab_size * d + d
    };
    assert_eq!(parameters(&large), 7_615_616_512);
    assert_eq!(parameters(&small), 494_032_768);
}

#[test]
fn words_are_split_as_qwen2_does() {
    let tokenizer = Tokenizer::from_files(&files(), "qwen2").unwrap();
    // A number is one digit; a contraction has no case; of spaces the last belongs to the word; signs
    // take the ends of their line with them; ends of lines stay together.
    assert_eq!(pieces(&tokenizer, "12"), ["1", "2"]);
    assert_eq!(pieces(&tokenizer, "x'Sx"), ["x", "'S", "x"]);
    assert_eq!(
        pieces(&tokenizer, "x   x"),
        ["x", "\u{120}\u{120}", "\u{120}", "x"]
    );
    assert_eq!(pieces(&tokenizer, "x.\nx"), ["x", ".\u{10a}", "x"]);
    assert_eq!(pieces(&tokenizer, "user\n\n"), ["user", "\u{10a}\u{10a}"]);
    // NFC before all.
    let both = ["e\u{301}", "\u{e9}"].map(|text| tokenizer.encode_segment(text).unwrap());
    assert_eq!(both[0], both[1]);
    let defaults = tokenizer.default_options();
    assert!(!defaults.add_bos && !defaults.add_eos);
    let ends = (tokenizer.eos_id(), tokenizer.eos_ids(), tokenizer.pad_id());
    assert_eq!(
        ends,
        (Some(151_645), &[151_645, 151_643][..], Some(151_643))
    );
}

#[test]
fn spare_rows_get_the_names_of_new_tokens() {
    let mut tokenizer = Tokenizer::from_files(&files(), "qwen2").unwrap();
    let rows = LlmConfig::qwen2_0_5b().vocab_size;
    let tokens = NAMED_TOKENS.into_iter().chain(TASK_TOKENS);
    let plan = TokenPlan::new(&tokenizer, rows, tokens);
    let ids: Vec<u32> = plan.ids().map(|(_, id)| id).collect();
    assert_eq!(ids, (151_646..=151_654).collect::<Vec<_>>());
    assert_eq!((plan.rows.used, plan.rows.total), (151_646, 151_655));
    let lm = LlmConfig::new(rows, 8, 8, 1, 1, 1, 8).with_tie_word_embeddings(true);
    let lm = plan.apply(&mut tokenizer, lm.init(&Device::flex()).unwrap());
    assert_eq!(lm.unwrap().table_rows(), [rows; 2]);
    let again =
        Tokenizer::from_files(&tokenizer.write_added(&files()).unwrap(), "written").unwrap();
    let text = "<box_begin><boxes> a <track_box>";
    for tokenizer in [&tokenizer, &again] {
        let ids = tokenizer.encode_segment(text).unwrap();
        assert_eq!(
            (ids[..2].to_vec(), ids[5]),
            (vec![151_648, 151_651], 151_654)
        );
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }

    // A conversation as the model reads it: control tokens are one id each, the visual has its rows, and
    // there is no BOS.
    let visuals = [VisualSlots {
        kind: Visual::Image,
        count: 3,
    }];
    let opening = Opening {
        visuals: &visuals,
        ..Opening::text("12")
    };
    let prompt = QwenLayout.opening(&opening, &again).unwrap();
    let control = |id: &&u32| (151_643..151_648).contains(*id);
    let control: Vec<u32> = prompt.ids.iter().filter(control).copied().collect();
    assert_eq!(control, [151_644, 151_645, 151_644, 151_645, 151_644]);
    assert_eq!(prompt.ids[0], 151_644);
    let at = prompt.visual.iter().position(|v| *v).unwrap();
    assert_eq!(prompt.visual_slots(), 3);
    assert_eq!(
        again.decode(&prompt.ids[at - 2..at], false).unwrap(),
        "user\n"
    );
    assert_eq!(
        again.decode(&prompt.ids[at + 3..at + 6], false).unwrap(),
        "\n12"
    );
    let ends = QwenLayout.ends().iter().map(|end| again.token_to_id(end));
    assert!(ends.eq([Some(151_645), Some(151_643)]));
}
