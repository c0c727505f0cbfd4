//! Decoding reads half-precision keys and values where they lie in the cache. In a process of its own,
//! since it looks at the process's memory.

#![cfg(target_os = "linux")]

use burn::tensor::{DType, Device, Tensor};
use tpo_core::ops::{AttentionOptions, attention};

/// Kibibytes of a line of the process's status.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_token_takes_no_copy_of_the_cache() {
    let device = Device::flex();
    let (capacity, len) = (16_384, 16_000);
    for dtype in [DType::F16, DType::BF16] {
        let cache = || Tensor::<4>::ones([1, 8, capacity, 64], (&device, dtype)).narrow(2, 0, len);
        let (k, v) = (cache(), cache());
        let q = Tensor::<4>::ones([1, 8, 1, 64], (&device, dtype));
        // Starts the peak anew.
        std::fs::write("/proc/self/clear_refs", "5").expect("Linux lets a process reset its peak");
        let before = status("VmRSS:");
        let out = attention(q, k, v, AttentionOptions::causal());
        let extra = status("VmHWM:") - before;
        assert_eq!(
            out.into_data().iter::<f32>().collect::<Vec<_>>(),
            [1.0; 512]
        );
        // One of the two in order is 16 MB, widened 33 MB.
        assert!(extra < 8 << 10, "{extra} KiB for a token in {dtype:?}");
    }
}
