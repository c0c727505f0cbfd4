//! `metrics.jsonl`: one JSON object per logged step.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{Result, TrainError};

/// What is known after an optimizer step.
///
/// As JSON it is one flat object: `step`, `stage`, `epoch`, `time`, and every value under its name. A
/// value that is not finite is `null`, which is what JSON has, and comes back as NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimizer steps since the start of the run, this one included.
    pub step: u64,
    /// Name of the stage.
    pub stage: String,
    /// Optimizer steps since the start of the stage, this one included.
    #[serde(default)]
    pub stage_step: u64,
    /// Epoch of the stage, 0-based.
    #[serde(default)]
    pub epoch: u64,
    /// Optimizer steps since the start of the epoch, this one included.
    #[serde(default)]
    pub epoch_step: u64,
    /// Samples (clips) since the start of the stage.
    #[serde(default)]
    pub samples: u64,
    /// Seconds since 1970.
    #[serde(default)]
    pub time: f64,
    /// Everything measured, by name: `loss`, `loss/lm`, `loss/region/giou`, `lr/lora`,
    /// `grad_norm`, `eval/…`.
    #[serde(flatten, deserialize_with = "numbers")]
    pub values: BTreeMap<String, f64>,
}

fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let found = BTreeMap::<String, Value>::deserialize(from)?;
    let number = |value: Value| value.as_f64().or(value.is_null().then_some(f64::NAN));
    let found = found.into_iter();
    Ok(found.filter_map(|(k, v)| Some((k, number(v)?))).collect())
}

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the log at `path` for a run that goes on after optimizer step `step` (0 from the
    /// start): lines of later steps are dropped, and so is a last line that was cut off. A kill in
    /// the middle leaves the old file or the new one.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(path: impl Into<PathBuf>, step: u64) -> Result<Self> {
        let path = path.into();
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(TrainError::io("creating", dir))?;
        }
        if path.exists() {
            trim(&path, step)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io("opening", &path))?;
        Ok(Self { path, file })
    }

    /// Appends a line in one write, so that a kill cuts off the last line at most.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn append(&mut self, record: &StepRecord) -> Result<()> {
        serde_json::to_value(record)
            .map_err(std::io::Error::from)
            .and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()))
            .map_err(TrainError::io("writing", &self.path))
    }
}

fn trim(path: &Path, step: u64) -> Result<()> {
    let bytes = std::fs::read(path).map_err(TrainError::io("reading", path))?;
    let stays = |line: &&[u8]| {
        let value = serde_json::from_slice::<Value>(line).ok();
        let at = value.and_then(|v| v.get("step")?.as_u64());
        line.ends_with(b"\n") && at.is_some_and(|s| s <= step)
    };
    let lines = bytes.split_inclusive(|b| *b == b'\n');
    let kept = lines.filter(stays).collect::<Vec<_>>().concat();
    let scratch = path.with_extension("jsonl.tmp");
    File::create(&scratch)
        .and_then(|mut file| {
            file.write_all(&kept)?;
            file.sync_all()
        })
        .map_err(TrainError::io("writing", &scratch))?;
    std::fs::rename(&scratch, path).map_err(TrainError::io("renaming to", path))
}

/// The records of a `metrics.jsonl`; lines that are none are passed over.
///
/// # Errors
/// [`TrainError::Io`].
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<StepRecord>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(TrainError::io("reading", path))?;
    Ok(bytes
        .split(|b| *b == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            stage: "a".into(),
            stage_step: step,
            epoch: 1,
            epoch_step: 2,
            samples: 8 * step,
            time: 1.5,
            values: BTreeMap::from([("loss".into(), 0.25), ("lr/lora".into(), 1e-5)]),
        }
    }

    #[test]
    fn lines_after_the_resumed_step_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=5 {
            log.append(&record(step)).unwrap();
        }
        // The kill came in the middle of a line.
        log.file.write_all(b"{\"step\":2,\"sta").unwrap();
        drop(log);
        let mut log = MetricsLog::open(&path, 3).unwrap();
        log.append(&record(4)).unwrap();
        let expected: Vec<StepRecord> = (1..=4).map(record).collect();
        assert_eq!(read_metrics(&path).unwrap(), expected);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.starts_with("{"), "{text}");

        // From the start again, over a file of something else.
        std::fs::write(&path, "not json\n\n[1]\n{\"step\":-1}\n").unwrap();
        MetricsLog::open(&path, 9).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn values_that_json_lacks() {
        let mut nan = record(1);
        nan.values.insert("loss".into(), f64::NAN);
        let text = serde_json::to_string(&nan).unwrap();
        assert!(text.contains("\"loss\":null"), "{text}");
        let back: StepRecord = serde_json::from_str(&text).unwrap();
        assert!(back.values["loss"].is_nan() && back.values["lr/lora"] == 1e-5);
    }
}
