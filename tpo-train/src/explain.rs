//! What a recipe would do, from the shapes of its model alone.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::error::{Result, TrainError};
use crate::groups::{ResolvedGroups, ResolvedParam};
use crate::names::HeadNames;
use crate::recipe::{Recipe, SourceSpec};
use crate::stage::{Precision, Stage, StageLength};

/// The shape of a model, enough to explain a recipe for it.
#[derive(Debug, Clone)]
pub struct ModelShape {
    /// What it is, for the heading.
    pub name: String,
    /// Every floating-point parameter; see [`ModelShape::of`].
    pub params: Vec<ResolvedParam>,
    /// Names of the heads in order.
    pub heads: HeadNames,
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
        }
    }

    /// Sets the rows of the parameters whose path holds `text`.
    pub fn with_rows_of(mut self, text: &str, rows: usize) -> Self {
        self.rows_of.push((text.into(), rows as u64));
        self
    }

    fn rows(&self, path: &str) -> u64 {
        let other = self.rows_of.iter().find(|(text, _)| path.contains(text));
        other.map_or(self.rows, |(_, rows)| *rows)
    }

    fn holds(&self, path: &str) -> bool {
        self.prefixes.iter().any(|p| path.starts_with(p.as_str()))
    }
}

impl ModelShape {
    /// The parameters of a module, of which none is initialised.
    pub fn of<M: burn::module::Module>(
        name: impl Into<String>,
        module: &M,
        heads: HeadNames,
        parts: Vec<PartShape>,
    ) -> Self {
        Self {
            name: name.into(),
            params: crate::groups::float_params(module),
            heads,
            parts,
        }
    }
}

/// Bytes of a training step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// All parameters in the stage's precision.
    pub weights: u64,
    /// Gradients of the trainable ones, 32-bit.
    pub gradients: u64,
    /// Two moments per trainable value, and in bf16 a 32-bit copy of the value.
    pub optimizer: u64,
    /// What the backward pass needs of one micro-batch: input and output of every linear map from
    /// the first trainable part on. A rough figure; norms and activation functions come on top, and
    /// attention without a fused kernel.
    pub activations: u64,
}

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights
            .saturating_add(self.gradients)
            .saturating_add(self.optimizer)
            .saturating_add(self.activations)
    }
}

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
    /// Memory.
    pub memory: MemoryEstimate,
}

/// What a recipe does; `Display` is the text of `train --explain`.
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
    /// Looks the recipe up in a model and estimates what it takes. `rows` knows how many rows a
    /// source has, if that is known.
    ///
    /// # Errors
    /// [`TrainError::InvalidRecipe`] with every problem of every stage: patterns that match
    /// nothing, parameters of two groups, heads that the model does not have.
    pub fn explain(
        &self,
        model: &ModelShape,
        rows: &dyn Fn(&SourceSpec) -> Option<u64>,
    ) -> Result<Explanation> {
        let mut problems = self.problems();
        let mut stages = Vec::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let at = format!("stages[{i}] `{}`", stage.name);
            let known: BTreeSet<&str> = model.heads.names().collect();
            for name in stage.loss.heads.keys() {
                if !known.contains(name.as_str()) {
                    let hint = crate::suggest::near(name, known.iter().copied())
                        .map_or(String::new(), |n| format!(", did you mean `{n}`?"));
                    problems.push(format!(
                        "{at}.loss.heads: the model has no head `{name}`{hint}"
                    ));
                }
            }
            match stage.resolve_params(model.params.clone(), &model.heads) {
                Ok(groups) => stages.push(explained(stage, groups, model, rows)),
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

fn explained(
    stage: &Stage,
    groups: ResolvedGroups,
    model: &ModelShape,
    rows: &dyn Fn(&SourceSpec) -> Option<u64>,
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
            s.div_ceil(stage.total_batch().max(1) as u64)
                .saturating_mul(n)
        }),
    };
    StageExplanation {
        memory: memory(stage, &groups, model),
        stage: stage.clone(),
        groups,
        trainable_of,
        samples,
        steps,
    }
}

