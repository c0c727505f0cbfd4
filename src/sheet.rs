//! Contact sheets: rows of a data set as pictures, with what is annotated drawn in.

use ab_glyph::{FontRef, PxScale};
use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_text_mut, text_size};
use imageproc::rect::Rect;

use crate::draw::{COLOURS, font};
use crate::error::Result;

/// Space around things, in pixels.
const GAP: u32 = 10;
/// Height of letters in pixels.
const LETTERS: f32 = 15.0;
/// Height of a line of text in pixels.
const LINE: u32 = 20;
/// Height of the time axis in pixels.
const AXIS: u32 = 34;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);
const INK: Rgb<u8> = Rgb([30, 30, 30]);
const GREY: Rgb<u8> = Rgb([200, 200, 200]);

/// A marked part of the time.
#[derive(Debug, Clone, PartialEq)]
pub struct AxisSpan {
    /// Start in seconds.
    pub start: f64,
    /// End in seconds.
    pub end: f64,
    /// Index into [`COLOURS`], taken modulo their number.
    pub colour: usize,
}

/// A time axis below the pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Length in seconds.
    pub duration: f64,
    /// Times of the pictures in seconds.
    pub frames: Vec<f64>,
    /// Marked parts.
    pub spans: Vec<AxisSpan>,
}

/// One row of the sheet.
#[derive(Debug, Clone)]
pub struct Strip {
    /// Lines above the pictures.
    pub caption: Vec<String>,
    /// Pictures side by side.
    pub pictures: Vec<RgbImage>,
    /// The time axis of a video.
    pub axis: Option<Axis>,
}

/// Draws strips one below the other on a sheet `width` pixels wide.
///
/// # Errors
/// [`Error::Picture`](crate::Error::Picture) when the built-in font cannot be read.
pub fn contact_sheet(strips: &[Strip], width: u32) -> Result<RgbImage> {
    let font = font()?;
    let width = width.clamp(200, 8000);
    let inner = width - 2 * GAP;
    let mut parts = Vec::new();
    for strip in strips {
        let count = strip.pictures.len().max(1) as u32;
        // A single picture need not fill the sheet.
        let cell = ((inner - GAP * (count - 1)) / count.max(3)).max(1);
        let tiles: Vec<RgbImage> = strip
            .pictures
            .iter()
            .map(|p| {
                let height =
                    (u64::from(p.height()) * u64::from(cell)).div_ceil(u64::from(p.width().max(1)));
                resize(p, cell, height.clamp(1, 2000) as u32, FilterType::Triangle)
            })
            .collect();
        let lines: Vec<String> = strip
            .caption
            .iter()
            .flat_map(|line| wrap(line, inner, &font))
            .collect();
        let tallest = tiles.iter().map(RgbImage::height).max().unwrap_or(0);
        let axis = if strip.axis.is_some() { AXIS } else { 0 };
        let height = lines.len() as u32 * LINE + GAP + tallest + axis;
        parts.push((strip, tiles, lines, tallest, cell, height));
    }
    let total: u32 = parts.iter().map(|p| p.5 + 2 * GAP).sum::<u32>() + GAP;
    let mut sheet = RgbImage::from_pixel(width, total.max(1), PAPER);
    let scale = PxScale::from(LETTERS);
    let mut y = GAP;
    for (strip, tiles, lines, tallest, cell, height) in parts {
        let mut at = y;
        for line in &lines {
            draw_text_mut(&mut sheet, INK, GAP as i32, at as i32, scale, &font, line);
            at += LINE;
        }
        at += GAP / 2;
        let mut x = GAP;
        for tile in &tiles {
            overlay(&mut sheet, tile, i64::from(x), i64::from(at));
            x += cell + GAP;
        }
        at += tallest + GAP / 2;
        if let Some(axis) = &strip.axis {
            draw_axis(&mut sheet, axis, at, inner, &font);
        }
        y += height + GAP;
        let rule = Rect::at(GAP as i32, y as i32 - 2).of_size(inner, 1);
        draw_filled_rect_mut(&mut sheet, rule, GREY);
        y += GAP;
    }
    Ok(sheet)
}

