//! The tables, and the page they stand on.

use std::fmt::Write;
use std::path::Path;

use crate::ours::Measured;
use crate::rows::{self, Row, Task};
use crate::run::{Outcomes, Results};
use crate::sides::Side;
use crate::{Outcome, machine};

/// Median of a process's samples; over processes, the median of those and their range.
struct Measurement {
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

fn side(runs: &[Measured]) -> Option<Measurement> {
    let mut medians: Vec<f64> = runs
        .iter()
        .filter_map(|run| median(&mut run.samples_ms.clone()))
        .collect();
    let highest = |get: fn(&Measured) -> Option<f64>| runs.iter().filter_map(get).reduce(f64::max);
    let median = median(&mut medians)?;
    Some(Measurement {
        median,
        low: *medians.first()?,
        high: *medians.last()?,
        peak_mib: highest(|m| m.peak_mib),
        device_mib: highest(|m| m.device_mib),
    })
}

/// One line for a reader who waits.
pub fn progress(outcomes: &Outcomes) -> String {
    let sides = outcomes.sides.iter().filter_map(|(name, runs)| {
        let ms = number(side(runs)?.median);
        Some(format!("{} {ms} ms", name.title()))
    });
    format!("{}: {}", outcomes.row, sides.collect::<Vec<_>>().join(", "))
}

/// The time below which no program can do a row's work here, in ms, and what sets it: by the best
/// that was reached in the minutes of the row.
fn floor(row: &Row, peaks: &[Measured]) -> Option<(f64, String)> {
    if matches!(row.task, Task::VideoDecode | Task::VideoLoader) {
        return None;
    }
    let best = |get: fn(&Measured) -> Option<f64>| peaks.iter().filter_map(get).reduce(f64::max);
    let compute = row.flops / best(|m| m.gflops)? / 1e6;
    let memory = row.bytes / best(|m| m.gbytes)? / 1e6;
    Some(if compute > memory {
        (compute, format!("{} GFLOP", number(row.flops / 1e9)))
    } else {
        (memory, format!("{} MB", number(row.bytes / 1e6)))
    })
}

/// A row of the table with what it is sorted by: how much slower than the best of the others.
struct Line {
    worst: f64,
    text: String,
}

/// The tables in Markdown, what we lose first.
pub fn table(results: &Results) -> Outcome<String> {
    let peaks = || results.rows.iter().flat_map(|row| &row.peaks);
    let range = |get: fn(&Measured) -> Option<f64>| {
        let values = || peaks().filter_map(get);
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(0.0, f64::max);
        format!("{}–{}", number(low), number(high))
    };
    let mut out = format!(
        "\n{}, {} threads on every side, device {}. While the rows ran the machine gave {} GFLOP/s (f32 \
         matrix product) and {} GB/s (reading memory).\n\n\
         | row | ours ms |",
        results.machine,
        results.threads,
        results.device,
        range(|m| m.gflops),
        range(|m| m.gbytes),
    );
    let ran = |side: &Side| results.rows.iter().any(|row| row.sides.contains_key(side));
    let others: Vec<Side> = Side::OTHERS.into_iter().filter(ran).collect();
    for side in &others {
        let _ = write!(out, " {} |", side.title());
    }
    out.push_str(" floor ms (set by) | ours/floor | peak MiB: ours, PyTorch |\n|---|---|");
    out.push_str(&"---|".repeat(others.len() + 3));
    out.push('\n');
    let mut lines = Vec::new();
    for outcomes in &results.rows {
        lines.push(line(&rows::find(&outcomes.row)?, outcomes, &others));
    }
    lines.sort_by(|a, b| b.worst.total_cmp(&a.worst));
    out.extend(lines.into_iter().map(|line| line.text));
    out.push_str(
        "\nMedian over processes of each process's median, and its range. In brackets beside another side: our \
         time divided by its; below 1 we are faster. The floor is FLOPs or bytes by the best of the row's own \
         minutes.\n\n",
    );
    for outcomes in &results.rows {
        notes(&mut out, outcomes);
    }
    Ok(out)
}

fn line(row: &Row, outcomes: &Outcomes, others: &[Side]) -> Line {
    let of = |name: &Side| outcomes.sides.get(name).and_then(|runs| side(runs));
    let ours = of(&Side::Ours);
    let range = |s: &Measurement| {
        if s.low == s.high {
            return number(s.median);
        }
        format!(
            "{} ({}–{})",
            number(s.median),
            number(s.low),
            number(s.high)
        )
    };
    let mut text = format!(
        "| {} ({}; {}) | {} |",
        row.name,
        row.what,
        row.format.name(),
        ours.as_ref().map_or("–".into(), range)
    );
    let mut worst = 0.0_f64;
    for name in others {
        let cell = match (&ours, of(name)) {
            (_, None) => "–".into(),
            (None, Some(other)) => range(&other),
            (Some(ours), Some(other)) => {
                let ratio = ours.median / other.median;
                worst = worst.max(ratio);
                let mark = if ratio > 1.0 { "**" } else { "" };
                format!("{} [{mark}{ratio:.2}{mark}]", range(&other))
            }
        };
        let _ = write!(text, " {cell} |");
    }
    let floor = floor(row, &outcomes.peaks);
    let above = match (&ours, &floor) {
        (Some(ours), Some((ms, _))) => format!("{:.2}", ours.median / ms),
        _ => "–".into(),
    };
    let memory = |s: Option<Measurement>| match s {
        None => "–".into(),
        Some(s) => match s.device_mib {
            Some(device) => format!("{} (device {})", opt(s.peak_mib), number(device)),
            None => opt(s.peak_mib),
        },
    };
    let _ = writeln!(
        text,
        " {} | {above} | {}, {} |",
        floor.map_or("–".into(), |(ms, by)| format!("{} ({by})", number(ms))),
        memory(of(&Side::Ours)),
        memory(of(&Side::Pytorch)),
    );
    Line { worst, text }
}

fn notes(out: &mut String, outcomes: &Outcomes) {
    let all = || outcomes.sides.values().flatten();
    let mut seen: Vec<&str> = Vec::new();
    for note in all().map(|m| m.note.as_str()) {
        if !note.is_empty() && !seen.contains(&note) {
            seen.push(note);
        }
    }
    let disturbed = all().filter(|m| m.others.is_some_and(|o| o >= machine::DISTURBED));
    let worst = all().filter_map(|m| m.others).fold(0.0, f64::max);
    let disturbed = match disturbed.count() {
        0 => None,
        n => Some(format!(
            "other processes kept up to {worst:.2} cores busy during {n} of {} processes",
            all().count()
        )),
    };
    let said = seen.into_iter().map(str::to_owned).chain(disturbed);
    let said: Vec<String> = said.chain(outcomes.failures.iter().cloned()).collect();
    if !said.is_empty() {
        let _ = writeln!(out, "- {}: {}", outcomes.row, said.join("; "));
    }
}

/// Puts a table between the marks of a document, in place of what is there.
pub fn write(path: &Path, table: &str) -> Outcome<()> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| {
        format!(
            "{}: the marks {BEGIN} and {END} are missing",
            path.display()
        )
    })?;
    std::fs::write(path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).map_err(failed)?;
    Ok(())
}

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

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
