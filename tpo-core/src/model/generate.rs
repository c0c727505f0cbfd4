//! Answering: token by token, with the heads called on the way; several questions at once.

use std::collections::VecDeque;

use burn::tensor::{Device, Tensor, TensorData};

use super::{Slot, TpoModel, scatter_rows};
use crate::cancel::CancelToken;
use crate::error::{CoreError, Result};
use crate::head::{HeadContext, HeadSet, Sample, TaskOutput};
use crate::ops::{activation_dtype, indices};
use crate::threads::in_pool;
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
    /// Looked at before every token.
    pub cancel: CancelToken,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 20,
            stop: vec![2],
            call_order: CallOrder::default(),
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

/// A question of a batch.
#[derive(Debug, Clone)]
pub struct GenerateRow<S> {
    /// Embeddings of its prompt `[1, length, d_llm]` (see [`TpoModel::embed`]).
    pub prompt: Tensor<3>,
    /// What heads are told of it.
    pub sample: Sample,
    /// Tasks to call at the start of the answer, whatever the model would say: their routing
    /// tokens are put first, as if the model had emitted them.
    pub force: Vec<String>,
    /// Picks the next token from the logits and the tokens generated so far.
    pub choose: S,
}

/// What a row feeds next.
enum Input {
    Token(u32),
    /// The task token of this name.
    Task(String),
}

/// A row whose answer has not ended.
struct Running<S> {
    /// Its place in the batch that was given.
    row: usize,
    sample: Sample,
    choose: S,
    /// Tokens that are chosen already.
    forced: VecDeque<u32>,
    tokens: Vec<u32>,
    /// Most tokens.
    most: usize,
    /// Fed one by one before the next token is chosen.
    inputs: VecDeque<Input>,
    /// Whether no further token is chosen.
    ended: bool,
}

/// Running answers: an iterator over [`GenerateEvent`]s, each with the row it is of. Events of a row
/// come in order.
///
/// An error of a row (of its sampler, of a head) ends that row only. One of the language model, or
/// a cancellation, is an error of the iterator and ends all. What a head lacks is no error
/// ([`GenerateEvent::Unanswered`]).
pub struct Generate<'a, V, C, L: LanguageModel, H, S> {
    model: &'a TpoModel<V, C, L, H>,
    options: GenerateOptions,
    cache: L::Cache,
    device: Device,
    /// Of the last position of every running row `[running, d_llm]`.
    hidden: Tensor<2>,
    running: Vec<Running<S>>,
    queue: VecDeque<(usize, Result<GenerateEvent>)>,
}

impl<V, C, L, H> TpoModel<V, C, L, H>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    /// Starts the answers to the questions of a batch, each of which goes on as it would alone.
    /// Shorter prompts are padded on the left.
    ///
    /// # Errors
    /// [`CoreError::Shape`] without a question, and for a prompt that is empty or a batch itself;
    /// [`CoreError::Task`] for a forced task that is not registered.
    pub fn generate<'a, S>(
        &'a self,
        rows: Vec<GenerateRow<S>>,
        options: GenerateOptions,
    ) -> Result<Generate<'a, V, C, L, H, S>>
    where
        S: FnMut(&[f32], &[u32]) -> Result<u32> + Send,
    {
        let d = self.llm.dim();
        let shapes: Vec<[usize; 3]> = rows.iter().map(|row| row.prompt.dims()).collect();
        let wrong = |s: &&[usize; 3]| s[0] != 1 || s[1] == 0 || s[2] != d;
        if let Some(found) = shapes
            .iter()
            .find(wrong)
            .or(shapes.is_empty().then_some(&[0; 3]))
        {
            return Err(CoreError::Shape {
                place: "TpoModel::generate",
                what: "prompt embeddings",
                expected: format!("at least one prompt, each [1, length > 0, {d}]"),
                found: found.to_vec(),
            });
        }
        let length = shapes.iter().map(|s| s[1]).max().unwrap_or(0);
        let (mut prompts, mut mask, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for (i, row) in rows.into_iter().enumerate() {
            let own = shapes[i][1];
            mask.push((0..length).map(|at| at >= length - own).collect());
            prompts.push(padded(row.prompt, length));
            let forced = row.force.iter();
            let forced = forced.map(|task| Ok(self.registry().require(task)?.routing.id));
            // An absurd number would only take memory.
            let room = self.llm.max_length().saturating_sub(own).max(1);
            let most = options.max_new_tokens.min(room);
            running.push(Running {
                row: i,
                forced: forced.collect::<Result<_>>()?,
                sample: row.sample,
                choose: row.choose,
                tokens: Vec::new(),
                most,
                inputs: VecDeque::new(),
                ended: most == 0,
            });
        }
        let prompts = match prompts.len() {
            1 => prompts.remove(0),
            _ => Tensor::cat(prompts, 0),
        };
        let most = running.iter().map(|row| row.most).max().unwrap_or(0);
        let capacity = cache_positions(length, most);
        let device = prompts.device();
        let mut cache = self.llm.cache(running.len(), capacity, &device);
        let hidden = in_pool(|| self.llm.step(prompts, Some(&mask), &mut cache))?;
        Ok(Generate {
            hidden: hidden.narrow(1, length - 1, 1).reshape([running.len(), d]),
            model: self,
            options,
            cache,
            device,
            running,
            queue: VecDeque::new(),
        })
    }
}

