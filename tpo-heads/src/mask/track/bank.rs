//! Which memories a frame attends to.

use std::collections::BTreeMap;

use super::options::Direction;
use crate::mask::sam2::{Sam2Config, TrackingConfig};

/// What a frame attends to, by frame index. Two objects with equal lists of times can be run as
/// one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection {
    /// `(row of the time encoding counted back, frame)`: 0 for prompted frames, then from the
    /// oldest, 1, to the youngest.
    pub(super) memories: Vec<(usize, usize)>,
    /// `(frames away, frame)` of object pointers; the distance has a sign only where the model
    /// wants one.
    pub(super) pointers: Vec<(i64, usize)>,
}

impl Selection {
    /// Times without the frames.
    pub(super) fn layout(&self) -> (Vec<usize>, Vec<i64>) {
        (
            self.memories.iter().map(|m| m.0).collect(),
            self.pointers.iter().map(|p| p.0).collect(),
        )
    }
}

/// Sizes of the window.
#[derive(Debug, Clone)]
pub(super) struct Window {
    memories: usize,
    pointers: usize,
    stride: usize,
    signed: bool,
}

impl Window {
    pub(super) fn new(config: &Sam2Config) -> Self {
        let tracking: &TrackingConfig = &config.tracking;
        Self {
            memories: config.num_maskmem,
            pointers: tracking.max_obj_ptrs_in_encoder,
            stride: tracking.memory_temporal_stride_for_eval.max(1),
            signed: tracking.use_signed_tpos_enc_to_obj_ptrs,
        }
    }

    /// Largest distance of a tracked frame whose memory can be attended to. With a stride the
    /// nearest multiple may be up to `stride − 1` frames further.
    pub(super) fn memory_reach(&self) -> usize {
        match self.memories {
            0 | 1 => 0,
            2 => 1,
            n => 2 + (self.stride - 1) + (n - 3) * self.stride,
        }
    }

    /// The same for object pointers.
    pub(super) fn pointer_reach(&self) -> usize {
        self.pointers.saturating_sub(1)
    }

    /// Pointers a frame attends to at most in a video of `frames` frames.
    pub(super) fn pointer_limit(&self, frames: Option<usize>) -> usize {
        frames.map_or(self.pointers, |n| n.min(self.pointers))
    }

    /// The frame that is memory number `back` (1 is the last frame) of `frame`.
    fn memory_frame(&self, frame: usize, back: usize, direction: Direction) -> Option<usize> {
        let r = self.stride;
        match direction {
            Direction::Forward if back == 1 => frame.checked_sub(1),
            Direction::Backward if back == 1 => frame.checked_add(1),
            Direction::Forward => {
                // Below zero there is no frame, whatever it is rounded to.
                let nearest = frame.checked_sub(2)? / r * r;
                nearest.checked_sub((back - 2) * r)
            }
            Direction::Backward => {
                let nearest = frame.checked_add(2)?.div_ceil(r) * r;
                nearest.checked_add((back - 2) * r)
            }
        }
    }

