//! Blocks of 32 elements with one scale.

use burn::tensor::f16;
use pulp::{Arch, Simd, WithSimd, bytemuck};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Elements that share a scale.
pub(super) const GROUP: usize = 32;

/// How the elements of a quantised weight are stored, with the values that the GGUF formats of the
/// same names give. Each line (output) is cut into blocks of 32 elements with a scale `d` of type
/// `f16`. A packed line is 32-bit words: the elements of all blocks, the first in the lowest bits,
/// then the scales, two in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QuantFormat {
    /// `d · q` with `q` in −127..=127 and `d` the largest magnitude over 127; four in a unit,
    /// as two's complement. 8.5 bits an element.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// `d · (q − 8)` with `q` in 0..=15 and `d` the element of largest magnitude over −8; eight
    /// in a unit. 4.5 bits an element.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl QuantFormat {
    /// As it is written in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Elements in one 32-bit unit.
    pub const fn per_unit(self) -> usize {
        match self {
            Self::Q8_0 => 4,
            Self::Q4_0 => 8,
        }
    }

    /// Words of a packed line of `d_in` elements, or `None` where these are no whole blocks.
    pub const fn words(self, d_in: usize) -> Option<usize> {
        if d_in == 0 || !d_in.is_multiple_of(GROUP) {
            return None;
        }
        Some(d_in / self.per_unit() + (d_in / GROUP).div_ceil(2))
    }

    /// The format whose packed lines of `d_in` elements have this many words.
    pub fn of(d_in: usize, words: usize) -> Option<Self> {
        [Self::Q8_0, Self::Q4_0]
            .into_iter()
            .find(|format| format.words(d_in) == Some(words))
    }

    /// Packs lines of `d_in` elements; `None` where these are no whole blocks.
    pub fn quantize(self, values: &[f32], d_in: usize) -> Option<Vec<u32>> {
        let words = self.words(d_in)?;
        let mut packed = vec![0u32; values.len() / d_in * words];
        packed
            .par_chunks_mut(words)
            .zip(values.par_chunks(d_in))
            .for_each(|(packed, line)| {
                Arch::new().dispatch(Line {
                    format: self,
                    line,
                    packed,
                });
            });
        Some(packed)
    }

    #[inline(always)]
    fn quantize_line(self, line: &[f32], packed: &mut [u32]) {
        let (units, scales) = packed.split_at_mut(line.len() / self.per_unit());
        let scales: &mut [u16] = bytemuck::cast_slice_mut(scales);
        let units = units.chunks_exact_mut(GROUP / self.per_unit());
        for ((block, units), scale) in line.as_chunks::<GROUP>().0.iter().zip(units).zip(scales) {
            *scale = self.quantize_block(block, units).to_bits();
        }
    }

    /// What is no number becomes 0.
    #[inline(always)]
    fn quantize_block(self, block: &[f32; GROUP], units: &mut [u32]) -> f16 {
        // Magnitudes are in the order of their bits.
        let magnitude = |v: f32| {
            let bits = v.to_bits() & !(1 << 31);
            if bits > f32::INFINITY.to_bits() {
                0
            } else {
                bits
            }
        };
        let peak = block.iter().fold(0, |peak, v| magnitude(*v).max(peak));
        let scale = match self {
            Self::Q8_0 => f32::from_bits(peak) / 127.0,
            Self::Q4_0 => {
                // The first of the elements of largest magnitude, with its sign.
                let first = block.iter().find(|v| magnitude(**v) == peak);
                first.filter(|_| peak > 0).copied().unwrap_or_default() / -8.0
            }
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut q = [0u8; GROUP];
        match self {
            Self::Q8_0 => {
                for (q, v) in q.iter_mut().zip(block) {
                    // Half away from zero as `f32::round`, which is a call where the CPU is not known.
                    let x = v * inverse;
                    *q = byte(x + 0.5f32.next_down().copysign(x), -128.0, 127.0);
                }
                for (unit, q) in units.iter_mut().zip(q.as_chunks::<4>().0) {
                    *unit = u32::from_le_bytes(*q);
                }
            }
            Self::Q4_0 => {
                for (q, v) in q.iter_mut().zip(block) {
                    *q = byte(v * inverse + 8.5, 0.0, 15.0);
                }
                for (unit, q) in units.iter_mut().zip(q.as_chunks::<8>().0) {
                    // Eight bytes of four bits to four bytes.
                    let q = u64::from_le_bytes(*q);
                    let q = (q | q >> 4) & 0x00ff_00ff_00ff_00ff;
                    let q = (q | q >> 8) & 0x0000_ffff_0000_ffff;
                    *unit = (q | q >> 16) as u32;
                }
            }
        }
        f16::from_f32(scale)
    }
}

/// The integer part of a number between two small integers, or the nearer of these, as two's complement;
/// 0 for what is no number. A cast would keep the compiler from vectors.
#[inline(always)]
fn byte(x: f32, least: f32, most: f32) -> u8 {
    const MAGIC: f32 = 1.5 * (1 << 23) as f32;
    let x = if x.is_nan() { 0.0 } else { x };
    (x.clamp(least, most).trunc() + MAGIC).to_bits() as u8
}

