//! One vector per clip of a video.

use std::sync::OnceLock;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use tpo_core::traits::VisionEncoder;
use tpo_vision::internvideo2::{InternVideo2, InternVideo2Config};

use super::{plain_device, weights_fingerprint};
use crate::error::HeadsError;

/// Clips that are computed at once, unless told otherwise. One clip of the 1B tower needs about
/// 250 MB of activations in f32.
const CLIPS_PER_BATCH: usize = 4;

/// What frames an extractor reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipInput {
    /// Frames per second of video.
    pub frames_per_second: f64,
    /// Frames of a clip, so that a clip lasts `frames_per_clip / frames_per_second` seconds.
    pub frames_per_clip: usize,
    /// Features of a clip: 1, or one per equal part of its time.
    #[serde(default = "one")]
    pub features_per_clip: usize,
    /// Side of the square frames in pixels.
    pub size: usize,
    /// Subtracted per channel, on the 0-1 scale.
    pub mean: [f32; 3],
    /// Divided by per channel, on the 0-1 scale.
    pub std: [f32; 3],
    /// Which frames of the video.
    #[serde(default)]
    pub rule: FrameRule,
}

fn one() -> usize {
    1
}

/// Which frames of a video an extractor reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameRule {
    /// The reference's, `fpsX` of its video reader: rounds ties to even and drops the last second
    /// when it is not whole.
    #[default]
    Reference,
    /// Those on show in the middle of equal intervals.
    Shown,
}

impl ClipInput {
    /// Clips of eight frames at eight frames per second, hence one feature per second, with the
    /// ImageNet statistics (reference implementation).
    pub fn one_per_second(size: usize) -> Self {
        Self {
            frames_per_second: 8.0,
            frames_per_clip: 8,
            features_per_clip: 1,
            size,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            rule: FrameRule::Reference,
        }
    }

    /// Seconds that one clip covers.
    pub fn seconds_per_clip(&self) -> f64 {
        self.frames_per_clip as f64 / self.frames_per_second
    }

    /// Seconds that one feature covers.
    pub fn seconds_per_feature(&self) -> f64 {
        self.seconds_per_clip() / self.features_per_clip as f64
    }

    /// Checks that the values make sense.
    ///
    /// # Errors
    /// [`HeadsError::Config`].
    pub fn validate(&self) -> Result<(), HeadsError> {
        let rate = self.frames_per_second;
        let positive = rate.is_finite() && rate > 0.0;
        HeadsError::require(positive, "frames_per_second", "a positive number", rate)?;
        HeadsError::require(
            self.frames_per_clip > 0 && self.size > 0,
            "frames_per_clip and size",
            "at least 1",
            format_args!("{} and {}", self.frames_per_clip, self.size),
        )?;
        let parts = self.features_per_clip;
        let divides = parts > 0 && self.frames_per_clip.is_multiple_of(parts);
        let expected = format!("a divisor of the {} frames", self.frames_per_clip);
        HeadsError::require(divides, "features_per_clip", expected, parts)?;
        HeadsError::require(
            self.std.iter().all(|s| s.is_finite() && *s > 0.0)
                && self.mean.iter().all(|m| m.is_finite()),
            "mean and std",
            "finite, std positive",
            format_args!("{:?} and {:?}", self.mean, self.std),
        )
    }
}

/// A frozen tower that turns clips into one vector each.
pub trait ClipFeatureExtractor: Send + Sync {
    /// What frames it reads.
    fn input(&self) -> &ClipInput;

    /// Width of a feature.
    fn width(&self) -> usize;

    /// Names the tower and its weights; equal identities give equal features. Part of the key of
    /// a feature cache.
    ///
    /// # Errors
    /// Files of weights that cannot be read.
    fn identity(&self) -> Result<String, HeadsError>;

    /// Where clips should be created.
    fn device(&self) -> Device;

    /// The features of clips, one clip after the other, in f32, without autodiff.
    ///
    /// # Shapes
    /// - clips `[n, frames_per_clip, 3, size, size]`, normalised as [`input`](Self::input) says
    /// - output `[n · features_per_clip, width]`
    ///
    /// # Errors
    /// [`HeadsError::Shape`], and the tower's own.
    fn extract(&self, clips: Tensor<5>) -> Result<Tensor<2>, HeadsError>;
}

/// A frozen tower and what it is shown.
#[derive(Debug)]
pub struct ClipTower<M> {
    tower: M,
    /// What stands before the fingerprint of the weights.
    name: String,
    input: ClipInput,
    width: usize,
    device: Device,
    per_batch: usize,
    identity: OnceLock<String>,
    forward: fn(&M, Tensor<5>, &ClipInput) -> Result<Tensor<2>, HeadsError>,
}

/// Features of the InternVideo2-CLIP tower, not normalised (reference implementation).
pub type InternVideo2Features = ClipTower<InternVideo2>;

