//! Random choices that never change with a version of a library.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

/// A stream of choices. Only the generator's raw 64-bit output is used, which is specified; the
/// distributions of a library may change.
#[derive(Debug, Clone)]
pub(crate) struct Draw(Xoshiro256PlusPlus);

impl Draw {
    /// The stream of a key.
    pub fn of(key: &[u64]) -> Self {
        // FNV-1a over the bytes of the key.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in key.iter().flat_map(|k| k.to_le_bytes()) {
            hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(Xoshiro256PlusPlus::seed_from_u64(hash))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.next() as u128 * bound as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// One of the items.
    ///
    /// # Panics
    /// Without items; the callers' lists are constants.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Puts items in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_key_is_fixed() {
        let mut a = Draw::of(&[1, 2, 3]);
        let first: Vec<usize> = (0..6).map(|_| a.below(100)).collect();
        let mut b = Draw::of(&[1, 2, 3]);
        assert_eq!(first, (0..6).map(|_| b.below(100)).collect::<Vec<_>>());
        assert_ne!(
            first,
            (0..6)
                .map(|_| Draw::of(&[1, 2, 4]).below(100))
                .collect::<Vec<_>>()
        );
        let mut items: Vec<u32> = (0..50).collect();
        a.shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(items, sorted);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&a.unit())));
    }
}
