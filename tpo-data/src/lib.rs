//! Video and image reading, frame sampling and transforms for TPO for Rust.
//!
//! - [`open_video`] reads MP4 / QuickTime with H.264 and animated GIF in pure Rust; any other
//!   container or codec through FFmpeg with the `ffmpeg` feature.
//! - [`read_image`] reads PNG, JPEG, WebP, BMP and GIF.
//! - [`MediaLimits`] bound what a file may make us allocate; they are checked against headers
//!   before anything is decoded. Malformed files give a [`DataError`], never a panic.
//! - [`sampling`] picks frames as the reference implementation does.
//! - [`ImageTransform`] turns frames into network inputs, equal to torchvision.
//! - [`read_clip`] does all of it with a video.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use tpo_data::{ClipConfig, MediaLimits, open_video, read_clip};
//!
//! # fn main() -> Result<(), tpo_data::DataError> {
//! let video = open_video("assets/bouncing_shapes.mp4", &MediaLimits::default())?;
//! let clip = read_clip(&*video, &ClipConfig::default(), None)?;
//! assert_eq!(clip.into_tensor(&Device::flex()).dims(), [1, 16, 3, 224, 224]);
//! # Ok(())
//! # }
//! ```

mod clip;
mod error;
pub mod feed;
mod frame;
mod image_io;
mod label_png;
mod limits;
pub mod prompts;
pub mod readers;
pub mod sampling;
pub mod schema;
pub mod synthetic;
mod transform;
pub mod video;
mod video_frames;

pub use clip::{ClipConfig, ClipValues, Progress, read_clip, select_frames};
pub use error::DataError;
pub use frame::{Frame, Rotation, TimedFrame};
pub use image_io::{read_image, read_image_bytes};
pub use label_png::read_label_png;
pub use limits::MediaLimits;
pub use sampling::{ClipRange, FrameSampling};
pub use transform::{
    IMAGENET_MEAN, IMAGENET_STD, ImageTransform, Rounding, SIGLIP_MEAN_STD, TransformPlan,
};
pub use video::{
    FrameBuffer, FrameFolder, OpenVideo, VideoInfo, VideoOptions, VideoPart, VideoReader,
    YuvConversion, open_frames, open_still, open_video, open_video_bytes, open_video_with,
};
pub use video_frames::{OnFrame, VideoFrames};

// The README's code is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
