//! Public datasets in the format of this project.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use tpo_data::DataError;
use tpo_data::readers::{ConvertOptions, Format, convert};
use tpo_data::schema::{Sample, write_row};
use tpo_train::observe::terminal;

use crate::cli::shared::{End, Outcome, create};

/// Convert a public dataset to the format of this project.
///
/// What cannot be used is listed, left out and counted by reason. Nothing is downloaded and media is
/// not touched; run `tpo data validate` on the result.
#[derive(clap::Args)]
#[command(after_help = formats())]
pub struct Args {
    /// Format of the input; see below.
    #[arg(long)]
    from: Format,
    /// The annotation file, or a folder for sa-v, lasot and got-10k.
    input: PathBuf,
    /// Where the rows go; not over the input. Not written when there is no row.
    #[arg(long)]
    out: PathBuf,
    /// Replace a file that is at --out.
    #[arg(long)]
    overwrite: bool,
    /// The second file of formats that have two. An option that a format does not take is refused.
    #[arg(long)]
    second_file: Option<PathBuf>,
    /// Put in front of media paths: `videos/`.
    #[arg(long, default_value = "")]
    media_prefix: String,
    /// Extension of videos that are named without one.
    #[arg(long, default_value = "mp4")]
    extension: String,
    /// Lengths of the videos: JSON {video: seconds}, or csv with columns id and length.
    #[arg(long)]
    durations: Option<PathBuf>,
    /// Frames per second of folders of frames that do not say it themselves.
    #[arg(long)]
    frame_rate: Option<f64>,
    /// Only records of this split.
    #[arg(long)]
    split: Option<String>,
    /// Stop at the first record that cannot be used.
    #[arg(long)]
    strict: bool,
}

fn formats() -> String {
    let mut text = String::from("Formats:\n");
    for f in Format::ALL {
        text.push_str(&format!("  {:<22} {}", f.name(), f.help()));
        if !f.flags().is_empty() {
            text.push_str(&format!(" Takes {}.", f.flags().join(", ")));
        }
        text.push('\n');
    }
    text
}

pub fn run(args: Args) -> Outcome {
    let options = ConvertOptions {
        media_prefix: args.media_prefix.clone(),
        video_extension: args.extension.clone(),
        second: args.second_file.clone(),
        durations: args.durations.clone(),
        frame_rate: args.frame_rate,
        split: args.split.clone(),
        ..ConvertOptions::default()
    };
    let inputs = [
        Some(&args.input),
        args.second_file.as_ref(),
        args.durations.as_ref(),
    ];
    let same = |input: &&PathBuf| args.out.canonicalize().ok() == input.canonicalize().ok();
    if args.out.exists()
        && let Some(input) = inputs.into_iter().flatten().find(same)
    {
        let input = input.display();
        return Err(
            format!("--out is the input {input}, which would be lost; give another file").into(),
        );
    }
    if args.out.exists() && !args.overwrite {
        let out = args.out.display();
        let why =
            format!("{out} is there already; give another --out, or --overwrite to replace it");
        return Err(why.into());
    }
    let samples = convert(args.from, &args.input, &options)?;
    // Under its name when it is whole.
    let mut unfinished = args.out.clone().into_os_string();
    unfinished.push(".tmp");
    let unfinished = PathBuf::from(unfinished);
    let done = write(&args, samples, &unfinished);
    if !matches!(done, Ok(End::Fine)) {
        // What is not whole, or has no row, is of no use to anybody.
        std::fs::remove_file(&unfinished).ok();
    }
    done
}

fn write(
    args: &Args,
    samples: impl Iterator<Item = Result<Sample, DataError>>,
    unfinished: &Path,
) -> Outcome {
    const LISTED: usize = 50;
    let mut out = create(unfinished)?;
    let (mut written, mut refused) = (0u64, 0u64);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let progress = terminal().add(ProgressBar::new_spinner());
    for sample in samples {
        progress.inc(1);
        let (why, reason) = match sample {
            Ok(sample) => {
                let problems = sample.problems();
                if problems.is_empty() {
                    write_row(&sample, &mut out)?;
                    written += 1;
                    continue;
                }
                let list: Vec<_> = problems.iter().map(ToString::to_string).collect();
                let name = sample.id.unwrap_or_default();
                let list = list.join("; ");
                (format!("record {name}: {list}"), list)
            }
            Err(e) if e.ends_dataset() => return Err(e.into()),
            Err(e) => match &e {
                DataError::Format { reason, .. } => (e.to_string(), reason.clone()),
                _ => (e.to_string(), e.to_string()),
            },
        };
        refused += 1;
        *reasons.entry(without_values(&reason)).or_default() += 1;
        if args.strict {
            return Err(why.into());
        }
        if refused <= LISTED as u64 {
            progress.suspend(|| eprintln!("left out: {why}"));
        }
    }
    progress.finish_and_clear();
    out.flush()?;
    drop(out);
    let path = args.out.display();
    if refused > LISTED as u64 {
        eprintln!("... and {} more", refused - LISTED as u64);
    }
    if written > 0 {
        std::fs::rename(unfinished, &args.out).map_err(|e| format!("{path}: {e}"))?;
        println!("{path}: {written} rows, {refused} left out");
    } else {
        println!("{path}: not written, there is no row; {refused} left out");
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons.iter().take(LISTED) {
        println!("{count:>9}  {reason}");
    }
    if let Some(rest) = reasons.get(LISTED..).filter(|rest| !rest.is_empty()) {
        let left_out: u64 = rest.iter().map(|(_, count)| count).sum();
        println!("{left_out:>9}  for {} other reasons", rest.len());
    }
    Ok(End::fine_if(written > 0))
}

/// A reason as it is for other values too: quoted names are `..`, numbers N.
fn without_values(reason: &str) -> String {
    let mut out = String::new();
    let mut rest = reason;
    while let Some(c) = rest.chars().next() {
        let quoted = if c == '`' || c == '"' {
            rest[1..].find(c)
        } else {
            None
        };
        let number = |c: char| c.is_ascii_digit() || c == '.';
        if let Some(end) = quoted {
            out.push_str(&format!("{c}..{c}"));
            rest = &rest[end + 2..];
        } else if c.is_ascii_digit() {
            out.push('N');
            let digits = rest.trim_start_matches(number);
            // A full stop ends the sentence, not the number.
            let stops = rest[..rest.len() - digits.len()].ends_with('.');
            rest = &rest[rest.len() - digits.len() - usize::from(stops)..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::without_values;

    #[test]
    fn reasons_of_one_kind_are_one() {
        let same = |a: &str, b: &str| assert_eq!(without_values(a), without_values(b));
        same("`cars`: it has 2 boxes", "`the é`: it has 12 boxes");
        same(
            "[1, 2.5]: it has no length.",
            "[7.25, 7]: it has no length.",
        );
        same(
            "missing field `a` at line 1 column 4",
            "missing field `b` at line 1 column 50",
        );
        assert_eq!(without_values("`a` ends at 3.5."), "`..` ends at N.");
        assert_eq!(without_values("not closed: ` é 1"), "not closed: ` é N");
    }
}
