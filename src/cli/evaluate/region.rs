//! Boxes of referring expressions.

use serde_json::{Map, Value, json};

use crate::evaluation::files::Unusable;
use crate::evaluation::files::boxes::{BOX_PROTOCOL, BoxOptions, evaluate_boxes};

use super::Args;
use super::outcome::{Grid, Scored};
use crate::cli::shared::Outcome;

pub fn boxes(args: &Args) -> Outcome<Scored> {
    let mut options = BoxOptions {
        strict: args.strict,
        reversed_is_miss: args.unusable() == Unusable::Score,
        ..Default::default()
    };
    if !args.iou.is_empty() {
        options.thresholds = args.iou.clone();
    }
    let files = args.tables()?;
    let report = evaluate_boxes(&files.0, &files.1, &options)?;
    let mut scored = Scored::of(BOX_PROTOCOL, &options, &files)?;
    let names = options.thresholds.iter().map(|t| format!("Acc@{t}"));
    let names: Vec<String> = names.chain(["mIoU".into()]).collect();
    let columns: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut grid = Grid::new(&columns, 2);
    let mut scores = Map::new();
    for split in &report.splits {
        let values = split.accuracy.iter().map(|a| a.1).chain([split.miou]);
        let named = names.iter().cloned().zip(values.clone().map(Value::from));
        scores.insert(split.split.clone(), Value::Object(named.collect()));
        let name = format!("{} ({})", split.split, split.count);
        grid.row(name, values.map(Some).collect());
    }
    let missing = report.missing_boxes;
    if missing > 0 {
        let note = format!("{missing} samples without a box count as misses");
        scored.notes.push(note);
    }
    scored.grids.push(grid);
    scored.scores = Value::Object(scores);
    scored.details = json!({ "missing_boxes": missing });
    scored.matched = Some(report.matched);
    Ok(scored)
}
