//! Questions that are answered together.

use std::num::NonZeroUsize;

use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::head::{HeadSet, Sample};
use tpo_core::model::{GenerateEvent, GenerateOptions, GenerateRow};
use tpo_llm::sampling::{Sampler, SamplingConfig};

use super::Session;
use super::ask::{Reply, Words};
use crate::error::Result;
use crate::model::Tpo;
use crate::model::memory::{ModelMemory, available_memory};

/// Most questions that [`Session::batch_that_fits`] says: more gain little.
const MOST_AT_ONCE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);

/// Bytes of a model up to which every thread answers questions of its own: about what of it stays in a
/// processor's caches. Threads that answer together read the weights of a larger one only once, and its
/// operations are long enough to be shared.
const SMALL: u64 = 64 << 20;

/// A question as the model reads it, with what it needs of the media it is about.
#[derive(Debug, Clone)]
pub struct PreparedQuestion {
    /// `[1, length, d_llm]`.
    pub(super) prompt: Tensor<3>,
    pub(super) tasks: Vec<String>,
    /// Whether the answer has at least one token.
    pub(super) not_empty: bool,
    pub(super) sample: Sample,
    /// The text with the marks of its boxes.
    pub(super) text: String,
}

/// Running answers: what happens in which row.
pub(super) type Run<'a> =
    Box<dyn Iterator<Item = tpo_core::Result<(usize, tpo_core::Result<GenerateEvent>)>> + 'a>;

/// Starts the answers to `questions`, in one batch.
pub(super) fn start<'a, H: HeadSet>(
    model: &'a Tpo<H>,
    questions: Vec<PreparedQuestion>,
    options: GenerateOptions,
    decoding: &SamplingConfig,
) -> Result<Run<'a>> {
    let row = |question: PreparedQuestion| {
        let mut sampler = Sampler::new(decoding.clone())?;
        let not_first = question.not_empty.then(|| options.stop.clone());
        Ok(GenerateRow {
            prompt: question.prompt,
            sample: question.sample,
            force: question.tasks,
            choose: move |logits: &[f32], history: &[u32]| match &not_first {
                Some(ends) if history.is_empty() => {
                    let mut logits = logits.to_vec();
                    for id in ends {
                        if let Some(logit) = logits.get_mut(*id as usize) {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                    Ok(sampler.sample(&logits, history)?)
                }
                _ => Ok(sampler.sample(logits, history)?),
            },
        })
    };
    let rows = questions.into_iter().map(row).collect::<Result<_>>()?;
    Ok(Box::new(model.generate(rows, options)?))
}

impl<H: HeadSet> Session<H> {
    /// How many questions can be answered together in the memory that is left, at most eight. What an
    /// accelerator has left is not known: eight there. What towers of the temporal head will take is kept
    /// free for them.
    ///
    /// # Errors
    /// Those of [`ModelMemory::of`].
    pub fn batch_that_fits(&self) -> Result<NonZeroUsize> {
        let fit = self.questions_that_fit()?;
        Ok(fit.map_or(MOST_AT_ONCE, |fit| fit.min(MOST_AT_ONCE)))
    }

    /// How many questions can be answered together in the memory that is left; `None` on an accelerator
    /// and where the system does not tell.
    ///
    /// # Errors
    /// Those of [`ModelMemory::of`].
    pub fn questions_that_fit(&self) -> Result<Option<NonZeroUsize>> {
        let memory = self.memory()?;
        Ok(self.left(&memory).map(|left| memory.batch(left)))
    }

    /// How many sessions of this model had best answer `batch` questions each at the same time: of a
    /// small one (64 MiB) one for each thread, as far as memory allows; of a larger one, whose operations
    /// take all threads, and on an accelerator one.
    ///
    /// # Errors
    /// Those of [`ModelMemory::of`].
    pub fn side_by_side(&self, batch: NonZeroUsize) -> Result<NonZeroUsize> {
        let memory = self.memory()?;
        if self.device != Device::flex() || memory.weights > SMALL {
            return Ok(NonZeroUsize::MIN);
        }
        let threads = rayon::current_num_threads();
        let each = memory.per_question * batch.get() as u64 + memory.activations;
        let fit = self.left(&memory).map(|left| left / 2 / each.max(1));
        let fit = fit.map_or(threads, |fit| fit.min(threads as u64) as usize);
        Ok(NonZeroUsize::new(fit).unwrap_or(NonZeroUsize::MIN))
    }

    /// What the model takes.
    pub(super) fn memory(&self) -> Result<ModelMemory> {
        let dtype = self.options.dtype.unwrap_or(FloatDType::F32);
        ModelMemory::of::<H>(&self.config, dtype, self.options.max_new_tokens)
    }

    /// Bytes that are left beside a model of these and its towers; `None` on an accelerator and where the
    /// system does not tell.
    fn left(&self, memory: &ModelMemory) -> Option<u64> {
        if self.device != Device::flex() {
            return None;
        }
        let towers = self.options.towers.as_ref();
        let [open, to_open] = towers.map_or([0; 2], |t| [t.bytes_open(), t.bytes_to_open()]);
        let taken = memory.weights + open;
        let bound = self.options.memory.map(|all| all.saturating_sub(taken));
        let left = bound.into_iter().chain(available_memory()).min();
        left.map(|left| left.saturating_sub(to_open))
    }

    /// Answers questions together, each as if it were asked alone, and in their order. They do not
    /// enter the history.
    ///
    /// On the CPU in f32 an answer has the same words as alone, and the same numbers up to rounding.
    ///
    /// # Errors
    /// Of one question: its own, for example that a head lacks features. Of all: a cancellation, or
    /// what the language model cannot do.
    pub fn answer_together(&self, questions: Vec<PreparedQuestion>) -> Result<Vec<Result<Reply>>> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let mut answers: Vec<(Words<'_>, Result<Reply>)> = questions
            .iter()
            .map(|_| {
                let words = Words::new(&self.tokenizer, self.model.registry(), &self.ends);
                (words, Ok(Reply::default()))
            })
            .collect();
        let run = start(
            &self.model,
            questions,
            self.generate_options(),
            &self.options.decoding,
        )?;
        for event in run {
            let (row, event) = event?;
            let (words, reply) = &mut answers[row];
            let heard = match event {
                Ok(event) => words.hear(event),
                Err(e) => Err(e.into()),
            };
            match (heard, reply.as_mut()) {
                (Ok(Some(event)), Ok(reply)) => reply.add(event),
                (Err(e), Ok(_)) => *reply = Err(e),
                _ => {}
            }
        }
        let finished = answers.into_iter().map(|(mut words, reply)| {
            let mut reply = reply?;
            if let Some(rest) = words.finish()? {
                reply.add(rest);
            }
            Ok(reply)
        });
        Ok(finished.collect())
    }
}
