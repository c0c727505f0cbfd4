//! The files that are written, frame by frame.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use image::codecs::gif::{GifEncoder, Repeat};
use image::imageops::{FilterType, resize};
use image::{Delay, RgbImage};
use serde_json::json;
use tpo::core::geometry::{Mask, Rle};
use tpo::data::{Frame, VideoInfo};
use tpo::draw::{COLOURS, LabelledBox, draw_boxes, draw_mask};

use super::Outcome;
use super::args::Args;

/// Slowest encoding and best colours is 1, the fastest 30.
const GIF_SPEED: i32 = 10;

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
    json_path: PathBuf,
    gif: Option<(GifEncoder<BufWriter<File>>, PathBuf)>,
    every: usize,
    side: u32,
    delay: f64,
    timestamps: Vec<f64>,
    written: usize,
}

fn create(path: &Path) -> Outcome<BufWriter<File>> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    let file = File::create(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(BufWriter::new(file))
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
        let gif = match args.gif_every {
            0 => None,
            _ => {
                let mut gif = GifEncoder::new_with_speed(create(&args.gif)?, GIF_SPEED);
                gif.set_repeat(Repeat::Infinite)?;
                Some((gif, args.gif.clone()))
            }
        };
        Ok(Self {
            json,
            json_path: args.out.clone(),
            gif,
            every: args.gif_every.max(1),
            side: args.gif_side.max(16),
            delay: 1000.0 * args.gif_every as f64 / info.fps.max(1e-3),
            timestamps: info.timestamps.clone(),
            written: 0,
        })
    }

    /// Writes the masks of a frame, and draws them if its picture is at hand.
    pub fn frame(&mut self, index: usize, found: &[Found], picture: Option<Frame>) -> Outcome<()> {
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
        let line = json!({
            "frame": index,
            "time": self.timestamps.get(index),
            "objects": objects,
        });
        let comma = if self.written == 0 { "" } else { "," };
        write!(self.json, "{comma}\n{line}")?;
        self.written += 1;

        let (Some((gif, _)), Some(picture)) = (&mut self.gif, picture) else {
            return Ok(());
        };
        if !index.is_multiple_of(self.every) {
            return Ok(());
        }
        let (w, h) = (picture.width() as u32, picture.height() as u32);
        let Some(mut drawn) = RgbImage::from_raw(w, h, picture.into_rgb()) else {
            return Ok(());
        };
        let mut boxes = Vec::new();
        for (at, object) in found.iter().enumerate() {
            draw_mask(&mut drawn, &object.mask, COLOURS[at % COLOURS.len()])?;
            boxes.push(LabelledBox {
                area: object
                    .mask
                    .bounding_box()
                    .map_or([0.0; 4].into(), |b| b.to_normalised(w as f32, h as f32)),
                label: match object.mask.area() {
                    0 => format!("{} hidden ({:+.1})", object.object, object.score),
                    _ => format!("{} ({:+.1})", object.object, object.score),
                },
            });
        }
        let drawn = draw_boxes(&drawn, &boxes)?;
        let scale = (f64::from(self.side) / f64::from(w.max(h))).min(1.0);
        let to = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
        let drawn = resize(&drawn, to(w), to(h), FilterType::Triangle);
        let rgba = image::DynamicImage::ImageRgb8(drawn).into_rgba8();
        let delay =
            Delay::from_saturating_duration(std::time::Duration::from_millis(self.delay as u64));
        gif.encode_frame(image::Frame::from_parts(rgba, 0, 0, delay))?;
        Ok(())
    }

    /// Closes the files; returns their paths.
    pub fn finish(mut self) -> Outcome<Vec<PathBuf>> {
        writeln!(self.json, "\n]}}")?;
        self.json.flush()?;
        let gif = self.gif.map(|(_, path)| path);
        Ok(std::iter::once(self.json_path).chain(gif).collect())
    }
}
