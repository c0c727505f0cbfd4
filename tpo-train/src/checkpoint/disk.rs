//! The few operations on files that a checkpoint needs, so that tests can let them fail.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

/// A file that is being written.
pub(super) trait Sink: Write + Send {
    /// Makes sure the bytes are on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file whose bytes go to the disk while more are written.
struct Flushed {
    file: File,
    /// Bytes since the disk was last asked for.
    ahead: usize,
    flush: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

/// Bytes after which the disk begins to write.
const AHEAD: usize = 32 << 20;

impl Flushed {
    /// Has what was written go to the disk; nothing waits for it.
    fn flush_behind(&mut self) -> io::Result<()> {
        let flush = match &mut self.flush {
            Some(flush) => flush,
            none => {
                let file = self.file.try_clone()?;
                let (ask, asked) = sync_channel::<()>(1);
                let thread = std::thread::Builder::new().name("flush".into());
                let thread = thread.spawn(move || {
                    while asked.recv().is_ok() {
                        file.sync_data()?;
                    }
                    Ok(())
                })?;
                none.insert((ask, thread))
            }
        };
        // Where one is waiting already it will do; where the thread has failed `sync` says so.
        let _ = flush.0.try_send(());
        Ok(())
    }
}

impl Write for Flushed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = &bytes[..bytes.len().min(AHEAD)];
        let n = self.file.write(some)?;
        self.ahead += n;
        if self.ahead >= AHEAD {
            self.ahead = 0;
            self.flush_behind()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink for Flushed {
    fn sync(&mut self) -> io::Result<()> {
        if let Some((ask, thread)) = self.flush.take() {
            drop(ask);
            // The system tells of a failure once, whoever asks first.
            let done = thread.join();
            done.unwrap_or_else(|_| Err(io::Error::other("the thread that flushes panicked")))?;
        }
        self.file.sync_all()
    }
}

/// Where files are created.
pub(super) trait Disk: std::fmt::Debug + Send + Sync {
    /// Creates a file that does not exist yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>>;
    /// Renames a directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Debug)]
pub(super) struct FileSystem;

impl Disk for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        Ok(Box::new(Flushed {
            file: File::create_new(path)?,
            ahead: 0,
            flush: None,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
}

/// Makes names in a directory durable. Platforms where a directory cannot be opened as a file do
/// this on their own.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Bytes that are read and hashed in one go: they stay in the cache of a core. A power of two, as parts
/// of a BLAKE3 tree are.
const PART: u64 = 1 << 20;

/// A running sum.
#[derive(Default)]
pub(super) struct Sum {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn finish(self) -> super::FileEntry {
        super::FileEntry {
            bytes: self.bytes,
            blake3: self.hasher.finalize().to_hex().to_string(),
        }
    }

    /// Size and sum of a file, whose parts are read and hashed on all cores.
    pub(super) fn of(path: &Path) -> io::Result<super::FileEntry> {
        let bytes = std::fs::metadata(path)?.len();
        let hash = if bytes <= PART {
            blake3::hash(&std::fs::read(path)?)
        } else {
            let [left, right] = halves(path, 0, bytes)?;
            merge_subtrees_root(&left, &right, Mode::Hash)
        };
        Ok(super::FileEntry {
            bytes,
            blake3: hash.to_hex().to_string(),
        })
    }
}

/// Both halves of a part of a file, as BLAKE3 divides it.
fn halves(path: &Path, at: u64, len: u64) -> io::Result<[ChainingValue; 2]> {
    let left = left_subtree_len(len);
    let (left, right) = rayon::join(
        || subtree(path, at, left),
        || subtree(path, at + left, len - left),
    );
    Ok([left?, right?])
}

fn subtree(path: &Path, at: u64, len: u64) -> io::Result<ChainingValue> {
    if len > PART {
        let [left, right] = halves(path, at, len)?;
        return Ok(merge_subtrees_non_root(&left, &right, Mode::Hash));
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut part = vec![0; len as usize];
    file.read_exact(&mut part)?;
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(at).update(&part);
    Ok(hasher.finalize_non_root())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes about those at which a file is divided; the sum is that of a single pass.
    #[test]
    fn sums_of_parts_are_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let part = PART as usize;
        for len in [
            0,
            1,
            part - 1,
            part,
            part + 1,
            2 * part,
            3 * part + 1025,
            5 * part - 7,
        ] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + i / 997) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let mut sum = Sum::default();
            sum.add(&bytes);
            assert_eq!(Sum::of(&path).unwrap(), sum.finish(), "{len}");
        }
    }

    /// Several times as much as is written ahead of the disk.
    #[test]
    fn a_large_file_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..AHEAD + AHEAD / 2).map(|i| (i / 3) as u8).collect();
        let mut file = FileSystem.create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync().unwrap();
        drop(file);
        assert!(std::fs::read(&path).unwrap() == [&bytes[..], &bytes].concat());
    }
}
