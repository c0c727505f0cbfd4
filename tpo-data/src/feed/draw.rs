//! Random numbers that are a pure function of where they are used.

use tpo_core::seed::STEP;
pub(super) use tpo_core::seed::scatter as mix;

/// What the randomness of an item depends on: nothing else ever does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ItemSeed {
    /// Seed of the run.
    pub seed: u64,
    /// Epoch, 0-based.
    pub epoch: u64,
    /// Place of the item in the epoch, 0-based.
    pub index: u64,
}

/// A number from several; their order matters.
pub(super) fn hash(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(0x7470_6F5F_6461_7461, |h, p| mix(h ^ mix(*p)))
}

/// A stream of random numbers, the same on every machine.
#[derive(Debug, Clone)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// The stream of one purpose of an item: purposes do not disturb each other, so switching an
    /// augmentation on leaves the choice of templates as it was.
    pub fn new(seed: ItemSeed, purpose: &str) -> Self {
        let name = purpose.bytes().fold(0u64, |h, b| mix(h ^ u64::from(b)));
        Self {
            state: hash(&[seed.seed, seed.epoch, seed.index, name]),
        }
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        let value = mix(self.state);
        self.state = self.state.wrapping_add(STEP);
        value
    }

    /// In `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `n`; 0 for `n` of 0. The bias is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
}
