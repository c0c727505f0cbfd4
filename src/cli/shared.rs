//! What several commands need: the model, the device, progress bars, files.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Instant;

use burn::tensor::{Device, FloatDType};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tpo_core::head::HeadSet;
use tpo_core::model::CallOrder;
use tpo_core::ops::QuantFormat;
use tpo_data::{FrameSampling, Progress};
use tpo_train::observe::terminal;

use crate::features::{FeatureCache, FeatureFolder, FrameCost, TemporalTowers, TowerOptions};
use crate::model::Quantize;
use crate::model::memory::WeightFormat;
use crate::session::{HeadProgress, Session, SessionOptions, TrackFrames};
use crate::{DeviceChoice, presets};

/// Why a command could not do what was asked.
pub(super) type Failure = Box<dyn std::error::Error>;
/// Result of a step of a command.
pub(super) type Outcome<T = End> = Result<T, Failure>;

/// How a command ended that could do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Fine,
    /// It found something wrong and has said what, or was stopped.
    Wrong,
}

impl End {
    pub(super) fn fine_if(fine: bool) -> Self {
        if fine { Self::Fine } else { Self::Wrong }
    }
}

#[derive(Args)]
pub(super) struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N, wgpu
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

impl DeviceArgs {
    pub(super) fn open(&self) -> crate::Result<Device> {
        self.device.open()
    }
}

#[derive(Args)]
pub(super) struct TowerArgs {
    /// Folder with InternVideo2-CLIP, whose features the temporal head of VideoChat-TPO reads:
    /// vision.safetensors, text.safetensors, clip.safetensors, tokenizer.model. That of LLaVA-OV-TPO reads
    /// its video tower alone, vision.safetensors and clip.safetensors. Read when the head is first called
    #[arg(long, value_name = "DIR")]
    pub towers: Option<PathBuf>,
    /// Where the towers compute [default: as --device]
    #[arg(long, value_name = "DEVICE", requires = "towers")]
    towers_device: Option<DeviceChoice>,
    /// Number format of the towers' weights in memory; auto: f32 if there is much room, else bf16 (CPU), or
    /// as in the files (accelerators)
    #[arg(long, value_enum, default_value = "auto", requires = "towers")]
    towers_dtype: Precision,
    /// Folder where features of the temporal head, of videos and queries, are kept between runs
    #[arg(long, value_name = "DIR")]
    pub feature_cache: Option<PathBuf>,
}

impl TowerArgs {
    /// The towers, of which nothing is read yet; they compute on `device` unless the arguments say
    /// otherwise. `memory` bounds them and what is opened beside them.
    pub(super) fn open(
        &self,
        device: &Device,
        memory: Option<u64>,
    ) -> crate::Result<(Option<TemporalTowers>, Option<FeatureCache>)> {
        let cache = self.feature_cache.as_ref().map(FeatureCache::open);
        let cache = cache.transpose()?;
        let Some(dir) = &self.towers else {
            return Ok((None, cache));
        };
        let own = self.towers_device.map(|choice| choice.open());
        let options = TowerOptions {
            dtype: self.towers_dtype.float(),
            memory,
            cache: cache.clone(),
            progress: Some(head_progress(None)),
        };
        let device = own.transpose()?.unwrap_or_else(|| device.clone());
        let towers = TemporalTowers::open(dir, &device, options)?;
        Ok((Some(towers), cache))
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// The trained mini model that comes with the library
    Mini,
    /// A tiny model with random weights: shows that everything runs
    Nano,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// As the published code runs it
    Reference,
    /// As the model was trained
    Trained,
}

/// A number format of weights.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Precision {
    Auto,
    F32,
    Bf16,
    F16,
}

impl Precision {
    pub(super) fn float(self) -> Option<FloatDType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(FloatDType::F32),
            Self::Bf16 => Some(FloatDType::BF16),
            Self::F16 => Some(FloatDType::F16),
        }
    }
}

/// A quantised format of weights.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum QuantizeArg {
    /// As they are
    None,
    /// 8.5 bits a weight
    #[value(name = "q8_0")]
    Q8,
    /// 4.5 bits a weight
    #[value(name = "q4_0")]
    Q4,
}

impl QuantizeArg {
    pub(super) fn format(self) -> Option<QuantFormat> {
        match self {
            Self::None => None,
            Self::Q8 => Some(QuantFormat::Q8_0),
            Self::Q4 => Some(QuantFormat::Q4_0),
        }
    }
}

// Which parts are quantised while they are read.
#[derive(Args)]
pub(super) struct QuantizeArgs {
    /// Quantise the linear layers of the language model
    #[arg(long, value_enum, default_value = "none")]
    quantize: QuantizeArg,
    /// Quantise the linear layers of the vision encoder
    #[arg(long, value_enum, value_name = "QUANTIZE", default_value = "none")]
    quantize_vision: QuantizeArg,
}

