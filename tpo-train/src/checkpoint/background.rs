//! Writing while the run goes on.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crate::error::{Result, TrainError};

/// A write on a thread of its own, one at a time. When this is dropped the write is brought to its
/// end, and what it failed with is logged.
#[derive(Debug)]
pub(crate) struct Background {
    dir: PathBuf,
    write: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// None yet. Errors that are not the write's own name `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            write: None,
        }
    }

    /// Starts a write, after the one before has ended.
    ///
    /// # Errors
    /// Those of the write before; [`TrainError::Io`] when the system has no thread left.
    pub(crate) fn start(
        &mut self,
        write: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.finish()?;
        let thread = std::thread::Builder::new().name("checkpoint".into());
        let thread = thread.spawn(write);
        self.write = Some(thread.map_err(TrainError::io("starting a thread for", &self.dir))?);
        Ok(())
    }

    /// What came of a write that has ended; does not wait for one that has not.
    ///
    /// # Errors
    /// Those of the write.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.write.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.finish();
        }
        Ok(())
    }

    /// Waits for the write to end.
    ///
    /// # Errors
    /// Those of the write; [`TrainError::Checkpoint`] when it panicked.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let Some(write) = self.write.take() else {
            return Ok(());
        };
        write.join().unwrap_or_else(|_| {
            Err(TrainError::Checkpoint {
                path: self.dir.clone(),
                why:
                    "the thread that wrote a checkpoint here panicked; the one before is the newest"
                        .into(),
            })
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(%error, "a checkpoint was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    fn failed(why: &str) -> TrainError {
        TrainError::Checkpoint {
            path: "c".into(),
            why: why.into(),
        }
    }

    #[test]
    fn one_write_at_a_time_and_its_error_at_the_next_look() {
        let mut background = Background::new(Path::new("c"));
        background.check().unwrap();
        let (release, held) = channel::<()>();
        let (tell, told) = channel();
        let tell_too = tell.clone();
        background
            .start(move || {
                held.recv().unwrap();
                tell.send("first").unwrap();
                Ok(())
            })
            .unwrap();
        // It goes on, and nobody waits.
        background.check().unwrap();
        assert!(told.try_recv().is_err());
        let releases = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            release.send(()).unwrap();
        });
        background
            .start(move || {
                tell_too.send("second").unwrap();
                Err(failed("the disk is full"))
            })
            .unwrap();
        releases.join().unwrap();
        assert_eq!(
            [told.recv().unwrap(), told.recv().unwrap()],
            ["first", "second"]
        );
        let deadline = Instant::now() + Duration::from_secs(20);
        let error = loop {
            if let Err(error) = background.check() {
                break error.to_string();
            }
            assert!(Instant::now() < deadline);
        };
        assert!(error.contains("the disk is full"), "{error}");
        // It is told once.
        background.finish().unwrap();

        background.start(|| panic!("for the test")).unwrap();
        let error = background.finish().unwrap_err().to_string();
        assert!(error.contains("panicked"), "{error}");
        // A write that failed keeps the next from being started.
        background.start(|| Err(failed("gone"))).unwrap();
        let error = background.start(|| Ok(())).unwrap_err().to_string();
        assert!(error.contains("gone"), "{error}");
    }
}
