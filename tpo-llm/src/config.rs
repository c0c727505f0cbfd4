//! Architecture of a Llama-family decoder, and presets.

use burn::config::Config;
use serde::Deserialize;
use tpo_core::LoraConfig;
use tpo_core::config::{MOST, MOST_LAYERS, Problems};
use tpo_core::ops::QuantFormat;

use crate::error::{LlmError, Result};

/// Every linear layer a LoRA adapter can be put on.
pub const LORA_TARGETS: [&str; 8] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
];

/// VideoChat-TPO's adapters: rank 16, alpha 32, dropout 0.1 on all linear layers and `lm_head`
/// (reference implementation; rank and alpha also in the paper's Table 17).
pub fn videochat_lora() -> LoraConfig {
    LoraConfig::new(16, 32.0, LORA_TARGETS.map(String::from).to_vec()).with_dropout(0.1)
}

/// Configuration of a decoder of the Llama family. Field names are Hugging Face's.
#[derive(Config, Debug, PartialEq)]
pub struct LlmConfig {
    /// Rows of the embedding table and number of logits.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; `hidden_size / num_attention_heads` unless the checkpoint says otherwise.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    #[config(default = 1e-5)]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// Sliding window: keys a query sees, itself included; `None` for all before it.
    pub sliding_window: Option<usize>,
    /// First layer that has the window (Qwen2's `max_window_layers`; 0 in Mistral).
    #[config(default = 0)]
    pub window_from_layer: usize,
    /// Whether the logits use the embedding table.
    #[config(default = false)]
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases (Qwen2).
    #[config(default = false)]
    pub attention_bias: bool,
    /// Longest sequence the model was made for.
    #[config(default = 4096)]
    pub max_position_embeddings: usize,
    /// Standard deviation of random weights. With the published models' 0.02 attention is
    /// almost uniform at a width of 128; there `1 / sqrt(hidden_size)` learns faster.
    #[config(default = 0.02)]
    pub initializer_range: f64,
    /// Adapters.
    pub lora: Option<LoraConfig>,
    /// How the linear layers of the blocks are quantised, if they are, and with them the output layer
    /// (and embeddings that are this layer too), which has 8 bits in every format; a layer whose lines are no multiple of 32 is not.
    pub quantization: Option<QuantFormat>,
}

impl LlmConfig {
    /// Mistral-7B-Instruct as VideoChat-TPO ships it: 32,000 pieces and 7 task tokens, rope base
    /// 1e6, no sliding window (reference implementation).
    pub fn mistral_7b() -> Self {
        Self::new(32007, 4096, 14336, 32, 32, 8, 128)
            .with_rope_theta(1e6)
            .with_max_position_embeddings(32768)
    }

    /// Qwen2-0.5B (its published config; vocabulary rows as LLaVA-OneVision's original files have them).
    pub fn qwen2_0_5b() -> Self {
        Self::new(151_936, 896, 4864, 24, 14, 2, 64)
            .qwen2()
            .with_tie_word_embeddings(true)
    }

    /// Qwen2-7B (its published config; vocabulary rows as LLaVA-OneVision's original files have them).
    pub fn qwen2_7b() -> Self {
        Self::new(152_064, 3584, 18944, 28, 28, 4, 128).qwen2()
    }

    /// What the published sizes of Qwen2 share.
    fn qwen2(self) -> Self {
        self.with_rms_norm_eps(1e-6)
            .with_rope_theta(1e6)
            .with_attention_bias(true)
            .with_max_position_embeddings(32_768)
    }

    /// SmolLM2-135M (its published config).
    pub fn smollm2_135m() -> Self {
        Self::new(49152, 576, 1536, 30, 9, 3, 64)
            .with_rope_theta(1e5)
            .with_tie_word_embeddings(true)
            .with_max_position_embeddings(8192)
    }

    /// A small model for tests and examples on a laptop; `vocab_size` comes from the tokenizer.
    pub fn mini(vocab_size: usize) -> Self {
        Self::new(vocab_size, 128, 352, 4, 4, 2, 32).with_max_position_embeddings(1024)
    }

    /// Adds adapters.
    pub fn lora(self, lora: LoraConfig) -> Self {
        self.with_lora(Some(lora))
    }

    /// Window of layer `index`, if it has one.
    pub fn window_of(&self, index: usize) -> Option<usize> {
        self.sliding_window
            .filter(|_| index >= self.window_from_layer)
    }

