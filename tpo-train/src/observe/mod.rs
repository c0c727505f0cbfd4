//! Watching a run: a progress bar, `metrics.jsonl`, TensorBoard.
//!
//! [`RunLog`] does all three from one [`StepRecord`] per optimizer step. Each part also stands
//! alone: [`MetricsLog`], [`TensorBoard`], [`ProgressBars`].

mod metrics;
mod progress;
mod tensorboard;

use std::path::{Path, PathBuf};

pub use metrics::{MetricsLog, StepRecord, read_metrics};
pub use progress::{ProgressBars, StageLengths};
pub use tensorboard::TensorBoard;

use crate::error::Result;
use crate::recipe::LoggingSpec;

/// File of metrics in a run's directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Folder of TensorBoard's event files in a run's directory.
pub const EVENTS_DIR: &str = "tensorboard";

/// Everything that watches one run.
#[derive(Debug)]
pub struct RunLog {
    dir: PathBuf,
    every: u64,
    metrics: MetricsLog,
    tensorboard: Option<TensorBoard>,
    bars: Option<ProgressBars>,
}

impl RunLog {
    /// Starts or continues the logs in `dir`. With `resumed_at` everything after that optimizer
    /// step is dropped, so that no step is there twice. `bars` says whether a progress bar is
    /// drawn (on standard error).
    ///
    /// # Errors
    /// [`TrainError::Io`](crate::TrainError::Io).
    pub fn open(
        dir: impl AsRef<Path>,
        spec: &LoggingSpec,
        resumed_at: Option<u64>,
        bars: bool,
    ) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        // What a run that was killed before its first checkpoint left is forgotten too.
        let events = dir.join(EVENTS_DIR);
        let forget = resumed_at.or(events.is_dir().then_some(0));
        let tensorboard = if spec.tensorboard {
            Some(TensorBoard::create(events, forget)?)
        } else {
            None
        };
        Ok(Self {
            every: spec.every_steps.max(1),
            metrics: MetricsLog::open(dir.join(METRICS_FILE), resumed_at.unwrap_or(0))?,
            tensorboard,
            bars: bars.then(ProgressBars::default),
            dir,
        })
    }

    /// The run's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A stage begins.
    pub fn stage(&mut self, name: &str, lengths: StageLengths) {
        if let Some(bars) = &mut self.bars {
            bars.stage(name, lengths);
        }
    }

    /// An optimizer step is done. The bar moves every time; files get a line every
    /// [`LoggingSpec::every_steps`] steps.
    ///
    /// # Errors
    /// [`TrainError::Io`](crate::TrainError::Io).
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        if let Some(bars) = &mut self.bars {
            bars.step(record);
        }
        if record.step.is_multiple_of(self.every) {
            self.write(record)?;
        }
        Ok(())
    }

    /// Values that come now and then, such as those of an evaluation, go to the files at once.
    ///
    /// # Errors
    /// [`TrainError::Io`](crate::TrainError::Io).
    pub fn evaluation(&mut self, record: &StepRecord) -> Result<()> {
        if let Some(bars) = &self.bars {
            bars.line(&format!(
                "step {} {}",
                record.step,
                progress::values(record, |_| true)
            ));
        }
        self.write(record)
    }

    /// A line above the bar, or on standard error when there is none.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.line(text),
            None => eprintln!("{text}"),
        }
    }

    /// The run ends; bars stay where they are.
    pub fn finish(&mut self) {
        if let Some(bars) = &mut self.bars {
            bars.finish();
        }
    }

    fn write(&mut self, record: &StepRecord) -> Result<()> {
        self.metrics.append(record)?;
        match &mut self.tensorboard {
            Some(board) => board.scalars(record),
            None => Ok(()),
        }
    }
}
