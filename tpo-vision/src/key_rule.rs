//! Rewrite rules between checkpoint keys and module paths.

/// `(pattern, replacement)`: a regular expression and what replaces **every** match of it, with
/// `$1` for the first group, in the syntax of the `regex` crate.
///
/// A list of rules is applied in order, each to the result of the one before. Keys that no rule
/// touches are module paths already.
pub type KeyRewrite = (&'static str, &'static str);
