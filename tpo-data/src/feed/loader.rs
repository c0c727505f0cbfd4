//! Batches prefetched ahead of the step, in the order of the plan whichever thread finishes first.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::collate::Collated;
use super::item::{Item, ItemError, ItemMaker};
use super::order::{Cursor, Plan, SampleKey};
use crate::DataError;
use crate::schema::{RowError, RowFault};

/// How many batches are prefetched, with how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoaderConfig {
    /// Threads that make items; 0 makes them when they are asked for. Decoding spreads over the
    /// rayon pool besides, so few are enough. Default 2 (the reference's training arguments).
    pub workers: usize,
    /// Most batches in memory besides the one in use. Default 2.
    pub prefetch: usize,
    /// Id of padding. Reference: 0.
    pub pad_id: u32,
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
            pad_id: 0,
            strict: false,
            epochs: None,
        }
    }
}

type Made = Result<Item, ItemError>;

struct Pending {
    at: Cursor,
    slots: Vec<Option<Made>>,
    missing: usize,
}

struct State {
    /// The next batch to begin.
    next: Cursor,
    jobs: VecDeque<(u64, usize, SampleKey)>,
    pending: BTreeMap<u64, Pending>,
    begun: u64,
    handed_out: u64,
    stop: bool,
}

struct Shared {
    maker: ItemMaker,
    plan: Plan,
    config: LoaderConfig,
    state: Mutex<State>,
    /// A batch is complete.
    ready: Condvar,
    /// There is work, or the loader has ended.
    work: Condvar,
}

/// A stream of batches.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cursor: Cursor,
    /// Consecutive batches without a usable row.
    fruitless: u64,
    /// Rows skipped after the last batch.
    orphans: Vec<RowError>,
}

