//! Reading, importing and writing weights.

mod files;
mod gguf;
mod gguf_bytes;
mod hostile;
mod keys;
mod load;
mod save;
