//! Conversations about a clip, modelled on MVBench's kinds of question.

use super::Clip;
use super::attributes::{Colour, Shape, named};
use super::draw::Draw;
use super::event::{Event, EventKind};
use super::render::RenderedFrame;
use super::split::{Split, is_held_out_look};

named! {
    /// Kind of a question, with the task of MVBench it is modelled on.
    QuestionKind {
        /// What does it do? (Action Prediction, Fine-grained Action)
        Action = "action",
        /// What happens first? (Action Sequence)
        Order = "order",
        /// Which way does it move? (Moving Direction)
        Direction = "direction",
        /// How many are there? (Action Count, Moving Count)
        Count = "count",
        /// Is there one? (Object Existence)
        Existence = "existence",
        /// What colour does it become? (State Change)
        AttributeChange = "attribute change",
        /// Where is it at the start? (Object Shuffle, Action Localisation)
        Position = "position",
        /// What does it run into? (Object Interaction)
        Interaction = "interaction",
        /// What colour is it? (Moving Attribute)
        Attribute = "attribute",
        /// What shape is it? (Moving Attribute)
        ShapeOf = "shape",
    }
}

use QuestionKind::*;

/// A question with its answer and the answers to choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Kind.
    pub kind: QuestionKind,
    /// Words.
    pub question: String,
    /// The true answer, a word or a few.
    pub answer: String,
    /// The right answer among wrong ones, in random order.
    pub options: Vec<String>,
    /// Index of the true answer in `options`.
    pub correct: usize,
}

/// A shape moves if its centre goes this share of the frame's side.
const MOVES: f64 = 0.2;
/// A direction is clear if the other axis moves at most this share of it.
const CLEAR: f64 = 0.35;
/// Most answers to choose from.
const OPTIONS: usize = 4;

impl Clip {
    /// Every question this clip answers unambiguously, in random order. `frames` are the clip's
    /// rendered frames: looks and positions are asked only of shapes visible at the start.
    /// Counts and events are those of the scene, also where another shape is in front.
    pub fn questions(&self, frames: &[RenderedFrame]) -> Vec<Question> {
        let mut asked = Asked {
            clip: self,
            draw: Draw::of(&[self.wording, 4]),
            questions: Vec::new(),
        };
        asked.events();
        asked.order();
        asked.motion();
        asked.counts();
        asked.existence();
        asked.looks(frames);
        asked.positions(frames);
        let mut questions = asked.questions;
        asked.draw.shuffle(&mut questions);
        questions
    }
}

struct Asked<'a> {
    clip: &'a Clip,
    draw: Draw,
    questions: Vec<Question>,
}

