//! Who does the work of a row: this library, and what a user would take in its place.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use tpo::DeviceChoice;

use crate::rows::{Row, SMOLLM2_NEW, SMOLLM2_PROMPT, Task};
use crate::{Args, Outcome};

/// One side of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Ours,
    /// PyTorch as it is called: fused attention, preallocated cache, inference mode.
    Pytorch,
    /// The same under `torch.compile`.
    Compiled,
    /// Hugging Face transformers, `generate`.
    Transformers,
    LlamaCpp,
}

impl Side {
    pub const OTHERS: [Self; 4] = [
        Self::Pytorch,
        Self::Compiled,
        Self::Transformers,
        Self::LlamaCpp,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Pytorch => "PyTorch",
            Self::Compiled => "torch.compile",
            Self::Transformers => "transformers",
            Self::LlamaCpp => "llama.cpp",
        }
    }

    /// Whether it can do a row.
    pub fn runs(self, row: &Row) -> bool {
        let text = matches!(row.task, Task::SmolLm2Decode(_) | Task::SmolLm2Prompt);
        let blocks = row.format.quantized().is_some();
        match self {
            Self::Ours => true,
            Self::Pytorch => !blocks,
            // Files and lone optimizer steps have nothing to compile.
            Self::Compiled => {
                let other = [
                    Task::AdamWStep,
                    Task::VideoDecode,
                    Task::VideoLoader,
                    Task::CheckpointSave,
                    Task::CheckpointLoad,
                ];
                !blocks && !other.contains(&row.task)
            }
            Self::Transformers => text && !blocks,
            Self::LlamaCpp => text,
        }
    }
}

/// A side that can be started.
pub struct Opponent {
    pub side: Side,
    program: PathBuf,
    script: Option<PathBuf>,
    /// An allocator that is loaded before the program.
    preload: Option<PathBuf>,
}

/// PyTorch with tcmalloc is what its own performance guide recommends on CPUs; ours has mimalloc.
const TCMALLOC: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib64/libtcmalloc_minimal.so.4",
];

/// The other sides, each or why it cannot run here.
pub fn others(args: &Args) -> Vec<(Side, Result<Opponent, String>)> {
    let chosen = |side: &Side| args.beside.is_empty() || args.beside.contains(side);
    let sides = Side::OTHERS.into_iter().filter(chosen);
    sides.map(|side| (side, find(side, args))).collect()
}

fn find(side: Side, args: &Args) -> Result<Opponent, String> {
    if args.no_twin {
        return Err("--no-twin".into());
    }
    if !matches!(args.device, DeviceChoice::Cpu | DeviceChoice::Cuda(_)) {
        return Err(format!("it has no device like `{}`", args.device));
    }
    if matches!(side, Side::LlamaCpp | Side::Transformers) && args.device != DeviceChoice::Cpu {
        return Err("its rows are for the CPU".into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/twin");
    let venv = here.join(".venv/bin/python");
    let program = std::env::var_os("TPO_TWIN_PYTHON").map_or(venv, PathBuf::from);
    let (script, package) = match side {
        Side::LlamaCpp => ("llama.py", "llama_cpp"),
        Side::Transformers => ("transformers_twin.py", "transformers"),
        _ => ("twin.py", "torch"),
    };
    let import = Command::new(&program)
        .args(["-c", &format!("import {package}")])
        .output();
    if !import.is_ok_and(|done| done.status.success()) {
        return Err(format!(
            "{} has no `{package}`; run benches/twin/setup.sh, or set TPO_TWIN_PYTHON to a python with \
             the packages of benches/twin/requirements.txt",
            program.display()
        ));
    }
    if side == Side::LlamaCpp && !args.gguf.is_file() {
        return Err(format!("{} is not there (--gguf)", args.gguf.display()));
    }
    if side == Side::Transformers && !args.smollm2.join("config.json").is_file() {
        return Err(format!(
            "{} is not there (--smollm2)",
            args.smollm2.display()
        ));
    }
    let torch = matches!(side, Side::Pytorch | Side::Compiled | Side::Transformers);
    let tcmalloc = TCMALLOC.iter().map(PathBuf::from).find(|p| p.is_file());
    Ok(Opponent {
        side,
        program,
        script: Some(here.join(script)),
        preload: tcmalloc.filter(|_| torch),
    })
}

impl Opponent {
    /// This program again.
    pub fn ours() -> Outcome<Self> {
        Ok(Self {
            side: Side::Ours,
            program: std::env::current_exe()?,
            script: None,
            preload: None,
        })
    }

    /// The process that measures a row.
    pub fn command(&self, row: &Row, args: &Args) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.script);
        if let Some(library) = &self.preload {
            command.env("LD_PRELOAD", library);
        }
        let (past, new) = match row.task {
            Task::SmolLm2Decode(past) => (past, SMOLLM2_NEW),
            _ => (SMOLLM2_PROMPT, 0),
        };
        let (past, new) = (past.to_string(), new.to_string());
        let smollm2 = args.smollm2.join("config.json").is_file();
        match self.side {
            Side::Ours => {
                command
                    .args(["--child", &row.name])
                    .args(["--device", &args.device.to_string()])
                    .arg("--video")
                    .arg(&args.video)
                    .arg("--smollm2")
                    .arg(&args.smollm2)
                    .env("RAYON_NUM_THREADS", args.threads.to_string());
            }
            Side::Pytorch | Side::Compiled => {
                let device = match args.device {
                    DeviceChoice::Cuda(index) => format!("cuda:{index}"),
                    _ => "cpu".into(),
                };
                command
                    .args(["--row", row.twin_name(), "--dtype", row.format.name()])
                    .args(["--device", &device])
                    .arg("--video")
                    .arg(&args.video);
                if smollm2 {
                    command.arg("--model").arg(&args.smollm2);
                }
                if self.side == Side::Compiled {
                    command.arg("--compile");
                }
            }
            Side::Transformers => {
                command
                    .args(["--dtype", row.format.name(), "--past", &past, "--new", &new])
                    .arg("--model")
                    .arg(&args.smollm2);
            }
            Side::LlamaCpp => {
                command
                    .args([
                        "--format",
                        row.format.name(),
                        "--past",
                        &past,
                        "--new",
                        &new,
                    ])
                    .arg("--gguf")
                    .arg(&args.gguf);
            }
        }
        command
            .args(["--threads", &args.threads.to_string()])
            .args(["--seconds", &args.seconds.to_string()]);
        command
    }
}
