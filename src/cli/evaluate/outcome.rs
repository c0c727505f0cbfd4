//! What a task hands back: a table, notes, scores and the protocol that gave them.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cli::shared::{Outcome, read};
use crate::evaluation::compare;
use crate::evaluation::files::{Matched, Record, Score, Table};

/// Ids listed on the screen; the JSON has all.
const LISTED: usize = 5;

/// A table with a name per row and a number per column.
#[derive(Default)]
pub struct Grid {
    pub columns: Vec<String>,
    pub rows: Vec<(String, Vec<Option<f64>>)>,
    pub decimals: usize,
}

impl Grid {
    pub fn new(columns: &[&str], decimals: usize) -> Self {
        Self {
            columns: columns.iter().map(|c| c.to_string()).collect(),
            rows: Vec::new(),
            decimals,
        }
    }

    pub fn row(&mut self, name: impl Into<String>, values: Vec<Option<f64>>) {
        self.rows.push((name.into(), values));
    }

    pub fn print(&self) {
        let cell = |v: &Option<f64>| match v {
            Some(v) => format!("{v:.*}", self.decimals),
            None => "-".into(),
        };
        let first = self.rows.iter().map(|(name, _)| name.chars().count());
        let first = first.max().unwrap_or(0);
        let width = |i: usize| {
            let cells = self
                .rows
                .iter()
                .filter_map(|(_, v)| v.get(i))
                .map(|v| cell(v).len());
            cells.max().unwrap_or(0).max(self.columns[i].len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        if self.columns.iter().any(|c| !c.is_empty()) {
            let heads = self.columns.iter().zip(&widths);
            let heads = heads.map(|(c, w)| format!("  {c:>w$}"));
            println!("{:first$}{}", "", heads.collect::<String>());
        }
        for (name, values) in &self.rows {
            let cells = values.iter().zip(&widths);
            let cells = cells.map(|(v, w)| format!("  {:>w$}", cell(v)));
            println!("{name:first$}{}", cells.collect::<String>());
        }
    }
}

/// The result of one evaluation.
#[derive(Default)]
pub struct Scored {
    /// Name and version of the metric.
    pub protocol: &'static str,
    pub options: Value,
    /// The tables of the summary.
    pub grids: Vec<Grid>,
    /// Per object, sequence or group, on request.
    pub each: Option<Grid>,
    pub scores: Value,
    pub details: Value,
    pub matched: Option<Matched>,
    pub notes: Vec<String>,
    reading: Vec<Value>,
}

impl Scored {
    pub fn new(protocol: &'static str, options: &impl Serialize) -> Outcome<Self> {
        Ok(Self {
            protocol,
            options: serde_json::to_value(options)?,
            ..Default::default()
        })
    }

    /// As [`new`](Self::new), having read two tables.
    pub fn of<P: Record, T: Record>(
        protocol: &'static str,
        options: &impl Serialize,
        (predictions, truth): &(Table<P>, Table<T>),
    ) -> Outcome<Self> {
        let mut scored = Self::new(protocol, options)?;
        scored.read(predictions);
        scored.read(truth);
        Ok(scored)
    }

    /// Scores by name, which are also a table of one column with each value times `factor`.
    pub fn set_scores(
        &mut self,
        factor: f64,
        decimals: usize,
        scores: impl IntoIterator<Item = Score>,
    ) {
        let mut grid = Grid::new(&[""], decimals);
        let mut named = Map::new();
        for Score { name, value } in scores {
            grid.row(&name, vec![value.map(|v| factor * v)]);
            named.insert(name, value.into());
        }
        self.grids.push(grid);
        self.scores = Value::Object(named);
    }

    /// Notes what was odd in a file.
    pub fn read<T: Record>(&mut self, table: &Table<T>) {
        for field in &table.unknown_fields {
            self.notes.push(format!(
                "{}: the field `{}` is not part of the format and was ignored ({} rows, first on line {})",
                table.file, field.name, field.rows, field.first_line
            ));
        }
        let skipped: Vec<String> = table.skipped.iter().map(ToString::to_string).collect();
        let listed = skipped.iter().take(LISTED).map(|e| format!("skipped: {e}"));
        self.notes.extend(listed);
        if skipped.len() > LISTED {
            let (rows, file) = (skipped.len(), &table.file);
            self.notes
                .push(format!("skipped: {rows} rows of {file} in all"));
        }
        self.reading.push(json!({
            "file": table.file,
            "rows": table.len(),
            "unknown_fields": table.unknown_fields,
            "skipped": skipped,
        }));
    }

    pub fn print(&self, each: bool) {
        let grids = self.grids.iter().chain(self.each.as_ref().filter(|_| each));
        for (i, grid) in grids.enumerate() {
            if i > 0 {
                println!();
            }
            grid.print();
        }
        println!("\nmetric: {}", self.protocol);
        if let Some(matched) = &self.matched {
            println!("scored: {}", matched.matched);
            for (what, ids) in [
                ("without prediction", &matched.without_prediction),
                ("without ground truth", &matched.without_truth),
            ] {
                if !ids.is_empty() {
                    let more = if ids.len() > LISTED { ", .." } else { "" };
                    let first: Vec<_> = ids.iter().take(LISTED).map(String::as_str).collect();
                    println!(
                        "not scored, {what}: {} ({}{more})",
                        ids.len(),
                        first.join(", ")
                    );
                }
            }
        }
        for note in &self.notes {
            println!("note: {note}");
        }
    }

    /// Everything for `--json`.
    pub fn document(&self, format: &str, predictions: &Path, truth: Option<&Path>) -> Value {
        json!({
            "protocol": {
                "program": concat!("tpo evaluate ", env!("CARGO_PKG_VERSION")),
                "metric": self.protocol,
                "format": format,
                "options": self.options,
                "predictions": predictions.display().to_string(),
                "ground_truth": truth.map(|p| p.display().to_string()),
            },
            "scores": self.scores,
            "details": self.details,
            "matched": self.matched,
            "files": self.reading,
            "notes": self.notes,
        })
    }
}

/// Numbers further apart than this differ.
const EQUAL: f64 = 1e-9;

/// Where scores differ from a JSON file: an official result, or one of ours.
pub fn differences(scores: &Value, file: &Path) -> Outcome<Vec<String>> {
    let expected = serde_json::from_str(&read(file)?);
    let mut expected: Value = expected.map_err(|e| format!("{}: {e}", file.display()))?;
    if expected["scores"].is_object() {
        expected = expected["scores"].take();
    }
    let mut found = Vec::new();
    compare(
        "",
        " / ",
        Some(scores),
        Some(&expected),
        &mut |path, got, expected| {
            found.push(match (got, expected) {
                (Some(Value::Number(g)), Some(Value::Number(e)))
                    if near(g.as_f64(), e.as_f64()) =>
                {
                    return;
                }
                (Some(g), Some(e)) => format!("{path} is {g}, expected {e}"),
                (Some(_), None) => format!("{path} is not expected"),
                _ => format!("{path} is missing"),
            });
        },
    );
    Ok(found)
}

fn near(a: Option<f64>, b: Option<f64>) -> bool {
    a.zip(b).is_some_and(|(a, b)| (a - b).abs() <= EQUAL)
}
