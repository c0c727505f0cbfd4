//! Writes the frames a model would see as PNG files.
//!
//! `cargo run --release -p tpo-data --example frames -- VIDEO OUT_DIR`

use std::path::PathBuf;

use clap::Parser;
use tpo_data::{ClipConfig, FrameSampling, MediaLimits, open_video, select_frames};

/// Write the frames a model would see as PNG files.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Video, or image.
    video: PathBuf,
    /// Folder for the pictures.
    out: PathBuf,
    /// Which frames: `middle` of equal parts, `rand:SEED`, or `fps` and a number of frames a second.
    #[arg(default_value = "middle")]
    sampling: FrameSampling,
    /// How many; without it, as many as the model reads.
    num_frames: Option<usize>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    sigpipe::reset();
    let args = Args::parse();
    let mut config = ClipConfig {
        sampling: args.sampling,
        ..ClipConfig::default()
    };
    if let Some(n) = args.num_frames {
        config.num_frames = n;
    }
    let reader = open_video(&args.video, &MediaLimits::default())?;
    let info = reader.info();
    println!(
        "{}x{}, {} frames, {:.3} fps, {:.2} s, {}, rotation {:?}",
        info.width,
        info.height,
        info.frame_count,
        info.fps,
        info.duration,
        info.codec,
        info.rotation
    );
    let out = args.out;
    std::fs::create_dir_all(&out)?;
    reader.visit_frames(&select_frames(info, &config)?, &|index, frame| {
        let path = out.join(format!("frame_{index:06}.png"));
        let (width, height) = (frame.width() as u32, frame.height() as u32);
        image::save_buffer(
            &path,
            frame.rgb(),
            width,
            height,
            image::ExtendedColorType::Rgb8,
        )
        .map_err(|e| tpo_data::DataError::Image {
            path,
            reason: e.to_string(),
        })
    })?;
    Ok(())
}
