//! Architecture of the UMT encoder.

use burn::config::Config;
use tpo_core::config::{MOST, MOST_LAYERS, Problems, overlay};
use tpo_core::ops::QuantFormat;

use super::patch_embed::STEM_SIDE;
use crate::error::{Result, VisionError};

/// Image side at which the reference's position table is not resized.
pub(crate) const NATIVE_IMG_SIZE: usize = 224;
/// Side, in patches, of the grid that is resized for other image sizes (224 / 16).
pub(crate) const NATIVE_GRID: usize = 14;
/// Channels of a frame.
pub(crate) const CHANNELS: usize = 3;
/// What errors call this config.
const PART: &str = "vision encoder";

/// Architecture of [`Umt`](super::Umt). Field names are those of `vision_encoder` in the
/// reference's `config.json`.
#[derive(Config, Debug, PartialEq)]
pub struct UmtConfig {
    /// Side of the square frames in pixels.
    pub img_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of a token.
    pub encoder_embed_dim: usize,
    /// Number of blocks of the pretrained encoder. How many are built follows from
    /// [`return_index`](Self::return_index), see [`blocks`](Self::blocks).
    pub encoder_depth: usize,
    /// Attention heads.
    pub encoder_num_heads: usize,
    /// Frames per clip the model is meant for. Other numbers are accepted at run time.
    #[config(default = 16)]
    pub num_frames: usize,
    /// Frames that one token covers.
    #[config(default = 1)]
    pub tubelet_size: usize,
    /// Which block's output is returned, counted from the end: -1 the last, -2 the one before.
    /// Blocks after it are not built.
    #[config(default = -2)]
    pub return_index: isize,
    /// Frames of the pretrained position table, which is interpolated in time to other numbers.
    #[config(default = 4)]
    pub ckpt_num_frame: usize,
    /// Whether time, rows and columns have sine tables of their own, on the clip's own grid, in
    /// place of the reference's table. For models trained from scratch.
    #[config(default = false)]
    pub axis_positions: bool,
    /// Channels of a [`Stem`](super::Stem) of 4-pixel squares before patches are cut; none in the
    /// reference. For models trained from scratch.
    pub stem: Option<usize>,
    /// Width of the hidden layer of a block's MLP, in multiples of the token width.
    #[config(default = 4)]
    pub mlp_ratio: usize,
    /// Largest drop-path probability; it rises linearly over the blocks. Training only.
    #[config(default = 0.0)]
    pub drop_path_rate: f64,
    /// Added to the variance in the blocks' layer norms.
    #[config(default = 1e-6)]
    pub layer_norm_eps: f64,
    /// How the linear layers of the blocks are quantised, if they are.
    pub quantization: Option<QuantFormat>,
}

impl UmtConfig {
    /// UMT-L of VideoChat-TPO: 24 blocks of which 23 are built, width 1024, 16 heads, patches of
    /// 16 pixels, 16 frames of 224 pixels, hence 3136 tokens (reference implementation).
    pub fn large() -> Self {
        Self::new(224, 16, 1024, 24, 16)
    }

    /// A small encoder for experiments on a CPU: 4 blocks of width 128 with 4 heads over 8 frames
    /// of 64 pixels, hence 128 tokens.
    pub fn mini() -> Self {
        Self::new(64, 16, 128, 5, 4).with_num_frames(8)
    }

