//! Opening a model directory as a session, and writing one.

use std::path::Path;

use burn::tensor::Device;
use tpo_core::head::HeadSet;
use tpo_core::weights::{DtypePolicy, LoadOptions, LoadReport, load_module};
use tpo_train::run_directory::materialise;

use super::{Session, SessionOptions};
use crate::error::{Error, Result};
use crate::model::export::{ExportOptions, export_model};
use crate::model::memory::{ModelMemory, available_memory, choose_format};
use crate::model::{
    TpoConfig, byte_tokenizer, byte_tokenizer_files, model_tokenizer, open_weights, read_config_of,
    tokenizer_files,
};

impl Session {
    /// Opens a model directory with the built-in heads; see [`Session::open_with_heads`].
    ///
    /// # Errors
    /// As [`Session::open_with_heads`].
    pub fn open(
        dir: impl AsRef<Path>,
        device: &Device,
        options: SessionOptions,
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<(Self, LoadReport)> {
        Self::open_with_heads(dir, device, options, progress)
    }

    /// A tiny model with **random weights** drawn from `seed`: it runs the whole chain and knows
    /// nothing. [`presets::mini`](crate::presets::mini) is one that was trained.
    ///
    /// # Errors
    /// None that an intact build can cause.
    pub fn nano(device: &Device, seed: u64, options: SessionOptions) -> Result<Self> {
        Self::nano_with_heads(device, seed, options)
    }
}

impl<H: HeadSet> Session<H> {
    /// [`Session::nano`] for a program with any heads, which must be the built-in ones.
    ///
    /// # Errors
    /// [`Error::Config`] for other heads.
    pub fn nano_with_heads(device: &Device, seed: u64, options: SessionOptions) -> Result<Self> {
        let tokenizer = byte_tokenizer()?;
        let config = TpoConfig::nano(tokenizer.vocab_size());
        device.seed(seed);
        let model = config.init(device)?;
        let mut session = Self::new(model, config, tokenizer, device, options)?;
        session.tokenizer_files = byte_tokenizer_files();
        Ok(session)
    }

    /// Loads a model directory with any heads, strictly: `Session::<MyHeads>::open_with_heads(..)`.
    /// `progress` hears (bytes done, bytes in total).
    ///
    /// On the CPU weights become f32 if there is memory for that, else bf16, unless
    /// [`SessionOptions::dtype`] says otherwise. The published 7B model takes 32 GB in f32, 17 GB in
    /// bf16, and with [`SessionOptions::quantize`] 10 GB (q8_0) or 6.7 GB (q4_0).
    ///
    /// # Errors
    /// [`Error::ModelDir`] when the directory does not hold a model; [`Error::Memory`] when it does not
    /// fit, before a weight is read; [`Error::Weights`] naming every missing, unexpected or mismatched tensor.
    pub fn open_with_heads(
        dir: impl AsRef<Path>,
        device: &Device,
        options: SessionOptions,
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<(Self, LoadReport)> {
        let dir = dir.as_ref();
        let mut config = read_config_of::<H>(dir)?;
        let (checkpoint, keys) = open_weights::<H>(dir, &config)?;
        let tokenizer = model_tokenizer(dir, &config)?;
        let mut options = options;
        if *device == Device::flex() {
            let (towers, answer) = (options.towers.as_ref(), options.max_new_tokens);
            let [open, to_open] = towers.map_or([0; 2], |t| [t.bytes_open(), t.bytes_to_open()]);
            // Of what is available, open towers have taken their part.
            let bound = options.memory.map(|all| all.saturating_sub(open));
            let memory = bound.or_else(available_memory);
            let (dtype, quantize) = (options.dtype, options.quantize);
            let dtype = choose_format::<H>(&config, dtype, quantize, answer, to_open, memory)?;
            options.dtype = Some(dtype);
            if let (Some(towers), Some(all)) = (towers, options.memory) {
                let mut config = config.clone();
                config.quantize(options.quantize)?;
                let model = ModelMemory::of::<H>(&config, dtype, answer)?;
                towers.keep_within(all.saturating_sub(model.total()));
            }
        }
        config.quantize(options.quantize)?;
        let load = LoadOptions {
            dtype: options.dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast),
            progress,
            ..LoadOptions::default()
        };
        let model = config.init(device)?;
        let (model, report) = load_module(model, &checkpoint, &keys, &load)?;
        let mut session = Self::new(model, config, tokenizer, device, options)?;
        session.tokenizer_files = tokenizer_files(dir)?;
        Ok((session, report))
    }

    /// A model of the sizes and with the tokenizer of a directory, with **random weights** drawn
    /// from `seed`.
    ///
    /// # Errors
    /// [`Error::ModelDir`] and [`Error::Config`] when the directory does not hold them.
    pub fn random(
        dir: impl AsRef<Path>,
        device: &Device,
        seed: u64,
        options: SessionOptions,
    ) -> Result<Self> {
        let dir = dir.as_ref();
        let config = read_config_of::<H>(dir)?;
        let tokenizer = model_tokenizer(dir, &config)?;
        device.seed(seed);
        let model = config.init(device)?;
        materialise(&model);
        let mut session = Self::new(model, config, tokenizer, device, options)?;
        session.tokenizer_files = tokenizer_files(dir)?;
        Ok(session)
    }

    /// Writes the session's model as [`export_model`] does, with its adapters beside the weights and
    /// its tokenizer. A model that is there is replaced.
    ///
    /// # Errors
    /// [`Error::ModelDir`] for a session that was made of a tokenizer without files
    /// ([`Session::new`]; use [`export_model`] and give it the files); those of [`export_model`].
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        if self.tokenizer_files.is_empty() {
            return Err(Error::ModelDir {
                path: dir.as_ref().into(),
                why: "the session knows no files of its tokenizer, without which the model cannot be \
                      opened; write it with export_model and give them"
                    .into(),
            });
        }
        let options = ExportOptions {
            overwrite: true,
            ..ExportOptions::default()
        };
        let model = self.model().clone();
        export_model(model, self.config(), &self.tokenizer_files, dir, &options)?;
        Ok(())
    }
}
