//! The text files of tracking benchmarks.

use std::path::Path;

use tpo_heads::mask::metric::track::BoxXywh;

use crate::error::{Error, Result};

/// One flag or number per frame.
pub type FrameFlags = Vec<f64>;

/// More numbers than this in one file are refused.
const MAX_NUMBERS: usize = 1 << 26;

/// Reads a box per line, `x, y, width, height`, separated by commas, tabs or blanks. `nan` is a
/// number here: LaSOT's trackers write it.
pub fn read_boxes(path: impl AsRef<Path>) -> Result<Vec<BoxXywh>> {
    let path = path.as_ref();
    let text = read(path)?;
    let mut boxes = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let numbers = numbers(path, i + 1, line)?;
        let found = numbers.len();
        boxes.push(BoxXywh::try_from(numbers).map_err(|_| {
            let hint = "write x, y, width and height in pixels";
            bad(path, i + 1, format!("a box has {found} numbers"), hint)
        })?);
    }
    Ok(boxes)
}

/// Reads flags of frames, one per line or all in one line: `cover.label`, `full_occlusion.txt`.
pub fn read_flags(path: impl AsRef<Path>) -> Result<FrameFlags> {
    let path = path.as_ref();
    let text = read(path)?;
    let mut flags = Vec::new();
    for (i, line) in text.lines().enumerate() {
        flags.extend(numbers(path, i + 1, line)?);
        if flags.len() > MAX_NUMBERS {
            let why = format!("more than {MAX_NUMBERS} numbers");
            return Err(bad(path, i + 1, why, "a sequence is shorter"));
        }
    }
    Ok(flags)
}

/// Reads `resolution: (width, height)` of GOT-10k's `meta_info.ini`.
pub fn read_resolution(path: impl AsRef<Path>) -> Result<[f64; 2]> {
    let path = path.as_ref();
    let text = read(path)?;
    let hint = "the file must have a line `resolution: (width, height)`";
    let line = text
        .lines()
        .enumerate()
        .find_map(|(i, l)| Some((i + 1, l.split_once("resolution")?.1)));
    let Some((line, value)) = line else {
        return Err(bad(path, 1, "no resolution".into(), hint));
    };
    let value = value.replace(|c: char| !(c.is_ascii_digit() || c == '.'), " ");
    let numbers = numbers(path, line, &value)?;
    <[f64; 2]>::try_from(numbers)
        .ok()
        .filter(|r| r.iter().all(|v| *v > 0.0 && v.is_finite()))
        .ok_or_else(|| bad(path, line, "the resolution is not two numbers".into(), hint))
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::file(path))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        let hint = "give a text file of numbers";
        bad(path, line, "it is not text".into(), hint)
    })
}

fn numbers(path: &Path, line: usize, text: &str) -> Result<Vec<f64>> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse().map_err(|_| {
                let shown: String = part.chars().take(40).collect();
                let hint = "separate numbers with commas, tabs or blanks";
                bad(path, line, format!("{shown:?} is not a number"), hint)
            })
        })
        .collect()
}

fn bad(path: &Path, line: usize, why: String, hint: &str) -> Error {
    Error::Row {
        file: path.display().to_string(),
        line,
        why,
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_separators_and_their_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.txt");
        let write = |bytes: &[u8]| std::fs::write(&file, bytes).unwrap();
        write(b"1,2,3,4\n1\t2\t3.5\tNaN\n\n 1 2  3 4\n");
        let boxes = read_boxes(&file).unwrap();
        assert_eq!((boxes.len(), boxes[1][2]), (3, 3.5));
        assert!(boxes[1][3].is_nan());
        for bad in [
            b"1,2,3,4\n1,2,3".as_slice(),
            b"\n1,2,x,4",
            b"\n\xff\xfe",
            b"\n1,2,3,4,5",
        ] {
            write(bad);
            let error = read_boxes(&file).unwrap_err().to_string();
            assert!(error.contains("f.txt:2:"), "{error}");
        }
        write(b"0,1,0\n1");
        assert_eq!(read_flags(&file).unwrap(), [0.0, 1.0, 0.0, 1.0]);
        write(b"[METAINFO]\nresolution: (1920, 1080)\n");
        assert_eq!(read_resolution(&file).unwrap(), [1920.0, 1080.0]);
        write(b"resolution: (1920)\n");
        assert!(read_resolution(&file).is_err());
        assert!(read_boxes(dir.path().join("none")).is_err());
    }
}
