//! Questions and answers.

use std::sync::Arc;

use tpo_core::geometry::BoxXyxy;
use tpo_core::head::{FeatureSource, FrameSource, HeadSet, Sample, TaskOutput};
use tpo_core::model::{CallOrder, GenerateEvent, GenerateOptions, TokenBatch};
use tpo_core::prompt::{PromptIds, Turn};
use tpo_core::token::{TaskRegistry, TokenId};
use tpo_data::prompts::{AnswerStart, Opening, VisualSlots};
use tpo_data::sampling::told_times;
use tpo_llm::tokenizer::{DecodeStream, Tokenizer};

use super::batch::{PreparedQuestion, Run, start};
use super::{History, Media, Question, Session};
use crate::error::{Error, Result};
use crate::features::{FeatureTowers, LazyFeatures};

/// A piece of an answer.
#[derive(Debug, Clone)]
pub enum Event {
    /// Text, without the tokens that call heads.
    Text(String),
    /// A head answered.
    Task(TaskOutput),
    /// The model called a task for which this build has no head.
    NoHead(String),
    /// A head could not answer, for lack of something from outside; the text goes on.
    Unanswered(Unanswered),
}

/// A call of a head that something was missing for: towers or precomputed features, frames, a video.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unanswered {
    /// The task.
    pub task: String,
    /// What is missing and how to supply it.
    pub why: String,
}

/// A finished answer.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// The text with every prediction in words at its place: `It is at [0.04, 0.17, 0.39, 0.51].`
    pub said: String,
    /// Predictions in the order of the answer.
    pub tasks: Vec<TaskOutput>,
    /// Tasks that were called and have no head here.
    pub without_head: Vec<String>,
    /// Calls of heads that something was missing for.
    pub unanswered: Vec<Unanswered>,
}

impl Reply {
    /// The first prediction of a type, for example `RegionPrediction`.
    pub fn prediction<T: 'static>(&self) -> Option<&T> {
        self.tasks.iter().find_map(TaskOutput::get)
    }

    /// Adds a piece of the answer.
    pub(super) fn add(&mut self, event: Event) {
        match event {
            Event::Text(text) => {
                self.text.push_str(&text);
                self.said.push_str(&text);
            }
            Event::Task(output) => {
                self.said.push_str(&output.drawing().text);
                self.tasks.push(output);
            }
            Event::NoHead(task) => self.without_head.push(task),
            Event::Unanswered(call) => self.unanswered.push(call),
        }
    }
}

