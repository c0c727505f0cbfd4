//! Starts the processes of all sides in turn.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ours::Measured;
use crate::rows::{self, Row};
use crate::sides::{self, Opponent, Side};
use crate::{Args, Outcome, machine, report};

/// Longest wait for other work to end, with `--quiet`.
const QUIET_LIMIT: Duration = Duration::from_secs(600);
/// Attempts at an undisturbed measurement, with `--quiet`.
const ATTEMPTS: usize = 6;

/// All processes of one row.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcomes {
    pub row: String,
    /// Of every side that could run it.
    pub sides: BTreeMap<Side, Vec<Measured>>,
    /// The machine's limits, measured just before each round.
    pub peaks: Vec<Measured>,
    /// What went wrong, if anything did.
    pub failures: Vec<String>,
}

/// What a file of measurements holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Processor and cores.
    pub machine: String,
    pub device: String,
    pub threads: usize,
    pub rows: Vec<Outcomes>,
}

impl Results {
    /// Reads a file; without one there is nothing yet.
    pub fn read(path: &Path) -> Outcome<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(|e| format!("{}: {e}", path.display()))?,
        };
        Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
    }

    /// Takes a row in place of an earlier one of its name.
    fn put(&mut self, new: Outcomes) {
        match self.rows.iter_mut().find(|old| old.row == new.row) {
            Some(old) => *old = new,
            None => self.rows.push(new),
        }
    }
}

/// Measures the chosen rows, prints the table, and writes what is to be kept.
pub fn all(args: &Args) -> Outcome<()> {
    let chosen = choose(args)?;
    let mut results = Results {
        machine: machine::describe(),
        device: args.device.to_string(),
        threads: args.threads,
        rows: Vec::new(),
    };
    println!(
        "{}; device {}; {} threads; {} rounds of processes per row",
        results.machine, args.device, args.threads, args.runs
    );
    let mut sides = vec![Opponent::ours()?];
    for (side, found) in sides::others(args) {
        match found {
            Ok(opponent) => sides.push(opponent),
            Err(why) => println!("no {}: {why}", side.title()),
        }
    }
    for row in &chosen {
        let outcomes = rounds(row, args, &sides);
        eprintln!("{}", report::progress(&outcomes));
        results.put(outcomes);
    }
    print!("{}", report::table(&results)?);
    if let Some(path) = &args.json {
        let mut kept = Results::read(path)?;
        results.rows.into_iter().for_each(|row| kept.put(row));
        let kept = Results {
            machine: results.machine,
            device: results.device,
            threads: results.threads,
            rows: kept.rows,
        };
        std::fs::write(path, serde_json::to_string(&kept)? + "\n")
            .map_err(|e| format!("{}: {e}", path.display()))?;
        results = kept;
    }
    let failed: Vec<String> = results
        .rows
        .into_iter()
        .filter(|outcomes| !outcomes.failures.is_empty())
        .filter(|outcomes| chosen.iter().any(|row| row.name == outcomes.row))
        .map(|outcomes| outcomes.row)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "rows that did not run as they should: {}",
        failed.join(", ")
    )
    .into())
}

fn choose(args: &Args) -> Outcome<Vec<Row>> {
    if args.only.is_empty() {
        return Ok(rows::all().collect());
    }
    args.only.iter().map(|name| rows::find(name)).collect()
}

/// Processes of every side, `--runs` of each; who goes first changes.
fn rounds(row: &Row, args: &Args, sides: &[Opponent]) -> Outcomes {
    let mut outcomes = Outcomes {
        row: row.name.clone(),
        ..Outcomes::default()
    };
    let able: Vec<&Opponent> = sides.iter().filter(|s| s.side.runs(row)).collect();
    for round in 0..args.runs.max(1) {
        // The limits of the minute in which the row runs.
        let peak = Opponent::ours().and_then(|ours| once(&mut ours.command(&rows::peak(), args)));
        match peak {
            Ok(peak) => outcomes.peaks.push(peak),
            Err(e) => outcomes.failures.push(format!("peak: {e}")),
        }
        for at in 0..able.len() {
            let opponent = able[(at + round) % able.len()];
            match undisturbed(opponent.command(row, args), args) {
                Ok(measured) => {
                    let all = outcomes.sides.entry(opponent.side);
                    all.or_default().push(measured);
                }
                Err(e) => {
                    let failure = format!("{}: {e}", opponent.side.title());
                    outcomes.failures.push(failure);
                }
            }
        }
    }
    outcomes
}

/// One process. With `--quiet` it starts on a quiet machine and is repeated while others disturb
/// it; the least disturbed attempt counts.
fn undisturbed(mut command: Command, args: &Args) -> Outcome<Measured> {
    let mut best: Option<Measured> = None;
    for _ in 0..if args.quiet { ATTEMPTS } else { 1 } {
        if args.quiet && !machine::wait_for_quiet(QUIET_LIMIT) {
            eprintln!("the machine did not become quiet");
        }
        let before = machine::CpuTime::now();
        let mut measured = once(&mut command)?;
        measured.others = before.and_then(machine::CpuTime::others);
        let load = |m: &Measured| m.others.unwrap_or(0.0);
        if best.as_ref().is_none_or(|b| load(&measured) < load(b)) {
            best = Some(measured);
        }
        if best.as_ref().is_some_and(|b| load(b) < machine::DISTURBED) {
            break;
        }
    }
    Ok(best.ok_or("no attempt was made")?)
}

fn once(command: &mut Command) -> Outcome<Measured> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let last = errors.trim().lines().last().unwrap_or("no message");
        return Err(format!("{}: {last}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text.trim().lines().last().ok_or("it printed nothing")?;
    Ok(serde_json::from_str(line)?)
}
