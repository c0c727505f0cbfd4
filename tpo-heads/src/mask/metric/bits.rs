//! Masks with one bit per pixel: 64 pixels of a row in one word.

use tpo_core::CoreError;
use tpo_core::geometry::{Mask, Rle};

/// A binary mask `[height, width]`, rows padded to whole words with zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    height: usize,
    width: usize,
    words: usize,
    bits: Vec<u64>,
}

impl BitMask {
    /// A mask without foreground.
    pub fn empty(height: usize, width: usize) -> Self {
        let words = width.div_ceil(64);
        Self {
            height,
            width,
            words,
            bits: vec![0; height * words],
        }
    }

    /// A mask from a rule for each row and column.
    pub fn from_fn(height: usize, width: usize, mut at: impl FnMut(usize, usize) -> bool) -> Self {
        let mut mask = Self::empty(height, width);
        for y in 0..height {
            for x in 0..width {
                mask.bits[y * mask.words + x / 64] |= (at(y, x) as u64) << (x % 64);
            }
        }
        mask
    }

    /// The pixels of a label image, row after row, that carry `label`.
    pub fn from_labels(height: usize, width: usize, labels: &[u8], label: u8) -> Self {
        let mut mask = Self::empty(height, width);
        if width == 0 {
            return mask;
        }
        for (row, words) in labels
            .chunks_exact(width)
            .zip(mask.bits.chunks_exact_mut(mask.words))
        {
            for (pixels, word) in row.chunks(64).zip(words) {
                for (x, pixel) in pixels.iter().enumerate() {
                    *word |= ((*pixel == label) as u64) << x;
                }
            }
        }
        mask
    }

