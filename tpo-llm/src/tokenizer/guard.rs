//! Keeping hostile files and panicking parsers out of the process.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{LlmError, Result};

/// Largest tokenizer file that is read. The largest published ones are about 35 MB.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

/// Reads a whole file of at most [`MAX_FILE_BYTES`].
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let io = |source| LlmError::Io {
        path: path.to_path_buf(),
        source,
    };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LlmError::TokenizerFile {
            path: path.to_path_buf(),
            problem: format!(
                "larger than {} MiB; this is not a tokenizer file",
                MAX_FILE_BYTES >> 20
            ),
        });
    }
    Ok(bytes)
}

/// Runs third-party code and turns a panic into its message.
pub(crate) fn no_panic<T>(f: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_string())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        format!("the parser panicked: {text}")
    })
}