    /// What `frame` attends to, of the frames that were prompted and those that were tracked and
    /// have a memory.
    pub(super) fn select<P, T>(
        &self,
        frame: usize,
        direction: Direction,
        frames: Option<usize>,
        prompted: &BTreeMap<usize, P>,
        tracked: &BTreeMap<usize, T>,
        has_memory: impl Fn(&T) -> bool,
    ) -> Selection {
        let mut memories: Vec<(usize, usize)> = prompted.keys().map(|t| (0, *t)).collect();
        for position in 1..self.memories {
            let back = self.memories - position;
            let Some(t) = self.memory_frame(frame, back, direction) else {
                continue;
            };
            if tracked.get(&t).is_some_and(&has_memory) {
                memories.push((position, t));
            }
        }
        let mut pointers = Vec::new();
        let backward = direction == Direction::Backward;
        for &t in prompted.keys() {
            let past = if backward { t >= frame } else { t <= frame };
            if !past {
                continue;
            }
            let away = frame as i64 - t as i64;
            let away = match (self.signed, backward) {
                (true, true) => -away,
                (true, false) => away,
                (false, _) => away.abs(),
            };
            pointers.push((away, t));
        }
        for away in 1..self.pointer_limit(frames) {
            let t = if backward {
                frame
                    .checked_add(away)
                    .filter(|t| frames.is_none_or(|n| *t < n))
            } else {
                frame.checked_sub(away)
            };
            let Some(t) = t else { break };
            if tracked.contains_key(&t) {
                pointers.push((away as i64, t));
            }
        }
        Selection { memories, pointers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::sam2::Sam2Version;

    fn window(change: impl FnOnce(&mut Sam2Config)) -> Window {
        let mut config = Sam2Config::tiny(Sam2Version::V2_0);
        change(&mut config);
        Window::new(&config)
    }

    fn frames(list: impl IntoIterator<Item = usize>) -> BTreeMap<usize, ()> {
        list.into_iter().map(|t| (t, ())).collect()
    }

    fn select(
        w: &Window,
        frame: usize,
        direction: Direction,
        prompted: &BTreeMap<usize, ()>,
        tracked: &BTreeMap<usize, ()>,
    ) -> Selection {
        w.select(frame, direction, Some(100), prompted, tracked, |_| true)
    }

    #[test]
    fn seven_memories_and_sixteen_pointers() {
        let w = window(|_| {});
        let s = select(&w, 30, Direction::Forward, &frames([0]), &frames(1..30));
        assert_eq!(
            s.memories,
            [(0, 0), (1, 24), (2, 25), (3, 26), (4, 27), (5, 28), (6, 29)]
        );
        assert_eq!(s.pointers[0], (30, 0));
        assert_eq!(
            s.pointers[1..],
            (1..16).map(|d| (d, 30 - d as usize)).collect::<Vec<_>>()
        );
        assert_eq!((w.memory_reach(), w.pointer_reach()), (6, 15));
        // The frame after the prompt sees the prompt only.
        let s = select(&w, 1, Direction::Forward, &frames([0]), &frames([]));
        assert_eq!(
            (s.memories.as_slice(), s.pointers.as_slice()),
            (&[(0, 0)][..], &[(1, 0)][..])
        );
    }

    #[test]
    fn backward_looks_ahead_and_ignores_pointers_behind() {
        let w = window(|_| {});
        let s = select(&w, 5, Direction::Backward, &frames([2, 8]), &frames([6, 7]));
        assert_eq!(s.memories, [(0, 2), (0, 8), (5, 7), (6, 6)]);
        assert_eq!(s.pointers, [(3, 8), (1, 6), (2, 7)]);
    }

    #[test]
    fn a_stride_takes_multiples_and_the_last_frame() {
        let w = window(|c| c.tracking.memory_temporal_stride_for_eval = 4);
        let s = select(&w, 23, Direction::Forward, &frames([0]), &frames(1..23));
        // (23 - 2) / 4 * 4 = 20, then every fourth frame before it.
        assert_eq!(
            s.memories,
            [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16), (5, 20), (6, 22)]
        );
    }

    #[test]
    fn nothing_within_reach_is_out_of_reach() {
        for stride in 1..5 {
            for memories in 1..9 {
                let w = window(|c| {
                    c.num_maskmem = memories;
                    c.tracking.memory_temporal_stride_for_eval = stride;
                });
                for frame in 40..60 {
                    for direction in [Direction::Forward, Direction::Backward] {
                        let s = select(&w, frame, direction, &frames([]), &frames(0..100));
                        for (_, t) in s.memories {
                            assert!(t.abs_diff(frame) <= w.memory_reach());
                        }
                        for (_, t) in s.pointers {
                            assert!(t.abs_diff(frame) <= w.pointer_reach());
                        }
                    }
                }
            }
        }
    }
}