    /// `(height, width)` in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Number of foreground pixels.
    pub fn area(&self) -> u64 {
        self.bits.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether the pixel is foreground; outside the mask none is.
    pub fn get(&self, y: usize, x: usize) -> bool {
        y < self.height && x < self.width && self.bits[y * self.words + x / 64] >> (x % 64) & 1 == 1
    }

    /// Foreground without the pixels of `other`, which must have the same size.
    pub fn without(mut self, other: &Self) -> Self {
        debug_assert_eq!(self.size(), other.size());
        self.bits
            .iter_mut()
            .zip(&other.bits)
            .for_each(|(a, b)| *a &= !b);
        self
    }

    /// Pixels that are foreground in both.
    pub(super) fn intersection(&self, other: &Self) -> u64 {
        let both = self.bits.iter().zip(&other.bits);
        both.map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }

    /// Pixels that are foreground in either.
    pub(super) fn union(&self, other: &Self) -> u64 {
        let both = self.bits.iter().zip(&other.bits);
        both.map(|(a, b)| u64::from((a | b).count_ones())).sum()
    }

    fn row(&self, y: usize) -> &[u64] {
        &self.bits[y * self.words..(y + 1) * self.words]
    }

    /// Contour pixels: those that differ from their right, lower or lower right neighbour. The
    /// last row compares to the right only, the last column downwards only, the last pixel with
    /// nothing (DAVIS).
    pub fn boundary(&self) -> Self {
        let mut out = Self::empty(self.height, self.width);
        if self.width == 0 {
            return out;
        }
        // The last column of a row has no right neighbour.
        let last = self.width - 1;
        for y in 0..self.height {
            let here = self.row(y);
            let below = (y + 1 < self.height).then(|| self.row(y + 1));
            let words = &mut out.bits[y * self.words..(y + 1) * self.words];
            for (i, word) in words.iter_mut().enumerate() {
                let right = |row: &[u64]| row[i] >> 1 | row.get(i + 1).map_or(0, |next| next << 63);
                let mut sideways = here[i] ^ right(here);
                let mut down = 0;
                if let Some(below) = below {
                    down = here[i] ^ below[i];
                    sideways |= here[i] ^ right(below);
                }
                if i == last / 64 {
                    sideways &= !(1 << (last % 64));
                }
                *word = sideways | down;
            }
        }
        out
    }

    /// All pixels within `radius` of the foreground: x² + y² <= radius².
    pub fn dilate(&self, radius: usize) -> Self {
        if radius == 0 {
            return self.clone();
        }
        // No pixel is further away than this.
        let radius = radius.min(self.height + self.width);
        let mut out = Self::empty(self.height, self.width);
        // Half width of the disk in the rows at distance 0..=radius, non-increasing.
        let reach = radius.min(self.height.saturating_sub(1));
        let half: Vec<usize> = (0..=reach)
            .map(|dy| (radius * radius - dy * dy).isqrt())
            .collect();
        let mut wide = vec![0u64; self.words];
        for y in 0..self.height {
            if self.row(y).iter().all(|w| *w == 0) {
                continue;
            }
            // From the narrowest row of the disk to the widest, each spread from the one before.
            wide.copy_from_slice(self.row(y));
            let mut spread = 0;
            for dy in (0..=reach).rev() {
                for _ in spread..half[dy] {
                    grow(&mut wide);
                }
                spread = half[dy];
                let mut paint = |row: usize| {
                    let to = &mut out.bits[row * self.words..(row + 1) * self.words];
                    to.iter_mut().zip(&wide).for_each(|(a, b)| *a |= b);
                };
                if y >= dy {
                    paint(y - dy);
                }
                if dy > 0 && y + dy < self.height {
                    paint(y + dy);
                }
            }
        }
        // What spread into the padding.
        let used = self.width % 64;
        if used > 0 {
            for row in out.bits.chunks_exact_mut(self.words) {
                if let Some(last) = row.last_mut() {
                    *last &= (1 << used) - 1;
                }
            }
        }
        out
    }
}

/// Adds the left and the right neighbour of every set bit of a row.
fn grow(row: &mut [u64]) {
    let mut before = 0;
    for i in 0..row.len() {
        let here = row[i];
        let next = row.get(i + 1).copied().unwrap_or(0);
        row[i] = here | here << 1 | here >> 1 | before >> 63 | next << 63;
        before = here;
    }
}

impl From<&Mask> for BitMask {
    fn from(mask: &Mask) -> Self {
        let (h, w) = mask.size();
        Self::from_fn(h, w, |y, x| mask.0[[y, x]])
    }
}

impl TryFrom<&Rle> for BitMask {
    type Error = CoreError;
    fn try_from(rle: &Rle) -> Result<Self, CoreError> {
        // Through the dense mask, whose size is bounded.
        Ok(Self::from(&rle.decode()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_boundary(m: &BitMask) -> BitMask {
        let (h, w) = m.size();
        BitMask::from_fn(h, w, |y, x| {
            let here = m.get(y, x);
            let right = x + 1 < w && m.get(y, x + 1) != here;
            let down = y + 1 < h && m.get(y + 1, x) != here;
            let both = x + 1 < w && y + 1 < h && m.get(y + 1, x + 1) != here;
            right || down || both
        })
    }

    fn naive_dilate(m: &BitMask, r: usize) -> BitMask {
        let (h, w) = m.size();
        let r = r as i64;
        BitMask::from_fn(h, w, |y, x| {
            (-r..=r).any(|dy| {
                (-r..=r).any(|dx| {
                    let (yy, xx) = (y as i64 + dy, x as i64 + dx);
                    dx * dx + dy * dy <= r * r
                        && yy >= 0
                        && xx >= 0
                        && m.get(yy as usize, xx as usize)
                })
            })
        })
    }

    #[test]
    fn boundary_by_hand() {
        // A full mask has none; one pixel marks itself, its upper, left and upper left neighbour.
        assert_eq!(BitMask::from_fn(3, 3, |_, _| true).boundary().area(), 0);
        let one = BitMask::from_fn(3, 3, |y, x| (y, x) == (1, 1)).boundary();
        let expected = BitMask::from_fn(3, 3, |y, x| y < 2 && x < 2);
        assert_eq!(one, expected);
        // In the corner only the neighbours mark it: the last pixel compares with nothing.
        let corner = BitMask::from_fn(2, 2, |y, x| (y, x) == (1, 1)).boundary();
        assert_eq!((corner.area(), corner.get(1, 1)), (3, false));
    }

    #[test]
    fn sizes_without_pixels_are_fine() {
        for (h, w) in [(0, 0), (0, 5), (5, 0)] {
            let m = BitMask::empty(h, w);
            assert_eq!((m.boundary().area(), m.dilate(3).area()), (0, 0));
            assert_eq!(BitMask::from_labels(h, w, &[], 1), m);
        }
    }

    proptest! {
        #[test]
        fn words_do_as_pixels(h in 1usize..9, w in 1usize..140, r in 0usize..12, seed in any::<u64>(), share in 1u64..40) {
            let mut state = seed | 1;
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % 40 < share
            };
            let labels: Vec<u8> = (0..h * w).map(|_| random() as u8).collect();
            let m = BitMask::from_labels(h, w, &labels, 1);
            prop_assert_eq!(&m, &BitMask::from_fn(h, w, |y, x| labels[y * w + x] == 1));
            prop_assert_eq!(m.area(), labels.iter().map(|l| u64::from(*l)).sum::<u64>());
            prop_assert_eq!(m.boundary(), naive_boundary(&m));
            prop_assert_eq!(m.dilate(r), naive_dilate(&m, r));
        }
    }
}