impl QuantizeArgs {
    pub(super) fn parts(&self) -> Quantize {
        Quantize {
            llm: self.quantize.format(),
            vision: self.quantize_vision.format(),
        }
    }
}

/// Which frames of a video the mask head goes through.
#[derive(Clone, Copy, ValueEnum)]
enum Track {
    /// Every frame of the file
    All,
    /// Those that the model looked at
    Sampled,
}

pub(super) fn parse_gib(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(gib) if gib > 0.0 && gib < 1e9 => Ok((gib * (1_u64 << 30) as f64) as u64),
        _ => Err(format!("`{text}` is not a number of GiB above 0")),
    }
}

/// Most tokens of an answer, where nothing else is said.
pub(super) const MAX_NEW_TOKENS: usize = 100;

// Which model answers, and how. (A doc comment would become that of the command.)
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// Model directory: VideoChat-TPO as published, or one written by this library
    #[arg(long, group = "who", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Built-in model
    #[arg(long, group = "who")]
    preset: Option<Preset>,
    /// Checkpoint of a training run, or the run, whose newest checkpoint is taken
    #[arg(long, group = "who", value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Number format of the weights in memory; auto: f32 if it fits, else bf16 (CPU), or as in the files
    /// (accelerators)
    #[arg(long, value_enum, default_value = "auto")]
    dtype: Precision,
    #[command(flatten)]
    quantize: QuantizeArgs,
    /// GiB of memory the model and its towers may take on the CPU [default: what is available]
    #[arg(long, value_name = "GIB", value_parser = parse_gib)]
    memory: Option<u64>,
    #[command(flatten)]
    towers: TowerArgs,
    /// Folder with features of the temporal head that were computed before: of clip.mp4 in clip.npz, .npy
    /// or .safetensors, of queries in text/. Towers are asked for what is not there
    #[arg(long, value_name = "DIR")]
    features: Option<PathBuf>,
    /// When a head is called; default: as the model's tpo.json says
    #[arg(long, value_enum)]
    order: Option<Order>,
    /// Frames to look at: middle, rand, rand:SEED, linspace, fps1, fps0.5, …, or upto1 (one a second, at
    /// most as many as the model reads); default: as the model's tpo.json says
    #[arg(long)]
    sampling: Option<FrameSampling>,
    /// Which frames the mask head goes through, which takes seconds a frame on a CPU
    #[arg(long, value_enum, default_value = "all")]
    track: Track,
    /// Most tokens of an answer [default: 100; 200 where `evaluate` asks with the published prompts]
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Seed of whatever is random: sampling of words, the synthetic world, weights of the preset nano
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

impl ModelArgs {
    pub(super) fn is_given(&self) -> bool {
        self.model.is_some() || self.preset.is_some() || self.checkpoint.is_some()
    }

    /// Which frames the mask head goes through.
    pub(super) fn track(&self) -> TrackFrames {
        match self.track {
            Track::All => TrackFrames::All,
            Track::Sampled => TrackFrames::Sampled,
        }
    }

    /// The model with its name. Of `options`, what the arguments do not say is taken.
    pub(super) fn open<H: HeadSet>(
        &self,
        options: SessionOptions,
    ) -> Outcome<(Session<H>, String)> {
        let device = self.device.open()?;
        let (towers, feature_cache) = self.towers.open(&device, self.memory)?;
        let features = self.features.as_ref().map(FeatureFolder::open);
        let options = SessionOptions {
            sampling: self.sampling,
            track: self.track(),
            call_order: self.order.map(|order| match order {
                Order::Reference => CallOrder::AsReference,
                Order::Trained => CallOrder::AsTrained,
            }),
            max_new_tokens: self.max_new_tokens.unwrap_or(options.max_new_tokens),
            dtype: self.dtype.float(),
            quantize: self.quantize.parts(),
            memory: self.memory,
            towers,
            features: features.transpose()?,
            feature_cache,
            ..options
        };
        let formats = self.dtype.float().is_some()
            || self.quantize.parts() != Quantize::default()
            || self.memory.is_some();
        if formats && (self.checkpoint.is_some() || matches!(self.preset, Some(Preset::Nano))) {
            return Err(
                "--dtype, --quantize and --memory are for model directories; write one of a checkpoint \
                        with `tpo train RECIPE --resume --export DIR`, and give --model DIR"
                    .into(),
            );
        }
        if let Some(dir) = &self.checkpoint {
            let session = Session::checkpoint_with_heads(dir, &device, options)?;
            return Ok((session, dir.display().to_string()));
        }
        if let Some(Preset::Nano) = self.preset {
            let session = Session::nano_with_heads(&device, self.seed, options)?;
            return Ok((session, "nano, random weights".into()));
        }
        if !self.is_given() {
            eprintln!("{MINI}");
        }
        let name = self.model.as_ref().map(|dir| dir.display().to_string());
        let start = Instant::now();
        let session: Session<H> = open_model(self.model.as_deref(), &device, options)?;
        let dtype = session.options().dtype.filter(|d| *d != FloatDType::F32);
        let quantize = session.config().quantization();
        if dtype.is_some() || quantize != Quantize::default() {
            let format = WeightFormat {
                dtype: dtype.unwrap_or(FloatDType::F32),
                quantize,
            };
            let seconds = start.elapsed().as_secs_f64();
            eprintln!(
                "(weights in memory: {}, opened in {seconds:.1} s)",
                format.flags()
            );
        }
        Ok((session, name.unwrap_or_else(|| "mini".into())))
    }
}

