//! The paper's claims in miniature: variants of one training beside each other.
//!
//! ```text
//! cargo run --release --example claims -- run recipes/claims/study.toml
//! cargo run --release --example claims -- report recipes/claims/study.toml
//! ```

mod one;
mod report;
mod study;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use study::Study;
use tpo::DeviceChoice;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Between these lines a report replaces what stands there.
const MARKS: [&str; 2] = ["<!-- tables begin -->", "<!-- tables end -->"];

/// Run a study of training variants on the synthetic world, and write its tables.
///
/// Every variant starts from the same model, takes the same steps on the same clips, and is judged on
/// clips whose combinations never occur in training. Each runs once per seed.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train and judge what is not done yet. Kill it whenever you like; the same command goes on.
    /// Started twice, the two share the runs.
    Run {
        /// The study.
        study: PathBuf,
        /// Folder of the runs.
        #[arg(long, default_value = "runs/claims")]
        out: PathBuf,
        /// Variants to run; all without it.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Seeds to run; those of the study without it.
        #[arg(long, value_delimiter = ',')]
        seed: Vec<u64>,
        /// Where to compute: auto, cpu, cuda, wgpu.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// No progress bar.
        #[arg(long)]
        quiet: bool,
    },
    /// Write the scores of all runs to one JSON file and their tables into a document.
    Report {
        /// The study.
        study: PathBuf,
        /// Folder of the runs; without it the JSON file of an earlier report is read.
        #[arg(long)]
        runs: Option<PathBuf>,
        /// The scores.
        #[arg(long, default_value = "docs/results.json")]
        json: PathBuf,
        /// The document; what stands between its two marks is replaced.
        #[arg(long, default_value = "docs/RESULTS.md")]
        document: PathBuf,
    },
}

fn main() -> ExitCode {
    sigpipe::reset();
    match act(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> Outcome<()> {
    match command {
        Command::Run {
            study,
            out,
            only,
            seed,
            device,
            quiet,
        } => {
            let study = Study::open(&study)?;
            let device = device.open()?;
            for name in &only {
                if !study.variants.iter().any(|v| v.name == *name) {
                    let known: Vec<&str> = study.variants.iter().map(|v| &v.name[..]).collect();
                    return Err(format!(
                        "there is no variant `{name}`; there are: {}",
                        known.join(", ")
                    )
                    .into());
                }
            }
            let seeds = if seed.is_empty() { &study.seeds } else { &seed };
            // All variants of a seed before the next: a study that is cut short compares.
            for seed in seeds {
                for variant in &study.variants {
                    if !only.is_empty() && !only.contains(&variant.name) {
                        continue;
                    }
                    let Some(found) = one::one(&study, variant, *seed, &out, &device, quiet)?
                    else {
                        println!("{} seed {seed}: another process is at it", variant.name);
                        continue;
                    };
                    let words = found.values.get("text/exact match").copied();
                    println!(
                        "{} seed {seed}: conversation {:.1}, {} steps in {:.2} h",
                        variant.name,
                        words.unwrap_or(f64::NAN),
                        found.steps,
                        found.hours
                    );
                }
            }
            Ok(())
        }
        Command::Report {
            study,
            runs,
            json,
            document,
        } => {
            let study = Study::open(&study)?;
            let found = match runs {
                Some(runs) => {
                    let found = report::collect(&study, &runs)?;
                    write(&json, &(serde_json::to_string_pretty(&found)? + "\n"))?;
                    found
                }
                None => serde_json::from_str(&read(&json)?)?,
            };
            let text = read(&document)?;
            let (head, rest) = text
                .split_once(MARKS[0])
                .ok_or_else(|| format!("{}: has no line {}", document.display(), MARKS[0]))?;
            let (_, tail) = rest
                .split_once(MARKS[1])
                .ok_or_else(|| format!("{}: has no line {}", document.display(), MARKS[1]))?;
            let tables = report::tables(&study, &found);
            let text = format!("{head}{}\n\n{tables}\n{}{tail}", MARKS[0], MARKS[1]);
            write(&document, &text)?;
            println!("{}", document.display());
            Ok(())
        }
    }
}

fn read(path: &Path) -> Outcome<String> {
    Ok(std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?)
}

fn write(path: &Path, text: &str) -> Outcome<()> {
    Ok(std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?)
}
