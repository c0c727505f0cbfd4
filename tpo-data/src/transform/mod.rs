//! From decoded frames to the tensors the networks expect.

mod resize;
mod tiles;
mod whole;

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{DataError, Frame};
use resize::{Axis, Resampler};
use whole::{WholeAxis, WholeResampler};

/// Mean per channel (R, G, B) on the 0-1 scale that ImageNet models subtract
/// (reference implementation, all branches).
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation per channel (R, G, B) on the 0-1 scale, with [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Mean and standard deviation per channel on the 0-1 scale of SigLIP (its published preprocessor).
pub const SIGLIP_MEAN_STD: [f32; 3] = [0.5; 3];

/// Largest side a transform may produce, in pixels.
const MAX_SIDE: usize = 16_384;

/// Where the resized values are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// To whole 8-bit values in 0-255 after both passes, as torchvision does to a `uint8` tensor that it
    /// resizes as float.
    Uint8,
    /// To whole 8-bit values after each pass, the horizontal one first, with weights of 16 bits: PyTorch's
    /// own resize of `uint8` tensors, to the bit. With antialiasing only.
    EachPass,
    /// Not at all, and not clamped: torchvision on a float tensor. Bicubic overshoot stays.
    Float,
}

/// Resize (bicubic, aspect ratio not kept), scale to 0-1, normalise per channel.
///
/// Equal to torchvision's `Resize(size, BICUBIC)` + `Normalize`: with `antialias` the kernel
/// is Pillow's (a = -0.5, widened when shrinking), without it PyTorch's interpolation
/// (a = -0.75, 4 taps).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTransform {
    /// Output `[height, width]` in pixels; `None` keeps the size of the input.
    pub size: Option<[usize; 2]>,
    /// torchvision ≥ 0.17 antialiases by default, older versions did not.
    pub antialias: bool,
    /// Where values are rounded.
    pub rounding: Rounding,
    /// Subtracted per channel, 0-1 scale.
    pub mean: [f32; 3],
    /// Divided by per channel, 0-1 scale.
    pub std: [f32; 3],
}

