//! Boxes of referring expressions.

use serde_json::{Map, Value, json};
use tpo::evaluation::files::Unusable;
use tpo::evaluation::files::boxes::{BOX_PROTOCOL, BoxOptions, evaluate_boxes};

use super::Args;
use super::outcome::{Failure, Grid, Outcome};
use super::progress::table;

pub fn boxes(args: &Args) -> Result<Outcome, Failure> {
    let mut options = BoxOptions {
        strict: args.strict,
        reversed_is_miss: args.unusable() == Unusable::Score,
        ..Default::default()
    };
    if !args.iou.is_empty() {
        options.thresholds = args.iou.clone();
    }
    let predictions = table(args.predictions(), &args.reading())?;
    let truth = table(args.truth()?, &args.reading())?;
    let report = evaluate_boxes(&predictions, &truth, &options)?;
    let mut outcome = Outcome::new(BOX_PROTOCOL, &options)?;
    outcome.read(&predictions);
    outcome.read(&truth);
    let mut names: Vec<String> = options
        .thresholds
        .iter()
        .map(|t| format!("Acc@{t}"))
        .collect();
    names.push("mIoU".into());
    let columns: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut grid = Grid::new(&columns, 2);
    let mut scores = Map::new();
    for split in &report.splits {
        let values: Vec<f64> = split
            .accuracy
            .iter()
            .map(|a| a.1)
            .chain([split.miou])
            .collect();
        let named: Map<String, Value> = names
            .iter()
            .cloned()
            .zip(values.iter().map(|v| (*v).into()))
            .collect();
        scores.insert(split.split.clone(), named.into());
        grid.row(
            format!("{} ({})", split.split, split.count),
            values.into_iter().map(Some).collect(),
        );
    }
    if report.missing_boxes > 0 {
        outcome.notes.push(format!(
            "{} samples without a box count as misses",
            report.missing_boxes
        ));
    }
    outcome.grids.push(grid);
    outcome.scores = Value::Object(scores);
    outcome.details = json!({"missing_boxes": report.missing_boxes});
    outcome.matched = Some(report.matched);
    Ok(outcome)
}