fn memory(stage: &Stage, groups: &ResolvedGroups, model: &ModelShape) -> MemoryEstimate {
    let (width, master) = match stage.precision {
        Precision::F32 => (4, 0),
        Precision::Bf16 => (2, 4),
    };
    let trainable = groups.num_trainable() as u64;
    let all = trainable + groups.num_frozen() as u64;
    // Gradients flow back to the first part that learns anything, and no further.
    let first = model
        .parts
        .iter()
        .position(|part| groups.trainable().any(|p| part.holds(&p.path)))
        .unwrap_or(model.parts.len());
    let values: u64 = model.parts[first..]
        .iter()
        .map(|part| {
            let held = model.params.iter().filter(|p| part.holds(&p.path));
            held.map(|p| kept_per_row(p).saturating_mul(part.rows(&p.path)))
                .sum::<u64>()
        })
        .sum();
    MemoryEstimate {
        weights: all * width,
        gradients: trainable * 4,
        optimizer: trainable * (8 + master),
        activations: values
            .saturating_mul(stage.batch_size as u64)
            .saturating_mul(width),
    }
}

/// Values per row that the backward pass keeps of a linear map `[out, in]`.
fn kept_per_row(param: &ResolvedParam) -> u64 {
    let [out, input] = param.shape[..] else {
        return 0;
    };
    let path = &param.path;
    if path.ends_with(".lora.a") || path.ends_with(".lora.b") {
        // The input of the pair is that of the layer it adapts.
        out as u64
    } else if path.ends_with(".weight")
        && !path.contains("embed_tokens")
        && !path.contains("embeddings")
    {
        (out + input) as u64
    } else {
        0
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            recipe,
            model,
            seed,
            ..
        } = self;
        write!(
            f,
            "{recipe}: {model}, {} parameters, seed {seed}",
            thousands(self.parameters)
        )?;
        for (i, stage) in self.stages.iter().enumerate() {
            write!(f, "\n\nstage {}/{}: {stage}", i + 1, self.stages.len())?;
        }
        Ok(())
    }
}

impl fmt::Display for StageExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = &self.stage;
        writeln!(f, "{}", stage.name)?;
        let length = match stage.length {
            StageLength::Epochs(1) => "1 epoch".to_string(),
            StageLength::Epochs(n) => format!("{n} epochs"),
            StageLength::Steps(n) => format!("{} steps", thousands(n)),
        };
        let of = match self.samples {
            Some(n) => format!(" of {} samples", thousands(n)),
            None => " of a number of samples that is not known yet".into(),
        };
        write!(f, "  length     {length}")?;
        if let StageLength::Epochs(_) = stage.length {
            f.write_str(&of)?;
            if let Some(steps) = self.steps {
                write!(f, " = {} steps", thousands(steps))?;
            }
        }
        if let Some(steps) = self.steps {
            let warmup = stage.schedule.warmup_steps(steps);
            write!(f, ", {} of them warm-up", thousands(warmup))?;
        }
        writeln!(
            f,
            "\n  batch      {} = {} samples x {} micro-batches",
            stage.total_batch(),
            stage.batch_size,
            stage.accumulation
        )?;
        let schedule = &stage.schedule;
        writeln!(
            f,
            "  schedule   {}, warm-up {} of the steps, never below {} of the rate",
            format!("{:?}", schedule.decay).to_lowercase(),
            schedule.warmup_ratio,
            schedule.floor
        )?;
        writeln!(
            f,
            "  optimizer  AdamW {} / {}, epsilon {:e}, {}, {}",
            stage.adamw.beta_1,
            stage.adamw.beta_2,
            stage.adamw.epsilon,
            stage.clip_norm.map_or("no clipping".into(), |n| format!(
                "gradients clipped at norm {n}"
            )),
            format!("{:?}", stage.precision).to_lowercase()
        )?;
        write!(f, "  loss       language x {}", stage.loss.language)?;
        for (name, head) in &stage.loss.heads {
            write!(f, ", {name} x {}", head.weight)?;
            for (term, weight) in &head.terms {
                write!(f, " ({term} {weight})")?;
            }
        }
        match stage.loss.heads.is_empty() {
            true => writeln!(f, ", heads x {}", stage.loss.other_heads)?,
            false => writeln!(f, ", other heads x {}", stage.loss.other_heads)?,
        }
        if let Some(data) = &stage.data {
            write!(f, "  data       ")?;
            for (i, source) in data.sources.iter().enumerate() {
                let comma = if i > 0 { ", " } else { "" };
                write!(f, "{comma}{}", source.name)?;
                if source.weight != 1.0 {
                    write!(f, " x {}", source.weight)?;
                }
                if source.repeat > 1 {
                    write!(f, " ({} times)", source.repeat)?;
                }
            }
            writeln!(f, "; temperature {}", data.temperature)?;
        }
        let learning: Vec<String> = self
            .trainable_of
            .iter()
            .map(|(part, n)| match n {
                0 => format!("{part} frozen"),
                n => format!("{part} {}", thousands(*n)),
            })
            .collect();
        writeln!(f, "  learns     {}", learning.join(", "))?;
        let m = &self.memory;
        writeln!(
            f,
            "  memory     {} = weights {} + gradients {} + optimizer {} + activations about {}",
            gib(m.total()),
            gib(m.weights),
            gib(m.gradients),
            gib(m.optimizer),
            gib(m.activations)
        )?;
        for (i, line) in self.groups.to_string().lines().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "    {line}")?;
        }
        Ok(())
    }
}