fn draw_axis(sheet: &mut RgbImage, axis: &Axis, y: u32, inner: u32, font: &FontRef<'_>) {
    let place = |t: f64| {
        let part = if axis.duration > 0.0 {
            t / axis.duration
        } else {
            0.0
        };
        GAP as i32 + (part.clamp(0.0, 1.0) * f64::from(inner - 1)) as i32
    };
    let y = y as i32;
    draw_filled_rect_mut(
        sheet,
        Rect::at(GAP as i32, y).of_size(inner, 12),
        Rgb([230; 3]),
    );
    // Spans of different annotations may overlap; each colour has a row of its own.
    let mut colours: Vec<usize> = axis.spans.iter().map(|s| s.colour).collect();
    colours.dedup();
    let rows = colours.len().clamp(1, 4) as i32;
    for span in &axis.spans {
        let i = colours.iter().position(|c| *c == span.colour).unwrap_or(0);
        let (x0, x1) = (place(span.start), place(span.end));
        let colour = Rgb(COLOURS[span.colour % COLOURS.len()]);
        let size = ((x1 - x0).max(2) as u32, (12 / rows) as u32);
        let top = y + (i as i32 % rows) * (12 / rows);
        draw_filled_rect_mut(sheet, Rect::at(x0, top).of_size(size.0, size.1), colour);
    }
    for t in &axis.frames {
        draw_filled_rect_mut(sheet, Rect::at(place(*t), y - 2).of_size(1, 16), INK);
    }
    let scale = PxScale::from(LETTERS - 2.0);
    let end = format!("{:.1} s", axis.duration);
    let (w, _) = text_size(scale, font, &end);
    draw_text_mut(sheet, INK, GAP as i32, y + 15, scale, font, "0 s");
    let right = (GAP + inner) as i32 - w as i32;
    draw_text_mut(sheet, INK, right, y + 15, scale, font, &end);
}

/// Breaks a line at spaces; a word wider than the sheet is cut by its edge.
fn wrap(text: &str, width: u32, font: &FontRef<'_>) -> Vec<String> {
    let scale = PxScale::from(LETTERS);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let current = lines.last_mut().map_or("", |l| l.as_str());
        let longer = if current.is_empty() {
            word.to_string()
        } else {
            format!("{current} {word}")
        };
        if current.is_empty() || text_size(scale, font, &longer).0 <= width {
            if let Some(last) = lines.last_mut() {
                *last = longer;
            }
        } else {
            lines.push(word.to_string());
        }
    }
    // A conversation is not read on a contact sheet.
    if lines.len() > 3 {
        lines.truncate(3);
        lines[2].push_str(" ...");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_strip_makes_a_sheet() {
        let picture = RgbImage::from_pixel(40, 30, Rgb([10, 90, 10]));
        let strips = [
            Strip {
                caption: vec!["word ".repeat(300), String::new(), "x".repeat(900)],
                pictures: vec![picture.clone(); 4],
                axis: Some(Axis {
                    duration: 8.0,
                    frames: vec![1.0, 99.0, f64::NAN],
                    spans: vec![AxisSpan {
                        start: -4.0,
                        end: 2.0,
                        colour: 77,
                    }],
                }),
            },
            Strip {
                caption: Vec::new(),
                pictures: vec![picture],
                axis: None,
            },
            Strip {
                caption: vec!["empty".into()],
                pictures: Vec::new(),
                axis: None,
            },
        ];
        let sheet = contact_sheet(&strips, 400).unwrap();
        assert_eq!(sheet.width(), 400);
        assert!(sheet.pixels().any(|p| *p == Rgb([10, 90, 10])));
        assert!(sheet.pixels().any(|p| p.0 == COLOURS[77 % COLOURS.len()]));
        assert!(contact_sheet(&[], 400).is_ok());
    }
}
