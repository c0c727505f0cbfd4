//! Clips of the synthetic world as pictures, or as a data set.

use std::path::PathBuf;

use image::RgbImage;
use tpo_data::synthetic::{
    Clip, RenderedFrame, RowsConfig, Split, World, WorldConfig, WorldRows, WorldTask,
};

use super::shared::{End, Outcome};
use crate::draw::{
    Animation, LabelledBox, Strip, contact_sheet, draw_boxes, enlarged, picture, save_picture,
};

/// Longest side of a frame on the sheet, in pixels.
const SIDE: u32 = 128;
/// Frames in a row of the sheet.
const COLUMNS: usize = 8;
/// Width of the sheet in pixels.
const WIDTH: u32 = 1120;

/// Draw clips of the synthetic world, or export them as a data set.
///
/// For each clip: a sheet of frames with the true boxes, an animation, and everything that is known
/// about it on the terminal. With --export, clips and everything that is asked about them are
/// written as PNG frames and a JSONL file that `tpo data` and recipes read.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo synthetic out/world                          four clips of training
  tpo synthetic out/world held_out 20
  tpo synthetic --export out/rows train 100        then: tpo data validate out/rows/rows.jsonl")]
pub(super) struct Args {
    /// Folder for what is written
    out: PathBuf,
    /// Part of the world: train, validation, or held_out, whose combinations never occur in the others
    #[arg(default_value = "train")]
    split: Split,
    /// How many clips
    #[arg(default_value_t = 4)]
    count: u64,
    /// Write a data set instead of pictures
    #[arg(long)]
    export: bool,
    /// Seed of the world
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

pub(super) fn run(args: Args) -> Outcome {
    let config = WorldConfig::default();
    if args.export {
        let rows = RowsConfig {
            split: args.split,
            queries_per_clip: 8,
            ..RowsConfig::new(WorldTask::ALL, args.count, args.seed)
        };
        let path = WorldRows::new(rows, config.frames, config.side)?.export(&args.out)?;
        println!("wrote {}", path.display());
        return Ok(End::Fine);
    }
    let world = World::new(config, args.seed)?;
    for index in 0..args.count {
        let clip = world.clip(args.split, index);
        let frames = clip.scene.render_all();
        describe(&clip, &frames);
        let name = args.out.join(clip.name());
        let pictures: Vec<RgbImage> = frames
            .iter()
            .map(|frame| Ok(enlarged(picture(frame.to_frame()?)?, SIDE)))
            .collect::<Outcome<_>>()?;
        save_picture(
            &sheet(&clip, &frames, &pictures)?,
            name.with_extension("png"),
        )?;
        let mut animation = Animation::create(name.with_extension("gif"), clip.scene.fps)?;
        for picture in pictures {
            animation.push(picture)?;
        }
    }
    println!("wrote {}", args.out.display());
    Ok(End::Fine)
}

fn describe(clip: &Clip, frames: &[RenderedFrame]) {
    println!("{}", clip.name());
    for o in &clip.scene.objects {
        let (size, texture) = (o.look.size.name(), o.look.texture.name());
        println!("  {size} {texture} {}", o.look.phrase());
    }
    for q in clip.temporal_queries() {
        println!("  {} {:?} s", q.question, q.spans);
    }
    for q in clip.questions(frames) {
        let kind = q.kind.name();
        println!("  [{kind}] {} {} {:?}", q.question, q.answer, q.options);
    }
}

/// All frames in rows, with the boxes of the shapes.
fn sheet(clip: &Clip, frames: &[RenderedFrame], pictures: &[RgbImage]) -> Outcome<RgbImage> {
    let mut boxed = Vec::new();
    for (frame, picture) in frames.iter().zip(pictures) {
        let side = frame.side() as f32;
        let objects = 0..clip.scene.objects.len();
        let boxes = objects.filter_map(|object| {
            let area = frame.area(object)?.to_normalised(side, side);
            Some(LabelledBox::new(area, "", object))
        });
        let boxes: Vec<LabelledBox> = boxes.collect();
        boxed.push(draw_boxes(picture, &boxes)?);
    }
    let rows = boxed.chunks(COLUMNS).map(|row| Strip {
        pictures: row.to_vec(),
        ..Strip::default()
    });
    Ok(contact_sheet(&rows.collect::<Vec<_>>(), WIDTH)?)
}
