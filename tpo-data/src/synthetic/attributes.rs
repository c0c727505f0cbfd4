//! What a shape looks like.

use std::f64::consts::TAU;

use super::draw::Draw;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$item_doc])* $item),+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$item),+];

            /// The word for it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$item => $text),+ }
            }
        }
    };
}
pub(crate) use named;

named! {
    /// Outline that has a name.
    Shape {
        /// A disc.
        Circle = "circle",
        /// A square.
        Square = "square",
        /// An equilateral triangle, a corner up.
        Triangle = "triangle",
        /// A star of five points.
        Star = "star",
        /// A plus sign.
        Cross = "cross",
        /// A square on its corner.
        Diamond = "diamond",
    }
}

named! {
    /// Colour of a shape.
    Colour {
        /// Red.
        Red = "red",
        /// Green.
        Green = "green",
        /// Blue.
        Blue = "blue",
        /// Yellow.
        Yellow = "yellow",
        /// Purple.
        Purple = "purple",
        /// Orange.
        Orange = "orange",
        /// Cyan.
        Cyan = "cyan",
        /// White.
        White = "white",
    }
}

named! {
    /// Size of a shape.
    Size {
        /// An eighth of the frame's side in radius.
        Small = "small",
        /// A fifth.
        Large = "large",
    }
}

named! {
    /// Pattern on a shape.
    Texture {
        /// One colour.
        Plain = "plain",
        /// Dark stripes.
        Striped = "striped",
        /// Dark dots.
        Dotted = "dotted",
    }
}

/// Outline of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outline {
    /// One that has a name.
    Named(Shape),
    /// A polygon that has none, drawn from a number.
    Irregular {
        /// The number.
        irregular: u32,
    },
}

/// How a shape looks at the start of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Look {
    /// Outline.
    pub outline: Outline,
    /// Colour; none in a grey clip.
    pub colour: Option<Colour>,
    /// Size.
    pub size: Size,
    /// Pattern.
    pub texture: Texture,
}

impl Look {
    /// The outline, if it has a name.
    pub fn shape(&self) -> Option<Shape> {
        match self.outline {
            Outline::Named(shape) => Some(shape),
            Outline::Irregular { .. } => None,
        }
    }

    /// "red circle", in a grey clip "circle", "red shape" where the outline has no name: a phrase that
    /// no other shape of the clip shares.
    pub fn phrase(&self) -> String {
        let shape = self.shape().map_or("shape", Shape::name);
        match self.colour {
            Some(colour) => format!("{} {shape}", colour.name()),
            None => shape.to_string(),
        }
    }
}

impl Colour {
    /// Red, green, blue, 0–255.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 40, 40],
            Self::Green => [40, 170, 60],
            Self::Blue => [45, 80, 220],
            Self::Yellow => [240, 215, 40],
            Self::Purple => [150, 60, 190],
            Self::Orange => [245, 140, 30],
            Self::Cyan => [60, 205, 215],
            Self::White => [245, 245, 245],
        }
    }
}

impl Size {
    /// Radius as a share of the frame's side.
    pub fn radius(self) -> f64 {
        match self {
            Self::Small => 0.13,
            Self::Large => 0.2,
        }
    }
}

impl Shape {
    /// Whether a point, in units of the radius from the centre, belongs to the shape.
    pub fn contains(self, u: f64, v: f64) -> bool {
        match self {
            Self::Circle => u * u + v * v <= 1.0,
            Self::Square => u.abs() <= 0.85 && v.abs() <= 0.85,
            Self::Diamond => u.abs() + v.abs() <= 1.0,
            Self::Cross => {
                (u.abs() <= 0.35 && v.abs() <= 1.0) || (v.abs() <= 0.35 && u.abs() <= 1.0)
            }
            // Below the two slanted sides and above the base.
            Self::Triangle => {
                let slope = 3f64.sqrt();
                v <= 0.5 && v >= slope * u.abs() - 1.0
            }
            Self::Star => star(u, v),
        }
    }
}