impl Loader {
    /// Starts at a cursor.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for a cursor of another plan, no room to prefetch, or a
    /// thread that cannot be started.
    pub fn start(
        maker: ItemMaker,
        plan: Plan,
        config: LoaderConfig,
        cursor: Cursor,
    ) -> Result<Self, DataError> {
        let cursor = plan.check(&cursor)?;
        let invalid = |reason: String| DataError::InvalidConfig {
            what: "loader",
            reason,
        };
        if config.workers > 256 || (config.workers > 0 && config.prefetch == 0) {
            return Err(invalid(format!(
                "{} workers, {} batches ahead; expected at most 256 and at least 1",
                config.workers, config.prefetch
            )));
        }
        let shared = Arc::new(Shared {
            maker,
            plan,
            config,
            state: Mutex::new(State {
                next: cursor,
                jobs: VecDeque::new(),
                pending: BTreeMap::new(),
                begun: 0,
                handed_out: 0,
                stop: false,
            }),
            ready: Condvar::new(),
            work: Condvar::new(),
        });
        let mut loader = Self {
            shared,
            threads: Vec::new(),
            cursor,
            fruitless: 0,
            orphans: Vec::new(),
        };
        for i in 0..config.workers {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new()
                .name(format!("tpo-data-{i}"))
                .spawn(move || shared.work_until_stopped())
                .map_err(|e| invalid(format!("thread {i}: {e}")))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Position of the next batch; store it to resume from here later.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The order.
    pub fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    /// What makes the items.
    pub fn maker(&self) -> &ItemMaker {
        &self.shared.maker
    }

    /// Moves to another position; prefetched batches are dropped.
    ///
    /// # Errors
    /// [`DataError::InvalidConfig`] for a cursor of another plan.
    pub fn seek(&mut self, cursor: Cursor) -> Result<(), DataError> {
        let cursor = self.shared.plan.check(&cursor)?;
        let mut state = self.shared.lock();
        // Items still being made find their batch gone.
        state.jobs.clear();
        state.pending.clear();
        state.handed_out = state.begun;
        state.next = cursor;
        self.cursor = cursor;
        self.shared.work.notify_all();
        Ok(())
    }

    /// Skips the batch at the cursor without waiting for it.
    pub fn skip_batch(&mut self) {
        let mut state = self.shared.lock();
        if state.handed_out == state.begun {
            state.next = self.shared.plan.advance(state.next);
        } else {
            let number = state.handed_out;
            state.jobs.retain(|(batch, _, _)| *batch != number);
            state.pending.remove(&number);
            state.handed_out += 1;
        }
        self.cursor = self.shared.plan.advance(self.cursor);
        self.shared.work.notify_all();
    }

    /// Rows skipped after the last batch, which are in the `skipped` list of no batch.
    pub fn take_orphans(&mut self) -> Vec<RowError> {
        std::mem::take(&mut self.orphans)
    }

    /// The next batch, `None` after the last epoch. Batches of which no row was usable are
    /// skipped; their rows are in the `skipped` list of the next one.
    ///
    /// # Errors
    /// With `strict` [`DataError::Row`]; otherwise errors that no row causes, and
    /// [`DataError::InvalidConfig`] when a whole epoch has no usable row.
    pub fn next_batch(&mut self) -> Result<Option<Collated>, DataError> {
        let mut skipped: Vec<RowError> = Vec::new();
        loop {
            let config = self.shared.config;
            if config.epochs.is_some_and(|n| self.cursor.epoch >= n) {
                self.orphans.extend(skipped);
                return Ok(None);
            }
            let (at, made) = if self.threads.is_empty() {
                let at = self.cursor;
                let keys = self.shared.plan.batch(at.epoch, at.batch);
                self.shared.lock().next = self.shared.plan.advance(at);
                (at, keys.iter().map(|k| self.shared.make(k)).collect())
            } else {
                self.shared.take()
            };
            self.cursor = self.shared.plan.advance(at);
            let mut items = Vec::new();
            for made in made {
                match made {
                    Ok(item) => items.push(item),
                    Err(ItemError::Fatal(e)) => return Err(e),
                    Err(ItemError::Row(row)) if config.strict => return Err(DataError::Row(row)),
                    Err(ItemError::Row(row)) => skipped.push(row),
                }
            }
            let list = std::mem::take(&mut skipped);
            if items.is_empty() {
                self.fruitless += 1;
                if self.fruitless >= self.shared.plan.batches() {
                    let example = list.first().map_or(String::new(), |r| format!(": {r}"));
                    return Err(DataError::InvalidConfig {
                        what: "data",
                        reason: format!("no row of a whole epoch could be used{example}"),
                    });
                }
                skipped = list;
                continue;
            }
            self.fruitless = 0;
            return Collated::new(at, items, list, config.pad_id);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker never panics outside `catch_unwind`, and nothing could report it here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A decoder that panics costs its row, not the run.
    fn make(&self, key: &SampleKey) -> Made {
        catch_unwind(AssertUnwindSafe(|| self.maker.item(key))).unwrap_or_else(|_| {
            let source = &self.maker.sources[key.source];
            Err(ItemError::Row(RowError {
                file: source.path().into(),
                line: 0,
                fault: RowFault::Prepare {
                    reason: format!("row {} of its group could not be prepared", key.row),
                },
            }))
        })
    }

    fn work_until_stopped(&self) {
        loop {
            let mut state = self.lock();
            let (batch, slot, key) = loop {
                if state.stop {
                    return;
                }
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                let ahead = state.begun - state.handed_out;
                let over = self.config.epochs.is_some_and(|n| state.next.epoch >= n);
                if !over && ahead < self.config.prefetch as u64 {
                    self.begin(&mut state);
                    continue;
                }
                state = self.work.wait(state).unwrap_or_else(|e| e.into_inner());
            };
            drop(state);
            let made = self.make(&key);
            let mut state = self.lock();
            if let Some(pending) = state.pending.get_mut(&batch) {
                pending.slots[slot] = Some(made);
                pending.missing -= 1;
                if pending.missing == 0 {
                    self.ready.notify_all();
                }
            }
        }
    }

    fn begin(&self, state: &mut State) {
        let at = state.next;
        let keys = self.plan.batch(at.epoch, at.batch);
        let number = state.begun;
        let pending = Pending {
            at,
            slots: keys.iter().map(|_| None).collect(),
            missing: keys.len(),
        };
        if keys.is_empty() {
            self.ready.notify_all();
        }
        state.pending.insert(number, pending);
        let jobs = keys
            .into_iter()
            .enumerate()
            .map(|(i, key)| (number, i, key));
        state.jobs.extend(jobs);
        state.begun += 1;
        state.next = self.plan.advance(at);
        self.work.notify_all();
    }

    /// Waits for the batch that is next in order.
    fn take(&self) -> (Cursor, Vec<Made>) {
        let mut state = self.lock();
        let number = state.handed_out;
        loop {
            if state.pending.get(&number).is_some_and(|p| p.missing == 0)
                && let Some(pending) = state.pending.remove(&number)
            {
                state.handed_out += 1;
                self.work.notify_all();
                return (pending.at, pending.slots.into_iter().flatten().collect());
            }
            state = self.ready.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }
}
