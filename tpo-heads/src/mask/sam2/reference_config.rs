//! Reading SAM 2's own configuration.

use serde::Deserialize;
use serde_json::Value;
use tpo_vision::hiera::{HieraConfig, ImageEncoderConfig};

use super::config::{
    MaskDecoderConfig, MemoryAttentionConfig, MemoryEncoderConfig, PromptEncoderConfig, Sam2Config,
    TrackingConfig,
};
use crate::HeadsError;

#[derive(Deserialize)]
struct Model {
    image_encoder: Encoder,
    memory_attention: Attention,
    memory_encoder: Memory,
    num_maskmem: usize,
    image_size: usize,
}

#[derive(Deserialize)]
struct Encoder {
    scalp: Option<usize>,
    trunk: Trunk,
    neck: Neck,
}

#[derive(Deserialize)]
struct Trunk {
    embed_dim: usize,
    num_heads: usize,
    stages: Option<[usize; 4]>,
    global_att_blocks: Option<Vec<usize>>,
    window_spec: Option<[usize; 4]>,
    window_pos_embed_bkg_spatial_size: Option<[usize; 2]>,
    q_pool: Option<usize>,
    mlp_ratio: Option<f64>,
    drop_path_rate: Option<f64>,
}

#[derive(Deserialize)]
struct Neck {
    d_model: usize,
    backbone_channel_list: Vec<usize>,
    fpn_top_down_levels: Option<Vec<usize>>,
    fpn_interp_model: Option<String>,
    fuse_type: Option<String>,
}

#[derive(Deserialize)]
struct Attention {
    d_model: usize,
    num_layers: usize,
    pos_enc_at_input: bool,
    layer: AttentionLayer,
}

#[derive(Deserialize)]
struct AttentionLayer {
    activation: String,
    dim_feedforward: usize,
    dropout: f64,
    pos_enc_at_attn: bool,
    pos_enc_at_cross_attn_keys: bool,
    pos_enc_at_cross_attn_queries: bool,
    cross_attention: Rotary,
}

#[derive(Deserialize)]
struct Rotary {
    rope_theta: f64,
    num_heads: usize,
    downsample_rate: usize,
    rope_k_repeat: Option<bool>,
    kv_in_dim: usize,
}

#[derive(Deserialize)]
struct Memory {
    out_dim: usize,
    in_dim: Option<usize>,
    mask_downsampler: Downsampler,
    fuser: Fusing,
}

#[derive(Deserialize)]
struct Downsampler {
    kernel_size: usize,
    stride: usize,
    padding: usize,
}

#[derive(Deserialize)]
struct Fusing {
    num_layers: usize,
    layer: FuserLayer,
}

#[derive(Deserialize)]
struct FuserLayer {
    kernel_size: usize,
    padding: usize,
}

/// Sizes the reference writes into its code (`mask_decoder` of a configuration may state others).
#[derive(Deserialize, Default)]
struct Decoder {
    mlp_dim: Option<usize>,
    num_heads: Option<usize>,
    iou_head_hidden_dim: Option<usize>,
    depth: Option<usize>,
    attention_downsample_rate: Option<usize>,
    mask_in_chans: Option<usize>,
}

fn read<T: for<'de> Deserialize<'de>>(json: &Value) -> Result<T, HeadsError> {
    T::deserialize(json).map_err(|e| HeadsError::Config {
        what: "SAM 2 configuration",
        expected: "the fields of `model` in SAM 2's configuration files".into(),
        found: e.to_string(),
    })
}

