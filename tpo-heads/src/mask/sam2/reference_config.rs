//! Reading SAM 2's own configuration.

use serde_json::Value;

use super::config::{Sam2Config, Sam2Version, TrackingConfig};
use super::fields::Fields;
use crate::HeadsError;

impl Sam2Config {
    /// Reads `model` of SAM 2's configuration files (YAML there, JSON here). Absent fields take
    /// the defaults of the reference's constructors, which are not those of the published models.
    /// `mask_decoder` may state sizes the reference writes into its code: `mlp_dim`, `num_heads`,
    /// `iou_head_hidden_dim`, `depth`, `attention_downsample_rate` and `mask_in_chans`.
    ///
    /// # Errors
    /// [`HeadsError::Config`] for a missing field, for a setting no published model uses and this
    /// library lacks, and for sizes that contradict each other.
    pub fn from_reference_json(
        model: &Value,
        mask_decoder: Option<&Value>,
    ) -> Result<Self, HeadsError> {
        let f = Fields(model);
        let mut config = Self::base_plus(Sam2Version::V2_0);
        let c = &mut config;
        let trunk = &mut c.image_encoder.trunk;
        f.need("image_encoder.trunk.embed_dim", &mut trunk.embed_dim)?;
        f.need("image_encoder.trunk.num_heads", &mut trunk.num_heads)?;
        f.take("image_encoder.trunk.stages", &mut trunk.stages)?;
        f.take(
            "image_encoder.trunk.global_att_blocks",
            &mut trunk.global_att_blocks,
        )?;
        f.take("image_encoder.trunk.window_spec", &mut trunk.window_spec)?;
        f.take(
            "image_encoder.trunk.window_pos_embed_bkg_spatial_size",
            &mut trunk.window_pos_embed_bkg_spatial_size,
        )?;
        f.take("image_encoder.trunk.q_pool", &mut trunk.q_pool)?;
        trunk.mlp_ratio = f.or("image_encoder.trunk.mlp_ratio", 4.0f64)? as usize;
        f.take(
            "image_encoder.trunk.drop_path_rate",
            &mut trunk.drop_path_rate,
        )?;
        let mut channels = trunk.widths().to_vec();
        channels.reverse();
        f.fixed("image_encoder.neck.backbone_channel_list", channels)?;
        f.fixed("image_encoder.neck.fpn_interp_model", "nearest")?;
        if f.at("image_encoder.neck.fuse_type")?.is_some() {
            f.fixed("image_encoder.neck.fuse_type", "sum")?;
        }
        let pyramid = &mut c.image_encoder;
        pyramid.scalp = f.or("image_encoder.scalp", 0)?;
        pyramid.fpn_top_down_levels =
            f.or("image_encoder.neck.fpn_top_down_levels", (0..4).collect())?;
        f.need("image_encoder.neck.d_model", &mut pyramid.d_model)?;

        f.need("image_size", &mut c.image_size)?;
        f.need("num_maskmem", &mut c.num_maskmem)?;
        c.prompt_encoder.dim = c.image_encoder.d_model;
        c.prompt_encoder.image_size = [c.image_size; 2];

        let (d, p) = (&mut c.mask_decoder, &mut c.prompt_encoder);
        d.dim = c.image_encoder.d_model;
        for path in [
            "iou_prediction_use_sigmoid",
            "use_high_res_features_in_sam",
            "pred_obj_scores",
            "pred_obj_scores_mlp",
            "memory_attention.pos_enc_at_input",
            "use_mlp_for_obj_ptr_proj",
            "use_obj_ptrs_in_encoder",
            "only_obj_ptrs_in_the_past_for_eval",
            "fixed_no_obj_ptr",
        ] {
            f.fixed(path, true)?;
        }
        if f.at("soft_no_obj_ptr")?.is_some() {
            f.fixed("soft_no_obj_ptr", false)?;
        }
        let sizes = Fields(mask_decoder.unwrap_or(&Value::Null));
        sizes.take("mlp_dim", &mut d.mlp_dim)?;
        sizes.take("num_heads", &mut d.num_heads)?;
        sizes.take("iou_head_hidden_dim", &mut d.iou_head_hidden_dim)?;
        sizes.take("depth", &mut d.depth)?;
        sizes.take(
            "attention_downsample_rate",
            &mut d.attention_downsample_rate,
        )?;
        sizes.take("mask_in_chans", &mut p.mask_in_chans)?;

        let a = &mut c.memory_attention;
        f.need("memory_attention.d_model", &mut a.d_model)?;
        f.need("memory_attention.num_layers", &mut a.num_layers)?;
        f.fixed("memory_attention.layer.activation", "relu")?;
        f.fixed("memory_attention.layer.pos_enc_at_attn", false)?;
        f.fixed("memory_attention.layer.pos_enc_at_cross_attn_keys", true)?;
        f.fixed(
            "memory_attention.layer.pos_enc_at_cross_attn_queries",
            false,
        )?;
        f.need(
            "memory_attention.layer.dim_feedforward",
            &mut a.dim_feedforward,
        )?;
        f.need("memory_attention.layer.dropout", &mut a.dropout)?;
        let cross = Fields(
            f.at("memory_attention.layer.cross_attention")?
                .unwrap_or(&Value::Null),
        );
        cross.fixed("downsample_rate", 1)?;
        cross.fixed("rope_k_repeat", true)?;
        cross.need("rope_theta", &mut a.rope_theta)?;
        cross.need("num_heads", &mut a.num_heads)?;
        cross.need("kv_in_dim", &mut a.kv_in_dim)?;

        let m = &mut c.memory_encoder;
        f.need("memory_encoder.out_dim", &mut m.out_dim)?;
        m.in_dim = f.or("memory_encoder.in_dim", 256)?;
        f.fixed("memory_encoder.mask_downsampler.kernel_size", 3)?;
        f.fixed("memory_encoder.mask_downsampler.stride", 2)?;
        f.fixed("memory_encoder.mask_downsampler.padding", 1)?;
        f.need("memory_encoder.fuser.num_layers", &mut m.fuser_layers)?;
        f.need(
            "memory_encoder.fuser.layer.kernel_size",
            &mut m.fuser_kernel,
        )?;
        f.fixed("memory_encoder.fuser.layer.padding", m.fuser_kernel / 2)?;

        c.tracking = tracking(&f)?;
        config.validate()?;
        Ok(config)
    }
}

