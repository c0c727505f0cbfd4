//! Progress on a terminal.

use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::metrics::StepRecord;

/// How long a stage is, in optimizer steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageLengths {
    /// Steps of the whole stage.
    pub steps: u64,
    /// Steps of one epoch.
    pub steps_per_epoch: u64,
    /// Epochs, the last of which may be cut short.
    pub epochs: u64,
    /// Steps that were done before this process began.
    pub done: u64,
}

/// Two bars, one for the stage and one for the epoch, and a line of values. On something that is
/// not a terminal nothing is drawn. They stand on standard error.
#[derive(Debug, Default)]
pub struct ProgressBars {
    all: MultiProgress,
    stage: Option<ProgressBar>,
    epoch: Option<ProgressBar>,
    lengths: StageLengths,
    /// Time and samples when this process began the stage.
    since: Option<(Instant, u64)>,
}

impl ProgressBars {
    /// A stage begins.
    pub fn stage(&mut self, name: &str, lengths: StageLengths) {
        self.finish();
        // The templates are constants; one that indicatif refuses would show as its default.
        let style = |template: &str| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("━╸─")
        };
        let stage = ProgressBar::new(lengths.steps)
            .with_style(style(
                "{prefix:<20} {bar:30.green} {pos}/{len} steps {elapsed}<{eta}",
            ))
            .with_prefix(name.to_string())
            .with_position(lengths.done);
        // The time before this process counts for nothing in the estimate.
        stage.reset_eta();
        let epoch = ProgressBar::new(lengths.steps_per_epoch)
            .with_style(style("{prefix:<20} {bar:30.cyan} {pos}/{len}\n{wide_msg}"));
        self.stage = Some(self.all.add(stage));
        self.epoch = Some(self.all.add(epoch));
        self.lengths = lengths;
        self.since = None;
    }

    /// An optimizer step is done.
    pub fn step(&mut self, record: &StepRecord) {
        let (start, before) = *self.since.get_or_insert((Instant::now(), record.samples));
        if let Some(bar) = &self.stage {
            bar.set_position(record.stage_step);
        }
        if let Some(bar) = &self.epoch {
            bar.set_position(record.epoch_step);
            bar.set_prefix(format!(
                "epoch {}/{}",
                record.epoch + 1,
                self.lengths.epochs.max(1)
            ));
            let mut message = values(record, |name| {
                name.starts_with("loss") && name.matches('/').count() < 2
            });
            if let Some(lr) = peak_rate(record) {
                message.push_str(&format!("  lr {lr:.2e}"));
            }
            let seconds = start.elapsed().as_secs_f64();
            if record.samples > before && seconds > 0.0 {
                let rate = (record.samples - before) as f64 / seconds;
                message.push_str(&format!("  {rate:.1} clips/s"));
            }
            if let Some(mib) = resident_mib() {
                message.push_str(&format!("  {mib:.0} MiB"));
            }
            bar.set_message(message);
        }
    }

    /// A line above the bars; plainly on standard error where no bar is drawn.
    pub fn line(&self, text: &str) {
        if self.all.is_hidden() {
            eprintln!("{text}");
        } else if let Err(error) = self.all.println(text) {
            tracing::warn!(%error, "{text}");
        }
    }

    /// Leaves the bars where they are.
    pub fn finish(&mut self) {
        for bar in [self.stage.take(), self.epoch.take()].into_iter().flatten() {
            bar.abandon();
        }
    }
}

/// `loss 0.52  lm 0.31  region 0.21`.
pub(super) fn values(record: &StepRecord, wanted: impl Fn(&str) -> bool) -> String {
    let mut parts = Vec::new();
    for (name, value) in record.values.iter().filter(|(name, _)| wanted(name)) {
        let name = name.strip_prefix("loss/").unwrap_or(name);
        parts.push(format!("{name} {value:.4}"));
    }
    parts.join("  ")
}

/// The largest learning rate of all groups.
fn peak_rate(record: &StepRecord) -> Option<f64> {
    let rates = record.values.iter().filter(|(n, _)| n.starts_with("lr"));
    rates.map(|(_, v)| *v).max_by(f64::total_cmp)
}

/// Resident memory of this process, where the system tells it.
fn resident_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_line_of_values() {
        let record = StepRecord {
            values: BTreeMap::from([
                ("loss".into(), 0.5),
                ("loss/lm".into(), 0.25),
                ("loss/region/giou".into(), 0.1),
                ("lr/lora".into(), 1e-5),
                ("lr/token".into(), 2e-5),
            ]),
            ..StepRecord::default()
        };
        let short = values(&record, |n| {
            n.starts_with("loss") && n.matches('/').count() < 2
        });
        assert_eq!(short, "loss 0.5000  lm 0.2500");
        assert_eq!(peak_rate(&record), Some(2e-5));
        let mut bars = ProgressBars::default();
        bars.step(&record);
        bars.stage("a", StageLengths::default());
        bars.step(&record);
        bars.finish();
    }
}
