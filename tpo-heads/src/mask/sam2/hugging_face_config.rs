//! Reading the `config.json` of Hugging Face's `Sam2VideoModel`.

use serde::Deserialize;
use serde_json::Value;
use tpo_vision::hiera::{HieraConfig, ImageEncoderConfig};

use super::config::{
    MaskDecoderConfig, MemoryAttentionConfig, MemoryEncoderConfig, PromptEncoderConfig, Sam2Config,
    Sam2Version, TrackingConfig,
};
use crate::HeadsError;

/// Absent fields keep the defaults of transformers' configuration classes.
#[derive(Deserialize)]
#[serde(default)]
struct Video {
    image_size: usize,
    num_maskmem: usize,
    enable_occlusion_spatial_embedding: bool,
    enable_temporal_pos_encoding_for_object_pointers: bool,
    max_object_pointers_in_encoder: usize,
    memory_attention_dropout: f64,
    memory_attention_feed_forward_hidden_size: usize,
    memory_attention_hidden_size: usize,
    memory_attention_num_attention_heads: usize,
    memory_attention_num_layers: usize,
    memory_attention_rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    memory_encoder_hidden_size: usize,
    memory_encoder_output_channels: usize,
    memory_fuser_kernel_size: usize,
    memory_fuser_num_layers: usize,
    multimask_max_pt_num: usize,
    multimask_min_pt_num: usize,
    multimask_output_for_tracking: bool,
    multimask_output_in_sam: bool,
    sigmoid_bias_for_mem_enc: f64,
    sigmoid_scale_for_mem_enc: f64,
    mask_decoder_config: Decoder,
    prompt_encoder_config: Prompt,
    vision_config: Vision,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
}

#[derive(Deserialize)]
#[serde(default)]
struct Decoder {
    attention_downsample_rate: usize,
    dynamic_multimask_stability_delta: f64,
    dynamic_multimask_stability_thresh: f64,
    dynamic_multimask_via_stability: bool,
    hidden_size: usize,
    iou_head_depth: usize,
    iou_head_hidden_dim: usize,
    mlp_dim: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    num_multimask_outputs: usize,
}

#[derive(Deserialize)]
#[serde(default)]
struct Prompt {
    hidden_size: usize,
    mask_input_channels: usize,
}

#[derive(Deserialize)]
#[serde(default)]
struct Vision {
    backbone_config: Backbone,
    fpn_hidden_size: usize,
    fpn_top_down_levels: Vec<usize>,
    num_feature_levels: usize,
}

#[derive(Deserialize)]
#[serde(default)]
struct Backbone {
    blocks_per_stage: [usize; 4],
    global_attention_blocks: Vec<usize>,
    hidden_size: usize,
    layer_norm_eps: f64,
    mlp_ratio: f64,
    num_attention_heads: usize,
    num_query_pool_stages: usize,
    window_positional_embedding_background_size: [usize; 2],
    window_size_per_stage: [usize; 4],
}

impl Default for Video {
    fn default() -> Self {
        Self {
            image_size: 1024,
            num_maskmem: 7,
            enable_occlusion_spatial_embedding: true,
            enable_temporal_pos_encoding_for_object_pointers: true,
            max_object_pointers_in_encoder: 16,
            memory_attention_dropout: 0.1,
            memory_attention_feed_forward_hidden_size: 2048,
            memory_attention_hidden_size: 256,
            memory_attention_num_attention_heads: 1,
            memory_attention_num_layers: 4,
            memory_attention_rope_theta: None,
            rope_parameters: None,
            memory_encoder_hidden_size: 256,
            memory_encoder_output_channels: 64,
            memory_fuser_kernel_size: 7,
            memory_fuser_num_layers: 2,
            multimask_max_pt_num: 1,
            multimask_min_pt_num: 0,
            multimask_output_for_tracking: true,
            multimask_output_in_sam: true,
            sigmoid_bias_for_mem_enc: -10.0,
            sigmoid_scale_for_mem_enc: 20.0,
            mask_decoder_config: Decoder::default(),
            prompt_encoder_config: Prompt::default(),
            vision_config: Vision::default(),
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            attention_downsample_rate: 2,
            dynamic_multimask_stability_delta: 0.05,
            dynamic_multimask_stability_thresh: 0.98,
            dynamic_multimask_via_stability: true,
            hidden_size: 256,
            iou_head_depth: 3,
            iou_head_hidden_dim: 256,
            mlp_dim: 2048,
            num_attention_heads: 8,
            num_hidden_layers: 2,
            num_multimask_outputs: 3,
        }
    }
}

