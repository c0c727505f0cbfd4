//! The few operations on files that a checkpoint needs, so that tests can let them fail.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// A file that is being written.
pub(super) trait Sink: Write {
    /// Makes sure the bytes are on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
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
        Ok(Box::new(File::create_new(path)?))
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

/// Bytes hashed in one go: large enough for all cores to take part.
const BLOCK: usize = 1 << 20;

/// A running sum.
#[derive(Default)]
pub(super) struct Sum {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if bytes.len() < BLOCK / 8 {
            self.hasher.update(bytes);
        } else {
            self.hasher.update_rayon(bytes);
        }
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn finish(self) -> super::FileEntry {
        super::FileEntry {
            bytes: self.bytes,
            blake3: self.hasher.finalize().to_hex().to_string(),
        }
    }

    /// Size and sum of a file.
    pub(super) fn of(path: &Path) -> io::Result<super::FileEntry> {
        let mut file = File::open(path)?;
        let mut block = vec![0; 8 * BLOCK];
        let mut sum = Self::default();
        loop {
            // Full blocks, as a short read would not be worth dividing.
            let mut filled = 0;
            while filled < block.len() {
                match file.read(&mut block[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                return Ok(sum.finish());
            }
            sum.add(&block[..filled]);
        }
    }
}
