//! Architecture of the InternVideo2 video tower.

use burn::config::Config;
use tpo_core::config::{MOST, MOST_LAYERS, Problems, overlay};
use tpo_core::ops::QuantFormat;

use crate::error::{Result, VisionError};

/// Channels of a frame.
pub(crate) const CHANNELS: usize = 3;
/// Which config an error is about.
const PART: &str = "InternVideo2 video tower";

/// Architecture of [`InternVideo2`](super::InternVideo2). Field names are those of the
/// reference's `vision_encoder` configuration.
#[derive(Config, Debug, PartialEq)]
pub struct InternVideo2Config {
    /// Side of the square frames in pixels.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of a token; a multiple of 16 for the initial position table.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub num_heads: usize,
    /// Attention heads of the pooling.
    pub attn_pool_num_heads: usize,
    /// Width of a clip's feature.
    pub clip_embed_dim: usize,
    /// Frames of a clip. A clip has this many or one (an image).
    #[config(default = 8)]
    pub num_frames: usize,
    /// Frames that one token covers.
    #[config(default = 1)]
    pub tubelet_size: usize,
    /// Width of the hidden layer of a block's MLP, in multiples of the token width; the product
    /// is rounded down.
    #[config(default = 4.363636363636363)]
    pub mlp_ratio: f64,
    /// Initial value of LayerScale.
    #[config(default = 0.1)]
    pub init_values: f64,
    /// Whether query and key are normalised over the full width.
    #[config(default = true)]
    pub qk_normalization: bool,
    /// Whether query, key and value have biases.
    #[config(default = false)]
    pub qkv_bias: bool,
    /// Largest drop-path probability; it rises linearly over the blocks. Training only.
    #[config(default = 0.0)]
    pub drop_path_rate: f64,
    /// Added to the mean square in the blocks' norms (reference implementation).
    #[config(default = 1e-6)]
    pub rms_norm_eps: f64,
    /// Added to the variance in the pooling's layer norms (reference implementation).
    #[config(default = 1e-5)]
    pub pool_norm_eps: f64,
    /// How the linear layers of the blocks are quantised, if they are.
    pub quantization: Option<QuantFormat>,
}

impl InternVideo2Config {
    /// InternVideo2-CLIP-1B as VideoChat-TPO's temporal head uses it: 40 blocks of width 1408, 16
    /// heads of 88, MLP of 6144, patches of 14 pixels, 8 frames of 224 pixels, hence 2049 tokens
    /// and a feature of 768 (reference implementation). 1 020 708 608 parameters.
    pub fn internvideo2_1b() -> Self {
        Self::new(224, 14, 1408, 40, 16, 16, 768)
    }

    /// A small tower for tests and examples: 4 blocks of width 96 over 8 frames of 56 pixels,
    /// hence 129 tokens and a feature of 64.
    pub fn mini() -> Self {
        Self::new(56, 14, 96, 4, 4, 4, 64)
    }

