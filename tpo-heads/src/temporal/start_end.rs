//! The light temporal head: the first and the last clip from two small MLPs.

use burn::module::Module;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use tpo_core::Result;
use tpo_core::geometry::{ScoredSpan, TimeSpan};
use tpo_core::head::{HeadContext, LossTerms};
use tpo_core::nn::{Linear, LinearConfig, Mlp, MlpConfig};
use tpo_core::ops::floats;

use super::decode::TemporalPrediction;
use super::features::TEMPORAL_VIDEO_FEATURES;
use super::head::{TemporalHeadConfig, check_clips, duration_of, gather_rows, pad_rows};
use super::model::mask;
use super::target::TemporalTarget;
use crate::HeadsError;
use crate::temporal::criterion::BatchTargets;

/// Dropout after every layer while training (reference implementation).
pub(super) const DROPOUT: f64 = 0.3;
/// Added to scores that are not a choice (reference implementation).
const IMPOSSIBLE: f32 = -1e32;

/// Two MLPs on one embedding per clip. The published checkpoint holds them, trained or not; its
/// chat never calls them.
#[derive(Module, Debug)]
pub struct StartEndMlps {
    /// `d_llm → d_llm → 2`: logits that the moment starts here and that it ends here.
    pub temporal_embed: Mlp,
    /// `d_llm → d_llm → 1`: logit that the clip belongs to the moment.
    pub action_embed: Mlp,
}

impl StartEndMlps {
    /// Creates both with the same dropout after every layer, the last included.
    pub fn new(d_llm: usize, dropout: f64, device: &Device) -> Self {
        let mlp = |out: usize| {
            MlpConfig::new(vec![d_llm, d_llm, out])
                .with_dropout(dropout)
                .init(device)
        };
        Self {
            temporal_embed: mlp(2),
            action_embed: mlp(1),
        }
    }
}

/// Start and end of one moment, from the task embedding and one feature row per clip.
///
/// Every clip is embedded as *task embedding + projected clip features*; the reference's two MLPs
/// turn that into logits. The projection is ours: the published code never wires its MLPs up.
/// This head stands for the paper's "CG-DETR → two-layer MLP" row (Table 11).
#[derive(Module, Debug)]
pub struct SimpleTemporalHead {
    /// The reference's MLPs.
    pub start_end: StartEndMlps,
    /// Clip features to the width of the language model `[d_llm, d_video]`.
    pub clip_embed: Linear,
    max_clips: usize,
}

/// Logits of a padded batch.
#[derive(Debug, Clone)]
pub struct SimpleTemporalOutput {
    /// Start and end `[n, clips, 2]`; padding is `−1e32`.
    pub bounds: Tensor<3>,
    /// Membership `[n, clips]`.
    pub action: Tensor<2>,
    /// Real clips per sample.
    pub clips: Vec<usize>,
}

impl SimpleTemporalHead {
    pub(super) fn new(config: &TemporalHeadConfig, device: &Device) -> Self {
        let (d_llm, d_video) = (config.model.d_text, config.model.d_video);
        Self {
            start_end: StartEndMlps::new(d_llm, DROPOUT, device),
            clip_embed: LinearConfig::new(d_video, d_llm).init(device),
            max_clips: config.max_clips,
        }
    }

    pub(super) fn forward(
        &self,
        task: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> Result<SimpleTemporalOutput> {
        let [n, d] = task.dims();
        let (_, d_video) = self.clip_embed.shape();
        let rows = gather_rows(&task, context, TEMPORAL_VIDEO_FEATURES, |rows| {
            let [clips, width] = rows.dims();
            check_clips(clips, self.max_clips)?;
            match width {
                w if w == d_video => Ok(rows),
                _ => Err(HeadsError::Shape {
                    place: "SimpleTemporalHead::forward",
                    what: "video features",
                    expected: format!("[clips, {d_video}]"),
                    found: vec![clips, width],
                }),
            }
        })?;
        let (video, clips) = pad_rows(rows, d_video, &task);
        let width = video.dims()[1];
        let x = self.clip_embed.forward(video) + task.reshape([n, 1, d]);
        let f32 = FloatDType::F32;
        let bounds = self.start_end.temporal_embed.forward(x.clone()).cast(f32);
        let action = self.start_end.action_embed.forward(x).cast(f32);
        let device = bounds.device();
        let real = mask(&clips, width, &device, DType::F32).reshape([n, width, 1]);
        let hidden = real.clone().neg().add_scalar(1.0) * IMPOSSIBLE;
        Ok(SimpleTemporalOutput {
            bounds: bounds * real + hidden,
            action: action.reshape([n, width]),
            clips,
        })
    }
}

impl SimpleTemporalOutput {
    /// Cross entropy of the first and the last clip of the first window over all clips, and binary
    /// cross entropy of every clip's membership in the moment. A sample without a window counts
    /// for membership alone.
    pub(super) fn loss(&self, targets: &[TemporalTarget], clip_seconds: f64) -> Result<LossTerms> {
        let [n, width] = self.action.dims();
        let device = self.action.device();
        let names: Vec<usize> = (0..n).collect();
        let batch = BatchTargets::new(targets, &self.clips, clip_seconds, &names)?;
        let mut bounds = vec![0.0f32; n * width * 2];
        let mut windows = 0;
        for (i, (spans, &clips)) in batch.spans.iter().zip(&self.clips).enumerate() {
            let Some(span) = spans.first() else {
                continue;
            };
            windows += 1;
            let (first, last) = first_and_last(*span, clips);
            bounds[(i * width + first) * 2] = 1.0;
            bounds[(i * width + last) * 2 + 1] = 1.0;
        }
        let chosen = floats(bounds, [n, width, 2], &device);
        let picked = (log_softmax(self.bounds.clone(), 1) * chosen)
            .sum_dim(1)
            .sum_dim(0);
        let picked = picked.reshape([2]) / -(windows.max(1) as f64);
        let inside: Vec<f32> = batch
            .relevant
            .iter()
            .flatten()
            .map(|r| *r as u8 as f32)
            .collect();
        let inside = floats(inside, [n, width], &device);
        let real = mask(&self.clips, width, &device, DType::F32);
        let count: usize = self.clips.iter().sum();
        let logits = self.action.clone();
        let outside = inside.clone().neg().add_scalar(1.0);
        let membership = inside * log_sigmoid(logits.clone()) + outside * log_sigmoid(logits.neg());
        let action = (membership * real).sum() / -(count.max(1) as f64);
        Ok(LossTerms::new()
            .with("start", picked.clone().narrow(0, 0, 1), 1.0)
            .with("end", picked.narrow(0, 1, 1), 1.0)
            .with("action", action, 1.0))
    }

