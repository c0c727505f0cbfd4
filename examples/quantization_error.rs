//! What quantising a language model costs: mean Kullback-Leibler divergence of its next-token
//! distributions from those in f32, over the sentences of text files.
//!
//! ```sh
//! tools/smollm2.sh .models/smollm2.gguf
//! cargo run --release --example quantization_error -- .models/smollm2.gguf docs/*.md README.md
//! ```

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, FloatDType, Tensor};
use tpo::core::ops::QuantFormat;
use tpo::core::traits::LanguageModel;
use tpo::llm::{CausalLm, HfModel, HfOptions, from_pretrained};

/// Sentences that are compared.
const SENTENCES: usize = 200;
/// Fewest and most words of a sentence.
const WORDS: std::ops::RangeInclusive<usize> = 8..=60;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or(
        "give a GGUF file (.models/smollm2.gguf) or a Hugging Face directory, and text files",
    )?;
    let mut text = String::new();
    for path in args {
        text += &std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        text += "\n\n";
    }
    let open = |dtype, quantize| {
        let dtype = Some(dtype);
        from_pretrained(&model, &Device::flex(), HfOptions { dtype, quantize }, None)
    };
    let HfModel { lm, tokenizer, .. } = open(FloatDType::F32, None)?;
    let sentences: Vec<&str> = text
        .split_terminator(['.', '|', '\n'])
        .map(str::trim)
        .filter(|s| WORDS.contains(&s.split_whitespace().count()))
        .take(SENTENCES)
        .collect();
    if sentences.is_empty() {
        return Err("the files hold no sentence of 8 to 60 words".into());
    }
    let ids = sentences
        .iter()
        .map(|s| tokenizer.encode(s, tokenizer.default_options()))
        .collect::<Result<Vec<_>, _>>()?;
    let tokens: usize = ids.iter().map(Vec::len).sum();
    println!("{} sentences, {tokens} tokens", sentences.len());
    let exact = ids
        .iter()
        .map(|ids| log_probabilities(&lm, ids))
        .collect::<Result<Vec<_>, _>>()?;
    println!(
        "{:10} {:>10} {:>16}",
        "format", "mean KL", "same next token"
    );
    let formats = [
        ("bf16", FloatDType::BF16, None),
        ("q8_0", FloatDType::F32, Some(QuantFormat::Q8_0)),
        ("q4_0", FloatDType::F32, Some(QuantFormat::Q4_0)),
    ];
    for (name, dtype, quantize) in formats {
        let other = open(dtype, quantize)?.lm;
        let (mut divergence, mut same) = (0.0, 0.0);
        for (ids, exact) in ids.iter().zip(&exact) {
            let found = log_probabilities(&other, ids)?;
            let kl = (exact.clone().exp() * (exact.clone() - found.clone())).sum();
            divergence += kl.into_scalar::<f32>() as f64;
            let equal = exact.clone().argmax(1).equal(found.argmax(1));
            same += equal.int().sum().into_scalar::<i32>() as f64;
        }
        let (kl, same) = (divergence / tokens as f64, 100.0 * same / tokens as f64);
        println!("{name:10} {kl:>10.5} {same:>14.1} %");
    }
    Ok(())
}

/// Log-probabilities `[length, vocabulary]` of what follows each token.
fn log_probabilities(lm: &CausalLm, ids: &[u32]) -> tpo::Result<Tensor<2>> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let ids = Tensor::<1, burn::tensor::Int>::from_ints(ids.as_slice(), &Device::flex());
    let embeds = lm.embed(ids.unsqueeze::<2>());
    let logits = lm.logits(lm.hidden(embeds, None)?);
    Ok(log_softmax(
        logits.squeeze_dim::<2>(0).cast(FloatDType::F32),
        1,
    ))
}
