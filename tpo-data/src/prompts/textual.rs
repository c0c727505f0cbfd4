//! Annotations in words, for the ablation without heads (paper, Table 11 "textualised").

use tpo_core::geometry::BoxXyxy;

use crate::feed::{Truth, TruthRegion, TruthTarget};

/// Decimals of normalised coordinates; a hundredth of a 224-pixel input is two pixels.
const COORDINATE_DECIMALS: usize = 2;
/// Decimals of times: what the reference tells of frame times.
const TIME_DECIMALS: usize = 1;

/// `[0.10, 0.20, 0.30, 0.40]`.
pub(super) fn box_text(b: &BoxXyxy) -> String {
    let n: Vec<String> = b
        .to_array()
        .iter()
        .map(|v| format!("{v:.COORDINATE_DECIMALS$}"))
        .collect();
    format!("[{}]", n.join(", "))
}

/// The ground truth as text.
pub(super) fn truth_text(truth: &Truth) -> String {
    match &truth.target {
        TruthTarget::Box(b) => box_text(b),
        TruthTarget::Moments { spans, .. } => {
            let spans: Vec<String> = spans
                .iter()
                .map(|s| {
                    format!(
                        "{:.TIME_DECIMALS$} - {:.TIME_DECIMALS$} seconds",
                        s.start, s.end
                    )
                })
                .collect();
            spans.join(", ")
        }
        TruthTarget::Track(frames) => {
            let frames: Vec<String> = frames
                .iter()
                .filter_map(|f| {
                    let b = match &f.region {
                        TruthRegion::Absent => return None,
                        TruthRegion::Box(b) => *b,
                        TruthRegion::Mask(rle) => {
                            let [h, w] = rle.size;
                            rle.decode()
                                .ok()?
                                .bounding_box()?
                                .to_normalised(w as f32, h as f32)
                        }
                    };
                    Some(format!("{:.TIME_DECIMALS$} s {}", f.time, box_text(&b)))
                })
                .collect();
            frames.join("; ")
        }
        TruthTarget::Value(serde_json::Value::String(s)) => s.clone(),
        TruthTarget::Value(value) => value.to_string(),
    }
}
