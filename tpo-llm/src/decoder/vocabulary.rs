//! Rows for new tokens in the embedding table and the output layer.

use std::ops::Range;

use burn::module::Param;
use burn::tensor::kind::Basic;
use burn::tensor::{FloatDType, Tensor};
use tpo_core::nn::Weight;

use super::causal_lm::{CausalLm, OutputLayer};
use crate::error::{LlmError, Result};

/// Rows that are added up at once: bounds the 32-bit copy of a large table.
const CHUNK: usize = 4096;

/// Which ids of a vocabulary have trained rows, and which are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VocabularyRows {
    /// Ids below this one are in use: their rows have been trained.
    pub used: usize,
    /// Ids from `used` up to this one, exclusive, are new. Equal to `used` when none are.
    pub total: usize,
}

impl CausalLm {
    /// Rows of the embedding table and of the output layer, as the weights have them. No weight is
    /// initialised.
    pub fn table_rows(&self) -> [usize; 2] {
        let embedding = self.model.embed_tokens.weight.shape()[0];
        let output = self.lm_head.own().map(|h| h.weight.shape()[0]);
        [embedding, output.unwrap_or(embedding)]
    }

    /// Gives the new ids of `rows` a row in the embedding table and in the output layer.
    ///
    /// Rows that the tables have to spare are taken first; when there are too few, both tables grow
    /// and [`LlmConfig::vocab_size`](crate::LlmConfig::vocab_size) with them. A new row is the mean
    /// of the used ones, added up in 32 bits: its logit starts at the mean of the others, so that a
    /// new token is neither preferred nor ruled out. An adapter of the output layer gets the mean of
    /// its second factor, merged or not. Rows of used ids keep every bit, and parameters keep their
    /// device, number format and whether they learn.
    ///
    /// # Errors
    /// [`LlmError::Vocabulary`] when no id is in use, more are in use than there are rows, or
    /// `rows.total` is below `rows.used`.
    pub fn with_vocabulary(mut self, rows: VocabularyRows) -> Result<Self> {
        let VocabularyRows { used, total } = rows;
        let [embedding, output] = self.table_rows();
        let present = embedding.min(output);
        let mut problems = Vec::new();
        if used == 0 || used > present {
            problems.push(format!(
                "{used} ids are said to be in use, and the model has {present} rows; give the number \
                 of ids that its tokenizer had before tokens were added"
            ));
        }
        if total < used {
            problems.push(format!(
                "{total} ids in all are fewer than the {used} in use; rows are not taken away"
            ));
        }
        if !problems.is_empty() {
            return Err(LlmError::Vocabulary { problems });
        }
        if total == used {
            return Ok(self);
        }
        let mut config = self.config.clone();
        config.vocab_size = config.vocab_size.max(total);
        config.validate()?;
        self.config = config;
        let embed = &mut self.model.embed_tokens;
        grow(&mut embed.weight, rows)?;
        let lora = match &mut self.lm_head {
            OutputLayer::Own(head) => {
                grow(&mut head.weight, rows)?;
                head.bias = head.bias.take().map(|bias| with_new_rows(bias, rows));
                &mut head.lora
            }
            OutputLayer::Tied(tied) => &mut tied.lora,
        };
        if let Some(lora) = lora {
            lora.b = with_new_rows(lora.b.clone(), rows);
        }
        Ok(self)
    }
}

/// Puts the mean of the used rows at every new id.
fn grow(weight: &mut Weight, rows: VocabularyRows) -> Result<()> {
    match weight {
        Weight::Float(weight) => *weight = with_new_rows(weight.clone(), rows),
        Weight::Quantized(weight) => {
            let mean = mean_row(rows.used, |lines| weight.elements(lines));
            let fresh = weight.pack(mean).ok_or_else(|| LlmError::Vocabulary {
                problems: vec!["rows of a quantised table are no whole blocks".into()],
            })?;
            *weight = weight
                .clone()
                .map_packed(|packed| packed.map(|packed| replaced(packed, fresh, rows)));
        }
    }
    Ok(())
}

/// A table with the mean of its used rows at every new id.
fn with_new_rows<const D: usize>(
    table: Param<Tensor<D>>,
    rows: VocabularyRows,
) -> Param<Tensor<D>> {
    table.map(|table| {
        let learns = table.is_require_grad();
        let table = table.detach();
        let chunk = |lines| table.clone().slice_dim(0, lines).cast(FloatDType::F32);
        let fresh = mean_row(rows.used, chunk).cast(table.dtype());
        replaced(table, fresh, rows)
            .detach()
            .set_require_grad(learns)
    })
}

/// A table with `fresh` `[1, ..]` at every new id.
fn replaced<const D: usize, K: Basic>(
    table: Tensor<D, K>,
    fresh: Tensor<D, K>,
    VocabularyRows { used, total }: VocabularyRows,
) -> Tensor<D, K> {
    let mut shape = table.dims();
    let present = std::mem::replace(&mut shape[0], total - used);
    let mut parts = vec![table.clone().slice_dim(0, 0..used), fresh.expand(shape)];
    if total < present {
        parts.push(table.slice_dim(0, total..present));
    }
    Tensor::cat(parts, 0)
}

/// The mean `[1, ..]` of the first `used` rows of a table whose rows in 32 bits `chunk` gives.
fn mean_row<const D: usize>(used: usize, chunk: impl Fn(Range<usize>) -> Tensor<D>) -> Tensor<D> {
    let sum = |start: usize| chunk(start..(start + CHUNK).min(used)).sum_dim(0);
    let sums: Vec<_> = (0..used).step_by(CHUNK).map(sum).collect();
    Tensor::cat(sums, 0).sum_dim(0) / used as f64
}