fn thousands(n: u64) -> String {
    crate::groups::thousands(n as usize)
}

fn gib(bytes: u64) -> String {
    let gib = bytes as f64 / (1_u64 << 30) as f64;
    match gib {
        g if g >= 0.1 => format!("{g:.1} GiB"),
        g => format!("{:.1} MiB", g * 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::Device;

    use super::*;

    const RECIPE: &str = r#"
    name = "small"
    model = { preset = "mini" }
    [[stages]]
    name = "heads"
    length = { epochs = 3 }
    batch_size = 2
    accumulation = 4
    precision = "bf16"
    schedule = { warmup_ratio = 0.2 }
    groups = [{ name = "second", patterns = ["1.**"], learning_rate = 1e-4 }]
    [stages.data]
    sources = [
        { name = "made", synthetic = { tasks = ["region"], rows = 10 }, repeat = 2 },
        { name = "read", annotations = "a.jsonl", limit = 7 },
    ]
    "#;

    fn shape() -> ModelShape {
        let device = Device::flex();
        let module = vec![
            LinearConfig::new(3, 5).init(&device),
            LinearConfig::new(5, 2).init(&device),
        ];
        let parts = vec![
            PartShape::new("first", ["0."], 10),
            PartShape::new("second", ["1."], 4),
        ];
        let shape = ModelShape::of("two", &module, HeadNames::new(["region"]), parts);
        assert!(!module[0].weight.is_initialized());
        shape
    }

    #[test]
    fn numbers_worked_by_hand() {
        let recipe = Recipe::read::<&str>(RECIPE, "r", &[]).unwrap();
        let told = recipe.explain(&shape(), &|_| Some(100)).unwrap();
        let stage = &told.stages[0];
        // 15 + 5 and 10 + 2
        assert_eq!(told.parameters, 32);
        assert_eq!(
            stage.trainable_of,
            [("first".into(), 0), ("second".into(), 12)]
        );
        // 10 · 2 + 7 samples in batches of 8, three times.
        assert_eq!((stage.samples, stage.steps), (Some(27), Some(12)));
        let memory = MemoryEstimate {
            weights: 64,
            gradients: 48,
            optimizer: 144,
            // (5 + 2) values · 4 rows · batch 2 · 2 bytes; the first part is before all that learns
            activations: 112,
        };
        assert_eq!(stage.memory, memory);
        let text = told.to_string();
        for want in [
            "small: two, 32 parameters, seed 42",
            "3 epochs of 27 samples = 12 steps, 3 of them warm-up",
            "8 = 2 samples x 4 micro-batches",
            "first frozen, second 12",
            "second          2          12           1e-4",
        ] {
            assert!(text.contains(want), "{want}:\n{text}");
        }
        let unknown = recipe.explain(&shape(), &|_| None).unwrap();
        assert_eq!(unknown.stages[0].steps, None);
        assert!(unknown.to_string().contains("not known yet"));
    }

    #[test]
    fn problems_of_all_stages_at_once() {
        let mut recipe = Recipe::read::<&str>(RECIPE, "r", &[]).unwrap();
        recipe.stages.push(recipe.stages[0].clone());
        recipe.stages[1].name = "again".into();
        recipe.stages[0].groups[0].patterns = vec!["head:regoin.**".into()];
        recipe.stages[1].groups[0].patterns = vec!["2.**".into()];
        recipe.stages[1]
            .loss
            .heads
            .insert("regin".into(), Default::default());
        let Err(TrainError::InvalidRecipe { problems, .. }) = recipe.explain(&shape(), &|_| None)
        else {
            panic!("must be refused");
        };
        for (problem, want) in problems.iter().zip([
            "stages[0] `heads`: group `second`, pattern `head:regoin.**`: the model has no head",
            "stages[1] `again`.loss.heads: the model has no head `regin`, did you mean `region`?",
            "stages[1] `again`: group `second`, pattern `2.**`: matches no parameter",
        ]) {
            assert!(problem.starts_with(want), "{problem}");
        }
        assert_eq!(problems.len(), 3, "{problems:#?}");
    }
}
