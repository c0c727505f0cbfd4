//! Reads the rows of a dataset: what is asked, what is true, and what is wrong with a row.
//!
//! ```text
//! cargo run --release --example read_a_dataset
//! cargo run --release --example read_a_dataset -- my.jsonl
//! ```
//!
//! docs/DATA.md explains every field; `tpo data validate` and `tpo data preview` do more.

use std::path::{Path, PathBuf};

use tpo::data::MediaLimits;
use tpo::data::schema::{RowLimits, SampleReader, check_media, open_media};
use tpo::data::synthetic::{ROWS_FILE, RowsConfig, WorldConfig, WorldRows, WorldTask};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = match std::env::args().nth(1) {
        Some(file) => PathBuf::from(file),
        // A small one to look at: four clips of the synthetic world.
        None => {
            let dir = Path::new("out/rows");
            let file = dir.join(ROWS_FILE);
            if !file.exists() {
                let world = WorldConfig::default();
                let rows = RowsConfig::new(WorldTask::ALL, 4, 7);
                WorldRows::new(rows, world.frames, world.side)?.export(dir)?;
            }
            file
        }
    };
    let root = file.parent().unwrap_or(Path::new(""));
    let limits = MediaLimits::default();
    let mut rows = SampleReader::open(&file, RowLimits::default())?;
    while let Some(row) = rows.next_checked() {
        let (line, _, row) = row?;
        // A row that is no JSON, or has fields the format does not know, ends only itself.
        let (sample, problems) = match row {
            Ok(parsed) => parsed,
            Err(e) => {
                println!("line {line}: {}", e.fault);
                continue;
            }
        };
        println!(
            "line {line}: {}",
            sample.id.as_deref().unwrap_or("(no name)")
        );
        if let Some(media) = &sample.media {
            let reader = open_media(media, root, &limits)?;
            let info = reader.info();
            let (w, h, n) = (info.width, info.height, info.frame_count);
            println!(
                "  {}: {n} frames of {w}x{h}, {:.1} s",
                media.path, info.duration
            );
        }
        for turn in &sample.turns {
            println!("  {} -> {}", turn.question, turn.answer);
        }
        for annotation in &sample.annotations {
            println!("  {}", serde_json::to_string(annotation)?);
        }
        // Numbers out of range; then spans past the end, masks of another size than the media, ..
        let with_media = check_media(&sample, root, &limits)?;
        let with_media = with_media.map_or(Vec::new(), |(_, problems)| problems);
        for problem in problems.iter().chain(&with_media) {
            println!("  problem: {problem}");
        }
    }
    Ok(())
}
