//! Keys and values of past positions.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use tpo_core::ops::indices;
use tpo_core::traits::{AttentionMask, DecodeCache};

use crate::config::LlmConfig;
use crate::error::{LlmError, Result};

/// A preallocated key/value cache, owned by the caller and never by the model.
///
/// Cloning is cheap until one of the copies is written to. Rolling back is setting the length;
/// what lies beyond it is overwritten by the next positions. With a sliding window the cache
/// still holds every position and the mask hides the old ones.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    len: usize,
    capacity: usize,
    batch: usize,
    /// Real positions per row, if any row has padding.
    mask: Option<Vec<Vec<bool>>>,
}

impl KvCache {
    /// Allocates keys and values `[batch, kv_heads, capacity, head_dim]` for every layer, in a
    /// float type.
    pub fn new(
        config: &LlmConfig,
        batch: usize,
        capacity: usize,
        (device, dtype): (&Device, DType),
    ) -> Self {
        let shape = [batch, config.num_key_value_heads, capacity, config.head_dim];
        let zeros = || Tensor::<4>::zeros(shape, (device, dtype));
        Self {
            layers: (0..config.num_hidden_layers)
                .map(|_| Some((zeros(), zeros())))
                .collect(),
            len: 0,
            capacity,
            batch,
            mask: None,
        }
    }

    /// Keys and values of a layer up to the present length,
    /// `[batch, kv_heads, len, head_dim]`, keys already rotated.
    pub fn layer(&self, index: usize) -> Option<(Tensor<4>, Tensor<4>)> {
        let (k, v) = self.layers.get(index)?.as_ref()?;
        Some((self.head(k, self.len), self.head(v, self.len)))
    }

    /// Checks that `new` positions fit and records which of them are real. Returns the positions
    /// of the new tokens, one row per sample or one for all.
    pub(crate) fn begin(
        &mut self,
        batch: usize,
        new: usize,
        mask: Option<&AttentionMask>,
    ) -> Result<Vec<Vec<usize>>> {
        if batch != self.batch {
            return Err(LlmError::Shape {
                place: "KvCache",
                expected: format!("a batch of {}", self.batch),
                found: vec![batch],
            });
        }
        if self.len + new > self.capacity {
            return Err(LlmError::CacheFull {
                len: self.len,
                capacity: self.capacity,
                new,
            });
        }
        if let Some(m) = mask {
            if m.len() != batch || m.iter().any(|r| r.len() != new) {
                return Err(LlmError::Shape {
                    place: "KvCache",
                    expected: format!("a mask of [{batch}, {new}]"),
                    found: m.iter().map(Vec::len).collect(),
                });
            }
            if self.mask.is_none() && m.iter().flatten().any(|real| !real) {
                self.mask = Some(vec![vec![true; self.len]; batch]);
            }
        }
        let Some(held) = &mut self.mask else {
            return Ok(vec![(self.len..self.len + new).collect()]);
        };
        let mut positions = Vec::with_capacity(batch);
        for (row, held) in held.iter_mut().enumerate() {
            held.truncate(self.len);
            let mut next = held.iter().filter(|real| **real).count();
            let mut at = Vec::with_capacity(new);
            for i in 0..new {
                let real = mask.is_none_or(|m| m[row][i]);
                at.push(next);
                next += real as usize;
                held.push(real);
            }
            positions.push(at);
        }
        Ok(positions)
    }

    /// Padding of all positions including the new ones, true where padded.
    pub(crate) fn padding(&self) -> Option<&[Vec<bool>]> {
        self.mask.as_deref()
    }

    /// Writes a layer's new keys and values after the old ones and returns all of them. The
    /// length grows when [`KvCache::commit`] is called, after the last layer.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        k: Tensor<4>,
        v: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let [b, h, new, d] = k.dims();
        let range = [0..b, 0..h, self.len..self.len + new, 0..d];
        // Taken out so that the buffers have one owner and are written in place.
        let (keys, values) = match self.layers[layer].take() {
            Some((keys, values)) => (
                keys.slice_assign(range.clone(), k),
                values.slice_assign(range, v),
            ),
            None => (k, v),
        };
        let end = self.len + new;
        let seen = (self.head(&keys, end), self.head(&values, end));
        self.layers[layer] = Some((keys, values));
        seen
    }

    pub(crate) fn commit(&mut self, new: usize) {
        self.len += new;
    }

    fn head(&self, t: &Tensor<4>, end: usize) -> Tensor<4> {
        let [b, h, _, d] = t.dims();
        t.clone().slice([0..b, 0..h, 0..end, 0..d])
    }
}

/// Keys or values with the first `len` positions of a row one place further; its first place is
/// padding then.
fn moved_up(all: Tensor<4>, row: usize, len: usize) -> Tensor<4> {
    let [_, h, _, d] = all.dims();
    let part = |positions: Range<usize>| {
        let range = [row..row + 1, 0..h, positions, 0..d];
        all.clone().slice(range)
    };
    // A copy of its own, so that the buffer has one owner and is written in place.
    let moved = Tensor::cat(vec![part(0..1), part(0..len)], 2);
    all.slice_assign([row..row + 1, 0..h, 0..len + 1, 0..d], moved)
}

impl DecodeCache for KvCache {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn select(&mut self, rows: &[usize]) {
        self.batch = rows.len();
        if let Some(mask) = &mut self.mask {
            *mask = rows.iter().map(|row| mask[*row].clone()).collect();
            if mask.iter().flatten().all(|real| *real) {
                self.mask = None;
            }
        }
        for layer in self.layers.iter_mut() {
            *layer = layer.take().map(|(k, v)| {
                let rows = indices(rows.iter().copied(), &k.device());
                (k.select(0, rows.clone()), v.select(0, rows))
            });
        }
    }

    fn take_back(&mut self, rows: &[usize]) {
        let Some(last) = self.len.checked_sub(1).filter(|_| !rows.is_empty()) else {
            return;
        };
        if rows.len() == self.batch {
            return self.truncate(last);
        }
        let mask = self
            .mask
            .get_or_insert_with(|| vec![vec![true; last + 1]; self.batch]);
        for row in rows {
            mask[*row].truncate(last);
            mask[*row].insert(0, false);
        }
        for layer in self.layers.iter_mut() {
            *layer = layer.take().map(|(k, v)| {
                let up = |all: Tensor<4>| rows.iter().fold(all, |t, row| moved_up(t, *row, last));
                (up(k), up(v))
            });
        }
    }
}
