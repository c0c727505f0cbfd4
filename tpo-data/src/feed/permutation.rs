//! A shuffle without a list: the position of an element costs a few multiplications and no memory.

use super::draw::{hash, mix};

/// A pseudo-random permutation of `0..n`, chosen by a key.
///
/// A balanced Feistel network over the next power of four; values outside `0..n` are sent
/// through again until they fall inside (cycle walking), on average fewer than four times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

const ROUNDS: usize = 6;

impl Permutation {
    /// The permutation of `0..n` that belongs to `key`. `n` is at most 2^62.
    pub fn new(n: u64, key: u64) -> Self {
        let n = n.min(1 << 62);
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self {
            n,
            half_bits: bits.div_ceil(2).max(1),
            keys: std::array::from_fn(|i| hash(&[key, i as u64])),
        }
    }

    /// The element at place `i`; `i` itself when it is not below `n`.
    pub fn get(&self, i: u64) -> u64 {
        if i >= self.n || self.n < 2 {
            return i;
        }
        let mut x = i;
        loop {
            x = self.network(x);
            // A permutation of the larger range returns to `i` at the latest.
            if x < self.n {
                return x;
            }
        }
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            let next = left ^ (mix(right ^ key) & mask);
            (left, right) = (right, next);
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_once_for_any_size() {
        for n in (0..70).chain([100, 255, 256, 257, 1000, 4097]) {
            for key in 0..5 {
                let p = Permutation::new(n, key);
                let mut seen: Vec<u64> = (0..n).map(|i| p.get(i)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..n).collect::<Vec<_>>(), "{n} {key}");
            }
        }
        let large = Permutation::new(u64::MAX, 1);
        assert!(large.get(5) < large.n);
    }

    #[test]
    fn it_shuffles() {
        // Places and elements are uncorrelated, and neighbours are not kept.
        let n = 10_000u64;
        let p = Permutation::new(n, 3);
        let mean = (n - 1) as f64 / 2.0;
        let (mut cov, mut var, mut neighbours) = (0.0, 0.0, 0);
        for i in 0..n {
            let (x, y) = (i as f64 - mean, p.get(i) as f64 - mean);
            cov += x * y;
            var += x * x;
            neighbours += u64::from(i > 0 && p.get(i) == p.get(i - 1) + 1);
        }
        assert!((cov / var).abs() < 0.04, "{}", cov / var);
        assert!(neighbours < 8, "{neighbours}");
        let other = Permutation::new(n, 4);
        let same = (0..n).filter(|i| p.get(*i) == other.get(*i)).count();
        assert!(same < 8, "{same}");
    }

    #[test]
    fn small_permutations_are_all_reached() {
        // All 6 orders of 3 elements, each with about a sixth of the keys.
        let mut counts = std::collections::HashMap::new();
        for key in 0..6000 {
            let p = Permutation::new(3, key);
            *counts.entry([p.get(0), p.get(1), p.get(2)]).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|c| (850..1150).contains(c)),
            "{counts:?}"
        );
    }
}
