//! Random numbers that are a pure function of others: SplitMix64 (Steele, Lea, Flood 2014).

/// What one state of the sequence is from the next.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A seed made of two numbers, well spread.
pub fn mix(seed: u64, index: u64) -> u64 {
    finish(seed ^ index.wrapping_add(1).wrapping_mul(STEP))
}

/// One step of SplitMix64, a bijection.
pub fn scatter(state: u64) -> u64 {
    finish(state.wrapping_add(STEP))
}

/// The end of a step: a bijection that scatters its input.
pub fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ() {
        let seeds: std::collections::HashSet<u64> = (0..4)
            .flat_map(|s| (0..64).map(move |i| mix(s, i)))
            .collect();
        assert_eq!(seeds.len(), 256);
    }

    #[test]
    fn the_first_numbers_of_splitmix64() {
        // The sequence of seed 1234567 in Vigna's reference implementation.
        let state = |i: u64| 1_234_567_u64.wrapping_add(i.wrapping_mul(STEP));
        assert_eq!(scatter(state(0)), 6_457_827_717_110_365_317);
        assert_eq!(scatter(state(1)), 3_203_168_211_198_807_973);
    }
}
