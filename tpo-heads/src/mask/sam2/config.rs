//! Architecture of SAM 2.

use burn::config::Config;
use serde::{Deserialize, Serialize};
use tpo_vision::hiera::{HieraConfig, ImageEncoderConfig};

use crate::HeadsError;

/// Stride of the image embedding (reference implementation).
pub(super) const STRIDE: usize = 16;

/// Generation of the published models. The second adds parameters to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sam2Version {
    /// SAM 2 of July 2024, used by VideoChat-TPO.
    V2_0,
    /// SAM 2.1 of September 2024.
    V2_1,
}

/// How a checkpoint stores the four vectors of point labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointTableLayout {
    /// Four tensors `[1, dim]` (SAM 2).
    Separate,
    /// One tensor `[4, dim]` (Hugging Face).
    Stacked,
}

/// Architecture of [`PromptEncoder`](super::PromptEncoder).
#[derive(Config, Debug, PartialEq)]
pub struct PromptEncoderConfig {
    /// Width of a token.
    pub dim: usize,
    /// Height and width of the model's input image in pixels.
    pub image_size: [usize; 2],
    /// Channels within the mask convolutions.
    #[config(default = 16)]
    pub mask_in_chans: usize,
    /// How the vectors of point labels are stored.
    #[config(default = "PointTableLayout::Separate")]
    pub point_table: PointTableLayout,
}

/// Architecture of [`MaskDecoder`](super::MaskDecoder).
#[derive(Config, Debug, PartialEq)]
pub struct MaskDecoderConfig {
    /// Width of a token and of the image embedding.
    pub dim: usize,
    /// Rounds of two-way attention.
    #[config(default = 2)]
    pub depth: usize,
    /// Attention heads.
    #[config(default = 8)]
    pub num_heads: usize,
    /// Hidden width of the rounds' MLPs.
    #[config(default = 2048)]
    pub mlp_dim: usize,
    /// The attention between tokens and image is this much narrower.
    #[config(default = 2)]
    pub attention_downsample_rate: usize,
    /// Masks for an ambiguous prompt, beside the single one.
    #[config(default = 3)]
    pub num_multimask_outputs: usize,
    /// Layers of the IoU head.
    #[config(default = 3)]
    pub iou_head_depth: usize,
    /// Hidden width of the IoU head.
    #[config(default = 256)]
    pub iou_head_hidden_dim: usize,
}

/// Architecture of [`MemoryAttention`](super::MemoryAttention).
#[derive(Config, Debug, PartialEq)]
pub struct MemoryAttentionConfig {
    /// Width of the features.
    pub d_model: usize,
    /// Width of a memory.
    pub kv_in_dim: usize,
    /// Hidden width of the MLP.
    #[config(default = 2048)]
    pub dim_feedforward: usize,
    /// Layers.
    #[config(default = 4)]
    pub num_layers: usize,
    /// Attention heads.
    #[config(default = 1)]
    pub num_heads: usize,
    /// Base of the rotary frequencies.
    #[config(default = 10000.0)]
    pub rope_theta: f64,
    /// Dropout probability on the branches and within the MLP, in training. Attention weights are
    /// not dropped.
    #[config(default = 0.1)]
    pub dropout: f64,
}

/// Architecture of [`MemoryEncoder`](super::MemoryEncoder).
#[derive(Config, Debug, PartialEq)]
pub struct MemoryEncoderConfig {
    /// Width of the features.
    pub in_dim: usize,
    /// Width of a memory.
    pub out_dim: usize,
    /// ConvNeXt blocks.
    #[config(default = 2)]
    pub fuser_layers: usize,
    /// Kernel of their depthwise convolutions, odd.
    #[config(default = 7)]
    pub fuser_kernel: usize,
}

