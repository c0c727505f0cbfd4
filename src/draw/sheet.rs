//! Sheets: strips one below the other, each with lines of text, pictures side by side and a time axis.

use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_line_segment_mut};
use imageproc::pixelops::interpolate;
use imageproc::rect::Rect;
use tpo_core::geometry::TimeSpan;
use tpo_core::head::{Drawing, Shape};

use super::COLOURS;
use super::text::{Letters, draw_curve, tick_step};
use crate::error::{Error, Result};

/// Space around things, in pixels.
const GAP: i32 = 12;
/// Height of letters, and of a line of text.
const LETTERS: f32 = 15.0;
const LINE: i32 = 20;
/// Most lines of one line of a caption: a conversation is not read on a sheet.
const MOST_LINES: usize = 3;
/// Tallest picture.
const TALLEST: i32 = 2000;
/// Space left of a time axis, for the names of its rows.
const LEFT: i32 = 96;
/// Height of the curve above a time axis, of its numbers, and of a row of spans below it.
const CURVE: i32 = 130;
const NUMBERS: i32 = 30;
const ROW: i32 = 24;
/// Most spans of an answer that get a row of their own.
const MOST_SPANS: usize = 5;
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);
const INK: Rgb<u8> = Rgb([34, 34, 34]);
const FAINT: Rgb<u8> = Rgb([210, 210, 210]);

/// Spans in a row of their own below a time axis.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AxisRow {
    /// What they are, left of the axis.
    pub name: String,
    /// The spans.
    pub spans: Vec<TimeSpan>,
    /// Words beside the last of them.
    pub note: String,
    /// Index into [`COLOURS`], taken modulo their number.
    pub colour: usize,
}

/// A time axis below the pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Axis {
    /// Length in seconds.
    pub duration: f64,
    /// Times of the pictures in seconds.
    pub frames: Vec<f64>,
    /// A curve above the axis, in any unit: a value every `step` seconds; empty draws none.
    pub curve: Vec<f32>,
    /// Seconds between values of the curve.
    pub step: f64,
    /// Spans below the axis.
    pub rows: Vec<AxisRow>,
}

impl Axis {
    /// The spans and the curve of an answer about `duration` seconds; `None` if it has neither.
    pub fn of(drawing: &Drawing, duration: f64) -> Option<Self> {
        let mut axis = Self {
            duration,
            ..Self::default()
        };
        let mut any = false;
        for shape in &drawing.shapes {
            match shape {
                Shape::Spans(spans) => {
                    let rows = spans.iter().take(MOST_SPANS).map(|s| AxisRow {
                        name: "found".into(),
                        spans: vec![s.span],
                        note: format!("{} ({:.2})", range(&s.span), s.score),
                        colour: 0,
                    });
                    axis.rows.extend(rows);
                    if spans.is_empty() {
                        axis.rows.push(AxisRow {
                            name: "found".into(),
                            note: "nothing".into(),
                            ..AxisRow::default()
                        });
                    }
                }
                Shape::Curve { step, values } => {
                    axis.step = *step;
                    axis.curve.clone_from(values);
                }
                _ => continue,
            }
            any = true;
        }
        any.then_some(axis)
    }

    /// Adds what is true.
    pub fn with_truth(mut self, spans: &[TimeSpan]) -> Self {
        if let Some(last) = spans.last() {
            self.rows.push(AxisRow {
                name: "truth".into(),
                spans: spans.to_vec(),
                note: range(last),
                colour: 2,
            });
        }
        self
    }

    /// The times whose frames say most: start, middle and end of the first span, or of the whole
    /// video without one.
    pub fn telling_times(&self) -> [f64; 3] {
        let span = self.rows.iter().find_map(|row| row.spans.first());
        let (start, end) = span.map_or((0.0, self.duration), |s| (s.start, s.end));
        [start, (start + end) / 2.0, end]
    }

