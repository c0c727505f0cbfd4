//! Check, look at and convert datasets.

mod convert;
mod preview;
mod validate;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use tpo_core::head::HeadSet;

use super::shared::Outcome;

/// Check, look at and convert datasets
///
/// Everything in this project learns from one format: JSON lines, one sample a row. docs/DATA.md
/// explains every field; the shortest useful rows are
///
///   {"media": {"image": "a.jpg"}, "annotations":
///     [{"task": "region", "query": "the dog", "box": [0.1, 0.2, 0.5, 0.9]}]}
///   {"media": {"video": "b.mp4"}, "annotations":
///     [{"task": "temporal", "query": "a dog jumps", "spans": [[1.5, 4.0]]}]}
///   {"media": {"video": "b.mp4"}, "turns": [{"question": "What is it?", "answer": "A dog."}]}
///
/// (each on one line).
///
/// Media paths count from the folder of the file, or from --root.
#[derive(clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  tpo data validate my.jsonl
  tpo data preview my.jsonl --out sheet.png
  tpo data convert --from qvhighlights train.jsonl --out my.jsonl"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Validate(validate::Args),
    Preview(preview::Args),
    Convert(convert::Args),
}

#[derive(clap::Args)]
struct Input {
    /// The JSON lines file.
    file: PathBuf,
    /// Folder media paths count from; by default that of the file.
    #[arg(long)]
    root: Option<PathBuf>,
}

impl Input {
    fn root(&self) -> PathBuf {
        let parent = || self.file.parent().map(Path::to_path_buf);
        self.root.clone().or_else(parent).unwrap_or_default()
    }
}

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    match args.command {
        Command::Validate(args) => validate::run::<H>(args),
        Command::Preview(args) => preview::run(args),
        Command::Convert(args) => convert::run(args),
    }
}