fn fixed<T: PartialEq + std::fmt::Debug>(
    what: &'static str,
    found: T,
    expected: T,
) -> Result<(), HeadsError> {
    if found == expected {
        return Ok(());
    }
    Err(HeadsError::Config {
        what,
        expected: format!("{expected:?}, the only value supported"),
        found: format!("{found:?}"),
    })
}

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
        let m: Model = read(model)?;
        let d: Decoder = match mask_decoder {
            Some(json) => read(json)?,
            None => Decoder::default(),
        };
        let layer = &m.memory_attention.layer;
        let cross = &layer.cross_attention;
        let down = &m.memory_encoder.mask_downsampler;
        let fuser = &m.memory_encoder.fuser;
        fixed(
            "memory_attention.layer.activation",
            layer.activation.as_str(),
            "relu",
        )?;
        fixed(
            "memory_attention.layer.pos_enc_at_attn",
            layer.pos_enc_at_attn,
            false,
        )?;
        fixed(
            "memory_attention.layer.pos_enc_at_cross_attn_keys",
            layer.pos_enc_at_cross_attn_keys,
            true,
        )?;
        fixed(
            "memory_attention.layer.pos_enc_at_cross_attn_queries",
            layer.pos_enc_at_cross_attn_queries,
            false,
        )?;
        fixed("cross_attention.downsample_rate", cross.downsample_rate, 1)?;
        fixed(
            "cross_attention.rope_k_repeat",
            cross.rope_k_repeat,
            Some(true),
        )?;
        fixed(
            "memory_encoder.mask_downsampler (kernel_size, stride, padding)",
            (down.kernel_size, down.stride, down.padding),
            (3, 2, 1),
        )?;
        fixed(
            "memory_encoder.fuser.layer.padding",
            fuser.layer.padding,
            fuser.layer.kernel_size / 2,
        )?;
        let neck = &m.image_encoder.neck;
        let interpolation = neck.fpn_interp_model.as_deref().unwrap_or("bilinear");
        fixed(
            "image_encoder.neck.fpn_interp_model",
            interpolation,
            "nearest",
        )?;
        fixed(
            "image_encoder.neck.fuse_type",
            neck.fuse_type.as_deref().unwrap_or("sum"),
            "sum",
        )?;
        let flag = |name: &str, default: bool| model[name].as_bool().unwrap_or(default);
        fixed(
            "use_mlp_for_obj_ptr_proj",
            flag("use_mlp_for_obj_ptr_proj", false),
            true,
        )?;
        fixed(
            "use_obj_ptrs_in_encoder",
            flag("use_obj_ptrs_in_encoder", false),
            true,
        )?;

        let trunk = &m.image_encoder.trunk;
        let trunk = HieraConfig::new(
            trunk.embed_dim,
            trunk.num_heads,
            trunk.stages.unwrap_or([2, 3, 16, 3]),
            trunk.global_att_blocks.clone().unwrap_or(vec![12, 16, 20]),
        )
        .with_window_spec(trunk.window_spec.unwrap_or([8, 4, 14, 7]))
        .with_window_pos_embed_bkg_spatial_size(
            trunk.window_pos_embed_bkg_spatial_size.unwrap_or([14, 14]),
        )
        .with_q_pool(trunk.q_pool.unwrap_or(3))
        .with_mlp_ratio(trunk.mlp_ratio.unwrap_or(4.0) as usize)
        .with_drop_path_rate(trunk.drop_path_rate.unwrap_or(0.0));
        let mut channels = trunk.widths().to_vec();
        channels.reverse();
        fixed(
            "image_encoder.neck.backbone_channel_list",
            &neck.backbone_channel_list,
            &channels,
        )?;
        let dim = neck.d_model;
        let memory = m.memory_encoder.out_dim;
        let mut prompt = PromptEncoderConfig::new(dim, [m.image_size; 2]);
        prompt.mask_in_chans = d.mask_in_chans.unwrap_or(prompt.mask_in_chans);
        let mut decoder = MaskDecoderConfig::new(dim)
            .with_iou_prediction_use_sigmoid(flag("iou_prediction_use_sigmoid", false))
            .with_use_high_res_features(flag("use_high_res_features_in_sam", false))
            .with_pred_obj_scores(flag("pred_obj_scores", false))
            .with_pred_obj_scores_mlp(flag("pred_obj_scores_mlp", false));
        for (field, value) in [
            (&mut decoder.mlp_dim, d.mlp_dim),
            (&mut decoder.num_heads, d.num_heads),
            (&mut decoder.iou_head_hidden_dim, d.iou_head_hidden_dim),
            (&mut decoder.depth, d.depth),
            (
                &mut decoder.attention_downsample_rate,
                d.attention_downsample_rate,
            ),
        ] {
            *field = value.unwrap_or(*field);
        }
        let config = Self::new(
            ImageEncoderConfig::new(trunk)
                .with_d_model(dim)
                .with_scalp(m.image_encoder.scalp.unwrap_or(0))
                .with_fpn_top_down_levels(
                    neck.fpn_top_down_levels
                        .clone()
                        .unwrap_or_else(|| (0..4).collect()),
                ),
            prompt,
            decoder,
            MemoryAttentionConfig::new(m.memory_attention.d_model, cross.kv_in_dim)
                .with_dim_feedforward(layer.dim_feedforward)
                .with_num_layers(m.memory_attention.num_layers)
                .with_num_heads(cross.num_heads)
                .with_rope_theta(cross.rope_theta)
                .with_pos_enc_at_input(m.memory_attention.pos_enc_at_input)
                .with_dropout(layer.dropout),
            MemoryEncoderConfig::new(m.memory_encoder.in_dim.unwrap_or(256), memory)
                .with_fuser_layers(fuser.num_layers)
                .with_fuser_kernel(fuser.layer.kernel_size),
            tracking(model),
        )
        .with_image_size(m.image_size)
        .with_num_maskmem(m.num_maskmem);
        config.validate()?;
        Ok(config)
    }
}

