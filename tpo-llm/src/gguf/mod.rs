//! Language models in GGUF files.

mod config;
mod tokenizer;
mod vocabulary;

use std::path::Path;

use burn::tensor::{Device, FloatDType};
use tpo_core::weights::{
    Checkpoint, Dtype, DtypePolicy, GgufFile, KeyRules, LoadOptions, TensorEntry, load_module,
    read_tensor,
};

use crate::config::LlmConfig;
use crate::error::{LlmError, Result};
use crate::hf::{HfModel, HfOptions};
use crate::tokenizer::Tokenizer;

/// Architectures that are read, as `general.architecture` calls them.
const LLAMA: &str = "llama";
const QWEN2: &str = "qwen2";

/// Names of the tensors of a block, ours and those of GGUF.
const LAYERS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Names of the other tensors, likewise.
const OTHERS: [(&str, &str); 3] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
];

/// A language model in a GGUF file, whose weights have not been read.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: LlmConfig,
    checkpoint: Checkpoint,
    rules: KeyRules,
    tokenizer_files: Vec<(String, Vec<u8>)>,
}

impl GgufModel {
    /// Opens a file of the architecture `llama` (Llama, Mistral, SmolLM2) or `qwen2`.
    ///
    /// # Errors
    /// [`WeightsError::Gguf`](tpo_core::weights::WeightsError::Gguf) for a damaged file;
    /// [`LlmError::Unsupported`] for what this decoder does not compute, such as scaled RoPE or
    /// experts, and for a tokenizer that is not read, each by its name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_file(GgufFile::open(path)?)
    }

    /// [`open`](Self::open) of a file whose header has been read.
    ///
    /// # Errors
    /// As there.
    pub fn from_file(file: GgufFile) -> Result<Self> {
        let config = config::read(&file)?;
        let permuted = file.get("general.architecture")? == Some(LLAMA);
        let (q_heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let checkpoint = file.checkpoint(|key| match layer_part(key) {
            Some("attn_q") if permuted => Some(q_heads),
            Some("attn_k") if permuted => Some(kv_heads),
            _ => None,
        });
        let rules = rules(&checkpoint)?;
        Ok(Self {
            tokenizer_files: tokenizer::files(&file, config.vocab_size)?,
            file,
            config,
            checkpoint,
            rules,
        })
    }

    /// The header of the file.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// Its sizes.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Its tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where its tensors go in a [`CausalLm`](crate::CausalLm).
    pub fn keys(&self) -> &KeyRules {
        &self.rules
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_files(&self.tokenizer_files, self.file.path())
    }

    /// The files (name, bytes) of a Hugging Face directory with this tokenizer: `tokenizer.json`,
    /// `tokenizer_config.json` and `generation_config.json`.
    pub fn tokenizer_files(&self) -> &[(String, Vec<u8>)] {
        &self.tokenizer_files
    }

    /// Reads the weights and the tokenizer.
    ///
    /// Tensors in blocks are decoded one at a time. Where blocks are of the format that linear
    /// layers are to be quantised to, they are taken as they are. Without
    /// [`HfOptions::dtype`] the weights are of the type of the token embeddings, or `f32` if these
    /// are in blocks.
    ///
    /// `progress` is called with (bytes done, bytes in total).
    ///
    /// # Errors
    /// Any weight that is missing, unexpected or of another shape.
    pub fn load(
        &self,
        device: &Device,
        options: HfOptions,
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<HfModel> {
        let config = self.config.clone().with_quantization(options.quantize);
        let dtype = options.dtype.unwrap_or_else(|| self.dtype());
        let load = LoadOptions {
            dtype: DtypePolicy::Cast(dtype),
            progress,
            ..LoadOptions::default()
        };
        let tokenizer = self.tokenizer()?;
        let model = config.init(device)?;
        let (lm, report) = load_module(model, &self.checkpoint, &self.rules, &load)?;
        Ok(HfModel {
            lm,
            tokenizer,
            report,
        })
    }

    fn dtype(&self) -> FloatDType {
        match self.checkpoint.get(EMBEDDINGS).map(|t| t.dtype) {
            Some(Dtype::F16) => FloatDType::F16,
            Some(Dtype::BF16) => FloatDType::BF16,
            _ => FloatDType::F32,
        }
    }
}

/// The token embeddings.
const EMBEDDINGS: &str = "token_embd.weight";
/// The output layer, if it is not the embeddings.
const OUTPUT: &str = "output.weight";
/// Divisors of the rotary frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// What a tensor of a block is for: `attn_q` of `blk.3.attn_q.weight`.
fn layer_part(key: &str) -> Option<&str> {
    let (_, rest) = key.strip_prefix("blk.")?.split_once('.')?;
    rest.split('.').next()
}

fn rules(checkpoint: &Checkpoint) -> Result<KeyRules> {
    let mut forward = Vec::new();
    let mut inverse = Vec::new();
    for (ours, theirs) in LAYERS {
        forward.push((
            format!(r"^blk\.(\d+)\.{theirs}\."),
            format!("model.layers.$1.{ours}."),
        ));
        let pattern = ours.replace('.', r"\.");
        inverse.push((
            format!(r"^model\.layers\.(\d+)\.{pattern}\."),
            format!("blk.$1.{theirs}."),
        ));
    }
    for (ours, theirs) in OTHERS {
        forward.push((format!(r"^{theirs}\."), format!("{ours}.")));
        inverse.push((
            format!(r"^{}\.", ours.replace('.', r"\.")),
            format!("{theirs}."),
        ));
    }
    let [forward, inverse] = [&forward, &inverse].map(|rules| -> Vec<(&str, &str)> {
        rules.iter().map(|(from, to)| (&**from, &**to)).collect()
    });
    let mut rules = KeyRules::new().rewrite(&forward, &inverse)?;
    if let Some(factors) = checkpoint.get(ROPE_FACTORS) {
        if !all_one(factors)? {
            return Err(LlmError::Unsupported {
                what: format!(
                    "{}: {ROPE_FACTORS} divides the rotary frequencies (scaled RoPE, as in Llama 3.1 \
                     and later); only unscaled RoPE is built: take a model without it, such as Llama 3, \
                     Mistral or Qwen2",
                    factors.file.display()
                ),
            });
        }
        rules = rules.ignore(
            &format!("^{}$", ROPE_FACTORS.replace('.', r"\.")),
            "it divides the rotary frequencies by 1",
        )?;
    }
    Ok(rules)
}

/// Whether a small tensor of `f32` has ones only.
fn all_one(factors: &TensorEntry) -> Result<bool> {
    const MOST: usize = 1 << 16;
    if factors.dtype != Dtype::F32 || factors.len > MOST as u64 {
        return Ok(false);
    }
    let data = read_tensor(factors)?;
    Ok(data.iter::<f32>().all(|factor| factor == 1.0))
}
