//! Training vocabulary of TPO for Rust: stages and parameter groups.