impl Outline {
    /// What is needed to test which points belong to the outline.
    pub(crate) fn contour(self) -> Contour {
        match self {
            Self::Named(shape) => Contour::Named(shape),
            Self::Irregular { irregular } => Contour::Polygon(corners(irregular)),
        }
    }

    /// Whether a rotation of the plain shape is visible.
    pub fn shows_rotation(self) -> bool {
        self != Self::Named(Shape::Circle)
    }
}

/// An outline with its corners worked out, once for all pixels.
#[derive(Debug)]
pub(crate) enum Contour {
    Named(Shape),
    /// Once around the centre.
    Polygon(Vec<Corner>),
}

/// A corner of an irregular outline in units of the radius.
#[derive(Debug)]
pub(crate) struct Corner {
    angle: f64,
    pub(crate) u: f64,
    pub(crate) v: f64,
}

impl Contour {
    /// Whether a point, in units of the radius from the centre, belongs to the shape.
    pub(crate) fn contains(&self, u: f64, v: f64) -> bool {
        let corners = match self {
            Self::Named(shape) => return shape.contains(u, v),
            Self::Polygon(corners) => corners,
        };
        // The point lies between two corners, seen from the centre, and on the centre's side of the edge.
        let angle = v.atan2(u).rem_euclid(TAU);
        let after = corners.iter().position(|c| c.angle > angle).unwrap_or(0);
        let before = (after + corners.len() - 1) % corners.len();
        let (a, b) = (&corners[before], &corners[after]);
        (b.u - a.u) * (v - a.v) - (b.v - a.v) * (u - a.u) >= 0.0
    }
}

/// Five to eight corners by angle. No two neighbours are half a turn apart.
fn corners(irregular: u32) -> Vec<Corner> {
    let mut draw = Draw::of(&[u64::from(irregular), 5]);
    let count = 5 + draw.below(4);
    let sector = TAU / count as f64;
    (0..count)
        .map(|i| {
            let angle = (i as f64 + draw.range(0.1, 0.9)) * sector;
            let distance = draw.range(0.5, 1.0);
            Corner {
                angle,
                u: distance * angle.cos(),
                v: distance * angle.sin(),
            }
        })
        .collect()
}

/// A five-pointed star, inner radius 0.45, by the sector the point lies in.
fn star(u: f64, v: f64) -> bool {
    const INNER: f64 = 0.45;
    let radius = u.hypot(v);
    // Angle from the upward point, folded into half a point.
    let sector = TAU / 5.0;
    let angle = (u.atan2(-v)).rem_euclid(sector);
    let angle = angle.min(sector - angle);
    // The edge runs from (1, angle 0) to (INNER, half a sector).
    let half = sector / 2.0;
    let (ax, ay) = (1.0, 0.0);
    let (bx, by) = (INNER * half.cos(), INNER * half.sin());
    let (px, py) = (radius * angle.cos(), radius * angle.sin());
    (bx - ax) * (py - ay) - (by - ay) * (px - ax) >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_hold_their_centre_and_nothing_outside_the_unit_disc_but_the_square() {
        for &shape in Shape::ALL {
            assert!(shape.contains(0.0, 0.0), "{shape:?}");
            assert!(!shape.contains(1.25, 0.0), "{shape:?}");
            assert!(!shape.contains(0.0, -1.3), "{shape:?}");
        }
        // The top point of the star and of the triangle; the notch between two points is out.
        assert!(Shape::Star.contains(0.0, -0.99) && !Shape::Star.contains(0.0, 0.99));
        assert!(Shape::Star.contains(0.0, 0.44) && !Shape::Star.contains(0.0, 0.46));
        assert!(Shape::Triangle.contains(0.0, -0.99) && !Shape::Triangle.contains(0.0, 0.51));
    }
}
