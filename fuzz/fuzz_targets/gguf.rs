#![no_main]

#[path = "../../tpo-llm/tests/common/fuzzing.rs"]
mod fuzzing;

use std::sync::LazyLock;

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzzing::gguf(bytes, DIR.path()).expect("the input file can be written");
});
