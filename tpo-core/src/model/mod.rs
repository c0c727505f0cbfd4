//! The assembled model: *vision encoder → connector → language model → task heads*.
//!
//! Figure 2 of the paper in one file: [`TpoModel`] holds the four parts and the task tokens,
//! [`TpoModel::embed`] puts visual and task embeddings into their slots, [`TpoModel::forward`]
//! runs the language model and the heads and sums their losses, [`TpoModel::generate`] answers
//! one question or several at once.

mod batch;
mod evaluate;
mod generate;
mod scatter;
mod task_tokens;
mod visual;

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

pub use batch::{IGNORE_LABEL, TokenBatch, TpoBatch};
pub use evaluate::{Evaluation, LanguageScore};
pub use generate::{
    CallOrder, Generate, GenerateEvent, GenerateOptions, GenerateRow, cache_positions,
};
pub use scatter::{Slot, scatter_rows};
pub use task_tokens::TaskTokenSet;

use crate::error::{CoreError, Result};
use crate::geometry::BoxXyxy;
use crate::gradient_checkpointing::Tape;
use crate::head::{AnyHead, HeadContext, HeadSet, HeadSpec, LossTerms, Sample};
use crate::ops::indices;
use crate::token::TaskRegistry;
use crate::traits::{Connector, LanguageModel, VisionEncoder, VisualRows};

/// A video language model with task heads.
#[derive(Module, Debug)]
pub struct TpoModel<V, C, L, H> {
    /// Frames to visual tokens.
    pub vision: V,
    /// Visual tokens to embeddings of the language model.
    pub connector: C,
    /// The language model.
    pub llm: L,
    /// The task heads.
    pub heads: H,
    /// One learnable task token `[1, 1, d_llm]` per head.
    pub task_tokens: TaskTokenSet,
    #[module(skip)]
    registry: TaskRegistry,
}

/// What [`TpoModel::forward`] computes.
#[derive(Debug, Clone)]
pub struct TpoOutput {
    /// Input embeddings after all slots were filled `[batch, length, d_llm]`.
    pub embeds: Tensor<3>,
    /// Last hidden states, after the final norm `[batch, length, d_llm]`.
    pub hidden: Tensor<3>,
    /// Cross entropy of the language model `[1]`; `None` when no position has a label.
    pub lm_loss: Option<Tensor<1>>,
    /// Loss terms per head that fired and had targets.
    pub head_losses: Vec<(String, LossTerms)>,
}

impl TpoOutput {
    /// Language-model loss plus every head's weighted terms `[1]`.
    pub fn total(&self) -> Option<Tensor<1>> {
        self.lm_loss
            .clone()
            .into_iter()
            .chain(self.head_losses.iter().filter_map(|(_, t)| t.total()))
            .reduce(|a, b| a + b)
    }
}

/// A head, the hidden states at its task tokens, and the rows of the batch these are in.
type HeadCall<'a> = (&'a dyn AnyHead, Tensor<2>, Vec<usize>);

