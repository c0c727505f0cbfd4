//! Names of SAM 2's parameters in checkpoints.

use tpo_core::weights::{KeyRules, Result};

/// Members of PyTorch `Sequential`s have numbers, ours names: `(module, number, name)`.
const SEQUENTIAL: [(&str, &str, &str); 8] = [
    ("output_upscaling", "0", "conv1"),
    ("output_upscaling", "1", "norm"),
    ("output_upscaling", "3", "conv2"),
    ("mask_downscaling", "0", "conv1"),
    ("mask_downscaling", "1", "norm1"),
    ("mask_downscaling", "3", "conv2"),
    ("mask_downscaling", "4", "norm2"),
    ("mask_downscaling", "6", "conv3"),
];

/// Halvings of the memory encoder's mask; each is three members of its `Sequential`.
const DOWNSAMPLE_LAYERS: usize = 4;

/// A list of `(pattern, replacement)`, keys to paths, and its inverse.
type Rewrites = Vec<(String, String)>;

fn sequential() -> (Rewrites, Rewrites) {
    let mut pairs: Vec<(String, String)> = SEQUENTIAL
        .iter()
        .map(|(module, number, name)| (format!("{module}.{number}."), format!("{module}.{name}.")))
        .collect();
    for layer in 0..DOWNSAMPLE_LAYERS {
        for (offset, name) in [(0, "conv"), (1, "norm")] {
            pairs.push((
                format!("mask_downsampler.encoder.{}.", 3 * layer + offset),
                format!("mask_downsampler.layers.{layer}.{name}."),
            ));
        }
    }
    pairs.push((
        format!("mask_downsampler.encoder.{}.", 3 * DOWNSAMPLE_LAYERS),
        "mask_downsampler.proj.".into(),
    ));
    both_ways(&pairs)
}

/// Literal replacements at the start of a name or after a dot, in both directions.
fn both_ways(pairs: &[(String, String)]) -> (Rewrites, Rewrites) {
    let rule = |from: &str, to: &str| {
        let from = from.replace('.', r"\.");
        (format!(r"(^|\.){from}"), format!("${{1}}{to}"))
    };
    (
        pairs.iter().map(|(key, path)| rule(key, path)).collect(),
        pairs
            .iter()
            .rev()
            .map(|(key, path)| rule(path, key))
            .collect(),
    )
}

fn with(rules: KeyRules, (forward, inverse): (Rewrites, Rewrites)) -> Result<KeyRules> {
    fn borrow(rules: &Rewrites) -> Vec<(&str, &str)> {
        rules
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect()
    }
    rules.rewrite(&borrow(&forward), &borrow(&inverse))
}

/// Keys of the SAM 2 checkpoints (`image_encoder.trunk.blocks.0.norm1.weight`, ..) to paths of
/// [`Sam2`](super::Sam2).
///
/// # Errors
/// None in practice: the patterns are constants.
pub fn sam2_keys() -> Result<KeyRules> {
    with(KeyRules::new(), sequential())
}

/// Keys of the VideoChat-TPO checkpoint, which are those of SAM 2 after `sam.`.
///
/// # Errors
/// None in practice.
pub fn sam2_videochat_tpo_keys() -> Result<KeyRules> {
    let rules = KeyRules::new().owns(["sam."]).prefix("sam.", "");
    with(rules, sequential())
}

