//! The files that are written: masks as JSON, and an animated picture.

use std::collections::BTreeMap;
use std::io::Write;

use image::imageops::{FilterType, resize};
use serde_json::json;
use tpo_core::geometry::Rle;
use tpo_data::VideoReader;

use super::args::Args;
use crate::cli::shared::{Outcome, create};
use crate::draw::{Animation, COLOURS, LabelledBox, draw_boxes, draw_mask, picture};

/// The objects of every frame that was gone through.
pub type Tracks = BTreeMap<usize, Vec<Found>>;

/// One object on a frame.
pub struct Found {
    pub object: u32,
    /// Above zero if it is visible.
    pub score: f32,
    /// At the size of the frame.
    pub mask: Rle,
}

/// Writes what was found and says where.
pub fn write(args: &Args, video: &dyn VideoReader, tracks: &Tracks) -> Outcome<()> {
    let info = video.info();
    let mut frames = Vec::new();
    for (index, found) in tracks {
        let mut objects = Vec::new();
        for Found {
            object,
            score,
            mask,
        } in found
        {
            let area = mask.decode()?.bounding_box().map(|b| b.to_array());
            objects.push(json!({ "object": object, "score": score, "box": area, "mask": mask }));
        }
        let time = info.timestamps.get(*index);
        frames.push(json!({ "frame": index, "time": time, "objects": objects }));
    }
    let document = json!({
        "video": args.video,
        "width": info.width,
        "height": info.height,
        "fps": info.fps,
        "masks": "COCO run lengths; boxes are x0, y0, x1, y1 in pixels",
        "frames": frames,
    });
    let mut file = create(&args.out)?;
    serde_json::to_writer(&mut file, &document)?;
    file.flush()?;
    eprintln!("wrote {}", args.out.display());
    if args.gif_every > 0 {
        animate(args, video, tracks)?;
        eprintln!("wrote {}", args.gif.display());
    }
    Ok(())
}

fn animate(args: &Args, video: &dyn VideoReader, tracks: &Tracks) -> Outcome<()> {
    let mut gif = Animation::create(&args.gif, video.info().fps / args.gif_every as f64)?;
    let last = tracks.last_key_value().map_or(0, |(index, _)| *index);
    for (index, frame) in (0..=last).zip(video.stream(0)?) {
        let frame = frame?.frame;
        let Some(found) = tracks.get(&index).filter(|_| index % args.gif_every == 0) else {
            continue;
        };
        let mut drawn = picture(frame)?;
        let (w, h) = drawn.dimensions();
        let mut boxes = Vec::new();
        for (at, object) in found.iter().enumerate() {
            let mask = object.mask.decode()?;
            draw_mask(&mut drawn, &mask, COLOURS[at % COLOURS.len()]);
            let (name, score) = (object.object, object.score);
            let (area, hidden) = match mask.bounding_box() {
                Some(area) => (area.to_normalised(w as f32, h as f32), ""),
                None => ([0.0; 4].into(), " hidden"),
            };
            let label = format!("{name}{hidden} ({score:+.1})");
            boxes.push(LabelledBox::new(area, label, at));
        }
        let drawn = draw_boxes(&drawn, &boxes)?;
        let scale = (f64::from(args.gif_side.max(16)) / f64::from(w.max(h))).min(1.0);
        let to = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
        gif.push(resize(&drawn, to(w), to(h), FilterType::Triangle))?;
    }
    Ok(())
}