    /// Reads the `vision_encoder` object of the reference's configuration.
    ///
    /// # Errors
    /// [`VisionError::ConfigJson`] for a missing size or a wrong type, [`VisionError::Config`]
    /// for sizes that contradict each other.
    pub fn from_reference_json(json: &serde_json::Value) -> Result<Self> {
        let mut problems = Problems::default();
        let channels = json["in_chans"].as_u64().unwrap_or(CHANNELS as u64);
        problems.unless(
            channels == CHANNELS as u64,
            format_args!("in_chans is {channels}, frames have {CHANNELS}"),
        );
        problems.unless(
            json["sep_pos_embed"].as_bool() != Some(true),
            "sep_pos_embed is set, but only a joint position table is known",
        );
        problems.into_result(VisionError::config(PART))?;
        let required = [
            "img_size",
            "patch_size",
            "embed_dim",
            "depth",
            "num_heads",
            "attn_pool_num_heads",
            "clip_embed_dim",
        ];
        let optional = [
            "num_frames",
            "tubelet_size",
            "mlp_ratio",
            "init_values",
            "qk_normalization",
            "qkv_bias",
            "drop_path_rate",
        ];
        let config = overlay(&Self::internvideo2_1b(), json, &required, &optional)
            .map_err(|source| VisionError::ConfigJson { part: PART, source })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`VisionError::Config`] with every broken rule.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Problems::default();
        let sizes = [
            ("img_size", self.img_size),
            ("patch_size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("num_heads", self.num_heads),
            ("attn_pool_num_heads", self.attn_pool_num_heads),
            ("clip_embed_dim", self.clip_embed_dim),
            ("num_frames", self.num_frames),
            ("tubelet_size", self.tubelet_size),
        ];
        problems.sizes(&sizes, MOST);
        problems.sizes(&[("depth", self.depth)], MOST_LAYERS);
        problems.at_most(&[("tokens of a clip", self.tokens(), MOST)]);
        let dim = ("embed_dim", self.embed_dim);
        problems.multiple(("img_size", self.img_size), ("patch_size", self.patch_size));
        problems.multiple(dim, ("num_heads", self.num_heads));
        problems.multiple(dim, ("attn_pool_num_heads", self.attn_pool_num_heads));
        // A quarter of the width is for time; the rest splits in two halves of sine and cosine.
        problems.multiple(dim, ("the position table's unit", 16));
        let tubelet = ("tubelet_size", self.tubelet_size);
        problems.multiple(("num_frames", self.num_frames), tubelet);
        let ratio = self.mlp_ratio;
        if ratio > 0.0 && ratio <= 64.0 {
            problems.unless(
                self.embed_dim == 0 || self.mlp_hidden() > 0,
                format_args!("mlp_ratio {ratio} leaves no hidden unit"),
            );
        } else {
            problems.add(format_args!("mlp_ratio {ratio} must be in (0, 64]"));
        }
        let init = self.init_values;
        problems.unless(
            init.is_finite(),
            format_args!("init_values {init} is not finite"),
        );
        problems.dropout(&[("drop_path_rate", self.drop_path_rate)]);
        problems.positive(&[
            ("rms_norm_eps", self.rms_norm_eps),
            ("pool_norm_eps", self.pool_norm_eps),
        ]);
        problems.into_result(VisionError::config(PART))
    }

    /// Width of the hidden layer of a block's MLP (6144 in the 1B tower).
    pub fn mlp_hidden(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    /// Patches along one side of a frame.
    pub fn grid(&self) -> usize {
        self.img_size / self.patch_size.max(1)
    }

    /// Steps in time of a clip.
    pub fn steps(&self) -> usize {
        self.num_frames / self.tubelet_size.max(1)
    }

    /// Tokens of a clip, the class token included.
    pub fn tokens(&self) -> usize {
        let steps = self.steps().saturating_mul(self.grid());
        steps.saturating_mul(self.grid()).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_1b_tower_has_2049_tokens_and_an_mlp_of_6144() {
        let config = InternVideo2Config::internvideo2_1b();
        config.validate().unwrap();
        assert_eq!((config.tokens(), config.mlp_hidden()), (2049, 6144));
        InternVideo2Config::mini().validate().unwrap();
        assert_eq!(InternVideo2Config::mini().tokens(), 129);
    }

    #[test]
    fn every_problem_is_listed() {
        let mut config = InternVideo2Config::mini().with_drop_path_rate(1.5);
        config.img_size = 57;
        config.num_heads = 5;
        config.embed_dim = 40;
        config.mlp_ratio = f64::NAN;
        let VisionError::Config { problems, .. } = config.validate().unwrap_err() else {
            panic!("not a config error");
        };
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn a_missing_size_is_named() {
        let json = serde_json::json!({"img_size": 224});
        let error = InternVideo2Config::from_reference_json(&json).unwrap_err();
        assert!(error.to_string().contains("patch_size"), "{error}");
    }
}
