//! A picture of a run's curves.

use ab_glyph::{FontRef, PxScale};
use image::{Rgb, RgbImage};
use imageproc::drawing::{
    draw_antialiased_line_segment_mut, draw_filled_rect_mut, draw_text_mut, text_size,
};
use imageproc::pixelops::interpolate;
use imageproc::rect::Rect;
use tpo_train::observe::StepRecord;

use crate::draw::{COLOURS, FONT};
use crate::error::{Error, Result};

/// Size of one panel in pixels.
const PANEL: (u32, u32) = (900, 300);
/// Room for labels: left, right, top, bottom.
const MARGIN: [f32; 4] = [80.0, 190.0, 36.0, 34.0];
const INK: Rgb<u8> = Rgb([60, 60, 60]);
const GRID: Rgb<u8> = Rgb([225, 225, 225]);

/// One curve: steps and values.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Draws the losses, the norm of the gradients, the learning rates and what evaluations found over
/// the optimizer steps, a panel for each. Vertical lines are the starts of stages.
///
/// # Errors
/// [`Error::Picture`] when there is nothing to draw.
pub fn draw_curves(records: &[StepRecord]) -> Result<RgbImage> {
    let failed = |why: String| Error::Picture {
        what: "the curves".into(),
        why,
    };
    let font = FontRef::try_from_slice(FONT).map_err(|e| failed(e.to_string()))?;
    let panels: Vec<(&str, Vec<Curve>)> = [
        (
            "loss",
            curves(records, |n| {
                n.starts_with("loss") && n.matches('/').count() < 2
            }),
        ),
        (
            "gradient norm before clipping",
            curves(records, |n| n == "grad_norm"),
        ),
        ("learning rate", curves(records, |n| n.starts_with("lr"))),
        (
            "loss on held-out samples",
            curves(records, is_held_out_loss),
        ),
        ("evaluation", curves(records, is_score)),
    ]
    .into_iter()
    .filter(|(_, curves)| !curves.is_empty())
    .collect();
    if panels.is_empty() {
        return Err(failed(
            "there are no values to draw; is metrics.jsonl empty?".into(),
        ));
    }
    let mut stages: Vec<(f64, &str)> = Vec::new();
    for record in records {
        if stages.last().is_none_or(|(_, name)| *name != record.stage) {
            stages.push((record.step as f64, &record.stage));
        }
    }
    let steps = records.iter().map(|r| r.step as f64);
    let first = steps.clone().fold(f64::INFINITY, f64::min);
    let last = steps.fold(0.0, f64::max).max(first + 1.0);

    let (width, height) = PANEL;
    let mut picture = RgbImage::from_pixel(width, height * panels.len() as u32, Rgb([255; 3]));
    for (i, (title, curves)) in panels.iter().enumerate() {
        let mut panel = Panel {
            picture: &mut picture,
            font: &font,
            top: (i as u32 * height) as f32,
            x: (first, last),
            y: range(curves),
            log: false,
        };
        panel.choose_scale(curves);
        panel.frame(title, &stages);
        for (k, curve) in curves.iter().enumerate() {
            panel.curve(curve, k);
        }
    }
    Ok(picture)
}

/// `eval/loss`, `eval/lm/loss`, not the terms of a head.
fn is_held_out_loss(name: &str) -> bool {
    name.starts_with("eval/") && name.ends_with("/loss")
}

/// What an evaluation found besides losses.
fn is_score(name: &str) -> bool {
    name.starts_with("eval/") && !name.split('/').any(|part| part == "loss")
}

