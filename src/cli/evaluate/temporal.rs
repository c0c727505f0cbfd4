//! Moments, highlights and grounded questions.

use serde_json::json;

use super::Args;
use super::outcome::{Grid, Scored};
use crate::cli::shared::Outcome;
use crate::evaluation::files::charades::{self, CharadesOptions};
use crate::evaluation::files::nextgqa::{self, NextGqaOptions};
use crate::evaluation::files::qvhighlights::{self, QvHighlightsOptions, SplitScores};

pub fn qvhighlights(args: &Args) -> Outcome<Scored> {
    let options = QvHighlightsOptions {
        strict: args.strict,
        unusable: args.unusable,
        ..Default::default()
    };
    let files = args.tables()?;
    let report = qvhighlights::evaluate(&files.0, &files.1, &options)?;
    let mut scored = Scored::of(qvhighlights::PROTOCOL, &options, &files)?;
    if !report.moments.is_empty() {
        let order = ["full", "short", "middle", "long"];
        let split = |name: &&str| report.moments.iter().find(|s| s.split == *name);
        let splits: Vec<&SplitScores> = order.iter().filter_map(split).collect();
        let row = |value: &dyn Fn(&SplitScores) -> Option<f64>| {
            splits.iter().map(|s| value(s)).collect::<Vec<_>>()
        };
        let at = |list: &[(f64, f64)], t: f64| list.iter().find(|p| p.0 == t).map(|p| p.1);
        let mut counts = Grid::new(&order, 0);
        counts.row("queries", row(&|s| Some(s.queries as f64)));
        let mut grid = Grid::new(&order, 2);
        let thresholds: Vec<f64> = splits[0].r1.iter().map(|p| p.0).collect();
        for t in &thresholds {
            grid.row(format!("R1@{t}"), row(&|s| at(&s.r1, *t)));
        }
        grid.row("mIoU", row(&|s| s.miou));
        for t in thresholds.iter().filter(|t| **t >= 0.5) {
            grid.row(format!("mAP@{t}"), row(&|s| at(&s.map, *t)));
        }
        grid.row("mAP", row(&|s| s.map_average));
        scored.grids.extend([counts, grid]);
    }
    if !report.highlights.is_empty() {
        let highlights = report.highlights.iter();
        let names: Vec<&str> = highlights.clone().map(|h| h.rating).collect();
        let mut grid = Grid::new(&names, 2);
        grid.row(
            "highlight mAP",
            highlights.clone().map(|h| Some(h.map)).collect(),
        );
        grid.row(
            "highlight HIT@1",
            highlights.map(|h| Some(h.hit1)).collect(),
        );
        scored.grids.push(grid);
    }
    scored.scores = report.official();
    scored.details = json!({"moments": report.moments, "highlights": report.highlights});
    scored.matched = Some(report.matched);
    Ok(scored)
}

pub fn charades(args: &Args) -> Outcome<Scored> {
    let mut options = CharadesOptions {
        recall_at: args.recall_at.clone(),
        strict: args.strict,
        unusable: args.unusable,
        ..Default::default()
    };
    if !args.iou.is_empty() {
        options.thresholds = args.iou.clone();
    }
    let files = args.tables()?;
    let report = charades::evaluate(&files.0, &files.1, &options)?;
    let mut scored = Scored::of(charades::PROTOCOL, &options, &files)?;
    scored.set_scores(1.0, 2, report.scores);
    let empty = report.empty;
    if empty > 0 {
        let note = format!("{empty} queries without a window count as misses");
        scored.notes.push(note);
    }
    scored.details = json!({ "empty": empty });
    scored.matched = Some(report.matched);
    Ok(scored)
}

pub fn next_gqa(args: &Args) -> Outcome<Scored> {
    let options = NextGqaOptions {
        relative: args.relative,
        strict: args.strict,
        unusable: args.unusable,
    };
    let segments = nextgqa::read(args.predictions())?;
    let answers = args.answers.as_ref().map(nextgqa::read).transpose()?;
    let truth = nextgqa::read(args.truth()?)?;
    let report = nextgqa::evaluate(&segments, answers.as_ref(), &truth, &options)?;
    let mut scored = Scored::new(nextgqa::PROTOCOL, &options)?;
    scored.set_scores(1.0, 1, report.scores);
    if answers.is_none() {
        scored.notes.push("Acc@GQA needs --answers".into());
    }
    scored.matched = Some(report.matched);
    Ok(scored)
}
