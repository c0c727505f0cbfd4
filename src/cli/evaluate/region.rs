//! Boxes of referring expressions.

use serde_json::{Map, Value, json};

use super::Args;
use super::outcome::{Grid, Scored};
use crate::cli::shared::Outcome;
use crate::evaluation::files::boxes::{BOX_PROTOCOL, BoxOptions, evaluate_boxes};

pub fn boxes(args: &Args) -> Outcome<Scored> {
    let mut options = BoxOptions {
        strict: args.strict,
        unusable: args.unusable,
        ..Default::default()
    };
    if !args.iou.is_empty() {
        options.thresholds = args.iou.clone();
    }
    let files = args.tables()?;
    let report = evaluate_boxes(&files.0, &files.1, &options)?;
    let mut scored = Scored::of(BOX_PROTOCOL, &options, &files)?;
    let mut grid = Grid::new(&[], 2);
    let mut scores = Map::new();
    for split in &report.splits {
        let found = split.scores();
        grid.columns = found.iter().map(|s| s.name.clone()).collect();
        let name = format!("{} ({})", split.split, split.count);
        grid.row(name, found.iter().map(|s| s.value).collect());
        let named = found.into_iter().map(|s| (s.name, s.value.into()));
        scores.insert(split.split.clone(), Value::Object(named.collect()));
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