    /// Reads the `vision_encoder` object of the reference's `config.json`. Absent optional fields
    /// take this config's defaults; fields that do not describe the architecture are ignored.
    ///
    /// # Errors
    /// [`VisionError::ConfigJson`] for a missing size or a wrong type, [`VisionError::Config`]
    /// for sizes that contradict each other.
    pub fn from_hf_json(json: &serde_json::Value) -> Result<Self> {
        let required = [
            "img_size",
            "patch_size",
            "encoder_embed_dim",
            "encoder_depth",
            "encoder_num_heads",
        ];
        let optional = [
            "num_frames",
            "tubelet_size",
            "return_index",
            "ckpt_num_frame",
            "drop_path_rate",
        ];
        let config = overlay(&Self::large(), json, &required, &optional)
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
            ("encoder_embed_dim", self.encoder_embed_dim),
            ("encoder_num_heads", self.encoder_num_heads),
            ("num_frames", self.num_frames),
            ("tubelet_size", self.tubelet_size),
            ("ckpt_num_frame", self.ckpt_num_frame),
            ("mlp_ratio", self.mlp_ratio),
        ];
        problems.sizes(&sizes, MOST);
        problems.sizes(&[("encoder_depth", self.encoder_depth)], MOST_LAYERS);
        problems.at_most(&[("tokens of a clip", self.tokens(), MOST)]);
        let patch = ("patch_size", self.patch_size);
        problems.multiple(("img_size", self.img_size), patch);
        if let Some(channels) = self.stem {
            problems.unless(
                (1..=MOST).contains(&channels) && self.patch_size.is_multiple_of(STEM_SIDE),
                format_args!(
                    "a stem of {channels} channels needs 1 to {MOST} channels and patches of a multiple of \
                     {STEM_SIDE} pixels, not {}",
                    self.patch_size
                ),
            );
        }
        let width = ("encoder_embed_dim", self.encoder_embed_dim);
        problems.multiple(width, ("encoder_num_heads", self.encoder_num_heads));
        problems.unless(
            self.return_index < 0 && self.return_index.unsigned_abs() <= self.encoder_depth,
            format_args!(
                "return_index {} must be between -{} (the first block) and -1 (the last)",
                self.return_index, self.encoder_depth
            ),
        );
        problems.dropout(&[("drop_path_rate", self.drop_path_rate)]);
        problems.positive(&[("layer_norm_eps", self.layer_norm_eps)]);
        problems.into_result(VisionError::config(PART))
    }

    /// Number of blocks that are built: `encoder_depth + return_index + 1`.
    pub fn blocks(&self) -> usize {
        self.encoder_depth
            .saturating_add_signed(self.return_index)
            .saturating_add(1)
    }

    /// Tokens of one clip of the configured size.
    pub fn tokens(&self) -> usize {
        let side = self.img_size / self.patch_size.max(1);
        let columns = (self.num_frames / self.tubelet_size.max(1)).saturating_mul(side);
        columns.saturating_mul(side)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_builds_23_blocks_and_3136_tokens() {
        let config = UmtConfig::large();
        config.validate().unwrap();
        assert_eq!(config.blocks(), 23);
        assert_eq!(config.tokens(), 3136);
        UmtConfig::mini().validate().unwrap();
    }

    #[test]
    fn every_problem_is_listed() {
        let config = UmtConfig::new(225, 16, 10, 4, 3)
            .with_return_index(0)
            .with_drop_path_rate(1.0);
        let VisionError::Config { problems, .. } = config.validate().unwrap_err() else {
            panic!("not a config error");
        };
        assert_eq!(problems.len(), 4, "{problems:?}");
    }

    #[test]
    fn what_no_machine_could_build_is_refused() {
        let mut config = UmtConfig::new(64, 16, 128, 100_000_000, 4);
        let text = config.validate().unwrap_err().to_string();
        assert!(text.contains("encoder_depth is 100000000"), "{text}");
        config.encoder_depth = 5;
        config.num_frames = usize::MAX;
        let text = config.validate().unwrap_err().to_string();
        assert!(text.contains("tokens of a clip"), "{text}");
    }

    #[test]
    fn a_missing_size_is_named() {
        let json = serde_json::json!({"img_size": 224, "patch_size": 16});
        let message = UmtConfig::from_hf_json(&json).unwrap_err().to_string();
        assert!(message.contains("encoder_embed_dim"), "{message}");
    }
}
