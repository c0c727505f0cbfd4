//! Trains the tokenizer of the mini model on the words of the synthetic world.
//!
//! `cargo run --release --example mini_tokenizer -- --out assets/mini/tokenizer.json`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::ProgressBar;
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};
use tpo::data::prompts::box_text;
use tpo::data::synthetic::{Clip, Split, World, WorldConfig};
use tpo::model::videochat_tasks;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Train a byte-level tokenizer on what is asked and answered in the synthetic world: byte pairs
/// that occur often become one token, digits stay single, any text can be written. The task tokens
/// get the last ids.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Clips whose words are read.
    #[arg(long, default_value_t = 6000)]
    clips: u64,
    /// Seed of the world.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Most byte pairs that become one token.
    #[arg(long, default_value_t = 420)]
    merges: usize,
    /// Where the tokenizer goes.
    #[arg(long, default_value = "out/tokenizer.json")]
    out: PathBuf,
}

fn main() -> ExitCode {
    sigpipe::reset();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn folder_of(path: &Path) -> Outcome<()> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    Ok(())
}

/// Everything that is asked about a clip, and what is true, with places and times in words.
fn lines(clip: &Clip) -> Vec<(String, String)> {
    let frames = clip.scene.render_all();
    let mut lines: Vec<(String, String)> = Vec::new();
    for q in clip.questions(&frames) {
        lines.push((q.question, q.answer));
    }
    for q in clip.region_queries(&frames) {
        lines.push((q.question, format!("It is at {}.", box_text(&q.area))));
    }
    for q in clip.temporal_queries() {
        let spans: Vec<String> = q
            .spans
            .iter()
            .map(|(a, b)| format!("{a:.1} - {b:.1} seconds"))
            .collect();
        lines.push((q.question, format!("It happens in {}.", spans.join(", "))));
    }
    for q in clip.mask_queries(&frames) {
        lines.push((q.question, "Here it is:".into()));
    }
    lines
}

fn run(args: &Args) -> Outcome<()> {
    let world = World::new(WorldConfig::default(), args.seed)?;
    let bar = ProgressBar::new(args.clips);
    let mut words = Vec::new();
    for index in 0..args.clips {
        let clip = world.clip(Split::Train, index);
        for (question, answer) in lines(&clip) {
            // As prompts lay them out, and as an answer stands by itself.
            words.push(format!(
                "[INST] <Video></Video>[/INST] [INST] {question} [/INST] "
            ));
            words.push(answer);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    // Digits one by one: numbers are read and written place by place.
    let split = PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ]));
    let mut learner = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    learner.with_pre_tokenizer(Some(split));
    let specials = ["<unk>", "<s>", "</s>"];
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(specials.len() + 256 + args.merges)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials.map(|s| AddedToken::from(s, true)).to_vec())
        .build();
    learner
        .train(&mut TrainerWrapper::from(trainer), words.iter())
        .map_err(|e| e.to_string())?;
    let learnt: serde_json::Value =
        serde_json::from_str(&learner.to_string(false).map_err(|e| e.to_string())?)?;
    let size = learner.get_vocab_size(true);
    let registry = videochat_tasks(size as u32);
    let mut added: Vec<serde_json::Value> = specials
        .iter()
        .enumerate()
        .map(|(id, word)| added_token(id as u32, word, true))
        .collect();
    let mut tasks: Vec<(u32, String)> =
        registry.tokens().map(|t| (t.id, t.token.clone())).collect();
    tasks.sort_unstable();
    added.extend(tasks.iter().map(|(id, word)| added_token(*id, word, false)));
    let mut model = learnt["model"].clone();
    model["unk_token"] = json!("<unk>");
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": learnt["pre_tokenizer"],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        },
        "model": model,
    });
    folder_of(&args.out)?;
    std::fs::write(&args.out, serde_json::to_string(&file)?)
        .map_err(|e| format!("{}: {e}", args.out.display()))?;
    println!("{}: {} tokens", args.out.display(), size + tasks.len());
    Ok(())
}

fn added_token(id: u32, content: &str, special: bool) -> serde_json::Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special,
    })
}
