//! Data sets as a stream of micro-batches.

use std::any::Any;
use std::sync::Arc;

use burn::tensor::Device;
use serde::Deserialize;
use tpo_core::head::{FeatureSource, TaskCall};
use tpo_data::feed::{BadRows, Cursor, Feed, SampleFacts};

use super::data::{TrainBatch, TrainData};
use crate::error::{Result, TrainError};

/// Finds the features of frozen towers for the samples of a stream.
///
/// `None` means that there are none; a head that needs some says so.
pub trait FindFeatures: Send {
    /// The model as it is before the next batch, for towers that are part of it.
    fn see(&mut self, _model: &dyn Any) {}

    /// The batch is made: the model seen for it changes next.
    fn release(&mut self) {}

    /// What the calls of a sample share, such as the features of its video.
    ///
    /// # Errors
    /// Whatever keeps the run from going on.
    fn of_sample(
        &mut self,
        facts: &SampleFacts,
        calls: &[TaskCall],
    ) -> Result<Option<Arc<dyn FeatureSource>>>;

    /// What belongs to one call, such as the features of its query.
    ///
    /// # Errors
    /// Whatever keeps the run from going on.
    fn of_call(
        &mut self,
        facts: &SampleFacts,
        call: &TaskCall,
    ) -> Result<Option<Arc<dyn FeatureSource>>>;
}

/// A [`Feed`] of the data crate as [`TrainData`].
///
/// The feed must have no last epoch ([`tpo_data::feed::LoaderConfig::epochs`] `None`). Workers
/// share an epoch with [`tpo_data::feed::OrderConfig::shards`], which reads only the own part.
pub struct FeedData {
    feed: Feed,
    features: Option<Box<dyn FindFeatures>>,
}

impl FeedData {
    /// A stream of what the feed gives.
    pub fn new(feed: Feed) -> Self {
        Self {
            feed,
            features: None,
        }
    }

    /// Gives samples and their calls the features that `find` finds for them.
    pub fn with_features(mut self, find: impl FindFeatures + 'static) -> Self {
        self.features = Some(Box::new(find));
        self
    }

    /// Rows that could not be used.
    pub fn bad_rows(&self) -> &BadRows {
        self.feed.bad_rows()
    }
}

fn failed(source: tpo_data::DataError) -> TrainError {
    TrainError::Data {
        what: "training data".into(),
        source: Box::new(source),
    }
}

impl TrainData for FeedData {
    fn next_batch(&mut self, device: &Device) -> Result<TrainBatch> {
        let collated = self.feed.next_batch().map_err(failed)?;
        let collated = collated.ok_or_else(|| {
            failed(tpo_data::DataError::InvalidConfig {
                what: "loader",
                reason: "it ends after some epochs; training needs `epochs` unset".into(),
            })
        })?;
        let (batch, facts) = collated.into_batch(device);
        let samples = facts
            .into_iter()
            .map(|mut facts| {
                let mut calls = std::mem::take(&mut facts.sample.calls);
                if let (Some(find), false) = (&mut self.features, calls.is_empty()) {
                    facts.sample.features = find.of_sample(&facts, &calls)?;
                    for call in &mut calls {
                        call.features = find.of_call(&facts, call)?;
                    }
                }
                facts.sample.calls = calls;
                Ok(facts.into_sample())
            })
            .collect::<Result<_>>();
        if let Some(find) = &mut self.features {
            find.release();
        }
        let samples = samples?;
        Ok(TrainBatch { batch, samples })
    }

    fn see(&mut self, model: &dyn Any) {
        if let Some(find) = &mut self.features {
            find.see(model);
        }
    }

    fn batches_per_epoch(&self) -> u64 {
        self.feed.plan().batches()
    }

    fn cursor(&self) -> serde_json::Value {
        serde_json::json!(self.feed.cursor())
    }

    fn seek(&mut self, cursor: &serde_json::Value) -> Result<()> {
        let bad = |why: String| TrainError::Cursor {
            cursor: cursor.to_string(),
            why,
        };
        let place = Cursor::deserialize(cursor).map_err(|e| bad(e.to_string()))?;
        self.feed.seek(place).map_err(|e| bad(e.to_string()))
    }

    fn skip_batch(&mut self, _: &Device) -> Result<()> {
        self.feed.skip_batch();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpo_core::head::NoHeads;
    use tpo_core::prompt::TextEncoder;
    use tpo_core::token::TaskRegistry;
    use tpo_data::feed::{FeedConfig, MixtureSpec, SourceSpec};
    use tpo_data::prompts::LayoutEncoder;

    struct Bytes;
    impl TextEncoder for Bytes {
        fn encode_with_bos(&self, text: &str) -> tpo_core::Result<Vec<u32>> {
            Ok([1]
                .into_iter()
                .chain(text.bytes().map(|b| 3 + u32::from(b)))
                .collect())
        }
    }

    fn open(dir: &std::path::Path) -> FeedData {
        let path = dir.join("rows.jsonl");
        let rows: String = (0..9)
            .map(|i| format!("{{\"turns\": [{{\"question\": \"{i}?\", \"answer\": \"{i}\"}}]}}\n"))
            .collect();
        std::fs::write(&path, rows).unwrap();
        let config = FeedConfig {
            mixture: MixtureSpec::of(vec![SourceSpec::file(path)]),
            ..FeedConfig::default()
        };
        let encoder = LayoutEncoder::videochat(Arc::new(Bytes), 2);
        let (tasks, none) = (TaskRegistry::new(), Arc::new(NoHeads::default()));
        FeedData::new(Feed::open(&config, &tasks, encoder, none, Cursor::default()).unwrap())
    }

    #[test]
    fn seeking_gives_the_same_rows_again() {
        let dir = tempfile::tempdir().unwrap();
        let device = Device::flex();
        let mut data = open(dir.path());
        assert_eq!(data.batches_per_epoch(), 9);
        let next = |data: &mut FeedData| data.next_batch(&device).unwrap().samples[0].id.clone();
        for _ in 0..4 {
            next(&mut data);
        }
        let cursor = data.cursor();
        let later: Vec<_> = (0..12).map(|_| next(&mut data)).collect();
        assert!(later[0].starts_with("rows.jsonl:"));
        let mut again = open(dir.path());
        again.seek(&cursor).unwrap();
        again.skip_batch(&device).unwrap();
        let repeated: Vec<_> = (0..11).map(|_| next(&mut again)).collect();
        assert_eq!(repeated, later[1..]);
        assert!(matches!(
            data.seek(&serde_json::json!({"batch": -1})),
            Err(TrainError::Cursor { .. })
        ));
    }
}
