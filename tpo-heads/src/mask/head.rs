//! The mask head: an adapter that turns the task embedding into prompt tokens of a frozen SAM 2.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use tpo_core::Result;
use tpo_core::head::{
    Drawing, HeadContext, HeadKeys, HeadMetric, HeadSpec, LossTerms, ModelSizes, Shape, TaskHead,
};
use tpo_core::nn::{Mlp, MlpConfig};
use tpo_core::truth::Truth;
use tpo_core::weights::{self, KeyRules};

use super::decode::MaskPrediction;
use super::loss::MaskLossConfig;
use super::prompt::{BOX_TOKENS, PromptSource, box_tokens};
use super::sam2::{Sam2, Sam2Config, Sam2Version, sam2_videochat_tpo_keys};
use super::target::{MaskTarget, mask_target};
use super::train::{Sam2TrainConfig, supervise_video};
use crate::HeadsError;

/// Name of the task.
pub(super) const HEAD: &str = "mask";

/// Configuration of a [`MaskHead`].
#[derive(Config, Debug)]
pub struct MaskHeadConfig {
    /// Width of the language model.
    pub d_llm: usize,
    /// Width of the hidden layer of both MLPs; the reference uses `d_llm`.
    pub hidden: usize,
    /// The frozen SAM 2.
    pub sam: Sam2Config,
    /// The loss.
    #[config(default = "MaskLossConfig::new()")]
    pub loss: MaskLossConfig,
    /// What prompts SAM 2 in answers.
    #[config(default = "PromptSource::QuestionBox")]
    pub prompt: PromptSource,
}

impl MaskHeadConfig {
    /// VideoChat-TPO: 4096 → 4096 → 3 x 256 before SAM 2.0 with Hiera-L (published checkpoint).
    pub fn videochat_tpo() -> Self {
        Self::new(4096, 4096, Sam2Config::videochat_tpo())
    }

    /// A small head for a language model of this width: SAM 2 on frames of 128 pixels.
    pub fn mini(d_llm: usize) -> Self {
        Self::new(d_llm, d_llm, Sam2Config::mini(Sam2Version::V2_0))
    }

    /// Checks sizes and weights.
    ///
    /// # Errors
    /// [`HeadsError::Config`] with the first field that cannot work.
    pub fn validate(&self) -> std::result::Result<(), HeadsError> {
        self.sam.validate()?;
        for (what, value) in [("d_llm", self.d_llm), ("hidden", self.hidden)] {
            HeadsError::require(value > 0, what, "at least 1", value)?;
        }
        for (what, value) in [
            ("loss.embedding", self.loss.embedding),
            ("loss.area", self.loss.area),
        ] {
            let holds = value.is_finite() && value >= 0.0;
            HeadsError::require(holds, what, "a number, not negative", value)?;
        }
        self.loss
            .video
            .as_ref()
            .map_or(Ok(()), Sam2TrainConfig::validate)
    }

    /// Creates the head with random weights, drawn on first use. SAM 2 is frozen.
    ///
    /// # Errors
    /// [`HeadsError::Config`].
    pub fn init(&self, device: &Device) -> std::result::Result<MaskHead, HeadsError> {
        self.validate()?;
        let dim = self.sam.prompt_encoder.dim;
        let mlp = |out: usize| MlpConfig::new(vec![self.d_llm, self.hidden, out]).init(device);
        Ok(MaskHead {
            track_embed: mlp(BOX_TOKENS * dim),
            track_embed_decode2: mlp(4),
            sam: self.sam.init(device)?.no_grad(),
            config: self.clone(),
        })
    }
}

/// Masks through the whole video for the query of a mask task token.
///
/// The adapter makes three prompt tokens of the task embedding, which stand where SAM 2's prompt
/// encoder would put those of a box on the first frame; SAM 2 then follows the object. Training
/// teaches the adapter to say what the prompt encoder says of the true box (reference
/// implementation), and optionally what the tracker makes true masks of ([`MaskLossConfig::video`]).
///
/// SAM 2 starts frozen. Its parameters get a gradient only where a stage lets them learn and
/// [`MaskLossConfig::video`] is set; no other term reaches them, whatever they are marked as.
#[derive(Module, Debug)]
pub struct MaskHead {
    /// Task embedding to prompt tokens, `[d_llm, hidden, 3·dim]`.
    pub track_embed: Mlp,
    /// Task embedding to an auxiliary box, `[d_llm, hidden, 4]`; only its loss is used.
    pub track_embed_decode2: Mlp,
    /// Frozen unless a stage trains it.
    pub sam: Sam2,
    #[module(skip)]
    config: MaskHeadConfig,
}

