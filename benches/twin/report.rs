//! The table.

use std::fmt::Write;

use crate::machine;
use crate::ours::Measured;
use crate::rows::{self, Row, Task};
use crate::run::Pairs;

/// Median of a process's samples; over processes, the median of those and their range.
struct Side {
    median: f64,
    low: f64,
    high: f64,
    peak_mib: Option<f64>,
    device_mib: Option<f64>,
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn side(runs: &[Measured]) -> Option<Side> {
    let mut medians: Vec<f64> = runs
        .iter()
        .filter_map(|run| median(&mut run.samples_ms.clone()))
        .collect();
    let highest = |get: fn(&Measured) -> Option<f64>| runs.iter().filter_map(get).reduce(f64::max);
    let median = median(&mut medians)?;
    Some(Side {
        median,
        low: *medians.first()?,
        high: *medians.last()?,
        peak_mib: highest(|m| m.peak_mib),
        device_mib: highest(|m| m.device_mib),
    })
}

/// One line for a reader who waits.
pub fn progress(row: &Row, pairs: &Pairs) -> String {
    let ms = |runs: &[Measured]| side(runs).map_or("-".into(), |s| number(s.median));
    format!(
        "{}: ours {} ms, twin {} ms",
        row.name,
        ms(&pairs.ours),
        ms(&pairs.twin)
    )
}

/// The machine's limits as either side reached them.
struct Limits {
    gflops: Option<f64>,
    gbytes: Option<f64>,
}

impl Limits {
    fn of(peak: &Pairs) -> Self {
        let best = |get: fn(&Measured) -> Option<f64>| {
            let both = peak.ours.iter().chain(&peak.twin);
            both.filter_map(get).reduce(f64::max)
        };
        Self {
            gflops: best(|m| m.gflops),
            gbytes: best(|m| m.gbytes),
        }
    }

    /// The time below which no program can do a row's work here, in ms, and what sets it.
    fn floor(&self, row: &Row) -> Option<(f64, String)> {
        if matches!(row.task, Task::VideoDecode | Task::VideoLoader) {
            return None;
        }
        let (gflops, gbytes) = (self.gflops?, self.gbytes?);
        let compute = row.flops / gflops / 1e6;
        let memory = row.bytes / gbytes / 1e6;
        Some(if compute > memory {
            (compute, format!("{} GFLOP", number(row.flops / 1e9)))
        } else {
            (memory, format!("{} MB", number(row.bytes / 1e6)))
        })
    }
}

/// The whole report in Markdown.
pub fn table(rows: &[(Row, Pairs)], peak: &Pairs) -> String {
    let limits = Limits::of(peak);
    let mut out = String::from("\n");
    for (name, runs) in [("ours", &peak.ours), ("twin", &peak.twin)] {
        let best =
            |get: fn(&Measured) -> Option<f64>| opt(runs.iter().filter_map(get).reduce(f64::max));
        let _ = writeln!(
            out,
            "peak, {name}: {} GFLOP/s f32 matrix product, {} GB/s reading memory",
            best(|m| m.gflops),
            best(|m| m.gbytes)
        );
    }
    out.push_str(
        "\n| row | ours ms | twin ms | ours/twin | GFLOP/s ours, twin | floor ms (set by) | ours/floor | peak MiB ours, twin |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for (row, pairs) in rows {
        line(&mut out, row, pairs, &limits);
    }
    out.push_str(
        "\nMedian over processes of each process's median, and its range; a ratio below 1 is \
         faster than the twin.\n",
    );
    for (row, pairs) in rows {
        notes(&mut out, row, pairs);
    }
    out
}

fn line(out: &mut String, row: &Row, pairs: &Pairs, limits: &Limits) {
    let (ours, twin) = (side(&pairs.ours), side(&pairs.twin));
    let time = |side: &Option<Side>| match side {
        None => "–".into(),
        Some(s) => {
            let range = format!(
                "{} ({}–{})",
                number(s.median),
                number(s.low),
                number(s.high)
            );
            if row.is_decode() {
                format!("{range}, {} tokens/s", number(1e3 / s.median))
            } else {
                range
            }
        }
    };
    let ratio = match (&ours, &twin) {
        (Some(a), Some(b)) => format!("{:.2}", a.median / b.median),
        _ => "–".into(),
    };
    let rate = |side: &Option<Side>| match side {
        Some(s) if row.flops > 0.0 => number(row.flops / s.median / 1e6),
        _ => "–".into(),
    };
    let floor = limits.floor(row);
    let above = match (&ours, &floor) {
        (Some(a), Some((ms, _))) => format!("{:.2}", a.median / ms),
        _ => "–".into(),
    };
    let memory = |side: &Option<Side>| {
        let Some(s) = side else { return "–".into() };
        match s.device_mib {
            Some(device) => format!("{} (device {})", opt(s.peak_mib), number(device)),
            None => opt(s.peak_mib),
        }
    };
    let _ = writeln!(
        out,
        "| {} ({}; {}) | {} | {} | {ratio} | {}, {} | {} | {above} | {}, {} |",
        row.name,
        row.what,
        rows::name(row.dtype),
        time(&ours),
        time(&twin),
        rate(&ours),
        rate(&twin),
        floor.map_or("–".into(), |(ms, by)| format!("{} ({by})", number(ms))),
        memory(&ours),
        memory(&twin),
    );
}

fn notes(out: &mut String, row: &Row, pairs: &Pairs) {
    let mut seen: Vec<&str> = Vec::new();
    for m in pairs.ours.iter().chain(&pairs.twin) {
        if !m.note.is_empty() && !seen.contains(&m.note.as_str()) {
            seen.push(&m.note);
        }
    }
    if !seen.is_empty() {
        let _ = writeln!(out, "{}: {}", row.name, seen.join("; "));
    }
    let all = || pairs.ours.iter().chain(&pairs.twin);
    let disturbed = all().filter(|m| m.others.is_some_and(|o| o >= machine::DISTURBED));
    let worst = all().filter_map(|m| m.others).fold(0.0, f64::max);
    match disturbed.count() {
        0 => {}
        n => {
            let _ = writeln!(
                out,
                "{}: other processes kept up to {worst:.2} cores busy during {n} of {} processes",
                row.name,
                all().count()
            );
        }
    }
    for failure in &pairs.failures {
        let _ = writeln!(out, "{}: {failure}", row.name);
    }
}

fn opt(value: Option<f64>) -> String {
    value.map_or("–".into(), number)
}

/// Three significant digits, whole numbers from 100 on.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
