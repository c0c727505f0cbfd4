//! Every problem of a dataset, with its line.

use indicatif::ProgressBar;
use tpo_data::MediaLimits;
use tpo_data::schema::{RowLimits, SampleReader, Summary, check_media};

use super::Input;
use crate::cli::shared::{End, Outcome};

/// Check every row and every media file; list all problems with their lines.
///
/// Rows are parsed, their numbers checked, their media opened (headers only) and held against
/// the annotations. Prints counts, lengths and sizes. The exit code is 0 when all is well and 1
/// when some row has a problem.
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

pub fn run(args: Args) -> Outcome {
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
    let progress = ProgressBar::new(std::fs::metadata(file)?.len());
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
    if summary.rows + summary.bad_rows == 0 {
        println!("the file has no rows");
    }
    Ok(End::fine_if(summary.bad_rows == 0))
}