impl Default for Prompt {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            mask_input_channels: 16,
        }
    }
}

impl Default for Vision {
    fn default() -> Self {
        Self {
            backbone_config: Backbone::default(),
            fpn_hidden_size: 256,
            fpn_top_down_levels: vec![2, 3],
            num_feature_levels: 3,
        }
    }
}

impl Default for Backbone {
    fn default() -> Self {
        Self {
            blocks_per_stage: [1, 2, 7, 2],
            global_attention_blocks: vec![5, 7, 9],
            hidden_size: 96,
            layer_norm_eps: 1e-6,
            mlp_ratio: 4.0,
            num_attention_heads: 1,
            num_query_pool_stages: 3,
            window_positional_embedding_background_size: [7, 7],
            window_size_per_stage: [8, 4, 14, 7],
        }
    }
}

impl Sam2Config {
    /// Reads the `config.json` of Hugging Face's `Sam2VideoModel`, for weights under
    /// [`sam2_hugging_face_keys`](super::sam2_hugging_face_keys). Absent fields take the defaults
    /// of transformers (SAM 2.1 with Hiera-T); settings transformers writes into its code are
    /// those of the published models.
    ///
    /// # Errors
    /// [`HeadsError::Config`] for a field of the wrong type, another kind of model, and sizes that
    /// contradict each other.
    pub fn from_hf_json(json: &Value) -> Result<Self, HeadsError> {
        let wrong = |expected: &str, found: String| HeadsError::Config {
            what: "config.json of SAM 2",
            expected: expected.into(),
            found,
        };
        if !json.is_object() {
            return Err(wrong("an object", "another kind of value".into()));
        }
        if let Some(kind) = json["model_type"].as_str()
            && !matches!(kind, "sam2" | "sam2_video")
        {
            return Err(wrong("model_type sam2_video", kind.into()));
        }
        let hf = Video::deserialize(json)
            .map_err(|e| wrong("transformers' Sam2VideoConfig", e.to_string()))?;
        let b = hf.vision_config.backbone_config;
        if b.mlp_ratio.fract() != 0.0 || !(1.0..=64.0).contains(&b.mlp_ratio) {
            return Err(wrong("a whole mlp_ratio", b.mlp_ratio.to_string()));
        }
        let trunk = HieraConfig::new(
            b.hidden_size,
            b.num_attention_heads,
            b.blocks_per_stage,
            b.global_attention_blocks,
        )
        .with_window_spec(b.window_size_per_stage)
        .with_window_pos_embed_bkg_spatial_size(b.window_positional_embedding_background_size)
        .with_q_pool(b.num_query_pool_stages)
        .with_mlp_ratio(b.mlp_ratio as usize)
        .with_layer_norm_eps(b.layer_norm_eps);
        let d = hf.mask_decoder_config;
        let theta = hf
            .rope_parameters
            .and_then(|rope| rope.rope_theta)
            .or(hf.memory_attention_rope_theta)
            .unwrap_or(10_000.0);
        let time = hf.enable_temporal_pos_encoding_for_object_pointers;
        let config = Self::new(
            ImageEncoderConfig::new(trunk)
                .with_d_model(hf.vision_config.fpn_hidden_size)
                .with_fpn_top_down_levels(hf.vision_config.fpn_top_down_levels)
                .with_scalp(4usize.saturating_sub(hf.vision_config.num_feature_levels)),
            PromptEncoderConfig::new(hf.prompt_encoder_config.hidden_size, [hf.image_size; 2])
                .with_mask_in_chans(hf.prompt_encoder_config.mask_input_channels),
            MaskDecoderConfig::new(d.hidden_size)
                .with_depth(d.num_hidden_layers)
                .with_num_heads(d.num_attention_heads)
                .with_mlp_dim(d.mlp_dim)
                .with_attention_downsample_rate(d.attention_downsample_rate)
                .with_num_multimask_outputs(d.num_multimask_outputs)
                .with_iou_head_depth(d.iou_head_depth)
                .with_iou_head_hidden_dim(d.iou_head_hidden_dim),
            MemoryAttentionConfig::new(
                hf.memory_attention_hidden_size,
                hf.memory_encoder_output_channels,
            )
            .with_dim_feedforward(hf.memory_attention_feed_forward_hidden_size)
            .with_num_layers(hf.memory_attention_num_layers)
            .with_num_heads(hf.memory_attention_num_attention_heads)
            .with_rope_theta(theta)
            .with_dropout(hf.memory_attention_dropout),
            MemoryEncoderConfig::new(
                hf.memory_encoder_hidden_size,
                hf.memory_encoder_output_channels,
            )
            .with_fuser_layers(hf.memory_fuser_num_layers)
            .with_fuser_kernel(hf.memory_fuser_kernel_size),
            TrackingConfig::of(Sam2Version::V2_0)
                .with_sigmoid_scale_for_mem_enc(hf.sigmoid_scale_for_mem_enc)
                .with_sigmoid_bias_for_mem_enc(hf.sigmoid_bias_for_mem_enc)
                .with_multimask_output_in_sam(hf.multimask_output_in_sam)
                .with_multimask_output_for_tracking(hf.multimask_output_for_tracking)
                .with_multimask_min_pt_num(hf.multimask_min_pt_num)
                .with_multimask_max_pt_num(hf.multimask_max_pt_num)
                .with_max_obj_ptrs_in_encoder(hf.max_object_pointers_in_encoder)
                .with_dynamic_multimask_via_stability(d.dynamic_multimask_via_stability)
                .with_dynamic_multimask_stability_delta(d.dynamic_multimask_stability_delta)
                .with_dynamic_multimask_stability_thresh(d.dynamic_multimask_stability_thresh)
                .with_add_tpos_enc_to_obj_ptrs(time)
                .with_proj_tpos_enc_in_obj_ptrs(time)
                .with_use_signed_tpos_enc_to_obj_ptrs(time)
                .with_no_obj_embed_spatial(hf.enable_occlusion_spatial_embedding),
        )
        .with_image_size(hf.image_size)
        .with_num_maskmem(hf.num_maskmem)
        .for_hugging_face();
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn presets_from_the_fields_that_tell_them_apart() {
        let newer = Sam2Config::from_hf_json(&json!({"model_type": "sam2_video"})).unwrap();
        let expected = Sam2Config::tiny(Sam2Version::V2_1).for_hugging_face();
        assert_eq!(newer, expected);
        let large = json!({
            "model_type": "sam2_video",
            "enable_occlusion_spatial_embedding": false,
            "enable_temporal_pos_encoding_for_object_pointers": false,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
            "vision_config": {"backbone_config": {
                "hidden_size": 144,
                "num_attention_heads": 2,
                "blocks_per_stage": [2, 6, 36, 4],
                "global_attention_blocks": [23, 33, 43],
                "window_size_per_stage": [8, 4, 16, 8]
            }}
        });
        let expected = Sam2Config::videochat_tpo().for_hugging_face();
        assert_eq!(Sam2Config::from_hf_json(&large).unwrap(), expected);
    }

    #[test]
    fn other_models_and_absurd_values_are_refused() {
        for json in [
            json!({"model_type": "llama"}),
            json!({"num_maskmem": -1}),
            json!({"vision_config": {"backbone_config": {"mlp_ratio": 2.5}}}),
            json!({"vision_config": {"num_feature_levels": 9}}),
            json!({"vision_config": {"backbone_config": {"hidden_size": 0}}}),
            json!({"mask_decoder_config": {"attention_downsample_rate": 0}}),
            json!({"mask_decoder_config": {"num_attention_heads": 7}}),
            json!({"memory_attention_dropout": 1.0}),
            json!({"memory_encoder_output_channels": 0}),
            json!({"image_size": 1u64 << 62}),
            json!({"memory_attention_num_layers": 1u64 << 40}),
            json!({"vision_config": {"backbone_config": {"hidden_size": u64::MAX}}}),
            json!({"vision_config": {"backbone_config": {"blocks_per_stage": [1, 1, 1, u64::MAX]}}}),
            json!({"vision_config": {"fpn_hidden_size": 1u64 << 63}}),
            json!([]),
        ] {
            let error = Sam2Config::from_hf_json(&json).unwrap_err();
            assert!(!error.to_string().is_empty(), "{json}");
        }
    }
}
