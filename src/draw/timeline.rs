//! The answer to "when?": thumbnails, the saliency curve, predicted and true spans on one axis.

use ab_glyph::{FontRef, PxScale};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use imageproc::drawing::{
    draw_antialiased_line_segment_mut, draw_filled_rect_mut, draw_hollow_rect_mut,
    draw_line_segment_mut, draw_text_mut, text_size,
};
use imageproc::pixelops::interpolate;
use imageproc::rect::Rect;
use tpo_core::geometry::{ScoredSpan, TimeSpan};

use super::{COLOURS, font};
use crate::error::{Error, Result};

/// Most predicted spans that get a row of their own.
const MAX_ROWS: usize = 5;
/// Width of the picture in pixels.
const WIDTH: u32 = 960;
/// Space left of the axis for the names of the rows.
const LEFT: i32 = 96;
/// Space right of the axis.
const RIGHT: i32 = 24;
const INK: Rgb<u8> = Rgb([34, 34, 34]);
const FAINT: Rgb<u8> = Rgb([215, 215, 215]);
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const CURVE: Rgb<u8> = Rgb(COLOURS[1]);
const PREDICTED: Rgb<u8> = Rgb(COLOURS[0]);
const TRUTH: Rgb<u8> = Rgb(COLOURS[2]);

/// What a timeline shows.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// Line at the top, for example the question and the answer.
    pub title: String,
    /// Length of the video in seconds.
    pub duration: f64,
    /// Saliency of each clip, in any unit; empty draws no curve.
    pub curve: Vec<f32>,
    /// Length of a clip of the curve in seconds.
    pub clip_seconds: f64,
    /// Predicted spans, best first.
    pub predicted: Vec<ScoredSpan>,
    /// True spans, if they are known.
    pub truth: Vec<TimeSpan>,
    /// Frames with their times in seconds, drawn from left to right.
    pub thumbnails: Vec<(f64, RgbImage)>,
}

impl Timeline {
    /// The times whose frames say most about a span: start, middle and end of the best
    /// prediction, or of the whole video without one.
    pub fn thumbnail_times(&self) -> [f64; 3] {
        let whole = TimeSpan {
            start: 0.0,
            end: self.duration,
        };
        let span = self.predicted.first().map_or(whole, |p| p.span);
        [span.start, (span.start + span.end) / 2.0, span.end]
    }
}

/// Rows of the picture, from the top, in pixels.
struct Layout {
    thumbnails: i32,
    thumbnail_height: i32,
    plot: i32,
    plot_height: i32,
    rows: i32,
    height: i32,
}

const ROW: i32 = 26;
const TITLE: f32 = 20.0;
const SMALL: f32 = 15.0;

/// Draws a timeline, 960 pixels wide.
///
/// # Errors
/// [`Error::Picture`] when the duration is not positive and finite, the curve holds a value that
/// is not finite, or the built-in font cannot be read.
pub fn draw_timeline(timeline: &Timeline) -> Result<RgbImage> {
    let bad = |why: String| Error::Picture {
        what: "a timeline".into(),
        why,
    };
    if !(timeline.duration.is_finite() && timeline.duration > 0.0) {
        return Err(bad(format!(
            "the duration is {} s; it must be positive",
            timeline.duration
        )));
    }
    if let Some(i) = timeline.curve.iter().position(|v| !v.is_finite()) {
        return Err(bad(format!(
            "clip {i} of the curve is {}",
            timeline.curve[i]
        )));
    }
    let font = font()?;
    let title = wrap(&font, TITLE, &timeline.title, WIDTH as i32 - 2 * RIGHT, 3);
    let layout = layout(timeline, title.len() as i32);
    let mut picture = RgbImage::from_pixel(WIDTH, layout.height as u32, PAPER);
    for (i, line) in title.iter().enumerate() {
        text(
            &mut picture,
            &font,
            TITLE,
            (RIGHT, 12 + 26 * i as i32),
            line,
        );
    }
    thumbnails(&mut picture, &font, timeline, &layout);
    plot(&mut picture, &font, timeline, &layout);
    rows(&mut picture, &font, timeline, &layout);
    Ok(picture)
}

