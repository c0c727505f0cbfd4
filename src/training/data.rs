//! The data of a recipe's stages: files and the synthetic world, in any mixture.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::module::ParamId;
use burn::tensor::Device;
use tpo_core::head::{HeadSet, TaskHead};
use tpo_core::model::IGNORE_LABEL;
use tpo_core::traits::VisualShape;
use tpo_core::weights::module_params;
use tpo_data::FrameSampling;
use tpo_data::feed::{Cursor, Feed, FeedConfig, FramesConfig, LoaderConfig, OrderConfig};
use tpo_data::prompts::LayoutEncoder;
use tpo_heads::mask::MaskHead;
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::vocabulary;
use tpo_train::recipe::{MixtureSpec, Recipe, SourceSpec};
use tpo_train::trainer::{FeedData, Purpose};
use tpo_train::{ResolvedGroup, ResolvedGroups, ResolvedParam, Stage, TrainError};

use crate::features::{FeatureCache, FeatureFolder, TemporalTowers, TrainingFeatures, readers};
use crate::model::TpoConfig;

/// What opening data needs to know of a model and a run.
#[derive(Debug, Clone)]
pub struct DataContext {
    /// Sizes of the model.
    pub config: TpoConfig,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Towers of the temporal head, for a model that does not use its own parts.
    pub towers: Option<TemporalTowers>,
    /// Keeps video features of those towers.
    pub features: Option<FeatureCache>,
}

impl DataContext {
    /// Without towers.
    pub fn new(config: &TpoConfig, tokenizer: &Arc<Tokenizer>) -> Self {
        Self {
            config: config.clone(),
            tokenizer: tokenizer.clone(),
            towers: None,
            features: None,
        }
    }

    /// What the model reads of a video.
    pub fn frames(&self) -> FramesConfig {
        let input = &self.config.input;
        FramesConfig {
            num_frames: input.frames,
            sampling: input.sampling,
            transform: self.config.transform(),
            squares: self.config.connector.packing().is_some(),
        }
    }

    /// Lays dialogues out as the model reads them.
    ///
    /// # Errors
    /// [`TrainError::InvalidRecipe`] for a tokenizer without an end of text, and for one in which a task
    /// token has another id than the model's: no head would ever be called.
    pub fn encoder(&self) -> tpo_train::Result<LayoutEncoder> {
        refuse(token_problems(&self.config, &self.tokenizer))?;
        let ends = self.config.ends(&self.tokenizer);
        let ends = ends.map_err(|e| invalid(vec![e.to_string()]))?;
        let eos_id = *ends.first().ok_or_else(|| {
            invalid(vec![
                "the model's tokenizer has no end-of-text token; an answer could not end".into(),
            ])
        })?;
        let config = self.config.clone();
        Ok(LayoutEncoder {
            layout: config.prompt.layout(),
            tokenizer: self.tokenizer.clone(),
            eos_id,
            max_tokens: config.max_prompt(),
            slots: Arc::new(move |visual| config.rows(visual)),
        })
    }
}

/// Where the task tokens of a model and those of a tokenizer differ.
pub(super) fn token_problems(config: &TpoConfig, tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = config.tasks.tokens();
    let tokens = tokens.map(|t| (t.token.as_str(), t.id));
    vocabulary::problems(tokens, tokenizer, [config.llm.vocab_size; 2])
}

fn invalid(problems: Vec<String>) -> TrainError {
    TrainError::InvalidRecipe {
        origin: "the recipe's data".into(),
        problems,
    }
}

fn refuse(problems: Vec<String>) -> tpo_train::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(invalid(problems))
}

/// Opens the data of a stage: every file is read once and checked; the heads make what they learn of
/// annotations. For [`Purpose::Evaluate`] nothing is augmented and no frame is
/// random; the order is that of `seed`.
///
/// # Errors
/// [`TrainError::InvalidRecipe`] with every problem of every source: a file that is not there, no
/// usable row, a task the model does not have, a world that cannot be drawn.
pub fn stage_data<H: HeadSet>(
    purpose: Purpose,
    stage: &Stage,
    seed: u64,
    context: &DataContext,
) -> tpo_train::Result<FeedData> {
    let at = format!("stage `{}`", stage.name);
    let Some(data) = &stage.data else {
        return Err(invalid(vec![format!(
            "{at}: has no data; add `data = {{ sources = [..] }}`"
        )]));
    };
    refuse(mixture_problems::<H>(&at, data, context))?;
    let workers = LoaderConfig::default().workers;
    let (feed, learning) = open_feed::<H>(purpose, &at, stage, data, seed, context, workers)?;
    let readers = readers_of::<H>(stage);
    let problems = feed_problems(
        &at,
        stage,
        data,
        &feed,
        learning.as_ref(),
        context,
        &readers,
    );
    refuse(problems)?;
    let data = FeedData::new(feed);
    let folders = stage.data.iter().flat_map(|d| &d.sources);
    let folders = folders.map(|s| s.features.as_ref().map(FeatureFolder::open).transpose());
    let folders: crate::Result<Vec<_>> = folders.collect();
    let features = TrainingFeatures::<H>::new(
        &context.config,
        &context.tokenizer,
        context.towers.as_ref(),
        folders.map_err(|e| invalid(vec![format!("{at}: {e}")]))?,
        context.features.as_ref(),
    );
    Ok(match features {
        Some(features) if !readers.is_empty() => data.with_features(features),
        _ => data,
    })
}

