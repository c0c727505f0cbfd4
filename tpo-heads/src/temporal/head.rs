//! The temporal head: CG-DETR with the task embedding behind the text.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use tpo_core::head::{
    Drawing, HeadContext, HeadKeys, HeadMetric, HeadSpec, LossTerms, ModelSizes, TaskHead,
};
use tpo_core::truth::Truth;
use tpo_core::weights::{self, KeyRules};
use tpo_core::{CoreError, Result};

use super::criterion::{BatchTargets, CriterionConfig, CriterionOutput, criterion, finite};
use super::decode::{DecodeConfig, TemporalPrediction, rank_spans};
use super::features::{TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES, with_endpoints};
use super::keys::cg_detr_rules;
use super::model::{CgDetr, CgDetrConfig, CgDetrInput, CgDetrOutput, TEF_COLUMNS, TrainingInput};
use super::start_end::{DROPOUT, SimpleTemporalHead, SimpleTemporalOutput, StartEndMlps};
use super::target::{TemporalTarget, moment_metrics, temporal_target};
use crate::HeadsError;

/// Name of the task.
pub(super) const HEAD: &str = "temporal";

/// Configuration of a [`TemporalHead`].
#[derive(Config, Debug)]
pub struct TemporalHeadConfig {
    /// The model; its `d_text` is the width of the language model too.
    pub model: CgDetrConfig,
    /// The loss.
    #[config(default = "CriterionConfig::reference()")]
    pub criterion: CriterionConfig,
    /// How spans are made presentable.
    #[config(default = "DecodeConfig::new()")]
    pub decode: DecodeConfig,
    /// Seconds between the starts of two clips (reference: one feature per second).
    #[config(default = 1.0)]
    pub clip_seconds: f64,
    /// Text rows beyond this number are cut off (reference: 100).
    #[config(default = 100)]
    pub max_text_tokens: usize,
    /// Most clips of a video; memory grows with their square.
    #[config(default = 4096)]
    pub max_clips: usize,
    /// Whether the head carries the checkpoint's two MLPs of the light head, which its chat never
    /// calls.
    #[config(default = false)]
    pub start_end: bool,
    /// Whether a [`SimpleTemporalHead`] answers in place of CG-DETR (paper, Table 11), whose
    /// parameters then neither run nor learn.
    #[config(default = false)]
    pub simple: bool,
}

impl TemporalHeadConfig {
    /// VideoChat-TPO, with every parameter its checkpoint has.
    pub fn videochat_tpo() -> Self {
        Self::new(CgDetrConfig::videochat_tpo()).with_start_end(true)
    }

    /// A small head for a language model and video features of these widths.
    pub fn mini(d_llm: usize, d_video: usize) -> Self {
        Self::new(CgDetrConfig::mini(d_llm, d_video))
    }

    /// Checks sizes, rates and times.
    ///
    /// # Errors
    /// [`HeadsError::Config`] with the first field that cannot work.
    pub fn validate(&self) -> std::result::Result<(), HeadsError> {
        self.model.validate()?;
        let seconds = self.clip_seconds;
        let holds = seconds.is_finite() && seconds > 0.0;
        HeadsError::require(holds, "clip_seconds", "a positive number", seconds)
    }

    /// Creates the head with random weights.
    ///
    /// # Errors
    /// [`HeadsError::Config`].
    pub fn init(&self, device: &Device) -> std::result::Result<TemporalHead, HeadsError> {
        self.validate()?;
        let background = self.criterion.background as f32;
        let weight = TensorData::new(vec![1.0f32, background], [2]);
        let weight = Tensor::<1>::from_data(weight, (device, DType::F32));
        Ok(TemporalHead {
            model: self.model.init(device)?,
            criterion: Criterion {
                empty_weight: Param::from_tensor(weight).set_require_grad(false),
            },
            start_end: self
                .start_end
                .then(|| StartEndMlps::new(self.model.d_text, DROPOUT, device)),
            simple: self.simple.then(|| SimpleTemporalHead::new(self, device)),
            config: self.clone(),
        })
    }
}