fn layout(timeline: &Timeline, title_lines: i32) -> Layout {
    let thumbnails = 16 + 26 * title_lines.max(1);
    let thumbnail_height = if timeline.thumbnails.is_empty() {
        0
    } else {
        let slot = slot_width(timeline.thumbnails.len());
        let tallest = timeline
            .thumbnails
            .iter()
            .map(|(_, t)| {
                let (w, h) = t.dimensions();
                (slot as f32 * h as f32 / w.max(1) as f32) as i32
            })
            .max()
            .unwrap_or(0);
        tallest.clamp(1, 260)
    };
    let plot = thumbnails + thumbnail_height + if thumbnail_height > 0 { 34 } else { 8 };
    let plot_height = if timeline.curve.is_empty() { 12 } else { 150 };
    let rows = plot + plot_height + 34;
    let spans = timeline.predicted.len().clamp(1, MAX_ROWS) as i32;
    let truth = i32::from(!timeline.truth.is_empty());
    Layout {
        thumbnails,
        thumbnail_height,
        plot,
        plot_height,
        rows,
        height: rows + ROW * (spans + truth) + 14,
    }
}

fn slot_width(count: usize) -> i32 {
    (WIDTH as i32 - 2 * RIGHT - 12 * (count as i32 - 1)) / count.max(1) as i32
}

fn thumbnails(picture: &mut RgbImage, font: &FontRef<'_>, timeline: &Timeline, layout: &Layout) {
    let slot = slot_width(timeline.thumbnails.len().max(1));
    for (i, (time, frame)) in timeline.thumbnails.iter().enumerate() {
        let (w, h) = frame.dimensions();
        if w == 0 || h == 0 {
            continue;
        }
        let scale = (slot as f32 / w as f32).min(layout.thumbnail_height as f32 / h as f32);
        let size = (
            ((w as f32 * scale) as u32).max(1),
            ((h as f32 * scale) as u32).max(1),
        );
        let small = imageops::resize(frame, size.0, size.1, FilterType::Triangle);
        let x = RIGHT + i as i32 * (slot + 12) + (slot - size.0 as i32) / 2;
        imageops::replace(picture, &small, x as i64, layout.thumbnails as i64);
        let edge = Rect::at(x, layout.thumbnails).of_size(size.0, size.1);
        draw_hollow_rect_mut(picture, edge, FAINT);
        let label = format!("{} s", seconds(*time));
        let width = text_size(PxScale::from(SMALL), font, &label).0 as i32;
        let at = (
            x + (size.0 as i32 - width) / 2,
            layout.thumbnails + layout.thumbnail_height + 6,
        );
        text(picture, font, SMALL, at, &label);
    }
}

/// Column of a time.
fn column(timeline: &Timeline, time: f64) -> i32 {
    let span = (WIDTH as i32 - LEFT - RIGHT) as f64;
    LEFT + (time / timeline.duration * span).clamp(0.0, span).round() as i32
}