    fn check(&self) -> Result<()> {
        let bad = |why: String| Error::Picture {
            what: "a time axis".into(),
            why,
        };
        if !(self.duration.is_finite() && self.duration >= 0.0) {
            let why = format!(
                "it lasts {} s; it must be a number from 0 on",
                self.duration
            );
            return Err(bad(why));
        }
        match self.curve.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(bad(format!("value {i} of the curve is {}", self.curve[i]))),
            None => Ok(()),
        }
    }

    fn plot_height(&self) -> i32 {
        if self.curve.is_empty() { 12 } else { CURVE }
    }

    fn height(&self) -> i32 {
        self.plot_height() + NUMBERS + ROW * self.rows.len() as i32
    }
}

/// A part of a sheet.
#[derive(Debug, Clone, Default)]
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
/// [`Error::Picture`] for an axis whose length is negative or no number, for a curve with a value that
/// is none, and when the built-in font cannot be read.
pub fn contact_sheet(strips: &[Strip], width: u32) -> Result<RgbImage> {
    let letters = Letters::new(LETTERS)?;
    let width = width.clamp(200, 8000) as i32;
    let inner = width - 2 * GAP;
    let mut parts = Vec::new();
    let mut total = GAP;
    for strip in strips {
        if let Some(axis) = &strip.axis {
            axis.check()?;
        }
        // A single picture need not fill the sheet.
        let count = strip.pictures.len().max(3) as i32;
        let cell = ((inner - GAP * (count - 1)) / count).max(1);
        let tiles: Vec<RgbImage> = strip.pictures.iter().map(|p| fitted(p, cell)).collect();
        let caption = strip.caption.iter();
        let lines: Vec<String> = caption
            .flat_map(|line| letters.wrap(line, inner, MOST_LINES))
            .collect();
        let tallest = tiles.iter().map(RgbImage::height).max().unwrap_or(0) as i32;
        let axis = strip.axis.as_ref().map_or(0, Axis::height);
        let height = LINE * lines.len() as i32 + tallest + axis + 4 * GAP;
        total += height;
        parts.push((strip, tiles, lines, tallest, cell, height));
    }
    let mut sheet = RgbImage::from_pixel(width as u32, total as u32, PAPER);
    let mut top = GAP;
    for (strip, tiles, lines, tallest, cell, height) in parts {
        let mut y = top;
        for line in &lines {
            letters.write(&mut sheet, (GAP, y), INK, line);
            y += LINE;
        }
        y += GAP / 2;
        for (i, tile) in (0..).zip(&tiles) {
            replace(
                &mut sheet,
                tile,
                i64::from(GAP + i * (cell + GAP)),
                i64::from(y),
            );
        }
        y += tallest + GAP;
        if let Some(axis) = &strip.axis {
            let (left, right) = (LEFT.min(inner / 4), width - GAP);
            let mut plot = Plot {
                sheet: &mut sheet,
                letters: &letters,
                axis,
                across: (left, right),
            };
            plot.draw(y);
        }
        top += height;
        let rule = Rect::at(GAP, top - GAP).of_size(inner as u32, 1);
        draw_filled_rect_mut(&mut sheet, rule, FAINT);
    }
    Ok(sheet)
}

/// A picture at a width.
fn fitted(picture: &RgbImage, width: i32) -> RgbImage {
    let (w, h) = picture.dimensions();
    let height = (u64::from(h) * width as u64).div_ceil(u64::from(w.max(1)));
    let height = height.clamp(1, TALLEST as u64) as u32;
    resize(picture, width as u32, height, FilterType::Triangle)
}

/// An axis on its sheet.
struct Plot<'a> {
    sheet: &'a mut RgbImage,
    letters: &'a Letters,
    axis: &'a Axis,
    /// Columns at which it begins and ends.
    across: (i32, i32),
}

