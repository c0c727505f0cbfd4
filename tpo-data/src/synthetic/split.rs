//! Training clips and clips of things never seen in training.

use serde::{Deserialize, Serialize};

use super::attributes::{Colour, Shape};
use super::event::EventKind;

/// Part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// No held-out combination occurs.
    Train,
    /// As training, other clips: to choose settings on.
    Validation,
    /// In every clip a shape has a held-out colour, or an event happens to a shape it never
    /// happens to in training.
    HeldOut,
}

impl Split {
    /// Name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::HeldOut => "held_out",
        }
    }

    pub(crate) fn stream(self) -> u64 {
        match self {
            Self::Train => 1,
            Self::Validation => 2,
            Self::HeldOut => 3,
        }
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
