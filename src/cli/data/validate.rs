//! Every problem of a dataset, with its line.

use std::collections::BTreeSet;

use burn::tensor::Device;
use tpo_core::head::{HeadSet, TargetMaker, TargetSet};
use tpo_core::weights::nearest;
use tpo_data::feed::{View, place_truth};
use tpo_data::schema::{RowLimits, Sample, SampleReader, Summary, Target, check_media};
use tpo_data::{MediaLimits, VideoInfo};

use super::Input;
use crate::cli::shared::{End, Outcome, bar};
use crate::presets::mini_config;

/// Check every row and every media file; list all problems with their lines.
///
/// Rows are parsed, their numbers checked, their media opened (headers only) and held against
/// the annotations; the heads of this program say what they could not learn from. (Whether an object
/// of a track is in the frames that training samples depends on the model; this is not checked.)
///
/// Prints counts, lengths and sizes. The exit code is 0 when all is well and 1 when some row has a
/// problem, or there is none.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: Input,
    /// Check the rows only, not their media.
    #[arg(long)]
    no_media: bool,
    /// Print at most so many problems; all are counted.
    #[arg(long)]
    max_problems: Option<u64>,
}

pub fn run<H: HeadSet>(args: Args) -> Outcome {
    let (file, root) = (&args.input.file, args.input.root());
    let limits = MediaLimits::default();
    let mut reader = SampleReader::open(file, RowLimits::default())?;
    let mut summary = Summary::default();
    let mut printed = 0;
    let mut report = |text: String| {
        if args.max_problems.is_none_or(|max| printed < max) {
            println!("{text}");
        }
        printed += 1;
    };
    // For the targets; no weight is drawn.
    let config = mini_config()?;
    let heads = H::init(&config.heads, &config.sizes(), &Device::flex())?;
    let mut unknown = BTreeSet::new();
    let progress = bar("{wide_bar} {percent}% {eta}");
    progress.set_length(std::fs::metadata(file)?.len());
    while let Some(row) = reader.next_checked() {
        let (line, offset, row) = row?;
        progress.set_position(offset);
        let place = format!("{}:{line}", file.display());
        let (sample, mut problems) = match row {
            Ok(parsed) => parsed,
            Err(e) => {
                summary.bad_rows += 1;
                report(format!("{place}: {}", e.fault));
                continue;
            }
        };
        let mut facts = None;
        let mut unreadable = None;
        if !args.no_media {
            match check_media(&sample, &root, &limits) {
                Ok(None) => {}
                Ok(Some((found, more))) => {
                    facts = Some(found);
                    // What the row alone shows is not said twice.
                    let new: Vec<_> = more
                        .into_iter()
                        .filter(|p| problems.iter().all(|known| known.at != p.at))
                        .collect();
                    problems.extend(new);
                }
                Err(e) => unreadable = Some(e),
            }
        }
        let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if let (true, Some(info)) = (problems.is_empty(), &facts) {
            problems = unlearnable(&sample, info, &heads, &mut unknown);
        }
        if problems.is_empty() && unreadable.is_none() {
            summary.add(&sample, facts.as_ref());
            continue;
        }
        summary.bad_rows += 1;
        problems
            .iter()
            .for_each(|p| report(format!("{place}: {p}")));
        if let Some(e) = unreadable {
            report(format!("{place}: media: {e}"));
        }
    }
    progress.finish_and_clear();
    let hidden = args
        .max_problems
        .map_or(0, |max| printed.saturating_sub(max));
    if hidden > 0 {
        println!("... and {hidden} more problems");
    }
    print!("{summary}");
    if !unknown.is_empty() {
        println!(
            "not checked  what is to be learned of {}: this program has no such head",
            named::<H>(&unknown)
        );
    }
    if summary.rows + summary.bad_rows == 0 {
        println!("the file has no rows");
    }
    Ok(End::fine_if(summary.rows > 0 && summary.bad_rows == 0))
}

/// Tasks without a head, each with the head that was meant by a slip.
fn named<H: HeadSet>(tasks: &BTreeSet<String>) -> String {
    let known: Vec<String> = H::specs().into_iter().map(|head| head.name).collect();
    let one = |task: &String| match nearest(task, known.iter().map(String::as_str)) {
        Some(near) => format!("`{task}` (did you mean `{near}`?)"),
        None => format!("`{task}`"),
    };
    tasks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What the heads could not learn from the annotations of a row. Tasks without a head go to `unknown`.
fn unlearnable<H: HeadSet>(
    sample: &Sample,
    info: &VideoInfo,
    heads: &H,
    unknown: &mut BTreeSet<String>,
) -> Vec<String> {
    let view = View {
        range: sample.media.as_ref().and_then(|m| m.range),
        ..View::default()
    };
    let mut problems = Vec::new();
    for (i, annotation) in sample.annotations.iter().enumerate() {
        if heads.head(&annotation.task).is_none() {
            unknown.insert(annotation.task.clone());
            continue;
        }
        // Which frames of a track are learned from, the model says.
        if let Target::Track(_) = annotation.target {
            continue;
        }
        let made = place_truth(annotation, info, &view, &[], 0).map_err(|e| e.to_string());
        let made = made.and_then(|truth| {
            let made = heads.add_target(&truth, &mut TargetSet::new());
            made.map_err(|e| e.to_string())
        });
        if let Err(why) = made {
            problems.push(format!("annotations[{i}]: {why}"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_in_a_task_gets_the_name_that_was_meant() {
        let tasks = ["count", "regoin"].map(String::from).into();
        assert_eq!(
            named::<crate::BuiltInHeads>(&tasks),
            "`count`, `regoin` (did you mean `region`?)"
        );
    }
}
