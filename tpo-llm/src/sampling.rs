//! Choosing the next token.
//!
//! Meaning and order of the steps are those of Hugging Face's logits processors: repetition
//! penalty, n-gram ban, suppressed tokens; then, when sampling, temperature, top-k, top-p and
//! min-p.

use std::collections::HashSet;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tpo_core::config::Problems;

use crate::error::{LlmError, Result};

/// How the next token is chosen. Field names are Hugging Face's `GenerationConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Logits are divided by it; 0 takes the largest logit (greedy).
    pub temperature: f32,
    /// Keep this many of the largest logits, and those equal to the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability, at least one; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Positive logits of tokens seen are divided by it and negative ones multiplied; 1 is none.
    pub repetition_penalty: f32,
    /// No n-gram of this length may occur twice; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Ids that are never chosen.
    pub suppress_tokens: Vec<u32>,
    /// Seed of the generator.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self::greedy()
    }
}

impl SamplingConfig {
    /// The largest logit, the lowest id among equals.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            suppress_tokens: Vec::new(),
            seed: 0,
        }
    }

    /// Sampling from the full distribution at `temperature`.
    pub fn sampling(temperature: f32, seed: u64) -> Self {
        Self {
            temperature,
            seed,
            ..Self::greedy()
        }
    }

    /// Whether no random number is drawn.
    fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`LlmError::Sampling`] with every problem.
    pub fn validate(&self) -> Result<()> {
        let Self {
            temperature: t,
            top_p,
            min_p,
            repetition_penalty: penalty,
            ..
        } = self;
        let mut problems = Problems::default();
        problems.unless(
            t.is_finite() && *t >= 0.0,
            format_args!("temperature is {t} and must be 0 (greedy) or above"),
        );
        problems.unless(
            *top_p > 0.0 && *top_p <= 1.0,
            format_args!("top_p is {top_p} and must be above 0 and at most 1"),
        );
        problems.unless(
            (0.0..=1.0).contains(min_p),
            format_args!("min_p is {min_p} and must be from 0 to 1"),
        );
        problems.unless(
            penalty.is_finite() && *penalty > 0.0,
            format_args!("repetition_penalty is {penalty} and must be above 0"),
        );
        problems.into_result(|problems| LlmError::Sampling {
            problems: problems.join("; "),
        })
    }
}

