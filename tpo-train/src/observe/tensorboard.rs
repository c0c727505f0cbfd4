//! TensorBoard event files.
//!
//! A file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C
//! of the data), each an `Event` message of TensorFlow's `event.proto`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::metrics::StepRecord;
use crate::error::{Result, TrainError};

/// Writes scalars for TensorBoard.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Starts a new event file in `dir`. With `resumed_at` TensorBoard is told to forget what
    /// older files say about later steps.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn create(dir: impl AsRef<Path>, resumed_at: Option<u64>) -> Result<Self> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(TrainError::io("creating", dir))?;
        let now = now();
        // The order of the names is the order of the files: whole seconds, then a counter.
        let mut n = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{:010}.{n:04}.tpo", now as u64);
            let path = dir.join(name);
            match OpenOptions::new().create_new(true).append(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && n < 9999 => n += 1,
                Err(e) => return Err(TrainError::io("creating", &path)(e)),
            }
        };
        let mut board = Self { path, file };
        let mut version = event(now, 0);
        bytes_field(&mut version, 3, b"brain.Event:2");
        board.record(&version)?;
        if let Some(step) = resumed_at {
            // SessionLog { status: START }, whose step is the first that is written again.
            let mut start = event(now, step.saturating_add(1));
            bytes_field(&mut start, 7, &[0x08, 0x01]);
            board.record(&start)?;
        }
        Ok(board)
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes every value of a record as a scalar, in one event.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn scalars(&mut self, record: &StepRecord) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in &record.values {
            let mut entry = Vec::new();
            bytes_field(&mut entry, 1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &entry);
        }
        let mut message = event(record.time, record.step);
        bytes_field(&mut message, 5, &summary);
        self.record(&message)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file
            .write_all(&framed(data))
            .map_err(TrainError::io("writing", &self.path))
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

/// `Event { wall_time, step }`.
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(wall_time.to_le_bytes());
    out.push(2 << 3);
    varint(&mut out, step);
    out
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A length-delimited field.
fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// TFRecord's mask: a sum of data that holds sums would be weak.
fn masked_crc(data: &[u8]) -> u32 {
    let crc = crc32c::crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn bytes_worked_by_hand() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720's check value).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        // ror 15: e3069283 → 2507c60d; + a282ead8.
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
        // wall_time 1.0, step 3
        let bytes = event(1.0, 3);
        assert_eq!(bytes, [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 0x03]);
        let frame = framed(&bytes);
        assert_eq!(frame.len(), 8 + 4 + bytes.len() + 4);
        assert_eq!(frame[..8], [11, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Reads a file back: (step, tag, value), and where a session starts.
    fn parse(bytes: &[u8]) -> (Vec<(u64, String, f32)>, Option<u64>) {
        fn number(bytes: &mut &[u8]) -> u64 {
            let (mut n, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                n |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return n;
                }
            }
        }
        fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
            let mut out = Vec::new();
            while !bytes.is_empty() {
                let key = number(&mut bytes);
                let value = match key & 7 {
                    0 => number(&mut bytes).to_le_bytes().to_vec(),
                    wire => {
                        let n = match wire {
                            1 => 8,
                            5 => 4,
                            _ => number(&mut bytes) as usize,
                        };
                        let (value, rest) = bytes.split_at(n);
                        bytes = rest;
                        value.to_vec()
                    }
                };
                out.push((key >> 3, value));
            }
            out
        }
        let (mut rest, mut scalars, mut start) = (bytes, Vec::new(), None);
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + n];
            assert_eq!(rest[12 + n..16 + n], masked_crc(data).to_le_bytes());
            rest = &rest[16 + n..];
            let mut step = 0;
            for (field, value) in fields(data) {
                match field {
                    2 => step = u64::from_le_bytes(value.try_into().unwrap()),
                    5 => {
                        for (_, entry) in fields(&value) {
                            let entry = fields(&entry);
                            let tag = String::from_utf8(entry[0].1.clone()).unwrap();
                            let value = f32::from_le_bytes(entry[1].1.clone().try_into().unwrap());
                            scalars.push((step, tag, value));
                        }
                    }
                    7 => start = Some(step),
                    _ => {}
                }
            }
        }
        (scalars, start)
    }

    #[test]
    fn scalars_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(dir.path(), None).unwrap();
        let record = |step| StepRecord {
            step,
            time: 12.5,
            values: BTreeMap::from([("loss/lm".to_string(), 0.5), ("lr".to_string(), 1e-5)]),
            ..StepRecord::default()
        };
        board.scalars(&record(1)).unwrap();
        board.scalars(&record(1000)).unwrap();
        let (scalars, start) = parse(&std::fs::read(board.path()).unwrap());
        assert_eq!(
            scalars,
            [
                (1, "loss/lm".to_string(), 0.5),
                (1, "lr".to_string(), 1e-5),
                (1000, "loss/lm".to_string(), 0.5),
                (1000, "lr".to_string(), 1e-5)
            ]
        );
        assert_eq!(start, None);

        let resumed = TensorBoard::create(dir.path(), Some(500)).unwrap();
        assert!(resumed.path() > board.path());
        assert_eq!(parse(&std::fs::read(resumed.path()).unwrap()).1, Some(501));
    }
}
