#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tpo_data::fuzzing::palette(bytes));
