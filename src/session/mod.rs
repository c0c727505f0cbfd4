//! A conversation about a video or images.

use std::sync::Arc;

use burn::tensor::Device;
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::HeadSet;
use tpo_core::model::CallOrder;
use tpo_core::prompt::Turn;
use tpo_data::FrameSampling;
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::vocabulary;

use crate::error::Result;
use crate::features::{FeatureNeeds, TemporalTowers};
use crate::model::{BuiltInHeads, Tpo, TpoConfig};

mod ask;
mod batch;
mod media;
mod open;
mod options;
#[cfg(test)]
mod tests;

pub use ask::{Answer, Event, Reply, Unanswered};
pub use batch::PreparedQuestion;
use media::Looking;
pub use media::Media;
pub use options::{FrameCost, HeadProgress, HeadStep, SessionOptions, TrackFrames};

/// A question.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The text. `<track_box>` marks the place of a box; boxes without a mark go to the end.
    pub text: String,
    /// Boxes the question is about, normalised.
    pub boxes: Vec<BoxXyxy>,
    /// Tasks to call whatever the model says, for example `region`.
    pub tasks: Vec<String>,
    /// What heads are asked for, where it is not the whole text: `the red ball` of "Where is the
    /// red ball?". Training gives heads the query of the annotation.
    pub query: Option<String>,
    /// Name of the question in a benchmark, by which features of its query are looked for
    /// ([`SessionOptions::features`]): `17` of `qid17.npz`.
    pub id: Option<String>,
    /// Put in front of the prompt.
    pub system: String,
    /// The beginning of the answer, given to the model: `Best option:(`. Not part of the reply.
    pub answer_prefix: String,
    /// Asks as the reference's `generate_answer` does: the answer follows the question without a space
    /// ([`AnswerStart`](tpo_data::prompts::AnswerStart)) and has at least one token.
    pub answer_joined: bool,
}

impl Question {
    /// A question in words only.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Adds a box.
    pub fn with_box(mut self, area: BoxXyxy) -> Self {
        self.boxes.push(area);
        self
    }

    /// Calls a task whatever the model says.
    pub fn with_task(mut self, task: impl Into<String>) -> Self {
        self.tasks.push(task.into());
        self
    }
}

/// A model, its tokenizer, what it is looking at and what was said.
#[derive(Debug)]
pub struct Session<H = BuiltInHeads> {
    model: Tpo<H>,
    config: TpoConfig,
    tokenizer: Arc<Tokenizer>,
    /// Ids that end an answer ([`TpoConfig::ends`]).
    ends: Vec<u32>,
    /// Towers of the temporal head, and what it reads of them.
    towers: Option<TemporalTowers>,
    needs: FeatureNeeds,
    /// The tokenizer's files, to be written beside the weights.
    pub(crate) tokenizer_files: Vec<(String, Vec<u8>)>,
    device: Device,
    options: SessionOptions,
    /// What is being looked at: a video or images, whose frames are read as they are needed.
    looking: Option<Looking>,
    history: History,
}

/// What was said since the media was loaded.
#[derive(Debug, Default)]
struct History {
    turns: Vec<Turn>,
    /// Their answers as ids, with the task tokens after their calls.
    answers: Vec<Vec<u32>>,
    /// Boxes of their questions, in order; their marks stand in the text.
    boxes: Vec<BoxXyxy>,
}

impl<H: HeadSet> Session<H> {
    /// Puts a model and a tokenizer together.
    ///
    /// # Errors
    /// When the tokenizer does not hold the task tokens under the ids the model has for them, or lacks the
    /// token that ends an answer.
    pub fn new(
        model: Tpo<H>,
        config: TpoConfig,
        tokenizer: impl Into<Arc<Tokenizer>>,
        device: &Device,
        options: SessionOptions,
    ) -> Result<Self> {
        config.validate::<H>()?;
        let tokenizer = tokenizer.into();
        let tokens = model.registry().tokens();
        let tokens = tokens.map(|t| (t.token.as_str(), t.id));
        vocabulary::check(tokens, &tokenizer, &model.llm)?;
        let given = options.towers.as_ref();
        Ok(Self {
            towers: TemporalTowers::read_by(&model, &tokenizer, &config, given)?,
            needs: FeatureNeeds::of(&config),
            ends: config.ends(&tokenizer)?,
            model,
            config,
            tokenizer,
            tokenizer_files: Vec::new(),
            device: device.clone(),
            options,
            looking: None,
            history: History::default(),
        })
    }

    /// A session of the same tokenizer and options over other weights, which has seen nothing yet.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_model(&self, model: Tpo<H>) -> Result<Self> {
        let mut session = Self::new(
            model,
            self.config.clone(),
            self.tokenizer.clone(),
            &self.device,
            self.options.clone(),
        )?;
        session.tokenizer_files = self.tokenizer_files.clone();
        Ok(session)
    }

    /// The model.
    pub fn model(&self) -> &Tpo<H> {
        &self.model
    }

    /// Sizes and tasks of the model.
    pub fn config(&self) -> &TpoConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How it reads and answers.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// When it calls heads: as the options say, else as the model does.
    pub fn call_order(&self) -> CallOrder {
        self.options.call_order.unwrap_or(self.config.call_order)
    }

    /// Which frames of a video it looks at: as the options say, else as the model does.
    pub fn sampling(&self) -> FrameSampling {
        self.options.sampling.unwrap_or(self.config.input.sampling)
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What is being looked at; of several images the first, which heads look at too.
    pub fn media(&self) -> Option<&Media> {
        self.looking.as_ref().map(|l| &l.media)
    }

    /// What was said since the media was loaded.
    pub fn history(&self) -> &[Turn] {
        &self.history.turns
    }

    /// Forgets the conversation and keeps the media.
    pub fn clear_history(&mut self) {
        self.history = History::default();
    }
}
