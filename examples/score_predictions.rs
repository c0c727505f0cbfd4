//! Scores predictions of QVHighlights as its official script does.
//!
//! ```text
//! cargo run --release --example score_predictions
//! cargo run --release --example score_predictions -- predictions.jsonl ground_truth.jsonl
//! ```
//!
//! `tpo evaluate` scores nine formats of files, and runs models over benchmarks.

use tpo::evaluation::files::qvhighlights::{QvHighlightsOptions, evaluate};
use tpo::evaluation::files::{ReadOptions, Table};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut file = |default: &str| {
        args.next()
            .unwrap_or(format!("tests/data/evaluate/{default}"))
    };
    let (predictions, truth) = (file("qv_predictions.jsonl"), file("qv_truth.jsonl"));

    // One JSON object a line; an error names file, line and field.
    let read = ReadOptions::default();
    let predictions = Table::read(predictions, &read)?;
    let truth = Table::read(truth, &read)?;

    let report = evaluate(&predictions, &truth, &QvHighlightsOptions::default())?;
    for split in &report.moments {
        println!("{}: {} queries", split.split, split.queries);
        for (threshold, recall) in &split.r1 {
            println!("  R1@{threshold}: {recall:.2}");
        }
        println!("  mAP: {:.2}", split.map_average.unwrap_or(f64::NAN));
    }
    for rating in &report.highlights {
        println!(
            "{}: HIT@1 {:.2}, mAP {:.2}",
            rating.rating, rating.hit1, rating.map
        );
    }
    println!("{} queries on both sides", report.matched.matched);
    Ok(())
}
