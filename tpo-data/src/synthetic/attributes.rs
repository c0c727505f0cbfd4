//! What a shape looks like.

use serde::{Deserialize, Serialize};

use super::split::is_held_out_look;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// Outline of a shape.
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

/// How a shape looks at the start of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Look {
    /// Outline.
    pub shape: Shape,
    /// Colour; none in a grey clip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour: Option<Colour>,
    /// Size.
    pub size: Size,
    /// Pattern.
    pub texture: Texture,
}

impl Look {
    /// "red circle", in a grey clip "circle": what no other shape of the clip shares.
    pub fn phrase(&self) -> String {
        match self.colour {
            Some(colour) => format!("{} {}", colour.name(), self.shape.name()),
            None => self.shape.name().to_string(),
        }
    }

    /// Whether it is kept out of training.
    pub fn is_held_out(&self) -> bool {
        self.colour.is_some_and(|c| is_held_out_look(self.shape, c))
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

    /// Whether turning the plain shape can be seen.
    pub fn shows_rotation(self) -> bool {
        self != Self::Circle
    }
}

/// A five-pointed star, inner radius 0.45, by the sector the point lies in.
fn star(u: f64, v: f64) -> bool {
    const INNER: f64 = 0.45;
    let radius = u.hypot(v);
    // Angle from the upward point, folded into half a point.
    let sector = std::f64::consts::TAU / 5.0;
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
