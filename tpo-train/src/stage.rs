//! Stages of training and the plan that orders them.

use burn::module::Module;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::groups::{ParamGroupSpec, ResolvedGroups, ResolvedParam, resolve_named, resolve_params};
use crate::loss::LossWeights;
use crate::names::HeadNames;
use crate::recipe::{EvaluationSpec, LoraSpec, MixtureSpec};
use crate::schedule::LrSchedule;

/// Stages in order. Each starts from the weights at which the one before it ended.
///
/// ```
/// use tpo_train::StagePlan;
///
/// let plan = StagePlan::from_toml(
///     r#"
///     [[stages]]
///     name = "heads"
///     length = { epochs = 3 }
///     batch_size = 4
///     accumulation = 8
///     weight_decay = 0.02
///     clip_norm = 1.0
///     precision = "bf16"
///     schedule = { decay = "cosine", warmup_ratio = 0.2, floor = 0.05 }
///     loss = { heads = { region = { terms = { giou = 0.5 } } } }
///
///     [[stages.groups]]
///     name = "heads"
///     patterns = ["heads.**", "task_tokens.**"]
///     learning_rate = 1e-4
///     "#,
///     "recipe.toml",
/// )?;
/// assert_eq!(plan.stages[0].total_batch(), 32);
/// # Ok::<(), tpo_train::TrainError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// The stages.
    pub stages: Vec<Stage>,
}

/// One run of the optimizer: what learns, for how long, against which loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name, unique in the plan: letters, digits, `-`, `_`. Checkpoints and logs carry it.
    pub name: String,
    /// When it ends.
    pub length: StageLength,
    /// Samples per forward pass (micro-batch).
    pub batch_size: usize,
    /// Micro-batches per optimizer step; their gradients are averaged.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Weight decay of the groups that give none.
    #[serde(default)]
    pub weight_decay: f64,
    /// Bound on the L2 norm of all gradients together, applied after accumulation; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Number format of weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// Learning rate over time, for all groups.
    #[serde(default)]
    pub schedule: LrSchedule,
    /// Constants of the optimizer.
    #[serde(default)]
    pub adamw: AdamW,
    /// Factors of the losses.
    #[serde(default)]
    pub loss: LossWeights,
    /// What it learns from; absent: what the program gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<MixtureSpec>,
    /// Held-out samples it is evaluated on; absent: none, unless the program evaluates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationSpec>,
    /// How often it is evaluated; absent: at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<StageLength>,
    /// How often a checkpoint is written; absent: at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<StageLength>,
    /// Adapters of the language model from this stage on; absent: as before it. Another dropout or
    /// alpha applies to those that are there, without a change of what the model computes. Another
    /// rank or other targets add the old adapters to the weights and start new ones, drawn from the
    /// stage's seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSpec>,
    /// Seed of this stage; absent: the recipe's plus the stage's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What learns. Parameters of no group are frozen.
    pub groups: Vec<ParamGroupSpec>,
}

/// When a stage ends: `{ epochs = 3 }` or `{ steps = 1000 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageLength {
    /// Passes over the training data.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
}

/// Number format of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 (paper, Table 17). Norm statistics, softmax, losses and the optimizer's state stay
    /// in 32 bits.
    Bf16,
}

/// Constants of AdamW. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
        }
    }
}

impl StagePlan {
    /// Reads a plan and validates it. `origin` names the text in messages, for example the file.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] for text that is not a plan: a syntax error, a field that does not
    /// exist, is missing or has another type. [`TrainError::InvalidPlan`] as by
    /// [`StagePlan::validate`].
    pub fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let plan: Self = toml::from_str(text).map_err(|e| recipe_error(origin, e))?;
        plan.validate()?;
        Ok(plan)
    }

    /// The plan as TOML, every field written out; [`StagePlan::from_toml`] reads it back.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] when a number is too large for TOML (64-bit signed).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| recipe_error("this plan as TOML", e))
    }

    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.name == name)
    }

    /// Checks all values.
    ///
    /// # Errors
    /// [`TrainError::InvalidPlan`] with every problem of every stage.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.stages.is_empty() {
            problems.push("stages is empty".to_string());
        }
        for (i, stage) in self.stages.iter().enumerate() {
            let at = format!("stages[{i}] `{}`", stage.name);
            if self.stages[..i].iter().any(|s| s.name == stage.name) {
                problems.push(format!("{at}: an earlier stage has this name"));
            }
            stage.problems(&at, &mut problems);
        }
        valid(problems)
    }
}

