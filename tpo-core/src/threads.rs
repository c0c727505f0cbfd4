//! The threads that compute on the CPU: one pool, entered once.
//!
//! An operation that is called from a thread outside the pool is handed over, a sleeping thread wakes and
//! the caller sleeps until the result is there: many times for a token, and a third of the time of a small
//! model. Work that runs *in* the pool calls its operations directly. What computes for long enters by
//! itself: the model's passes, training steps, answers, trackers, and the programs. Your own loop over
//! operations enters with [`in_pool`].

use std::num::NonZeroUsize;
use std::sync::OnceLock;

use rayon::ThreadPool;

use crate::error::{CoreError, Result};

/// Environment variable with the number of threads of the pool.
pub const THREADS_VARIABLE: &str = "TPO_THREADS";

/// Stack of a thread of the pool in bytes: what a program's first thread has.
const STACK: usize = 8 << 20;

/// Runs `work` in the pool and returns what it returns; in a pool already, it is just called. A panic in
/// it goes on in the caller.
///
/// The pool is that of the rayon pool the caller is in, else the process's own. It has the size that
/// [`set_threads`] gave it, else what `TPO_THREADS` says, else `RAYON_NUM_THREADS`, else a thread for each
/// physical core.
///
/// `work` may wait for another thread only if that one computes [`beside`] the pool.
pub fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return work();
    }
    start();
    rayon::scope(|_| work())
}

/// Runs `work` in a second pool, for threads that make what work in the first one waits for: decoded
/// frames, batches. In a pool already, it is just called.
///
/// Handed to the first pool it would never be run where every thread of that waits for it.
/// `work` must not wait for anything itself.
pub fn beside<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    if rayon::current_thread_index().is_some() {
        return work();
    }
    let pool = POOL.get_or_init(|| {
        let pool = builder(default_threads()).thread_name(|i| format!("tpo-beside-{i}"));
        pool.build().ok()
    });
    match pool {
        Some(pool) => pool.install(work),
        // The system gives no more threads.
        None => work(),
    }
}

/// Sets the number of threads of the process's pool, before anything has computed.
///
/// # Errors
/// [`CoreError::Threads`] when the pool runs already with another number.
pub fn set_threads(threads: NonZeroUsize) -> Result<()> {
    // Fails where there is a pool, which may have the right size.
    let _ = builder(threads.get()).build_global();
    let found = rayon::current_num_threads();
    if found == threads.get() {
        return Ok(());
    }
    Err(CoreError::Threads {
        wanted: threads.get(),
        found,
    })
}

/// Starts the process's pool, unless it runs.
fn start() {
    static STARTED: OnceLock<()> = OnceLock::new();
    // Fails where there is a pool, which is as good.
    STARTED.get_or_init(|| drop(builder(default_threads()).build_global()));
}

fn builder(threads: usize) -> rayon::ThreadPoolBuilder {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK)
}

/// What the environment says, else the physical cores that the process may use.
fn default_threads() -> usize {
    let said = [THREADS_VARIABLE, "RAYON_NUM_THREADS"].into_iter();
    let mut said = said.filter_map(|name| {
        let value = std::env::var(name).ok()?;
        let threads = value.parse::<usize>().ok().filter(|n| *n > 0);
        if threads.is_none() {
            tracing::warn!("{name}={value} is no number of threads and is left out of account");
        }
        threads
    });
    // The first looks at affinity and cgroups, the second at hyper-threads.
    said.next()
        .unwrap_or_else(|| num_cpus::get().min(num_cpus::get_physical()).max(1))
}
