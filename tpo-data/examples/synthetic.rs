//! Draws clips of the synthetic world, or exports them as a data set.
//!
//! `cargo run --release -p tpo-data --example synthetic -- OUT_DIR`

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, Rgb, RgbImage, RgbaImage, imageops};
use tpo_data::synthetic::{
    Clip, RenderedFrame, RowsConfig, Split, World, WorldConfig, WorldRows, WorldTask,
};

const SCALE: u32 = 2;

/// Draw clips of the synthetic world: a sheet of frames with the true boxes, an animation, and
/// everything that is known about each clip on the terminal.
///
/// With `export` in front, clips and everything that is asked about them are written as a data set:
/// PNG frames and a JSONL file that `data validate` and recipes read.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Args {
    #[command(subcommand)]
    export: Option<Command>,
    #[command(flatten)]
    clips: Option<Clips>,
}

#[derive(Subcommand)]
enum Command {
    /// Write a data set.
    Export(Clips),
}

#[derive(clap::Args)]
struct Clips {
    /// Folder for what is written.
    out: PathBuf,
    /// Part of the world: train, validation, or held_out, whose combinations never occur in the others.
    #[arg(default_value = "train")]
    split: Split,
    /// How many clips.
    #[arg(default_value_t = 4)]
    count: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    sigpipe::reset();
    let args = Args::parse();
    let (export, clips) = match (args.export, args.clips) {
        (Some(Command::Export(clips)), _) => (true, clips),
        (None, Some(clips)) => (false, clips),
        (None, None) => return Err("OUT is missing; see --help".into()),
    };
    let Clips {
        out: dir,
        split,
        count,
    } = clips;
    std::fs::create_dir_all(&dir)?;
    if export {
        let plain = WorldConfig::default();
        let rows = RowsConfig {
            split,
            queries_per_clip: 8,
            ..RowsConfig::new(WorldTask::ALL, count, 7)
        };
        let path = WorldRows::new(rows, plain.frames, plain.side)?.export(&dir)?;
        println!("wrote {}", path.display());
        return Ok(());
    }
    let world = World::new(WorldConfig::default(), 7)?;
    for index in 0..count {
        let clip = world.clip(split, index);
        let frames = clip.scene.render_all();
        tell(&clip, &frames);
        let name = dir.join(clip.name());
        sheet(&clip, &frames).save(name.with_extension("png"))?;
        animation(&clip, &frames, &name.with_extension("gif"))?;
    }
    println!("wrote {}", dir.display());
    Ok(())
}

fn tell(clip: &Clip, frames: &[RenderedFrame]) {
    println!("{}", clip.name());
    for o in &clip.scene.objects {
        let (size, texture) = (o.look.size.name(), o.look.texture.name());
        println!("  {size} {texture} {}", o.look.phrase());
    }
    for q in clip.temporal_queries() {
        println!("  {} {:?} s", q.question, q.spans);
    }
    for q in clip.questions(frames) {
        println!(
            "  [{}] {} {} {:?}",
            q.kind.name(),
            q.question,
            q.answer,
            q.options
        );
    }
}

/// All frames in rows of eight, with the boxes of the shapes.
fn sheet(clip: &Clip, frames: &[RenderedFrame]) -> RgbImage {
    let side = clip.scene.side as u32 * SCALE;
    let rows = (frames.len() as u32).div_ceil(8);
    let mut sheet = RgbImage::from_pixel(8 * (side + 4), rows * (side + 4), Rgb([255; 3]));
    for (f, frame) in frames.iter().enumerate() {
        let mut picture = enlarged(frame);
        for object in 0..clip.scene.objects.len() {
            if let Some(area) = frame.area(object) {
                let [x0, y0, x1, y1] =
                    [area.x0, area.y0, area.x1, area.y1].map(|v| v as u32 * SCALE);
                for x in x0..x1 {
                    picture.put_pixel(x, y0, Rgb([255; 3]));
                    picture.put_pixel(x, y1 - 1, Rgb([255; 3]));
                }
                for y in y0..y1 {
                    picture.put_pixel(x0, y, Rgb([255; 3]));
                    picture.put_pixel(x1 - 1, y, Rgb([255; 3]));
                }
            }
        }
        let (x, y) = (f as u32 % 8 * (side + 4), f as u32 / 8 * (side + 4));
        imageops::replace(&mut sheet, &picture, x as i64, y as i64);
    }
    sheet
}

fn enlarged(frame: &RenderedFrame) -> RgbImage {
    let side = frame.side() as u32;
    RgbImage::from_fn(side * SCALE, side * SCALE, |x, y| {
        let at = 3 * (y / SCALE * side + x / SCALE) as usize;
        let rgb = frame.rgb();
        Rgb([rgb[at], rgb[at + 1], rgb[at + 2]])
    })
}

fn animation(
    clip: &Clip,
    frames: &[RenderedFrame],
    path: &std::path::Path,
) -> image::ImageResult<()> {
    let mut gif = GifEncoder::new(std::fs::File::create(path)?);
    gif.set_repeat(Repeat::Infinite)?;
    let pause = Delay::from_numer_denom_ms((1000.0 / clip.scene.fps) as u32, 1);
    for frame in frames {
        let picture: RgbaImage = image::DynamicImage::from(enlarged(frame)).into_rgba8();
        gif.encode_frame(image::Frame::from_parts(picture, 0, 0, pause))?;
    }
    Ok(())
}