    pub(super) fn decode(
        self,
        context: &HeadContext<'_>,
        clip_seconds: f64,
    ) -> Result<Vec<TemporalPrediction>> {
        let [n, width] = self.action.dims();
        let all = Tensor::cat(vec![self.bounds, self.action.reshape([n, width, 1])], 2);
        let all: Vec<f32> = super::criterion::finite(all, "start and end logits")?;
        let samples = all.chunks_exact(width * 3).zip(&self.clips).enumerate();
        samples
            .map(|(i, (rows, &clips))| {
                let duration = duration_of(context, i, clips as f64 * clip_seconds)?;
                let logits: Vec<[f32; 2]> = rows
                    .chunks_exact(3)
                    .take(clips)
                    .map(|r| [r[0], r[1]])
                    .collect();
                let (first, last) = best_frames(&logits, clips);
                let span = TimeSpan {
                    start: first as f64 * clip_seconds,
                    end: (last + 1) as f64 * clip_seconds,
                };
                let score = probability(&logits, first, 0) * probability(&logits, last, 1);
                Ok(TemporalPrediction {
                    spans: vec![ScoredSpan {
                        span: span.clamped(duration),
                        score,
                    }],
                    saliency: rows.chunks_exact(3).take(clips).map(|r| r[2]).collect(),
                    clip_seconds,
                    duration,
                })
            })
            .collect()
    }
}

fn probability(logits: &[[f32; 2]], at: usize, side: usize) -> f64 {
    let top = logits[at][side];
    let sum: f64 = logits.iter().map(|l| f64::from(l[side] - top).exp()).sum();
    1.0 / sum
}

/// The most likely (first, last) clip with `first < last`, from logits (start, end) per clip, of
/// which only the first `frames` are a choice. Of equals the earliest first, then the earliest
/// last; `(0, 0)` when there are not two clips.
pub fn best_frames(logits: &[[f32; 2]], frames: usize) -> (usize, usize) {
    let n = frames.min(logits.len());
    // `best_end[i]`: the best last clip from `i` on.
    let mut best_end = vec![0usize; n];
    for i in (0..n).rev() {
        best_end[i] = match best_end.get(i + 1) {
            Some(&later) if logits[later][1] > logits[i][1] => later,
            _ => i,
        };
    }
    let mut best: Option<(f32, (usize, usize))> = None;
    for first in 0..n.saturating_sub(1) {
        let last = best_end[first + 1];
        let score = logits[first][0] + logits[last][1];
        if best.is_none_or(|(b, _)| score > b) {
            best = Some((score, (first, last)));
        }
    }
    best.map_or((0, 0), |(_, pair)| pair)
}

/// The clips that a span (centre, width), 0–1, begins and ends in. One that ends with a clip ends in
/// that clip.
fn first_and_last([centre, width]: [f32; 2], clips: usize) -> (usize, usize) {
    // Rounding may put an edge on the wrong side of a whole clip: by 2e-7 of the video at most.
    const ROUNDING: f32 = 1e-6;
    let clip = |t: f32| (t.max(0.0) * clips as f32) as usize;
    let first = clip(centre - width / 2.0 + ROUNDING).min(clips - 1);
    let last = clip(centre + width / 2.0 - ROUNDING).clamp(first, clips - 1);
    (first, last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temporal::labels::SaliencyLabels;

    #[test]
    fn start_before_end_by_hand() {
        // The best start is clip 2, the best end clip 1: not allowed together.
        let logits = [[0.0, 0.0], [1.0, 5.0], [4.0, 0.0], [0.0, 1.0]];
        // 0 + 5 = 5 for (0, 1) and 4 + 1 = 5 for (2, 3): the earlier one.
        assert_eq!(best_frames(&logits, 4), (0, 1));
        let logits = [[0.0, 0.0], [1.0, 5.0], [4.5, 0.0], [0.0, 1.0]];
        assert_eq!(best_frames(&logits, 4), (2, 3));
        assert_eq!(best_frames(&logits, 3), (0, 1));
        assert_eq!(best_frames(&logits, 1), (0, 0));
        assert_eq!(best_frames(&[], 5), (0, 0));
    }
    #[test]
    fn windows_of_whole_clips_begin_and_end_in_theirs() {
        for clips in [1, 8, 10, 24, 30, 75, 150] {
            for first in 0..clips {
                for last in first..clips {
                    let window = TimeSpan::new(first as f64, (last + 1) as f64).unwrap();
                    let target = TemporalTarget::new(vec![window], SaliencyLabels::default());
                    let spans = target.spans(clips, 1.0).unwrap();
                    assert_eq!(first_and_last(spans[0], clips), (first, last), "of {clips}");
                }
            }
        }
    }
}