impl Plot<'_> {
    fn draw(&mut self, top: i32) {
        let axis = self.axis;
        let bottom = top + axis.plot_height();
        let (left, right) = self.across;
        // Where the best answer lies, behind the curve.
        if let (false, Some(row)) = (axis.curve.is_empty(), axis.rows.first()) {
            for span in &row.spans {
                self.bar(span, (top, bottom), row.colour, 0.28);
            }
        }
        let step = tick_step(axis.duration, 10.0);
        for i in 0..=(axis.duration / step + 1e-9) as usize {
            let time = i as f64 * step;
            let x = self.column(time);
            self.tick(x, (top, bottom + 4), FAINT);
            let number = seconds(time);
            let x = x - self.letters.size(&number).0 / 2;
            self.letters
                .write(self.sheet, (x, bottom + 7), INK, &number);
        }
        self.letters
            .write(self.sheet, (GAP, bottom + 7), INK, "seconds");
        let ends = ((left as f32, bottom as f32), (right as f32, bottom as f32));
        draw_line_segment_mut(self.sheet, ends.0, ends.1, INK);
        for time in &axis.frames {
            let x = self.column(*time);
            self.tick(x, (bottom - 10, bottom), INK);
        }
        self.curve(top, bottom);
        for (i, row) in (0..).zip(&axis.rows) {
            self.row(row, bottom + NUMBERS + ROW * i);
        }
    }

    /// Column of a time.
    fn column(&self, time: f64) -> i32 {
        let (left, right) = self.across;
        let span = f64::from(right - left);
        let share = time / self.axis.duration.max(f64::MIN_POSITIVE);
        left + (share * span).clamp(0.0, span).round() as i32
    }

    fn tick(&mut self, x: i32, (from, to): (i32, i32), colour: Rgb<u8>) {
        let x = x as f32;
        draw_line_segment_mut(self.sheet, (x, from as f32), (x, to as f32), colour);
    }

    fn curve(&mut self, top: i32, bottom: i32) {
        let values = &self.axis.curve;
        let low = values.iter().copied().fold(f32::MAX, f32::min);
        let high = values.iter().copied().fold(f32::MIN, f32::max);
        let room = (bottom - top - 16) as f32;
        let height = |v: f32| {
            let share = if high > low {
                (v - low) / (high - low)
            } else {
                0.5
            };
            share * room
        };
        let points = values.iter().enumerate().map(|(i, v)| {
            let x = self.column((i as f64 + 0.5) * self.axis.step);
            (x, bottom - 8 - height(*v).round() as i32)
        });
        let points: Vec<(i32, i32)> = points.collect();
        draw_curve(self.sheet, &points, Rgb(COLOURS[1]));
        if !points.is_empty() {
            self.letters
                .write(self.sheet, (GAP, top + 4), INK, "saliency");
        }
    }

    fn row(&mut self, row: &AxisRow, y: i32) {
        let (left, right) = self.across;
        let name = self.letters.wrap(&row.name, left - GAP, 1);
        for name in name {
            self.letters.write(self.sheet, (GAP, y), INK, &name);
        }
        for span in &row.spans {
            self.bar(span, (y + 1, y + 17), row.colour, 0.9);
        }
        // Right of the last bar where there is room, else left of it, else on it.
        let last = row
            .spans
            .last()
            .map(|s| (self.column(s.start), self.column(s.end)));
        let (start, end) = last.unwrap_or((left, left));
        let width = self.letters.size(&row.note).0;
        let x = if end + 8 + width <= right {
            end + 8
        } else if start - 8 - width >= left {
            start - 8 - width
        } else {
            start + 6
        };
        self.letters.write(self.sheet, (x, y), INK, &row.note);
    }

    /// Mixes a colour over the columns of a span; at least three columns.
    fn bar(&mut self, span: &TimeSpan, (top, bottom): (i32, i32), colour: usize, share: f32) {
        let (x0, x1) = (self.column(span.start), self.column(span.end));
        for x in x0..x1.max(x0 + 3) {
            for y in top..bottom {
                if let Some(pixel) = self.sheet.get_pixel_mut_checked(x as u32, y as u32) {
                    let ink = Rgb(COLOURS[colour % COLOURS.len()]);
                    *pixel = interpolate(ink, *pixel, share);
                }
            }
        }
    }
}

fn range(span: &TimeSpan) -> String {
    format!("{}–{} s", seconds(span.start), seconds(span.end))
}

