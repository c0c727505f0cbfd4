//! The parsers on any bytes. The targets in `fuzz/` include this file.
#![allow(dead_code)]

use std::path::Path;

use tpo_data::readers::{ConvertOptions, Format, convert};
use tpo_data::schema::{RowLimits, SampleReader, marks, parse_row, write_row};
use tpo_data::{MediaLimits, read_label_png};

/// Rows of the schema; whatever parses must be checkable and, if valid, survive a round trip.
///
/// # Panics
/// When a valid row changes in a round trip.
pub fn rows(bytes: &[u8]) {
    let limits = RowLimits {
        max_line_bytes: 1 << 16,
    };
    let mut reader = SampleReader::new(bytes, "fuzz.jsonl", limits);
    while let Some(Ok((_, _, row))) = reader.next_row() {
        let Ok(sample) = row else { continue };
        let mut line = Vec::new();
        if write_row(&sample, &mut line).is_ok() {
            let back = parse_row(line.trim_ascii_end(), &RowLimits::default());
            // Floats may move by one place; what is written must still be read.
            assert!(back.is_ok(), "{back:?}");
        }
        for turn in &sample.turns {
            marks(&turn.answer);
        }
    }
}

/// Indexed PNG masks.
///
/// # Errors
/// When the file in `dir` cannot be written.
pub fn palette(bytes: &[u8], dir: &Path) -> std::io::Result<()> {
    let path = dir.join("mask.png");
    std::fs::write(&path, bytes)?;
    let _ = read_label_png(&path, &MediaLimits::default());
    Ok(())
}

/// Every dataset reader that reads one file: elements of large JSON files, lines, csv, text.
///
/// # Errors
/// When the file in `dir` cannot be written.
pub fn dataset_file(bytes: &[u8], dir: &Path) -> std::io::Result<()> {
    // The name is one that AS-V2 reads alone; a second file may be refused before the first is read.
    let path = dir.join("wo_square_pad");
    std::fs::write(&path, bytes)?;
    for second in [None, Some(path.clone())] {
        let options = ConvertOptions {
            second,
            ..Default::default()
        };
        for format in Format::ALL {
            if let Ok(samples) = convert(*format, &path, &options) {
                // An error of reading repeats for ever only if a reader is wrong; the bound shows it.
                for sample in samples.take(10_000).flatten() {
                    let _ = sample.problems();
                }
            }
        }
    }
    Ok(())
}
