//! What is known about one object.

use std::collections::BTreeMap;

use super::bank::{Selection, Window};
use super::masks::ObjectId;
use super::options::Direction;
use super::step::{FrameOutput, Recalled};
use crate::mask::sam2::PointPrompt;

/// Frames that were gone through, and which way.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    last: usize,
    direction: Direction,
}

impl Span {
    fn holds(&self, frame: usize) -> bool {
        (self.first..=self.last).contains(&frame)
    }
}

/// A prompted frame before the next run.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) output: FrameOutput,
    /// Whether other frames will attend to it whatever their distance.
    pub(super) conditions: bool,
}

/// One object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) id: ObjectId,
    /// Points of a frame, in pixels of the model's input.
    pub(super) points: BTreeMap<usize, Vec<PointPrompt>>,
    /// Outputs of prompted frames.
    pub(super) prompted: BTreeMap<usize, FrameOutput>,
    /// Outputs of tracked and corrected frames.
    pub(super) tracked: BTreeMap<usize, FrameOutput>,
    /// Prompted since the last run.
    pub(super) pending: BTreeMap<usize, Pending>,
    spans: Vec<Span>,
}

impl Object {
    pub(super) fn new(id: ObjectId) -> Self {
        Self {
            id,
            points: BTreeMap::new(),
            prompted: BTreeMap::new(),
            tracked: BTreeMap::new(),
            pending: BTreeMap::new(),
            spans: Vec::new(),
        }
    }

    /// Which way a frame was last gone through.
    pub(super) fn tracked_direction(&self, frame: usize) -> Option<Direction> {
        let span = self.spans.iter().rev().find(|s| s.holds(frame))?;
        Some(span.direction)
    }

    /// Notes that a run went through `frame`, in the order of the run.
    pub(super) fn note(&mut self, frame: usize, direction: Direction) {
        if let Some(span) = self.spans.last_mut().filter(|s| s.direction == direction) {
            if span.holds(frame) {
                return;
            }
            if frame == span.last + 1 || frame + 1 == span.first {
                span.first = span.first.min(frame);
                span.last = span.last.max(frame);
                let now = *span;
                let earlier = self.spans.len() - 1;
                let mut at = 0;
                self.spans.retain(|s| {
                    at += 1;
                    at > earlier || s.first < now.first || s.last > now.last
                });
                return;
            }
        }
        self.spans.push(Span {
            first: frame,
            last: frame,
            direction,
        });
    }

    /// The latest output on a frame.
    pub(super) fn latest(&self, frame: usize) -> Option<&FrameOutput> {
        self.pending
            .get(&frame)
            .map(|p| &p.output)
            .or_else(|| self.settled(frame))
    }

    /// The output of the last run on a frame.
    pub(super) fn settled(&self, frame: usize) -> Option<&FrameOutput> {
        self.prompted
            .get(&frame)
            .or_else(|| self.tracked.get(&frame))
    }

    /// What a frame attends to.
    pub(super) fn select(
        &self,
        window: &Window,
        frame: usize,
        direction: Direction,
        frames: Option<usize>,
    ) -> Selection {
        window.select(
            frame,
            direction,
            frames,
            &self.prompted,
            &self.tracked,
            |output| output.memory.is_some(),
        )
    }

    /// The tensors of a selection; `None` if one is missing, which [`Object::select`] excludes.
    pub(super) fn recall(&self, selection: &Selection) -> Option<Recalled<'_>> {
        let output = |prompted: bool, frame: usize| {
            if prompted {
                self.prompted.get(&frame)
            } else {
                let tracked = self.tracked.get(&frame);
                tracked.or_else(|| self.prompted.get(&frame))
            }
        };
        let memories = selection
            .memories
            .iter()
            .map(|&(position, frame)| output(position == 0, frame)?.memory.as_ref())
            .collect::<Option<Vec<_>>>()?;
        let pointers = selection
            .pointers
            .iter()
            .map(|&(_, frame)| Some(&self.settled(frame)?.pointer))
            .collect::<Option<Vec<_>>>()?;
        Some(Recalled { memories, pointers })
    }

    /// A frame that `frame` would attend to had its output not been forgotten.
    pub(super) fn forgotten(
        &self,
        window: &Window,
        frame: usize,
        direction: Direction,
    ) -> Option<usize> {
        let behind = |away: usize| match direction {
            Direction::Forward => frame.checked_sub(away),
            Direction::Backward => frame.checked_add(away),
        };
        let reach = window.memory_reach().max(window.pointer_reach());
        (1..=reach).filter_map(behind).find(|t| {
            let was = self.tracked_direction(*t).is_some();
            let away = t.abs_diff(frame);
            let kept = self.settled(*t);
            let memory = away > window.memory_reach() || kept.is_some_and(|o| o.memory.is_some());
            was && !(kept.is_some() && memory)
        })
    }

    /// Forgets what no frame next to `now`, or to a prompted frame, can attend to. Corrections
    /// stay.
    pub(super) fn forget(&mut self, window: &Window, now: usize) {
        let (memory, pointer) = (window.memory_reach(), window.pointer_reach());
        let prompted = &self.prompted;
        let within = |t: usize, reach: usize| {
            t.abs_diff(now) <= reach
                || prompted
                    .range(t.saturating_sub(reach)..=t.saturating_add(reach))
                    .next()
                    .is_some()
        };
        self.tracked.retain(|&t, output| {
            if output.corrected {
                return true;
            }
            if !within(t, memory) {
                output.memory = None;
            }
            within(t, pointer.max(memory))
        });
    }

    /// Forgets everything that was tracked; prompts stay.
    pub(super) fn forget_tracking(&mut self) {
        self.tracked.clear();
        self.spans.clear();
    }

    /// Bytes of all outputs.
    pub(super) fn bytes(&self) -> usize {
        self.prompted
            .values()
            .chain(self.tracked.values())
            .chain(self.pending.values().map(|p| &p.output))
            .map(FrameOutput::bytes)
            .sum()
    }
}
