//! How a question names a shape.

use super::draw::Draw;
use super::{Clip, Event};

impl Clip {
    /// "red circle", or "red shape" or "circle" where that is enough and the world has
    /// [short names](super::WorldConfig::short_names).
    pub(super) fn called(&self, object: usize, draw: &mut Draw) -> String {
        let look = self.scene.objects[object].look;
        let whole = look.phrase();
        let (Some(shape), Some(colour)) = (look.shape(), look.colour) else {
            return whole;
        };
        // No random number is drawn where there are none, so that the questions of a seed stay the same.
        if self.short_names == 0.0 || draw.unit() >= self.short_names {
            return whole;
        }
        let others = || {
            let objects = self.scene.objects.iter().enumerate();
            objects.filter(|(i, _)| *i != object).map(|(_, o)| o.look)
        };
        // A shape that changes its colour is not named by the one it has at the start.
        let turns = |e: &Event| match e.becomes {
            Some(becomes) => e.object == object || becomes == colour,
            None => false,
        };
        let mut short = Vec::new();
        if others().all(|o| o.colour != Some(colour)) && !self.scene.events.iter().any(turns) {
            short.push(format!("{} shape", colour.name()));
        }
        if others().all(|o| o.shape() != Some(shape)) {
            short.push(shape.name().to_string());
        }
        if short.is_empty() {
            whole
        } else {
            short.swap_remove(draw.below(short.len()))
        }
    }

    /// Whether an answer may name the shape: a world with short names has no "red shape" in answers.
    pub(super) fn can_be_named(&self, object: usize) -> bool {
        self.short_names == 0.0 || self.scene.objects[object].look.shape().is_some()
    }
}

#[cfg(test)]
mod tests {
    use crate::synthetic::{Split, World, WorldConfig};

    #[test]
    fn a_short_name_is_of_one_shape_only() {
        let config = WorldConfig {
            short_names: 0.7,
            crossed: 0.3,
            ..WorldConfig::default()
        };
        let world = World::new(config, 5).unwrap();
        let (mut by_colour, mut by_outline) = (0, 0);
        for clip in (0..60).map(|i| world.clip(Split::Train, i)) {
            for query in clip.mask_queries(&clip.scene.render_all()) {
                let words: Vec<&str> = query.question.trim_end_matches('.').split(' ').collect();
                let name = &words[2..];
                let fits = clip.scene.objects.iter().enumerate().filter(|(i, o)| {
                    let (shape, colour) = (o.look.shape().unwrap(), o.look.colour.unwrap());
                    let turned = clip.scene.events.iter().filter(|e| e.object == *i);
                    let mut colours = turned.filter_map(|e| e.becomes).chain([colour]);
                    name.iter().all(|word| {
                        *word == "shape"
                            || *word == shape.name()
                            || colours.any(|c| c.name() == *word)
                    })
                });
                let fits: Vec<usize> = fits.map(|(i, _)| i).collect();
                assert_eq!(fits, [query.object], "{}: {}", clip.name(), query.question);
                by_colour += usize::from(name.last() == Some(&"shape"));
                by_outline += usize::from(name.len() == 1);
            }
        }
        assert!(
            by_colour > 20 && by_outline > 20,
            "{by_colour} {by_outline}"
        );
    }

    #[test]
    fn no_answer_is_a_shape_without_a_name() {
        let config = WorldConfig {
            short_names: 0.3,
            irregular: 1.0,
            ..WorldConfig::default()
        };
        let world = World::new(config, 6).unwrap();
        let mut actions = 0;
        for clip in (0..40).map(|i| world.clip(Split::Train, i)) {
            let frames = clip.scene.render_all();
            let questions = clip.questions(&frames);
            let exclusions = clip.exclusions(&frames);
            let answers = questions.iter().map(|q| q.answer.as_str());
            for answer in answers
                .chain(clip.caption(&frames).as_deref())
                .chain(clip.timeline().as_deref())
                .chain(exclusions.iter().map(|e| e.1.as_str()))
            {
                assert!(!answer.contains("shape"), "{}: {answer}", clip.name());
            }
            actions += questions
                .iter()
                .filter(|q| q.question.starts_with("What does the"))
                .count();
        }
        assert!(actions > 10, "{actions}");
    }
}
