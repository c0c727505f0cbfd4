//! Large inputs, some of the rows at a time.

use burn::tensor::{Device, Tensor};

/// `run` on even parts of `x` along `axis`, one after the other: what it makes on the way is then that of
/// one part. Parts are multiples of `unit`, but for the last one, and of at most `most` where that is no
/// less. For functions whose results do not depend on what is in other parts. `x` stays whole where
/// gradients are recorded, which keeps all of it, and on devices other than the CPU, which want large launches.
///
/// # Shapes
/// - `x` and output of `run` `[..]`; parts are put together along `axis`
pub fn in_parts<const D: usize>(
    x: Tensor<D>,
    axis: usize,
    most: usize,
    unit: usize,
    run: impl Fn(Tensor<D>) -> Tensor<D>,
) -> Tensor<D> {
    let (length, unit) = (x.dims()[axis], unit.max(1));
    let most = (most / unit).max(1) * unit;
    let device = x.device();
    if length <= most || device.is_autodiff() || device != Device::flex() {
        return run(x);
    }
    let even = length.div_ceil(length.div_ceil(most));
    let part = even.next_multiple_of(unit);
    let parts = (0..length).step_by(part).map(|first| {
        let count = part.min(length - first);
        run(x.clone().narrow(axis, first, count))
    });
    Tensor::cat(parts.collect(), axis)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Int;

    use super::*;

    fn lengths(length: i64, most: usize, unit: usize, device: &Device) -> Vec<usize> {
        let seen = std::cell::RefCell::new(Vec::new());
        let x = Tensor::<1, Int>::arange(0..2 * length, device).float();
        let x = x.reshape([2, length as usize]);
        let y = in_parts(x.clone(), 1, most, unit, |part| {
            seen.borrow_mut().push(part.dims()[1]);
            part * 2.0
        });
        y.into_data().assert_eq(&(x * 2.0).into_data(), true);
        seen.into_inner()
    }

    #[test]
    fn parts_are_even_and_whole_units() {
        let device = Device::flex();
        assert_eq!(lengths(10, 4, 1, &device), [4, 4, 2]);
        assert_eq!(lengths(9, 8, 1, &device), [5, 4]);
        assert_eq!(lengths(20, 11, 4, &device), [8, 8, 4]);
        // A unit is never cut.
        assert_eq!(lengths(10, 2, 4, &device), [4, 4, 2]);
        assert_eq!(lengths(8, 8, 4, &device), [8]);
        assert_eq!(lengths(10, 4, 1, &device.autodiff()), [10]);
    }
}
