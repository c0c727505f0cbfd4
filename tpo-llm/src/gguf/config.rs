//! The configuration of a model from the metadata of a GGUF file.

use tpo_core::weights::GgufFile;

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

/// The configuration of the model in `file`.
pub(super) fn read(file: &GgufFile) -> Result<LlmConfig> {
    let unsupported = |what: String| LlmError::Unsupported {
        what: format!("{}: {what}", file.path().display()),
    };
    let arch: &str = file.need("general.architecture")?;
    if ![LLAMA, QWEN2].contains(&arch) {
        return Err(unsupported(format!(
            "the architecture `{arch}`; this decoder covers llama (Llama, Mistral, SmolLM2) and qwen2"
        )));
    }
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str| -> Result<Option<usize>> {
        // What passes 32 bits is refused as a size below.
        let size = file.get::<u64>(&key(name))?;
        Ok(size.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    let need = |name: &str| -> Result<usize> {
        let size = file.need::<u64>(&key(name))?;
        Ok(usize::try_from(size).unwrap_or(usize::MAX))
    };
    let number = |name: &str| file.get::<f64>(&key(name));

    for (name, neutral) in FACTORS {
        if let Some(found) = number(name)?.filter(|found| *found != neutral) {
            return Err(unsupported(format!(
                "`{}` is {found}, and only {neutral} is built; take a model without it",
                key(name)
            )));
        }
    }
    if file.get::<bool>(&key("attention.causal"))? == Some(false) {
        return Err(unsupported("attention that is not causal".into()));
    }
    let scaling = file.get::<&str>(&key("rope.scaling.type"))?;
    let scaling = scaling.unwrap_or("linear");
    let factors = [number("rope.scaling.factor")?, number("rope.scale_linear")?];
    // 0 stands for the default, too.
    let by_one = |factor: f64| factor == 1.0 || factor == 0.0;
    let unscaled = match scaling {
        "none" => true,
        "linear" => factors.into_iter().flatten().all(by_one),
        _ => false,
    };
    if !unscaled {
        return Err(unsupported(format!(
            "RoPE scaling `{scaling}`; only unscaled RoPE is built: take a model without it"
        )));
    }

    let hidden = need("embedding_length")?;
    let heads = need("attention.head_count")?;
    if heads == 0 || heads > hidden {
        return Err(file
            .error(format!(
                "`{}` is {heads} and `{}` is {hidden}, expected 1 head to one for each element; convert \
                 the model again",
                key("attention.head_count"),
                key("embedding_length")
            ))
            .into());
    }
    let head_dim = size("attention.key_length")?
        .or_else(|| hidden.checked_div(heads))
        .unwrap_or(0);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(found) = size(name)?.filter(|found| *found != head_dim) {
            return Err(unsupported(format!(
                "`{}` is {found} and heads are {head_dim} wide; only equal widths are built",
                key(name)
            )));
        }
    }
    let context = need("context_length")?;
    let window = size("attention.sliding_window")?.filter(|window| (1..context).contains(window));
    if let (Some(window), QWEN2) = (window, arch) {
        return Err(unsupported(format!(
            "a sliding window of {window} in some layers of a qwen2 model; the file does not say which"
        )));
    }
    let tensor = |name: &str| file.tensors().iter().find(|t| t.key == name);
    let embeddings = tensor(EMBEDDINGS).ok_or_else(|| {
        file.error(format!(
            "it has no tensor `{EMBEDDINGS}`; it holds no language model, or not all of it"
        ))
    })?;
    let rows = embeddings.shape[0];
    if let Some(claimed) = size("vocab_size")?.filter(|claimed| *claimed != rows) {
        return Err(file
            .error(format!(
                "`{}` is {claimed} and `{EMBEDDINGS}` has {rows} rows; convert the model again",
                key("vocab_size")
            ))
            .into());
    }
    let config = LlmConfig {
        vocab_size: rows,
        hidden_size: hidden,
        intermediate_size: need("feed_forward_length")?,
        num_hidden_layers: need("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: file.need(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: number("rope.freq_base")?.unwrap_or(1e4),
        sliding_window: window,
        window_from_layer: 0,
        tie_word_embeddings: tensor(OUTPUT).is_none(),
        attention_bias: arch == QWEN2 || tensor("blk.0.attn_q.bias").is_some(),
        max_position_embeddings: context,
        ..LlmConfig::new(rows, hidden, 1, 1, 1, 1, 2)
    };
    let named = |problem| file.error(format!("{problem}; convert the model again"));
    config.validate().map_err(named)?;
    Ok(config)
}
