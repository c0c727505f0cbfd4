//! From JSONL files and the synthetic world to training batches.
//!
//! ```text
//! Source (rows on disk, or drawn) ─► Plan (which sample when) ─► ItemMaker (decode, augment, write,
//! encode) ─► Loader (ahead, in order) ─► Collated ─► TpoBatch
//! ```
//!
//! The order of samples and every random choice about one is a pure function of (seed, epoch,
//! place), so a run that stops anywhere and goes on from its [`Cursor`] sees exactly what it
//! would have seen, with any number of threads. [`Feed`] wires the parts; each can be used alone.

mod augment;
mod collate;
mod dataset;
mod draw;
mod facts;
mod item;
mod loader;
mod order;
mod permutation;
mod source;
mod truth;
mod view;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tpo_core::head::TargetMaker;

pub use augment::AugmentConfig;
pub use collate::Collated;
pub use dataset::{BadRows, Dataset, GroupBy};
pub use draw::{Draw, ItemSeed};
pub use facts::{ClipFrames, ClipSource, SampleFacts};
pub use item::{FramesConfig, Item, ItemError, ItemMaker};
pub use loader::{Loader, LoaderConfig};
pub use order::{Cursor, MixtureConfig, OrderConfig, Plan, SampleKey, SourceRows, SourceShare};
pub use permutation::Permutation;
pub use source::{OpenOptions, Row, Rows, Source, SourceConfig};
pub use truth::{cut_saliency, place_truth};
pub use view::{Colour, View};

use crate::prompts::{AnswerStyle, DialogueEncoder, PromptConfig, PromptWriter, Vocabulary};
use crate::schema::RowLimits;
use crate::{DataError, MediaLimits};

/// Everything about the data of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedConfig {
    /// Files and worlds.
    pub sources: Vec<SourceConfig>,
    /// How they are mixed.
    pub mixture: MixtureConfig,
    /// How the epoch is ordered and cut.
    pub order: OrderConfig,
    /// Which rows may share a batch.
    pub group_by: GroupBy,
    /// Which frames.
    pub frames: FramesConfig,
    /// Augmentation.
    pub augment: AugmentConfig,
    /// Questions and answers.
    pub prompt: PromptConfig,
    /// Threads, memory, strictness.
    pub loader: LoaderConfig,
    /// Limits on media files.
    pub media: MediaLimits,
    /// Limits on rows.
    pub rows: RowLimits,
}

/// Batches of a run, with an account of the rows that could not be used.
pub struct Feed {
    loader: Loader,
    bad: BadRows,
}

impl Feed {
    /// Opens all files, checks every row and starts at `cursor`. `heads` make what is learned of
    /// annotations.
    ///
    /// # Errors
    /// Those of [`Source::open`], [`Plan::new`], [`PromptWriter::new`] and [`Loader::start`].
    pub fn open(
        config: &FeedConfig,
        vocabulary: Vocabulary,
        encoder: Arc<dyn DialogueEncoder>,
        heads: Arc<dyn TargetMaker>,
        cursor: Cursor,
    ) -> Result<Self, DataError> {
        config.augment.validate()?;
        config.frames.transform.validate()?;
        let options = OpenOptions {
            group_by: config.group_by,
            rows: config.rows,
            strict: config.loader.strict,
            frames: config.frames.num_frames,
            side: config.frames.transform.size.map_or(0, |[h, w]| h.max(w)),
        };
        let mut sources = Vec::new();
        let mut bad = BadRows::default();
        for source in &config.sources {
            let source = Source::open(source, &options)?;
            let refused = source.bad_rows();
            for row in &refused.first {
                tracing::warn!(%row, "row refused");
                bad.push(row.clone());
            }
            bad.count += refused.count - refused.first.len() as u64;
            // The plan would say so too, but not why.
            if let (true, Some(row)) = (source.groups().is_empty(), refused.first.first()) {
                return Err(DataError::InvalidConfig {
                    what: "source",
                    reason: format!("no usable row of {}; the first: {row}", refused.count),
                });
            }
            sources.push(Arc::new(source));
        }
        let mut groups: Vec<String> = sources
            .iter()
            .flat_map(|s| s.groups())
            .map(|(g, _)| g.to_string())
            .collect();
        groups.sort_unstable();
        groups.dedup();
        let rows: Vec<SourceRows> = sources
            .iter()
            .zip(&config.sources)
            .map(|(data, source)| SourceRows {
                fingerprint: data.fingerprint(),
                name: source.name(),
                share: SourceShare {
                    repeat: source.repeat,
                    weight: source.weight,
                },
                groups: groups
                    .iter()
                    .map(|g| {
                        let own = data.groups();
                        own.iter()
                            .find(|(name, _)| name == g)
                            .map_or(0, |(_, n)| *n)
                    })
                    .collect(),
            })
            .collect();
        let plan = Plan::new(&rows, &config.mixture, &config.order)?;
        let in_words = PromptConfig {
            style: AnswerStyle::Text,
            ..config.prompt.clone()
        };
        let maker = ItemMaker {
            sources,
            groups,
            seed: config.order.seed,
            frames: config.frames.clone(),
            augment: config.augment.clone(),
            limits: config.media.clone(),
            text_writer: PromptWriter::new(in_words, vocabulary.clone())?,
            writer: PromptWriter::new(config.prompt.clone(), vocabulary)?,
            encoder,
            heads,
            learn: true,
        };
        Ok(Self {
            loader: Loader::start(maker, plan, config.loader, cursor)?,
            bad,
        })
    }

    /// The next batch, `None` after the last epoch.
    ///
    /// # Errors
    /// As [`Loader::next_batch`].
    pub fn next_batch(&mut self) -> Result<Option<Collated>, DataError> {
        let batch = self.loader.next_batch()?;
        let orphans = self.loader.take_orphans();
        for row in batch.iter().flat_map(|b| &b.skipped).chain(&orphans) {
            tracing::warn!(%row, "row skipped");
            self.bad.push(row.clone());
        }
        Ok(batch)
    }

    /// Goes to another place, as stored from [`Feed::cursor`].
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for a cursor of other data, mixture, seed or batch size.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), DataError> {
        self.loader.seek(cursor)
    }

    /// Passes over the batch at the cursor without reading it.
    pub fn skip_batch(&mut self) {
        self.loader.skip_batch();
    }

    /// Where the next batch stands.
    pub fn cursor(&self) -> Cursor {
        self.loader.cursor()
    }

    /// The sources, in the order of the configuration.
    pub fn sources(&self) -> &[Arc<Source>] {
        &self.loader.maker().sources
    }

    /// The order.
    pub fn plan(&self) -> &Plan {
        self.loader.plan()
    }

    /// Rows refused when the files were opened and rows skipped since; a row skipped in several
    /// epochs counts every time.
    pub fn bad_rows(&self) -> &BadRows {
        &self.bad
    }
}
