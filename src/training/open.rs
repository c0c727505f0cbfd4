//! Sessions from training checkpoints.

use std::path::Path;

use burn::tensor::{Device, FloatDType};
use tpo_core::head::HeadSet;
use tpo_core::weights::cast_params;
use tpo_train::checkpoint::files;
use tpo_train::run_directory::find_checkpoint;
use tpo_train::{Precision, TrainState};

use super::recipe::set_precision;
use super::{recipe_model, staged_model};
use crate::error::Result;
use crate::session::{Session, SessionOptions};

impl Session {
    /// The model of a training checkpoint with the built-in heads; see
    /// [`Session::checkpoint_with_heads`].
    ///
    /// # Errors
    /// As [`Session::checkpoint_with_heads`].
    pub fn open_checkpoint(
        path: impl AsRef<Path>,
        device: &Device,
        options: SessionOptions,
    ) -> Result<Self> {
        Self::checkpoint_with_heads(path, device, options)
    }
}

impl<H: HeadSet> Session<H> {
    /// The model of a training checkpoint: a checkpoint directory, or the newest of a run. The
    /// sizes come from the recipe beside the weights; a model directory it names must still be
    /// there.
    ///
    /// All weights become [`SessionOptions::dtype`]: without one f32 on the CPU, and the type the stage
    /// was trained in elsewhere.
    ///
    /// # Errors
    /// [`Error::Train`](crate::Error::Train) when there is no whole checkpoint or its weights do
    /// not fit its recipe; those of [`recipe_model`].
    pub fn checkpoint_with_heads(
        path: impl AsRef<Path>,
        device: &Device,
        options: SessionOptions,
    ) -> Result<Self> {
        let checkpoint = find_checkpoint(path)?;
        let mut recipe = checkpoint.recipe()?;
        // The checkpoint holds all weights, so those it started from are not needed.
        recipe.model.start = None;
        let state: TrainState = checkpoint.json(files::STATE)?;
        let stage = recipe.stages.get(state.stage_index);
        let dtype = options.dtype.unwrap_or(match stage.map(|s| s.precision) {
            Some(Precision::Bf16) if *device != Device::flex() => FloatDType::BF16,
            _ => FloatDType::F32,
        });
        // What is in 16 bits in the files is not read in 32 to be held in 16.
        let read = match dtype {
            FloatDType::F32 => Precision::F32,
            _ => Precision::Bf16,
        };
        set_precision(&mut recipe, read);
        let built = recipe_model::<H>(&recipe, device)?;
        // A stage may have changed the adapters.
        let model = staged_model(&recipe, &built.model, state.stage_index)?;
        let mut config = built.config;
        config.llm = model.llm.config().clone();
        let model = checkpoint.load_module(files::WEIGHTS, model, &|_| false)?;
        // Files, drawn weights and the checkpoint may each be of another type.
        let model = cast_params(model, dtype);
        let mut session = Self::new(model, config, built.tokenizer, device, options)?;
        session.tokenizer_files = built.tokenizer_files;
        Ok(session)
    }
}
