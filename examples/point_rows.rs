//! A dataset of a task of your own, for examples/point_head.rs: clips of the synthetic world with the
//! point at which each shape begins. Any program in any language can write such rows (docs/DATA.md).
//!
//! `cargo run --release --example point_rows -- OUT_DIR [CLIPS_TO_TRAIN_ON]`

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tpo::data::synthetic::{RowsConfig, Split, WorldRows, WorldTask};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let out = args.next().ok_or("give a folder for the dataset")?;
    let clips = args.next().map_or(Ok(1500), |n| n.parse())?;
    for (split, name, rows) in [
        (Split::Train, "train", clips),
        (Split::HeldOut, "held_out", 200.min(clips)),
    ] {
        let config = RowsConfig {
            split,
            queries_per_clip: 8,
            ..RowsConfig::new([WorldTask::Region], rows, 7)
        };
        let dir = Path::new(&out).join(name);
        // Rows about boxes, with the pictures; points are made of them.
        let file = WorldRows::new(config, 16, 64)?.export(&dir)?;
        let boxes = std::fs::read_to_string(&file)?;
        let mut points = std::fs::File::create(&file)?;
        for line in boxes.lines() {
            let mut row: Value = serde_json::from_str(line)?;
            let (mut turns, mut annotations) = (Vec::new(), Vec::new());
            for annotation in row["annotations"].as_array().into_iter().flatten() {
                // "Where is the red star at the start?"
                let asked = annotation["query"].as_str().unwrap_or_default();
                let begins = asked.split_once(" at the start").map(|(words, _)| words);
                let Some((_, query)) = begins.and_then(|words| words.split_once(" the ")) else {
                    continue;
                };
                let side = |i: usize| annotation["box"][i].as_f64().unwrap_or_default();
                let point = [(side(0) + side(2)) / 2.0, (side(1) + side(3)) / 2.0];
                turns.push(json!({
                    "question": format!("Point at the {query}."),
                    "answer": "It is here: <task:point>",
                }));
                annotations.push(json!({ "task": "point", "query": query, "value": point }));
            }
            if turns.is_empty() {
                continue;
            }
            row["turns"] = turns.into();
            row["annotations"] = annotations.into();
            writeln!(points, "{row}")?;
        }
        println!("{}: {rows} clips", file.display());
    }
    Ok(())
}
