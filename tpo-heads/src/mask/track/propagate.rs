//! Going through the video.

use std::collections::BTreeMap;

use tpo_core::threads::in_pool;

use super::frames::FrameReader;
use super::masks::FrameMasks;
use super::options::{Direction, Propagation};
use super::state::{EncodedFrame, TrackState};
use super::step::{self, Decoded};
use crate::HeadsError;
use crate::mask::sam2::{MaskSource, Sam2};

/// A run through the video: an iterator over the masks of its frames. After an error it ends.
/// Dropping it early is fine; the state then stands at the last frame that was handed out.
#[derive(Debug)]
pub struct Propagate<'a, R> {
    state: &'a mut TrackState<R>,
    model: &'a Sam2,
    direction: Direction,
    next: Option<usize>,
    left: Option<usize>,
}

impl<R: FrameReader> TrackState<R> {
    /// Settles the prompts and goes through the video, frame by frame as the iterator is asked.
    /// Prompted frames keep their masks; the others are tracked.
    ///
    /// Backward from frame 0 there is nothing to do (reference implementation).
    ///
    /// # Errors
    /// [`HeadsError::NothingToTrack`] without a prompted object, [`HeadsError::FrameGone`] when the
    /// first frame needs memories that were forgotten. Errors of frames come from the iterator.
    pub fn propagate<'a>(
        &'a mut self,
        model: &'a Sam2,
        run: Propagation,
    ) -> Result<Propagate<'a, R>, HeadsError> {
        self.preflight(model)?;
        let earliest = self
            .objects
            .iter()
            .flat_map(|o| o.prompted.keys().copied())
            .min()
            .unwrap_or(0);
        let start = run.start.unwrap_or(earliest);
        let nothing = run.direction == Direction::Backward && start == 0;
        if self.bounded() && !nothing {
            for object in &self.objects {
                let given = object.settled(start).is_some_and(|o| o.corrected);
                let forgotten = object.forgotten(&self.window, start, run.direction);
                if let Some(what) = forgotten.filter(|_| !given) {
                    return Err(HeadsError::FrameGone {
                        frame: start,
                        why: format!(
                            "object {} needs the memory of frame {what} there, which was forgotten",
                            object.id
                        ),
                        hint: "start at a prompted frame, where the last run ended, or keep \
                               everything (Keep::Everything)",
                    });
                }
            }
        }
        Ok(Propagate {
            state: self,
            model,
            direction: run.direction,
            next: (!nothing).then_some(start),
            left: run.frames,
        })
    }

    /// Tracks all objects on a frame, or takes what a prompt said.
    fn step(
        &mut self,
        model: &Sam2,
        frame: &EncodedFrame,
        direction: Direction,
    ) -> Result<FrameMasks, HeadsError> {
        let index = frame.index;
        let given = |state: &Self, at: usize| {
            state.objects[at]
                .settled(index)
                .is_some_and(|o| o.corrected)
        };
        let tracked: Vec<usize> = (0..self.objects.len())
            .filter(|at| !given(self, *at))
            .collect();
        if !tracked.is_empty() {
            let decoded = self.track(model, frame, direction, &tracked)?;
            let (c, features) = (&self.constants, &frame.features);
            let (low_res, score) = (decoded.low_res.clone(), decoded.score.clone());
            let source = MaskSource::Tracking;
            let memories = step::encode_memory(model, c, features, low_res, score, source)?.inner();
            let outputs = step::to_outputs(&decoded, self.fill_hole_area(model))?;
            for (n, (at, mut output)) in tracked.into_iter().zip(outputs).enumerate() {
                output.memory = Some(memories.clone().narrow(0, n, 1));
                self.objects[at].tracked.insert(index, output);
            }
        }
        let bounded = self.bounded();
        for object in &mut self.objects {
            object.note(index, direction);
            if bounded {
                object.forget(&self.window, index);
            }
        }
        Ok(self.masks(frame))
    }

    /// Runs memory attention and decoder for some objects, those with equal memories together.
    /// Results are in the order of `objects`.
    fn track(
        &self,
        model: &Sam2,
        frame: &EncodedFrame,
        direction: Direction,
        objects: &[usize],
    ) -> Result<Decoded, HeadsError> {
        let frames = self.frame_count();
        let limit = self.window.pointer_limit(frames);
        let mut groups: BTreeMap<_, Vec<(usize, _)>> = BTreeMap::new();
        for (n, &at) in objects.iter().enumerate() {
            let object = &self.objects[at];
            let selection = object.select(&self.window, frame.index, direction, frames);
            let group = groups.entry(selection.layout()).or_default();
            group.push((n, (object, selection)));
        }
        let multimask = step::multimask(&model.config().tracking, 0, false);
        let mut parts: Vec<(usize, Decoded)> = Vec::with_capacity(objects.len());
        for group in groups.into_values() {
            let recalled = group
                .iter()
                .map(|(_, (object, selection))| object.recall(selection))
                .collect::<Option<Vec<_>>>()
                .unwrap_or_default();
            let Some((_, (_, selection))) = group.first().filter(|_| !recalled.is_empty()) else {
                continue;
            };
            let c = &self.constants;
            let output = step::follow(model, c, &frame.features, selection, limit, &recalled)?;
            let decoded = step::settle(model, &output, multimask).inner();
            for (row, (n, _)) in group.iter().enumerate() {
                parts.push((
                    *n,
                    Decoded {
                        low_res: decoded.low_res.clone().narrow(0, row, 1),
                        pointer: decoded.pointer.clone().narrow(0, row, 1),
                        score: decoded.score.clone().narrow(0, row, 1),
                    },
                ));
            }
        }
        parts.sort_by_key(|(n, _)| *n);
        let parts: Vec<Decoded> = parts.into_iter().map(|(_, decoded)| decoded).collect();
        Ok(Decoded::cat(&parts))
    }
}

impl<R: FrameReader> Propagate<'_, R> {
    fn advance(&mut self, index: usize) -> Result<Option<FrameMasks>, HeadsError> {
        let Some(frame) = self.state.encode(self.model, index)? else {
            return Ok(None);
        };
        let masks = self.state.step(self.model, &frame, self.direction)?;
        self.left = self.left.map(|n| n - 1);
        self.next = match self.direction {
            Direction::Forward => index.checked_add(1),
            Direction::Backward => index.checked_sub(1),
        };
        Ok(Some(masks))
    }

    /// The state of the run.
    pub fn state(&self) -> &TrackState<R> {
        self.state
    }
}

impl<R: FrameReader> Iterator for Propagate<'_, R> {
    type Item = Result<FrameMasks, HeadsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == Some(0) {
            return None;
        }
        let index = self.next.take()?;
        in_pool(|| self.advance(index)).transpose()
    }
}