impl Stage {
    /// A stage of single samples, without accumulation, decay, clipping or warm-up, in f32; set
    /// the other fields as needed.
    pub fn new(name: impl Into<String>, length: StageLength, groups: Vec<ParamGroupSpec>) -> Self {
        Self {
            name: name.into(),
            length,
            batch_size: 1,
            accumulation: 1,
            weight_decay: 0.0,
            clip_norm: None,
            precision: Precision::default(),
            schedule: LrSchedule::default(),
            adamw: AdamW::default(),
            loss: LossWeights::default(),
            data: None,
            evaluation: None,
            evaluate_every: None,
            checkpoint_every: None,
            lora: None,
            seed: None,
            groups,
        }
    }

    /// Samples per optimizer step: `batch_size · accumulation`.
    pub fn total_batch(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulation)
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&ParamGroupSpec> {
        self.groups.iter().find(|g| g.name == name)
    }

    /// Checks all values of this stage.
    ///
    /// # Errors
    /// [`TrainError::InvalidPlan`] with every problem.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        self.problems(&format!("stage `{}`", self.name), &mut problems);
        valid(problems)
    }

    /// Looks the groups up in `module`; groups without a weight decay get the stage's.
    ///
    /// # Errors
    /// As [`resolve`](crate::resolve).
    pub fn resolve<M: Module>(&self, module: &M) -> Result<ResolvedGroups> {
        self.resolve_named(module, &HeadNames::default())
    }

    /// [`Stage::resolve`] with patterns that may call heads and task tokens by name.
    ///
    /// # Errors
    /// As [`resolve_named`].
    pub fn resolve_named<M: Module>(
        &self,
        module: &M,
        names: &HeadNames,
    ) -> Result<ResolvedGroups> {
        Ok(self.with_decay(resolve_named(module, &self.groups, names)?))
    }

    /// [`Stage::resolve_named`] on a list of parameters in place of a module.
    ///
    /// # Errors
    /// As [`resolve_params`].
    pub fn resolve_params(
        &self,
        params: Vec<ResolvedParam>,
        names: &HeadNames,
    ) -> Result<ResolvedGroups> {
        Ok(self.with_decay(resolve_params(params, &self.groups, names)?))
    }

    fn with_decay(&self, mut groups: ResolvedGroups) -> ResolvedGroups {
        for group in &mut groups.groups {
            group.weight_decay.get_or_insert(self.weight_decay);
        }
        groups
    }

    fn problems(&self, at: &str, problems: &mut Vec<String>) {
        let in_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(in_name) {
            problems.push(format!(
                "{at}.name must be letters, digits, `-` and `_`, and not empty"
            ));
        }
        let mut counts = Vec::new();
        for (field, length) in [
            ("length", Some(self.length)),
            ("evaluate_every", self.evaluate_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            match length {
                Some(StageLength::Epochs(n)) => counts.push((format!("{field}.epochs"), n == 0)),
                Some(StageLength::Steps(n)) => counts.push((format!("{field}.steps"), n == 0)),
                None => {}
            }
        }
        counts.push(("batch_size".to_string(), self.batch_size == 0));
        counts.push(("accumulation".to_string(), self.accumulation == 0));
        for (field, zero) in counts {
            if zero {
                problems.push(format!("{at}.{field} is 0; must be at least 1"));
            }
        }
        if self.batch_size.checked_mul(self.accumulation).is_none() {
            problems.push(format!("{at}: batch_size times accumulation is too large"));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            problems.push(format!(
                "{at}.weight_decay is {}; must be 0 or more and finite",
                self.weight_decay
            ));
        }
        if let Some(norm) = self.clip_norm
            && !(norm.is_finite() && norm > 0.0)
        {
            problems.push(format!(
                "{at}.clip_norm is {norm}; must be above 0 and finite (leave it out to not clip)"
            ));
        }
        self.schedule.problems(&format!("{at}.schedule"), problems);
        self.adamw.problems(&format!("{at}.adamw"), problems);
        self.loss.problems(&format!("{at}.loss"), problems);
        if let Some(data) = &self.data {
            data.problems(&format!("{at}.data"), problems);
        }
        if let Some(evaluation) = &self.evaluation {
            evaluation.problems(&format!("{at}.evaluation"), problems);
        }
        if let Some(lora) = &self.lora {
            lora.problems(&format!("{at}.lora"), problems);
        }
        if self.groups.is_empty() {
            problems.push(format!("{at}.groups is empty: nothing would learn"));
        }
        for (i, group) in self.groups.iter().enumerate() {
            let at = format!("{at}.groups[{i}] `{}`", group.name);
            if self.groups[..i].iter().any(|g| g.name == group.name) {
                problems.push(format!("{at}: an earlier group has this name"));
            }
            group.problems(&at, problems);
        }
    }
}

