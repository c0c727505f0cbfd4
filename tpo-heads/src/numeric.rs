//! Sums and means in numpy's order of additions, so that scores agree to the last digit.

/// Sum in numpy's pairwise order.
pub fn sum(values: &[f64]) -> f64 {
    let n = values.len();
    if n < 8 {
        values.iter().sum()
    } else if n <= 128 {
        let mut lanes: [f64; 8] = std::array::from_fn(|i| values[i]);
        let chunks = values[8..].chunks_exact(8);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane += v;
            }
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        let whole = ((a + b) + (c + d)) + ((e + f) + (g + h));
        rest.iter().fold(whole, |s, v| s + v)
    } else {
        let half = n / 2;
        let half = half - half % 8;
        sum(&values[..half]) + sum(&values[half..])
    }
}

/// Mean in numpy's order; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| sum(values) / values.len() as f64)
}

/// A share as per cent, rounded to two decimals as `float(f"{100 * share:.2f}")`: half to even
/// on the exact binary value.
pub fn percent(share: f64) -> f64 {
    let text = format!("{:.2}", 100.0 * share);
    text.parse().unwrap_or(f64::NAN)
}

/// Index of the first largest value; a NaN counts as largest, as in numpy.
pub fn argmax(values: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, v) in values.iter().enumerate() {
        if v.is_nan() {
            return Some(i);
        }
        if best.is_none_or(|(_, b)| *v > b) {
            best = Some((i, *v));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy 2.4: `(1 / np.arange(3, n + 3, dtype=float)).sum()`.
    #[test]
    fn sums_have_the_bits_of_numpy() {
        for (n, expected) in [
            (7, 1.328968253968254),
            (8, 1.4289682539682538),
            (100, 3.707082429307257),
            (129, 3.956224926052236),
            (1000, 5.987467865541362),
            (4650, 7.5223756553428744),
        ] {
            let values: Vec<f64> = (0..n).map(|i| 1.0 / (i + 3) as f64).collect();
            assert_eq!(sum(&values), expected, "{n}");
        }
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn rounding_is_half_to_even_on_the_binary_value() {
        // 100/800 = 0.125 is exact in binary, 2.675 is not.
        assert_eq!(percent(1.0 / 800.0), 0.12);
        assert_eq!(percent(3.0 / 800.0), 0.38);
        assert_eq!(percent(0.02675), 2.67);
        assert_eq!(percent(1.0), 100.0);
    }

    #[test]
    fn argmax_takes_the_first() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
        assert_eq!(argmax(&[1.0, f64::NAN, 3.0]), Some(1));
        assert_eq!(argmax(&[]), None);
    }
}
