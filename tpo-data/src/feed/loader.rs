//! Batches prefetched ahead of the step, in the order of the plan whichever thread finishes first.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use tpo_core::head::TargetMaker;
use tpo_core::threads::beside;
use tpo_core::token::TaskRegistry;

use super::FeedConfig;
use super::collate::Collated;
use super::dataset::BadRows;
use super::item::{Item, ItemMaker};
use super::mixture::SourceSpec;
use super::order::{Cursor, Plan, SampleKey, SourceRows};
use super::source::Source;
use crate::DataError;
use crate::prompts::LayoutEncoder;
use crate::schema::RowError;

/// How many batches are prefetched, with how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Threads that make items; 0 makes them when they are asked for. Decoding spreads over the
    /// rayon pool besides, so few are enough. Default 2 (the reference's training arguments).
    pub workers: usize,
    /// Most batches in memory besides the one in use. Default 2.
    pub prefetch: usize,
    /// Stop at the first bad row. Default false: skip, count, list.
    pub strict: bool,
    /// Epochs; `None` for no end. Default `None`.
    pub epochs: Option<u64>,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            workers: 2,
            prefetch: 2,
            strict: false,
            epochs: None,
        }
    }
}

type Made = Result<Item, DataError>;

/// An item to make.
struct Job {
    key: SampleKey,
    made: Sender<Made>,
    /// Gone when nobody waits for the item any more.
    wanted: Weak<()>,
}

/// A batch whose items are being made.
struct Begun {
    items: Vec<Receiver<Made>>,
    wanted: Arc<()>,
}

/// Batches of a run, with an account of the rows that could not be used.
pub struct Feed {
    maker: Arc<ItemMaker>,
    plan: Plan,
    cursor: Cursor,
    /// The batches from the cursor on that are begun.
    begun: VecDeque<Begun>,
    /// The next batch to begin.
    next: Cursor,
    /// Work for the threads; `None` ends them.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Consecutive batches without a usable row.
    fruitless: u64,
    bad: BadRows,
    /// How many of them were refused when the files were read.
    refused: u64,
    /// Rows that were to be used since, good and bad.
    drawn: u64,
}

fn invalid(what: &'static str, reason: String) -> DataError {
    DataError::InvalidConfig { what, reason }
}

impl Feed {
    /// Opens all files, checks every row and starts at `cursor`. `tasks` are those of the model;
    /// `heads` make what is learned of annotations.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] with every problem of the mixture, for a source without a usable
    /// row, a cursor of other data, no room to prefetch or a thread that cannot be started; as
    /// [`Plan::new`]; [`DataError::Io`] for a file that cannot be read; with `strict`
    /// [`DataError::StrictRow`] for the first bad row of a file.
    pub fn open(
        config: &FeedConfig,
        tasks: &TaskRegistry,
        encoder: LayoutEncoder,
        heads: Arc<dyn TargetMaker>,
        cursor: Cursor,
    ) -> Result<Self, DataError> {
        let frames = &config.frames;
        frames.transform.validate()?;
        let model = (frames.num_frames, frames.side());
        let problems = config.mixture.problems("data", model);
        if !problems.is_empty() {
            return Err(invalid("data", problems.join("; ")));
        }
        let LoaderConfig {
            workers, prefetch, ..
        } = config.loader;
        if workers > 256 || (workers > 0 && prefetch == 0) {
            let reason = format!(
                "{workers} workers, {prefetch} batches ahead; expected at most 256 and at least 1"
            );
            return Err(invalid("loader", reason));
        }
        let mut bad = BadRows::default();
        let sources = config
            .mixture
            .sources
            .iter()
            .map(|spec| open_source(spec, config, &mut bad))
            .collect::<Result<Vec<_>, DataError>>()?;
        let groups: BTreeSet<&'static str> = sources
            .iter()
            .flat_map(|s| s.groups())
            .map(|(group, _)| group)
            .collect();
        let rows: Vec<SourceRows> = sources
            .iter()
            .zip(&config.mixture.sources)
            .map(|(source, spec)| SourceRows {
                name: spec.name.clone(),
                repeat: spec.repeat,
                weight: spec.weight,
                groups: groups.iter().map(|g| source.rows_of(g)).collect(),
                fingerprint: source.fingerprint(),
                content: source.content(),
            })
            .collect();
        let plan = Plan::new(&rows, config.mixture.temperature, &config.order)?;
        let cursor = plan.check(&cursor)?;
        let maker = Arc::new(ItemMaker {
            sources,
            groups: groups.into_iter().collect(),
            config: config.clone(),
            tasks: tasks.clone(),
            encoder,
            heads,
        });
        let (jobs, work) = mpsc::channel();
        let work = Arc::new(Mutex::new(work));
        let mut feed = Self {
            maker,
            plan,
            cursor,
            begun: VecDeque::new(),
            next: cursor,
            jobs: Some(jobs),
            threads: Vec::new(),
            fruitless: 0,
            refused: bad.count,
            bad,
            drawn: 0,
        };
        for i in 0..workers {
            let (maker, work) = (feed.maker.clone(), work.clone());
            let thread = std::thread::Builder::new()
                .name(format!("tpo-data-{i}"))
                .spawn(move || make_items(&maker, &work))
                .map_err(|e| invalid("loader", format!("thread {i}: {e}")))?;
            feed.threads.push(thread);
        }
        feed.begin();
        Ok(feed)
    }