/// A line to be quantised.
struct Line<'a> {
    format: QuantFormat,
    line: &'a [f32],
    packed: &'a mut [u32],
}

impl WithSimd for Line<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // The format is a constant in each.
        match self.format {
            QuantFormat::Q8_0 => QuantFormat::Q8_0.quantize_line(self.line, self.packed),
            QuantFormat::Q4_0 => QuantFormat::Q4_0.quantize_line(self.line, self.packed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: 32 elements of which the first are told.
    #[test]
    fn blocks_have_the_values_of_gguf() {
        let mut block = [0.0f32; GROUP];
        block[..4].copy_from_slice(&[-8.0, 4.0, 1.0, -0.4]);
        let packed = QuantFormat::Q8_0.quantize(&block, GROUP).unwrap();
        // 4 · 127 / 8 = 63.5 rounds away from zero; 15.875 to 16; −6.35 to −6.
        let elements = packed[0].to_le_bytes().map(|b| b as i8);
        assert_eq!((packed.len(), elements), (9, [-127, 64, 16, -6]));
        assert_eq!(packed[8], u32::from(f16::from_f32(8.0 / 127.0).to_bits()));

        let packed = QuantFormat::Q4_0.quantize(&block, GROUP).unwrap();
        // The peak is negative: d = −8 / −8 = 1; q − 8 = −8, 4, 1, and −0.4 is nearest 0.
        assert_eq!((packed.len(), packed[0] & 0xffff), (5, 0x89c0));
        assert_eq!(packed[4], u32::from(f16::from_f32(1.0).to_bits()));
        block[0] = 8.0;
        // d = −1: 8 → 0, 4 → 4, 1 → 7, −0.4 → 8.
        let packed = QuantFormat::Q4_0.quantize(&block, GROUP).unwrap();
        assert_eq!(packed[0] & 0xffff, 0x8740);
        assert_eq!(packed[4], u32::from(f16::from_f32(-1.0).to_bits()));
        let packed = QuantFormat::Q4_0.quantize(&[0.0; GROUP], GROUP).unwrap();
        assert_eq!((packed[0], packed[4] & 0x7fff), (0x8888_8888, 0));
        assert_eq!(QuantFormat::of(96, 24 + 2), Some(QuantFormat::Q8_0));
        assert_eq!(QuantFormat::of(96, 12 + 2), Some(QuantFormat::Q4_0));
        assert_eq!(
            (QuantFormat::of(96, 24), QuantFormat::Q8_0.words(80)),
            (None, None)
        );
        assert_eq!(QuantFormat::Q8_0.quantize(&[0.0; 80], 80), None);
    }

    /// Every element by the definition, also of what is hard: ties, zeros, and what is no number.
    #[test]
    fn elements_are_rounded_as_defined() {
        let mut values: Vec<f32> = (0..64 * GROUP)
            .map(|i| ((i * 7919) % 4001) as f32 / 1000.0 - 2.0)
            .collect();
        for (i, v) in values[..255].iter_mut().enumerate() {
            *v = i as f32 / 2.0 - 63.5;
        }
        let odd = [
            f32::NAN,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1e-42,
            3e38,
        ];
        for (i, v) in odd.into_iter().enumerate() {
            values[(10 + i) * GROUP..][..i + 1].fill(v);
        }
        values[20 * GROUP..][..GROUP].fill(-0.0);
        values[21 * GROUP..][..GROUP].fill(f32::NAN);
        for format in [QuantFormat::Q8_0, QuantFormat::Q4_0] {
            let packed = format.quantize(&values, values.len()).unwrap();
            let (units, scales) = packed.split_at(values.len() / format.per_unit());
            let scales: &[u16] = bytemuck::cast_slice(scales);
            for (block, values) in values.chunks(GROUP).enumerate() {
                let larger = |peak: f32, v: &f32| if v.abs() > peak.abs() { *v } else { peak };
                let peak = values.iter().fold(0.0, larger);
                let scale = match format {
                    QuantFormat::Q8_0 => peak.abs() / 127.0,
                    QuantFormat::Q4_0 => peak / -8.0,
                };
                assert_eq!(
                    scales[block],
                    f16::from_f32(scale).to_bits(),
                    "{format:?} {block}"
                );
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                for (i, v) in values.iter().enumerate() {
                    let at = block * GROUP + i;
                    let bits = 32 / format.per_unit();
                    let found = units[at / format.per_unit()] >> (at % format.per_unit() * bits);
                    let (found, expected) = match format {
                        QuantFormat::Q8_0 => {
                            (found & 255, (v * inverse).round() as i8 as u8 as u32)
                        }
                        QuantFormat::Q4_0 => (found & 15, ((v * inverse + 8.5) as u32).min(15)),
                    };
                    assert_eq!(found, expected, "{format:?}: {v} with the scale {scale}");
                }
            }
        }
    }
}