/// The behaviour, with the defaults of the reference's constructor.
fn tracking(f: &Fields<'_>) -> Result<TrackingConfig, HeadsError> {
    let flag = |name| f.or(name, false);
    let extra = Fields(f.at("sam_mask_decoder_extra_args")?.unwrap_or(&Value::Null));
    let delta = extra.or("dynamic_multimask_stability_delta", 0.05)?;
    let threshold = extra.or("dynamic_multimask_stability_thresh", 0.98)?;
    Ok(TrackingConfig::new()
        .with_sigmoid_scale_for_mem_enc(f.or("sigmoid_scale_for_mem_enc", 1.0)?)
        .with_sigmoid_bias_for_mem_enc(f.or("sigmoid_bias_for_mem_enc", 0.0)?)
        .with_binarize_mask_from_pts_for_mem_enc(flag("binarize_mask_from_pts_for_mem_enc")?)
        .with_use_mask_input_as_output_without_sam(flag("use_mask_input_as_output_without_sam")?)
        .with_directly_add_no_mem_embed(flag("directly_add_no_mem_embed")?)
        .with_multimask_output_in_sam(flag("multimask_output_in_sam")?)
        .with_multimask_min_pt_num(f.or("multimask_min_pt_num", 1)?)
        .with_multimask_max_pt_num(f.or("multimask_max_pt_num", 1)?)
        .with_multimask_output_for_tracking(flag("multimask_output_for_tracking")?)
        .with_use_multimask_token_for_obj_ptr(flag("use_multimask_token_for_obj_ptr")?)
        .with_dynamic_multimask_via_stability(extra.or("dynamic_multimask_via_stability", false)?)
        .with_dynamic_multimask_stability_delta(delta)
        .with_dynamic_multimask_stability_thresh(threshold)
        .with_max_obj_ptrs_in_encoder(f.or("max_obj_ptrs_in_encoder", 16)?)
        .with_add_tpos_enc_to_obj_ptrs(f.or("add_tpos_enc_to_obj_ptrs", true)?)
        .with_proj_tpos_enc_in_obj_ptrs(flag("proj_tpos_enc_in_obj_ptrs")?)
        .with_use_signed_tpos_enc_to_obj_ptrs(flag("use_signed_tpos_enc_to_obj_ptrs")?)
        .with_no_obj_embed_spatial(flag("no_obj_embed_spatial")?)
        .with_memory_temporal_stride_for_eval(f.or("memory_temporal_stride_for_eval", 1)?)
        .with_fill_hole_area(f.or("fill_hole_area", 0)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn large() -> Value {
        json!({
            "image_encoder": {
                "scalp": 1,
                "trunk": {
                    "embed_dim": 144, "num_heads": 2, "stages": [2, 6, 36, 4],
                    "global_att_blocks": [23, 33, 43],
                    "window_pos_embed_bkg_spatial_size": [7, 7], "window_spec": [8, 4, 16, 8]
                },
                "neck": {
                    "d_model": 256, "backbone_channel_list": [1152, 576, 288, 144],
                    "fpn_top_down_levels": [2, 3], "fpn_interp_model": "nearest"
                }
            },
            "memory_attention": {
                "d_model": 256, "pos_enc_at_input": true, "num_layers": 4,
                "layer": {
                    "activation": "relu", "dim_feedforward": 2048, "dropout": 0.1,
                    "pos_enc_at_attn": false, "pos_enc_at_cross_attn_keys": true,
                    "pos_enc_at_cross_attn_queries": false,
                    "cross_attention": {
                        "rope_theta": 10000.0, "num_heads": 1, "downsample_rate": 1,
                        "rope_k_repeat": true, "kv_in_dim": 64
                    }
                }
            },
            "memory_encoder": {
                "out_dim": 64,
                "mask_downsampler": {"kernel_size": 3, "stride": 2, "padding": 1},
                "fuser": {"num_layers": 2, "layer": {"kernel_size": 7, "padding": 3}}
            },
            "num_maskmem": 7, "image_size": 1024,
            "sigmoid_scale_for_mem_enc": 20.0, "sigmoid_bias_for_mem_enc": -10.0,
            "use_mask_input_as_output_without_sam": true, "directly_add_no_mem_embed": true,
            "use_high_res_features_in_sam": true, "multimask_output_in_sam": true,
            "iou_prediction_use_sigmoid": true, "use_obj_ptrs_in_encoder": true,
            "add_tpos_enc_to_obj_ptrs": false, "only_obj_ptrs_in_the_past_for_eval": true,
            "pred_obj_scores": true, "pred_obj_scores_mlp": true, "fixed_no_obj_ptr": true,
            "multimask_output_for_tracking": true, "use_multimask_token_for_obj_ptr": true,
            "multimask_min_pt_num": 0, "multimask_max_pt_num": 1,
            "use_mlp_for_obj_ptr_proj": true,
            "sam_mask_decoder_extra_args": {"dynamic_multimask_via_stability": true},
            "binarize_mask_from_pts_for_mem_enc": true, "fill_hole_area": 8
        })
    }

    #[test]
    fn the_published_file_is_the_preset() {
        let config = Sam2Config::from_reference_json(&large(), None).unwrap();
        assert_eq!(config, Sam2Config::videochat_tpo());
    }

    #[test]
    fn what_is_not_supported_or_missing_is_named() {
        for (pointer, value, name) in [
            (
                "/memory_attention/layer/activation",
                json!("gelu"),
                "activation",
            ),
            (
                "/image_encoder/neck/fpn_interp_model",
                json!("bilinear"),
                "fpn_interp_model",
            ),
            (
                "/image_encoder/neck/backbone_channel_list",
                json!([1]),
                "backbone_channel_list",
            ),
            (
                "/use_mlp_for_obj_ptr_proj",
                json!(false),
                "use_mlp_for_obj_ptr_proj",
            ),
            ("/num_maskmem", json!("seven"), "seven"),
            ("/num_maskmem", json!(0), "num_maskmem"),
            ("/image_size", json!(1000), "image_size"),
        ] {
            let mut model = large();
            *model.pointer_mut(pointer).unwrap() = value;
            let message = Sam2Config::from_reference_json(&model, None)
                .unwrap_err()
                .to_string();
            assert!(message.contains(name), "{message}");
        }
        let message = Sam2Config::from_reference_json(&json!({}), None)
            .unwrap_err()
            .to_string();
        assert!(message.contains("image_encoder"), "{message}");
    }
}
