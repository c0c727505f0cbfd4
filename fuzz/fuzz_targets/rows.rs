#![no_main]

#[path = "../../tpo-data/tests/common/fuzzing.rs"]
mod fuzzing;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::rows(bytes));