impl Asked<'_> {
    fn phrase(&self, object: usize) -> String {
        self.clip.scene.objects[object].look.phrase()
    }

    fn called(&mut self, object: usize) -> String {
        self.clip.called(object, &mut self.draw)
    }

    /// Adds a question; `wrong` are other answers, in random order, none equal to the true one.
    fn ask(
        &mut self,
        kind: QuestionKind,
        words: &[&str],
        it: &str,
        answer: &str,
        wrong: Vec<String>,
    ) {
        let question = self.draw.pick(words).replace("{it}", it);
        let mut options: Vec<String> = wrong
            .into_iter()
            .filter(|w| w != answer)
            .take(OPTIONS - 1)
            .collect();
        let correct = self.draw.below(options.len() + 1);
        options.insert(correct, answer.to_string());
        self.questions.push(Question {
            kind,
            question,
            answer: answer.to_string(),
            options,
            correct,
        });
    }

    fn shuffled(&mut self, names: impl IntoIterator<Item = &'static str>) -> Vec<String> {
        let mut names: Vec<String> = names.into_iter().map(String::from).collect();
        self.draw.shuffle(&mut names);
        names
    }

    fn colours(&mut self) -> Vec<String> {
        self.shuffled(Colour::ALL.iter().map(|c| c.name()))
    }

    fn events(&mut self) {
        for event in self.clip.scene.events.clone() {
            let (it, verb) = (self.called(event.object), event.kind.verb());
            let words = ["What does the {it} do?", "What happens to the {it}?"];
            let wrong = self.shuffled(EventKind::ALL.iter().map(|k| k.verb()));
            self.ask(Action, &words, &it, verb, wrong);

            let mut others: Vec<String> = (0..self.clip.scene.objects.len())
                .filter(|o| !event.involves(*o))
                .map(|o| self.phrase(o))
                .collect();
            match event.other {
                None if !others.is_empty() && self.clip.can_be_named(event.object) => {
                    let it = self.phrase(event.object);
                    self.draw.shuffle(&mut others);
                    let words = ["Which shape {it}?", "What is it that {it}?"];
                    self.ask(Action, &words, verb, &it, others);
                }
                Some(other) if self.clip.can_be_named(other) => {
                    let it = self.called(event.object);
                    self.draw.shuffle(&mut others);
                    if others.is_empty() {
                        others = self.absent();
                    }
                    let answer = self.phrase(other);
                    let words = [
                        "What does the {it} run into?",
                        "Which shape does the {it} collide with?",
                    ];
                    self.ask(Interaction, &words, &it, &answer, others);
                }
                _ => {}
            }
            if let Some(becomes) = event.becomes {
                let it = self.called(event.object);
                let words = [
                    "What colour does the {it} become?",
                    "Which colour does the {it} turn?",
                ];
                let wrong = self.colours();
                self.ask(AttributeChange, &words, &it, becomes.name(), wrong);
            }
        }
    }

    fn order(&mut self) {
        let events = self.clip.scene.events.clone();
        let [first, .., last] = &events[..] else {
            return;
        };
        let named = |e: &Event| self.clip.can_be_named(e.object);
        if named(first) && named(last) && first.end <= last.start {
            let (early, late) = (self.clip.told(first), self.clip.told(last));
            let one = ["What happens first?", "Which happens earlier?"];
            self.ask(Order, &one, "", &early, vec![late.clone()]);
            let two = ["What happens last?", "Which happens later?"];
            self.ask(Order, &two, "", &late, vec![early]);
        }
    }

    /// The way of shapes to which nothing happens that moves them.
    fn motion(&mut self) {
        let scene = &self.clip.scene;
        let directions = ["left", "right", "up", "down"];
        for object in 0..scene.objects.len() {
            let moves = |e: &Event| {
                use EventKind::{Collide, LeaveReturn, Stop};
                e.involves(object) && matches!(e.kind, Collide | LeaveReturn | Stop)
            };
            if scene.events.iter().any(moves) {
                continue;
            }
            let states = &self.clip.scene.objects[object].states;
            let (first, last) = (
                states[self.clip.first_seen()],
                states[self.clip.last_seen()],
            );
            let (dx, dy) = (last.x - first.x, last.y - first.y);
            let side = scene.side as f64;
            let answer =
                if dx.hypot(dy) < 1e-9 && states.iter().all(|s| (s.x, s.y) == (first.x, first.y)) {
                    "nowhere"
                } else if dx.abs() > MOVES * side && dy.abs() < CLEAR * dx.abs() {
                    if dx < 0.0 { "left" } else { "right" }
                } else if dy.abs() > MOVES * side && dx.abs() < CLEAR * dy.abs() {
                    if dy < 0.0 { "up" } else { "down" }
                } else {
                    continue;
                };
            let mut wrong = self.shuffled(directions);
            wrong.insert(1, "nowhere".into());
            let it = self.called(object);
            let words = ["Which way does the {it} move?", "Where does the {it} go?"];
            self.ask(Direction, &words, &it, answer, wrong);
        }
    }

    fn counts(&mut self) {
        let numbers = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];
        let near = |asked: &mut Self, n: usize| {
            let low = n.saturating_sub(2);
            let mut wrong: Vec<String> =
                (low..=(n + 2).min(8)).map(|i| numbers[i].into()).collect();
            asked.draw.shuffle(&mut wrong);
            wrong
        };
        let objects = self.clip.scene.objects.len();
        let wrong = near(self, objects);
        let words = ["How many shapes are there?", "Count the shapes."];
        self.ask(Count, &words, "", numbers[objects], wrong);
        let shape = self.draw.pick(Shape::ALL);
        let of = |o: &&super::Object| o.look.shape() == Some(shape);
        let count = self.clip.scene.objects.iter().filter(of).count();
        let plural = match shape {
            Shape::Cross => "crosses".to_string(),
            _ => format!("{}s", shape.name()),
        };
        let wrong = near(self, count);
        let words = ["How many {it} are there?", "Count the {it}."];
        self.ask(Count, &words, &plural, numbers[count], wrong);
    }

    fn existence(&mut self) {
        let words = ["Is there a {it}?", "Can you see a {it}?"];
        let there = self.draw.below(self.clip.scene.objects.len());
        let it = self.phrase(there);
        self.ask(Existence, &words, &it, "yes", vec!["no".into()]);
        // A phrase of words that both occur says more than one nobody mentions.
        let absent = self.absent();
        if let Some(it) = absent.first() {
            self.ask(Existence, &words, it, "no", vec!["yes".into()]);
        }
    }

    /// Phrases of no shape here, recombinations of what is here first. What is held out is not named
    /// outside of its split: the answer to it would always be "no".
    fn absent(&mut self) -> Vec<String> {
        let looks: Vec<_> = self.clip.scene.objects.iter().map(|o| o.look).collect();
        let turned: Vec<(usize, Colour)> = self
            .clip
            .scene
            .events
            .iter()
            .filter_map(|e| Some((e.object, e.becomes?)))
            .collect();
        if looks.iter().any(|l| l.colour.is_none()) {
            let other = |s: &&Shape| looks.iter().all(|l| l.shape() != Some(**s));
            return self.shuffled(Shape::ALL.iter().filter(other).map(|s| s.name()));
        }
        let mut near = Vec::new();
        let mut far = Vec::new();
        for &shape in Shape::ALL {
            for &colour in Colour::ALL {
                if self.clip.split != Split::HeldOut && is_held_out_look(shape, colour) {
                    continue;
                }
                let same = looks
                    .iter()
                    .any(|l| (l.shape(), l.colour) == (Some(shape), Some(colour)))
                    || turned
                        .iter()
                        .any(|(o, c)| looks[*o].shape() == Some(shape) && *c == colour);
                if same {
                    continue;
                }
                let phrase = format!("{} {}", colour.name(), shape.name());
                let known = looks.iter().any(|l| l.shape() == Some(shape))
                    && looks.iter().any(|l| l.colour == Some(colour));
                if known { &mut near } else { &mut far }.push(phrase);
            }
        }
        self.draw.shuffle(&mut near);
        self.draw.shuffle(&mut far);
        near.extend(far);
        near
    }

    /// Colour of the only shape of its kind, shape of the only one of its colour.
    fn looks(&mut self, frames: &[RenderedFrame]) {
        let scene = &self.clip.scene;
        let looks: Vec<_> = scene.objects.iter().map(|o| o.look).collect();
        for (i, look) in looks.iter().enumerate() {
            let (Some(shape), Some(colour)) = (look.shape(), look.colour) else {
                continue;
            };
            if !frames[self.clip.first_seen()].shows(i) {
                continue;
            }
            let alone =
                |same: &dyn Fn(usize) -> bool| (0..looks.len()).filter(|o| same(*o)).count() == 1;
            if alone(&|o| looks[o].shape() == Some(shape)) {
                let words = [
                    "What colour is the {it} at the start?",
                    "At the start, which colour has the {it}?",
                ];
                let wrong = self.colours();
                self.ask(Attribute, &words, shape.name(), colour.name(), wrong);
            }
            let becomes_it = self
                .clip
                .scene
                .events
                .iter()
                .any(|e| e.becomes == Some(colour) && e.object != i);
            if alone(&|o| looks[o].colour == look.colour) && !becomes_it {
                let words = [
                    "What shape is {it} at the start?",
                    "What is the {it} shape at the start?",
                ];
                let wrong = self.shuffled(Shape::ALL.iter().map(|s| s.name()));
                self.ask(ShapeOf, &words, colour.name(), shape.name(), wrong);
            }
        }
    }

    /// Quarter of the frame, for shapes that lie well inside one.
    fn positions(&mut self, frames: &[RenderedFrame]) {
        let side = self.clip.scene.side as f64;
        for i in 0..self.clip.scene.objects.len() {
            if !frames[self.clip.first_seen()].shows(i) {
                continue;
            }
            let state = self.clip.scene.objects[i].states[self.clip.first_seen()];
            let (x, y) = (state.x / side - 0.5, state.y / side - 0.5);
            if x.abs() < 0.08 || y.abs() < 0.08 {
                continue;
            }
            let answer = match (x < 0.0, y < 0.0) {
                (true, true) => "top left",
                (false, true) => "top right",
                (true, false) => "bottom left",
                (false, false) => "bottom right",
            };
            let it = self.called(i);
            let words = [
                "In which corner is the {it} at the start?",
                "Where does the {it} start?",
            ];
            let wrong = self.shuffled(["top left", "top right", "bottom left", "bottom right"]);
            self.ask(Position, &words, &it, answer, wrong);
        }
    }
}
