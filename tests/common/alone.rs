use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: weights are drawn from one generator.
pub fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
