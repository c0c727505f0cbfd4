//! Reading the `config.json` of Hugging Face's `Sam2VideoModel`.

use serde_json::Value;

use super::config::{Sam2Config, Sam2Version};
use super::fields::Fields;
use crate::HeadsError;

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
        let f = Fields(json);
        let kind: String = f.or("model_type", "sam2_video".into())?;
        let known = matches!(kind.as_str(), "sam2" | "sam2_video");
        HeadsError::require(known, "model_type", "sam2_video", kind)?;
        let mut config = Self::tiny(Sam2Version::V2_1).for_hugging_face();
        let c = &mut config;

        let trunk = &mut c.image_encoder.trunk;
        let b = Fields(
            f.at("vision_config.backbone_config")?
                .unwrap_or(&Value::Null),
        );
        b.take("hidden_size", &mut trunk.embed_dim)?;
        b.take("num_attention_heads", &mut trunk.num_heads)?;
        b.take("blocks_per_stage", &mut trunk.stages)?;
        b.take("global_attention_blocks", &mut trunk.global_att_blocks)?;
        b.take("window_size_per_stage", &mut trunk.window_spec)?;
        b.take(
            "window_positional_embedding_background_size",
            &mut trunk.window_pos_embed_bkg_spatial_size,
        )?;
        b.take("num_query_pool_stages", &mut trunk.q_pool)?;
        b.take("layer_norm_eps", &mut trunk.layer_norm_eps)?;
        let ratio: f64 = b.or("mlp_ratio", 4.0)?;
        let whole = ratio.fract() == 0.0 && (1.0..=64.0).contains(&ratio);
        HeadsError::require(whole, "mlp_ratio", "a whole number up to 64", ratio)?;
        trunk.mlp_ratio = ratio as usize;

        let pyramid = &mut c.image_encoder;
        f.take("vision_config.fpn_hidden_size", &mut pyramid.d_model)?;
        f.take(
            "vision_config.fpn_top_down_levels",
            &mut pyramid.fpn_top_down_levels,
        )?;
        let levels: usize = f.or("vision_config.num_feature_levels", 3)?;
        pyramid.scalp = 4usize.saturating_sub(levels);

        f.take("image_size", &mut c.image_size)?;
        f.take("num_maskmem", &mut c.num_maskmem)?;
        let p = &mut c.prompt_encoder;
        f.take("prompt_encoder_config.hidden_size", &mut p.dim)?;
        f.take(
            "prompt_encoder_config.mask_input_channels",
            &mut p.mask_in_chans,
        )?;
        p.image_size = [c.image_size; 2];

        let t = &mut c.tracking;
        let decoder = Fields(f.at("mask_decoder_config")?.unwrap_or(&Value::Null));
        let d = &mut c.mask_decoder;
        decoder.take("hidden_size", &mut d.dim)?;
        decoder.take("num_hidden_layers", &mut d.depth)?;
        decoder.take("num_attention_heads", &mut d.num_heads)?;
        decoder.take("mlp_dim", &mut d.mlp_dim)?;
        decoder.take(
            "attention_downsample_rate",
            &mut d.attention_downsample_rate,
        )?;
        decoder.take("num_multimask_outputs", &mut d.num_multimask_outputs)?;
        decoder.take("iou_head_depth", &mut d.iou_head_depth)?;
        decoder.take("iou_head_hidden_dim", &mut d.iou_head_hidden_dim)?;
        let (delta, threshold) = (
            &mut t.dynamic_multimask_stability_delta,
            &mut t.dynamic_multimask_stability_thresh,
        );
        decoder.take("dynamic_multimask_stability_delta", delta)?;
        decoder.take("dynamic_multimask_stability_thresh", threshold)?;
        let dynamic = &mut t.dynamic_multimask_via_stability;
        decoder.take("dynamic_multimask_via_stability", dynamic)?;

        let a = &mut c.memory_attention;
        f.take("memory_attention_hidden_size", &mut a.d_model)?;
        f.take(
            "memory_attention_feed_forward_hidden_size",
            &mut a.dim_feedforward,
        )?;
        f.take("memory_attention_num_layers", &mut a.num_layers)?;
        f.take("memory_attention_num_attention_heads", &mut a.num_heads)?;
        f.take("memory_attention_dropout", &mut a.dropout)?;
        f.take("memory_attention_rope_theta", &mut a.rope_theta)?;
        f.take("rope_parameters.rope_theta", &mut a.rope_theta)?;
        let m = &mut c.memory_encoder;
        f.take("memory_encoder_hidden_size", &mut m.in_dim)?;
        f.take("memory_encoder_output_channels", &mut m.out_dim)?;
        f.take("memory_fuser_num_layers", &mut m.fuser_layers)?;
        f.take("memory_fuser_kernel_size", &mut m.fuser_kernel)?;
        a.kv_in_dim = m.out_dim;

        f.take(
            "sigmoid_scale_for_mem_enc",
            &mut t.sigmoid_scale_for_mem_enc,
        )?;
        f.take("sigmoid_bias_for_mem_enc", &mut t.sigmoid_bias_for_mem_enc)?;
        f.take("multimask_output_in_sam", &mut t.multimask_output_in_sam)?;
        f.take(
            "multimask_output_for_tracking",
            &mut t.multimask_output_for_tracking,
        )?;
        f.take("multimask_min_pt_num", &mut t.multimask_min_pt_num)?;
        f.take("multimask_max_pt_num", &mut t.multimask_max_pt_num)?;
        f.take(
            "max_object_pointers_in_encoder",
            &mut t.max_obj_ptrs_in_encoder,
        )?;
        f.take(
            "enable_occlusion_spatial_embedding",
            &mut t.no_obj_embed_spatial,
        )?;
        let time = f.or("enable_temporal_pos_encoding_for_object_pointers", true)?;
        t.add_tpos_enc_to_obj_ptrs = time;
        t.proj_tpos_enc_in_obj_ptrs = time;
        t.use_signed_tpos_enc_to_obj_ptrs = time;
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