/// How SAM 2 is used on a video. Names are those of the SAM 2 configuration files.
#[derive(Config, Debug, PartialEq)]
pub struct TrackingConfig {
    /// Factor on mask probabilities before they are encoded.
    #[config(default = 20.0)]
    pub sigmoid_scale_for_mem_enc: f64,
    /// Added after the factor.
    #[config(default = -10.0)]
    pub sigmoid_bias_for_mem_enc: f64,
    /// Whether masks of prompted frames are made binary before they are encoded.
    #[config(default = true)]
    pub binarize_mask_from_pts_for_mem_enc: bool,
    /// Whether a mask prompt is the output itself, without the decoder.
    #[config(default = true)]
    pub use_mask_input_as_output_without_sam: bool,
    /// Whether frames without memories only get `no_mem_embed`, without memory attention.
    #[config(default = true)]
    pub directly_add_no_mem_embed: bool,
    /// Whether ambiguous prompts get several masks.
    #[config(default = true)]
    pub multimask_output_in_sam: bool,
    /// Fewest points for several masks.
    #[config(default = 0)]
    pub multimask_min_pt_num: usize,
    /// Most points for several masks.
    #[config(default = 1)]
    pub multimask_max_pt_num: usize,
    /// Whether tracked frames get several masks too.
    #[config(default = true)]
    pub multimask_output_for_tracking: bool,
    /// Whether object pointers come from the chosen mask's token, not always the first.
    #[config(default = true)]
    pub use_multimask_token_for_obj_ptr: bool,
    /// Whether an unstable single mask falls back to the best of several.
    #[config(default = true)]
    pub dynamic_multimask_via_stability: bool,
    /// Shift of the threshold by which stability is measured.
    #[config(default = 0.05)]
    pub dynamic_multimask_stability_delta: f64,
    /// Least stability of a stable mask.
    #[config(default = 0.98)]
    pub dynamic_multimask_stability_thresh: f64,
    /// Most object pointers a frame attends to.
    #[config(default = 16)]
    pub max_obj_ptrs_in_encoder: usize,
    /// Whether pointers get an encoding of time (SAM 2.1).
    #[config(default = false)]
    pub add_tpos_enc_to_obj_ptrs: bool,
    /// Whether that encoding is projected by a learned layer (SAM 2.1).
    #[config(default = false)]
    pub proj_tpos_enc_in_obj_ptrs: bool,
    /// Whether that encoding has a sign, to tell past from future (SAM 2.1).
    #[config(default = false)]
    pub use_signed_tpos_enc_to_obj_ptrs: bool,
    /// Whether memories of a hidden object get a learned vector (SAM 2.1).
    #[config(default = false)]
    pub no_obj_embed_spatial: bool,
    /// Every how many frames a memory is taken.
    #[config(default = 1)]
    pub memory_temporal_stride_for_eval: usize,
    /// Largest area of a hole in a mask that is filled, in pixels of the low-resolution mask.
    #[config(default = 8)]
    pub fill_hole_area: usize,
}

/// Architecture of [`Sam2`](super::Sam2).
#[derive(Config, Debug, PartialEq)]
pub struct Sam2Config {
    /// Hiera and feature pyramid.
    pub image_encoder: ImageEncoderConfig,
    /// Prompt encoder.
    pub prompt_encoder: PromptEncoderConfig,
    /// Mask decoder.
    pub mask_decoder: MaskDecoderConfig,
    /// Memory attention.
    pub memory_attention: MemoryAttentionConfig,
    /// Memory encoder.
    pub memory_encoder: MemoryEncoderConfig,
    /// Behaviour on a video.
    pub tracking: TrackingConfig,
    /// Side of the square input image in pixels.
    #[config(default = 1024)]
    pub image_size: usize,
    /// Memories a frame attends to, that of the prompted frame included.
    #[config(default = 7)]
    pub num_maskmem: usize,
}

impl PromptEncoderConfig {
    /// Rows and columns of the image embedding.
    pub fn grid(&self) -> [usize; 2] {
        self.image_size.map(|side| side / STRIDE)
    }
}

impl TrackingConfig {
    /// The settings of a generation (SAM 2 configuration files and the overrides of its video
    /// predictor).
    pub fn of(version: Sam2Version) -> Self {
        let newer = version == Sam2Version::V2_1;
        Self::new()
            .with_add_tpos_enc_to_obj_ptrs(newer)
            .with_proj_tpos_enc_in_obj_ptrs(newer)
            .with_use_signed_tpos_enc_to_obj_ptrs(newer)
            .with_no_obj_embed_spatial(newer)
    }
}

impl Sam2Config {
    fn published(trunk: HieraConfig, version: Sam2Version) -> Self {
        Self::new(
            ImageEncoderConfig::sam2(trunk),
            PromptEncoderConfig::new(256, [1024, 1024]),
            MaskDecoderConfig::new(256),
            MemoryAttentionConfig::new(256, 64),
            MemoryEncoderConfig::new(256, 64),
            TrackingConfig::of(version),
        )
    }