impl<H: HeadSet> Session<H> {
    /// Lays a question about what the session is looking at out for the model, to be answered with
    /// others ([`Session::answer_together`]). It keeps what it needs of the media: the session may
    /// look at something else meanwhile.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn prepare(&self, question: &Question) -> Result<PreparedQuestion> {
        for (i, b) in question.boxes.iter().enumerate() {
            b.check(&format!("box {i} of the question"))?;
        }
        let text = self.place_boxes(question)?;
        let ids = self.prompt_ids(&text, question)?;
        let limit = self.config.max_prompt();
        if ids.len() > limit {
            return Err(Error::Question {
                why: format!(
                    "the prompt has {} tokens and the model reads {limit}; shorten the question \
                     or clear the history",
                    ids.len()
                ),
            });
        }
        for task in &question.tasks {
            self.model.registry().require(task)?;
        }
        let tokens = TokenBatch::pad(&[ids], 0);
        let embeddings = self.looking.as_ref().map(|l| l.embeddings.clone());
        let boxes = [[&self.history.boxes[..], &question.boxes].concat()];
        Ok(PreparedQuestion {
            prompt: self
                .model
                .embed(&tokens, embeddings, &boxes, &self.device)?,
            tasks: question.tasks.clone(),
            not_empty: question.answer_joined,
            sample: self.sample(question, &text),
            text,
        })
    }

    /// How answers are generated.
    pub(super) fn generate_options(&self) -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: self.options.max_new_tokens,
            stop: self.ends.clone(),
            call_order: self.call_order(),
            cancel: self.options.cancel.clone(),
        }
    }

    /// Asks. The answer comes as an iterator of [`Event`]s; it enters the history when the
    /// iterator has ended.
    ///
    /// # Errors
    /// [`Error::Question`] when the prompt is longer than the model reads, holds a token of the model
    /// or more marks than boxes; a bad box; a task that does not exist.
    pub fn ask(&mut self, question: Question) -> Result<Answer<'_>> {
        let prepared = self.prepare(&question)?;
        let text = prepared.text.clone();
        let run = start(
            &self.model,
            vec![prepared],
            self.generate_options(),
            &self.options.decoding,
        )?;
        Ok(Answer {
            run: Some(run),
            words: Words::new(&self.tokenizer, self.model.registry(), &self.ends),
            question: text,
            boxes: question.boxes,
            history: &mut self.history,
        })
    }

    /// What heads are told when the question is `text`.
    fn sample(&self, question: &Question, text: &str) -> Sample {
        let asked = question.query.clone();
        let mut sample = Sample {
            query: Some(asked.clone().unwrap_or_else(|| text.into())),
            boxes: question.boxes.clone(),
            ..Sample::default()
        };
        let looking = self.looking.as_ref();
        let features = LazyFeatures {
            folder: self.options.features.clone(),
            towers: self.towers.clone(),
            media: looking.and_then(|l| l.features.clone()),
            needs: self.needs,
            id: question.id.clone(),
            query: asked.unwrap_or_else(|| question.text.clone()),
            limits: self.options.limits.clone(),
            antialias: self.config.input.antialias,
            cache: self.options.feature_cache.clone(),
            cache_queries: self.options.towers.is_some()
                && self.config.features != FeatureTowers::InternVideo2Video,
            progress: self.options.progress.clone(),
            cancel: self.options.cancel.clone(),
        };
        sample.features = Some(Arc::new(features) as Arc<dyn FeatureSource>);
        let Some(looking) = looking else {
            return sample;
        };
        let media = &looking.media;
        sample.media = Some(media.path.display().to_string());
        sample.size = Some(media.size);
        sample.duration = media.duration;
        sample.timestamps.clone_from(&media.timestamps);
        sample.frames = Some(looking.frames.clone() as Arc<dyn FrameSource>);
        sample
    }

    /// Ids of the conversation and the question `text`.
    ///
    /// The model reads the turns as training lays them out, with the answers it gave id for id, unless it
    /// runs as the reference and the base's published code lays them out in another way.
    pub(super) fn prompt_ids(&self, text: &str, question: &Question) -> Result<PromptIds> {
        let visuals = self.visuals();
        let turns = &self.history.turns[..];
        let layout = self.config.prompt.layout();
        let times = self.told_times()?;
        let begins = AnswerStart {
            prefix: &question.answer_prefix,
            joined: question.answer_joined,
        };
        let opening = Opening {
            system: &question.system,
            visuals: &visuals,
            answer: begins,
            ..Opening::text(text)
        };
        if self.call_order() == CallOrder::AsReference && !turns.is_empty() {
            let message = &layout.message(&[text], &times);
            let opening = Opening { message, ..opening };
            if let Some(ids) = layout.published(&opening, turns, &*self.tokenizer)? {
                return Ok(ids);
            }
        }
        let questions = turns.iter().map(|t| t.question.as_str());
        let questions: Vec<&str> = questions.chain([text]).collect();
        let message = &layout.message(&questions, &times);
        let opening = match turns.first() {
            Some(turn) => Opening {
                message,
                question: &turn.question,
                answer: AnswerStart::default(),
                ..opening
            },
            None => Opening { message, ..opening },
        };
        let mut ids = layout.opening(&opening, &*self.tokenizer)?;
        for (i, answer) in self.history.answers.iter().enumerate() {
            ids.push_text(answer);
            let next = match turns.get(i + 1) {
                Some(turn) => {
                    layout.further(&turn.question, AnswerStart::default(), &*self.tokenizer)?
                }
                None => layout.further(text, begins, &*self.tokenizer)?,
            };
            ids.push_text(&next);
        }
        Ok(ids)
    }

    /// Every box gets a placeholder; missing ones are put at the end. A token of a task would be taken
    /// for a slot.
    fn place_boxes(&self, question: &Question) -> Result<String> {
        let (registry, mut text) = (self.model.registry(), question.text.clone());
        let texts = [&text, &question.system, &question.answer_prefix];
        let held = |t: &TokenId| !t.token.is_empty() && texts.iter().any(|s| s.contains(&t.token));
        let tasks = registry.tasks().iter();
        let mut tokens = tasks.flat_map(|t| [&t.routing, &t.placeholder]);
        if let Some(t) = tokens.find(|t| held(t)) {
            return Err(Error::Question {
                why: format!(
                    "it holds the model's token `{}`; leave it out, and call a head by its name in \
                     `Question::tasks` (--task)",
                    t.token
                ),
            });
        }
        if let Some(mark) = &registry.box_prompt {
            let there = text.matches(&mark.token).count();
            if there > question.boxes.len() {
                return Err(Error::Question {
                    why: format!(
                        "it holds `{}` {there} times and has {} boxes; give one for each in \
                         `Question::boxes` (--box)",
                        mark.token,
                        question.boxes.len()
                    ),
                });
            }
            for _ in there..question.boxes.len() {
                text.push(' ');
                text.push_str(&mark.token);
            }
        }
        Ok(text)
    }

    /// What the session is looking at, as a prompt has it.
    fn visuals(&self) -> Vec<VisualSlots> {
        let looking = self.looking.iter();
        let visuals = looking.flat_map(|l| {
            let kind = l.media.kind;
            let counts = l.embeddings.counts.iter();
            counts.map(move |count| VisualSlots {
                kind,
                count: *count,
            })
        });
        visuals.collect()
    }

    /// The frame times of a video as the model is told them.
    fn told_times(&self) -> Result<Vec<f64>> {
        match self.media() {
            Some(Media {
                fps: Some(fps),
                frames,
                frame_count,
                ..
            }) => Ok(told_times(frames, *frame_count, *fps, None)?),
            _ => Ok(Vec::new()),
        }
    }
}