impl<V, C, L, H> TpoModel<V, C, L, H>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    /// Assembles a model and draws its task tokens (standard normal, as the reference does).
    ///
    /// The registry may name tasks for which there is no head.
    ///
    /// # Errors
    /// [`CoreError::Task`] when a head is not in the registry or is there with other tokens.
    pub fn new(
        vision: V,
        connector: C,
        llm: L,
        heads: H,
        registry: TaskRegistry,
        device: &Device,
    ) -> Result<Self> {
        let specs = H::specs();
        for spec in &specs {
            let task = registry.require(&spec.name)?;
            if task.routing.token != spec.routing || task.placeholder.token != spec.placeholder {
                return Err(CoreError::Task {
                    name: spec.name.clone(),
                    why: format!(
                        "the head says {} {}, the registry {} {}",
                        spec.routing, spec.placeholder, task.routing.token, task.placeholder.token
                    ),
                    known: names(&specs),
                });
            }
        }
        let d_llm = llm.dim();
        let own = |name: &String| specs.iter().any(|s| s.name == *name);
        let order = registry.tasks().iter().map(|t| t.name.clone());
        Ok(Self {
            vision,
            connector,
            llm,
            heads,
            task_tokens: TaskTokenSet::init(order.filter(own), d_llm, device),
            registry,
        })
    }

    /// Tasks and tokens of this model.
    pub fn registry(&self) -> &TaskRegistry {
        &self.registry
    }

    /// The learnable token `[1, 1, d_llm]` of a task, if the model has its head.
    pub fn task_token(&self, task: &str) -> Option<Tensor<3>> {
        self.task_tokens.get(task).map(|t| t.val())
    }

    /// Embeds ids and fills the slots: visual embeddings, encoded boxes, task tokens.
    ///
    /// The embedding table gets no gradient from here, as in the reference.
    ///
    /// # Shapes
    /// - visual: rows of width `d_llm`, visuals in the order of their slots
    /// - output `[batch, length, d_llm]`
    ///
    /// # Errors
    /// [`CoreError::SlotCount`] when slots and embeddings differ in number.
    pub fn embed(
        &self,
        tokens: &TokenBatch,
        visual: Option<VisualRows>,
        boxes: &[Vec<BoxXyxy>],
        device: &Device,
    ) -> Result<Tensor<3>> {
        let base = self.llm.embed(tokens.ids_tensor(device)).detach();
        // A frozen table may be off the autodiff device; what is built on its rows is not.
        let base = match device.gradient_checkpointing_strategy() {
            Some(strategy) => base
                .autodiff()
                .with_gradient_checkpointing_strategy(strategy),
            None => base,
        };
        let d_llm = self.llm.dim();
        let mut slots = Vec::new();

        let at = tokens.visual_slots();
        match visual {
            Some(visual) => {
                visual.check_slots(&tokens.visual)?;
                slots.push(Slot::new("visual slots", at, visual.rows));
            }
            None if !at.is_empty() => {
                return Err(CoreError::SlotCount {
                    what: "visual slots".into(),
                    slots: at.len(),
                    found: 0,
                });
            }
            None => {}
        }
        if let Some(slot) = self.box_slot(tokens, boxes, base.dtype(), device)? {
            slots.push(slot);
        }
        for (name, token) in self.task_tokens.iter() {
            let task = self.registry.require(name)?;
            let at = tokens.positions_of(task.placeholder.id);
            if !at.is_empty() {
                slots.push(Slot::repeated(
                    &task.placeholder.token,
                    at,
                    token.val().reshape([1, d_llm]),
                ));
            }
        }
        scatter_rows(base, slots)
    }

    /// Per-sample box prompts. (The reference encodes the first sample's boxes for every row.)
    fn box_slot(
        &self,
        tokens: &TokenBatch,
        boxes: &[Vec<BoxXyxy>],
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Slot>> {
        let Some(prompt) = &self.registry.box_prompt else {
            return if boxes.iter().all(Vec::is_empty) {
                Ok(None)
            } else {
                Err(CoreError::SlotCount {
                    what: "box prompts (the model has no box placeholder)".into(),
                    slots: 0,
                    found: boxes.iter().map(Vec::len).sum(),
                })
            };
        };
        for (row, ids) in tokens.ids.iter().enumerate() {
            let slots = ids.iter().filter(|id| **id == prompt.id).count();
            let found = boxes.get(row).map_or(0, Vec::len);
            if slots != found {
                return Err(CoreError::SlotCount {
                    what: format!("`{}` in sample {row}", prompt.token),
                    slots,
                    found,
                });
            }
        }
        let flat: Vec<f32> = boxes.iter().flatten().flat_map(|b| b.to_array()).collect();
        if flat.is_empty() {
            return Ok(None);
        }
        let n = flat.len() / 4;
        let values = Tensor::<2>::from_data(TensorData::new(flat, [n, 4]), device).cast(dtype);
        let rows = self
            .heads
            .encode_boxes(values)
            .ok_or_else(|| CoreError::MissingInput {
                head: "box prompt".into(),
                what: "a head that encodes boxes",
                hint: "add one to the model",
            })?;
        Ok(Some(Slot::new(
            &prompt.token,
            tokens.positions_of(prompt.id),
            rows,
        )))
    }

    /// Training forward: embeddings, hidden states, language-model loss and head losses.
    ///
    /// A head without a task token in the batch, or without targets, is not run.
    pub fn forward(&self, batch: TpoBatch, samples: &[Sample]) -> Result<TpoOutput> {
        self.forward_with(batch, samples, None)
    }

    /// [`TpoModel::forward`] whose blocks become segments of a tape, if one is given; call
    /// [`Tape::backward`] on the loss then.
    pub fn forward_with<'m>(
        &'m self,
        batch: TpoBatch,
        samples: &[Sample],
        tape: Option<&mut Tape<'m>>,
    ) -> Result<TpoOutput> {
        let mut batch = batch;
        let (embeds, hidden) = self.run(&mut batch, tape)?;
        let lm_loss = batch
            .labels
            .as_ref()
            .map(|labels| self.lm_loss(hidden.clone(), labels))
            .transpose()?
            .flatten();

        let mut head_losses = Vec::new();
        for (head, embeddings, rows) in self.called_heads(&batch.tokens, &hidden)? {
            let context = HeadContext {
                samples,
                rows: &rows,
            };
            if let Some(terms) = head.any_loss(embeddings, &batch.targets, &context)? {
                head_losses.push((head.name().to_string(), terms));
            }
        }
        Ok(TpoOutput {
            embeds,
            hidden,
            lm_loss,
            head_losses,
        })
    }

    /// Embeddings of a batch and the hidden states the language model makes of them. The visuals
    /// are taken out of the batch.
    fn run<'m>(
        &'m self,
        batch: &mut TpoBatch,
        mut tape: Option<&mut Tape<'m>>,
    ) -> Result<(Tensor<3>, Tensor<3>)> {
        batch.tokens.check()?;
        let visuals = std::mem::take(&mut batch.visuals);
        let instruction = batch.instruction.as_ref();
        let visual = self.encode_with(visuals, instruction, tape.as_deref_mut())?;
        let embeds = self.embed(&batch.tokens, visual, &batch.boxes, &batch.device)?;
        let mask = Some(batch.tokens.mask.as_slice());
        let inputs = embeds.clone();
        let hidden = match (batch.tokens.packed_turns(), tape) {
            (Some(turns), tape) => self.llm.hidden_packed(inputs, mask, turns, tape)?,
            (None, Some(tape)) => self.llm.hidden_checkpointed(inputs, mask, tape)?,
            (None, None) => self.llm.hidden(inputs, mask)?,
        };
        Ok((embeds, hidden))
    }

    /// The heads that a batch calls, in the order of the task tokens, each with the hidden states
    /// at its task tokens and the rows these are in.
    fn called_heads(&self, tokens: &TokenBatch, hidden: &Tensor<3>) -> Result<Vec<HeadCall<'_>>> {
        let [b, s, d] = hidden.dims();
        let mut calls = Vec::new();
        for (name, _) in self.task_tokens.iter() {
            let at = tokens.positions_of(self.registry.require(name)?.placeholder.id);
            if let Some(head) = self.heads.head(name)
                && !at.is_empty()
            {
                let rows = at.iter().map(|p| p / s).collect();
                let flat = hidden.clone().reshape([b * s, d]);
                let embeddings = flat.select(0, indices(at, &hidden.device()));
                calls.push((head, embeddings, rows));
            }
        }
        Ok(calls)
    }

    /// Cross entropy of the next token, shifted by one, mean over the labelled positions, in f32.
    ///
    /// Logits are computed only where there is a label. `None` without labels.
    pub fn lm_loss(&self, hidden: Tensor<3>, labels: &[Vec<i64>]) -> Result<Option<Tensor<1>>> {
        let labelled = self.labelled_logits(hidden, labels)?;
        Ok(labelled.map(|(logits, targets)| cross_entropy(logits, &targets).mean()))
    }

    /// Logits `[labels, vocab]` in f32 of the positions before a label, and the labels.
    fn labelled_logits(
        &self,
        hidden: Tensor<3>,
        labels: &[Vec<i64>],
    ) -> Result<Option<(Tensor<2>, Vec<usize>)>> {
        let [b, s, d] = hidden.dims();
        if labels.len() != b || labels.iter().any(|r| r.len() != s) {
            return Err(CoreError::Shape {
                place: "TpoModel::lm_loss",
                what: "labels",
                expected: format!("[{b}, {s}]"),
                found: labels.iter().map(Vec::len).collect(),
            });
        }
        let vocab = self.llm.vocab_size();
        let (mut at, mut targets) = (Vec::new(), Vec::new());
        for (row, labels) in labels.iter().enumerate() {
            for (t, label) in labels.iter().enumerate().skip(1) {
                if *label == IGNORE_LABEL {
                    continue;
                }
                if *label < 0 || *label as usize >= vocab {
                    return Err(CoreError::Shape {
                        place: "TpoModel::lm_loss",
                        what: "label id",
                        expected: format!("0..{vocab} or {IGNORE_LABEL}"),
                        found: vec![*label as usize],
                    });
                }
                at.push(row * s + t - 1);
                targets.push(*label as usize);
            }
        }
        if at.is_empty() {
            return Ok(None);
        }
        let device = hidden.device();
        let n = at.len();
        let rows = hidden
            .reshape([b * s, d])
            .select(0, indices(at, &device))
            .reshape([1, n, d]);
        let logits = self
            .llm
            .logits(rows)
            .cast(FloatDType::F32)
            .reshape([n, vocab]);
        Ok(Some((logits, targets)))
    }
}

fn names(specs: &[HeadSpec]) -> String {
    let names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    names.join(", ")
}

/// Cross entropy `[n]` of logits `[n, classes]`.
fn cross_entropy(logits: Tensor<2>, targets: &[usize]) -> Tensor<1> {
    let n = targets.len();
    let targets = indices(targets.iter().copied(), &logits.device()).reshape([n, 1]);
    let chosen = log_softmax(logits, 1).gather(1, targets);
    chosen.neg().reshape([n])
}