    /// SAM 2 with Hiera-T.
    pub fn tiny(version: Sam2Version) -> Self {
        Self::published(HieraConfig::tiny(), version)
    }

    /// SAM 2 with Hiera-S.
    pub fn small(version: Sam2Version) -> Self {
        Self::published(HieraConfig::small(), version)
    }

    /// SAM 2 with Hiera-B+.
    pub fn base_plus(version: Sam2Version) -> Self {
        Self::published(HieraConfig::base_plus(), version)
    }

    /// SAM 2 with Hiera-L.
    pub fn large(version: Sam2Version) -> Self {
        Self::published(HieraConfig::large(), version)
    }

    /// The model of VideoChat-TPO's mask head: SAM 2.0 with Hiera-L.
    pub fn videochat_tpo() -> Self {
        Self::large(Sam2Version::V2_0)
    }

    /// Images of 128 pixels, width 48, two memory layers: trained from scratch for the mini model.
    /// Masks have 32 x 32 logits. Without dropout, and holes of one pixel at most are filled.
    pub fn mini(version: Sam2Version) -> Self {
        Self::new(
            ImageEncoderConfig::sam2(HieraConfig::mini()).with_d_model(48),
            PromptEncoderConfig::new(48, [128, 128]),
            MaskDecoderConfig::new(48)
                .with_num_heads(4)
                .with_mlp_dim(96)
                .with_iou_head_hidden_dim(48),
            MemoryAttentionConfig::new(48, 24)
                .with_num_layers(2)
                .with_dim_feedforward(96)
                .with_dropout(0.0),
            MemoryEncoderConfig::new(48, 24),
            TrackingConfig::of(version).with_fill_hole_area(1),
        )
        .with_image_size(128)
    }

    /// Images of 64 pixels, width 32, two memory layers, for tests.
    pub fn nano(version: Sam2Version) -> Self {
        Self::new(
            ImageEncoderConfig::sam2(HieraConfig::nano()).with_d_model(32),
            PromptEncoderConfig::new(32, [64, 64]),
            MaskDecoderConfig::new(32)
                .with_mlp_dim(64)
                .with_iou_head_hidden_dim(24),
            MemoryAttentionConfig::new(32, 16)
                .with_num_layers(2)
                .with_dim_feedforward(48),
            MemoryEncoderConfig::new(32, 16),
            TrackingConfig::of(version),
        )
        .with_image_size(64)
        .with_num_maskmem(3)
    }

