//! Operations of one input that do not wait for each other.

use burn::tensor::{Device, Tensor};

/// Multiply-adds for which it pays that another thread wakes.
const SMALL: usize = 1 << 16;
/// Rows up to which it pays to begin both at once: with more each fills all threads for long.
const FEW: usize = 32;

/// Runs `first` and `second` on the same input `[.., d_in]`. With few rows on the CPU they run at the same
/// time, and threads meet once for both rather than once for each; elsewhere, and with autodiff, one after
/// the other. The results are the same.
///
/// `weights` counts the elements that the smaller of them multiplies each row with. `drawn` says that every
/// parameter of both has its values: those drawn on first use come from the device's generator in the order of the
/// calls.
pub fn together<A: Send, B: Send, const D: usize>(
    x: Tensor<D>,
    weights: usize,
    drawn: bool,
    first: impl FnOnce(Tensor<D>) -> A + Send,
    second: impl FnOnce(Tensor<D>) -> B + Send,
) -> (A, B) {
    let rows: usize = x.dims()[..D - 1].iter().product();
    let pays = rows <= FEW && rows * weights >= SMALL;
    let (device, other) = (x.device(), x.clone());
    // Devices are equal with and without autodiff, whose graphs and dropout go by the order of calls.
    if pays && drawn && device == Device::flex() && !device.is_autodiff() {
        rayon::join(|| first(x), || second(other))
    } else {
        (first(x), second(other))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Whether the second begins while the first waits for it, so long at the most.
    fn at_the_same_time(
        rows: usize,
        weights: usize,
        drawn: bool,
        device: &Device,
        wait: Duration,
    ) -> bool {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2);
        let (said, heard) = channel();
        let x = Tensor::<2>::zeros([rows, 4], device);
        let first = move |_| heard.recv_timeout(wait).is_ok();
        let second = move |x: Tensor<2>| {
            // Nobody may be listening any more.
            let _ = said.send(());
            x.dims()
        };
        let pool = pool.build().unwrap();
        let (heard, dims) = pool.install(|| together(x, weights, drawn, first, second));
        assert_eq!(dims, [rows, 4]);
        heard
    }

    #[test]
    fn few_rows_of_large_weights_go_at_the_same_time() {
        let cpu = Device::flex();
        let [long, short] = [20_000, 200].map(Duration::from_millis);
        assert!(at_the_same_time(1, SMALL, true, &cpu, long));
        assert!(at_the_same_time(FEW, SMALL, true, &cpu, long));
        assert!(!at_the_same_time(1, SMALL - 1, true, &cpu, short));
        assert!(!at_the_same_time(FEW + 1, SMALL, true, &cpu, short));
        assert!(!at_the_same_time(1, SMALL, false, &cpu, short));
        assert!(!at_the_same_time(1, SMALL, true, &cpu.autodiff(), short));
    }
}