    /// Checks that the numbers fit together, and returns every problem at once.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ];
        problems.sizes(&sizes, MOST);
        problems.sizes(
            &[("num_hidden_layers", self.num_hidden_layers)],
            MOST_LAYERS,
        );
        problems.not_zero(&[("max_position_embeddings", self.max_position_embeddings)]);
        problems.multiple(
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        );
        let odd = format_args!("head_dim {} is odd", self.head_dim);
        problems.unless(self.head_dim.is_multiple_of(2), odd);
        problems.unless(self.sliding_window != Some(0), "sliding_window is 0");
        problems.positive(&[
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
        ]);
        if let Some(lora) = &self.lora {
            for problem in lora.problems("lora") {
                problems.add(problem);
            }
            for target in &lora.targets {
                problems.unless(
                    LORA_TARGETS.contains(&target.as_str()),
                    format_args!(
                        "lora target `{target}` is not one of {}",
                        LORA_TARGETS.join(", ")
                    ),
                );
            }
        }
        problems.into_result(|problems| LlmError::Config {
            problems: problems.join("; "),
        })
    }

    /// Reads Hugging Face's `config.json`: `llama`, `mistral` and `qwen2`, in the spelling of
    /// published files (`rope_theta`) and of transformers 5 (`rope_parameters`).
    pub fn from_hf_json(text: &str) -> Result<Self> {
        let hf: HfConfig = serde_json::from_str(text).map_err(|e| LlmError::Config {
            problems: format!("config.json: {e}"),
        })?;
        hf.into_config()
    }
}

#[derive(Deserialize)]
struct HfConfig {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<HfRope>,
    rope_scaling: Option<HfRope>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    max_position_embeddings: Option<usize>,
    initializer_range: Option<f64>,
    hidden_act: Option<String>,
}

#[derive(Deserialize)]
struct HfRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

impl HfConfig {
    fn into_config(self) -> Result<LlmConfig> {
        let kind = self.model_type.as_deref().unwrap_or("llama");
        let unsupported = |what: String| Err(LlmError::Unsupported { what });
        if !["llama", "mistral", "qwen2"].contains(&kind) {
            return unsupported(format!(
                "model_type `{kind}`; this decoder covers llama, mistral and qwen2"
            ));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|a| *a != "silu") {
            return unsupported(format!("hidden_act `{act}`; the family uses silu"));
        }
        for rope in [&self.rope_scaling, &self.rope_parameters]
            .into_iter()
            .flatten()
        {
            if let Some(t) = rope.rope_type.as_deref().filter(|t| *t != "default") {
                return unsupported(format!("rope scaling `{t}`; only unscaled RoPE is built"));
            }
        }
        let qwen = kind == "qwen2";
        let windowed = !qwen || self.use_sliding_window == Some(true);
        let config = LlmConfig {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or_else(|| {
                self.hidden_size
                    .checked_div(self.num_attention_heads)
                    .unwrap_or(0)
            }),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: self
                .rope_parameters
                .and_then(|r| r.rope_theta)
                .or(self.rope_theta)
                .unwrap_or(1e4),
            sliding_window: self.sliding_window.filter(|_| windowed),
            window_from_layer: if qwen {
                self.max_window_layers.unwrap_or(0)
            } else {
                0
            },
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            attention_bias: qwen || self.attention_bias.unwrap_or(false),
            max_position_embeddings: self.max_position_embeddings.unwrap_or(4096),
            initializer_range: self.initializer_range.unwrap_or(0.02),
            lora: None,
            quantization: None,
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: &str = r#"{"model_type":"qwen2","vocab_size":100,"hidden_size":56,
        "intermediate_size":76,"num_hidden_layers":3,"num_attention_heads":14,
        "num_key_value_heads":2,"sliding_window":8,"max_window_layers":2,
        "rope_parameters":{"rope_type":"default","rope_theta":1000000.0}"#;

    #[test]
    fn qwen_window_is_off_unless_asked_for() {
        let off = LlmConfig::from_hf_json(&format!("{QWEN}}}")).unwrap();
        assert_eq!(
            (off.window_of(2), off.rope_theta, off.head_dim),
            (None, 1e6, 4)
        );
        assert!(off.attention_bias);
        let on = LlmConfig::from_hf_json(&format!("{QWEN},\"use_sliding_window\":true}}")).unwrap();
        assert_eq!((on.window_of(1), on.window_of(2)), (None, Some(8)));
    }

    #[test]
    fn problems_are_listed_together() {
        let mut bad = LlmConfig::mini(10);
        bad.num_key_value_heads = 3;
        bad.head_dim = 7;
        bad.lora = Some(LoraConfig::new(0, 1.0, vec!["nope".into()]));
        let text = bad.validate().unwrap_err().to_string();
        for part in ["multiple", "odd", "rank", "nope"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(LlmConfig::from_hf_json("{").is_err());
        let scaled = format!("{QWEN},\"rope_scaling\":{{\"type\":\"yarn\"}}}}");
        assert!(
            LlmConfig::from_hf_json(&scaled)
                .unwrap_err()
                .to_string()
                .contains("yarn")
        );
    }
}
