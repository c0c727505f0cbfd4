//! Which keys a query may see by position.

use super::AttentionOptions;

/// Causal and sliding-window limits of one attention call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visibility {
    causal: bool,
    window: Option<isize>,
    offset: isize,
    k_len: isize,
}

impl Visibility {
    pub(super) fn new(options: &AttentionOptions, q_len: usize, k_len: usize) -> Self {
        // Far beyond any length, and sums of a few of them do not overflow.
        let cap = |n: usize| n.min(isize::MAX as usize / 8) as isize;
        Visibility {
            causal: options.causal,
            window: options.sliding_window.map(cap),
            offset: match options.query_offset {
                Some(offset) => cap(offset),
                None => k_len as isize - q_len as isize,
            },
            k_len: k_len as isize,
        }
    }

    /// Half-open range of keys the query may see.
    #[inline(always)]
    pub(super) fn keys(&self, query: usize) -> (usize, usize) {
        let position = query as isize + self.offset;
        let (mut lo, mut hi) = (0, self.k_len);
        if self.causal {
            hi = hi.min(position + 1);
        }
        if let Some(window) = self.window {
            lo = position - window + 1;
            hi = hi.min(position + window);
        }
        let hi = hi.clamp(0, self.k_len);
        (lo.clamp(0, hi) as usize, hi as usize)
    }
}