/// What [`MaskHead`] computes.
#[derive(Debug, Clone)]
pub struct MaskOutput {
    /// Prompt tokens `[n, 3, dim]`.
    pub prompt: Tensor<3>,
    /// Auxiliary boxes `[n, 4]`, normalised xyxy, not confined to 0–1.
    pub area: Tensor<2>,
}

impl MaskHead {
    /// The configuration.
    pub fn config(&self) -> &MaskHeadConfig {
        &self.config
    }

    /// The same head with another loss.
    pub fn with_loss(mut self, loss: MaskLossConfig) -> Self {
        self.config.loss = loss;
        self
    }

    /// The same head with another source of prompts.
    pub fn with_prompt(mut self, prompt: PromptSource) -> Self {
        self.config.prompt = prompt;
        self
    }

    /// Prompt tokens and auxiliary boxes of task embeddings `[n, d_llm]`.
    pub fn prompts(&self, task: Tensor<2>) -> MaskOutput {
        let n = task.dims()[0];
        let dim = self.config.sam.prompt_encoder.dim;
        MaskOutput {
            prompt: self
                .track_embed
                .forward(task.clone())
                .reshape([n, BOX_TOKENS, dim]),
            area: self.track_embed_decode2.forward(task),
        }
    }
}

impl TaskHead for MaskHead {
    type Config = MaskHeadConfig;
    type Target = MaskTarget;
    type Output = MaskOutput;
    type Prediction = MaskPrediction;

    const NAME: &'static str = HEAD;
    const SCORED_BY_BENCHMARKS: bool = true;

    fn spec() -> HeadSpec {
        HeadSpec::new(HEAD, "<track_begin>", "<tracking>")
    }

    fn init(config: &MaskHeadConfig, sizes: &ModelSizes, device: &Device) -> Result<Self> {
        sizes.check(HEAD, "d_llm", config.d_llm, sizes.llm)?;
        Ok(config.init(device)?)
    }

    fn target(&self, truth: &Truth) -> Result<MaskTarget> {
        mask_target(truth)
    }

    fn draw(prediction: &MaskPrediction) -> Drawing {
        let (seen, all) = (prediction.visible(), prediction.frames.len());
        let frames = prediction.frames.iter().filter(|f| f.area.is_some());
        frames.fold(
            Drawing::text(format!("visible in {seen} of {all} frames")),
            |drawing, f| {
                drawing.with(Shape::Mask {
                    frame: f.frame,
                    mask: f.mask.clone(),
                })
            },
        )
    }

    fn keys() -> weights::Result<HeadKeys> {
        Ok(HeadKeys {
            token: "track_token".into(),
            rules: vec![
                KeyRules::new().owns(["track_embed.", "track_embed_decode2."]),
                sam2_videochat_tpo_keys()?.within("sam."),
            ],
        })
    }

    fn forward(&self, task: Tensor<2>, _: &HeadContext<'_>) -> Result<MaskOutput> {
        Ok(self.prompts(task))
    }

    /// Terms `embedding` and `box`; with [`Sam2TrainConfig`](super::train::Sam2TrainConfig) those of
    /// [`video_losses`](super::train::video_losses).
    fn loss(
        &self,
        output: &MaskOutput,
        targets: &[MaskTarget],
        context: &HeadContext<'_>,
    ) -> Result<LossTerms> {
        let boxes = targets
            .iter()
            .enumerate()
            .map(|(i, target)| target.first_box(i))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let dtype = FloatDType::F32;
        let prompt = output.prompt.clone().cast(dtype);
        let expected = box_tokens(&self.sam.sam_prompt_encoder, &boxes)?;
        let embedding = (prompt - expected.detach().cast(dtype)).abs().mean();

        let flat: Vec<f32> = boxes.iter().flat_map(|b| b.to_array()).collect();
        let area = TensorData::new(flat, [boxes.len(), 4]);
        let area = Tensor::<2>::from_data(area, &output.area.device()).cast(dtype);
        let area = (output.area.clone().cast(dtype) - area).abs().mean();

        let loss = &self.config.loss;
        let terms = LossTerms::new()
            .with("embedding", embedding, loss.embedding)
            .with("box", area, loss.area);
        match &loss.video {
            Some(config) => supervise_video(self, config, output, targets, context, terms),
            None => Ok(terms),
        }
    }

    /// `box_iou` of the auxiliary box, and of targets with masks `mask_iou`: the mean over their
    /// frames of what SAM 2 follows, as an answer would have it.
    fn metrics(
        &self,
        output: MaskOutput,
        targets: &[MaskTarget],
        context: &HeadContext<'_>,
    ) -> Result<Vec<HeadMetric>> {
        super::score::mask_metrics(self, output, targets, context)
    }

    fn decode(&self, output: MaskOutput, context: &HeadContext<'_>) -> Result<Vec<MaskPrediction>> {
        super::decode::decode(self, output, context)
    }
}
