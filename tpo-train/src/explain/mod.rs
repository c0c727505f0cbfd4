//! What a recipe would do, from the shapes of its model alone.

mod flow;
mod memory;
mod shape;
mod show;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

pub use memory::MemoryEstimate;
pub use shape::{AttentionShape, ModelShape, PartShape};

use crate::adapters::adapters_in;
use crate::error::{Result, TrainError};
use crate::groups::{ResolvedGroups, ResolvedParam};
use crate::recipe::{Recipe, SourceSpec};
use crate::stage::{Stage, StageLength};
use memory::memory;

/// One stage, looked up in a model.
#[derive(Debug, Clone, PartialEq)]
pub struct StageExplanation {
    /// The stage.
    pub stage: Stage,
    /// What learns and what is frozen.
    pub groups: ResolvedGroups,
    /// Trainable values per part of the model.
    pub trainable_of: Vec<(String, u64)>,
    /// Samples per epoch, where the number of rows of every source is known.
    pub samples: Option<u64>,
    /// Optimizer steps, when the length or the number of samples is known.
    pub steps: Option<u64>,
    /// Whether it begins with new adapters, those before it merged into the weights.
    pub new_adapters: bool,
    /// Memory.
    pub memory: MemoryEstimate,
}

/// What a recipe does; `Display` is the text of `tpo train --explain`.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Name of the recipe.
    pub recipe: String,
    /// What the model is.
    pub model: String,
    /// Number of its values.
    pub parameters: u64,
    /// Seed of the run.
    pub seed: u64,
    /// The stages.
    pub stages: Vec<StageExplanation>,
}

impl Recipe {
    /// Looks the recipe up in a model and estimates what it takes. `staged` are the shapes of the
    /// model in each stage, which has other adapters there, or other lengths of the samples; stages
    /// without one have that of `model`. `rows` knows how many rows a source has, if that is known.
    ///
    /// # Errors
    /// [`TrainError::InvalidRecipe`] with every problem of every stage: patterns that match
    /// nothing, parameters of two groups, heads that the model does not have.
    pub fn explain(
        &self,
        model: &ModelShape,
        staged: &[ModelShape],
        rows: &dyn Fn(&SourceSpec) -> Option<u64>,
    ) -> Result<Explanation> {
        let mut problems = self.problems();
        let mut stages = Vec::new();
        let mut before = adapters_in(&model.params);
        for (i, stage) in self.stages.iter().enumerate() {
            let model = staged.get(i).unwrap_or(model);
            let adapters = adapters_in(&model.params);
            let new_adapters = stage.lora.is_some() && adapters != before;
            before = adapters;
            let at = format!("stages[{i}] `{}`", stage.name);
            let known: BTreeSet<&str> = model.heads.iter().map(String::as_str).collect();
            for name in stage.loss.heads.keys() {
                if !known.contains(name.as_str()) {
                    let hint = crate::suggest::near(name, known.iter().copied())
                        .map_or(String::new(), |n| format!(", did you mean `{n}`?"));
                    problems.push(format!(
                        "{at}.loss.heads: the model has no head `{name}`{hint}"
                    ));
                }
            }
            match stage.resolve_params(model.params.clone()) {
                Ok(groups) => {
                    problems.extend(quantized_problems(&at, &groups, model));
                    stages.push(StageExplanation {
                        new_adapters,
                        ..explained(stage, groups, model, rows, self.writes_within(stage))
                    });
                }
                Err(TrainError::Groups { problems: more }) => {
                    problems.extend(more.iter().map(|p| format!("{at}: {p}")));
                }
                Err(other) => return Err(other),
            }
        }
        if !problems.is_empty() {
            return Err(TrainError::InvalidRecipe {
                origin: format!("recipe `{}` for the model {}", self.name, model.name),
                problems,
            });
        }
        let count = |p: &ResolvedParam| p.num_values() as u64;
        Ok(Explanation {
            recipe: self.name.clone(),
            model: model.name.clone(),
            parameters: model.params.iter().map(count).sum(),
            seed: self.seed,
            stages,
        })
    }
}

/// Groups that name weights which are quantised.
fn quantized_problems<'a>(
    at: &'a str,
    groups: &'a ResolvedGroups,
    model: &'a ModelShape,
) -> impl Iterator<Item = String> + 'a {
    groups.groups.iter().filter_map(move |group| {
        let mut params = group.params.iter().map(|p| &p.path);
        let path = params.find(|path| model.quantized.contains_key(*path))?;
        Some(format!(
            "{at}: group `{}`: `{path}` is quantised and cannot learn; let adapters learn \
             (`model.lora`, `llm.**.lora.*`), or leave out model.quantize",
            group.name
        ))
    })
}

fn explained(
    stage: &Stage,
    groups: ResolvedGroups,
    model: &ModelShape,
    rows: &dyn Fn(&SourceSpec) -> Option<u64>,
    writes: bool,
) -> StageExplanation {
    let trainable_of = model
        .parts
        .iter()
        .map(|part| {
            let values = groups.trainable().filter(|p| part.holds(&p.path));
            let n = values.map(|p| p.num_values() as u64).sum();
            (part.name.clone(), n)
        })
        .collect();
    let samples = stage.data.as_ref().and_then(|data| {
        data.sources
            .iter()
            .map(|source| {
                let rows = source
                    .synthetic
                    .as_ref()
                    .map(|s| s.rows)
                    .or_else(|| rows(source))?;
                let limited = rows.min(source.limit.unwrap_or(u64::MAX));
                Some(limited.saturating_mul(source.repeat))
            })
            .sum::<Option<u64>>()
    });
    let steps = match stage.length {
        StageLength::Steps(n) => Some(n),
        StageLength::Epochs(n) => samples.map(|s| {
            // As the trainer counts: epochs are whole micro-batches, and rounded up to whole steps.
            s.div_ceil(stage.batch_size.max(1) as u64)
                .saturating_mul(n)
                .div_ceil(stage.accumulation.max(1) as u64)
                .max(1)
        }),
    };
    StageExplanation {
        new_adapters: false,
        memory: memory(stage, &groups, model, writes),
        stage: stage.clone(),
        groups,
        trainable_of,
        samples,
        steps,
    }
}
