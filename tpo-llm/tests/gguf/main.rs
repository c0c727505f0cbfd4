//! Language models in GGUF files against the same in Hugging Face directories.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/fuzzing.rs"]
mod fuzzing;
#[path = "../../../tpo-core/tests/weights/gguf_bytes.rs"]
mod gguf_bytes;
mod models;
mod tokenizers;
mod weights;

use models::{Noise, TYPES, model};

#[test]
fn changed_and_cut_files_are_errors_or_models() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = model("llama", TYPES[3]);
    let whole = file.bytes();
    fuzzing::gguf(&whole, dir.path()).unwrap();
    let header = whole.len() - file.tensors.iter().map(|t| t.data.len()).sum::<usize>();
    let mut noise = Noise(3);
    for _ in 0..150 {
        let mut bytes = whole.clone();
        for _ in 0..1 + noise.next() % 4 {
            let at = noise.next() as usize % header;
            bytes[at] = noise.next() as u8;
        }
        fuzzing::gguf(&bytes, dir.path()).unwrap();
        bytes.truncate(noise.next() as usize % whole.len());
        fuzzing::gguf(&bytes, dir.path()).unwrap();
    }
}
