//! The verbs that prompt a tracker.

use burn::tensor::Tensor;
use tpo_core::geometry::{BoxPixels, Mask};
use tpo_core::threads::in_pool;

use super::frames::FrameReader;
use super::masks::{FrameMasks, ObjectId};
use super::object::{Object, Pending};
use super::options::Direction;
use super::resize::mask_prompt;
use super::state::{EncodedFrame, TrackState};
use super::step::{self, Decoded, Prompts};
use crate::HeadsError;
use crate::mask::sam2::{PointLabel, PointPrompt, Sam2};

/// A point on a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Click {
    /// Column in pixels of the frame.
    pub x: f32,
    /// Row in pixels of the frame.
    pub y: f32,
    /// Whether it is on the object, not beside it.
    pub positive: bool,
}

impl Click {
    /// A point on the object.
    pub fn on(x: f32, y: f32) -> Self {
        Self {
            x,
            y,
            positive: true,
        }
    }

    /// A point beside the object.
    pub fn beside(x: f32, y: f32) -> Self {
        Self {
            x,
            y,
            positive: false,
        }
    }
}

impl<R: FrameReader> TrackState<R> {
    /// Adds points to those already on the frame and predicts its masks.
    ///
    /// On a frame that was tracked this is a correction: earlier memories and the earlier mask of
    /// the frame take part. On any other frame the prompt stands alone, as the reference has it.
    ///
    /// # Errors
    /// [`HeadsError::Prompt`] for no points or coordinates that are not finite or outside the
    /// frame, [`HeadsError::NoSuchFrame`], [`HeadsError::FrameGone`] when a correction needs
    /// memories that were forgotten, and errors of the reader.
    pub fn add_points(
        &mut self,
        model: &Sam2,
        frame: usize,
        object: ObjectId,
        points: &[Click],
    ) -> Result<FrameMasks, HeadsError> {
        self.add_box_and_points(model, frame, object, None, points)
    }

    /// Puts a box, in pixels of the frame, in place of all prompts on the frame, and predicts its
    /// masks. The box may reach beyond the frame, as the reference has it.
    ///
    /// # Errors
    /// As [`add_points`](Self::add_points); [`HeadsError::Prompt`] for a box without area, with
    /// reversed corners, or wholly outside the frame.
    pub fn add_box(
        &mut self,
        model: &Sam2,
        frame: usize,
        object: ObjectId,
        area: BoxPixels,
    ) -> Result<FrameMasks, HeadsError> {
        self.add_box_and_points(model, frame, object, Some(area), &[])
    }

    /// As [`add_box`](Self::add_box) with points that say more; without a box, as
    /// [`add_points`](Self::add_points).
    ///
    /// # Errors
    /// As both.
    pub fn add_box_and_points(
        &mut self,
        model: &Sam2,
        frame: usize,
        object: ObjectId,
        area: Option<BoxPixels>,
        points: &[Click],
    ) -> Result<FrameMasks, HeadsError> {
        let encoded = self.require(model, frame)?;
        let [height, width] = encoded.size.map(|side| side as f32);
        let refuse = |what: String, why: &'static str| HeadsError::Prompt { frame, what, why };
        if area.is_none() && points.is_empty() {
            return Err(refuse("the list of points".into(), "it is empty"));
        }
        let scale = self.constants.image_size as f32;
        let to_model =
            |x: f32, y: f32, label| PointPrompt::new(x / width * scale, y / height * scale, label);
        let mut all = Vec::with_capacity(points.len() + 2);
        if let Some(b) = area {
            if let Some(why) = bad_box(&b, width, height) {
                return Err(refuse(format!("the box {:?}", b.to_array()), why));
            }
            all.push(to_model(b.x0, b.y0, PointLabel::TopLeft));
            all.push(to_model(b.x1, b.y1, PointLabel::BottomRight));
        } else if let Some(at) = self.objects.iter().position(|o| o.id == object) {
            all.extend(self.objects[at].points.get(&frame).into_iter().flatten());
        }
        for p in points {
            let inside = (0.0..=width).contains(&p.x) && (0.0..=height).contains(&p.y);
            if !inside {
                return Err(refuse(
                    format!("the point ({}, {})", p.x, p.y),
                    "it is not on the frame",
                ));
            }
            let label = if p.positive {
                PointLabel::Positive
            } else {
                PointLabel::Negative
            };
            all.push(to_model(p.x, p.y, label));
        }
        self.prompt(model, encoded, object, Prompts::Points(vec![all]))
    }

    /// Gives the mask of an object on a frame; it replaces all prompts there. The mask must have
    /// the size of the frame and may be empty: the object is not there.
    ///
    /// # Errors
    /// [`HeadsError::Shape`] for another size, and as [`add_points`](Self::add_points).
    pub fn add_mask(
        &mut self,
        model: &Sam2,
        frame: usize,
        object: ObjectId,
        mask: &Mask,
    ) -> Result<FrameMasks, HeadsError> {
        let encoded = self.require(model, frame)?;
        let (height, width) = mask.size();
        if [height, width] != encoded.size {
            return Err(HeadsError::Shape {
                place: "TrackState::add_mask",
                what: "mask",
                expected: format!("{:?}, the size of frame {frame}", encoded.size),
                found: vec![height, width],
            });
        }
        let c = &self.constants;
        let given = mask_prompt(mask, c.image_size, &c.device);
        self.prompt(model, encoded, object, Prompts::Masks(given))
    }

