//! Boxes in three frames of reference as distinct types, so that they cannot be mixed up.

use serde::{Deserialize, Serialize};

use crate::error::{CoreError, Result};

/// Corners normalised by the image size: 0–1, x to the right, y down.
///
/// A *prediction* may lie outside 0–1 or be reversed, because the region head has no sigmoid
/// (reference implementation); [`BoxXyxy::check`] tells, [`BoxXyxy::clamped`] repairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "[f32; 4]", from = "[f32; 4]")]
pub struct BoxXyxy {
    /// Left edge.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Bottom edge.
    pub y1: f32,
}

/// Corners in pixels of one image size; pixel edges, so a full image is `[0, 0, width, height]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "[f32; 4]", from = "[f32; 4]")]
pub struct BoxPixels {
    /// Left edge.
    pub x0: f32,
    /// Top edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Bottom edge.
    pub y1: f32,
}

macro_rules! corners {
    ($name:ident) => {
        impl From<[f32; 4]> for $name {
            fn from([x0, y0, x1, y1]: [f32; 4]) -> Self {
                Self { x0, y0, x1, y1 }
            }
        }
        impl From<$name> for [f32; 4] {
            fn from(b: $name) -> Self {
                [b.x0, b.y0, b.x1, b.y1]
            }
        }
        impl $name {
            /// The four numbers `[x0, y0, x1, y1]`.
            pub fn to_array(self) -> [f32; 4] {
                self.into()
            }
            /// Whether the corners are finite and in order.
            pub fn is_ordered(&self) -> bool {
                self.to_array().iter().all(|v| v.is_finite())
                    && self.x0 <= self.x1
                    && self.y0 <= self.y1
            }
            /// Signed area; negative when one axis is reversed.
            pub fn area(&self) -> f32 {
                (self.x1 - self.x0) * (self.y1 - self.y0)
            }
            /// Intersection over union; 0 where the union is empty or a corner is not finite.
            pub fn iou(&self, other: &Self) -> f32 {
                let w = (self.x1.min(other.x1) - self.x0.max(other.x0)).max(0.0);
                let h = (self.y1.min(other.y1) - self.y0.max(other.y0)).max(0.0);
                let inter = w * h;
                let union = self.area() + other.area() - inter;
                if union > 0.0 { inter / union } else { 0.0 }
            }
        }
    };
}
corners!(BoxXyxy);
corners!(BoxPixels);

impl BoxXyxy {
    /// Accepts a box a user gave: finite, ordered, inside 0–1.
    pub fn check(self, place: &str) -> Result<Self> {
        check(self.to_array(), place, 1.0, 1.0, "0..=1").map(|()| self)
    }

    /// Clamps the corners to 0–1 and puts them in order; non-finite corners become 0.
    pub fn clamped(self) -> Self {
        let fix = |v: f32| {
            if v.is_finite() {
                v.clamp(0.0, 1.0)
            } else {
                0.0
            }
        };
        let (a, b) = (fix(self.x0), fix(self.x1));
        let (c, d) = (fix(self.y0), fix(self.y1));
        Self {
            x0: a.min(b),
            y0: c.min(d),
            x1: a.max(b),
            y1: c.max(d),
        }
    }

    /// Scales to pixels of an image of `width` x `height`.
    pub fn to_pixels(self, width: f32, height: f32) -> BoxPixels {
        BoxPixels {
            x0: self.x0 * width,
            y0: self.y0 * height,
            x1: self.x1 * width,
            y1: self.y1 * height,
        }
    }
}

impl BoxPixels {
    /// Accepts a box a user gave in pixels of an image of `width` x `height`.
    pub fn check(self, place: &str, width: f32, height: f32) -> Result<Self> {
        let range = format!("0..={width} x 0..={height} pixels");
        check(self.to_array(), place, width, height, &range).map(|()| self)
    }

    /// Divides by the image size.
    pub fn to_normalised(self, width: f32, height: f32) -> BoxXyxy {
        BoxXyxy {
            x0: self.x0 / width,
            y0: self.y0 / height,
            x1: self.x1 / width,
            y1: self.y1 / height,
        }
    }
}

fn check(b: [f32; 4], place: &str, width: f32, height: f32, range: &str) -> Result<()> {
    let [x0, y0, x1, y1] = b;
    let why = if b.iter().any(|v| !v.is_finite()) {
        "a coordinate is not a finite number"
    } else if x0 > x1 || y0 > y1 {
        "its corners are reversed"
    } else if x0 < 0.0 || y0 < 0.0 || x1 > width || y1 > height {
        "it reaches outside the image"
    } else if x0 == x1 || y0 == y1 {
        "it has no area"
    } else {
        return Ok(());
    };
    Err(CoreError::InvalidBox {
        place: place.to_string(),
        x0,
        y0,
        x1,
        y1,
        why,
        range: range.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_by_hand() {
        let a = BoxXyxy::from([0.0, 0.0, 0.5, 0.5]);
        let b = BoxXyxy::from([0.25, 0.25, 0.75, 0.75]);
        assert!((a.iou(&b) - 0.0625 / 0.4375).abs() < 1e-6);
        assert_eq!(a.iou(&a), 1.0);
        assert_eq!(BoxXyxy::from([0.2; 4]).iou(&BoxXyxy::from([0.2; 4])), 0.0);
    }

    #[test]
    fn a_bad_box_says_which_rule_it_breaks() {
        for (b, why) in [
            ([9.0, 9.0, 1.0, 1.0], "reversed"),
            ([0.0, 0.0, 2.0, 1.0], "outside"),
            ([0.1, 0.1, 0.1, 0.5], "no area"),
            ([f32::NAN, 0.0, 1.0, 1.0], "finite"),
        ] {
            let e = BoxXyxy::from(b).check("question").unwrap_err().to_string();
            assert!(e.contains(why) && e.contains("question"), "{e}");
        }
    }

    #[test]
    fn conversions_round_trip() {
        let b = BoxXyxy::from([0.1, 0.2, 0.7, 0.9]);
        let back = b.to_pixels(640.0, 480.0).to_normalised(640.0, 480.0);
        for (x, y) in b.to_array().iter().zip(back.to_array()) {
            assert!((x - y).abs() < 1e-6);
        }
    }
}