fn plot(picture: &mut RgbImage, font: &FontRef<'_>, timeline: &Timeline, layout: &Layout) {
    let (top, bottom) = (layout.plot, layout.plot + layout.plot_height);
    let right = WIDTH as i32 - RIGHT;
    for span in timeline.predicted.iter().take(1) {
        shade(
            picture,
            timeline,
            &span.span,
            (top, bottom),
            PREDICTED,
            0.28,
        );
    }
    let step = tick_step(timeline.duration);
    let ticks = (timeline.duration / step + 1e-9) as usize;
    for i in 0..=ticks {
        let time = i as f64 * step;
        let x = column(timeline, time);
        let line = ((x as f32, top as f32), (x as f32, bottom as f32 + 4.0));
        draw_line_segment_mut(picture, line.0, line.1, FAINT);
        let label = seconds(time);
        let width = text_size(PxScale::from(SMALL), font, &label).0 as i32;
        let at = (x - width / 2).clamp(0, WIDTH as i32 - width);
        text(picture, font, SMALL, (at, bottom + 7), &label);
    }
    text(picture, font, SMALL, (RIGHT, bottom + 7), "seconds");
    let axis = ((LEFT as f32, bottom as f32), (right as f32, bottom as f32));
    draw_line_segment_mut(picture, axis.0, axis.1, INK);
    if timeline.curve.is_empty() {
        return;
    }
    text(picture, font, SMALL, (RIGHT, top + 4), "saliency");
    let low = timeline.curve.iter().copied().fold(f32::MAX, f32::min);
    let high = timeline.curve.iter().copied().fold(f32::MIN, f32::max);
    let range = (high - low).max(f32::MIN_POSITIVE);
    let room = (layout.plot_height - 16) as f32;
    let points: Vec<(i32, i32)> = timeline
        .curve
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let share = if high > low { (v - low) / range } else { 0.5 };
            let time = (i as f64 + 0.5) * timeline.clip_seconds;
            (
                column(timeline, time),
                bottom - 8 - (share * room).round() as i32,
            )
        })
        .collect();
    for pair in points.windows(2) {
        for shift in 0..2 {
            let at = |p: (i32, i32)| (p.0, p.1 + shift);
            draw_antialiased_line_segment_mut(
                picture,
                at(pair[0]),
                at(pair[1]),
                CURVE,
                interpolate,
            );
        }
    }
    if points.len() * 8 < (right - LEFT) as usize {
        for (x, y) in points {
            draw_filled_rect_mut(picture, Rect::at(x - 2, y - 2).of_size(5, 5), CURVE);
        }
    }
}

fn rows(picture: &mut RgbImage, font: &FontRef<'_>, timeline: &Timeline, layout: &Layout) {
    let mut y = layout.rows;
    let name = |picture: &mut RgbImage, y: i32, label: &str| {
        text(picture, font, SMALL, (RIGHT, y + 2), label);
    };
    if timeline.predicted.is_empty() {
        name(picture, y, "found");
        text(picture, font, SMALL, (LEFT, y + 2), "nothing");
        y += ROW;
    }
    for (i, span) in timeline.predicted.iter().take(MAX_ROWS).enumerate() {
        if i == 0 {
            name(picture, y, "found");
        }
        let strength = if i == 0 { 1.0 } else { 0.45 };
        bar(picture, timeline, &span.span, y, PREDICTED, strength);
        let label = format!(
            "{}–{} s ({:.2})",
            seconds(span.span.start),
            seconds(span.span.end),
            span.score
        );
        beside(picture, font, timeline, &span.span, y, &label);
        y += ROW;
    }
    if !timeline.truth.is_empty() {
        name(picture, y, "truth");
        for span in &timeline.truth {
            bar(picture, timeline, span, y, TRUTH, 1.0);
        }
        if let [only] = &timeline.truth[..] {
            let label = format!("{}–{} s", seconds(only.start), seconds(only.end));
            beside(picture, font, timeline, only, y, &label);
        }
    }
}

/// A label right of a bar where there is room, else left of it, else on it.
fn beside(
    picture: &mut RgbImage,
    font: &FontRef<'_>,
    timeline: &Timeline,
    span: &TimeSpan,
    y: i32,
    label: &str,
) {
    let width = text_size(PxScale::from(SMALL), font, label).0 as i32;
    let (x0, x1) = (column(timeline, span.start), column(timeline, span.end));
    let x = if x1 + 8 + width <= WIDTH as i32 {
        x1 + 8
    } else if x0 - 8 - width >= LEFT {
        x0 - 8 - width
    } else {
        x0 + 6
    };
    text(picture, font, SMALL, (x, y + 2), label);
}

fn bar(
    picture: &mut RgbImage,
    timeline: &Timeline,
    span: &TimeSpan,
    y: i32,
    colour: Rgb<u8>,
    strength: f32,
) {
    shade(picture, timeline, span, (y + 3, y + 19), colour, strength);
}

/// Mixes a colour over the columns of a span; at least three columns.
fn shade(
    picture: &mut RgbImage,
    timeline: &Timeline,
    span: &TimeSpan,
    (top, bottom): (i32, i32),
    colour: Rgb<u8>,
    strength: f32,
) {
    let (x0, x1) = (column(timeline, span.start), column(timeline, span.end));
    for x in x0..x1.max(x0 + 3) {
        for y in top..bottom {
            if let Some(pixel) = picture.get_pixel_mut_checked(x.max(0) as u32, y.max(0) as u32) {
                *pixel = interpolate(colour, *pixel, strength);
            }
        }
    }
}