impl ImageTransform {
    /// Input of the vision encoder: 224 × 224, 8-bit rounding (reference implementation).
    pub fn vision() -> Self {
        Self {
            size: Some([224, 224]),
            antialias: true,
            rounding: Rounding::Uint8,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }

    /// Input of the mask head: 1024 × 1024, float path (reference implementation).
    pub fn mask() -> Self {
        Self {
            size: Some([1024, 1024]),
            rounding: Rounding::Float,
            ..Self::vision()
        }
    }

    /// The reference's image branch: no resize, only scaling and normalisation. The encoder
    /// needs 224 × 224, so callers that do not replicate the reference want
    /// [`ImageTransform::vision`].
    pub fn region() -> Self {
        Self {
            size: None,
            rounding: Rounding::Float,
            ..Self::vision()
        }
    }

    /// Input of SigLIP, 384 × 384 (transformers' `LlavaOnevisionProcessor` with the published
    /// configuration): of the frames of a video, and with [`ImageTransform::tiles`] and
    /// [`ImageTransform::squares`] of images.
    pub fn siglip() -> Self {
        Self {
            size: Some([384, 384]),
            antialias: true,
            rounding: Rounding::EachPass,
            mean: SIGLIP_MEAN_STD,
            std: SIGLIP_MEAN_STD,
        }
    }

    /// The same transform with another output `[height, width]`.
    pub fn with_size(mut self, size: [usize; 2]) -> Self {
        self.size = Some(size);
        self
    }

    /// The same transform with antialiasing on or off.
    pub fn with_antialias(mut self, antialias: bool) -> Self {
        self.antialias = antialias;
        self
    }

    /// Output `[height, width]` for a frame of `height` × `width` pixels.
    pub fn output_size(&self, height: usize, width: usize) -> [usize; 2] {
        self.size.unwrap_or([height, width])
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] for a side of 0 or above 16384 pixels, a standard
    /// deviation or mean that cannot be used, or [`Rounding::EachPass`] without antialiasing.
    pub fn validate(&self) -> Result<(), DataError> {
        let bad_size = self
            .size
            .is_some_and(|s| s.iter().any(|&n| n == 0 || n > MAX_SIDE));
        let bad_numbers = self.mean.iter().any(|m| !m.is_finite())
            || self.std.iter().any(|s| !s.is_finite() || *s <= 0.0);
        if bad_size || bad_numbers {
            return Err(DataError::transform(format!(
                "size {:?} must be 1 to {MAX_SIDE} per side, std {:?} positive, mean {:?} finite",
                self.size, self.std, self.mean
            )));
        }
        if self.rounding == Rounding::EachPass && !self.antialias {
            return Err(DataError::transform(
                "rounding after each pass is defined with antialiasing only; set antialias, or round otherwise",
            ));
        }
        Ok(())
    }

    /// Transforms frames of one common size.
    ///
    /// Returns the values and their shape `[frames, 3, height, width]`. Frames and bands of
    /// rows are spread over the rayon pool; the result does not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] for no frames, frames of different sizes or an invalid
    /// configuration.
    pub fn apply(&self, frames: &[Frame]) -> Result<(Vec<f32>, [usize; 4]), DataError> {
        let none = || DataError::transform("no frames to transform");
        let first = frames.first().ok_or_else(none)?;
        let plan = self.plan(first.height(), first.width())?;
        let [h, w] = plan.output_size();
        let mut values = vec![0.0; frames.len() * 3 * h * w];
        frames
            .par_iter()
            .zip(values.par_chunks_exact_mut(3 * h * w))
            .try_for_each(|(frame, out)| plan.apply_into(frame, out))?;
        Ok((values, [frames.len(), 3, h, w]))
    }

    /// As [`ImageTransform::apply`], as a tensor `[1, frames, 3, height, width]` (float32).
    ///
    /// # Errors
    /// As [`ImageTransform::apply`].
    pub fn apply_tensor(&self, frames: &[Frame], device: &Device) -> Result<Tensor<5>, DataError> {
        let (values, [t, c, h, w]) = self.apply(frames)?;
        let data = TensorData::new(values, [1, t, c, h, w]);
        Ok(Tensor::from_data(data, device))
    }

    /// Prepares the transform for frames of `height` × `width` pixels, for callers that feed
    /// frames one at a time.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] for an invalid configuration or a side of 0.
    pub fn plan(&self, height: usize, width: usize) -> Result<TransformPlan, DataError> {
        self.validate()?;
        if height == 0 || width == 0 {
            let reason = format!("input of {width}x{height} pixels");
            return Err(DataError::transform(reason));
        }
        let output = self.output_size(height, width);
        let [out_h, out_w] = output;
        let resize = if output == [height, width] {
            Resize::None
        } else if self.rounding == Rounding::EachPass {
            Resize::Whole(WholeResampler {
                rows: WholeAxis::new(height, 0..height, out_h),
                columns: WholeAxis::new(width, 0..width, out_w),
                fill: [0; 3],
            })
        } else {
            Resize::Float(Resampler {
                rows: Axis::new(height, out_h, self.antialias),
                columns: Axis::new(width, out_w, self.antialias),
            })
        };
        Ok(TransformPlan {
            input: [height, width],
            output,
            resize,
            finish: Finish::new(self),
        })
    }
}

/// An [`ImageTransform`] with its resampling weights computed for one input size.
#[derive(Debug, Clone)]
pub struct TransformPlan {
    input: [usize; 2],
    output: [usize; 2],
    resize: Resize,
    finish: Finish,
}

/// How the size changes.
#[derive(Debug, Clone)]
enum Resize {
    /// Not at all.
    None,
    Float(Resampler),
    Whole(WholeResampler),
}

/// What happens to a resized value: rounding, then (v / 255 - mean) / std.
#[derive(Debug, Clone, Copy)]
struct Finish {
    rounding: Rounding,
    /// A factor; with [`Rounding::EachPass`] a divisor.
    scale: [f32; 3],
    /// Added after the factor; with [`Rounding::EachPass`] subtracted before the division.
    offset: [f32; 3],
}

impl Finish {
    fn new(transform: &ImageTransform) -> Self {
        let ImageTransform { mean, std, .. } = transform;
        let (scale, offset) = match transform.rounding {
            Rounding::Uint8 | Rounding::Float => (
                std.map(|s| 1.0 / (255.0 * s)),
                std::array::from_fn(|c| -mean[c] / std[c]),
            ),
            // In these two steps, as transformers does: the values are equal to the bit.
            Rounding::EachPass => (std.map(|s| 255.0 * s), mean.map(|m| 255.0 * m)),
        };
        Self {
            rounding: transform.rounding,
            scale,
            offset,
        }
    }