/// The behaviour, with the defaults of the reference's constructor.
fn tracking(model: &Value) -> TrackingConfig {
    let flag = |name: &str| model[name].as_bool().unwrap_or(false);
    let number = |name: &str, default: f64| model[name].as_f64().unwrap_or(default);
    let count = |name: &str, default: usize| model[name].as_u64().map_or(default, |n| n as usize);
    let extra = &model["sam_mask_decoder_extra_args"];
    TrackingConfig::new()
        .with_sigmoid_scale_for_mem_enc(number("sigmoid_scale_for_mem_enc", 1.0))
        .with_sigmoid_bias_for_mem_enc(number("sigmoid_bias_for_mem_enc", 0.0))
        .with_binarize_mask_from_pts_for_mem_enc(flag("binarize_mask_from_pts_for_mem_enc"))
        .with_use_mask_input_as_output_without_sam(flag("use_mask_input_as_output_without_sam"))
        .with_directly_add_no_mem_embed(flag("directly_add_no_mem_embed"))
        .with_multimask_output_in_sam(flag("multimask_output_in_sam"))
        .with_multimask_min_pt_num(count("multimask_min_pt_num", 1))
        .with_multimask_max_pt_num(count("multimask_max_pt_num", 1))
        .with_multimask_output_for_tracking(flag("multimask_output_for_tracking"))
        .with_use_multimask_token_for_obj_ptr(flag("use_multimask_token_for_obj_ptr"))
        .with_dynamic_multimask_via_stability(
            extra["dynamic_multimask_via_stability"]
                .as_bool()
                .unwrap_or(false),
        )
        .with_dynamic_multimask_stability_delta(
            extra["dynamic_multimask_stability_delta"]
                .as_f64()
                .unwrap_or(0.05),
        )
        .with_dynamic_multimask_stability_thresh(
            extra["dynamic_multimask_stability_thresh"]
                .as_f64()
                .unwrap_or(0.98),
        )
        .with_use_obj_ptrs_in_encoder(flag("use_obj_ptrs_in_encoder"))
        .with_max_obj_ptrs_in_encoder(count("max_obj_ptrs_in_encoder", 16))
        .with_add_tpos_enc_to_obj_ptrs(model["add_tpos_enc_to_obj_ptrs"].as_bool().unwrap_or(true))
        .with_proj_tpos_enc_in_obj_ptrs(flag("proj_tpos_enc_in_obj_ptrs"))
        .with_use_signed_tpos_enc_to_obj_ptrs(flag("use_signed_tpos_enc_to_obj_ptrs"))
        .with_only_obj_ptrs_in_the_past_for_eval(flag("only_obj_ptrs_in_the_past_for_eval"))
        .with_fixed_no_obj_ptr(flag("fixed_no_obj_ptr"))
        .with_soft_no_obj_ptr(flag("soft_no_obj_ptr"))
        .with_no_obj_embed_spatial(flag("no_obj_embed_spatial"))
        .with_memory_temporal_stride_for_eval(count("memory_temporal_stride_for_eval", 1))
        .with_fill_hole_area(count("fill_hole_area", 0))
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
