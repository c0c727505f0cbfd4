//! Answering: token by token, with the heads called on the way.

use std::collections::VecDeque;

use burn::tensor::{Device, Tensor, TensorData};

use super::TpoModel;
use crate::cancel::CancelToken;
use crate::error::{CoreError, Result};
use crate::head::{HeadContext, HeadSet, Sample, TaskOutput};
use crate::traits::{Connector, DecodeCache, LanguageModel, VisionEncoder};

/// When a head is called relative to the routing token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOrder {
    /// As the published code runs it: the task token is fed on top of a cache that does **not**
    /// hold the routing token yet, and is taken back afterwards. The checkpoint's published
    /// results were made this way.
    #[default]
    AsReference,
    /// As the model was trained: routing token, then task token, and both stay in the context.
    AsTrained,
}

/// How to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens to generate (the reference stops at 20).
    pub max_new_tokens: usize,
    /// Ids that end the answer; they are emitted.
    pub stop: Vec<u32>,
    /// When heads are called.
    pub call_order: CallOrder,
    /// Tasks to call at the start of the answer, whatever the model would say: their routing
    /// tokens are put first, as if the model had emitted them.
    pub force: Vec<String>,
    /// Looked at before every token.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 20,
            stop: vec![2],
            call_order: CallOrder::default(),
            force: Vec::new(),
            cancel: CancelToken::new(),
        }
    }
}

/// A step of the answer.
// Events are handed over one at a time, so their size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub enum GenerateEvent {
    /// A token.
    Token(u32),
    /// A head answered.
    Task {
        /// Its prediction.
        output: TaskOutput,
        /// The task embedding `[1, d_llm]` that drove the head.
        embedding: Tensor<2>,
    },
    /// The model called a task for which it has no head.
    NoHead {
        /// Name of the task.
        task: String,
        /// Index of the routing token among the generated tokens.
        token: usize,
    },
    /// A head could not answer because something that it needs from outside was not there
    /// ([`CoreError::is_missing`]). The text continues as if it had answered.
    Unanswered {
        /// Name of the task.
        task: String,
        /// Index of the routing token among the generated tokens.
        token: usize,
        /// What is missing and how to supply it.
        why: String,
    },
}

/// A running answer: an iterator over [`GenerateEvent`]s. After an error it ends; what a head lacks
/// is no error ([`GenerateEvent::Unanswered`]).
pub struct Generate<'a, V, C, L: LanguageModel, H, S> {
    model: &'a TpoModel<V, C, L, H>,
    sample: Sample,
    options: GenerateOptions,
    choose: S,
    cache: L::Cache,
    device: Device,
    hidden: Option<Tensor<2>>,
    tokens: Vec<u32>,
    forced: VecDeque<u32>,
    queue: VecDeque<GenerateEvent>,
    done: bool,
}

impl<V, C, L, H> TpoModel<V, C, L, H>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    /// Starts an answer to prompt embeddings `[1, length, d_llm]` (see [`TpoModel::embed`]).
    ///
    /// `choose` picks the next token from the logits and the tokens generated so far.
    ///
    /// # Errors
    /// [`CoreError::Shape`] for a batch other than one or an empty prompt, [`CoreError::Task`] for
    /// a forced task that is not registered.
    pub fn generate<'a, S>(
        &'a self,
        prompt: Tensor<3>,
        sample: Sample,
        options: GenerateOptions,
        choose: S,
    ) -> Result<Generate<'a, V, C, L, H, S>>
    where
        S: FnMut(&[f32], &[u32]) -> Result<u32>,
    {
        let [batch, length, _] = prompt.dims();
        if batch != 1 || length == 0 {
            return Err(CoreError::Shape {
                place: "TpoModel::generate",
                what: "prompt embeddings",
                expected: "[1, length > 0, d_llm]".into(),
                found: prompt.dims().to_vec(),
            });
        }
        let forced = options
            .force
            .iter()
            .map(|task| Ok(self.registry().require(task)?.routing.id))
            .collect::<Result<VecDeque<u32>>>()?;
        // An absurd number would be memory for nothing.
        let room = self.llm.max_length().saturating_sub(length).max(1);
        let mut options = options;
        options.max_new_tokens = options.max_new_tokens.min(room);
        // Every new token may call a head that keeps its task token; one more for a side step.
        let capacity = options
            .max_new_tokens
            .saturating_mul(2)
            .saturating_add(length + 1);
        let device = prompt.device();
        let mut cache = self.llm.cache(1, capacity, &device);
        let hidden = self.llm.step(prompt, None, &mut cache)?;
        Ok(Generate {
            model: self,
            sample,
            done: options.max_new_tokens == 0,
            options,
            choose,
            cache,
            device,
            hidden: Some(last(hidden)),
            tokens: Vec::new(),
            forced,
            queue: VecDeque::new(),
        })
    }
}

