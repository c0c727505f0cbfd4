//! Sizes of the SigLIP tower.

use burn::config::Config;
use serde_json::Value;
use tpo_core::config::{MOST, MOST_LAYERS, Problems, overlay};
use tpo_core::ops::QuantFormat;

use crate::error::{Result, VisionError};

/// Channels of a picture.
pub(super) const CHANNELS: usize = 3;
/// What errors call this config.
const PART: &str = "SigLIP";
/// What Hugging Face calls the tanh-approximated GELU, the only activation of SigLIP's towers.
const ACTIVATION: &str = "gelu_pytorch_tanh";

/// Sizes of [`Siglip`](super::Siglip). Field names are those of `vision_config` in Hugging Face's `config.json`.
#[derive(Config, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Side of the square pictures in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels. The last rows and columns of pixels that do not fill a patch are not seen.
    pub patch_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Layers that are built, the last of which gives the output.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the hidden layer of a layer's MLP.
    pub intermediate_size: usize,
    /// Added to the variance in the layer norms.
    #[config(default = 1e-6)]
    pub layer_norm_eps: f64,
    /// How the linear layers are quantised, if they are. Lines that are no whole blocks of 32 elements stay as they
    /// are: `fc2` of so400m, with 4304.
    pub quantization: Option<QuantFormat>,
}

impl SiglipConfig {
    /// The tower of LLaVA-OneVision: so400m with patches of 14 pixels on pictures of 384, hence 729 tokens, and 26 of
    /// its 27 layers (`vision_config` of the published models).
    pub fn so400m_patch14_384() -> Self {
        Self::new(384, 14, 1152, 26, 16, 4304)
    }

    /// Reads the `vision_config` object of a `config.json` of Hugging Face's. Fields that do not describe the
    /// architecture are ignored.
    ///
    /// # Errors
    /// [`VisionError::ConfigJson`] for a missing size or a wrong type, [`VisionError::Config`] for sizes that
    /// contradict each other, another activation or other channels.
    pub fn from_hf_json(json: &Value) -> Result<Self> {
        let required = [
            "image_size",
            "patch_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ];
        let base = Self::so400m_patch14_384();
        let config = overlay(&base, json, &required, &["layer_norm_eps"])
            .map_err(|source| VisionError::ConfigJson { part: PART, source })?;
        let mut problems = Problems::default();
        let fixed = [
            ("hidden_act", Value::from(ACTIVATION)),
            ("num_channels", CHANNELS.into()),
        ];
        for (name, expected) in fixed {
            let found = &json[name];
            problems.unless(
                found.is_null() || *found == expected,
                format_args!("{name} is {found}, expected {expected}; no other tower is built"),
            );
        }
        problems.into_result(VisionError::config(PART))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`VisionError::Config`] with every broken rule.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        let width = ("hidden_size", self.hidden_size);
        let heads = ("num_attention_heads", self.num_attention_heads);
        let sizes = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            width,
            heads,
            ("intermediate_size", self.intermediate_size),
        ];
        problems.sizes(&sizes, MOST);
        let layers = ("num_hidden_layers", self.num_hidden_layers);
        problems.sizes(&[layers], MOST_LAYERS);
        problems.at_most(&[("tokens of a picture", self.tokens(), MOST)]);
        problems.unless(
            self.patch_size <= self.image_size,
            format_args!(
                "patch_size {} is more than image_size {}",
                self.patch_size, self.image_size
            ),
        );
        problems.multiple(width, heads);
        problems.positive(&[("layer_norm_eps", self.layer_norm_eps)]);
        problems.into_result(VisionError::config(PART))
    }

    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Tokens of a picture.
    pub fn tokens(&self) -> usize {
        self.grid().saturating_mul(self.grid())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_published_tower_has_729_tokens() {
        let config = SiglipConfig::so400m_patch14_384();
        config.validate().unwrap();
        assert_eq!((config.grid(), config.tokens()), (27, 729));
        // As llava-hf writes it.
        let json = json!({
            "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16,
            "num_hidden_layers": 26, "patch_size": 14, "model_type": "siglip_vision_model",
            "vision_use_head": false
        });
        assert_eq!(SiglipConfig::from_hf_json(&json).unwrap(), config);
    }

    #[test]
    fn every_problem_is_listed() {
        let config = SiglipConfig::new(8, 14, 10, 0, 3, 0).with_layer_norm_eps(0.0);
        let VisionError::Config { problems, .. } = config.validate().unwrap_err() else {
            panic!("not a config error");
        };
        assert_eq!(problems.len(), 5, "{problems:?}");
        let huge = SiglipConfig::new(usize::MAX, 1, 8, usize::MAX, 1, 8);
        let text = huge.validate().unwrap_err().to_string();
        for part in ["tokens of a picture", "num_hidden_layers", "image_size"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn another_tower_is_refused_by_name() {
        let mut json = json!({
            "hidden_size": 8, "image_size": 28, "intermediate_size": 8, "num_attention_heads": 2,
            "num_hidden_layers": 1, "patch_size": 14, "hidden_act": "gelu", "num_channels": 1
        });
        let text = SiglipConfig::from_hf_json(&json).unwrap_err().to_string();
        assert!(
            text.contains("hidden_act is \"gelu\"") && text.contains("num_channels"),
            "{text}"
        );
        json.as_object_mut().unwrap().remove("patch_size");
        let text = SiglipConfig::from_hf_json(&json).unwrap_err().to_string();
        assert!(text.contains("`patch_size`"), "{text}");
    }
}
