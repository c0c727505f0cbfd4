//! Training clips and clips of things never seen in training.

use std::str::FromStr;

use super::attributes::{Colour, Shape, named};
use super::event::EventKind;
use crate::DataError;

named! {
    /// Part of the world.
    #[derive(Default)]
    Split {
        /// No held-out combination occurs.
        #[default]
        Train = "train",
        /// As training, other clips: to choose settings on.
        Validation = "validation",
        /// In every clip a shape has a held-out colour, or an event happens to a shape it never
        /// happens to in training.
        HeldOut = "held_out",
    }
}

/// By its name; `held-out` is the same as `held_out`.
impl FromStr for Split {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let name = text.replace('-', "_");
        let mut all = Self::ALL.iter().copied();
        all.find(|s| s.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|s| s.name()).collect();
            DataError::InvalidConfig {
                what: "split of the world",
                reason: format!("`{text}` is not one of {}", names.join(", ")),
            }
        })
    }
}

/// Whether shapes of this colour are kept out of training: each shape lacks one or two of the
/// eight colours, each colour lacks one or two of the six shapes.
pub fn is_held_out_look(shape: Shape, colour: Colour) -> bool {
    let (s, c) = (shape as usize, colour as usize);
    (c + 8 - s) % 8 == 1 || (s < 2 && (c + 8 - s) % 8 == 5)
}

/// Whether this event never happens to this shape in training: each shape lacks one of the seven.
pub fn is_held_out_event(kind: EventKind, shape: Shape) -> bool {
    kind as usize == (2 * shape as usize + 1) % 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for &split in Split::ALL {
            assert_eq!(split.name().parse::<Split>().unwrap(), split);
        }
        assert_eq!("held-out".parse::<Split>().unwrap(), Split::HeldOut);
        let e = "test".parse::<Split>().unwrap_err().to_string();
        assert!(
            e.contains("test") && e.contains("train, validation, held_out"),
            "{e}"
        );
    }

    #[test]
    fn every_word_occurs_in_training() {
        for &shape in Shape::ALL {
            let colours = Colour::ALL.iter().filter(|c| is_held_out_look(shape, **c));
            assert!((1..=2).contains(&colours.count()), "{shape:?}");
            let events = EventKind::ALL
                .iter()
                .filter(|e| is_held_out_event(**e, shape));
            assert_eq!(events.count(), 1, "{shape:?}");
        }
        for &colour in Colour::ALL {
            let shapes = Shape::ALL.iter().filter(|s| is_held_out_look(**s, colour));
            assert!(shapes.count() <= 2, "{colour:?}");
        }
        for &kind in EventKind::ALL {
            let shapes = Shape::ALL.iter().filter(|s| is_held_out_event(kind, **s));
            assert!(shapes.count() <= 1, "{kind:?}");
        }
    }
}