/// The last position of `[1, length, d]` as `[1, d]`.
fn last(hidden: Tensor<3>) -> Tensor<2> {
    let [_, length, d] = hidden.dims();
    hidden
        .slice([0..1, length - 1..length, 0..d])
        .reshape([1, d])
}

impl<V, C, L, H, S> Generate<'_, V, C, L, H, S>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
    S: FnMut(&[f32], &[u32]) -> Result<u32>,
{
    /// Tokens emitted so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn advance(&mut self) -> Result<()> {
        self.options.cancel.check()?;
        let Some(hidden) = self.hidden.take() else {
            self.done = true;
            return Ok(());
        };
        let token = match self.forced.pop_front() {
            Some(token) => token,
            None => self.choose_next(hidden)?,
        };
        self.tokens.push(token);
        self.queue.push_back(GenerateEvent::Token(token));
        let ends =
            self.options.stop.contains(&token) || self.tokens.len() >= self.options.max_new_tokens;
        let task = self
            .model
            .registry()
            .by_routing(token)
            .map(|t| t.name.clone());

        if let Some(task) = task {
            let embedding = self.model.task_token(&task);
            match (embedding, self.options.call_order) {
                (None, _) => {
                    self.queue.push_back(GenerateEvent::NoHead {
                        task,
                        token: self.tokens.len() - 1,
                    });
                }
                (Some(embedding), CallOrder::AsReference) => {
                    let mark = self.cache.len();
                    let side = self.model.llm.step(embedding, None, &mut self.cache)?;
                    self.cache.truncate(mark);
                    self.call(task, last(side))?;
                }
                (Some(embedding), CallOrder::AsTrained) => {
                    self.feed(token)?;
                    let hidden = last(self.model.llm.step(embedding, None, &mut self.cache)?);
                    self.call(task, hidden.clone())?;
                    self.hidden = Some(hidden);
                    self.done = ends;
                    return Ok(());
                }
            }
        }
        if ends {
            self.done = true;
        } else {
            let hidden = self.feed(token)?;
            self.hidden = Some(hidden);
        }
        Ok(())
    }

    fn choose_next(&mut self, hidden: Tensor<2>) -> Result<u32> {
        let [_, d] = hidden.dims();
        let logits: Vec<f32> = self
            .model
            .llm
            .logits(hidden.reshape([1, 1, d]))
            .into_data()
            .convert::<f32>()
            .try_into_vec()
            .map_err(|e| CoreError::Prompt {
                why: format!("logits could not be read: {e:?}"),
            })?;
        (self.choose)(&logits, &self.tokens)
    }

    /// Feeds an emitted token and returns its hidden state `[1, d]`.
    fn feed(&mut self, token: u32) -> Result<Tensor<2>> {
        let ids = Tensor::from_data(TensorData::new(vec![token as i64], [1, 1]), &self.device);
        let embeds = self.model.llm.embed(ids);
        self.model.llm.step(embeds, None, &mut self.cache).map(last)
    }

    fn call(&mut self, task: String, embedding: Tensor<2>) -> Result<()> {
        let context = HeadContext {
            samples: std::slice::from_ref(&self.sample),
            rows: &[0],
        };
        let token = self.tokens.len() - 1;
        let head = self.model.heads.head(&task);
        let answers = head.map(|head| head.predict(embedding.clone(), &context));
        let answers = match answers.transpose() {
            Ok(answers) => answers.unwrap_or_default(),
            Err(e) if e.is_missing() => {
                let why = e.to_string();
                self.queue
                    .push_back(GenerateEvent::Unanswered { task, token, why });
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        self.queue.push_back(match answers.into_iter().next() {
            Some((value, drawing)) => GenerateEvent::Task {
                output: TaskOutput::new(task, token, value, drawing),
                embedding,
            },
            None => GenerateEvent::NoHead { task, token },
        });
        Ok(())
    }
}

impl<V, C, L, H, S> Iterator for Generate<'_, V, C, L, H, S>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
    S: FnMut(&[f32], &[u32]) -> Result<u32>,
{
    type Item = Result<GenerateEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            if self.done {
                return None;
            }
            if let Err(e) = self.advance() {
                self.done = true;
                self.queue.clear();
                return Some(Err(e));
            }
        }
    }
}