/// A round step that gives at most ten ticks.
fn tick_step(duration: f64) -> f64 {
    let rough = duration / 10.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= rough)
        .unwrap_or(10.0 * power)
}

/// At most two decimals, none when they are zero.
fn seconds(time: f64) -> String {
    let text = format!("{time:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn text(picture: &mut RgbImage, font: &FontRef<'_>, size: f32, (x, y): (i32, i32), line: &str) {
    draw_text_mut(picture, INK, x, y, PxScale::from(size), font, line);
}

/// Breaks a text into at most `most` lines of `width` pixels; the last one ends in "…" when it
/// does not hold the rest.
fn wrap(font: &FontRef<'_>, size: f32, text: &str, width: i32, most: usize) -> Vec<String> {
    let fits = |line: &str| text_size(PxScale::from(size), font, line).0 as i32 <= width;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word: String = word.chars().take(80).collect();
        let full = lines.len() == most;
        match lines.last_mut() {
            Some(last) if fits(&format!("{last} {word}")) => {
                last.push(' ');
                last.push_str(&word);
            }
            _ if full => {
                if let Some(last) = lines.last_mut() {
                    while !fits(&format!("{last}…")) && last.pop().is_some() {}
                    last.push('…');
                }
                break;
            }
            _ => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> Timeline {
        let span = TimeSpan {
            start: 3.0,
            end: 7.0,
        };
        Timeline {
            title: "When does the dog jump?".into(),
            duration: 12.0,
            curve: (0..12).map(|i| -((i as f32 - 5.0).powi(2))).collect(),
            clip_seconds: 1.0,
            predicted: vec![ScoredSpan { span, score: 0.9 }],
            truth: vec![TimeSpan {
                start: 2.5,
                end: 6.5,
            }],
            thumbnails: vec![(3.0, RgbImage::from_pixel(32, 18, Rgb([10, 200, 30])))],
        }
    }

    #[test]
    fn spans_stand_at_their_times() {
        let t = timeline();
        let picture = draw_timeline(&t).unwrap();
        let layout = layout(&t, 1);
        let row = (layout.rows + 10) as u32;
        let at = |time: f64| *picture.get_pixel(column(&t, time) as u32, row);
        assert_eq!(at(5.0), PREDICTED);
        assert_eq!(at(2.9), PAPER);
        let truth = (layout.rows + ROW + 10) as u32;
        assert_eq!(*picture.get_pixel(column(&t, 2.6) as u32, truth), TRUTH);
        assert_ne!(*picture.get_pixel(column(&t, 2.4) as u32, truth), TRUTH);
    }

    #[test]
    fn nothing_found_and_nothing_known_is_drawn_too() {
        let empty = Timeline {
            duration: 0.4,
            ..Timeline::default()
        };
        let picture = draw_timeline(&empty).unwrap();
        assert_eq!(picture.width(), WIDTH);
        assert_eq!(empty.thumbnail_times(), [0.0, 0.2, 0.4]);
        for duration in [0.0, f64::NAN, -1.0] {
            let bad = Timeline {
                duration,
                ..Timeline::default()
            };
            assert!(draw_timeline(&bad).is_err());
        }
        let mut t = timeline();
        t.curve[3] = f32::NAN;
        assert!(
            draw_timeline(&t)
                .unwrap_err()
                .to_string()
                .contains("clip 3")
        );
        t.curve = vec![1.0; 3000];
        t.title = "long ".repeat(300);
        t.thumbnails[0].1 = RgbImage::new(0, 0);
        t.truth.push(TimeSpan {
            start: 1e9,
            end: 2e9,
        });
        draw_timeline(&t).unwrap();
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(tick_step(12.0), 2.0);
        assert_eq!(tick_step(100.0), 10.0);
        assert!((tick_step(0.4) - 0.05).abs() < 1e-12);
        assert_eq!(seconds(3.0), "3");
        assert_eq!(seconds(3.25), "3.25");
    }
}