/// Constants of the loss that the checkpoint stores.
#[derive(Module, Debug)]
pub struct Criterion {
    /// Class weights `[2]`: foreground, background. Never trained.
    pub empty_weight: Param<Tensor<1>>,
}

/// Moments and highlights for the query of a temporal task token.
///
/// Reads [`TEMPORAL_VIDEO_FEATURES`] `[clips, d_video]` (endpoint columns are added unless they
/// are there) and [`TEMPORAL_TEXT_FEATURES`] `[tokens, d_text]` of the token's sample, and its
/// duration and name.
#[derive(Module, Debug)]
pub struct TemporalHead {
    /// CG-DETR.
    pub model: CgDetr,
    /// Stored constants of the loss.
    pub criterion: Criterion,
    /// The light head's MLPs, for a checkpoint that has them.
    pub start_end: Option<StartEndMlps>,
    /// Answers in place of CG-DETR, if it is there.
    pub simple: Option<SimpleTemporalHead>,
    #[module(skip)]
    config: TemporalHeadConfig,
}

/// What [`TemporalHead`] computes.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)]
pub enum TemporalOutput {
    /// Of CG-DETR.
    CgDetr(CgDetrOutput),
    /// Of the simple head.
    Simple(SimpleTemporalOutput),
}

impl TemporalOutput {
    /// What CG-DETR computed; `None` if the simple head answered.
    pub fn cg_detr(&self) -> Option<&CgDetrOutput> {
        match self {
            Self::CgDetr(output) => Some(output),
            Self::Simple(_) => None,
        }
    }
}

impl TemporalHead {
    /// The configuration.
    pub fn config(&self) -> &TemporalHeadConfig {
        &self.config
    }

    /// Loss, matches and class error against a padded batch of targets.
    ///
    /// # Errors
    /// [`HeadsError::NotFinite`] when the model's output is not finite.
    pub fn criterion(
        &self,
        output: &CgDetrOutput,
        targets: &BatchTargets,
    ) -> std::result::Result<CriterionOutput, HeadsError> {
        let training = self.model.training(
            output,
            &TrainingInput {
                relevant: targets.relevant.clone(),
                real_negative: targets.real_negative.clone(),
            },
        );
        // A stored constant: patterns over the whole head must not train it.
        let weight = self.criterion.empty_weight.val().detach();
        criterion(output, &training, targets, weight, &self.config.criterion)
    }

    fn with_tef(&self, rows: Tensor<2>) -> std::result::Result<Tensor<2>, HeadsError> {
        let [clips, width] = rows.dims();
        check_clips(clips, self.config.max_clips)?;
        let d_video = self.config.model.d_video;
        if width == d_video {
            Ok(with_endpoints(rows))
        } else if width == d_video + TEF_COLUMNS {
            Ok(rows)
        } else {
            Err(HeadsError::Shape {
                place: "TemporalHead::forward",
                what: "video features",
                expected: format!("[clips, {d_video}], or two columns more with the endpoints"),
                found: vec![clips, width],
            })
        }
    }

    fn text(&self, rows: Tensor<2>) -> std::result::Result<Tensor<2>, HeadsError> {
        let [tokens, width] = rows.dims();
        let d_text = self.config.model.d_text;
        if width != d_text {
            return Err(HeadsError::Shape {
                place: "TemporalHead::forward",
                what: "text features",
                expected: format!("[tokens, {d_text}]"),
                found: vec![tokens, width],
            });
        }
        let most = self.config.max_text_tokens;
        Ok(if tokens > most {
            rows.narrow(0, 0, most)
        } else {
            rows
        })
    }
}

impl TaskHead for TemporalHead {
    type Config = TemporalHeadConfig;
    type Target = TemporalTarget;
    type Output = TemporalOutput;
    type Prediction = TemporalPrediction;

    const NAME: &'static str = HEAD;
    const SCORED_BY_BENCHMARKS: bool = true;

    fn spec() -> HeadSpec {
        HeadSpec::new(HEAD, "<time_begin>", "<temp>")
    }

    fn init(config: &TemporalHeadConfig, sizes: &ModelSizes, device: &Device) -> Result<Self> {
        sizes.check(HEAD, "model.d_text", config.model.d_text, sizes.llm)?;
        Ok(config.init(device)?)
    }

