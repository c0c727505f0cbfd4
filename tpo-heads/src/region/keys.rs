//! Checkpoint keys of the region head.

/// `(checkpoint key, path in the head)` prefixes: the reference names its two MLPs as the first
/// and third member of a `Sequential`.
pub const REGION_KEYS: [(&str, &str); 4] = [
    ("loc_encoder.0.", "encoder.input."),
    ("loc_encoder.2.", "encoder.output."),
    ("loc_decoder.0.", "decoder.input."),
    ("loc_decoder.2.", "decoder.output."),
];
