//! Models as shapes.

use std::collections::BTreeMap;

use crate::groups::ResolvedParam;

/// The shape of a model, enough to explain a recipe for it.
#[derive(Debug, Clone)]
pub struct ModelShape {
    /// What it is, for the heading.
    pub name: String,
    /// Every floating-point parameter; see [`ModelShape::of`].
    pub params: Vec<ResolvedParam>,
    /// Bytes of the weights that are held quantised, by path; they cannot learn.
    pub quantized: BTreeMap<String, u64>,
    /// Names of the heads in order.
    pub heads: Vec<String>,
    /// The parts in the order in which activations flow through them.
    pub parts: Vec<PartShape>,
}

/// A part of a model and what goes through it.
#[derive(Debug, Clone, PartialEq)]
pub struct PartShape {
    /// Name: `vision`, `llm`.
    pub name: String,
    /// Its parameters: those whose paths start so.
    pub prefixes: Vec<String>,
    /// Rows (tokens) that go through its linear maps per sample.
    pub rows: u64,
    /// Other numbers of rows, for parameters whose path holds the text.
    pub rows_of: Vec<(String, u64)>,
    /// Whether its blocks can be computed again in the backward pass.
    pub checkpointed: bool,
}

impl PartShape {
    /// A part.
    pub fn new<S: Into<String>>(
        name: &str,
        prefixes: impl IntoIterator<Item = S>,
        rows: usize,
    ) -> Self {
        Self {
            name: name.into(),
            prefixes: prefixes.into_iter().map(Into::into).collect(),
            rows: rows as u64,
            rows_of: Vec::new(),
            checkpointed: false,
        }
    }

    /// Sets the rows of the parameters whose path holds `text`.
    pub fn with_rows_of(mut self, text: &str, rows: usize) -> Self {
        self.rows_of.push((text.into(), rows as u64));
        self
    }

    /// Its blocks can be computed again.
    pub fn with_checkpointed_blocks(mut self) -> Self {
        self.checkpointed = true;
        self
    }

    pub(super) fn rows(&self, path: &str) -> u64 {
        let other = self.rows_of.iter().find(|(text, _)| path.contains(text));
        other.map_or(self.rows, |(_, rows)| *rows)
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        self.prefixes.iter().any(|p| path.starts_with(p.as_str()))
    }
}

impl ModelShape {
    /// The parameters of a module, of which none is initialised.
    pub fn of<M: burn::module::Module>(
        name: impl Into<String>,
        module: &M,
        heads: Vec<String>,
        parts: Vec<PartShape>,
    ) -> Self {
        Self {
            name: name.into(),
            params: crate::groups::float_params(module),
            quantized: BTreeMap::new(),
            heads,
            parts,
        }
    }
}
