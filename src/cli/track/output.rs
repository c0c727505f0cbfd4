//! The files that are written, frame by frame.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use image::imageops::{FilterType, resize};
use serde_json::json;
use tpo_core::geometry::{Mask, Rle};
use tpo_data::{Frame, VideoInfo};

use super::args::Args;
use crate::cli::shared::{Outcome, create};
use crate::draw::{Animation, COLOURS, LabelledBox, draw_boxes, draw_mask, picture};

/// One object on a frame.
pub struct Found {
    pub object: u32,
    /// Above zero if it is visible.
    pub score: f32,
    /// At the size of the frame.
    pub mask: Mask,
}

pub struct Output {
    json: BufWriter<File>,
    paths: Vec<PathBuf>,
    gif: Option<Animation>,
    every: usize,
    side: u32,
    timestamps: Vec<f64>,
    written: usize,
}

impl Output {
    pub fn create(args: &Args, info: &VideoInfo) -> Outcome<Self> {
        let mut json = create(&args.out)?;
        let head = json!({
            "video": args.video,
            "width": info.width,
            "height": info.height,
            "fps": info.fps,
            "masks": "COCO run lengths; boxes are x0, y0, x1, y1 in pixels",
        });
        // The list of frames is written as it comes.
        let head = head.to_string();
        write!(json, "{},\"frames\":[", head.trim_end_matches('}'))?;
        let mut paths = vec![args.out.clone()];
        let mut gif = None;
        if args.gif_every > 0 {
            gif = Some(Animation::create(
                &args.gif,
                info.fps / args.gif_every as f64,
            )?);
            paths.push(args.gif.clone());
        }
        Ok(Self {
            json,
            paths,
            gif,
            every: args.gif_every.max(1),
            side: args.gif_side.max(16),
            timestamps: info.timestamps.clone(),
            written: 0,
        })
    }

    /// Writes the masks of a frame, and draws them if its picture is at hand.
    pub fn frame(&mut self, index: usize, found: &[Found], frame: Option<Frame>) -> Outcome<()> {
        let objects: Vec<_> = found
            .iter()
            .map(|object| {
                json!({
                    "object": object.object,
                    "score": object.score,
                    "box": object.mask.bounding_box().map(|b| b.to_array()),
                    "mask": Rle::encode(&object.mask),
                })
            })
            .collect();
        let time = self.timestamps.get(index);
        let line = json!({ "frame": index, "time": time, "objects": objects });
        let comma = if self.written == 0 { "" } else { "," };
        write!(self.json, "{comma}\n{line}")?;
        self.written += 1;

        let (Some(gif), Some(frame)) = (&mut self.gif, frame) else {
            return Ok(());
        };
        if !index.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut drawn = picture(frame)?;
        let (w, h) = drawn.dimensions();
        let mut boxes = Vec::new();
        for (at, object) in found.iter().enumerate() {
            draw_mask(&mut drawn, &object.mask, COLOURS[at % COLOURS.len()]);
            let (name, score) = (object.object, object.score);
            boxes.push(match object.mask.bounding_box() {
                Some(b) => {
                    let area = b.to_normalised(w as f32, h as f32);
                    LabelledBox::new(area, format!("{name} ({score:+.1})"))
                }
                None => LabelledBox::new([0.0; 4].into(), format!("{name} hidden ({score:+.1})")),
            });
        }
        let drawn = draw_boxes(&drawn, &boxes)?;
        let scale = (f64::from(self.side) / f64::from(w.max(h))).min(1.0);
        let to = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
        gif.push(resize(&drawn, to(w), to(h), FilterType::Triangle))?;
        Ok(())
    }

    /// Closes the files and says where they are.
    pub fn finish(mut self) -> Outcome<()> {
        writeln!(self.json, "\n]}}")?;
        self.json.flush()?;
        for path in &self.paths {
            eprintln!("wrote {}", path.display());
        }
        Ok(())
    }
}