/// The heads that read features in a stage: one whose loss does not count is not run.
fn readers_of<H: HeadSet>(stage: &Stage) -> Vec<String> {
    let readers = readers::<H>().into_iter();
    readers.filter(|h| stage.loss.head(h) != 0.0).collect()
}

/// Opens the files and worlds of a stage, with the parameters of heads that its groups name; `None` in
/// an evaluation, where nothing learns. Nothing is decoded before it is asked for where there are no `workers`.
fn open_feed<H: HeadSet>(
    purpose: Purpose,
    at: &str,
    stage: &Stage,
    data: &MixtureSpec,
    seed: u64,
    context: &DataContext,
    workers: usize,
) -> tpo_train::Result<(Feed, Option<ResolvedGroups>)> {
    let mut mixture = data.clone();
    if purpose == Purpose::Evaluate {
        if let Some(FrameSampling::Random { .. }) = mixture.sampling {
            mixture.sampling = None;
        }
        mixture.augment = None;
    }
    let config = FeedConfig {
        mixture,
        order: OrderConfig {
            seed,
            batch_size: stage.batch_size.max(1),
            ..OrderConfig::default()
        },
        frames: context.frames(),
        loader: LoaderConfig {
            epochs: None,
            strict: stage.strict,
            workers,
            ..LoaderConfig::default()
        },
        ..FeedConfig::default()
    };
    let encoder = context.encoder()?;
    // For the targets; no weight is drawn.
    let heads = H::init(
        &context.config.heads,
        &context.config.sizes(),
        &Device::flex(),
    )
    .map_err(|e| invalid(vec![format!("{at}: {e}")]))?;
    let learning = match purpose {
        Purpose::Train => Some(head_groups(stage, &heads)),
        Purpose::Evaluate => None,
    };
    let feed = Feed::open(
        &config,
        &context.config.tasks,
        encoder,
        Arc::new(heads),
        Cursor::default(),
    )
    .map_err(|e| invalid(vec![format!("{at}: {e}")]))?;
    Ok((feed, learning))
}

/// The parameters of heads and their tokens that the groups of a stage name.
fn head_groups<H: HeadSet>(stage: &Stage, heads: &H) -> ResolvedGroups {
    let tokens = H::specs().into_iter().map(|s| ResolvedParam {
        path: format!("task_tokens.{}", s.name),
        id: ParamId::new(),
        shape: Vec::new(),
        tied: Vec::new(),
    });
    let params = module_params(heads).into_iter().map(|p| ResolvedParam {
        path: format!("heads.{}", p.path),
        id: p.id,
        shape: p.shape,
        tied: Vec::new(),
    });
    let all: Vec<ResolvedParam> = params.chain(tokens).collect();
    let groups = stage.groups.iter().map(|group| ResolvedGroup {
        name: group.name.clone(),
        learning_rate: group.learning_rate,
        weight_decay: None,
        muon: None,
        params: all
            .iter()
            .filter(|p| group.selects(&p.path))
            .cloned()
            .collect(),
    });
    ResolvedGroups {
        groups: groups.collect(),
        frozen: Vec::new(),
    }
}

/// Tasks that the rows of a feed call.
fn calls(feed: &Feed) -> BTreeSet<String> {
    let tasks = feed.sources().iter().flat_map(|s| s.tasks());
    tasks.map(str::to_string).collect()
}

/// Tasks of rows that the model does not have or cannot learn, and heads that learn of none.
fn feed_problems(
    at: &str,
    stage: &Stage,
    data: &MixtureSpec,
    feed: &Feed,
    learning: Option<&ResolvedGroups>,
    context: &DataContext,
    readers: &[String],
) -> Vec<String> {
    let mut problems = task_problems(at, feed, data, context, readers);
    if let Some(learning) = learning {
        problems.extend(stage.uncalled_heads(learning, &calls(feed)));
    }
    problems
}