/// Beginnings of Hugging Face's names (`Sam2VideoModel`; those of the image-only `Sam2Model` are a
/// part of them) and of ours.
const PREFIXES: [(&str, &str); 22] = [
    (
        "vision_encoder.backbone.patch_embed.projection.",
        "image_encoder.trunk.patch_embed.proj.",
    ),
    ("vision_encoder.backbone.", "image_encoder.trunk."),
    (
        "prompt_encoder.shared_embedding.positional_embedding",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (
        "prompt_encoder.point_embed.",
        "sam_prompt_encoder.point_embeddings.",
    ),
    (
        "prompt_encoder.mask_embed.",
        "sam_prompt_encoder.mask_downscaling.",
    ),
    ("prompt_encoder.", "sam_prompt_encoder."),
    (
        "mask_decoder.upscale_conv1.",
        "sam_mask_decoder.output_upscaling.conv1.",
    ),
    (
        "mask_decoder.upscale_layer_norm.",
        "sam_mask_decoder.output_upscaling.norm.",
    ),
    (
        "mask_decoder.upscale_conv2.",
        "sam_mask_decoder.output_upscaling.conv2.",
    ),
    (
        "mask_decoder.transformer.layer_norm_final_attn.",
        "sam_mask_decoder.transformer.norm_final_attn.",
    ),
    ("mask_decoder.", "sam_mask_decoder."),
    (
        "memory_encoder.feature_projection.",
        "memory_encoder.pix_feat_proj.",
    ),
    ("memory_encoder.projection.", "memory_encoder.out_proj."),
    (
        "memory_encoder.mask_downsampler.final_conv.",
        "memory_encoder.mask_downsampler.proj.",
    ),
    ("memory_encoder.memory_fuser.", "memory_encoder.fuser."),
    ("memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    ("no_memory_embedding", "no_mem_embed"),
    ("no_memory_positional_encoding", "no_mem_pos_enc"),
    ("no_object_pointer", "no_obj_ptr"),
    (
        "occlusion_spatial_embedding_parameter",
        "no_obj_embed_spatial",
    ),
    (
        "temporal_positional_encoding_projection_layer.",
        "obj_ptr_tpos_proj.",
    ),
    ("object_pointer_proj.", "obj_ptr_proj."),
];

/// The MLPs of three layers, under our name and theirs.
const THREE_LAYERS: &str = r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj|object_pointer_proj)";

/// Parts of Hugging Face's names wherever they stand: pattern and replacement to ours, and back.
const PARTS: [[&str; 4]; 8] = [
    [
        r"\.layer_norm(\d)\.",
        ".norm$1.",
        r"\.norm(\d)\.",
        ".layer_norm$1.",
    ],
    [r"\.layer_norm\.", ".norm.", r"\.norm\.", ".layer_norm."],
    [
        r"\.o_proj\.",
        ".out_proj.",
        r"(attn|image|token)\.out_proj\.",
        "$1.o_proj.",
    ],
    [
        r"\.mlp\.proj_in\.",
        ".mlp.layers.0.",
        r"\.mlp\.layers\.0\.",
        ".mlp.proj_in.",
    ],
    [
        r"\.mlp\.proj_out\.",
        ".mlp.layers.1.",
        r"\.mlp\.layers\.1\.",
        ".mlp.proj_out.",
    ],
    [
        r"\.(depth|point)wise_conv(\d?)\.",
        ".${1}wise$2.",
        r"\.(depth|point)wise(\d?)\.",
        ".${1}wise_conv$2.",
    ],
    [
        r"^vision_encoder\.neck\.convs\.(\d+)\.",
        "image_encoder.neck.convs.$1.conv.",
        r"^image_encoder\.neck\.convs\.(\d+)\.conv\.",
        "vision_encoder.neck.convs.$1.",
    ],
    [
        r"^memory_encoder\.memory_fuser\.layers\.(\d+)\.scale$",
        "memory_encoder.memory_fuser.layers.$1.gamma",
        r"^memory_encoder\.memory_fuser\.layers\.(\d+)\.gamma$",
        "memory_encoder.memory_fuser.layers.$1.scale",
    ],
];

/// Keys of Hugging Face's `Sam2VideoModel` to paths of [`Sam2`](super::Sam2) with
/// [`PointTableLayout::Stacked`](super::PointTableLayout::Stacked).
///
/// # Errors
/// None in practice.
pub fn sam2_hugging_face_keys() -> Result<KeyRules> {
    let own = |a: &str, b: &str| (a.to_string(), b.to_string());
    let mut forward: Rewrites = PARTS.iter().map(|p| own(p[0], p[1])).collect();
    let mut inverse: Rewrites = PARTS.iter().map(|p| own(p[2], p[3])).collect();
    for (from, to) in [
        ("dwconv", "depthwise"),
        ("pwconv1", "pointwise1"),
        ("pwconv2", "pointwise2"),
    ] {
        forward.push((format!(r"\.{to}\."), format!(".{from}.")));
        inverse.push((format!(r"\.{from}\."), format!(".{to}.")));
    }
    // The middle layer is theirs number 0; which number is free decides the order.
    for (theirs, ours) in [
        ("layers.0", "layers.1"),
        ("proj_in", "layers.0"),
        ("proj_out", "layers.2"),
    ] {
        let rule = |from: &str, to: &str| {
            let from = from.replace('.', r"\.");
            (format!(r"{THREE_LAYERS}\.{from}\."), format!("$1.{to}."))
        };
        forward.push(rule(theirs, ours));
        inverse.push(rule(ours, theirs));
    }
    let rule = |from: &str, to: &str| {
        let end = if from.ends_with('.') { "" } else { "$" };
        (
            format!("^{}{end}", from.replace('.', r"\.")),
            to.to_string(),
        )
    };
    inverse.reverse();
    // Long prefixes come before short ones in both directions.
    let mut prefixes = Vec::new();
    for (theirs, ours) in PREFIXES {
        forward.push(rule(theirs, ours));
        prefixes.push(rule(ours, theirs));
    }
    inverse.splice(0..0, prefixes);
    with(KeyRules::new(), (forward, inverse))?.ignore(
        r"^shared_image_embedding\.positional_embedding$",
        "the same tensor as prompt_encoder.shared_embedding.positional_embedding",
    )
}
