//! Blocks of quantised elements, as GGUF files store them.

use burn::tensor::f16;
use pulp::bytemuck;
use rayon::prelude::*;
use serde::Serialize;

use crate::ops::QuantFormat;

/// Elements of a block that has one scale.
const SMALL: usize = 32;
/// Elements of a block of scaled groups (`QK_K`).
const SUPER: usize = 256;

/// How a line of a quantised tensor is cut into blocks. `d` and `m` are of type `f16`, `q` stands
/// for elements without a sign where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum BlockType {
    /// 32 elements `d · (q − 8)` of 4 bits: `d`, then bytes with element `i` low and `i + 16` high.
    #[serde(rename = "Q4_0")]
    Q4_0,
    /// 32 elements `d · q + m` of 4 bits: `d`, `m`, then elements as in `Q4_0`.
    #[serde(rename = "Q4_1")]
    Q4_1,
    /// 32 elements `d · q` of 8 bits with a sign: `d`, then the elements.
    #[serde(rename = "Q8_0")]
    Q8_0,
    /// 8 groups of 32 elements `d · s · q − m · t` of 4 bits: `d`, `m`, the groups' `s` and `t` of 6
    /// bits in 12 bytes, then elements, two groups in 32 bytes, the first in the low halves.
    #[serde(rename = "Q4_K")]
    Q4K,
    /// 16 groups of 16 elements `d · s · (q − 32)` of 6 bits: their lower 4 bits, their upper 2
    /// bits, the groups' `s` of 8 bits with a sign, then `d`.
    #[serde(rename = "Q6_K")]
    Q6K,
}

