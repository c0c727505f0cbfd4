//! Starts the processes, ours and the twin's in turn.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;
use tpo::DeviceChoice;

use crate::ours::Measured;
use crate::rows::{self, Row};
use crate::{Args, Outcome, machine, report};

/// Longest wait for other work to end, with `--quiet`.
const QUIET_LIMIT: Duration = Duration::from_secs(600);
/// Attempts at an undisturbed measurement, with `--quiet`.
const ATTEMPTS: usize = 6;

/// All processes of one row.
#[derive(Debug, Default, Serialize)]
pub struct Pairs {
    pub row: String,
    pub ours: Vec<Measured>,
    pub twin: Vec<Measured>,
    /// What went wrong, if anything did.
    pub failures: Vec<String>,
}

/// Runs the whole bench and prints the table.
pub fn all(args: &Args) -> Outcome<()> {
    let chosen = choose(args)?;
    let twin = Twin::find(args);
    println!(
        "{}; device {}; {} threads; {} pairs of processes per row",
        machine::describe(),
        args.device,
        args.threads,
        args.runs
    );
    if let Err(why) = &twin {
        println!("no twin: {why}");
    }
    let twin = twin.ok();

    let peak = pairs(
        &rows::find("peak")?,
        args,
        twin.as_ref(),
        args.runs.clamp(1, 3),
    );
    let mut measured = Vec::new();
    for row in chosen {
        let pairs = pairs(&row, args, twin.as_ref(), args.runs.max(1));
        eprintln!("{}", report::progress(&row, &pairs));
        measured.push((row, pairs));
    }
    print!("{}", report::table(&measured, &peak));
    if let Some(path) = &args.json {
        let all: Vec<&Pairs> = measured.iter().map(|(_, p)| p).chain([&peak]).collect();
        std::fs::write(path, serde_json::to_string_pretty(&all)?)
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let failed: Vec<&str> = measured
        .iter()
        .filter(|(_, p)| !p.failures.is_empty())
        .map(|(row, _)| row.name)
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

/// `runs` processes of each side; who goes first alternates.
fn pairs(row: &Row, args: &Args, twin: Option<&Twin>, runs: usize) -> Pairs {
    let mut pairs = Pairs {
        row: row.name.into(),
        ..Pairs::default()
    };
    for run in 0..runs {
        for side in [run % 2, (run + 1) % 2] {
            let command = match (side, twin) {
                (0, _) => ours(row, args),
                (_, Some(twin)) => Ok(twin.command(row, args)),
                (_, None) => continue,
            };
            match command.and_then(|command| undisturbed(command, args)) {
                Ok(measured) if side == 0 => pairs.ours.push(measured),
                Ok(measured) => pairs.twin.push(measured),
                Err(e) => {
                    let side = if side == 0 { "ours" } else { "twin" };
                    pairs.failures.push(format!("{side}: {e}"));
                }
            }
        }
    }
    pairs
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

fn ours(row: &Row, args: &Args) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--child", row.name])
        .args(["--device", &args.device.to_string()])
        .args(["--threads", &args.threads.to_string()])
        .args(["--seconds", &args.seconds.to_string()])
        .arg("--video")
        .arg(&args.video)
        .arg("--smollm2")
        .arg(&args.smollm2)
        .env("RAYON_NUM_THREADS", args.threads.to_string());
    Ok(command)
}

/// The interpreter that runs `twin.py`.
struct Twin {
    python: PathBuf,
    script: PathBuf,
    device: String,
}

impl Twin {
    fn find(args: &Args) -> Result<Self, String> {
        if args.no_twin {
            return Err("--no-twin".into());
        }
        let device = match args.device {
            DeviceChoice::Cpu => "cpu".into(),
            DeviceChoice::Cuda(index) => format!("cuda:{index}"),
            other => return Err(format!("PyTorch has no device like `{other}`")),
        };
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/twin");
        let venv = here.join(".venv/bin/python");
        let python = std::env::var_os("TPO_TWIN_PYTHON").map_or(venv, PathBuf::from);
        if !python.exists() {
            return Err(format!(
                "{} does not exist; run benches/twin/setup.sh, or set TPO_TWIN_PYTHON to a python \
                 with the packages of benches/twin/requirements.txt",
                python.display()
            ));
        }
        Ok(Self {
            python,
            script: here.join("twin.py"),
            device,
        })
    }

    fn command(&self, row: &Row, args: &Args) -> Command {
        let mut command = Command::new(&self.python);
        command
            .arg(&self.script)
            .args(["--row", row.twin_name(), "--dtype", rows::name(row.dtype)])
            .args(["--device", &self.device])
            .args(["--threads", &args.threads.to_string()])
            .args(["--seconds", &args.seconds.to_string()])
            .arg("--video")
            .arg(&args.video);
        if args.smollm2.join("config.json").is_file() {
            command.arg("--model").arg(&args.smollm2);
        }
        command
    }
}
