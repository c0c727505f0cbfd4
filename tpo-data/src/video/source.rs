//! Where the bytes of a video come from.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{OpenVideo, VideoInfo};
use crate::{DataError, MediaLimits};

/// A file or a buffer that can be opened several times, once per decoding thread.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    path: PathBuf,
    bytes: Option<Arc<[u8]>>,
    len: u64,
}

/// What a source opens as.
pub(crate) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

impl Source {
    /// A file; its size is checked.
    pub(crate) fn file(path: &Path, limits: &MediaLimits) -> Result<Self, DataError> {
        let io = DataError::io(path);
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(io(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        limits.check_bytes(path, metadata.len())?;
        Ok(Self {
            path: path.into(),
            bytes: None,
            len: metadata.len(),
        })
    }

    /// A buffer; its size is checked.
    pub(crate) fn memory(bytes: Vec<u8>, limits: &MediaLimits) -> Result<Self, DataError> {
        let path = PathBuf::from("<memory>");
        limits.check_bytes(&path, bytes.len() as u64)?;
        Ok(Self {
            path,
            len: bytes.len() as u64,
            bytes: Some(bytes.into()),
        })
    }

    /// A video of this source.
    pub(super) fn opened(&self, limits: &MediaLimits, info: VideoInfo) -> OpenVideo {
        OpenVideo {
            path: self.path.clone(),
            limits: limits.clone(),
            info,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is a buffer.
    #[cfg(feature = "ffmpeg")]
    pub(crate) fn is_memory(&self) -> bool {
        self.bytes.is_some()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn open(&self) -> Result<Box<dyn ReadSeek>, DataError> {
        match &self.bytes {
            Some(bytes) => Ok(Box::new(Cursor::new(Arc::clone(bytes)))),
            None => File::open(&self.path)
                .map(|f| Box::new(f) as Box<dyn ReadSeek>)
                .map_err(|source| DataError::io(&self.path)(source)),
        }
    }

    /// The first bytes, at most `n`.
    pub(crate) fn head(&self, n: usize) -> Result<Vec<u8>, DataError> {
        let mut head = Vec::new();
        self.open()?
            .take(n as u64)
            .read_to_end(&mut head)
            .map_err(DataError::io(&self.path))?;
        Ok(head)
    }
}
