//! Generates text with a language model from a GGUF file or a Hugging Face directory, token by token.
//!
//! ```text
//! tools/smollm2.sh .models/smollm2.gguf
//! cargo run --release --example generate_text -- .models/smollm2.gguf 'What is the capital of France?'
//! ```

use std::io::Write;

use tpo::llm::chat_template::Message;
use tpo::llm::generation::GenerationConfig;
use tpo::llm::sampling::SamplingConfig;
use tpo::llm::{HfOptions, from_pretrained};
use tpo::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or(".models/smollm2.gguf".into());
    let question = args
        .next()
        .unwrap_or("What is the capital of France?".into());

    let device = DeviceChoice::Auto.open()?;
    let model = from_pretrained(path, &device, HfOptions::default(), None)?;
    // The model's chat template lays out the conversation as the model learnt it.
    let messages = [Message::new("user", &question)];
    let text = model.tokenizer.apply_chat_template(&messages, true)?;
    let prompt = model.tokenizer.encode_segment(&text)?;

    let config = GenerationConfig {
        max_new_tokens: 64,
        stop: model.tokenizer.eos_ids().to_vec(),
        sampling: SamplingConfig::greedy(),
    };
    // A token may end in the middle of a letter; the decoder waits for the rest.
    let mut decoder = model.tokenizer.decode_stream(true);
    for id in model.lm.stream(&prompt, config, &device)? {
        print!("{}", decoder.push(id?)?);
        std::io::stdout().flush()?;
    }
    println!("{}", decoder.finish()?);
    Ok(())
}