impl AdamW {
    fn problems(&self, at: &str, problems: &mut Vec<String>) {
        for (field, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            if !(0.0..1.0).contains(&beta) {
                problems.push(format!(
                    "{at}.{field} is {beta}; must be at least 0 and below 1"
                ));
            }
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            problems.push(format!(
                "{at}.epsilon is {}; must be above 0 and finite",
                self.epsilon
            ));
        }
    }
}

fn one() -> usize {
    1
}

fn valid(problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(TrainError::InvalidPlan { problems })
    }
}

fn recipe_error(origin: &str, error: impl std::fmt::Display) -> TrainError {
    TrainError::Recipe {
        origin: origin.to_string(),
        message: error.to_string().trim_end().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::LinearConfig;
    use burn::tensor::Device;

    const SMALLEST: &str = r#"
        [[stages]]
        name = "a"
        length = { steps = 10 }
        batch_size = 2

        [[stages.groups]]
        name = "all"
        patterns = ["**"]
        learning_rate = 1e-3
    "#;

    fn refused(text: &str) -> String {
        StagePlan::from_toml(text, "r.toml")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn defaults() {
        let plan = StagePlan::from_toml(SMALLEST, "r.toml").unwrap();
        let stage = plan.stage("a").unwrap();
        assert_eq!(stage.length, StageLength::Steps(10));
        assert_eq!((stage.accumulation, stage.total_batch()), (1, 2));
        assert_eq!((stage.weight_decay, stage.clip_norm), (0.0, None));
        assert_eq!(stage.precision, Precision::F32);
        assert_eq!(stage.schedule, LrSchedule::default());
        assert_eq!(stage.loss, LossWeights::default());
        let (b1, b2, eps) = (stage.adamw.beta_1, stage.adamw.beta_2, stage.adamw.epsilon);
        assert_eq!((b1, b2, eps), (0.9, 0.999, 1e-8));
        let again = StagePlan::from_toml(&plan.to_toml().unwrap(), "again").unwrap();
        assert_eq!(again, plan);
    }

    #[test]
    fn unknown_and_missing_fields_are_errors_with_their_line() {
        for (from, to, says) in [
            ("batch_size = 2", "batchsize = 2", "batchsize"),
            ("batch_size = 2", "", "missing field `batch_size`"),
            ("batch_size = 2", "batch_size = -2", "-2"),
            ("steps = 10", "steps = 10, epochs = 1", "epochs"),
            ("steps = 10", "hours = 10", "hours"),
            ("patterns", "pattern", "pattern"),
            (
                "batch_size = 2",
                "batch_size = 2\nschedule.warmup = 1",
                "warmup",
            ),
            ("batch_size = 2", "batch_size = 2\nprecision = \"f8\"", "f8"),
            (
                "batch_size = 2",
                "batch_size = 2\nloss.heads.r.wight = 1",
                "wight",
            ),
        ] {
            assert!(SMALLEST.contains(from));
            let text = refused(&SMALLEST.replace(from, to));
            assert!(
                text.starts_with("r.toml: TOML parse error at line"),
                "{text}"
            );
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn all_problems_at_once() {
        let text = r#"
            [[stages]]
            name = "a b"
            length = { epochs = 0 }
            batch_size = 0
            accumulation = 0
            weight_decay = -0.1
            clip_norm = 0.0
            schedule = { warmup_ratio = 2.0 }
            adamw = { beta_1 = 1.0, epsilon = 0.0 }
            loss = { language = -1.0 }
            groups = []

            [[stages]]
            name = "b"
            length = { steps = 1 }
            batch_size = 1
            [[stages.groups]]
            name = ""
            patterns = ["!x", "a..b"]
            learning_rate = 0.0
            weight_decay = nan
            [[stages.groups]]
            name = ""
            patterns = []
            learning_rate = inf

            [[stages]]
            name = "b"
            length = { steps = 1 }
            batch_size = 1
            [[stages.groups]]
            name = "g"
            patterns = ["**"]
            learning_rate = 1.0
        "#;
        let Err(TrainError::InvalidPlan { problems }) = StagePlan::from_toml(text, "r") else {
            panic!("must be refused as a plan");
        };
        let starts = [
            "stages[0] `a b`.name must be",
            "stages[0] `a b`.length.epochs is 0",
            "stages[0] `a b`.batch_size is 0",
            "stages[0] `a b`.accumulation is 0",
            "stages[0] `a b`.weight_decay is -0.1",
            "stages[0] `a b`.clip_norm is 0",
            "stages[0] `a b`.schedule.warmup_ratio is 2",
            "stages[0] `a b`.adamw.beta_1 is 1",
            "stages[0] `a b`.adamw.epsilon is 0",
            "stages[0] `a b`.loss.language is -1",
            "stages[0] `a b`.groups is empty",
            "stages[1] `b`.groups[0] ``.name is empty",
            "stages[1] `b`.groups[0] ``.patterns: `a..b` has an empty segment",
            "stages[1] `b`.groups[0] ``.learning_rate is 0",
            "stages[1] `b`.groups[0] ``.weight_decay is NaN",
            "stages[1] `b`.groups[1] ``: an earlier group",
            "stages[1] `b`.groups[1] ``.name is empty",
            "stages[1] `b`.groups[1] ``.patterns: needs a pattern",
            "stages[1] `b`.groups[1] ``.learning_rate is inf",
            "stages[2] `b`: an earlier stage has this name",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}, want {start}");
        }
        assert!(refused("stages = []").contains("1 problem:\n  - stages is empty"));
    }

    #[test]
    fn groups_without_weight_decay_get_the_stages() {
        let mut plan = StagePlan::from_toml(SMALLEST, "r").unwrap();
        let stage = &mut plan.stages[0];
        stage.weight_decay = 0.02;
        stage.groups = vec![
            ParamGroupSpec::new("w", ["weight"], 1e-3),
            ParamGroupSpec {
                weight_decay: Some(0.0),
                ..ParamGroupSpec::new("b", ["bias"], 1e-3)
            },
        ];
        let groups = stage
            .resolve(&LinearConfig::new(2, 3).init(&Device::flex()))
            .unwrap();
        let decay: Vec<_> = groups.groups.iter().map(|g| g.weight_decay).collect();
        assert_eq!(decay, [Some(0.02), Some(0.0)]);
    }
}
