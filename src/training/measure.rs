//! What memory a stage really takes, to hold against [`explain`](super::explain).

use burn::module::Module;
use tpo_core::head::HeadSet;
use tpo_train::TrainError;
use tpo_train::recipe::Recipe;
use tpo_train::trainer::{Purpose, TrainOptions, Trainer};

use super::{RunOptions, check_memory, data_of, recipe_model, staged_model};
use crate::error::Result;

/// Memory of this process while it trained, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredMemory {
    /// Weights, masters and moments: after the first step, when all of them are there, as far as
    /// the allocator has given back what the step needed.
    pub settled: u64,
    /// The most at any time of the steps.
    pub peak: u64,
}

/// Takes a few optimizer steps of a stage with the weights the recipe starts from and says what the
/// process needed, without pages of its file. Nothing is written; where the stage writes checkpoints
/// before its end, what a write holds is held from the first step to the last.
///
/// `None` where the system does not tell (`/proc/self/status`, Linux); memory of an accelerator is
/// not in it. A process can measure once: its peak is that of all it did.
///
/// # Errors
/// [`TrainError::InvalidPlan`] when there is no stage of that name; as
/// [`run_recipe_with`](crate::training::run_recipe_with).
pub fn measure_stage<H: HeadSet>(
    recipe: &Recipe,
    stage: &str,
    options: &RunOptions,
) -> Result<Option<MeasuredMemory>> {
    recipe.validate()?;
    let found = recipe.stages.iter().position(|s| s.name == stage);
    let place = found.ok_or_else(|| {
        let names: Vec<&str> = recipe.stages.iter().map(|s| s.name.as_str()).collect();
        TrainError::InvalidPlan {
            problems: vec![format!(
                "there is no stage `{stage}`; there are: {}",
                names.join(", ")
            )],
        }
    })?;
    check_memory::<H>(recipe, options)?;
    let mut built = recipe_model::<H>(recipe, &options.device)?;
    built.model = staged_model(recipe, &built.model, place)?;
    built.config.llm = built.model.llm.config().clone();
    let stage = recipe.stages[place].clone();
    let writes = recipe.writes_within(&stage);
    let seed = recipe.stage_seed(place);
    let parts = (built.config, built.tokenizer);
    let mut stream = data_of::<H>(options)(Purpose::Train, &stage, place, seed, &parts)?;
    let train = TrainOptions {
        seed,
        stage_index: place,
        gradient_checkpointing: options.gradient_checkpointing,
        ..TrainOptions::new(&options.device)
    };
    let mut trainer = Trainer::new(built.model, stage, &*stream, train)?;
    trainer.step(&mut *stream)?;
    let settled = process_memory("RssAnon:");
    if writes {
        // The second step makes the copies, the third has its activations beside them.
        let _held = (trainer.model()?.valid(), trainer.state(&*stream));
        trainer.step(&mut *stream)?;
        trainer.step(&mut *stream)?;
    } else {
        trainer.step(&mut *stream)?;
    }
    // Pages of the program's file can be given back at any time.
    let peak = process_memory("VmHWM:").zip(process_memory("RssFile:"));
    let peak = peak.map(|(most, file)| most.saturating_sub(file));
    Ok(settled
        .zip(peak)
        .map(|(settled, peak)| MeasuredMemory { settled, peak }))
}

/// A line of `/proc/self/status` in bytes (`VmHWM:` the peak of resident memory, `RssAnon:` the
/// process's own now, `RssFile:` pages of files); `None` where there is none.
pub(crate) fn process_memory(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(field))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
