//! Generate text with a language model from a Hugging Face directory or a GGUF file.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::FloatDType;
use tpo_core::traits::LanguageModel;
use tpo_llm::chat_template::Message;
use tpo_llm::generation::GenerationConfig;
use tpo_llm::sampling::SamplingConfig;
use tpo_llm::{HfOptions, from_pretrained};

use super::shared::{DeviceArgs, End, Outcome, Precision, QuantizeArg, loading};
use crate::CONFIG_FILE;

/// Generate text with a language model.
///
/// Reads config.json, safetensors and the tokenizer of a Hugging Face directory (Llama, Mistral,
/// Qwen2, SmolLM2), or a .gguf file with tensors of the types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K
/// and Q6_K. tools/smollm2.sh downloads one of SmolLM2-135M-Instruct.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:
  tools/smollm2.sh .models/smollm2.gguf
  tpo generate --model .models/smollm2.gguf 'What is the capital of France?'"
)]
pub(super) struct Args {
    /// What to say
    prompt: String,
    /// Hugging Face directory, or GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Feed the text as it is instead of through the model's chat template
    #[arg(long)]
    raw: bool,
    /// System message
    #[arg(long)]
    system: Option<String>,
    /// Most new tokens; fewer where the model's context ends, which is said
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Above 1 discourages repetition
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Seed of sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number format of the weights in memory; auto is f32
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Precision,
    /// Quantise the linear layers while they are read; what a .gguf file has in this format is taken
    /// as it is
    #[arg(long, value_enum, default_value = "none")]
    quantize: QuantizeArg,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    if args.model.join(CONFIG_FILE).is_file() {
        let dir = args.model.display();
        return Err(format!(
            "{dir} holds a video language model ({CONFIG_FILE}), not a language model alone; ask it with \
             `tpo chat --model {dir} --video FILE --ask TEXT`"
        )
        .into());
    }
    let device = args.device.open()?;
    let options = HfOptions {
        dtype: args.dtype.float().or(Some(FloatDType::F32)),
        quantize: args.quantize.format(),
    };
    let start = Instant::now();
    let model = loading(|heard| from_pretrained(&args.model, &device, options, Some(heard)))?;
    eprintln!("loaded in {:.2} s", start.elapsed().as_secs_f64());

    let tokenizer = &model.tokenizer;
    let ids = if args.raw {
        tokenizer.encode(&args.prompt, tokenizer.default_options())?
    } else {
        let system = args.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain([Message::new("user", &args.prompt)]).collect();
        tokenizer.encode_segment(&tokenizer.apply_chat_template(&messages, true)?)?
    };
    let stop = tokenizer.eos_ids().to_vec();
    let config = GenerationConfig {
        max_new_tokens: args.max_new_tokens,
        stop: stop.clone(),
        sampling: SamplingConfig {
            top_k: args.top_k,
            top_p: args.top_p,
            repetition_penalty: args.repetition_penalty,
            ..SamplingConfig::sampling(args.temperature, args.seed)
        },
    };

    let start = Instant::now();
    let mut decoder = tokenizer.decode_stream(true);
    let (mut count, mut first, mut stopped) = (0_usize, None, false);
    for id in model.lm.stream(&ids, config, &device)? {
        let id = id?;
        count += 1;
        first.get_or_insert_with(|| start.elapsed());
        stopped = stop.contains(&id);
        if stopped {
            break;
        }
        print!("{}", decoder.push(id)?);
        std::io::stdout().flush()?;
    }
    println!("{}", decoder.finish()?);
    if !stopped && count < args.max_new_tokens {
        eprintln!(
            "the text ends here because the model's {} positions are full: {} of the prompt, {count} new",
            model.lm.max_length(),
            ids.len()
        );
    }
    if let Some(first) = first {
        let rest = start.elapsed().saturating_sub(first).as_secs_f64();
        eprintln!(
            "{} prompt tokens, first token after {:.2} s, then {:.1} tokens/s",
            ids.len(),
            first.as_secs_f64(),
            (count - 1) as f64 / rest.max(1e-9)
        );
    }
    Ok(End::Fine)
}