/// At most two decimals, none when they are zero.
fn seconds(time: f64) -> String {
    let text = format!("{time:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::geometry::ScoredSpan;

    fn span(start: f64, end: f64) -> TimeSpan {
        TimeSpan { start, end }
    }

    fn axis() -> Axis {
        let span = span(3.0, 7.0);
        let found = vec![ScoredSpan { span, score: 0.9 }];
        let values = (0..12).map(|i| -((i as f32 - 5.0).powi(2))).collect();
        let drawing = Drawing::text("3.0 to 7.0 s")
            .with(Shape::Spans(found))
            .with(Shape::Curve { step: 1.0, values });
        let truth = [TimeSpan {
            start: 2.5,
            end: 6.5,
        }];
        Axis::of(&drawing, 12.0).unwrap().with_truth(&truth)
    }

    fn sheet(axis: Axis) -> Result<RgbImage> {
        let axis = Some(axis);
        contact_sheet(
            &[Strip {
                axis,
                ..Strip::default()
            }],
            960,
        )
    }

    #[test]
    fn spans_stand_at_their_times() {
        let drawn = sheet(axis()).unwrap();
        let (left, right) = (f64::from(LEFT), f64::from(960 - GAP));
        let first = GAP + GAP / 2 + GAP + CURVE + NUMBERS + 9;
        let at = |time: f64, row: i32| {
            let x = (left + time / 12.0 * (right - left)).round() as u32;
            *drawn.get_pixel(x, (first + ROW * row) as u32)
        };
        let mixed = |colour: usize| {
            let ink = Rgb(COLOURS[colour]);
            interpolate(ink, PAPER, 0.9)
        };
        assert_eq!(at(5.0, 0), mixed(0));
        assert_eq!(at(2.9, 0), PAPER);
        assert_eq!(at(2.6, 1), mixed(2));
        assert_eq!(at(2.4, 1), PAPER);
        assert_eq!(axis().telling_times(), [3.0, 5.0, 7.0]);
    }

    #[test]
    fn nothing_found_is_drawn_and_no_number_is_refused() {
        let empty = Axis {
            duration: 0.4,
            ..Axis::default()
        };
        assert_eq!(empty.telling_times(), [0.0, 0.2, 0.4]);
        assert_eq!(sheet(empty.clone()).unwrap().width(), 960);
        sheet(Axis::default()).unwrap();
        for duration in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(sheet(Axis { duration, ..axis() }).is_err());
        }
        let mut bad = axis();
        bad.curve[3] = f32::NAN;
        let error = sheet(bad).unwrap_err().to_string();
        assert!(error.contains("value 3"), "{error}");
        assert!(Axis::of(&Drawing::text("words"), 1.0).is_none());
        assert_eq!(empty.with_truth(&[]).rows, []);
        assert_eq!(seconds(3.0), "3");
        assert_eq!(seconds(3.25), "3.25");
    }

    #[test]
    fn any_strip_makes_a_sheet() {
        let picture = RgbImage::from_pixel(40, 30, Rgb([10, 90, 10]));
        let row = AxisRow {
            name: "a long name of a row".into(),
            spans: vec![span(-4.0, 2.0), span(1e9, 2e9)],
            note: "note ".repeat(99),
            colour: 77,
        };
        let strips = [
            Strip {
                caption: vec!["word ".repeat(300), String::new(), "x".repeat(900)],
                pictures: vec![picture.clone(); 4],
                axis: Some(Axis {
                    frames: vec![1.0, 99.0, f64::NAN],
                    curve: vec![1.0; 3000],
                    rows: vec![row],
                    ..axis()
                }),
            },
            Strip {
                pictures: vec![picture, RgbImage::new(0, 0)],
                ..Strip::default()
            },
            Strip {
                caption: vec!["empty".into()],
                ..Strip::default()
            },
        ];
        let sheet = contact_sheet(&strips, 400).unwrap();
        assert_eq!(sheet.width(), 400);
        assert!(sheet.pixels().any(|p| *p == Rgb([10, 90, 10])));
        assert!(contact_sheet(&[], 400).is_ok());
    }
}
