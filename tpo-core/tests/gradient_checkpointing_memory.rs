//! A tape keeps one input per segment, not the activations of all of them. In a process of its own,
//! since it looks at the process's memory.

#![cfg(target_os = "linux")]

use burn::module::Param;
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Distribution, Tensor};
use tpo_core::gradient_checkpointing::Tape;

const ROWS: usize = 16384;
const WIDTH: usize = 64;
const BLOCKS: usize = 16;

/// The most memory this process had since the last reset, and what it has now, in bytes.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = |name: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            << 10
    };
    (line("VmHWM:"), line("VmRSS:"))
}

#[test]
fn a_tall_stack_takes_the_memory_of_its_inputs() {
    let device = Device::flex().autodiff();
    let shape = [WIDTH, WIDTH];
    let normal = Distribution::Normal(0.0, 0.1);
    // The last one of a block is the oldest, as new parameters are in no order: Burn joins their graphs.
    let weights: Vec<[Param<Tensor<2>>; 3]> = (0..BLOCKS)
        .map(|_| {
            let mut weights = [(); 3].map(|()| {
                Param::from_tensor(Tensor::random(shape, normal, &device).require_grad())
            });
            weights.reverse();
            weights
        })
        .collect();
    let x: Tensor<3> = Tensor::random([1, ROWS, WIDTH], normal, &device);
    let one = (ROWS * WIDTH * 4) as u64;

    // Starts the peak anew; where that is not allowed there is nothing to compare.
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux lets a process reset its peak");
    let before = memory().1;
    let mut tape = Tape::new(None);
    let mut y = x;
    for weight in &weights {
        y = tape.segment(y, move |y| {
            // Six activations that backward needs.
            weight
                .iter()
                .fold(y, |y, w| gelu(y.matmul(w.val().unsqueeze::<3>())))
        });
    }
    let forward = memory().0 - before;
    let mut parts = 0;
    tape.backward(&y.square().mean(), |_| parts += 1);
    let all = memory().0 - before;
    assert!(parts > BLOCKS);
    // Kept whole, the forward pass would hold at least 6 tensors per block: 96 of them.
    let tensors = |bytes: u64| bytes as f64 / one as f64;
    println!(
        "forward {:.1}, with backward {:.1} tensors",
        tensors(forward),
        tensors(all)
    );
    let inputs = 2.0 * BLOCKS as f64;
    assert!(tensors(forward) < inputs + 20.0, "{}", tensors(forward));
    assert!(tensors(all) < inputs + 30.0, "{}", tensors(all));
}