impl BlockType {
    /// As the format calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements of a block; a line is whole blocks.
    pub const fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => SMALL,
            Self::Q4K | Self::Q6K => SUPER,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + SMALL / 2,
            Self::Q4_1 => 4 + SMALL / 2,
            Self::Q8_0 => 2 + SMALL,
            Self::Q4K => 4 + 12 + SUPER / 2,
            Self::Q6K => SUPER / 2 + SUPER / 4 + SUPER / 16 + 2,
        }
    }

    /// The format of ours that holds the same elements.
    pub const fn packed(self) -> Option<QuantFormat> {
        match self {
            Self::Q8_0 => Some(QuantFormat::Q8_0),
            Self::Q4_0 => Some(QuantFormat::Q4_0),
            Self::Q4_1 | Self::Q4K | Self::Q6K => None,
        }
    }

    /// The elements of whole blocks, with the values that llama.cpp gives them.
    pub fn decode(self, blocks: &[u8]) -> Vec<f32> {
        let count = blocks.len() / self.bytes();
        let mut values = vec![0.0f32; count * self.elements()];
        // Some ten thousand elements are a task.
        let task = 64;
        values
            .par_chunks_mut(task * self.elements())
            .zip(blocks.par_chunks(task * self.bytes()))
            .for_each(|(values, blocks)| {
                let values = values.chunks_exact_mut(self.elements());
                for (values, block) in values.zip(blocks.chunks_exact(self.bytes())) {
                    self.decode_block(block, values);
                }
            });
        values
    }

    fn decode_block(self, block: &[u8], values: &mut [f32]) {
        match self {
            Self::Q4_0 => {
                let d = half(block, 0);
                halves(&block[2..], values, |q| d * (f32::from(q) - 8.0));
            }
            Self::Q4_1 => {
                let (d, m) = (half(block, 0), half(block, 2));
                halves(&block[4..], values, |q| d * f32::from(q) + m);
            }
            Self::Q8_0 => {
                let d = half(block, 0);
                for (value, q) in values.iter_mut().zip(&block[2..]) {
                    *value = d * f32::from(*q as i8);
                }
            }
            Self::Q4K => {
                let (d, m) = (half(block, 0), half(block, 2));
                let (scales, pairs) = block[4..].split_at(12);
                let groups = values.chunks_exact_mut(2 * SMALL);
                for (pair, (values, bytes)) in groups.zip(pairs.chunks_exact(SMALL)).enumerate() {
                    let factors = [0, 1].map(|of| {
                        let (s, t) = scale_and_min(scales, 2 * pair + of);
                        (d * f32::from(s), m * f32::from(t))
                    });
                    let [(s, t), (s_high, t_high)] = factors;
                    let (low, high) = values.split_at_mut(SMALL);
                    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                        *low = s * f32::from(byte & 15) - t;
                        *high = s_high * f32::from(byte >> 4) - t_high;
                    }
                }
            }
            Self::Q6K => {
                let (lower, rest) = block.split_at(SUPER / 2);
                let (upper, rest) = rest.split_at(SUPER / 4);
                let (scales, d) = rest.split_at(SUPER / 16);
                let d = half(d, 0);
                for (at, value) in values.iter_mut().enumerate() {
                    // Of each half: four quarters of 32 elements. Two quarters share 32 upper
                    // bytes with the other two, and 64 lower bytes in low and high halves.
                    let (part, quarter, i) = (at / 128, at % 128 / 32, at % 32);
                    let low = lower[part * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                    let high = upper[part * 32 + i] >> (quarter * 2) & 3;
                    let scale = d * f32::from(scales[at / 16] as i8);
                    *value = scale * (f32::from(low | high << 4) - 32.0);
                }
            }
        }
    }

    /// The words of packed lines (see [`QuantFormat`]) from lines of `d_in` elements; no element
    /// changes. `None` if no format of ours has these blocks, or these are no whole lines.
    pub fn pack(self, blocks: &[u8], d_in: usize) -> Option<Vec<u32>> {
        let format = self.packed()?;
        let words = format.words(d_in)?;
        let line_bytes = d_in / SMALL * self.bytes();
        if !blocks.len().is_multiple_of(line_bytes) {
            return None;
        }
        let mut packed = vec![0u32; blocks.len() / line_bytes * words];
        packed
            .par_chunks_mut(words)
            .zip(blocks.par_chunks(line_bytes))
            .for_each(|(packed, line)| {
                let (units, scales) = packed.split_at_mut(d_in / format.per_unit());
                let scales: &mut [u16] = bytemuck::cast_slice_mut(scales);
                let units = units.chunks_exact_mut(SMALL / format.per_unit());
                let blocks = line.chunks_exact(self.bytes());
                for ((block, units), scale) in blocks.zip(units).zip(scales) {
                    *scale = half_bits(block, 0);
                    let elements: &mut [u8] = bytemuck::cast_slice_mut(units);
                    match format {
                        QuantFormat::Q8_0 => elements.copy_from_slice(&block[2..]),
                        // Neighbours share a byte there.
                        QuantFormat::Q4_0 => {
                            let mut q = [0u8; SMALL];
                            let (low, high) = q.split_at_mut(SMALL / 2);
                            for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[2..]) {
                                (*low, *high) = (byte & 15, byte >> 4);
                            }
                            for (byte, pair) in elements.iter_mut().zip(q.chunks_exact(2)) {
                                *byte = pair[0] | pair[1] << 4;
                            }
                        }
                    }
                }
            });
        Some(packed)
    }
}

fn half_bits(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_bits(half_bits(bytes, at)).to_f32()
}

