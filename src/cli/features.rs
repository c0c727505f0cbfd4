//! Video to the features the temporal head reads.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use tpo_core::weights::DtypePolicy;
use tpo_heads::temporal::features::{ClipFeatureExtractor, InternVideo2Features};
use tpo_vision::InternVideo2Config;
use tpo_vision::internvideo2::{VisionFileKind, VisionFiles, VisionLoadOptions};

use super::shared::{DeviceArgs, End, Outcome, Precision, counting, loading};
use crate::features::{
    CacheUse, ExtractOptions, FeatureCache, VIDEO_TOWER, VideoFeatures, extract_video,
    identity_of_files,
};

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
#[derive(clap::Args)]
#[command(
    after_help = "Weights: InternVideo2-CLIP-1B is published as PyTorch files. Rewrite each as
safetensors first (names stay as they are):
  python tools/pth_to_safetensors.py InternVideo2-stage2_1b-224p-f4.pt vision.safetensors
  python tools/pth_to_safetensors.py 1B_clip.pth clip.safetensors

Example, real weights (the tower alone takes 4 GB in f32):
  tpo features video.mp4 --vision vision.safetensors --clip clip.safetensors --out features
Example, no weights (a small random tower: shows the flow, features mean nothing):
  tpo features assets/bouncing_shapes.mp4 --preset mini --out features"
)]
pub(super) struct Args {
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
    /// Number format of the weights in memory; auto: f32 (CPU), or as in the files (accelerators)
    #[arg(long, value_enum, default_value = "auto", requires = "vision")]
    dtype: Precision,
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
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// InternVideo2-CLIP-1B: 1408 wide, 40 blocks, features of 768
    #[value(name = "internvideo2-1b")]
    Internvideo2_1b,
    /// A small tower for trying things out
    Mini,
}

pub(super) fn run(args: Args) -> Outcome {
    let cache = args.cache.as_ref().map(FeatureCache::open).transpose()?;
    let extractor = extractor(&args, cache.as_ref())?.with_clips_per_batch(args.clips_per_batch);
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
        match one(video, &args, &extractor, &options) {
            Ok(line) => println!("{line}"),
            Err(e) => {
                fine = false;
                eprintln!("error: {}: {e}", video.display());
            }
        }
    }
    Ok(End::fine_if(fine))
}

fn one(
    video: &Path,
    args: &Args,
    extractor: &InternVideo2Features,
    options: &ExtractOptions<'_>,
) -> Outcome<String> {
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
    let what = name.to_string_lossy();
    let found = counting(&what, |heard| {
        extract_video(video, extractor, options, Some(heard))
    })?;
    found.save(&target, &extractor.identity()?)?;
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

fn extractor(args: &Args, cache: Option<&FeatureCache>) -> Outcome<InternVideo2Features> {
    let device = args.device.open()?;
    let config = match args.preset {
        Preset::Internvideo2_1b => InternVideo2Config::internvideo2_1b(),
        Preset::Mini => InternVideo2Config::mini(),
    };
    device.seed(args.seed);
    let tower = config.init(&device)?;
    let Some(vision) = &args.vision else {
        eprintln!("no --vision: the tower has random weights and its features mean nothing");
        return Ok(InternVideo2Features::new(tower));
    };
    // Half precision is slow on a CPU.
    let plain = (device == Device::flex()).then_some(FloatDType::F32);
    let dtype = args.dtype.float().or(plain);
    let dtype = dtype.map_or(DtypePolicy::Keep, DtypePolicy::Cast);
    let files = VisionFiles {
        vision: vision.clone(),
        kind: if args.bare {
            VisionFileKind::Bare
        } else {
            VisionFileKind::Stage2
        },
        clip: args.clip.clone(),
    };
    let loaded = loading(|heard| {
        let mut options = VisionLoadOptions {
            table_steps: args.table_frames,
            ..VisionLoadOptions::default()
        };
        options.load.progress = Some(heard);
        options.load.dtype = dtype;
        tower.load(&files, &options)
    });
    let extractor = InternVideo2Features::new(loaded?.0);
    // As a session names it that has the files in one folder.
    let files: Vec<&Path> = [vision]
        .into_iter()
        .chain(&args.clip)
        .map(PathBuf::as_path)
        .collect();
    let mut identity = identity_of_files(VIDEO_TOWER, dtype, &files, cache)?;
    if args.table_frames != VisionLoadOptions::default().table_steps {
        identity += &format!(":table {}", args.table_frames);
    }
    Ok(extractor.with_identity(identity))
}
