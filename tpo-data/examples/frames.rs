//! Writes the frames a model would see as PNG files.
//!
//! ```text
//! cargo run --release -p tpo-data --example frames -- VIDEO OUT_DIR [SAMPLING] [NUM_FRAMES]
//! ```
//! SAMPLING is `middle` (default), `rand:SEED` or `fpsX`.

use std::path::PathBuf;

use tpo_data::{ClipConfig, MediaLimits, open_video, select_frames};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(video), Some(out)) = (args.first(), args.get(1)) else {
        return Err("usage: frames VIDEO OUT_DIR [SAMPLING] [NUM_FRAMES]".into());
    };
    let mut config = ClipConfig::default();
    if let Some(sampling) = args.get(2) {
        config.sampling = sampling.parse()?;
    }
    if let Some(n) = args.get(3) {
        config.num_frames = n.parse()?;
    }
    let reader = open_video(video, &MediaLimits::default())?;
    let info = reader.info();
    println!(
        "{}x{}, {} frames, {:.3} fps, {:.2} s, {}, rotated by {} degrees",
        info.width,
        info.height,
        info.frame_count,
        info.fps,
        info.duration,
        info.codec,
        info.rotation.degrees()
    );
    let out = PathBuf::from(out);
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
