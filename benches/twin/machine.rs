//! What Linux tells about this process and its neighbours. Elsewhere everything is `None`.

use std::fs;
use std::time::{Duration, Instant};

/// A line of `/proc/self/status` in MiB (`VmHWM:` the peak of resident memory, `VmRSS:` now).
pub fn status_mib(field: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Makes `VmHWM` start again from the present size, so that it does not speak of set-up.
pub fn reset_peak() {
    // Where this is not allowed the peak includes set-up.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// CPU time in clock ticks: of the whole machine, and of this process's ended children.
#[derive(Clone, Copy)]
pub struct CpuTime {
    machine: f64,
    children: f64,
    at: Instant,
}

/// Ticks per second; the value of every Linux since 2.6.
const TICKS: f64 = 100.0;

impl CpuTime {
    pub fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let machine: Vec<f64> = stat
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            .filter_map(|n| n.parse().ok())
            .collect();
        // user, nice, system, idle, iowait, irq, softirq, steal: idle and iowait are not work.
        let busy: f64 = [0, 1, 2, 5, 6, 7]
            .iter()
            .filter_map(|i| machine.get(*i))
            .sum();
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in brackets may hold spaces; utime is the 12th field after it.
        let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let children = fields
            .get(11..15)?
            .iter()
            .filter_map(|n| n.parse::<f64>().ok())
            .sum();
        Some(Self {
            machine: busy,
            children,
            at: Instant::now(),
        })
    }

    /// Cores that neither this process nor its ended children kept busy since then.
    pub fn others(self) -> Option<f64> {
        let now = Self::now()?;
        let ticks = (now.machine - self.machine) - (now.children - self.children);
        Some((ticks / TICKS / (now.at - self.at).as_secs_f64()).max(0.0))
    }
}

/// Work of other processes, in cores, above which a measurement counts as disturbed.
pub const DISTURBED: f64 = 0.1;

/// Waits until other processes leave the machine alone for two seconds; `false` after `limit`.
pub fn wait_for_quiet(limit: Duration) -> bool {
    let start = Instant::now();
    loop {
        let Some(before) = CpuTime::now() else {
            return false;
        };
        std::thread::sleep(Duration::from_secs(2));
        if before.others().is_some_and(|cores| cores < DISTURBED) {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
    }
}

/// The processor's name and the number of cores this process may use.
pub fn describe() -> String {
    let name = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|info| {
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    format!("{name}, {cores} cores")
}
