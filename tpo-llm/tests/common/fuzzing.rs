//! The parsers on any bytes. The targets in `fuzz/` include this file.

use std::path::Path;

use tpo_core::weights::read_tensor;
use tpo_llm::GgufModel;

/// A GGUF file with its tensors and tokenizer.
///
/// # Errors
/// When the file in `dir` cannot be written.
///
/// # Panics
/// When a tensor is larger than its file.
pub fn gguf(bytes: &[u8], dir: &Path) -> std::io::Result<()> {
    let path = dir.join("model.gguf");
    std::fs::write(&path, bytes)?;
    let Ok(model) = GgufModel::open(&path) else {
        return Ok(());
    };
    for entry in model.checkpoint().tensors() {
        assert!(entry.len <= bytes.len() as u64, "{entry:?}");
        let _ = read_tensor(entry);
    }
    if let Ok(tokenizer) = model.tokenizer() {
        let _ = tokenizer.encode("Ünïcode  <s> 12\n", tokenizer.default_options());
    }
    Ok(())
}