/// The elements of 4 bits of a small block: low halves of all bytes, then high halves.
fn halves(bytes: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = values.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

/// The 6-bit numbers of a group of a `Q4_K` block. Those of the first four groups lie in the lower
/// bits of bytes 0–3 and 4–7; of the last four the lower 4 bits share bytes 8–11, and the upper 2
/// are above those of the first.
fn scale_and_min(scales: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (scales[group] & 63, scales[group + 4] & 63),
        _ => {
            let shared = scales[group + 4];
            let upper = |byte: u8| byte >> 6 << 4;
            (
                shared & 15 | upper(scales[group - 4]),
                shared >> 4 | upper(scales[group]),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }

    #[test]
    fn small_blocks_worked_by_hand() {
        let mut block = bits(0.5).to_vec();
        block.extend([0xf0, 0x18]);
        block.extend([0x88; 14]);
        let values = BlockType::Q4_0.decode(&block);
        assert_eq!((values[0], values[16]), (-4.0, 3.5));
        assert_eq!((values[1], values[17], values[2]), (0.0, -3.5, 0.0));

        let mut block = [bits(0.5), bits(-1.0)].concat();
        block.extend([0xf0, 0x21]);
        block.extend([0; 14]);
        let values = BlockType::Q4_1.decode(&block);
        assert_eq!((values[0], values[16]), (-1.0, 6.5));
        assert_eq!((values[1], values[17], values[31]), (-0.5, 0.0, -1.0));

        let mut block = bits(0.25).to_vec();
        block.extend([127, 128, 255]);
        block.extend([0; 29]);
        let values = BlockType::Q8_0.decode(&block);
        assert_eq!(values[..4], [31.75, -32.0, -0.25, 0.0]);
    }

    #[test]
    fn groups_worked_by_hand() {
        let mut block = [bits(0.5), bits(0.25)].concat();
        let mut scales = [0u8; 12];
        // Group 1: s = 3, t = 5. Group 6: s = 0b10_0111, t = 0b01_1001.
        (scales[1], scales[5]) = (3, 5);
        scales[10] = 0b1001_0111;
        scales[2] |= 0b10 << 6;
        scales[6] |= 0b01 << 6;
        block.extend(scales);
        let mut elements = [0u8; 128];
        elements[4] = 0x70; // group 1, element 4
        elements[3 * 32] = 0x0a; // group 6, element 0
        block.extend(elements);
        let values = BlockType::Q4K.decode(&block);
        assert_eq!(values[32 + 4], 0.5 * 3.0 * 7.0 - 0.25 * 5.0);
        assert_eq!(values[32], -1.25);
        assert_eq!(values[6 * 32], 0.5 * 39.0 * 10.0 - 0.25 * 25.0);
        assert_eq!((values[0], values[255]), (0.0, 0.0));

        let mut block = vec![0u8; 210];
        block[64 + 32 + 3] = 0xb5; // second half, quarters 1 (low) and 3 (high), element 3
        block[128 + 32 + 3] = 0b10_00_01_00; // their upper bits: 01 and 10
        block[192 + 8 + 2] = 2; // scale of elements 160..176
        block[192 + 8 + 6] = 0xfe; // of elements 224..240: −2
        block[208..].copy_from_slice(&bits(0.5));
        let values = BlockType::Q6K.decode(&block);
        assert_eq!(values[128 + 32 + 3], 0.5 * 2.0 * (0x15 as f32 - 32.0));
        assert_eq!(values[128 + 96 + 3], 0.5 * -2.0 * (0x2b as f32 - 32.0));
        // Elements of 0 stand for −32.
        assert_eq!((values[128 + 32], values[0]), (-32.0, 0.0));
    }

    #[test]
    fn blocks_become_words_without_loss() {
        for (blocks, format) in [
            (BlockType::Q8_0, QuantFormat::Q8_0),
            (BlockType::Q4_0, QuantFormat::Q4_0),
        ] {
            // Two lines of three blocks: the last scale has a word of its own.
            let bytes: Vec<u8> = (0..6 * blocks.bytes())
                .map(|at| match at % blocks.bytes() {
                    0 => at as u8,
                    1 => 0x30,
                    _ => (at * 37) as u8,
                })
                .collect();
            let packed = blocks.pack(&bytes, 96).unwrap();
            let words = format.words(96).unwrap();
            assert_eq!(packed.len(), 2 * words);
            let device = burn::tensor::Device::flex();
            let data = burn::tensor::TensorData::new(packed, [2, words]);
            let packed = burn::tensor::Tensor::<2, burn::tensor::Int>::from_data(
                data,
                (&device, burn::tensor::DType::U32),
            );
            let values = crate::ops::dequantize(packed, format, 96).into_data();
            assert_eq!(values.as_slice::<f32>().unwrap(), blocks.decode(&bytes));
        }
        assert_eq!(BlockType::Q4_1.pack(&[0; 20], 32), None);
        assert_eq!(BlockType::Q8_0.pack(&[0; 33], 32), None);
    }
}