    fn target(&self, truth: &Truth) -> Result<TemporalTarget> {
        temporal_target(truth, self.config.clip_seconds)
    }

    fn features() -> &'static [&'static str] {
        &[TEMPORAL_VIDEO_FEATURES, TEMPORAL_TEXT_FEATURES]
    }

    fn draw(prediction: &TemporalPrediction) -> Drawing {
        prediction.drawing()
    }

    fn keys() -> weights::Result<HeadKeys> {
        let criterion = KeyRules::new()
            .owns(["cg_criterion."])
            .prefix("cg_criterion.", "criterion.");
        let start_end = KeyRules::new().owns(["temporal_embed.", "action_embed."]);
        let simple = KeyRules::new()
            .owns(["simple_temporal."])
            .prefix("simple_temporal.", "");
        Ok(HeadKeys {
            token: "temporal_token".into(),
            rules: vec![
                cg_detr_rules()?.within("model."),
                criterion,
                start_end.within("start_end."),
                simple.within("simple."),
            ],
        })
    }

    fn forward(&self, task: Tensor<2>, context: &HeadContext<'_>) -> Result<TemporalOutput> {
        if let Some(simple) = &self.simple {
            return Ok(TemporalOutput::Simple(simple.forward(task, context)?));
        }
        let c = &self.config.model;
        let video = gather_rows(&task, context, TEMPORAL_VIDEO_FEATURES, |rows| {
            self.with_tef(rows)
        })?;
        let text = gather_rows(&task, context, TEMPORAL_TEXT_FEATURES, |rows| {
            self.text(rows)
        })?;
        let (video, video_lengths) = pad_rows(video, c.d_video + TEF_COLUMNS, &task);
        let (text, text_lengths) = pad_rows(text, c.d_text, &task);
        Ok(TemporalOutput::CgDetr(self.model.forward(CgDetrInput {
            video,
            video_lengths,
            text,
            text_lengths,
            prompt: task,
        })?))
    }

    fn loss(
        &self,
        output: &TemporalOutput,
        targets: &[TemporalTarget],
        context: &HeadContext<'_>,
    ) -> Result<LossTerms> {
        let seconds = self.config.clip_seconds;
        let output = match output {
            TemporalOutput::CgDetr(output) => output,
            TemporalOutput::Simple(output) => return output.loss(targets, seconds),
        };
        /// A video by its name, or else by its sample.
        #[derive(PartialEq)]
        enum Video<'a> {
            Name(&'a str),
            Sample(usize),
        }
        let videos: Vec<Video<'_>> = (0..output.video_lengths.len())
            .map(
                |i| match context.sample(i).and_then(|s| s.media.as_deref()) {
                    Some(name) => Video::Name(name),
                    None => Video::Sample(context.rows.get(i).copied().unwrap_or(i)),
                },
            )
            .collect();
        let targets = BatchTargets::new(targets, &output.video_lengths, seconds, &videos)?;
        Ok(self.criterion(output, &targets)?.terms)
    }

    /// `r1@0.5`, `r1@0.7` and `miou`; see [`moment_metrics`].
    fn metrics(
        &self,
        output: Self::Output,
        targets: &[TemporalTarget],
        context: &HeadContext<'_>,
    ) -> Result<Vec<HeadMetric>> {
        Ok(moment_metrics(&self.decode(output, context)?, targets))
    }

    fn decode(
        &self,
        output: TemporalOutput,
        context: &HeadContext<'_>,
    ) -> Result<Vec<TemporalPrediction>> {
        let seconds = self.config.clip_seconds;
        let output = match output {
            TemporalOutput::CgDetr(output) => output,
            TemporalOutput::Simple(output) => return output.decode(context, seconds),
        };
        let [layers, batch, queries, _] = output.spans.dims();
        let clips = output.saliency.dims()[1];
        let f32 = FloatDType::F32;
        let last = |x: Tensor<4>| {
            x.narrow(0, layers - 1, 1)
                .reshape([batch, queries * 2])
                .cast(f32)
        };
        let logits = output.logits.narrow(0, layers - 1, 1).cast(f32);
        // One transfer: spans, probabilities, saliency.
        let all = Tensor::cat(
            vec![
                last(output.spans),
                softmax(logits, 3).reshape([batch, queries * 2]),
                output.saliency.cast(f32),
            ],
            1,
        );
        let all = finite(all, "spans, scores and saliency")?;
        all.chunks_exact(queries * 4 + clips)
            .zip(&output.video_lengths)
            .enumerate()
            .map(|(i, (row, &length))| {
                let duration = duration_of(context, i, length as f64 * seconds)?;
                let (spans, rest) = row.split_at(queries * 2);
                let (scores, saliency) = rest.split_at(queries * 2);
                let spans = spans
                    .chunks_exact(2)
                    .zip(scores.chunks_exact(2))
                    .map(|(s, p)| ([s[0], s[1]], p[0]));
                Ok(TemporalPrediction {
                    spans: rank_spans(spans, duration, &self.config.decode),
                    saliency: saliency[..length].to_vec(),
                    clip_seconds: seconds,
                    duration,
                })
            })
            .collect()
    }
}

