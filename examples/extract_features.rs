//! Video to the features the temporal head reads.

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tpo::features::{CacheUse, ExtractOptions, FeatureCache, VideoFeatures, extract_video};
use tpo::heads::temporal::features::{ClipFeatureExtractor, InternVideo2Features};
use tpo::prelude::*;
use tpo::vision::InternVideo2Config;
use tpo::vision::internvideo2::{InternVideo2, VisionFileKind, VisionFiles, VisionLoadOptions};
use tpo::weights::DtypePolicy;

// Large activations come and go with every layer; the system's allocator gives their pages back
// each time, which costs more than the arithmetic of an activation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Extract the video features of the temporal head.
///
/// Shows a frozen InternVideo2-CLIP tower eight frames of every second (the middle of each eighth,
/// 224x224) and writes one feature per second to OUT/<video name>.safetensors, as the array
/// `features` of [seconds, width]. The last fraction of a second has none; a video shorter than a
/// second is refused.
///
/// Frames are streamed: memory depends on --clips-per-batch, not on the length of the video. With
/// --cache, features are kept under a hash of the video's bytes, the weights and the sampling, so a
/// second run of any program that shares the directory decodes nothing.
#[derive(Parser)]
#[command(
    after_help = "Weights: InternVideo2-CLIP-1B is published as PyTorch files. Rewrite each as
safetensors first (names stay as they are):
  python tools/pth_to_safetensors.py InternVideo2-stage2_1b-224p-f4.pt vision.safetensors
  python tools/pth_to_safetensors.py 1B_clip.pth clip.safetensors

Example, real weights (the tower alone takes 4 GB in f32):
  extract_features video.mp4 --vision vision.safetensors --clip clip.safetensors --out features
Example, no weights (a small random tower: shows the flow, features mean nothing):
  extract_features assets/bouncing_shapes.mp4 --preset mini --out features"
)]
struct Args {
    /// Videos
    #[arg(required = true)]
    videos: Vec<PathBuf>,
    /// Directory for the features
    #[arg(long, default_value = "features")]
    out: PathBuf,
    /// Size of the tower
    #[arg(long, value_enum, default_value_t = Preset::Internvideo2_1b)]
    preset: Preset,
    /// Stage-2 weights of the tower; without them weights are random
    #[arg(long)]
    vision: Option<PathBuf>,
    /// --vision is a bare tower: its keys do not start with `vision_encoder.`
    #[arg(long, requires = "vision")]
    bare: bool,
    /// CLIP weights, which replace the tower's pooling
    #[arg(long, requires = "vision")]
    clip: Option<PathBuf>,
    /// Frames of the position table in --vision
    #[arg(long, default_value_t = 4)]
    table_frames: usize,
    /// Seed of random weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Directory of computed features
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Replace features that are there
    #[arg(long)]
    force: bool,
    /// Seconds of video in memory at a time
    #[arg(long, default_value_t = 4)]
    clips_per_batch: usize,
    /// auto, cpu, cuda:0 or wgpu
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// InternVideo2-CLIP-1B: 1408 wide, 40 blocks, features of 768
    #[value(name = "internvideo2-1b")]
    Internvideo2_1b,
    /// A small tower for trying things out
    Mini,
}

fn main() {
    sigpipe::reset();
    let args = Args::parse();
    match run(&args) {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(1);
        }
    }
}

/// Whether every video went well.
fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    let extractor =
        InternVideo2Features::new(tower(args)?).with_clips_per_batch(args.clips_per_batch);
    let cache = args.cache.as_ref().map(FeatureCache::open).transpose()?;
    let options = ExtractOptions {
        clips_per_batch: args.clips_per_batch,
        cache: cache.as_ref(),
        ..ExtractOptions::default()
    };
    // Features go by the name of the video.
    for (at, video) in args.videos.iter().enumerate() {
        let same = |other: &&PathBuf| other.file_stem() == video.file_stem();
        if let Some(other) = args.videos[..at].iter().find(same) {
            return Err(format!(
                "{} and {} would write the same file; extract them into folders of their own (--out)",
                other.display(),
                video.display()
            )
            .into());
        }
    }
    std::fs::create_dir_all(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let mut fine = true;
    for video in &args.videos {
        match one(video, args, &extractor, &options) {
            Ok(line) => println!("{line}"),
            Err(e) => {
                fine = false;
                eprintln!("error: {}: {e}", video.display());
            }
        }
    }
    Ok(fine)
}

fn one(
    video: &Path,
    args: &Args,
    extractor: &InternVideo2Features,
    options: &ExtractOptions<'_>,
) -> Result<String, Box<dyn std::error::Error>> {
    let name = video.file_stem().ok_or("it has no file name")?;
    let target = args
        .out
        .join(format!("{}.safetensors", name.to_string_lossy()));
    if target.exists() && !args.force {
        return Ok(format!(
            "{} is there; --force replaces it",
            target.display()
        ));
    }
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{msg} {bar:32} {pos}/{len} s {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(name.to_string_lossy().into_owned());
    let report = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        true
    };
    let found = extract_video(video, extractor, options, Some(&report));
    bar.finish_and_clear();
    let found = found?;
    found.save(&target, extractor.identity())?;
    Ok(summary(&target, &found))
}

fn summary(target: &Path, found: &VideoFeatures) -> String {
    let how = match &found.cache {
        CacheUse::None => String::new(),
        CacheUse::Hit => ", from the cache".into(),
        CacheUse::Stored => ", added to the cache".into(),
        CacheUse::NotStored(why) => format!(", not added to the cache: {why}"),
    };
    format!(
        "{}: {} features of {} for {:.2} s{how}",
        target.display(),
        found.matrix().rows(),
        found.matrix().width(),
        found.duration
    )
}

fn tower(args: &Args) -> Result<InternVideo2, Box<dyn std::error::Error>> {
    let device = args.device.open()?;
    let config = match args.preset {
        Preset::Internvideo2_1b => InternVideo2Config::internvideo2_1b(),
        Preset::Mini => InternVideo2Config::mini(),
    };
    device.seed(args.seed);
    let tower = config.init(&device)?;
    let Some(vision) = &args.vision else {
        eprintln!("no --vision: the tower has random weights and its features mean nothing");
        return Ok(tower);
    };
    let files = VisionFiles {
        vision: vision.clone(),
        kind: match args.bare {
            true => VisionFileKind::Bare,
            false => VisionFileKind::Stage2,
        },
        clip: args.clip.clone(),
    };
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("loading {bar:32} {bytes}/{total_bytes} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let report = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut options = VisionLoadOptions {
        table_steps: args.table_frames,
        ..VisionLoadOptions::default()
    };
    options.load.progress = Some(&report);
    // Half precision is slow on a CPU.
    if device == Device::flex() {
        options.load.dtype = DtypePolicy::Cast(FloatDType::F32);
    }
    let loaded = tower.load(&files, &options);
    bar.finish_and_clear();
    Ok(loaded?.0)
}
