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
    /// Values of the pictures of a sample.
    pub pixels: u64,
    /// Bytes that come and go between steps: of a tower that only evaluations run, say.
    pub between: u64,
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
    /// Of these parameters, those whose layers all read the same rows.
    pub shared: Vec<String>,
    /// Whether its blocks can be computed again in the backward pass.
    pub checkpointed: bool,
    /// Its attention layers.
    pub attention: Vec<AttentionShape>,
    /// Whether its adapters drop some of what they read.
    pub dropout: bool,
    /// Values of the pictures that enter it per sample, which convolutions cut into patches.
    pub pixels: u64,
    /// Logits that the loss reads per sample.
    pub logits: u64,
    /// Bytes per sample that come and go in it besides: of a frozen tower, say.
    pub scratch: u64,
}

/// Attention layers of one size, for one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// How many there are.
    pub layers: u64,
    /// Heads of each.
    pub heads: u64,
    /// Rows that ask.
    pub queries: u64,
    /// Rows that are looked at.
    pub keys: u64,
    /// Width of what all heads give together.
    pub width: u64,
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
            shared: Vec::new(),
            checkpointed: false,
            attention: Vec::new(),
            dropout: false,
            pixels: 0,
            logits: 0,
            scratch: 0,
        }
    }

    /// Sets the rows of the parameters whose path holds `text`.
    pub fn with_rows_of(mut self, text: &str, rows: usize) -> Self {
        self.rows_of.push((text.into(), rows as u64));
        self
    }

    /// As [`PartShape::with_rows_of`], for layers that all read the same rows.
    pub fn with_shared_rows_of(mut self, text: &str, rows: usize) -> Self {
        self.shared.push(text.into());
        self.with_rows_of(text, rows)
    }

    /// Its blocks can be computed again.
    pub fn with_checkpointed_blocks(mut self) -> Self {
        self.checkpointed = true;
        self
    }

    /// Adds attention layers: how many, their heads, the rows that ask and those that are looked at, and
    /// the width of what all heads give together.
    pub fn with_attention(
        mut self,
        layers: usize,
        heads: usize,
        [queries, keys]: [usize; 2],
        width: usize,
    ) -> Self {
        self.attention.push(AttentionShape {
            layers: layers as u64,
            heads: heads as u64,
            queries: queries as u64,
            keys: keys as u64,
            width: width as u64,
        });
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
            pixels: 0,
            between: 0,
            heads,
            parts,
        }
    }
}
