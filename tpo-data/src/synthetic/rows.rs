//! Clips of the world as rows of a dataset.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::attributes::named;
use super::draw::Draw;
use super::render::RenderedFrame;
use super::{Clip, QuestionKind, Split, World, WorldConfig};
use crate::schema::{Annotation, BoxCoords, Media, Saliency, Sample, Target, Turn};
use crate::video::FrameBuffer;
use crate::{DataError, MediaLimits};

named! {
    /// What a turn about a clip can ask for.
    WorldTask {
        /// A question answered in words.
        Chat = "chat",
        /// A caption, shape by shape.
        Caption = "caption",
        /// What happens, in the order of time.
        Timeline = "timeline",
        /// What happens to other shapes, and to which one nothing does.
        Exclusion = "exclusion",
        /// The box of a shape at the start or the end: annotations of `region`.
        Region = "region",
        /// When something happens: annotations of `temporal`, with saliency.
        Temporal = "temporal",
        /// The masks of a shape in all frames: annotations of `mask`.
        Mask = "mask",
    }
}

impl WorldTask {
    /// Whether its answers call a head, which is named as the task.
    pub fn calls_head(self) -> bool {
        matches!(self, Self::Region | Self::Temporal | Self::Mask)
    }
}

impl fmt::Display for WorldTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A turn, and the annotation of the head that it calls.
type Asked = (Turn, Option<Annotation>);

/// What asks for a caption.
const CAPTION: [&str; 2] = ["Describe the video.", "What is there to see?"];
/// What asks for a timeline.
const TIMELINE: [&str; 2] = [
    "What happens, one after the other?",
    "Tell what happens in order.",
];
/// Most turns about one clip.
const MAX_QUERIES: usize = 64;
/// Most rows: the number of a row goes into line numbers.
const MAX_ROWS: u64 = u32::MAX as u64;
/// Fewest frames of a clip.
const MIN_FRAMES: usize = 12;

/// Rows made of clips of the world. Row `i` is about clip `i` of the split.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsConfig {
    /// What is asked; a row cycles through the tasks.
    pub tasks: Vec<WorldTask>,
    /// Number of rows, each about its own clip.
    pub rows: u64,
    /// Seed of the world; separate from the run's, so that the data stay the same when that changes.
    #[serde(default)]
    pub seed: u64,
    /// Which part of the world.
    #[serde(default)]
    pub split: Split,
    /// Turns of a row, at most 64. A clip is encoded once however many questions there are about
    /// it. Fewer when the clip cannot answer more, or the prompt has no room.
    #[serde(default = "one")]
    pub queries_per_clip: usize,
    /// Share of the chat questions that are multiple choice, 0–1.
    #[serde(default)]
    pub choices: f64,
    /// Frames of a clip; absent: the smallest multiple of the model's that is at least 12.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<usize>,
    /// Frames per second; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    /// Side of the frames in pixels; absent: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<usize>,
    /// Most shapes of a clip; absent: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_objects: Option<usize>,
    /// Most events of a clip; absent: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_events: Option<usize>,
    /// Share of the clips whose camera shakes, 0–1; absent: 0.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub camera_shake: Option<f64>,
    /// Share of the clips without colours, 0–1 ([`WorldConfig::grey`]); absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grey: Option<f64>,
    /// Share of the other clips whose shapes differ in colour only, 0–1 ([`WorldConfig::one_outline`]);
    /// absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_outline: Option<f64>,
    /// Share of the remaining clips whose shapes differ in outline only, 0–1
    /// ([`WorldConfig::one_colour`]); absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_colour: Option<f64>,
    /// Share of the remaining clips in which two outlines come in two colours, 0–1
    /// ([`WorldConfig::crossed`]); absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crossed: Option<f64>,
    /// Share of the remaining clips whose outlines have no name, 0–1 ([`WorldConfig::irregular`]);
    /// absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub irregular: Option<f64>,
    /// Share of the mentions in questions by colour or outline alone, 0–1
    /// ([`WorldConfig::short_names`]); absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_names: Option<f64>,
    /// Kinds of the chat questions; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<QuestionKind>,
}

fn one() -> usize {
    1
}

impl RowsConfig {
    /// One turn of these tasks about each of `rows` training clips.
    pub fn new(tasks: impl Into<Vec<WorldTask>>, rows: u64, seed: u64) -> Self {
        Self {
            tasks: tasks.into(),
            rows,
            seed,
            queries_per_clip: one(),
            ..Self::default()
        }
    }