/// The words of an answer as its tokens come.
pub(super) struct Words<'a> {
    shown: Option<DecodeStream<'a>>,
    /// Every token.
    raw: Vec<u32>,
    /// Tokens that are not shown.
    silent: Vec<u32>,
    tokenizer: &'a Tokenizer,
    registry: &'a TaskRegistry,
    /// Tokens that end an answer.
    ends: &'a [u32],
}

impl<'a> Words<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        registry: &'a TaskRegistry,
        ends: &'a [u32],
    ) -> Self {
        let silent = registry.tokens().map(|t| t.id);
        Self {
            shown: Some(tokenizer.decode_stream(true)),
            raw: Vec::new(),
            silent: silent.chain(ends.iter().copied()).collect(),
            tokenizer,
            registry,
            ends,
        }
    }

    /// What a step of the answer gives to show.
    pub(super) fn hear(&mut self, event: GenerateEvent) -> Result<Option<Event>> {
        Ok(match event {
            GenerateEvent::Token(id) => {
                self.raw.push(id);
                match &mut self.shown {
                    Some(shown) if !self.silent.contains(&id) => text(shown.push(id)?),
                    _ => None,
                }
            }
            GenerateEvent::Task { output, .. } => Some(Event::Task(output)),
            GenerateEvent::NoHead { task, .. } => Some(Event::NoHead(task)),
            GenerateEvent::Unanswered { task, why, .. } => {
                Some(Event::Unanswered(Unanswered { task, why }))
            }
        })
    }

    /// What is left to show when the answer has ended.
    pub(super) fn finish(&mut self) -> Result<Option<Event>> {
        match self.shown.take() {
            Some(shown) => Ok(text(shown.finish()?)),
            None => Ok(None),
        }
    }

    /// The answer as training would show it: a task token after every call, an end.
    fn as_learned(&self) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.raw.len() + 2);
        let tasks = self.registry.tasks();
        for id in &self.raw {
            // A placeholder the model wrote itself would call for a second task token.
            if tasks.iter().any(|t| t.placeholder.id == *id) {
                continue;
            }
            ids.push(*id);
            ids.extend(self.registry.by_routing(*id).map(|t| t.placeholder.id));
        }
        // Training knows one end, whichever token the answer stopped at.
        if ids.last().is_some_and(|id| self.ends.contains(id)) {
            ids.pop();
        }
        ids.extend(self.ends.first());
        ids
    }
}

/// Text as an event, if there is any.
fn text(text: String) -> Option<Event> {
    (!text.is_empty()).then_some(Event::Text(text))
}

/// A running answer.
pub struct Answer<'a> {
    run: Option<Run<'a>>,
    words: Words<'a>,
    question: String,
    boxes: Vec<BoxXyxy>,
    history: &'a mut History,
}

impl Answer<'_> {
    /// Runs to the end and collects everything.
    ///
    /// # Errors
    /// The first error of the run.
    pub fn collect_reply(self) -> Result<Reply> {
        let mut reply = Reply::default();
        for event in self {
            reply.add(event?);
        }
        Ok(reply)
    }

    fn finish(&mut self) -> Result<Option<Event>> {
        self.run = None;
        let words = &mut self.words;
        // A mark the model wrote itself has no box; in the history it would ask for one.
        let mark = words.registry.box_prompt.as_ref().map(|t| t.id);
        words.raw.retain(|id| Some(*id) != mark);
        let answer = words.tokenizer.decode(&words.raw, true)?;
        self.history.answers.push(words.as_learned());
        self.history.boxes.append(&mut self.boxes);
        self.history.turns.push(Turn {
            question: std::mem::take(&mut self.question),
            answer,
        });
        words.finish()
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let event = match self.run.as_mut()?.next() {
                None => return self.finish().transpose(),
                Some(Ok((_, event))) => event,
                Some(Err(e)) => Err(e),
            };
            match event.map_err(Error::from).and_then(|e| self.words.hear(e)) {
                Ok(None) => {}
                Ok(Some(event)) => return Some(Ok(event)),
                Err(e) => {
                    self.run = None;
                    return Some(Err(e));
                }
            }
        }
    }
}
