//! The state of a tracking run.

use burn::tensor::{DType, Tensor};
use tpo_core::threads::in_pool;

use super::bank::Window;
use super::frames::FrameReader;
use super::masks::{FrameMasks, ObjectId, ObjectMask};
use super::object::Object;
use super::options::{Keep, TrackOptions};
use super::step::{self, Constants, FrameOutput};
use crate::HeadsError;
use crate::mask::sam2::{Sam2, Sam2Features};

/// A frame after the image encoder.
#[derive(Debug, Clone)]
pub(super) struct EncodedFrame {
    pub(super) index: usize,
    pub(super) size: [usize; 2],
    pub(super) features: Sam2Features,
}

/// Objects in a video, and what is remembered of them.
///
/// The model is stateless and is given to every verb; use the same one throughout. Models on an
/// autodiff device work but are slow: give [`Module::valid`](burn::module::Module::valid) of them.
///
/// Prompts are collected with [`add_points`](Self::add_points), [`add_box`](Self::add_box),
/// [`add_mask`](Self::add_mask) and [`add_embedding`](Self::add_embedding), which answer with the
/// masks of that frame; [`propagate`](Self::propagate) then goes through the video. Objects do not
/// influence each other (unless asked to share pixels), so they may be added and removed at any
/// time.
///
/// With [`Keep::Window`], the default, frames are read, encoded and dropped as they are reached,
/// masks are handed out and not kept, and of the past only what can still be attended to stays:
/// memory does not depend on the length of the video. Results are those of [`Keep::Everything`];
/// what would need a forgotten memory is [`HeadsError::FrameGone`].
#[derive(Debug)]
pub struct TrackState<R> {
    reader: R,
    pub(super) options: TrackOptions,
    pub(super) window: Window,
    pub(super) constants: Constants,
    pub(super) objects: Vec<Object>,
    cached: Option<EncodedFrame>,
    /// The video has at most so many frames, once something is known about its length.
    end: Option<usize>,
}

impl<R: FrameReader> TrackState<R> {
    /// A state without objects. Nothing is read yet.
    ///
    /// # Errors
    /// [`HeadsError::Config`] for models with `directly_add_no_mem_embed` off.
    pub fn init(model: &Sam2, reader: R, options: TrackOptions) -> Result<Self, HeadsError> {
        Ok(Self {
            window: Window::new(model.config()),
            constants: Constants::new(model)?,
            end: reader.frame_count(),
            reader,
            options,
            objects: Vec::new(),
            cached: None,
        })
    }

    /// Ids of the objects, in the order in which they were first prompted.
    pub fn objects(&self) -> Vec<ObjectId> {
        self.objects.iter().map(|o| o.id).collect()
    }

    /// Number of frames, if the reader knows it. SAM 2 uses it on videos shorter than its list of
    /// object pointers; a video of unknown length counts as long.
    pub fn frame_count(&self) -> Option<usize> {
        self.reader.frame_count()
    }

    /// Forgets an object. The others are not affected.
    ///
    /// # Errors
    /// [`HeadsError::NoSuchObject`].
    pub fn remove_object(&mut self, object: ObjectId) -> Result<(), HeadsError> {
        let at = self.position(object)?;
        self.objects.remove(at);
        Ok(())
    }

    /// Takes back all prompts of an object on a frame. What was tracked there becomes an ordinary
    /// tracked frame; without any prompt left, everything tracked of the object is forgotten.
    ///
    /// # Errors
    /// [`HeadsError::NoSuchObject`].
    pub fn clear_prompts(&mut self, frame: usize, object: ObjectId) -> Result<(), HeadsError> {
        let at = self.position(object)?;
        let object = &mut self.objects[at];
        object.points.remove(&frame);
        object.pending.remove(&frame);
        if let Some(output) = object.prompted.remove(&frame) {
            object.tracked.insert(frame, output);
        }
        if let Some(output) = object.tracked.get_mut(&frame) {
            output.corrected = false;
        }
        if object.prompted.is_empty() && !object.pending.values().any(|p| p.conditions) {
            object.forget_tracking();
        }
        Ok(())
    }

    /// Forgets all objects.
    pub fn reset(&mut self) {
        self.objects.clear();
    }

    /// Bytes of memories, pointers, masks and encoded frames that are kept. Frames the reader
    /// holds are not counted.
    pub fn bytes(&self) -> usize {
        let of = |elements: usize, dtype: DType| elements * dtype.size();
        let size = |t: &Tensor<4>| of(t.shape().num_elements(), t.dtype());
        let cached = self.cached.as_ref().map_or(0, |frame| {
            let fine = frame.features.high_res.iter();
            size(&frame.features.embedding) + fine.map(size).sum::<usize>()
        });
        cached + self.objects.iter().map(Object::bytes).sum::<usize>()
    }