    /// Puts an embedding in place of all prompts on the frame: the path of TPO, where the language
    /// model's task embedding becomes three tokens that imitate the embedding of a box.
    ///
    /// # Shapes
    /// - `tokens` `[1, tokens, dim]`
    ///
    /// # Errors
    /// [`HeadsError::Shape`] for other tokens, [`HeadsError::NotFinite`], and as
    /// [`add_points`](Self::add_points).
    pub fn add_embedding(
        &mut self,
        model: &Sam2,
        frame: usize,
        object: ObjectId,
        tokens: Tensor<3>,
    ) -> Result<FrameMasks, HeadsError> {
        let dim = model.config().prompt_encoder.dim;
        let [n, count, width] = tokens.dims();
        if n != 1 || count == 0 || width != dim {
            return Err(HeadsError::Shape {
                place: "TrackState::add_embedding",
                what: "tokens",
                expected: format!("[1, tokens, {dim}], one token at least"),
                found: vec![n, count, width],
            });
        }
        let tokens = tokens.inner().to_device(&self.constants.device);
        let values: Vec<f32> = tokens.to_data().iter::<f32>().collect();
        if let Some(first) = values.iter().position(|v| !v.is_finite()) {
            return Err(HeadsError::NotFinite {
                place: "TrackState::add_embedding",
                what: "tokens".into(),
                count: values.iter().filter(|v| !v.is_finite()).count(),
                first,
            });
        }
        let encoded = self.require(model, frame)?;
        self.prompt(model, encoded, object, Prompts::Tokens(tokens))
    }

    fn prompt(
        &mut self,
        model: &Sam2,
        frame: EncodedFrame,
        id: ObjectId,
        prompt: Prompts,
    ) -> Result<FrameMasks, HeadsError> {
        in_pool(|| {
            let index = frame.index;
            let new = Object::new(id);
            let at = self.objects.iter().position(|o| o.id == id);
            let object = at.map_or(&new, |at| &self.objects[at]);
            let direction = object.tracked_direction(index);
            // A second prompt on a prompted frame stays one; the reference forgets it with the run.
            let conditions = direction.is_none() || object.prompted.contains_key(&index);
            let points = match &prompt {
                Prompts::Points(points) => points.first().cloned(),
                _ => None,
            };
            let decoded = self.decode_prompt(model, &frame, object, direction, prompt)?;
            let mut outputs = step::to_outputs(&decoded, self.fill_hole_area(model))?;
            let Some(mut output) = outputs.pop() else {
                return Ok(self.masks(&frame));
            };
            output.corrected = true;
            let at = at.unwrap_or_else(|| {
                self.objects.push(new);
                self.objects.len() - 1
            });
            let object = &mut self.objects[at];
            match points {
                Some(points) => object.points.insert(index, points),
                None => object.points.remove(&index),
            };
            object.pending.insert(index, Pending { output, conditions });
            Ok(self.masks(&frame))
        })
    }

    /// Predicts a prompted frame. `direction` is that of the run that went through it, if any.
    fn decode_prompt(
        &self,
        model: &Sam2,
        frame: &EncodedFrame,
        object: &Object,
        direction: Option<Direction>,
        prompt: Prompts,
    ) -> Result<Decoded, HeadsError> {
        let (c, features) = (&self.constants, &frame.features);
        let tracking = &model.config().tracking;
        if let (Prompts::Masks(mask), true) =
            (&prompt, tracking.use_mask_input_as_output_without_sam)
        {
            return Ok(step::given_mask(model, c, features, mask.clone())?.inner());
        }
        let embedding = match direction {
            None => model.without_memory(features.embedding.clone()),
            Some(direction) => self.recall_for(model, frame, object, direction)?,
        };
        let earlier = object.latest(frame.index).map(|o| o.low_res.as_ref());
        let (count, prompt) = prompt.embed(model, c, earlier)?;
        let multimask = step::multimask(tracking, count, direction.is_none());
        Ok(step::decode(model, embedding, features, &prompt, multimask)?.inner())
    }

    /// The features of a tracked frame, conditioned on what the object's memories hold.
    fn recall_for(
        &self,
        model: &Sam2,
        frame: &EncodedFrame,
        object: &Object,
        direction: Direction,
    ) -> Result<Tensor<4>, HeadsError> {
        let gone = |what: usize| HeadsError::FrameGone {
            frame: frame.index,
            why: format!("correcting it needs the memory of frame {what}, which was forgotten"),
            hint: "correct the frame the run stands at, or keep everything (Keep::Everything)",
        };
        if self.bounded()
            && let Some(what) = object.forgotten(&self.window, frame.index, direction)
        {
            return Err(gone(what));
        }
        let frames = self.frame_count();
        let selection = object.select(&self.window, frame.index, direction, frames);
        if selection.memories.is_empty() {
            return Ok(model.without_memory(frame.features.embedding.clone()));
        }
        let recalled = object.recall(&selection).ok_or_else(|| gone(frame.index))?;
        step::condition(
            model,
            &self.constants,
            &frame.features,
            &selection,
            self.window.pointer_limit(frames),
            &[recalled],
        )
    }
}

/// Why a box cannot be a prompt.
fn bad_box(b: &BoxPixels, width: f32, height: f32) -> Option<&'static str> {
    if b.to_array().iter().any(|v| !v.is_finite()) {
        Some("a coordinate is not a finite number")
    } else if !b.is_ordered() {
        Some("its corners are reversed")
    } else if b.x0 == b.x1 || b.y0 == b.y1 {
        Some("it has no area")
    } else if b.x1 <= 0.0 || b.y1 <= 0.0 || b.x0 >= width || b.y0 >= height {
        Some("it lies outside the frame")
    } else {
        None
    }
}
