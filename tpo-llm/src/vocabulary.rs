//! New tokens on an existing base, and whether task tokens, tokenizer and weights fit.
//!
//! A [`TokenPlan`] says which id each token gets and where its row comes from;
//! [`TokenPlan::apply`] adds the tokens to the tokenizer and the rows to the model. What is then
//! written opens again with the same ids: [`Tokenizer::write_added`] puts the tokens into
//! `tokenizer.json`. [`check`] looks at all three together and belongs wherever a model is opened,
//! trained or written.

use std::collections::BTreeMap;
use std::fmt;

use crate::decoder::{CausalLm, VocabularyRows};
use crate::error::{LlmError, Result};
use crate::tokenizer::{AddedToken, Tokenizer};

/// Where the row of a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowSource {
    /// The tokenizer has the token and the tables have its row, which stays as it is.
    Present,
    /// A row that the tables have and no token used; it becomes the mean of the used rows.
    Spare,
    /// A row by which the tables grow, the mean of the used rows.
    Grown,
}

/// A token, its id and its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedToken {
    /// The string.
    pub token: String,
    /// Its id.
    pub id: u32,
    /// Where its row comes from.
    pub row: RowSource,
}

/// Places of tokens in the vocabulary of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPlan {
    /// The tokens in the order they were given in, each once.
    pub tokens: Vec<PlacedToken>,
    /// What their rows ask of the model.
    pub rows: VocabularyRows,
}

impl TokenPlan {
    /// Finds a place for every token: the id it has, else the next id after the tokenizer's last.
    /// Nothing is changed. `table_rows` are the rows of the embedding table
    /// ([`CausalLm::table_rows`]).
    pub fn new<'t>(
        tokenizer: &Tokenizer,
        table_rows: usize,
        tokens: impl IntoIterator<Item = &'t str>,
    ) -> Self {
        let used = tokenizer.vocab_size().min(table_rows);
        let mut rows = VocabularyRows { used, total: used };
        let mut next = tokenizer.vocab_size() as u32;
        let mut placed: Vec<PlacedToken> = Vec::new();
        for token in tokens {
            if placed.iter().any(|p| p.token == token) {
                continue;
            }
            let id = tokenizer.token_to_id(token).unwrap_or(next);
            next = next.max(id.saturating_add(1));
            let at = id as usize;
            let row = match (at < used, at < table_rows) {
                (true, _) => RowSource::Present,
                (false, true) => RowSource::Spare,
                (false, false) => RowSource::Grown,
            };
            rows.total = rows.total.max(at + 1);
            placed.push(PlacedToken {
                token: token.to_string(),
                id,
                row,
            });
        }
        Self {
            tokens: placed,
            rows,
        }
    }

    /// Adds the tokens to the tokenizer that the plan was made for, and their rows to the model.
    ///
    /// # Errors
    /// [`LlmError::Vocabulary`] when the tokenizer gives a token another id, which a tokenizer with
    /// gaps between its ids does; those of [`Tokenizer::add_tokens`] and
    /// [`CausalLm::with_vocabulary`].
    pub fn apply(&self, tokenizer: &mut Tokenizer, lm: CausalLm) -> Result<CausalLm> {
        let new: Vec<AddedToken> = self
            .tokens
            .iter()
            .filter(|t| tokenizer.token_to_id(&t.token).is_none())
            .map(|t| AddedToken::new(t.token.as_str()))
            .collect();
        tokenizer.add_tokens(&new)?;
        let lm = lm.with_vocabulary(self.rows)?;
        check(self.ids(), tokenizer, &lm)?;
        Ok(lm)
    }

    /// Every token with its id, in order.
    pub fn ids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|t| (t.token.as_str(), t.id))
    }
}

/// One token a line: `<point_begin>: id 49152, a new row`.
impl fmt::Display for TokenPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, PlacedToken { token, id, row }) in self.tokens.iter().enumerate() {
            let row = match row {
                RowSource::Present => "the row it has",
                RowSource::Spare => "a spare row",
                RowSource::Grown => "a new row",
            };
            let end = if i > 0 { "\n" } else { "" };
            write!(f, "{end}{token}: id {id}, {row}")?;
        }
        Ok(())
    }
}

/// Checks that every task token is in the tokenizer under the registry's id, has a row in the
/// embedding table and in the output layer, and shares its id with no other token.
///
/// `tokens` are those of the registry: `registry.tokens().map(|t| (t.token.as_str(), t.id))`.
///
/// # Errors
/// [`LlmError::Vocabulary`] with every problem.
pub fn check<'t>(
    tokens: impl IntoIterator<Item = (&'t str, u32)>,
    tokenizer: &Tokenizer,
    lm: &CausalLm,
) -> Result<()> {
    let problems = problems(tokens, tokenizer, lm.table_rows());
    if problems.is_empty() {
        Ok(())
    } else {
        Err(LlmError::Vocabulary { problems })
    }
}

/// What [`check`] finds, for tables of `[embedding, output]` rows; empty when all is well.
pub fn problems<'t>(
    tokens: impl IntoIterator<Item = (&'t str, u32)>,
    tokenizer: &Tokenizer,
    [embedding, output]: [usize; 2],
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut owners: BTreeMap<u32, &str> = BTreeMap::new();
    for (token, id) in tokens {
        if let Some(other) = owners.insert(id, token) {
            problems.push(format!(
                "`{other}` and `{token}` have one id, {id}; give each task token of the registry an \
                 id of its own"
            ));
        }
        match tokenizer.token_to_id(token) {
            Some(found) if found == id => {}
            Some(found) => problems.push(format!(
                "`{token}` has id {id} in the registry and {found} in the tokenizer; take the \
                 tokenizer that was written with this model, or register the token under {found}"
            )),
            None => {
                let taken = tokenizer
                    .id_to_token(id)
                    .map(|other| format!(", and its id {id} is there the token `{other}`"));
                problems.push(format!(
                    "`{token}` (id {id}) is not in the tokenizer{}; add it (TokenPlan::apply), or \
                     take the tokenizer that was written with this model",
                    taken.unwrap_or_default()
                ));
            }
        }
        for (rows, of) in [(embedding, "embedding table"), (output, "output layer")] {
            if id as usize >= rows {
                problems.push(format!(
                    "`{token}` has id {id} and the {of} {rows} rows; add rows \
                     (CausalLm::with_vocabulary), or open the weights that were trained with this \
                     token"
                ));
            }
        }
    }
    problems
}