    /// The world, for a model that reads `frames` frames of `side` pixels.
    pub fn world(&self, frames: usize, side: usize) -> WorldConfig {
        let plain = WorldConfig::default();
        let frames = frames.max(1);
        let most = self.max_objects.unwrap_or(plain.max_objects);
        let length = self
            .frames
            .unwrap_or(frames * MIN_FRAMES.div_ceil(frames).max(1));
        WorldConfig {
            side: self.side.unwrap_or(side.clamp(32, 1024)),
            frames: length,
            // Other lengths are sampled unevenly; there the whole clip is meant.
            stride: if length.is_multiple_of(frames) {
                length / frames
            } else {
                1
            },
            fps: self.fps.unwrap_or(plain.fps),
            min_objects: plain.min_objects.min(most.max(1)),
            max_objects: most,
            max_events: self.max_events.unwrap_or(plain.max_events),
            camera_shake: self.camera_shake.unwrap_or(plain.camera_shake),
            grey: self.grey.unwrap_or(plain.grey),
            one_outline: self.one_outline.unwrap_or(plain.one_outline),
            one_colour: self.one_colour.unwrap_or(plain.one_colour),
            crossed: self.crossed.unwrap_or(plain.crossed),
            irregular: self.irregular.unwrap_or(plain.irregular),
            short_names: self.short_names.unwrap_or(plain.short_names),
        }
    }

    /// Everything that is out of range, for a model that reads `frames` frames of `side` pixels.
    pub fn problems(&self, frames: usize, side: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if self.tasks.is_empty() {
            problems.push(format!(
                "tasks is empty; there are: {}",
                names(WorldTask::ALL)
            ));
        }
        for (i, task) in self.tasks.iter().enumerate() {
            if self.tasks[..i].contains(task) {
                problems.push(format!("tasks names `{task}` twice"));
            }
        }
        if !(1..=MAX_ROWS).contains(&self.rows) {
            problems.push(format!("rows is {}; must be 1 to {MAX_ROWS}", self.rows));
        }
        if !(1..=MAX_QUERIES).contains(&self.queries_per_clip) {
            problems.push(format!(
                "queries_per_clip is {}; must be 1 to {MAX_QUERIES}",
                self.queries_per_clip
            ));
        }
        if !(0.0..=1.0).contains(&self.choices) {
            problems.push(format!("choices is {}; must be 0 to 1", self.choices));
        }
        match self.world(frames, side).validate() {
            Err(DataError::InvalidSynthetic { reason }) => problems.push(reason),
            Err(other) => problems.push(other.to_string()),
            Ok(()) => {}
        }
        problems
    }
}

fn names(tasks: &[WorldTask]) -> String {
    let names: Vec<&str> = tasks.iter().map(|t| t.name()).collect();
    names.join(", ")
}

/// Rows that are drawn when they are asked for: a pure function of configuration and number.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldRows {
    world: World,
    config: RowsConfig,
}