/// Draws tokens from logits. Equal seed, settings and logits give equal tokens on every machine:
/// the generator is xoshiro256++.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplingConfig,
    rng: Xoshiro256PlusPlus,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// [`LlmError::Sampling`] for settings out of range.
    pub fn new(config: SamplingConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            config,
        })
    }

    /// Chooses the next token.
    ///
    /// `logits` has one value per id; negative infinity marks an id that cannot be chosen.
    /// `history` holds the ids so far, prompt included.
    ///
    /// # Errors
    /// [`LlmError::Logits`] for NaN or positive infinity, and when no id is left to choose.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let scores = self.scores(logits, history)?;
        if self.config.is_greedy() {
            return argmax(&scores);
        }
        let candidates = self.candidates(&scores)?;
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let target = self.rng.random::<f64>() * total;
        let mut reached = 0.0;
        for &(id, weight) in &candidates {
            reached += weight;
            if target < reached {
                return Ok(id);
            }
        }
        // Rounding of the running sum: the last id with weight.
        let last = candidates.iter().rev().find(|c| c.1 > 0.0);
        last.map(|c| c.0).ok_or_else(nothing_left)
    }

    /// Logits after the steps that also count for greedy decoding.
    fn scores(&self, logits: &[f32], history: &[u32]) -> Result<Vec<f32>> {
        if logits.is_empty() || u32::try_from(logits.len()).is_err() {
            return Err(LlmError::Logits {
                problem: format!(
                    "{} values; one per id of the vocabulary is needed",
                    logits.len()
                ),
            });
        }
        let bad = |v: &&f32| v.is_nan() || **v == f32::INFINITY;
        if let Some(value) = logits.iter().find(bad) {
            let index = logits.iter().position(|v| bad(&v)).unwrap_or_default();
            return Err(LlmError::Logits {
                problem: format!(
                    "value {index} is {value}; the model diverged, or half precision overflowed"
                ),
            });
        }
        let mut scores = logits.to_vec();
        let penalty = self.config.repetition_penalty;
        if penalty != 1.0 {
            for &id in &history.iter().copied().collect::<HashSet<u32>>() {
                if let Some(s) = scores.get_mut(id as usize) {
                    *s = if *s < 0.0 { *s * penalty } else { *s / penalty };
                    // A tiny penalty can overflow; stay finite so that order survives.
                    *s = s.min(f32::MAX);
                }
            }
        }
        let repeated = repeated_ngrams(history, self.config.no_repeat_ngram_size);
        for &id in repeated.iter().chain(&self.config.suppress_tokens) {
            if let Some(s) = scores.get_mut(id as usize) {
                *s = f32::NEG_INFINITY;
            }
        }
        Ok(scores)
    }

    /// Ids that survive the filters with their unnormalised probabilities, by ascending id.
    fn candidates(&self, scores: &[f32]) -> Result<Vec<(u32, f64)>> {
        let config = &self.config;
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if top == f32::NEG_INFINITY {
            return Err(nothing_left());
        }
        // Dividing after subtracting the maximum cannot overflow upwards and is the same softmax.
        let temperature = f64::from(config.temperature);
        let scaled = |s: f32| (f64::from(s) - f64::from(top)) / temperature;
        let mut floor = f32::NEG_INFINITY;
        if config.top_k > 0 && config.top_k < scores.len() {
            let mut sorted = scores.to_vec();
            let (_, kth, _) =
                sorted.select_nth_unstable_by(config.top_k - 1, |a, b| b.total_cmp(a));
            floor = *kth;
        }
        let mut kept: Vec<(u32, f64)> = scores
            .iter()
            .enumerate()
            .filter(|(_, s)| **s >= floor && **s > f32::NEG_INFINITY)
            .map(|(id, s)| (id as u32, scaled(*s).exp()))
            .collect();
        if config.top_p < 1.0 {
            // From the least likely up, drop while the sum stays within 1 - top_p.
            let total: f64 = kept.iter().map(|k| k.1).sum();
            let mut order: Vec<usize> = (0..kept.len()).collect();
            order.sort_by(|a, b| kept[*a].1.total_cmp(&kept[*b].1));
            let mut sum = 0.0;
            let mut dropped = vec![false; kept.len()];
            for &i in order.iter().take(kept.len() - 1) {
                sum += kept[i].1 / total;
                if sum > 1.0 - f64::from(config.top_p) {
                    break;
                }
                dropped[i] = true;
            }
            let mut keep = dropped.iter().map(|d| !d);
            kept.retain(|_| keep.next().unwrap_or(true));
        }
        // The likeliest has weight 1.
        kept.retain(|k| k.1 >= f64::from(config.min_p));
        Ok(kept)
    }
}

fn nothing_left() -> LlmError {
    LlmError::Logits {
        problem: "every id is masked or suppressed; nothing is left to choose".into(),
    }
}

/// First index of the largest value, as `torch.argmax` gives on CPU.
fn argmax(scores: &[f32]) -> Result<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &s) in scores.iter().enumerate() {
        if s > best.map_or(f32::NEG_INFINITY, |b| b.1) {
            best = Some((i, s));
        }
    }
    best.map(|b| b.0 as u32).ok_or_else(nothing_left)
}

/// Ids that would complete an n-gram already in `history`.
fn repeated_ngrams(history: &[u32], n: usize) -> Vec<u32> {
    if n == 0 || history.len() + 1 < n {
        return Vec::new();
    }
    let tail = &history[history.len() + 1 - n..];
    history
        .windows(n)
        .filter(|w| &w[..n - 1] == tail)
        .map(|w| w[n - 1])
        .collect()
}

#[cfg(test)]
mod tests;