/// [`feed_problems`] of data that are only looked at.
fn row_problems<H: HeadSet>(
    (purpose, at, data): (Purpose, &str, &MixtureSpec),
    stage: &Stage,
    context: &DataContext,
    readers: &[String],
) -> Vec<String> {
    match open_feed::<H>(purpose, at, stage, data, 0, context, 0) {
        Ok((feed, learning)) => {
            let heard = calls(&feed);
            let told = learning
                .iter()
                .flat_map(|groups| stage.unheard_losses(groups, &heard));
            told.for_each(|unheard| tracing::warn!("{unheard}"));
            feed_problems(at, stage, data, &feed, learning.as_ref(), context, readers)
        }
        Err(TrainError::InvalidRecipe { problems, .. }) => problems,
        Err(e) => vec![format!("{at}: {e}")],
    }
}

/// What a stage learns from and what it is evaluated on.
fn mixtures(place: usize, stage: &Stage) -> Vec<(Purpose, String, &MixtureSpec)> {
    let at = |data: &str| format!("stages[{place}] `{}`.{data}", stage.name);
    let learned = stage.data.iter();
    let learned = learned.map(|d| (Purpose::Train, at("data"), d));
    let held_out = stage.evaluation.iter();
    let held_out = held_out.map(|e| (Purpose::Evaluate, at("evaluation.data"), &e.data));
    learned.chain(held_out).collect()
}

/// Checks the data of all stages of a recipe: every file is read, nothing is decoded.
///
/// # Errors
/// [`TrainError::InvalidRecipe`] with every problem of every source of every stage, as [`stage_data`]
/// has them.
pub fn check_data<H: HeadSet>(recipe: &Recipe, context: &DataContext) -> tpo_train::Result<()> {
    let mut problems = Vec::new();
    for (i, stage) in recipe.stages.iter().enumerate() {
        if stage.data.is_none() {
            let at = format!("stages[{i}] `{}`", stage.name);
            problems.push(format!(
                "{at}: has no data; add `data = {{ sources = [..] }}`"
            ));
        }
        for (purpose, at, data) in mixtures(i, stage) {
            let found = mixture_problems::<H>(&at, data, context);
            if found.is_empty() {
                let readers = readers_of::<H>(stage);
                let rows = (purpose, at.as_str(), data);
                problems.extend(row_problems::<H>(rows, stage, context, &readers));
            }
            problems.extend(found);
        }
    }
    refuse(problems)
}

/// [`check_data`] as far as the files are there, without a thought of towers.
pub(super) fn check_calls<H: HeadSet>(
    recipe: &Recipe,
    context: &DataContext,
) -> tpo_train::Result<()> {
    let mut problems = Vec::new();
    for (i, stage) in recipe.stages.iter().enumerate() {
        for (purpose, at, data) in mixtures(i, stage) {
            let mut files = data.sources.iter().filter_map(|s| s.annotations.as_ref());
            if files.all(|file| file.is_file()) {
                let rows = (purpose, at.as_str(), data);
                problems.extend(row_problems::<H>(rows, stage, context, &[]));
            }
        }
    }
    refuse(problems)
}

/// Sizes of the batches of a stage, padded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BatchSizes {
    /// Positions of a row.
    pub tokens: usize,
    /// Positions with a label, of a row on average.
    pub labels: usize,
    /// Pictures that a row's visuals have, on average.
    pub pictures: usize,
    /// Positions that these take of a row, on average.
    pub visual: usize,
    /// Whether turns are packed that do not see each other.
    pub packed: bool,
    /// Whether rows call the mask head.
    pub masks: bool,
}

impl BatchSizes {
    /// Of rows about a video with so many tokens of text, or as many as the model reads.
    ///
    /// # Errors
    /// As [`TpoConfig::rows`].
    pub fn of_text(config: &TpoConfig, text: usize) -> crate::error::Result<Self> {
        let side = u32::try_from(config.input.size).unwrap_or(u32::MAX);
        let video = VisualShape::video((side, side), config.input.frames);
        let visual = config.rows(&video)?;
        let tokens = visual.saturating_add(text).min(config.max_prompt());
        Ok(Self {
            tokens,
            labels: tokens.saturating_sub(visual),
            pictures: video.pictures,
            visual,
            packed: false,
            masks: true,
        })
    }
}

/// Batches that [`batch_sizes`] looks at.
const LOOKED_AT: u64 = 4;