impl WorldRows {
    /// Rows for a model that reads `frames` frames of `side` pixels.
    ///
    /// # Errors
    /// [`DataError::InvalidSynthetic`] with every problem.
    pub fn new(config: RowsConfig, frames: usize, side: usize) -> Result<Self, DataError> {
        let problems = config.problems(frames, side);
        if !problems.is_empty() {
            return Err(DataError::synthetic(problems));
        }
        Ok(Self {
            world: World::new(config.world(frames, side), config.seed)?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &RowsConfig {
        &self.config
    }

    /// The world they are of.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A row with its frames. Its media path is the name of the clip, no file.
    ///
    /// # Errors
    /// [`DataError::Prepare`] for a clip about which none of the tasks can ask;
    /// [`DataError::LimitExceeded`] for frames beyond the limits.
    pub fn row(&self, row: u64, limits: &MediaLimits) -> Result<(Sample, FrameBuffer), DataError> {
        let clip = self.world.clip(self.config.split, row);
        let rendered = clip.scene.render_all();
        let sample = self.sample(&clip, &rendered, row)?;
        let name = sample.media.as_ref().map_or("", |m| m.path.as_str());
        let frames: Vec<_> = rendered
            .iter()
            .map(RenderedFrame::to_frame)
            .collect::<Result<_, _>>()?;
        let video = FrameBuffer::new(name, frames, clip.scene.fps, limits)?;
        Ok((sample, video))
    }

    fn sample(&self, clip: &Clip, frames: &[RenderedFrame], row: u64) -> Result<Sample, DataError> {
        let scene = &clip.scene;
        let mut draw = Draw::of(&[clip.wording, 5]);
        let tasks = &self.config.tasks;
        // Every row begins with another task, so that one turn a row asks all of them.
        let first = (row % tasks.len() as u64) as usize;
        let mut kinds: Vec<Vec<Asked>> = (0..tasks.len())
            .map(|i| {
                let mut turns = match tasks[(first + i) % tasks.len()] {
                    WorldTask::Chat => self.chat(clip, frames, &mut draw),
                    WorldTask::Caption => tell(draw.pick(&CAPTION), clip.caption(frames)),
                    WorldTask::Timeline => tell(draw.pick(&TIMELINE), clip.timeline()),
                    WorldTask::Exclusion => exclusions(clip, frames),
                    WorldTask::Region => region(clip, frames),
                    WorldTask::Temporal => temporal(clip),
                    WorldTask::Mask => mask(clip, frames),
                };
                draw.shuffle(&mut turns);
                turns
            })
            .collect();
        let mut media = Media::video(format!("world-{}/{}", self.config.seed, clip.name()));
        media.size = Some([scene.side as u32; 2]);
        media.duration = Some(scene.duration());
        let mut sample = Sample {
            id: Some(clip.name()),
            media: Some(media),
            ..Sample::default()
        };
        let wanted = self.config.queries_per_clip;
        while sample.turns.len() < wanted && kinds.iter().any(|k| !k.is_empty()) {
            for kind in &mut kinds {
                if sample.turns.len() < wanted
                    && let Some((turn, annotation)) = kind.pop()
                {
                    sample.turns.push(turn);
                    sample.annotations.extend(annotation);
                }
            }
        }
        if sample.turns.is_empty() {
            return Err(DataError::Prepare {
                reason: format!(
                    "there is nothing to ask about clip {} for: {}",
                    clip.name(),
                    names(tasks)
                ),
            });
        }
        Ok(sample)
    }

    fn chat(&self, clip: &Clip, frames: &[RenderedFrame], draw: &mut Draw) -> Vec<Asked> {
        let kinds = &self.config.kinds;
        clip.questions(frames)
            .into_iter()
            .filter(|q| kinds.is_empty() || kinds.contains(&q.kind))
            .map(|q| {
                let mut turn = Turn::new(q.question, q.answer);
                if draw.unit() < self.config.choices {
                    turn.answer = String::new();
                    turn.options = q.options;
                    turn.correct = Some(q.correct);
                }
                (turn, None)
            })
            .collect()
    }
}

/// A turn of text only, where there is something to say.
fn tell(question: &str, told: Option<String>) -> Vec<Asked> {
    let turn = told.map(|told| (Turn::new(question, told), None));
    turn.into_iter().collect()
}

fn exclusions(clip: &Clip, frames: &[RenderedFrame]) -> Vec<Asked> {
    let asked = clip.exclusions(frames).into_iter();
    asked.map(|(q, a)| (Turn::new(q, a), None)).collect()
}

/// A turn that calls a head, and its annotation. The whole question is the query: in a chat the heads
/// get nothing else.
fn call(task: WorldTask, question: String, answer: &str, target: Target) -> Asked {
    let annotation = Annotation {
        task: task.name().into(),
        query: Some(question.clone()),
        prompt_box: None,
        target,
    };
    let answer = answer.replace("{call}", &format!("<task:{task}>"));
    (Turn::new(question, answer), Some(annotation))
}

fn region(clip: &Clip, frames: &[RenderedFrame]) -> Vec<Asked> {
    clip.region_queries(frames)
        .into_iter()
        .map(|q| {
            let target = Target::Box(BoxCoords::Normalised(q.area.to_array()));
            call(WorldTask::Region, q.question, "It is at {call}.", target)
        })
        .collect()
}

fn temporal(clip: &Clip) -> Vec<Asked> {
    clip.temporal_queries()
        .into_iter()
        .map(|q| {
            let rated = q.saliency.iter().enumerate().filter(|(_, s)| **s > 0.0);
            let (clips, scores) = rated.map(|(i, s)| (i as u32, vec![*s])).unzip();
            let target = Target::Spans {
                spans: q.spans.iter().map(|(a, b)| [*a, *b]).collect(),
                saliency: Some(Saliency {
                    clip_seconds: 1.0 / clip.scene.fps,
                    clips,
                    scores,
                }),
            };
            call(
                WorldTask::Temporal,
                q.question,
                "It happens in {call}.",
                target,
            )
        })
        .collect()
}

fn mask(clip: &Clip, frames: &[RenderedFrame]) -> Vec<Asked> {
    clip.mask_queries(frames)
        .into_iter()
        .map(|q| {
            let question = q.question.clone();
            let target = Target::Track(q.track());
            call(WorldTask::Mask, question, "Here it is: {call}.", target)
        })
        .collect()
}