impl InternVideo2Features {
    /// Freezes a tower. Its clips last one second, whatever its number of frames.
    pub fn new(tower: InternVideo2) -> Self {
        let (input, width) = (
            Self::input_of(tower.config()),
            tower.config().clip_embed_dim,
        );
        let forward = |tower: &InternVideo2, clips, _: &ClipInput| Ok(tower.forward(clips)?);
        Self::frozen(tower, "internvideo2-clip".into(), input, width, forward)
    }

    /// What frames a tower of this configuration reads.
    pub fn input_of(config: &InternVideo2Config) -> ClipInput {
        ClipInput {
            frames_per_second: config.num_frames as f64,
            frames_per_clip: config.num_frames,
            ..ClipInput::one_per_second(config.img_size)
        }
    }
}

impl<V: VisionEncoder> ClipTower<V> {
    /// Freezes any encoder: a feature is the mean of a clip's tokens, or of those of each part of
    /// its time ([`ClipInput::features_per_clip`]), whose tokens then follow each other. What a
    /// small model uses in place of InternVideo2; a head must be trained on the features it is
    /// given. `name` tells architectures apart whose weights are equal.
    ///
    /// # Errors
    /// [`HeadsError::Config`] for an input that makes no sense.
    pub fn of_encoder(encoder: V, name: &str, input: ClipInput) -> Result<Self, HeadsError> {
        input.validate()?;
        let (name, width) = (format!("{name}:mean"), encoder.dim());
        Ok(Self::frozen(encoder, name, input, width, mean_tokens))
    }
}

impl<M: Module> ClipTower<M> {
    fn frozen(
        tower: M,
        name: String,
        input: ClipInput,
        width: usize,
        forward: fn(&M, Tensor<5>, &ClipInput) -> Result<Tensor<2>, HeadsError>,
    ) -> Self {
        Self {
            device: plain_device(&tower),
            tower: tower.valid(),
            name,
            input,
            width,
            per_batch: CLIPS_PER_BATCH,
            identity: OnceLock::new(),
            forward,
        }
    }

    /// Names it by something else than its weights: the hashes of the files they were read from.
    pub fn with_identity(mut self, identity: String) -> Self {
        self.identity = OnceLock::from(identity);
        self
    }

    /// Sets how many clips are computed at once. More need more memory and change no value.
    pub fn with_clips_per_batch(mut self, clips: usize) -> Self {
        self.per_batch = clips.max(1);
        self
    }
}

impl<M: Module + Sync> ClipFeatureExtractor for ClipTower<M> {
    fn input(&self) -> &ClipInput {
        &self.input
    }

    fn width(&self) -> usize {
        self.width
    }

    fn identity(&self) -> Result<String, HeadsError> {
        let identity = || format!("{}:{}", self.name, weights_fingerprint(&self.tower));
        Ok(self.identity.get_or_init(identity).clone())
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn extract(&self, clips: Tensor<5>) -> Result<Tensor<2>, HeadsError> {
        let (input, found) = (&self.input, clips.dims());
        let [n, frames, channels, height, width] = found;
        let expected = [input.frames_per_clip, 3, input.size, input.size];
        if n == 0 || [frames, channels, height, width] != expected {
            return Err(HeadsError::Shape {
                place: "ClipFeatureExtractor::extract",
                what: "clips",
                expected: format!("[at least 1, {expected:?}]"),
                found: found.to_vec(),
            });
        }
        let clips = if clips.device().is_autodiff() {
            clips.inner()
        } else {
            clips
        };
        let clips = clips.to_device(&self.device);
        let mut out = Vec::with_capacity(n.div_ceil(self.per_batch));
        for start in (0..n).step_by(self.per_batch) {
            let batch = clips
                .clone()
                .narrow(0, start, self.per_batch.min(n - start));
            let features = (self.forward)(&self.tower, batch, input)?;
            out.push(features.cast(FloatDType::F32));
        }
        Ok(Tensor::cat(out, 0))
    }
}

/// The mean of an encoder's tokens, of each part of a clip's time.
fn mean_tokens<V: VisionEncoder>(
    encoder: &V,
    clips: Tensor<5>,
    input: &ClipInput,
) -> Result<Tensor<2>, HeadsError> {
    let tokens = encoder.encode(clips)?.cast(FloatDType::F32);
    let [clips, count, width] = tokens.dims();
    let parts = input.features_per_clip;
    if !count.is_multiple_of(parts) {
        return Err(HeadsError::Shape {
            place: "ClipTower::of_encoder",
            what: "tokens of the encoder",
            expected: format!("a multiple of the {parts} features of a clip"),
            found: vec![clips, count, width],
        });
    }
    let tokens = tokens.reshape([clips * parts, count / parts, width]);
    Ok(tokens.mean_dim(1).squeeze_dim(1))
}