fn curves(records: &[StepRecord], wanted: impl Fn(&str) -> bool) -> Vec<Curve> {
    let mut names: Vec<&str> = Vec::new();
    for name in records.iter().flat_map(|r| r.values.keys()) {
        if wanted(name) && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
        .into_iter()
        .map(|name| Curve {
            name: name.to_string(),
            points: records
                .iter()
                .filter_map(|r| Some((r.step as f64, *r.values.get(name)?)))
                .filter(|(_, v)| v.is_finite())
                .collect(),
        })
        .filter(|c| !c.points.is_empty())
        .collect()
}

/// Range of the values with some room, from zero where they are not far from it.
fn range(curves: &[Curve]) -> (f64, f64) {
    let values = || curves.iter().flat_map(|c| c.points.iter().map(|p| p.1));
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let low = if low > 0.0 && low < 0.6 * high {
        0.0
    } else {
        low
    };
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-12);
    (if low == 0.0 { 0.0 } else { low - room }, high + room)
}

/// A step for ticks that reads well: 1, 2 or 5 times a power of ten, about five in `span`.
fn tick_step(span: f64) -> f64 {
    let rough = (span / 5.0).max(f64::MIN_POSITIVE);
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= rough);
    factor.unwrap_or(10.0) * power
}

fn label(value: f64, step: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) {
        return format!("{value:.1e}");
    }
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

struct Panel<'a> {
    picture: &'a mut RgbImage,
    font: &'a FontRef<'a>,
    top: f32,
    x: (f64, f64),
    y: (f64, f64),
    /// Powers of ten at equal distances; `y` is then in powers.
    log: bool,
}

