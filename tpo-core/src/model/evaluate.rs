//! Teacher-forced evaluation of one batch.

use burn::tensor::Tensor;

use super::{TpoBatch, TpoModel, cross_entropy};
use crate::error::Result;
use crate::head::{HeadContext, HeadScore, HeadSet, Sample};
use crate::traits::{Connector, LanguageModel, VisionEncoder};

/// How well the language model continues the true answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LanguageScore {
    /// Sum of the cross entropies of all labels, natural logarithm.
    pub loss_sum: f64,
    /// Labels whose token has the largest logit.
    pub correct: usize,
    /// Labels.
    pub count: usize,
    /// Routing tokens of heads among the labels that have the largest logit: the model would call
    /// the right head there.
    pub calls_correct: usize,
    /// Routing tokens of heads among the labels.
    pub calls: usize,
}

/// What [`TpoModel::evaluate`] finds.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The language model; without labels all is zero.
    pub language: LanguageScore,
    /// The heads that occur in the batch and have targets.
    pub heads: Vec<HeadScore>,
}

impl<V, C, L, H> TpoModel<V, C, L, H>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    /// Losses and metrics of one batch with the true answers as input (teacher forcing): the same
    /// forward pass as [`TpoModel::forward`].
    ///
    /// Meant for a model without autodiff ([`Module::valid`](burn::module::Module::valid)), in
    /// which dropout does nothing; no random number is drawn then.
    ///
    /// # Errors
    /// As [`TpoModel::forward`]; what the heads' metrics fail with.
    pub fn evaluate(&self, batch: TpoBatch, samples: &[Sample]) -> Result<Evaluation> {
        let mut batch = batch;
        let (_, hidden) = self.run(&mut batch, None)?;
        let language = match &batch.labels {
            Some(labels) => self.language_score(hidden.clone(), labels)?,
            None => LanguageScore::default(),
        };
        let mut heads = Vec::new();
        for (head, embeddings, rows) in self.called_heads(&batch.tokens, &hidden)? {
            let context = HeadContext {
                samples,
                rows: &rows,
            };
            heads.extend(head.any_score(embeddings, &batch.targets, &context)?);
        }
        Ok(Evaluation { language, heads })
    }

    fn language_score(&self, hidden: Tensor<3>, labels: &[Vec<i64>]) -> Result<LanguageScore> {
        let Some((logits, targets)) = self.labelled_logits(hidden, labels)? else {
            return Ok(LanguageScore::default());
        };
        let best = logits.clone().argmax(1).into_data();
        let losses = cross_entropy(logits, &targets).into_data();
        let mut score = LanguageScore {
            loss_sum: losses.iter::<f32>().map(f64::from).sum(),
            count: targets.len(),
            ..LanguageScore::default()
        };
        for (best, target) in best.iter::<i64>().zip(targets) {
            let correct = usize::from(best == target as i64);
            let call = self.registry.by_routing(target as u32).is_some();
            score.correct += correct;
            score.calls += usize::from(call);
            score.calls_correct += correct * usize::from(call);
        }
        Ok(score)
    }
}