    /// The same model with the parameters of Hugging Face's checkpoints, which store the vectors
    /// of point labels in one tensor. Load it with
    /// [`sam2_hugging_face_keys`](super::sam2_hugging_face_keys).
    pub fn for_hugging_face(mut self) -> Self {
        self.prompt_encoder.point_table = PointTableLayout::Stacked;
        self
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// [`HeadsError::Config`] for the first rule that is broken, and the image encoder's own
    /// errors.
    pub fn validate(&self) -> Result<(), HeadsError> {
        self.image_encoder.validate()?;
        let (p, d) = (&self.prompt_encoder, &self.mask_decoder);
        let (a, m) = (&self.memory_attention, &self.memory_encoder);
        let (dim, memory, side) = (self.image_encoder.d_model, m.out_dim, self.image_size);
        let require = |holds: bool, what, expected: String, found: usize| {
            HeadsError::require(holds, what, expected, found)
        };
        // Beyond these a file is taken to be wrong; published models are far below.
        let (wide, many) = (1 << 16, 1000);
        for (what, value, least, most) in [
            ("image_size", side, 1, wide),
            ("num_maskmem", self.num_maskmem, 1, many),
            ("prompt_encoder.mask_in_chans", p.mask_in_chans, 1, wide),
            ("mask_decoder.depth", d.depth, 0, many),
            ("mask_decoder.num_heads", d.num_heads, 1, wide),
            ("mask_decoder.mlp_dim", d.mlp_dim, 1, wide),
            (
                "mask_decoder.attention_downsample_rate",
                d.attention_downsample_rate,
                1,
                wide,
            ),
            (
                "mask_decoder.num_multimask_outputs",
                d.num_multimask_outputs,
                1,
                many,
            ),
            ("mask_decoder.iou_head_depth", d.iou_head_depth, 1, many),
            (
                "mask_decoder.iou_head_hidden_dim",
                d.iou_head_hidden_dim,
                1,
                wide,
            ),
            ("memory_attention.num_layers", a.num_layers, 0, many),
            ("memory_attention.num_heads", a.num_heads, 1, wide),
            (
                "memory_attention.dim_feedforward",
                a.dim_feedforward,
                0,
                wide,
            ),
            ("memory_encoder.out_dim", memory, 1, wide),
            ("memory_encoder.fuser_layers", m.fuser_layers, 0, many),
            ("memory_encoder.fuser_kernel", m.fuser_kernel, 0, many),
        ] {
            let holds = (least..=most).contains(&value);
            require(holds, what, format!("{least} to {most}"), value)?;
        }
        for (what, value, of, expected) in [
            ("prompt_encoder.dim", p.dim, "the pyramid", dim),
            ("mask_decoder.dim", d.dim, "the pyramid", dim),
            ("memory_attention.d_model", a.d_model, "the pyramid", dim),
            ("memory_encoder.in_dim", m.in_dim, "the pyramid", dim),
            (
                "memory_attention.kv_in_dim",
                a.kv_in_dim,
                "the memory encoder",
                memory,
            ),
        ] {
            let width = format!("{expected}, the width of {of}");
            require(value == expected, what, width, value)?;
        }
        let inner = dim / d.attention_downsample_rate;
        require(
            inner > 0,
            "mask_decoder.attention_downsample_rate",
            format!("up to {dim}"),
            inner,
        )?;
        for (what, value, divisor) in [
            ("image_size", side, self.image_encoder.trunk.side_multiple()),
            ("d_model", dim, 8),
            ("d_model, for the width of a memory", dim, memory),
            ("d_model, for mask_decoder.num_heads", dim, d.num_heads),
            (
                "the decoder's inner width, for its num_heads",
                inner,
                d.num_heads,
            ),
            (
                "d_model, for memory_attention.num_heads",
                dim,
                a.num_heads.saturating_mul(4),
            ),
            ("memory_encoder.out_dim", memory, 4),
            ("prompt_encoder.mask_in_chans", p.mask_in_chans, 4),
        ] {
            let holds = value.is_multiple_of(divisor);
            require(holds, what, format!("a multiple of {divisor}"), value)?;
        }
        let kernel = m.fuser_kernel;
        require(
            kernel % 2 == 1,
            "memory_encoder.fuser_kernel",
            "odd".into(),
            kernel,
        )?;
        let encoder = &self.image_encoder;
        HeadsError::require(
            encoder.levels() == 3 && encoder.trunk.q_pool == 3,
            "image_encoder",
            "a pyramid of strides 4, 8 and 16 (scalp 1, q_pool 3)",
            format_args!("scalp {}, q_pool {}", encoder.scalp, encoder.trunk.q_pool),
        )?;
        HeadsError::require(
            p.image_size == [side; 2],
            "prompt_encoder.image_size",
            format!("{:?}", [side; 2]),
            format_args!("{:?}", p.image_size),
        )?;
        let dropout = (0.0..1.0).contains(&a.dropout);
        HeadsError::require(dropout, "memory_attention.dropout", "in [0, 1)", a.dropout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_generations_differ_in_the_memory() {
        for version in [Sam2Version::V2_0, Sam2Version::V2_1] {
            for config in [
                Sam2Config::tiny(version),
                Sam2Config::small(version),
                Sam2Config::base_plus(version),
                Sam2Config::large(version),
                Sam2Config::mini(version),
                Sam2Config::nano(version),
            ] {
                config.validate().unwrap();
                let newer = version == Sam2Version::V2_1;
                assert_eq!(config.tracking.no_obj_embed_spatial, newer);
            }
        }
        let mut broken = Sam2Config::nano(Sam2Version::V2_0);
        broken.image_size = 96;
        let message = broken.validate().unwrap_err().to_string();
        assert!(message.contains("prompt_encoder.image_size"), "{message}");
        broken.prompt_encoder.image_size = [96; 2];
        broken.validate().unwrap();
        broken.memory_attention.kv_in_dim = 8;
        assert!(broken.validate().is_err());
    }
}