/// The largest sizes of the first batches of a stage, whose media are read. `None` where they cannot be.
pub(super) fn batch_sizes<H: HeadSet>(
    stage: &Stage,
    seed: u64,
    context: &DataContext,
) -> Option<BatchSizes> {
    let data = stage.data.as_ref()?;
    let mut stage = stage.clone();
    // Media that are not there yet are not looked for row by row.
    stage.strict = data.sources.iter().any(|s| s.synthetic.is_none());
    let opened = open_feed::<H>(Purpose::Evaluate, "", &stage, data, seed, context, 0);
    let (mut feed, _) = opened.ok()?;
    let mut sizes = BatchSizes {
        masks: calls(&feed).contains(MaskHead::NAME) && stage.loss.head(MaskHead::NAME) != 0.0,
        ..BatchSizes::default()
    };
    for _ in 0..LOOKED_AT.min(feed.plan().batches()) {
        let batch = feed.next_batch().ok()??;
        let (rows, tokens) = batch.tokens.shape();
        let labels = batch.labels.iter().flatten();
        let labels = labels.filter(|label| **label != IGNORE_LABEL).count();
        sizes.tokens = sizes.tokens.max(tokens);
        sizes.labels = sizes.labels.max(labels.div_ceil(rows.max(1)));
        sizes.packed |= batch.tokens.packed_turns().is_some();
        // Each visual has its own number.
        let (mut pictures, mut slots) = (0, 0);
        for (visual, ..) in &batch.visuals {
            pictures += visual.pictures;
            slots += context.config.rows(visual).ok()?;
        }
        sizes.pictures = sizes.pictures.max(pictures.div_ceil(rows.max(1)));
        sizes.visual = sizes.visual.max(slots.div_ceil(rows.max(1)));
    }
    Some(sizes)
}

fn mixture_problems<H: HeadSet>(
    at: &str,
    data: &MixtureSpec,
    context: &DataContext,
) -> Vec<String> {
    let config = &context.config;
    let mut problems = Vec::new();
    for source in &data.sources {
        let at = format!("{at}, source `{}`", source.name);
        if let Some(path) = &source.annotations {
            match std::fs::metadata(path) {
                Ok(found) if found.is_file() => {}
                Ok(_) => problems.push(format!("{at}: {} is not a file", path.display())),
                Err(e) => problems.push(format!("{at}: {}: {e}", path.display())),
            }
        }
        for (key, folder) in [("media", &source.media), ("features", &source.features)] {
            if let Some(folder) = folder.as_ref().filter(|f| !f.is_dir()) {
                let folder = folder.display();
                problems.push(format!("{at}: {key}: {folder} is not a directory"));
            }
        }
        let Some(world) = &source.synthetic else {
            continue;
        };
        let found = world.problems(config.input.frames, config.input.size);
        problems.extend(found.into_iter().map(|p| format!("{at}: synthetic.{p}")));
        if source.textual {
            continue;
        }
        for task in world.tasks.iter().filter(|t| t.calls_head()) {
            problems.extend(unknown_task(&at, task.name(), config));
        }
        let readers = readers::<H>();
        if world
            .tasks
            .iter()
            .any(|t| readers.iter().any(|r| r == t.name()))
        {
            problems.extend(without_towers(&at, source, context));
        }
    }
    problems
}

fn without_towers(at: &str, source: &SourceSpec, context: &DataContext) -> Option<String> {
    let needed = context.config.features.own_clips().is_none();
    (needed && context.towers.is_none() && source.features.is_none()).then(|| {
        format!(
            "{at}: a head of this model reads features of InternVideo2-CLIP; give the \
             run its towers (`train --towers DIR`, RunOptions::towers), or the source features that were \
             computed before (`features = \"DIR\"`)"
        )
    })
}

fn unknown_task(at: &str, task: &str, config: &TpoConfig) -> Option<String> {
    if config.tasks.get(task).is_some() {
        return None;
    }
    let known: Vec<&str> = config
        .tasks
        .tasks()
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    Some(format!(
        "{at}: the model has no task `{task}`; it has: {}",
        known.join(", ")
    ))
}

/// Tasks of rows that the model does not have or cannot learn.
fn task_problems(
    at: &str,
    feed: &Feed,
    data: &MixtureSpec,
    context: &DataContext,
    readers: &[String],
) -> Vec<String> {
    let mut problems = Vec::new();
    for (source, spec) in feed.sources().iter().zip(&data.sources) {
        let at = format!("{at}, source `{}`", spec.name);
        for task in source.tasks() {
            problems.extend(unknown_task(&at, task, &context.config));
            if readers.iter().any(|r| r == task) {
                problems.extend(without_towers(&at, spec, context));
            }
        }
    }
    problems
}