/// Positions of the cache that [`TpoModel::generate`] makes for prompts of up to `prompt` tokens and
/// answers of up to `answer`.
pub fn cache_positions(prompt: usize, answer: usize) -> usize {
    // Every new token may call a head that keeps its task token; one more for a side step.
    answer
        .saturating_mul(2)
        .saturating_add(prompt)
        .saturating_add(1)
}

/// A prompt `[1, length, d_llm]` with zeros in front, up to `length`.
fn padded(prompt: Tensor<3>, length: usize) -> Tensor<3> {
    let [_, own, d] = prompt.dims();
    if own == length {
        return prompt;
    }
    let zeros = Tensor::zeros([1, length - own, d], (&prompt.device(), prompt.dtype()));
    Tensor::cat(vec![zeros, prompt], 1)
}

impl<V, C, L, H, S> Generate<'_, V, C, L, H, S>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
    S: FnMut(&[f32], &[u32]) -> Result<u32> + Send,
{
    /// One position further with every row: those that have fed everything choose a token, those
    /// that have ended drop out, and what is left goes through the language model together.
    fn advance(&mut self) -> Result<()> {
        self.options.cancel.check()?;
        self.choose_next()?;
        let left: Vec<usize> = (0..self.running.len())
            .filter(|i| !self.running[*i].inputs.is_empty())
            .collect();
        if left.len() < self.running.len() {
            self.running.retain(|row| !row.inputs.is_empty());
            if left.is_empty() {
                return Ok(());
            }
            self.cache.select(&left);
        }
        self.feed()
    }

    fn choose_next(&mut self) -> Result<()> {
        let rows = self.running.iter().enumerate();
        let due = rows.filter(|(_, row)| row.inputs.is_empty() && !row.ended);
        let due: Vec<usize> = due.map(|(i, _)| i).collect();
        let free = |i: &usize| self.running[*i].forced.is_empty();
        let free: Vec<usize> = due.iter().copied().filter(free).collect();
        let logits = self.logits(&free)?;
        let mut logits = logits.chunks_exact(self.model.llm.vocab_size());
        for i in due {
            let row = &mut self.running[i];
            let chosen = match row.forced.pop_front() {
                Some(token) => Ok(token),
                None => (row.choose)(logits.next().unwrap_or_default(), &row.tokens),
            };
            match chosen {
                Ok(token) => self.emit(i, token),
                Err(e) => self.fail(i, e),
            }
        }
        Ok(())
    }

    /// Logits of some of the running rows, one after the other.
    fn logits(&self, rows: &[usize]) -> Result<Vec<f32>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let [all, d] = self.hidden.dims();
        let mut hidden = self.hidden.clone();
        if rows.len() < all {
            hidden = hidden.select(0, indices(rows.iter().copied(), &self.device));
        }
        // Half-precision logits would have ties.
        let dtype = activation_dtype(&hidden);
        let hidden = hidden.cast(dtype).reshape([rows.len(), 1, d]);
        let logits = self.model.llm.logits(hidden);
        let logits = logits.into_data().convert::<f32>().try_into_vec();
        logits.map_err(|e| CoreError::Prompt {
            why: format!("logits could not be read: {e:?}"),
        })
    }

    /// A token is out; what it makes its row feed.
    fn emit(&mut self, i: usize, token: u32) {
        let row = &mut self.running[i];
        row.tokens.push(token);
        row.ended = self.options.stop.contains(&token) || row.tokens.len() >= row.most;
        self.queue
            .push_back((row.row, Ok(GenerateEvent::Token(token))));
        let task = self.model.registry().by_routing(token);
        let task = task.map(|t| t.name.clone());
        let (called, without_head) = match task {
            Some(task) if self.model.task_token(&task).is_some() => (Some(task), None),
            task => (None, task),
        };
        if let Some(task) = without_head {
            let token = row.tokens.len() - 1;
            self.queue
                .push_back((row.row, Ok(GenerateEvent::NoHead { task, token })));
        }
        let order = self.options.call_order;
        let calls_after = called.is_some() && order == CallOrder::AsTrained;
        // The last token is read by nobody but the task token after it.
        let token = (!row.ended || calls_after).then_some(Input::Token(token));
        let called = called.map(Input::Task);
        match order {
            CallOrder::AsReference => row.inputs.extend(called.into_iter().chain(token)),
            CallOrder::AsTrained => row.inputs.extend(token.into_iter().chain(called)),
        }
    }

    /// The next input of every row through the language model, and the heads that are called.
    fn feed(&mut self) -> Result<()> {
        let (n, d) = (self.running.len(), self.model.llm.dim());
        let (mut ids, mut slots, mut calls) = (vec![0_i64; n], Vec::new(), Vec::new());
        for (i, row) in self.running.iter_mut().enumerate() {
            match row.inputs.pop_front() {
                Some(Input::Token(id)) => ids[i] = id.into(),
                Some(Input::Task(task)) => {
                    if let Some(embedding) = self.model.task_token(&task) {
                        slots.push(Slot::new(&task, vec![i], embedding.reshape([1, d])));
                        calls.push((i, task));
                    }
                }
                None => {}
            }
        }
        let ids = Tensor::from_data(TensorData::new(ids, [n, 1]), &self.device);
        let embeds = scatter_rows(self.model.llm.embed(ids), slots)?;
        let hidden = self.model.llm.step(embeds, None, &mut self.cache)?;
        self.hidden = hidden.reshape([n, d]);
        if self.options.call_order == CallOrder::AsReference {
            let called: Vec<usize> = calls.iter().map(|(i, _)| *i).collect();
            self.cache.take_back(&called);
        }
        for (i, task) in calls {
            let embedding = self.hidden.clone().narrow(0, i, 1);
            if let Err(e) = self.call(i, task, embedding) {
                self.fail(i, e);
            }
        }
        Ok(())
    }

    fn call(&mut self, i: usize, task: String, embedding: Tensor<2>) -> Result<()> {
        let row = &self.running[i];
        let context = HeadContext {
            samples: std::slice::from_ref(&row.sample),
            rows: &[0],
        };
        let token = row.tokens.len() - 1;
        let head = self.model.heads.head(&task);
        let answers = head.map(|head| head.predict(embedding.clone(), &context));
        let answers = match answers.transpose() {
            Ok(answers) => answers.unwrap_or_default(),
            Err(e) if e.is_missing() => {
                let why = e.to_string();
                let event = GenerateEvent::Unanswered { task, token, why };
                self.queue.push_back((row.row, Ok(event)));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let event = match answers.into_iter().next() {
            Some((value, drawing)) => GenerateEvent::Task {
                output: TaskOutput::new(task, token, value, drawing),
                embedding,
            },
            None => GenerateEvent::NoHead { task, token },
        };
        self.queue.push_back((row.row, Ok(event)));
        Ok(())
    }

    /// Ends a row with an error.
    fn fail(&mut self, i: usize, error: CoreError) {
        let row = &mut self.running[i];
        row.inputs.clear();
        row.ended = true;
        self.queue.push_back((row.row, Err(error)));
    }
}

impl<V, C, L, H, S> Iterator for Generate<'_, V, C, L, H, S>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
    S: FnMut(&[f32], &[u32]) -> Result<u32> + Send,
{
    type Item = Result<(usize, Result<GenerateEvent>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            if self.running.is_empty() {
                return None;
            }
            if let Err(e) = in_pool(|| self.advance()) {
                self.running.clear();
                self.queue.clear();
                return Some(Err(e));
            }
        }
    }
}
