//! What this machine can run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use tpo_core::head::HeadSet;

use super::shared::{End, Outcome};
use crate::model::memory::{ModelMemory, WeightFormat, available_memory, gib};
use crate::model::{BuiltInHeads, TpoConfig, read_config};
use crate::{DeviceChoice, presets};

/// Bytes that the bandwidth test reads again and again: more than any cache holds.
const TEST_BYTES: usize = 1 << 28;
/// Tokens of an answer that memory is reckoned for.
const ANSWER: usize = 200;

/// Say what this machine can run: cores, memory, devices, and each model in each number format.
///
/// Seconds per token are those at which the memory can be read, by a test of one second: what a token
/// cannot be faster than. Nothing of a model is read but its sizes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tpo doctor
  tpo doctor --model models/mine")]
pub(super) struct Args {
    /// Model directory to look at beside the known models
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

pub(super) fn run<H: HeadSet>(args: Args) -> Outcome {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "cores      {cores}, {} threads in the pool, {}",
        rayon::current_num_threads(),
        simd()
    );
    let available = available_memory();
    match available {
        Some(bytes) => println!("memory     {:.1} GiB available", gib(bytes)),
        None => println!("memory     this system does not tell"),
    }
    let devices = [DeviceChoice::Cuda(0), DeviceChoice::Wgpu].map(|choice| match choice.open() {
        Ok(_) => format!("{choice}"),
        Err(crate::Error::Device { why, .. }) => format!("no {choice}: {why}"),
        Err(error) => format!("no {choice}: {error}"),
    });
    println!("devices    cpu; {}", devices.join("; "));
    let bandwidth = bandwidth();
    println!("bandwidth  {:.1} GB/s read by all threads", bandwidth / 1e9);

    println!();
    println!(
        "{:24} {:28} {:>10} {:>10}  s/token",
        "model", "format", "weights", "needs"
    );
    let machine = Machine {
        available,
        bandwidth,
    };
    machine.show::<BuiltInHeads>("VideoChat-TPO 7B", &TpoConfig::videochat_tpo())?;
    let onevision = [
        ("LLaVA-OV-TPO 0.5B", TpoConfig::llava_ov_tpo_0_5b()),
        ("LLaVA-OV-TPO 7B", TpoConfig::llava_ov_tpo_7b()),
    ];
    for (name, config) in onevision {
        machine.show::<BuiltInHeads>(name, &config)?;
    }
    machine.show::<BuiltInHeads>("mini (comes with tpo)", &presets::mini_config()?)?;
    if let Some(dir) = &args.model {
        machine.show::<H>(&dir.display().to_string(), &read_config(dir)?)?;
    }
    Ok(End::Fine)
}

/// What models are held against.
struct Machine {
    available: Option<u64>,
    bandwidth: f64,
}

impl Machine {
    /// Prints a line for each format that a model can be opened in.
    fn show<H: HeadSet>(&self, name: &str, config: &TpoConfig) -> crate::Result<()> {
        for format in WeightFormat::of(config, None) {
            let m = ModelMemory::in_format::<H>(config, format, ANSWER)?;
            let fit = match self.available {
                Some(bytes) if m.total() > bytes => "does not fit".into(),
                _ => format!("{:.4}", m.per_token as f64 / self.bandwidth),
            };
            println!(
                "{name:24} {:28} {:>10} {:>10}  {fit}",
                format.flags(),
                format!("{:.2} GiB", gib(m.weights)),
                format!("{:.2} GiB", gib(m.total())),
            );
        }
        Ok(())
    }
}

/// Bytes per second at which all threads together read memory, over one second.
fn bandwidth() -> f64 {
    let words = vec![1_u64; TEST_BYTES / 8];
    let start = Instant::now();
    let (mut read, mut sum) = (0_u64, 0_u64);
    while start.elapsed() < Duration::from_secs(1) {
        let part: u64 = words
            .par_chunks(1 << 15)
            .map(|c| c.iter().sum::<u64>())
            .sum();
        sum = sum.wrapping_add(std::hint::black_box(part));
        read += TEST_BYTES as u64;
    }
    std::hint::black_box(sum);
    read as f64 / start.elapsed().as_secs_f64()
}

/// The vector instructions that the kernels take.
fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            "AVX-512"
        } else if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
        {
            "AVX2"
        } else {
            "no AVX2: slow"
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "NEON"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "no vector instructions known"
    }
}
