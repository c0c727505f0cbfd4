//! `metrics.jsonl`: one JSON object per logged step.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Result, TrainError};

/// What is known after an optimizer step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepRecord {
    /// Optimizer steps since the start of the run, this one included.
    pub step: u64,
    /// Name of the stage.
    pub stage: String,
    /// Optimizer steps since the start of the stage, this one included.
    pub stage_step: u64,
    /// Epoch of the stage, 0-based.
    pub epoch: u64,
    /// Optimizer steps since the start of the epoch, this one included.
    pub epoch_step: u64,
    /// Samples (clips) since the start of the stage.
    pub samples: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// Everything measured, by name: `loss`, `loss/lm`, `loss/region/giou`, `lr/lora`,
    /// `grad_norm`, `eval/…`.
    pub values: BTreeMap<String, f64>,
}

impl StepRecord {
    /// One flat object: `step`, `stage`, `epoch`, `time`, and every value under its name. A value
    /// that is not finite is `null`, which is what JSON has.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("step".into(), self.step.into());
        object.insert("stage".into(), self.stage.clone().into());
        object.insert("stage_step".into(), self.stage_step.into());
        object.insert("epoch".into(), self.epoch.into());
        object.insert("epoch_step".into(), self.epoch_step.into());
        object.insert("samples".into(), self.samples.into());
        object.insert("time".into(), self.time.into());
        for (name, value) in &self.values {
            object.insert(name.clone(), Value::from(*value));
        }
        Value::Object(object)
    }

    /// Reads what [`StepRecord::to_json`] wrote; `null` comes back as NaN.
    pub fn from_json(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let count = |name: &str| object.get(name).and_then(Value::as_u64).unwrap_or(0);
        let mut record = Self {
            step: object.get("step")?.as_u64()?,
            stage: object.get("stage")?.as_str()?.to_string(),
            stage_step: count("stage_step"),
            epoch: count("epoch"),
            epoch_step: count("epoch_step"),
            samples: count("samples"),
            time: object.get("time").and_then(Value::as_f64).unwrap_or(0.0),
            values: BTreeMap::new(),
        };
        const FIXED: [&str; 7] = [
            "step",
            "stage",
            "stage_step",
            "epoch",
            "epoch_step",
            "samples",
            "time",
        ];
        for (name, value) in object {
            let number = value.as_f64().or(value.is_null().then_some(f64::NAN));
            if let Some(number) = number.filter(|_| !FIXED.contains(&name.as_str())) {
                record.values.insert(name.clone(), number);
            }
        }
        Some(record)
    }
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
        let line = format!("{}\n", record.to_json());
        self.file
            .write_all(line.as_bytes())
            .map_err(TrainError::io("writing", &self.path))
    }
}

fn trim(path: &Path, step: u64) -> Result<()> {
    let scratch = path.with_extension("jsonl.tmp");
    let source = File::open(path).map_err(TrainError::io("reading", path))?;
    let out = File::create(&scratch).map_err(TrainError::io("creating", &scratch))?;
    let mut out = BufWriter::new(out);
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = source
            .read_until(b'\n', &mut line)
            .map_err(TrainError::io("reading", path))?;
        if read == 0 {
            break;
        }
        let at = serde_json::from_slice::<Value>(&line)
            .ok()
            .and_then(|v| v.get("step")?.as_u64());
        if line.ends_with(b"\n") && at.is_some_and(|s| s <= step) {
            out.write_all(&line)
                .map_err(TrainError::io("writing", &scratch))?;
        }
    }
    out.into_inner()
        .map_err(|e| e.into_error())
        .and_then(|file| file.sync_all())
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
        .filter_map(|value: Value| StepRecord::from_json(&value))
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
        let text = nan.to_json().to_string();
        assert!(text.contains("\"loss\":null"), "{text}");
        let back = StepRecord::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
        assert!(back.values["loss"].is_nan() && back.values["lr/lora"] == 1e-5);
    }
}