/// The features called `name` of every task token, each prepared.
pub(super) fn gather_rows(
    task: &Tensor<2>,
    context: &HeadContext<'_>,
    name: &str,
    prepare: impl Fn(Tensor<2>) -> std::result::Result<Tensor<2>, HeadsError>,
) -> Result<Vec<Tensor<2>>> {
    let (device, dtype) = (task.device(), task.dtype());
    (0..task.dims()[0])
        .map(|i| {
            let rows = context.require_features(HEAD, i, name)?;
            // Whether a device is for autodiff does not count when devices are compared.
            let rows = match rows.device().is_autodiff() {
                true if !device.is_autodiff() => rows.inner(),
                _ => rows,
            };
            let rows = if rows.device() == device {
                rows
            } else {
                rows.to_device(&device)
            };
            let rows = match device.gradient_checkpointing_strategy() {
                Some(strategy) if !rows.device().is_autodiff() => rows
                    .autodiff()
                    .with_gradient_checkpointing_strategy(strategy),
                _ => rows,
            };
            Ok(prepare(rows.cast(dtype))?)
        })
        .collect()
}

/// Pads rows `[length, width]` with zeros to the longest: `[n, longest, width]` and the lengths.
pub(super) fn pad_rows(
    rows: Vec<Tensor<2>>,
    width: usize,
    like: &Tensor<2>,
) -> (Tensor<3>, Vec<usize>) {
    let lengths: Vec<usize> = rows.iter().map(|r| r.dims()[0]).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let options = (&like.device(), like.dtype());
    let n = rows.len();
    if longest == 0 {
        return (Tensor::zeros([n, 0, width], options), lengths);
    }
    let mut parts = Vec::with_capacity(2 * n);
    for rows in rows {
        let missing = longest - rows.dims()[0];
        if missing < longest {
            parts.push(rows);
        }
        if missing > 0 {
            parts.push(Tensor::zeros([missing, width], options));
        }
    }
    let padded = Tensor::cat(parts, 0).reshape([n, longest, width]);
    (padded, lengths)
}

pub(super) fn check_clips(clips: usize, max: usize) -> std::result::Result<(), HeadsError> {
    if (1..=max).contains(&clips) {
        return Ok(());
    }
    Err(HeadsError::Shape {
        place: "temporal head",
        what: "video features",
        expected: format!("1 to {max} rows, one per clip"),
        found: vec![clips],
    })
}

/// Duration of the `token`-th sample in seconds, or what its clips add up to.
pub(super) fn duration_of(context: &HeadContext<'_>, token: usize, clips: f64) -> Result<f64> {
    let duration = context.sample(token).and_then(|s| s.duration);
    match duration {
        None => Ok(clips),
        Some(seconds) if seconds.is_finite() && seconds > 0.0 => Ok(seconds),
        Some(seconds) => Err(CoreError::InvalidSpan {
            start: 0.0,
            end: seconds,
            why: "the duration of the video must be a positive number",
        }),
    }
}
