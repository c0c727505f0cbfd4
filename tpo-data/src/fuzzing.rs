//! Entry points that take any bytes, for fuzzing: one per parser. They are run on random bytes
//! in the tests and by the targets in `fuzz/`.

use std::io::Cursor;
use std::path::Path;

use crate::readers::JsonItems;
use crate::schema::{RowLimits, SampleReader, marks, write_row};

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
            let back = crate::schema::parse_row(line.trim_ascii_end(), &RowLimits::default());
            // Floats may move by one place; what is written must still be read.
            assert!(back.is_ok(), "{back:?}");
        }
        for turn in &sample.turns {
            marks(&turn.answer);
        }
    }
}

/// Elements of a large JSON file.
pub fn json_items(bytes: &[u8]) {
    for keys in [&[][..], &["videos"], &["a", "b"]] {
        if let Ok(items) = JsonItems::new(Cursor::new(bytes), Path::new("fuzz.json"), keys) {
            for item in items.flatten() {
                let _ = serde_json::from_slice::<serde_json::Value>(&item.bytes);
            }
        }
    }
}

/// Comma-separated values.
pub fn csv(bytes: &[u8]) {
    crate::readers::fuzz_csv(&String::from_utf8_lossy(bytes));
}

/// Indexed PNG masks.
pub fn palette(bytes: &[u8]) {
    let (path, limits) = (Path::new("fuzz.png"), crate::MediaLimits::default());
    let _ = crate::label_png::decode_label_png(Cursor::new(bytes), path, &limits);
}

/// Every dataset reader that reads one file, through a file.
///
/// # Errors
/// When the temporary file cannot be written.
pub fn dataset_file(bytes: &[u8], dir: &Path) -> std::io::Result<()> {
    let path = dir.join("input");
    std::fs::write(&path, bytes)?;
    let options = crate::readers::ConvertOptions {
        second: Some(path.clone()),
        ..Default::default()
    };
    for format in crate::readers::Format::ALL {
        if let Ok(samples) = crate::readers::convert(*format, &path, &options) {
            // An error of reading repeats for ever only if a reader is wrong; the bound shows it.
            for sample in samples.take(10_000).flatten() {
                let _ = sample.problems();
            }
        }
    }
    Ok(())
}
