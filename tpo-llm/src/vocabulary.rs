//! New tokens on an existing base, and whether task tokens, tokenizer and weights fit.
//!
//! A [`TokenPlan`] says which id each token gets and where its row comes from;
//! [`TokenPlan::apply`] adds the tokens to the tokenizer and the rows to the model. What is then
//! written opens again with the same ids: [`Tokenizer::write_added`] puts the tokens into
//! `tokenizer.json`. [`check`] looks at all three together and belongs wherever a model is opened,
//! trained or written.

use std::collections::BTreeMap;

use crate::decoder::{CausalLm, VocabularyRows};
use crate::error::{LlmError, Result};
use crate::tokenizer::{AddedToken, Tokenizer};

/// Places of tokens in the vocabulary of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPlan {
    /// The tokens in the order they were given in, each once, with their ids.
    pub tokens: Vec<(String, u32)>,
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
        let mut placed: Vec<(String, u32)> = Vec::new();
        for token in tokens {
            if placed.iter().any(|(other, _)| other == token) {
                continue;
            }
            let id = tokenizer.token_to_id(token).unwrap_or(next);
            next = next.max(id.saturating_add(1));
            rows.total = rows.total.max(id as usize + 1);
            placed.push((token.to_string(), id));
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
            .filter(|(token, _)| tokenizer.token_to_id(token).is_none())
            .map(|(token, _)| AddedToken::new(token.as_str()))
            .collect();
        tokenizer.add_tokens(&new)?;
        let lm = lm.with_vocabulary(self.rows)?;
        check(self.ids(), tokenizer, &lm)?;
        Ok(lm)
    }

    /// Every token with its id, in order.
    pub fn ids(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().map(|(token, id)| (token.as_str(), *id))
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
