//! Our kernels beside PyTorch's, row by row, in one command:
//!
//! ```text
//! benches/twin/setup.sh                      # once: a venv with torch and decord
//! cargo bench --bench twin -- --threads 2
//! ```
//!
//! Every measurement is a process of its own, ours (this binary again, `--child`) and the twin's
//! (`twin.py`) in turn, so that a peak of memory belongs to one row and a slow minute of the
//! machine hits both. That is also why this is not a divan or criterion bench: neither can pair a
//! function with another process.

mod machine;
mod ours;
mod report;
mod rows;
mod run;
mod sides;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sides::Side;
use tpo::DeviceChoice;
use tpo::core::threads::in_pool;

/// As in the program: with the system's allocator every large activation costs its page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Result of anything here; a bench prints its errors and goes on.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Our kernels beside PyTorch's.
#[derive(Parser)]
#[command(
    name = "twin",
    after_help = "The twin's interpreter is $TPO_TWIN_PYTHON, else benches/twin/.venv/bin/python \
                  (made by benches/twin/setup.sh)."
)]
pub struct Args {
    /// cpu, cuda:0 or wgpu (which has no twin)
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// Threads on either side
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
    pub threads: usize,
    /// Only these rows (repeat the option); names as in the table
    #[arg(long)]
    pub only: Vec<String>,
    /// Rounds of processes per row
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Seconds a process measures for, after its warm-up
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Wait for a machine without other work before every process, and repeat what was disturbed
    #[arg(long)]
    pub quiet: bool,
    /// Measure ours alone
    #[arg(long)]
    pub no_twin: bool,
    /// Only these beside ours (repeat the option)
    #[arg(long, value_parser = side)]
    pub beside: Vec<Side>,
    /// Keep every sample in this file; rows that are there already are replaced
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Measure nothing: write the table of --json onto this page
    #[arg(long, requires = "json")]
    page: Option<PathBuf>,
    /// Clip of the row `video-decode`
    #[arg(long, default_value = "assets/bouncing_shapes.mp4")]
    pub video: PathBuf,
    /// Hugging Face directory of SmolLM2; without it the rows run
    /// with random weights of that shape
    #[arg(long, default_value = ".models/smollm2")]
    pub smollm2: PathBuf,
    /// GGUF file of SmolLM2, of which llama.cpp makes its number formats
    #[arg(long, default_value = ".models/smollm2.gguf")]
    pub gguf: PathBuf,
    /// Measure this row in this process and print JSON
    #[arg(long, hide = true)]
    child: Option<String>,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match &args.child {
        Some(row) => child(row, &args),
        None if args.page.is_some() => page(&args),
        None if args.bench => run::all(&args),
        // `cargo test --all-targets` starts benches too; minutes of matmuls are not a test.
        None => {
            println!("nothing measured: start with `cargo bench --bench twin`");
            return ExitCode::SUCCESS;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn side(name: &str) -> Result<Side, String> {
    let named = |side: &Side| side.title().eq_ignore_ascii_case(name);
    Side::OTHERS.into_iter().find(named).ok_or_else(|| {
        let titles = Side::OTHERS.map(Side::title);
        format!("it is none of {}", titles.join(", "))
    })
}

fn page(args: &Args) -> Outcome<()> {
    if let (Some(json), Some(page)) = (&args.json, &args.page) {
        report::write(page, &report::table(&run::Results::read(json)?)?)?;
    }
    Ok(())
}

fn child(row: &str, args: &Args) -> Outcome<()> {
    let row = rows::find(row)?;
    let measured = in_pool(|| ours::measure(&row, args).map_err(|e| e.to_string()))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
