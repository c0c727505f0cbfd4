//! Captions: what a clip shows, in words.

use super::render::RenderedFrame;
use super::{Clip, Event};

/// Corners in reading order.
const CORNERS: [&str; 4] = ["top left", "top right", "bottom left", "bottom right"];

impl Clip {
    /// A sentence for every shape visible in the first frame, in the order of the corners they
    /// start in, then from the left: "In the top left is a red circle that blinks." `None` where
    /// nothing is visible that can be named.
    pub fn caption(&self, frames: &[RenderedFrame]) -> Option<String> {
        let scene = &self.scene;
        let middle = scene.side as f64 / 2.0;
        let mut told: Vec<(usize, f64, String)> = Vec::new();
        for (object, it) in scene.objects.iter().enumerate() {
            if !frames[self.first_seen()].shows(object) || !self.can_be_named(object) {
                continue;
            }
            let start = it.states[self.first_seen()];
            let corner = usize::from(start.x >= middle) + 2 * usize::from(start.y >= middle);
            let does: Vec<&str> = scene
                .events
                .iter()
                .filter(|e| e.involves(object))
                .map(|e| e.kind.verb())
                .collect();
            let does = if does.is_empty() {
                String::new()
            } else {
                format!(" that {}", does.join(" and "))
            };
            let sentence = format!(
                "In the {} is a {}{does}.",
                CORNERS[corner],
                it.look.phrase()
            );
            told.push((corner, start.x, sentence));
        }
        told.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let sentences: Vec<String> = told.into_iter().map(|t| t.2).collect();
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }

    /// The events in the order in which they begin: "the red circle blinks, then the blue star
    /// grows". `None` where nothing happens, or to something that cannot be named.
    pub fn timeline(&self) -> Option<String> {
        let events = &self.scene.events;
        if !events.iter().all(|e| self.can_be_named(e.object)) {
            return None;
        }
        let told: Vec<String> = events.iter().map(|e| self.told(e)).collect();
        (!told.is_empty()).then(|| told.join(", then "))
    }

    /// "the red circle blinks"
    pub(super) fn told(&self, event: &Event) -> String {
        let phrase = self.scene.objects[event.object].look.phrase();
        format!("the {phrase} {}", event.kind.verb())
    }
}

#[cfg(test)]
mod tests {
    use crate::synthetic::{Split, World, WorldConfig};

    #[test]
    fn a_timeline_tells_every_event_in_the_order_of_time() {
        let world = World::new(WorldConfig::default(), 3).unwrap();
        let mut several = 0;
        for clip in (0..40).map(|i| world.clip(Split::Train, i)) {
            let Some(told) = clip.timeline() else {
                assert!(clip.scene.events.is_empty());
                continue;
            };
            let told: Vec<&str> = told.split(", then ").collect();
            assert_eq!(told.len(), clip.scene.events.len());
            for event in &clip.scene.events {
                let earlier = clip.scene.events.iter().filter(|e| e.start < event.start);
                let phrase = clip.scene.objects[event.object].look.phrase();
                let expected = format!("the {phrase} {}", event.kind.verb());
                assert_eq!(told[earlier.count()], expected);
            }
            several += usize::from(told.len() > 1);
        }
        assert!(several > 5, "{several} clips with several events");
    }
}