impl Panel<'_> {
    fn area(&self) -> [f32; 4] {
        let [left, right, top, bottom] = MARGIN;
        [
            left,
            self.top + top,
            PANEL.0 as f32 - right,
            self.top + PANEL.1 as f32 - bottom,
        ]
    }

    /// A few values far above the others would leave those on one line.
    fn choose_scale(&mut self, curves: &[Curve]) {
        let mut values: Vec<f64> = curves.iter().flat_map(|c| &c.points).map(|p| p.1).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[0], values[values.len() - 1]);
        if low > 0.0 && high > 100.0 * values[values.len() / 2] {
            self.log = true;
            self.y = (low.log10().floor(), high.log10().ceil());
        }
    }

    fn at(&self, (x, y): (f64, f64)) -> (f32, f32) {
        let y = if self.log { y.log10() } else { y };
        let [x0, y0, x1, y1] = self.area();
        let part = |v: f64, (low, high): (f64, f64)| ((v - low) / (high - low)) as f32;
        (
            x0 + part(x, self.x) * (x1 - x0),
            y1 - part(y, self.y) * (y1 - y0),
        )
    }

    fn text(&mut self, x: f32, y: f32, size: f32, colour: Rgb<u8>, text: &str) {
        let scale = PxScale::from(size);
        draw_text_mut(
            self.picture,
            colour,
            x as i32,
            y as i32,
            scale,
            self.font,
            text,
        );
    }

    fn line(&mut self, from: (f32, f32), to: (f32, f32), colour: Rgb<u8>) {
        let round = |(x, y): (f32, f32)| (x.round() as i32, y.round() as i32);
        draw_antialiased_line_segment_mut(
            self.picture,
            round(from),
            round(to),
            colour,
            interpolate,
        );
    }

    fn frame(&mut self, title: &str, stages: &[(f64, &str)]) {
        let [x0, y0, x1, y1] = self.area();
        self.text(x0, self.top + 8.0, 19.0, INK, title);
        let mut step = tick_step(self.y.1 - self.y.0);
        if self.log {
            step = step.max(1.0);
        }
        for k in (self.y.0 / step).ceil() as i64..=(self.y.1 / step).floor() as i64 {
            let tick = k as f64 * step;
            let value = if self.log { 10_f64.powf(tick) } else { tick };
            let (_, y) = self.at((self.x.0, value));
            self.line((x0, y), (x1, y), GRID);
            let text = if self.log || (tick != 0.0 && self.y.1 < 0.01) {
                format!("{value:.1e}")
            } else {
                label(value, step)
            };
            let (w, _) = text_size(PxScale::from(14.0), self.font, &text);
            self.text(x0 - w as f32 - 8.0, y - 8.0, 14.0, INK, &text);
        }
        let step = tick_step(self.x.1 - self.x.0).max(1.0);
        for k in (self.x.0 / step).ceil() as i64..=(self.x.1 / step).floor() as i64 {
            let value = k as f64 * step;
            let (x, _) = self.at((value, 1.0));
            self.line((x, y1), (x, y1 + 4.0), INK);
            let text = label(value, step);
            let (w, _) = text_size(PxScale::from(14.0), self.font, &text);
            self.text(x - w as f32 / 2.0, y1 + 7.0, 14.0, INK, &text);
        }
        for (start, name) in stages {
            let (x, _) = self.at((*start, 1.0));
            if stages.len() > 1 {
                self.line((x, y0), (x, y1), Rgb([170; 3]));
                self.text(x + 4.0, y0 - 1.0, 13.0, Rgb([120; 3]), name);
            }
        }
        self.line((x0, y1), (x1, y1), INK);
        self.line((x0, y0), (x0, y1), INK);
    }

    fn curve(&mut self, curve: &Curve, number: usize) {
        let colour = Rgb(COLOURS[number % COLOURS.len()]);
        let points: Vec<(f32, f32)> = curve.points.iter().map(|p| self.at(*p)).collect();
        for pair in points.windows(2) {
            self.line(pair[0], pair[1], colour);
            // A second pixel, for curves that cross others.
            let down = |p: (f32, f32)| (p.0, p.1 + 1.0);
            self.line(down(pair[0]), down(pair[1]), colour);
        }
        // Few values, such as those of evaluations, are dots too.
        if points.len() < 40 {
            for (x, y) in &points {
                let rect = Rect::at(*x as i32 - 2, *y as i32 - 2).of_size(5, 5);
                draw_filled_rect_mut(self.picture, rect, colour);
            }
        }
        let x = PANEL.0 as f32 - MARGIN[1] + 14.0;
        let y = self.top + MARGIN[2] + 20.0 * number as f32;
        if y + 20.0 > self.top + PANEL.1 as f32 {
            return;
        }
        let rect = Rect::at(x as i32, y as i32 + 4).of_size(12, 12);
        draw_filled_rect_mut(self.picture, rect, colour);
        let end = curve.points.last().map_or(0.0, |p| p.1);
        let text = format!("{} {}", curve.name, label(end, end.abs().max(1e-9) / 100.0));
        self.text(x + 18.0, y + 2.0, 14.0, INK, &text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn ticks_read_well() {
        assert_eq!(tick_step(10.0), 2.0);
        assert_eq!(tick_step(4.2), 1.0);
        assert!((tick_step(0.013) - 0.005).abs() < 1e-12);
        assert_eq!(label(0.02, 0.005), "0.020");
        assert_eq!(label(2e-5, 1e-5), "2.0e-5");
        assert_eq!(label(300.0, 100.0), "300");
    }

    #[test]
    fn any_values_are_drawn() {
        let record = |step: u64, value: f64| StepRecord {
            step,
            stage: if step < 50 { "a".into() } else { "b".into() },
            values: BTreeMap::from([
                ("loss".into(), value),
                ("loss/lm".into(), value / 2.0),
                ("lr/lora".into(), 1e-5),
            ]),
            ..StepRecord::default()
        };
        let records: Vec<StepRecord> = (1..100)
            .map(|s| record(s, 3.0 / (s as f64).sqrt()))
            .collect();
        let picture = draw_curves(&records).unwrap();
        assert_eq!(picture.dimensions(), (900, 600));
        for values in [
            vec![f64::NAN, 1.0],
            vec![0.0],
            vec![-1e30, 1e30],
            vec![5.0, 5.0],
        ] {
            let records: Vec<StepRecord> = (1..).zip(values).map(|(s, v)| record(s, v)).collect();
            draw_curves(&records).unwrap();
        }
        assert!(draw_curves(&[]).is_err());
    }
}
