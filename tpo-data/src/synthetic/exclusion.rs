//! Questions about the shapes to which something does not happen.

use super::draw::Draw;
use super::render::RenderedFrame;
use super::{Clip, Event};

impl Clip {
    /// Questions that name an event and a shape to which it does not happen: "Which shape does not
    /// blink?", "What does a shape other than the red star do?". A model that has learned which outline
    /// never blinks, instead of looking, gets these wrong. Each with its answer, in random order.
    pub fn exclusions(&self, frames: &[RenderedFrame]) -> Vec<(String, String)> {
        let mut draw = Draw::of(&[self.wording, 6]);
        let scene = &self.scene;
        let mut asked = Vec::new();
        let shapes = 0..scene.objects.len();
        let idle = shapes
            .clone()
            .filter(|o| !scene.events.iter().any(|e| e.involves(*o)));
        let mut kinds = Vec::new();
        for event in &scene.events {
            if !kinds.contains(&event.kind) {
                kinds.push(event.kind);
            }
        }
        draw.shuffle(&mut kinds);
        if let [it] = idle.collect::<Vec<_>>()[..]
            && self.can_be_named(it)
            && frames[self.first_seen()].shows(it)
        {
            let question = match kinds[..] {
                [kind] => Some(
                    draw.pick(&["Which shape does not {}?", "What is it that does not {}?"])
                        .replace("{}", kind.name()),
                ),
                [one, other] => Some(format!(
                    "Which shape neither {} nor {}?",
                    one.verb(),
                    other.verb()
                )),
                _ => None,
            };
            asked.extend(question.map(|q| (q, scene.objects[it].look.phrase())));
        }
        for object in shapes {
            // In a collision another shape takes part whichever is asked about.
            let involves_another = |e: &&Event| e.object != object || e.other.is_some();
            let mut elsewhere = scene.events.iter().filter(involves_another);
            if let (Some(event), None) = (elsewhere.next(), elsewhere.next()) {
                let it = self.called(object, &mut draw);
                let words = [
                    "What does a shape other than the {it} do?",
                    "What happens to a shape other than the {it}?",
                ];
                let question = draw.pick(&words).replace("{it}", &it);
                asked.push((question, event.kind.verb().to_string()));
            }
        }
        draw.shuffle(&mut asked);
        asked
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::synthetic::{Split, World, WorldConfig};

    #[test]
    fn one_answer_fits_and_training_names_every_event_with_every_outline() {
        let world = World::new(WorldConfig::default(), 9).unwrap();
        let mut pairs = BTreeSet::new();
        let (mut shapes, mut verbs) = (0, 0);
        for clip in (0..600).map(|i| world.clip(Split::Train, i)) {
            let scene = &clip.scene;
            for (question, answer) in clip.exclusions(&clip.scene.render_all()) {
                let about = scene.objects.iter().position(|o| {
                    let phrase = o.look.phrase();
                    question.contains(&phrase) || answer == phrase
                });
                let about = about.unwrap();
                let outline = scene.objects[about].look.shape().unwrap();
                if question.contains("other than") {
                    // What any other shape does is the answer.
                    let does: BTreeSet<&str> = (0..scene.objects.len())
                        .filter(|o| *o != about)
                        .flat_map(|o| scene.events.iter().filter(move |e| e.involves(o)))
                        .map(|e| e.kind.verb())
                        .collect();
                    let one = BTreeSet::from([answer.as_str()]);
                    assert_eq!(does, one, "{}: {question}", clip.name());
                    pairs.insert((outline, answer));
                    verbs += 1;
                } else {
                    let idle = |o: &usize| !scene.events.iter().any(|e| e.involves(*o));
                    let idle: Vec<usize> = (0..scene.objects.len()).filter(idle).collect();
                    assert_eq!(idle, [about], "{}: {question}", clip.name());
                    for event in &scene.events {
                        let (name, verb) = (event.kind.name(), event.kind.verb());
                        assert!(
                            question.contains(name) || question.contains(verb),
                            "{question}"
                        );
                    }
                    shapes += 1;
                }
            }
        }
        assert!(shapes > 100 && verbs > 300, "{shapes} {verbs}");
        assert_eq!(pairs.len(), 6 * 7);
    }
}
