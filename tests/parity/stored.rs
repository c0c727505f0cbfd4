//! The temporal head on batches whose padding holds numbers, as fixtures store them. The library's
//! own head reads unpadded features, and no loss of the reference ignores padding entirely.

use std::collections::HashMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use tpo::VideoChatTpo;
use tpo::core::head::{HeadContext, HeadSpec, LossTerms, ModelSizes, TaskHead};
use tpo::core::model::TpoModel;
use tpo::core::truth::Truth;
use tpo::core::{CoreError, heads};
use tpo::heads::mask::MaskHead;
use tpo::heads::region::RegionHead;
use tpo::heads::temporal::model::{CgDetrInput, CgDetrOutput, TrainingInput};
use tpo::heads::temporal::{
    BatchTargets, CgDetr, Criterion, StartEndMlps, TemporalHead, TemporalHeadConfig,
    TemporalPrediction, TemporalTarget, criterion,
};
use tpo::llm::CausalLm;
use tpo::model::{Connector, Vision};

use super::fixture::{Failure, Fixture};

const VIDEO: &str = "stored.video";
const TEXT: &str = "stored.text";
const LENGTHS: &str = "stored.lengths";

/// The parameters of [`TemporalHead`] at the same paths.
#[derive(Module, Debug)]
pub struct StoredTemporal {
    pub model: CgDetr,
    pub criterion: Criterion,
    pub start_end: Option<StartEndMlps>,
    #[module(skip)]
    config: TemporalHeadConfig,
}

heads! {
    /// The heads of VideoChat-TPO with [`StoredTemporal`].
    pub struct StoredHeads {
        region: RegionHead,
        temporal: StoredTemporal,
        mask: MaskHead,
    }
}

/// VideoChat-TPO with [`StoredTemporal`].
pub type StoredTpo = TpoModel<Vision, Connector, CausalLm, StoredHeads>;

impl From<TemporalHead> for StoredTemporal {
    fn from(head: TemporalHead) -> Self {
        Self {
            config: head.config().clone(),
            model: head.model,
            criterion: head.criterion,
            start_end: head.start_end,
        }
    }
}

/// The model with the other temporal head and the same parameters.
pub fn with_stored(model: VideoChatTpo, device: &Device) -> Result<StoredTpo, Failure> {
    let registry = model.registry().clone();
    let heads = StoredHeads {
        region: model.heads.region,
        temporal: model.heads.temporal.into(),
        mask: model.heads.mask,
    };
    let (vision, connector, llm) = (model.vision, model.connector, model.llm);
    let mut stored = TpoModel::new(vision, connector, llm, heads, registry, device)?;
    stored.task_tokens = model.task_tokens;
    Ok(stored)
}

/// Padded features of every sample under `prefix`, with their lengths.
pub fn features(
    fixture: &Fixture,
    prefix: &str,
    device: &Device,
) -> Result<Vec<HashMap<String, Tensor<2>>>, Failure> {
    let rows = |name: &str, at: usize| -> Result<Tensor<2>, Failure> {
        let all = fixture.tensor::<3>(&format!("{prefix}.tvg.{name}"), device)?;
        let [_, length, width] = all.dims();
        Ok(all.narrow(0, at, 1).reshape([length, width]))
    };
    let lengths = |name: &str| super::temporal::lengths(fixture, &format!("{prefix}.tvg.{name}"));
    let (video, text) = (lengths("src_vid_mask")?, lengths("src_txt_mask")?);
    (0..video.len())
        .map(|at| {
            let both = TensorData::new(vec![video[at] as f32, text[at] as f32], [1, 2]);
            Ok(HashMap::from([
                (VIDEO.to_string(), rows("src_vid", at)?),
                (TEXT.to_string(), rows("src_txt", at)?),
                (LENGTHS.to_string(), Tensor::from_data(both, device)),
            ]))
        })
        .collect()
}

impl TaskHead for StoredTemporal {
    type Config = TemporalHeadConfig;
    type Target = TemporalTarget;
    type Output = CgDetrOutput;
    type Prediction = TemporalPrediction;

    const NAME: &'static str = TemporalHead::NAME;

    fn spec() -> HeadSpec {
        TemporalHead::spec()
    }

    fn init(
        config: &TemporalHeadConfig,
        sizes: &ModelSizes,
        device: &Device,
    ) -> tpo::core::Result<Self> {
        Ok(<TemporalHead as TaskHead>::init(config, sizes, device)?.into())
    }

    fn target(&self, truth: &Truth) -> tpo::core::Result<TemporalTarget> {
        Err(truth.unusable("the fixtures bring their targets with them"))
    }

    fn forward(
        &self,
        task: Tensor<2>,
        context: &HeadContext<'_>,
    ) -> tpo::core::Result<CgDetrOutput> {
        let gather = |name: &str| -> tpo::core::Result<Tensor<3>> {
            let rows = (0..task.dims()[0]).map(|i| context.require_features("temporal", i, name));
            Ok(Tensor::stack(rows.collect::<Result<Vec<_>, _>>()?, 0))
        };
        let lengths: Vec<usize> = gather(LENGTHS)?
            .into_data()
            .iter::<f32>()
            .map(|n| n as usize)
            .collect();
        Ok(self.model.forward(CgDetrInput {
            video: gather(VIDEO)?,
            video_lengths: lengths.iter().copied().step_by(2).collect(),
            text: gather(TEXT)?,
            text_lengths: lengths.iter().copied().skip(1).step_by(2).collect(),
            prompt: task,
        })?)
    }

    fn loss(
        &self,
        output: &CgDetrOutput,
        targets: &[TemporalTarget],
        context: &HeadContext<'_>,
    ) -> tpo::core::Result<LossTerms> {
        let names: Vec<Option<&str>> = (0..targets.len())
            .map(|i| context.sample(i).and_then(|s| s.media.as_deref()))
            .collect();
        let seconds = self.config.clip_seconds;
        let targets = BatchTargets::new(targets, &output.video_lengths, seconds, &names)?;
        let training = self.model.training(
            output,
            &TrainingInput {
                relevant: targets.relevant.clone(),
                real_negative: targets.real_negative.clone(),
            },
        );
        let weight = self.criterion.empty_weight.val();
        Ok(criterion(output, &training, &targets, weight, &self.config.criterion)?.terms)
    }

    fn decode(
        &self,
        _: CgDetrOutput,
        _: &HeadContext<'_>,
    ) -> tpo::core::Result<Vec<TemporalPrediction>> {
        Err(CoreError::MissingInput {
            head: "temporal".into(),
            what: "unpadded features",
            hint: "answers are decoded by TemporalHead",
        })
    }
}