    /// Maps a row of one channel, in place.
    #[inline(always)]
    fn apply(&self, channel: usize, row: &mut [f32]) {
        let (scale, offset) = (self.scale[channel], self.offset[channel]);
        match self.rounding {
            Rounding::Uint8 => {
                // Adding and subtracting 1.5 * 2^23 rounds half to even, as torch.round does,
                // for any |v| < 2^22, and vectorises on every target; 0 <= v <= 255 here.
                const MAGIC: f32 = 12_582_912.0;
                for v in row {
                    let rounded = (v.clamp(0.0, 255.0) + MAGIC) - MAGIC;
                    *v = rounded * scale + offset;
                }
            }
            Rounding::Float => {
                for v in row {
                    *v = *v * scale + offset;
                }
            }
            Rounding::EachPass => {
                for v in row {
                    *v = (*v - offset) / scale;
                }
            }
        }
    }
}

impl TransformPlan {
    /// Output `[height, width]` in pixels.
    pub fn output_size(&self) -> [usize; 2] {
        self.output
    }

    /// Transforms one frame into `out`, `[3, height, width]`.
    ///
    /// # Errors
    /// [`DataError::InvalidTransform`] when the frame or `out` has another size than planned.
    pub fn apply_into(&self, frame: &Frame, out: &mut [f32]) -> Result<(), DataError> {
        let [h, w] = self.output;
        if [frame.height(), frame.width()] != self.input || out.len() != 3 * h * w {
            return Err(DataError::transform(format!(
                "planned for {:?} -> {:?} ([height, width]), got a frame of {:?} and room for {} values",
                self.input,
                self.output,
                [frame.height(), frame.width()],
                out.len()
            )));
        }
        let finish = self.finish;
        match &self.resize {
            Resize::Float(resampler) => {
                resampler.run(frame.rgb(), out, |channel, row| finish.apply(channel, row));
            }
            Resize::Whole(resampler) => finish_lines(resampler, frame, finish, out),
            Resize::None => {
                for (channel, plane) in out.chunks_exact_mut(h * w).enumerate() {
                    for (v, pixel) in plane.iter_mut().zip(frame.rgb().chunks_exact(3)) {
                        *v = f32::from(pixel[channel]);
                    }
                    finish.apply(channel, plane);
                }
            }
        }
        Ok(())
    }
}

/// Resizes `frame` into `out` `[3, height, width]`.
fn finish_lines(resampler: &WholeResampler, frame: &Frame, finish: Finish, out: &mut [f32]) {
    let mut whole = vec![0u8; out.len()];
    resampler.run(frame.rgb(), &mut whole);
    let width = resampler.columns.output();
    let plane = out.len() / 3;
    for (channel, plane) in out.chunks_exact_mut(plane).enumerate() {
        let lines = whole.chunks_exact(width).skip(channel).step_by(3);
        for (row, line) in plane.chunks_exact_mut(width).zip(lines) {
            for (v, byte) in row.iter_mut().zip(line) {
                *v = f32::from(*byte);
            }
            finish.apply(channel, row);
        }
    }
}
