//! A picture of a run's curves.

use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_line_segment_mut};
use imageproc::rect::Rect;
use tpo_train::observe::StepRecord;

use crate::draw::{COLOURS, Letters, draw_curve, tick_step};
use crate::error::{Error, Result};

/// Size of one panel in pixels.
const WIDTH: i32 = 900;
const HEIGHT: i32 = 300;
/// Room for labels around a plot.
const LEFT: i32 = 80;
const RIGHT: i32 = 190;
const TOP: i32 = 36;
const BOTTOM: i32 = 34;
const INK: Rgb<u8> = Rgb([60, 60, 60]);
const GRID: Rgb<u8> = Rgb([225, 225, 225]);

/// One curve: its name and its points, steps and values.
type Curve<'a> = (&'a str, Vec<(f64, f64)>);
/// Whether a value of that name belongs to a panel.
type Wanted = fn(&str) -> bool;

/// Draws the losses, the norm of the gradients, the learning rates and what evaluations found over
/// the optimizer steps, a panel for each. Vertical lines are the starts of stages.
///
/// # Errors
/// [`Error::Picture`] when there is nothing to draw.
pub fn draw_curves(records: &[StepRecord]) -> Result<RgbImage> {
    let panels: [(&str, Wanted); 5] = [
        ("loss", |n| {
            n.starts_with("loss") && n.matches('/').count() < 2
        }),
        ("gradient norm before clipping", |n| n == "grad_norm"),
        ("learning rate", |n| n.starts_with("lr")),
        // `eval/loss`, `eval/lm/loss`, not the terms of a head.
        ("loss on held-out samples", |n| {
            n.starts_with("eval/") && n.ends_with("/loss")
        }),
        // What an evaluation found besides losses.
        ("evaluation", |n| {
            n.starts_with("eval/") && !n.split('/').any(|part| part == "loss")
        }),
    ];
    let panels = panels.map(|(title, wanted)| (title, curves(records, wanted)));
    let panels = panels.iter().filter(|(_, curves)| !curves.is_empty());
    let count = panels.clone().count() as i32;
    if count == 0 {
        return Err(Error::Picture {
            what: "the curves".into(),
            why: "there are no values to draw; is metrics.jsonl empty?".into(),
        });
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

    let mut picture = RgbImage::from_pixel(WIDTH as u32, (HEIGHT * count) as u32, Rgb([255; 3]));
    for (i, (title, curves)) in (0..).zip(panels) {
        let (y, log) = range(curves);
        let mut panel = Panel {
            picture: &mut picture,
            titles: Letters::new(19.0)?,
            letters: Letters::new(14.0)?,
            area: [
                LEFT,
                HEIGHT * i + TOP,
                WIDTH - RIGHT,
                HEIGHT * (i + 1) - BOTTOM,
            ],
            x: (first, last),
            y,
            log,
        };
        panel.frame(title, &stages);
        for (number, curve) in (0..).zip(curves) {
            panel.curve(curve, number);
        }
    }
    Ok(picture)
}

/// The curves whose names are wanted, in the order in which they first occur.
fn curves(records: &[StepRecord], wanted: Wanted) -> Vec<Curve<'_>> {
    let mut curves: Vec<Curve<'_>> = Vec::new();
    for record in records {
        for (name, value) in record
            .values
            .iter()
            .filter(|(n, v)| wanted(n) && v.is_finite())
        {
            let point = (record.step as f64, *value);
            match curves.iter_mut().find(|c| c.0 == name.as_str()) {
                Some(curve) => curve.1.push(point),
                None => curves.push((name, vec![point])),
            }
        }
    }
    curves
}

/// Range of the values with some room, from zero where they are not far from it; in powers of ten
/// (and `true`) where a few far above the others would leave those on one line.
fn range(curves: &[Curve<'_>]) -> ((f64, f64), bool) {
    let mut values: Vec<f64> = curves.iter().flat_map(|c| &c.1).map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[values.len() - 1]);
    if low > 0.0 && high > 100.0 * values[values.len() / 2] {
        return ((low.log10().floor(), high.log10().ceil()), true);
    }
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-12);
    let from_zero = low == 0.0 || (low > 0.0 && low < 0.6 * high);
    let low = if from_zero { 0.0 } else { low - room };
    ((low, high + room), false)
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
    titles: Letters,
    letters: Letters,
    /// Left, top, right and bottom of the plot.
    area: [i32; 4],
    x: (f64, f64),
    y: (f64, f64),
    /// Powers of ten at equal distances; `y` is then in powers.
    log: bool,
}

impl Panel<'_> {
    fn at(&self, (x, y): (f64, f64)) -> (i32, i32) {
        let y = if self.log { y.log10() } else { y };
        let [x0, y0, x1, y1] = self.area.map(f64::from);
        let part = |v: f64, (low, high): (f64, f64)| (v - low) / (high - low);
        let (x, y) = (
            x0 + part(x, self.x) * (x1 - x0),
            y1 - part(y, self.y) * (y1 - y0),
        );
        (x.round() as i32, y.round() as i32)
    }

    fn line(&mut self, from: (i32, i32), to: (i32, i32), colour: Rgb<u8>) {
        let float = |(x, y): (i32, i32)| (x as f32, y as f32);
        draw_line_segment_mut(self.picture, float(from), float(to), colour);
    }

    fn frame(&mut self, title: &str, stages: &[(f64, &str)]) {
        let [x0, y0, x1, y1] = self.area;
        self.titles
            .write(self.picture, (x0, y0 - TOP + 8), INK, title);
        let mut step = tick_step(self.y.1 - self.y.0, 5.0);
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
            let x = x0 - self.letters.size(&text).0 - 8;
            self.letters.write(self.picture, (x, y - 8), INK, &text);
        }
        let step = tick_step(self.x.1 - self.x.0, 5.0).max(1.0);
        for k in (self.x.0 / step).ceil() as i64..=(self.x.1 / step).floor() as i64 {
            let value = k as f64 * step;
            let (x, _) = self.at((value, 1.0));
            self.line((x, y1), (x, y1 + 4), INK);
            let text = label(value, step);
            let x = x - self.letters.size(&text).0 / 2;
            self.letters.write(self.picture, (x, y1 + 7), INK, &text);
        }
        for (start, name) in stages.iter().filter(|_| stages.len() > 1) {
            let (x, _) = self.at((*start, 1.0));
            self.line((x, y0), (x, y1), Rgb([170; 3]));
            self.letters
                .write(self.picture, (x + 4, y0 - 1), Rgb([120; 3]), name);
        }
        self.line((x0, y1), (x1, y1), INK);
        self.line((x0, y0), (x0, y1), INK);
    }

    /// Draws a curve and, right of the plot, its name and last value.
    fn curve(&mut self, (name, values): &Curve<'_>, number: i32) {
        let colour = Rgb(COLOURS[number as usize % COLOURS.len()]);
        let points: Vec<(i32, i32)> = values.iter().map(|p| self.at(*p)).collect();
        draw_curve(self.picture, &points, colour);
        let [_, y0, x1, y1] = self.area;
        let (x, y) = (x1 + 14, y0 + 20 * number);
        if y + 20 > y1 + BOTTOM {
            return;
        }
        draw_filled_rect_mut(self.picture, Rect::at(x, y + 4).of_size(12, 12), colour);
        let end = values.last().map_or(0.0, |p| p.1);
        let text = format!("{name} {}", label(end, end.abs().max(1e-9) / 100.0));
        self.letters
            .write(self.picture, (x + 18, y + 2), INK, &text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn labels_read_well() {
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
