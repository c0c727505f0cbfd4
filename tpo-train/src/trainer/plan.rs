//! All stages of a plan, one after the other.

use tpo_core::head::HeadSet;
use tpo_core::model::TpoModel;
use tpo_core::seed::mix;
use tpo_core::traits::{Connector, LanguageModel, VisionEncoder};

use super::data::TrainData;
use super::event::Hooks;
use super::run::{RunEnd, TrainOptions, Trainer};
use super::state::TrainState;
use crate::error::{Result, TrainError};
use crate::run_directory::materialise;
use crate::stage::{self, Stage};

/// Sets the draws of new adapters apart from everything else that follows from a stage's seed.
const ADAPTERS: u64 = u64::from_le_bytes(*b"adapters");

/// Opens the data of a stage: the stage, its place in the plan, its seed.
pub type OpenStage<'a> = dyn FnMut(&Stage, usize, u64) -> Result<Box<dyn TrainData>> + 'a;

/// Trains `model` through `stages`, each from where the one before ended.
///
/// `data` opens the stream of a stage, given its place and its seed. With `from` the run goes on
/// where that state was taken (the model must have the weights of that moment); stages before it
/// are passed over. The seed of a stage is its own, or `options.seed` plus its place.
///
/// A stage with [`Stage::lora`] begins by changing the adapters of the language model; new ones are
/// drawn from its seed. A run that is taken up inside such a stage must bring them along.
///
/// Returns the model without autodiff, and whether the plan came to its end.
///
/// # Errors
/// As [`Trainer::new`] and [`Trainer::run`]; [`TrainError::InvalidPlan`] when `from` is of a stage
/// that the plan does not have, or a stage asks for adapters that the language model cannot have.
pub fn train_plan<V, C, L, H>(
    mut model: TpoModel<V, C, L, H>,
    stages: &[Stage],
    mut from: Option<TrainState>,
    mut options: TrainOptions,
    data: &mut OpenStage<'_>,
    hooks: &mut dyn Hooks<TpoModel<V, C, L, H>>,
) -> Result<(TpoModel<V, C, L, H>, RunEnd)>
where
    V: VisionEncoder,
    C: Connector,
    L: LanguageModel,
    H: HeadSet,
{
    stage::valid(stage::problems(stages))?;
    let first = match &from {
        None => 0,
        Some(state) => stages
            .iter()
            .position(|s| s.name == state.stage)
            .ok_or_else(|| TrainError::InvalidPlan {
                problems: vec![format!(
                    "the run to go on with is in stage `{}`, which the plan does not have",
                    state.stage
                )],
            })?,
    };
    let seed = options.seed;
    for (index, stage) in stages.iter().enumerate().skip(first) {
        let stage_seed = stage
            .seed
            .unwrap_or_else(|| seed.wrapping_add(index as u64));
        if let (Some(lora), None) = (&stage.lora, &from) {
            options.device.seed(mix(stage_seed, ADAPTERS));
            let llm = model.llm.with_adapters(lora);
            model.llm = llm.map_err(|e| TrainError::InvalidPlan {
                problems: vec![format!("stages[{index}] `{}`.lora: {e}", stage.name)],
            })?;
            materialise(&model);
        }
        let mut data = data(stage, index, stage_seed)?;
        options.seed = stage_seed;
        options.stage_index = index;
        let mut trainer = match from.take() {
            Some(state) => Trainer::resume(model, stage.clone(), &mut *data, options, state)?,
            None => Trainer::new(model, stage.clone(), &*data, options)?,
        };
        let end = trainer.run(&mut *data, hooks)?;
        let parts = trainer.into_parts()?;
        (model, options) = parts;
        if end == RunEnd::Stopped {
            return Ok((model, end));
        }
    }
    Ok((model, RunEnd::Finished))
}
