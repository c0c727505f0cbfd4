//! Checkpoint keys of the temporal head.

use tpo_core::weights::{KeyRules, WeightsError};

/// `(pattern, replacement)` from the reference's names to the paths of a
/// [`CgDetr`](super::CgDetr), in order, after the leading `cg_model.` is gone.
pub const CG_DETR_KEYS: &[(&str, &str)] = &[
    (r"\.(linear1|linear2|activation)\.", ".feed_forward.$1."),
    (
        r"^((?:input_txt_proj|input_vid_proj)\.\d+|txt_proj_linear)\.net\.1\.",
        "$1.linear.",
    ),
    (
        r"^((?:input_txt_proj|input_vid_proj)\.\d+|txt_proj_linear|txt_position_embed)\.LayerNorm\.",
        "$1.layer_norm.",
    ),
];

/// The way back.
pub const CG_DETR_KEYS_INVERSE: &[(&str, &str)] = &[
    (r"\.feed_forward\.", "."),
    (
        r"^((?:input_txt_proj|input_vid_proj)\.\d+|txt_proj_linear)\.linear\.",
        "$1.net.1.",
    ),
    (
        r"^((?:input_txt_proj|input_vid_proj)\.\d+|txt_proj_linear|txt_position_embed)\.layer_norm\.",
        "$1.LayerNorm.",
    ),
];

/// The rules of everything below `cg_model.` in a checkpoint.
///
/// # Errors
/// None in practice: the patterns are constants.
pub fn cg_detr_rules() -> Result<KeyRules, WeightsError> {
    KeyRules::new()
        .owns(["cg_model."])
        .rewrite(&[(r"^cg_model\.", "")], &[])?
        .rewrite(CG_DETR_KEYS, CG_DETR_KEYS_INVERSE)?
        .rewrite(&[], &[("^", "cg_model.")])
}
