//! Moments, highlights and grounded questions.

use serde_json::{Map, Value, json};
use tpo::evaluation::files::charades::{self, CharadesOptions};
use tpo::evaluation::files::nextgqa::{self, NextGqaOptions};
use tpo::evaluation::files::qvhighlights::{self, QvHighlightsOptions, SplitScores};

use super::Args;
use super::outcome::{Failure, Grid, Outcome};
use super::progress::table;

pub fn qvhighlights(args: &Args) -> Result<Outcome, Failure> {
    let options = QvHighlightsOptions {
        strict: args.strict,
        unusable: args.unusable(),
        ..Default::default()
    };
    let predictions = table(args.predictions(), &args.reading())?;
    let truth = table(args.truth()?, &args.reading())?;
    let report = qvhighlights::evaluate(&predictions, &truth, &options)?;
    let mut outcome = Outcome::new(qvhighlights::PROTOCOL, &options)?;
    outcome.read(&predictions);
    outcome.read(&truth);
    if !report.moments.is_empty() {
        let order = ["full", "short", "middle", "long"];
        let splits: Vec<&SplitScores> = order
            .iter()
            .filter_map(|name| report.moments.iter().find(|s| s.split == *name))
            .collect();
        let mut counts = Grid::new(&order, 0);
        counts.row(
            "queries",
            splits.iter().map(|s| Some(s.queries as f64)).collect(),
        );
        let mut grid = Grid::new(&order, 2);
        let at = |list: &[(f64, f64)], t: f64| list.iter().find(|p| p.0 == t).map(|p| p.1);
        let thresholds: Vec<f64> = splits[0].r1.iter().map(|p| p.0).collect();
        for t in &thresholds {
            grid.row(
                format!("R1@{t}"),
                splits.iter().map(|s| at(&s.r1, *t)).collect(),
            );
        }
        grid.row("mIoU", splits.iter().map(|s| s.miou).collect());
        for t in thresholds.iter().filter(|t| **t >= 0.5) {
            grid.row(
                format!("mAP@{t}"),
                splits.iter().map(|s| at(&s.map, *t)).collect(),
            );
        }
        grid.row("mAP", splits.iter().map(|s| s.map_average).collect());
        outcome.grids.extend([counts, grid]);
    }
    if !report.highlights.is_empty() {
        let names: Vec<&str> = report.highlights.iter().map(|h| h.rating).collect();
        let mut grid = Grid::new(&names, 2);
        grid.row(
            "highlight mAP",
            report.highlights.iter().map(|h| Some(h.map)).collect(),
        );
        grid.row(
            "highlight HIT@1",
            report.highlights.iter().map(|h| Some(h.hit1)).collect(),
        );
        outcome.grids.push(grid);
    }
    outcome.scores = serde_json::to_value(report.official())?;
    outcome.details = json!({"moments": report.moments, "highlights": report.highlights});
    outcome.matched = Some(report.matched);
    Ok(outcome)
}

pub fn charades(args: &Args) -> Result<Outcome, Failure> {
    let mut options = CharadesOptions {
        recall_at: args.recall_at.clone(),
        strict: args.strict,
        unusable: args.unusable(),
        ..Default::default()
    };
    if !args.iou.is_empty() {
        options.thresholds = args.iou.clone();
    }
    let predictions = table(args.predictions(), &args.reading())?;
    let truth = table(args.truth()?, &args.reading())?;
    let report = charades::evaluate(&predictions, &truth, &options)?;
    let mut outcome = Outcome::new(charades::PROTOCOL, &options)?;
    outcome.read(&predictions);
    outcome.read(&truth);
    let mut scores = Map::new();
    let mut grid = Grid::new(&[""], 2);
    for r in &report.recalls {
        let name = format!("R{}@{}", r.n, r.threshold);
        grid.row(name.clone(), vec![Some(r.recall)]);
        scores.insert(name, r.recall.into());
    }
    grid.row("mIoU", vec![Some(report.miou)]);
    scores.insert("mIoU".into(), report.miou.into());
    if report.empty > 0 {
        let empty = report.empty;
        outcome
            .notes
            .push(format!("{empty} queries without a window count as misses"));
    }
    outcome.grids.push(grid);
    outcome.scores = Value::Object(scores);
    outcome.details = json!({"empty": report.empty});
    outcome.matched = Some(report.matched);
    Ok(outcome)
}

pub fn next_gqa(args: &Args) -> Result<Outcome, Failure> {
    let options = NextGqaOptions {
        relative: args.relative,
        strict: args.strict,
        unusable: args.unusable(),
    };
    let segments = nextgqa::read(args.predictions())?;
    let answers = args.answers.as_ref().map(nextgqa::read).transpose()?;
    let truth = nextgqa::read(args.truth()?)?;
    let report = nextgqa::evaluate(&segments, answers.as_ref(), &truth, &options)?;
    let mut outcome = Outcome::new(nextgqa::PROTOCOL, &options)?;
    let mut grid = Grid::new(&[""], 1);
    let mut scores = Map::new();
    for (name, value) in [
        ("Acc@GQA", report.acc_gqa),
        ("Acc@QA", report.acc_qa),
        ("mIoP", Some(report.miop)),
        ("IoP@0.3", Some(report.iop_03)),
        ("IoP@0.5", Some(report.iop_05)),
        ("mIoU", Some(report.miou)),
        ("IoU@0.3", Some(report.iou_03)),
        ("IoU@0.5", Some(report.iou_05)),
    ] {
        grid.row(name, vec![value]);
        scores.insert(name.into(), value.into());
    }
    if answers.is_none() {
        outcome.notes.push("Acc@GQA needs --answers".into());
    }
    outcome.grids.push(grid);
    outcome.scores = Value::Object(scores);
    outcome.matched = Some(report.matched);
    Ok(outcome)
}