/// What is said when nobody said which model.
pub(super) const MINI: &str =
    "(no --model: the mini model, which knows coloured shapes of the synthetic world only)";

/// The model of a directory, or the mini model.
pub(super) fn open_model<H: HeadSet>(
    dir: Option<&Path>,
    device: &Device,
    options: SessionOptions,
) -> crate::Result<Session<H>> {
    match dir {
        Some(dir) => {
            Ok(loading(|heard| Session::open_with_heads(dir, device, options, Some(heard)))?.0)
        }
        None => presets::mini_with_heads(device, options),
    }
}

/// A progress bar without a length yet, below which nothing is printed.
pub(super) fn bar(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    terminal().add(ProgressBar::new(0).with_style(style))
}

/// Shows how many bytes of weights `work` has read.
pub(super) fn loading<T>(work: impl FnOnce(&dyn Fn(u64, u64)) -> T) -> T {
    let bar = bar("loading {bar:32} {bytes}/{total_bytes} {eta}");
    let done = work(&|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    done
}

/// Shows how many of its steps `work` has done.
pub(super) fn counting<T>(what: &str, work: impl FnOnce(Progress<'_>) -> T) -> T {
    let bar = bar("{msg} {bar:32} {pos}/{len} {eta}").with_message(what.to_string());
    let done = work(&|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        true
    });
    bar.finish_and_clear();
    done
}

/// The flag that shortens the way of the mask head.
pub(super) const TRACK_SAMPLED: &str = "--track sampled";

/// Seconds of a head's work on frames of which it is said beforehand what they cost.
const LONG: f64 = 20.0;

/// A bar for heads that work through many frames. What a long way will cost is said once, when the
/// first frame is done; with `cheaper`, the flag that makes it shorter.
pub(super) fn head_progress(cheaper: Option<&'static str>) -> HeadProgress {
    let bar = bar("{msg} {bar:32} {pos}/{len} {per_sec} {eta}");
    let said = Once::new();
    HeadProgress(Arc::new(move |step| {
        if step.done <= 1 {
            bar.reset();
        }
        bar.set_length(step.total as u64);
        bar.set_message(step.what.to_string());
        if let Some(cost) = step.cost.filter(|cost| cost.seconds(cost.frames) > LONG) {
            said.call_once(|| bar.suspend(|| eprintln!("{}", in_advance(&cost, cheaper))));
        }
        bar.set_position(step.done as u64);
        if step.done >= step.total {
            bar.finish_and_clear();
        }
    }))
}

/// What frames will cost, and what a flag makes of it.
fn in_advance(cost: &FrameCost, cheaper: Option<&str>) -> String {
    match cheaper.filter(|_| cost.sampled < cost.frames) {
        Some(flag) => format!("{cost}; {flag}: {}", cost.of(cost.sampled)),
        None => cost.to_string(),
    }
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()).into())
}

/// A new file; makes its folder.
pub(super) fn create(path: &Path) -> Outcome<BufWriter<File>> {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    Ok(BufWriter::new(File::create(path).map_err(failed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_cost_is_said_with_the_way_out() {
        let cost = FrameCost {
            frames: 300,
            sampled: 16,
            side: 1024,
            seconds_per_frame: 9.4,
        };
        assert_eq!(
            in_advance(&cost, Some(TRACK_SAMPLED)),
            "300 frames at 1024², about 47 min here; --track sampled: 16 frames, about 2.5 min"
        );
        let alone = "300 frames at 1024², about 47 min here";
        assert_eq!(in_advance(&cost, None), alone);
        let sampled = FrameCost { frames: 16, ..cost };
        let alone = "16 frames at 1024², about 2.5 min here";
        assert_eq!(in_advance(&sampled, Some(TRACK_SAMPLED)), alone);
    }
}
