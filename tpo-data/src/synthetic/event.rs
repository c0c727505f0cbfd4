//! Things that happen at a known time.

use super::attributes::{Colour, Look, Texture, named};
use super::split::is_held_out_event;

named! {
    /// Kind of an event.
    EventKind {
        /// Disappears in every other frame.
        Blink = "blink",
        /// Becomes larger and stays so.
        Grow = "grow",
        /// Turns an eighth of a circle per frame.
        Spin = "spin",
        /// Takes another colour and keeps it.
        ChangeColour = "change colour",
        /// Stops, then continues to move.
        Stop = "stop",
        /// Leaves the frame and comes back.
        LeaveReturn = "leave and return",
        /// Runs into another shape and bounces off.
        Collide = "collide",
    }
}

impl EventKind {
    /// Third person: "blinks".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Blink => "blinks",
            Self::Grow => "grows",
            Self::Spin => "spins",
            Self::ChangeColour => "changes colour",
            Self::Stop => "stops",
            Self::LeaveReturn => "leaves and returns",
            Self::Collide => "collides",
        }
    }

    /// Whether it never happens to a shape of this look in training.
    pub(crate) fn shuns(self, look: &Look) -> bool {
        look.shape().is_some_and(|s| is_held_out_event(self, s))
    }

    /// Whether a shape of this look can show it.
    pub(crate) fn suits(self, look: &Look) -> bool {
        match self {
            // A plain disc looks the same from every side.
            // Without a colour there is none to change.
            Self::ChangeColour => look.colour.is_some(),
            Self::Spin => look.outline.shows_rotation() || look.texture == Texture::Striped,
            _ => true,
        }
    }
}

/// An event of a scene.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// What happens.
    pub kind: EventKind,
    /// Index of the shape it happens to.
    pub object: usize,
    /// The other shape of a collision.
    pub other: Option<usize>,
    /// First frame.
    pub start: usize,
    /// Frame after the last.
    pub end: usize,
    /// The colour a change ends in.
    pub becomes: Option<Colour>,
}

impl Event {
    /// Whether it happens in a frame.
    pub fn covers(&self, frame: usize) -> bool {
        (self.start..self.end).contains(&frame)
    }

    /// Whether a shape takes part.
    pub fn involves(&self, object: usize) -> bool {
        self.object == object || self.other == Some(object)
    }
}
