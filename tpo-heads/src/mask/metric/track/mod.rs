//! Single object tracking: boxes `[x, y, width, height]` in pixels, one per frame.

pub mod got10k;
pub mod lasot;

pub use got10k::{Got10kScores, Got10kSequence, Got10kSequenceScores};
pub use lasot::{LasotScores, LasotSequence, LasotSequenceScores};

/// Left, top, width and height in pixels.
pub type BoxXywh = [f64; 4];

/// Overlap of the areas of two boxes; the caller adds what its protocol adds to the union.
fn inter_union(a: BoxXywh, b: BoxXywh) -> (f64, f64) {
    let w = ((a[0] + a[2]).min(b[0] + b[2]) - a[0].max(b[0])).max(0.0);
    let h = ((a[1] + a[3]).min(b[1] + b[3]) - a[1].max(b[1])).max(0.0);
    let inter = w * h;
    (inter, a[2] * a[3] + b[2] * b[3] - inter)
}

/// Centre of a box in the toolkits' convention: pixel indices, so half a pixel left of the middle.
fn centre(b: BoxXywh) -> [f64; 2] {
    [b[0] + (b[2] - 1.0) / 2.0, b[1] + (b[3] - 1.0) / 2.0]
}

fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
    ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)).sqrt()
}

/// Distance of the centres of two boxes in pixels.
pub fn centre_error(a: BoxXywh, b: BoxXywh) -> f64 {
    distance(centre(a), centre(b))
}
