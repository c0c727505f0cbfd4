//! Checkpoint keys of the Q-Former connector.

use crate::key_rule::KeyRewrite;

/// Checkpoint keys → paths of [`QFormerConnector`](super::QFormerConnector).
///
/// `qformer.bert.encoder.layer.0.attention.self.query.weight` becomes
/// `qformer.bert.encoder.layer.0.attention.self_attention.query.weight`, because `self` cannot be
/// a field; `LayerNorm` becomes `layer_norm`; the query tokens move under `qformer`.
/// `project_up`, `project_down` and `merge_proj` are paths already.
pub const QFORMER_KEYS: &[KeyRewrite] = &[
    (r"^(query_tokens|extra_query_tokens)$", "qformer.$1"),
    (
        r"^(qformer\.bert\..*)\.(attention|crossattention)\.self\.",
        "$1.$2.self_attention.",
    ),
    (r"^(qformer\.bert\..*)\.LayerNorm\.", "$1.layer_norm."),
];

/// The inverse of [`QFORMER_KEYS`].
pub const QFORMER_KEYS_INVERSE: &[KeyRewrite] = &[
    (r"^qformer\.(query_tokens|extra_query_tokens)$", "$1"),
    (
        r"^(qformer\.bert\..*)\.(attention|crossattention)\.self_attention\.",
        "$1.$2.self.",
    ),
    (r"^(qformer\.bert\..*)\.layer_norm\.", "$1.LayerNorm."),
];

/// Keys of the checkpoint that hold no parameter: `(pattern, why)`.
pub const QFORMER_UNUSED_KEYS: &[(&str, &str)] = &[(
    r"^qformer\.bert\.embeddings\.position_ids$",
    "the constant 0..max_position_embeddings",
)];
