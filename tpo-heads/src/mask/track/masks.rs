//! Masks of a frame as they are handed out.

use std::sync::Arc;

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tpo_core::geometry::Mask;

use super::resize::resize_host;

/// Name of an object within a [`TrackState`](super::TrackState), chosen by the caller.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct ObjectId(pub u32);

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One object on a frame.
#[derive(Debug, Clone)]
pub struct ObjectMask {
    /// The object.
    pub object: ObjectId,
    /// Whether it is visible: a logit, above zero if it is. −10 and 10 for given masks.
    pub score: f32,
    /// Mask logits at a quarter of the model's input size, holes filled; −1024 everywhere if the
    /// object is not visible.
    pub low_res: Arc<Array2<f32>>,
}

/// The objects on a frame, in the order in which they were first prompted.
#[derive(Debug, Clone)]
pub struct FrameMasks {
    /// Index of the frame.
    pub frame: usize,
    /// Height and width of the frame in pixels.
    pub size: [usize; 2],
    /// The objects.
    pub objects: Vec<ObjectMask>,
    /// Whether a pixel belongs to at most one object.
    pub non_overlapping: bool,
}

/// Largest logit of a pixel that belongs to another object (reference implementation).
const OTHER_OBJECT: f32 = -10.0;

impl FrameMasks {
    /// Mask logits at the size of the frame, one map per object: the low-resolution logits
    /// enlarged bilinearly, and with non-overlapping masks at most −10 wherever another object's
    /// are larger.
    pub fn logits(&self) -> Vec<Array2<f32>> {
        let mut maps: Vec<Array2<f32>> = self
            .objects
            .iter()
            .map(|o| resize_host(&o.low_res, self.size))
            .collect();
        if self.non_overlapping {
            separate(&mut maps);
        }
        maps
    }

    /// Binary masks at the size of the frame, one per object: logits above zero.
    pub fn masks(&self) -> Vec<Mask> {
        self.logits()
            .iter()
            .map(|map| Mask(map.mapv(|logit| logit > 0.0)))
            .collect()
    }
}

/// Leaves every pixel to the object with the largest logit, the first of equals.
fn separate(maps: &mut [Array2<f32>]) {
    let Some(pixels) = maps.first().map(Array2::len).filter(|_| maps.len() > 1) else {
        return;
    };
    let mut slices: Vec<&mut [f32]> = maps.iter_mut().filter_map(|m| m.as_slice_mut()).collect();
    for at in 0..pixels {
        let mut best = 0;
        for object in 1..slices.len() {
            if slices[object][at] > slices[best][at] {
                best = object;
            }
        }
        for (object, map) in slices.iter_mut().enumerate() {
            if object != best {
                map[at] = map[at].min(OTHER_OBJECT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(non_overlapping: bool) -> FrameMasks {
        let map =
            |values: [f32; 4]| Arc::new(Array2::from_shape_vec((2, 2), values.to_vec()).unwrap());
        let object = |id, values| ObjectMask {
            object: ObjectId(id),
            score: 1.0,
            low_res: map(values),
        };
        FrameMasks {
            frame: 0,
            size: [2, 2],
            objects: vec![
                object(4, [1.0, 2.0, -3.0, -20.0]),
                object(2, [2.0, 2.0, -4.0, 5.0]),
            ],
            non_overlapping,
        }
    }

    #[test]
    fn a_pixel_belongs_to_the_larger_logit() {
        let [a, b] = &masks(true).logits()[..] else {
            panic!("two objects")
        };
        assert_eq!(a.as_slice().unwrap(), [-10.0, 2.0, -3.0, -20.0]);
        assert_eq!(b.as_slice().unwrap(), [2.0, -10.0, -10.0, 5.0]);
        let areas: Vec<usize> = masks(true).masks().iter().map(Mask::area).collect();
        assert_eq!(areas, [1, 2]);
        let areas: Vec<usize> = masks(false).masks().iter().map(Mask::area).collect();
        assert_eq!(areas, [2, 3]);
    }
}
