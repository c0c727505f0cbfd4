//! The configuration of a model from the metadata of a GGUF file.

use tpo_core::weights::{GgufFile, TensorEntry};

use super::{EMBEDDINGS, LLAMA, OUTPUT, QWEN2};
use crate::config::LlmConfig;
use crate::error::{LlmError, Result};

/// Keys of an architecture that change what is computed, in a way that is not built, with the value
/// that changes nothing.
const FACTORS: [(&str, f64); 8] = [
    ("expert_count", 0.0),
    ("attention.scale", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
];

/// The metadata of one architecture.
struct Metadata<'a> {
    file: &'a GgufFile,
    arch: &'a str,
}

/// The configuration of the model in `file`.
pub(super) fn read(file: &GgufFile) -> Result<LlmConfig> {
    let arch: &str = file.need("general.architecture")?;
    let of = Metadata { file, arch };
    if ![LLAMA, QWEN2].contains(&arch) {
        return Err(of.unsupported(format!(
            "the architecture `{arch}`; this decoder covers llama (Llama, Mistral, SmolLM2) and qwen2"
        )));
    }
    of.refuse_other_math()?;

    let hidden = of.need("embedding_length")?;
    let heads = of.need("attention.head_count")?;
    let head_dim = of.head_dim(hidden, heads)?;
    let context = of.need("context_length")?;
    let window = of.window(context)?;
    let rows = of.rows()?;
    let config = LlmConfig {
        vocab_size: rows,
        hidden_size: hidden,
        intermediate_size: of.need("feed_forward_length")?,
        num_hidden_layers: of.need("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: of.size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: file.need(&of.key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: of.number("rope.freq_base")?.unwrap_or(1e4),
        sliding_window: window,
        window_from_layer: 0,
        tie_word_embeddings: of.tensor(OUTPUT).is_none(),
        attention_bias: arch == QWEN2 || of.tensor("blk.0.attn_q.bias").is_some(),
        max_position_embeddings: context,
        ..LlmConfig::new(rows, hidden, 1, 1, 1, 1, 2)
    };
    let named = |problem| file.error(format!("{problem}; convert the model again"));
    config.validate().map_err(named)?;
    Ok(config)
}

impl Metadata<'_> {
    fn unsupported(&self, what: String) -> LlmError {
        LlmError::Unsupported {
            what: format!("{}: {what}", self.file.path().display()),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn size(&self, name: &str) -> Result<Option<usize>> {
        // What passes 32 bits is refused as a size by the configuration.
        let size = self.file.get::<u64>(&self.key(name))?;
        Ok(size.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    fn need(&self, name: &str) -> Result<usize> {
        let size = self.file.need::<u64>(&self.key(name))?;
        Ok(usize::try_from(size).unwrap_or(usize::MAX))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.file.get(&self.key(name))?)
    }

    fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.file.tensors().iter().find(|t| t.key == name)
    }

    /// Refuses what is computed in a way that is not built.
    fn refuse_other_math(&self) -> Result<()> {
        for (name, neutral) in FACTORS {
            if let Some(found) = self.number(name)?.filter(|found| *found != neutral) {
                return Err(self.unsupported(format!(
                    "`{}` is {found}, and only {neutral} is built; take a model without it",
                    self.key(name)
                )));
            }
        }
        if self.file.get::<bool>(&self.key("attention.causal"))? == Some(false) {
            return Err(self.unsupported("attention that is not causal".into()));
        }
        let scaling = self.file.get::<&str>(&self.key("rope.scaling.type"))?;
        let scaling = scaling.unwrap_or("linear");
        let factors = [
            self.number("rope.scaling.factor")?,
            self.number("rope.scale_linear")?,
        ];
        // 0 stands for the default, too.
        let by_one = |factor: f64| factor == 1.0 || factor == 0.0;
        let unscaled = match scaling {
            "none" => true,
            "linear" => factors.into_iter().flatten().all(by_one),
            _ => false,
        };
        if !unscaled {
            return Err(self.unsupported(format!(
                "RoPE scaling `{scaling}`; only unscaled RoPE is built: take a model without it"
            )));
        }
        Ok(())
    }

    /// Width of a head of attention.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize> {
        if heads == 0 || heads > hidden {
            return Err(self
                .file
                .error(format!(
                    "`{}` is {heads} and `{}` is {hidden}, expected 1 head to one for each element; \
                     convert the model again",
                    self.key("attention.head_count"),
                    self.key("embedding_length")
                ))
                .into());
        }
        let head_dim = self
            .size("attention.key_length")?
            .or_else(|| hidden.checked_div(heads))
            .unwrap_or(0);
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.size(name)?.filter(|found| *found != head_dim) {
                return Err(self.unsupported(format!(
                    "`{}` is {found} and heads are {head_dim} wide; only equal widths are built",
                    self.key(name)
                )));
            }
        }
        Ok(head_dim)
    }

    /// Positions that attention reaches back, where that is less than `context`.
    fn window(&self, context: usize) -> Result<Option<usize>> {
        let window = self.size("attention.sliding_window")?;
        let window = window.filter(|window| (1..context).contains(window));
        if let (Some(window), QWEN2) = (window, self.arch) {
            return Err(self.unsupported(format!(
                "a sliding window of {window} in some layers of a qwen2 model; the file does not say which"
            )));
        }
        Ok(window)
    }

    /// Rows of the embeddings.
    fn rows(&self) -> Result<usize> {
        let embeddings = self.tensor(EMBEDDINGS).ok_or_else(|| {
            self.file.error(format!(
                "it has no tensor `{EMBEDDINGS}`; it holds no language model, or not all of it"
            ))
        })?;
        let rows = embeddings.shape[0];
        if let Some(claimed) = self.size("vocab_size")?.filter(|claimed| *claimed != rows) {
            let error = self.file.error(format!(
                "`{}` is {claimed} and `{EMBEDDINGS}` has {rows} rows; convert the model again",
                self.key("vocab_size")
            ));
            return Err(error.into());
        }
        Ok(rows)
    }
}
