//! A small model with random weights and a video of a moving square.

// Not every test file uses all of it.
#![allow(dead_code)]

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Distribution, Tensor};
use ndarray::Array2;
use tpo_core::geometry::{BoxPixels, Mask};
use tpo_heads::HeadsError;
use tpo_heads::mask::sam2::{Sam2, Sam2Config, Sam2Version};
use tpo_heads::mask::track::{FrameMasks, FrameReader, ObjectId, VideoFrame};

pub const SIDE: usize = 64;
pub const SIZE: [usize; 2] = [48, 80];
pub const A: ObjectId = ObjectId(1);
pub const B: ObjectId = ObjectId(7);
pub const BOX: BoxPixels = BoxPixels {
    x0: 10.0,
    y0: 6.0,
    x1: 40.0,
    y1: 30.0,
};

/// Draws every parameter: published initialisations are so small that memories would not matter.
struct Draw(u32);

impl ModuleMapper for Draw {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (device, shape) = (param.val().device(), param.val().dims());
        self.0 += 1;
        let width = *shape.last().unwrap_or(&1) as f64;
        let std = if D == 1 { 0.3 } else { 1.3 / width.sqrt() };
        let n: usize = shape.iter().product();
        // A generator of our own, so that tests do not depend on each other's draws.
        let mut state = u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let values: Vec<f32> = (0..n)
            .map(|_| (std * 12f64.sqrt() * uniform()) as f32)
            .collect();
        let drawn = Tensor::<1>::from_floats(values.as_slice(), &device).reshape(shape);
        param.map(|_| drawn)
    }
}

pub fn config(version: Sam2Version) -> Sam2Config {
    let mut config = Sam2Config::nano(version);
    config.memory_attention.dropout = 0.0;
    config
}

pub fn model_of(config: &Sam2Config) -> Sam2 {
    let model = config.init(&Device::flex()).unwrap();
    let mut model = model.map(&mut Draw(0));
    // Objects are visible unless a test says otherwise.
    score_bias(&mut model, 3.0);
    model
}

pub fn model(version: Sam2Version) -> Sam2 {
    model_of(&config(version))
}

/// Sets the object score of every frame to about `bias`.
pub fn score_bias(model: &mut Sam2, bias: f32) {
    let head = &mut model.sam_mask_decoder.pred_obj_score_head;
    let last = head.layers.last_mut().unwrap();
    last.weight = (last.weight.val() * 0.0).into();
    last.bias = last.bias.take().map(|b| b.map(|b| b * 0.0 + bias));
}

/// A square that moves over noise.
pub fn frame(index: usize) -> VideoFrame {
    frame_of(index, SIZE)
}

pub fn frame_of(index: usize, size: [usize; 2]) -> VideoFrame {
    let values: Vec<f32> = (0..3 * SIDE * SIDE)
        .map(|i| {
            let (c, y, x) = (i / (SIDE * SIDE), i / SIDE % SIDE, i % SIDE);
            let left = 8 + index * 3 % 40;
            let inside = (left..left + 16).contains(&x) && (12..32).contains(&y);
            let noise = ((x * 7 + y * 13 + c * 29 + index * 5) % 17) as f32 / 17.0;
            if inside { 2.0 - 0.3 * c as f32 } else { noise }
        })
        .collect();
    let image = Tensor::<1>::from_floats(values.as_slice(), &Device::flex());
    VideoFrame {
        image: image.reshape([1, 3, SIDE, SIDE]),
        size,
    }
}

pub fn video(frames: usize) -> Vec<VideoFrame> {
    (0..frames).map(frame).collect()
}

pub fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

pub fn rectangle([h, w]: [usize; 2], [x0, y0, x1, y1]: [usize; 4]) -> Mask {
    Mask(Array2::from_shape_fn((h, w), |(y, x)| {
        (x0..x1).contains(&x) && (y0..y1).contains(&y)
    }))
}

/// Largest difference of the low-resolution logits; frames and objects must be the same.
pub fn difference(a: &FrameMasks, b: &FrameMasks) -> f32 {
    assert_eq!((a.frame, a.size), (b.frame, b.size));
    assert_eq!(a.objects.len(), b.objects.len());
    let mut worst = 0.0f32;
    for (a, b) in a.objects.iter().zip(&b.objects) {
        assert_eq!(a.object, b.object);
        worst = worst.max((a.score - b.score).abs());
        for (x, y) in a.low_res.iter().zip(b.low_res.iter()) {
            assert!(x.is_finite() && y.is_finite());
            worst = worst.max((x - y).abs());
        }
    }
    worst
}

/// A stream that can be watched once, for example a camera. Only the last frame is held.
#[derive(Debug)]
pub struct ForwardFrames<I> {
    frames: I,
    /// Index of the frame that comes next.
    next: usize,
    last: Option<VideoFrame>,
    count: Option<usize>,
}

impl<I: Iterator<Item = Result<VideoFrame, HeadsError>>> ForwardFrames<I> {
    /// Frames 0, 1, .. of a stream of unknown length.
    pub fn new(frames: I) -> Self {
        Self {
            frames,
            next: 0,
            last: None,
            count: None,
        }
    }

    /// Says how many frames will come, which SAM 2 uses on clips shorter than its list of object
    /// pointers.
    pub fn with_frame_count(mut self, count: usize) -> Self {
        self.count = Some(count);
        self
    }
}

impl<I: Iterator<Item = Result<VideoFrame, HeadsError>> + Send> FrameReader for ForwardFrames<I> {
    fn read(&mut self, index: usize) -> Result<Option<VideoFrame>, HeadsError> {
        if index + 1 == self.next
            && let Some(last) = &self.last
        {
            return Ok(Some(last.clone()));
        }
        if self.count.is_some_and(|count| index >= count) {
            return Ok(None);
        }
        if index < self.next {
            return Err(HeadsError::FrameGone {
                frame: index,
                why: format!("the stream is at frame {} and cannot go back", self.next),
                hint: "prompt frames as they come, or read from a file with SeekFrames",
            });
        }
        while self.next <= index {
            self.last = None;
            let Some(frame) = self.frames.next() else {
                return Ok(None);
            };
            // Counted whether it can be read or not: the stream is past it.
            self.next += 1;
            self.last = Some(frame?);
        }
        Ok(self.last.clone())
    }

    fn frame_count(&self) -> Option<usize> {
        self.count
    }
}
