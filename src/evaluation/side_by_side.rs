//! Asking batches of questions: one after the other, or several at the same time, whose rows come in
//! order.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::answer::read_answer;
use super::answerer::{Answered, Answerer};
use super::item::Item;
use super::log::PredictionRow;
use super::runner::Plan;
use crate::error::{Error, Result};

/// About as many questions about the same media an answerer is given in a row, which looks at them once.
const IN_A_ROW: usize = 64;
/// Stretches of questions for every answerer, where there are that many: none waits long for the last.
const STRETCHES: usize = 4;

/// The rows of a batch of questions, one each.
type Rows = Vec<PredictionRow>;

/// The questions of a plan, as they are asked.
pub(super) struct Asking<'a> {
    pub plan: &'a Plan,
    /// Directory of the run.
    pub dir: &'a Path,
    /// Questions that are answered at once.
    pub batch: usize,
    /// Answerers that work at the same time.
    pub answerers: NonZeroUsize,
}

impl Asking<'_> {
    /// Asks the questions of these numbers. `take` is given a function of the rows of a batch, which it
    /// calls for every batch of them, in order, or until it has had enough.
    pub fn ask<T>(
        &self,
        open: &[usize],
        answerer: &mut dyn Answerer,
        take: impl FnOnce(&mut dyn FnMut(&[usize]) -> Result<Rows>) -> Result<T>,
    ) -> Result<T> {
        let stretches = self.stretches(open);
        let several = self.answerers.get().min(stretches.len());
        let mut others = Vec::new();
        while others.len() < several && several > 1 {
            match answerer.another()? {
                Some(other) => others.push((other, self.pool(several)?)),
                None => break,
            }
        }
        if others.is_empty() {
            return take(&mut |batch| self.batch(answerer, batch));
        }
        let (mut waiting, mut rows) = (VecDeque::new(), Vec::new());
        for stretch in stretches {
            let batches = stretch.chunks(self.batch).map(|batch| {
                let (give, get) = channel();
                rows.push(get);
                (batch, give)
            });
            waiting.push_back(batches.collect());
        }
        let queue = &Queue(Mutex::new(waiting));
        std::thread::scope(|scope| {
            let work = |(mut answerer, pool): (Box<dyn Answerer + Send>, ThreadPool)| {
                scope.spawn(move || {
                    pool.install(|| {
                        while let Some(stretch) = queue.next() {
                            for (batch, give) in stretch {
                                // Nobody wants them any more.
                                if give.send(self.batch(&mut *answerer, batch)).is_err() {
                                    return;
                                }
                            }
                        }
                    });
                })
            };
            let workers: Vec<_> = others.into_iter().map(work).collect();
            let mut rows = rows.into_iter();
            let taken = take(&mut |_| match rows.next().map(|batch| batch.recv()) {
                Some(Ok(rows)) => rows,
                // Its panic goes on below.
                _ => Err(self.error("an answerer has ended before its questions".into())),
            });
            queue.all().clear();
            drop(rows);
            for worker in workers {
                if let Err(panic) = worker.join() {
                    resume_unwind(panic);
                }
            }
            taken
        })
    }

    /// Whole batches in a row that one answerer is asked: as many as are about the same media, but not
    /// so many that others have nothing to do.
    fn stretches<'a>(&self, open: &'a [usize]) -> Vec<&'a [usize]> {
        let fair = open.len().div_ceil(STRETCHES * self.answerers.get());
        let most = fair.clamp(1, IN_A_ROW);
        let media = |at: usize| self.plan.items[at].media.key();
        let (mut stretches, mut rest) = (Vec::new(), open);
        while !rest.is_empty() {
            let mut len = self.batch.min(rest.len());
            while len < rest.len() && len < most && media(rest[len - 1]) == media(rest[len]) {
                len = (len + self.batch).min(rest.len());
            }
            let (stretch, after) = rest.split_at(len);
            stretches.push(stretch);
            rest = after;
        }
        stretches
    }

    /// The threads of one of several answerers. They are its own: an operation of one never waits for a
    /// question of another, and no answerer continues another's work while it holds a lock.
    fn pool(&self, answerers: usize) -> Result<ThreadPool> {
        let threads = (rayon::current_num_threads() / answerers).max(1);
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map_err(|e| self.error(format!("no thread for an answerer could be started: {e}")))
    }

    /// Asks one batch.
    fn batch(&self, answerer: &mut dyn Answerer, batch: &[usize]) -> Result<Rows> {
        let items: Vec<&Item> = batch.iter().map(|at| &self.plan.items[*at]).collect();
        let answered = answerer.answer(&items);
        if answered.len() != items.len() {
            return Err(self.error(format!(
                "{} questions were asked and {} answered; Answerer::answer must answer each",
                items.len(),
                answered.len()
            )));
        }
        let rows = items.into_iter().zip(answered);
        let rows = rows.map(|(item, answered)| self.row(answerer, item, answered));
        Ok(rows.collect())
    }

    /// The row of a question that was asked.
    fn row(&self, answerer: &mut dyn Answerer, item: &Item, answered: Answered) -> PredictionRow {
        let plan = self.plan;
        let media = answered.media.unwrap_or_default();
        let read = answered.reply.and_then(|reply| {
            if let Some(why) = plan.unanswered(item, &reply) {
                return Err(why);
            }
            let predicted = if answerer.scores_itself(item) {
                answerer.score(item, &reply).map_err(|e| e.to_string())?
            } else {
                read_answer(item, &reply, plan.answers, &plan.prompts, &media)
            };
            Ok((reply, predicted))
        });
        let row = PredictionRow {
            media: answered.media,
            ..PredictionRow::new(item)
        };
        match read {
            Ok((reply, predicted)) => PredictionRow {
                predicted,
                called: reply.tasks.iter().map(|t| t.task.clone()).collect(),
                answer: reply.text,
                ..row
            },
            Err(why) => PredictionRow {
                error: Some(why),
                ..row
            },
        }
    }

    /// What ends a run.
    pub fn error(&self, why: String) -> Error {
        Error::Evaluation {
            path: self.dir.into(),
            why,
        }
    }
}

/// A batch of questions, and where its rows go.
type Batch<'a> = (&'a [usize], Sender<Result<Rows>>);

/// Stretches of questions that nobody has begun.
struct Queue<'a>(Mutex<VecDeque<Vec<Batch<'a>>>>);

impl<'a> Queue<'a> {
    fn all(&self) -> MutexGuard<'_, VecDeque<Vec<Batch<'a>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Vec<Batch<'a>>> {
        self.all().pop_front()
    }
}