    pub(super) fn position(&self, object: ObjectId) -> Result<usize, HeadsError> {
        let found = self.objects.iter().position(|o| o.id == object);
        found.ok_or_else(|| HeadsError::NoSuchObject {
            object: object.0,
            known: self.objects.iter().map(|o| o.id.0).collect(),
        })
    }

    /// Number of filled pixels of a hole at most.
    pub(super) fn fill_hole_area(&self, model: &Sam2) -> usize {
        let own = model.config().tracking.fill_hole_area;
        self.options.fill_hole_area.unwrap_or(own)
    }

    /// Reads and encodes a frame, unless it is the one that was encoded last; `None` past the end.
    pub(super) fn encode(
        &mut self,
        model: &Sam2,
        index: usize,
    ) -> Result<Option<EncodedFrame>, HeadsError> {
        if let Some(frame) = self.cached.as_ref().filter(|f| f.index == index) {
            return Ok(Some(frame.clone()));
        }
        if self.end.is_some_and(|end| index >= end) {
            return Ok(None);
        }
        // A stream may not come back to this frame.
        self.remember_pending(model)?;
        self.cached = None;
        let Some(frame) = self.reader.read(index)? else {
            self.end = Some(self.end.map_or(index, |end| end.min(index)));
            return Ok(None);
        };
        let [height, width] = frame.size;
        if height == 0 || width == 0 {
            return Err(HeadsError::Shape {
                place: "FrameReader::read",
                what: "size of the frame",
                expected: "at least 1 x 1".into(),
                found: frame.size.to_vec(),
            });
        }
        let features = model.encode_image(frame.image)?.map(Tensor::inner);
        let frame = EncodedFrame {
            index,
            size: frame.size,
            features,
        };
        self.cached = Some(frame.clone());
        Ok(Some(frame))
    }

    /// As [`encode`](Self::encode) for a frame that must be there.
    pub(super) fn require(
        &mut self,
        model: &Sam2,
        frame: usize,
    ) -> Result<EncodedFrame, HeadsError> {
        match in_pool(|| self.encode(model, frame))? {
            Some(frame) => Ok(frame),
            None => Err(HeadsError::NoSuchFrame {
                frame,
                frames: self.frame_count(),
            }),
        }
    }

    /// Makes the memories of prompts on the frame that is encoded.
    fn remember_pending(&mut self, model: &Sam2) -> Result<(), HeadsError> {
        let Some(frame) = self.cached.clone() else {
            return Ok(());
        };
        for object in &mut self.objects {
            let pending = object.pending.get_mut(&frame.index);
            if let Some(pending) = pending.filter(|p| p.output.memory.is_none()) {
                let outputs = [&pending.output];
                let (c, features) = (&self.constants, &frame.features);
                let memory = step::prompt_memory(model, c, features, &outputs)?;
                pending.output.memory = Some(memory.inner());
            }
        }
        Ok(())
    }

    /// Settles the prompts collected since the last run.
    pub(super) fn preflight(&mut self, model: &Sam2) -> Result<(), HeadsError> {
        self.remember_pending(model)?;
        let mut missing: Vec<usize> = self
            .objects
            .iter()
            .flat_map(|o| o.pending.iter())
            .filter(|(_, p)| p.output.memory.is_none())
            .map(|(frame, _)| *frame)
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for frame in missing {
            self.require(model, frame)?;
            self.remember_pending(model)?;
        }
        for object in &mut self.objects {
            for (frame, pending) in std::mem::take(&mut object.pending) {
                if pending.conditions {
                    object.tracked.remove(&frame);
                    object.prompted.insert(frame, pending.output);
                } else {
                    object.tracked.insert(frame, pending.output);
                }
            }
        }
        let bare = self.objects.iter().find(|o| o.prompted.is_empty());
        match bare {
            Some(object) => Err(HeadsError::NothingToTrack {
                object: Some(object.id.0),
            }),
            None if self.objects.is_empty() => Err(HeadsError::NothingToTrack { object: None }),
            None => Ok(()),
        }
    }

    /// Whether memories are forgotten.
    pub(super) fn bounded(&self) -> bool {
        self.options.keep == Keep::Window
    }

    /// The masks of a frame: those of all objects that have any there.
    pub(super) fn masks(&self, frame: &EncodedFrame) -> FrameMasks {
        let objects = self.objects.iter().filter_map(|object| {
            let output = object.latest(frame.index)?;
            Some(ObjectMask {
                object: object.id,
                score: output.score,
                low_res: output.low_res.clone(),
            })
        });
        FrameMasks {
            frame: frame.index,
            size: frame.size,
            objects: objects.collect(),
            non_overlapping: self.options.non_overlapping_masks,
        }
    }

    /// Everything kept of an object on a frame; for comparisons with other implementations.
    #[doc(hidden)]
    pub fn inspect(&self, object: ObjectId, frame: usize) -> Option<&FrameOutput> {
        let object = self.objects.iter().find(|o| o.id == object)?;
        object.latest(frame)
    }
}