    /// The next batch, `None` after the last epoch. Batches of which no row was usable are
    /// skipped; their rows are in the `skipped` list of the next one.
    ///
    /// # Errors
    /// With `strict` [`DataError::StrictRow`]; otherwise errors that no row causes, and
    /// [`DataError::InvalidConfig`] when a whole epoch has no usable row.
    pub fn next_batch(&mut self) -> Result<Option<Collated>, DataError> {
        let mut skipped: Vec<RowError> = Vec::new();
        while !self.is_over(&self.cursor) {
            let at = self.cursor;
            let made = self.take();
            self.cursor = self.plan.advance(at);
            let mut items = Vec::new();
            self.drawn += made.len() as u64;
            for made in made {
                match made {
                    Ok(item) => items.push(item),
                    Err(DataError::Row(row)) if self.maker.config.loader.strict => {
                        return Err(DataError::StrictRow(row));
                    }
                    Err(DataError::Row(row)) => {
                        tracing::warn!(%row, "row skipped");
                        self.bad.push(row.clone());
                        skipped.push(row);
                    }
                    Err(e) => return Err(e),
                }
            }
            if !items.is_empty() {
                self.fruitless = 0;
                return Collated::new(at, items, skipped).map(Some);
            }
            self.fruitless += 1;
            if self.fruitless >= self.plan.batches() {
                let example = skipped.first().map_or(String::new(), |r| format!(": {r}"));
                let reason = format!("no row of a whole epoch could be used{example}");
                return Err(invalid("data", reason));
            }
        }
        Ok(None)
    }

    /// Moves to another position, as stored from [`Feed::cursor`]; prefetched batches are dropped.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for a cursor of other data, mixture, seed or batch size.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), DataError> {
        self.cursor = self.plan.check(&cursor)?;
        self.next = self.cursor;
        self.begun.clear();
        self.begin();
        Ok(())
    }

    /// Skips the batch at the cursor without waiting for it.
    pub fn skip_batch(&mut self) {
        self.cursor = self.plan.advance(self.cursor);
        if self.begun.pop_front().is_none() {
            self.next = self.cursor;
        }
        self.begin();
    }

    /// Position of the next batch; store it to resume from here later.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The sources, in the order of the configuration.
    pub fn sources(&self) -> &[Source] {
        &self.maker.sources
    }

    /// The order.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Rows refused when the files were opened and rows skipped since; a row skipped in several
    /// epochs counts every time.
    pub fn bad_rows(&self) -> &BadRows {
        &self.bad
    }

    /// [`Feed::bad_rows`] for people: how many of how many, and the first of them; `None` without any.
    pub fn skipped_rows(&self) -> Option<String> {
        let first = self.bad.first.first()?;
        let groups = self.sources().iter().flat_map(Source::groups);
        let rows = self.refused + groups.map(|(_, rows)| rows).sum::<u64>();
        let skipped = self.bad.count - self.refused;
        let mut counts = Vec::new();
        if self.refused > 0 {
            counts.push(format!("{} of {rows} rows refused", self.refused));
        }
        if skipped > 0 {
            counts.push(format!("{skipped} of {} rows skipped", self.drawn));
        }
        Some(format!("{}; first: {first}", counts.join(", ")))
    }

    fn is_over(&self, at: &Cursor) -> bool {
        let epochs = self.maker.config.loader.epochs;
        epochs.is_some_and(|n| at.epoch >= n)
    }

    /// Begins as many batches as may be ahead.
    fn begin(&mut self) {
        let ahead = match self.threads.len() {
            0 => 0,
            _ => self.maker.config.loader.prefetch,
        };
        while let Some(jobs) = &self.jobs
            && self.begun.len() < ahead
            && !self.is_over(&self.next)
        {
            let (mut items, wanted) = (Vec::new(), Arc::new(()));
            for key in self.plan.batch(self.next.epoch, self.next.batch) {
                let (made, item) = mpsc::channel();
                items.push(item);
                let wanted = Arc::downgrade(&wanted);
                // The threads listen as long as the feed is there.
                let _ = jobs.send(Job { key, made, wanted });
            }
            self.begun.push_back(Begun { items, wanted });
            self.next = self.plan.advance(self.next);
        }
    }

    /// Waits for the items of the batch at the cursor.
    fn take(&mut self) -> Vec<Made> {
        let Some(Begun { items, wanted }) = self.begun.pop_front() else {
            self.next = self.plan.advance(self.cursor);
            let keys = self.plan.batch(self.cursor.epoch, self.cursor.batch);
            return keys.iter().map(|key| self.maker.item(key)).collect();
        };
        let made = items.iter().filter_map(|item| item.recv().ok()).collect();
        drop(wanted);
        self.begin();
        made
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.begun.clear();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic in it is an error of the item, and nothing could report it here.
            let _ = thread.join();
        }
    }
}

/// What a thread does until the feed ends.
fn make_items(maker: &ItemMaker, work: &Mutex<Receiver<Job>>) {
    loop {
        let job = work.lock().unwrap_or_else(|e| e.into_inner()).recv();
        let Ok(job) = job else { return };
        if job.wanted.strong_count() > 0 {
            // Fails when the batch was dropped in the meantime.
            let _ = job.made.send(beside(|| maker.item(&job.key)));
        }
    }
}

/// Opens a source and notes the rows that it refuses.
fn open_source(
    spec: &SourceSpec,
    config: &FeedConfig,
    bad: &mut BadRows,
) -> Result<Source, DataError> {
    let source = Source::open(spec, config)?;
    let Some(refused) = source.bad_rows() else {
        return Ok(source);
    };
    for row in &refused.first {
        tracing::warn!(%row, "row refused");
        bad.push(row.clone());
    }
    bad.count += refused.count - refused.first.len() as u64;
    // The plan would say so too, but not why.
    if let (true, Some(row)) = (source.groups().is_empty(), refused.first.first()) {
        let reason = format!("no usable row of {}; the first: {row}", refused.count);
        return Err(invalid("source", reason));
    }
    Ok(source)
}
