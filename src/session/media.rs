//! Looking at videos and images.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, TensorData};
use tpo_core::head::{FrameSource, HeadSet};
use tpo_core::prompt::Visual;
use tpo_core::traits::{VisualInput, VisualRows, VisualShape};
use tpo_data::{
    ClipConfig, Frame, FrameBuffer, OnFrame, Progress, VideoFrames, VideoReader, open_video,
    read_clip, read_image,
};

use super::{Session, TrackFrames};
use crate::error::{Error, Result};
use crate::features::{FeatureMedia, FeatureVideo, FrameClock, HeadStep, Seen};

/// What the session is looking at; of several images the first.
#[derive(Debug, Clone)]
pub struct Media {
    /// The file, or the name of what is in memory.
    pub path: PathBuf,
    /// Video or image.
    pub kind: Visual,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Duration in seconds; `None` for an image.
    pub duration: Option<f64>,
    /// Frames per second; `None` for an image.
    pub fps: Option<f64>,
    /// Indices of the frames that were looked at.
    pub frames: Vec<usize>,
    /// Their times in seconds.
    pub timestamps: Vec<f64>,
    /// Frames of the file; 1 for an image.
    pub frame_count: usize,
    /// Indices of the frames the mask head goes through, one for each of its masks
    /// ([`TrackFrames`]).
    pub followed: Vec<usize>,
}

/// Media with what the model has made of it.
#[derive(Debug)]
pub(super) struct Looking {
    pub media: Media,
    /// Embeddings of the visual slots: of the video, or of every image.
    pub embeddings: VisualRows,
    /// What the temporal head's features are made of; `None` for an image.
    pub features: Option<FeatureMedia>,
    /// Frames for heads that look again.
    pub frames: Arc<VideoFrames>,
}

impl<H: HeadSet> Session<H> {
    /// Looks at a video: samples and encodes its frames. Forgets the conversation.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) for a file that is no video, is empty, truncated or beyond the limits.
    pub fn load_video(
        &mut self,
        path: impl AsRef<Path>,
        progress: Option<Progress<'_>>,
    ) -> Result<&Media> {
        let path = path.as_ref();
        let reader: Arc<dyn VideoReader> = open_video(path, &self.options.limits)?.into();
        self.load(reader, FeatureVideo::File(path.into()), progress)
    }

    /// Looks at a video that is already open: a folder of frames, a part of a video
    /// ([`VideoPart`](tpo_data::VideoPart)), frames in memory. Forgets the conversation.
    ///
    /// Features of the temporal head are not taken from nor put into the feature cache, which
    /// goes by files.
    ///
    /// # Errors
    /// As [`Session::load_video`].
    pub fn load_reader(
        &mut self,
        reader: Arc<dyn VideoReader>,
        progress: Option<Progress<'_>>,
    ) -> Result<&Media> {
        self.load(reader.clone(), FeatureVideo::Open(reader), progress)
    }

    /// Looks at frames in memory, `fps` a second. Forgets the conversation. `name` stands for the
    /// file in messages.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) without frames, for frames of different sizes or a rate
    /// that is not positive.
    pub fn load_frames(
        &mut self,
        name: impl Into<PathBuf>,
        frames: Vec<Frame>,
        fps: f64,
    ) -> Result<&Media> {
        let video = FrameBuffer::new(name, frames, fps, &self.options.limits)?;
        self.load_reader(Arc::new(video), None)
    }

    fn load(
        &mut self,
        reader: Arc<dyn VideoReader>,
        feature_video: FeatureVideo,
        progress: Option<Progress<'_>>,
    ) -> Result<&Media> {
        let clip = ClipConfig {
            sampling: self.sampling(),
            num_frames: self.config.input.frames,
            range: None,
            transform: self.config.transform(),
        };
        let clip = read_clip(&*reader, &clip, progress)?;
        let size = (clip.info.width as u32, clip.info.height as u32);
        let visual = VisualInput {
            shape: VisualShape::video(size, clip.indices.len()),
            pixels: Tensor::from_data(TensorData::new(clip.values, clip.shape), &self.device),
        };
        let path = reader.path().to_path_buf();
        let features = FeatureMedia {
            path: path.clone(),
            seen: Seen {
                from: reader.part_start(),
                duration: clip.info.duration,
            },
            video: feature_video,
            memo: Arc::default(),
        };
        let mut frames = VideoFrames::new(reader, &self.device);
        let frame_count = frames.len();
        let followed = match self.options.track {
            TrackFrames::All => (0..frame_count).collect(),
            TrackFrames::Sampled => {
                frames = frames.picked(&clip.indices)?;
                clip.indices.clone()
            }
        };
        let media = Media {
            path,
            kind: Visual::Video,
            size,
            duration: Some(clip.info.duration),
            fps: Some(clip.info.fps),
            frames: clip.indices,
            timestamps: clip.timestamps,
            frame_count,
            followed,
        };
        self.look_at(media, vec![visual], frames, Some(features))
    }

    /// Looks at an image: in tiles where the model reads them. Forgets the conversation.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) for a file that is no image or is beyond the limits;
    /// [`CoreError::Visual`](tpo_core::CoreError::Visual) for one that is too thin to leave a row.
    pub fn load_image(&mut self, path: impl AsRef<Path>) -> Result<&Media> {
        self.load_images(&[path])
    }

    /// Looks at images, in this order; heads look at the first. Forgets the conversation.
    ///
    /// # Errors
    /// As [`Session::load_image`]; [`CoreError::Prompt`](tpo_core::CoreError::Prompt) for more images than
    /// the model reads; [`Error::Question`] without any, and where they leave no place for a question.
    pub fn load_images(&mut self, paths: &[impl AsRef<Path>]) -> Result<&Media> {
        let Some(path) = paths.first().map(AsRef::as_ref) else {
            return Err(Error::Question {
                why: "there is no image to look at; give one, or `Session::clear_media`".into(),
            });
        };
        let layout = self.config.prompt.layout();
        layout.check_visuals(paths.len())?;
        let mut visuals = Vec::with_capacity(paths.len());
        for path in paths {
            let frame = read_image(path, &self.options.limits)?;
            visuals.push(self.image(&frame, paths.len() == 1)?);
        }
        let size = visuals.first().map_or((0, 0), |v| v.shape.size);
        let media = Media {
            path: path.into(),
            kind: Visual::Image,
            size,
            duration: None,
            fps: None,
            frames: vec![0],
            timestamps: Vec::new(),
            frame_count: 1,
            followed: vec![0],
        };
        let frames = VideoFrames::image(path, &self.options.limits, &self.device)?;
        self.look_at(media, visuals, frames, None)
    }

    /// Looks at nothing: questions are about text only. Forgets the conversation.
    pub fn clear_media(&mut self) {
        self.clear_history();
        self.looking = None;
    }

    fn look_at(
        &mut self,
        media: Media,
        visuals: Vec<VisualInput>,
        frames: VideoFrames,
        features: Option<FeatureMedia>,
    ) -> Result<&Media> {
        self.check_rows(&visuals)?;
        let embeddings = self.model.encode_visuals(visuals, None)?;
        self.clear_history();
        let progress = self.options.progress.clone();
        let sampled = media.frames.len();
        let progress = progress.map(|heard| -> OnFrame {
            let clock = Mutex::new(FrameClock::default());
            Arc::new(move |done, total, side| {
                let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
                let cost = clock.read([done, total, sampled], side);
                drop(clock);
                (heard.0)(HeadStep {
                    what: "frames",
                    done,
                    total,
                    cost,
                });
            })
        });
        let looking = Looking {
            media,
            // At least one visual went in.
            embeddings: embeddings.unwrap_or_else(|| VisualRows {
                rows: Tensor::empty([0, self.config.llm.hidden_size], &self.device),
                counts: Vec::new(),
            }),
            features,
            frames: Arc::new(
                frames
                    .with_progress(progress)
                    .with_cancel(self.options.cancel.clone()),
            ),
        };
        Ok(&self.looking.insert(looking).media)
    }

    /// An image as the model reads it. Where it reads tiles, one that is `alone` goes in as a whole and in tiles, one
    /// of several on a square canvas.
    fn image(&self, frame: &Frame, alone: bool) -> Result<VisualInput> {
        let transform = self.config.transform();
        let one = std::slice::from_ref(frame);
        let (values, dims) = match self.config.connector.packing() {
            Some(packing) if alone => transform.tiles(frame, &packing.tiling)?,
            Some(_) => transform.squares(one)?,
            None => transform.apply(one)?,
        };
        Ok(VisualInput {
            shape: VisualShape {
                pictures: dims[0],
                ..VisualShape::image((frame.width() as u32, frame.height() as u32))
            },
            pixels: Tensor::from_data(TensorData::new(values, dims), &self.device),
        })
    }

    /// Refuses what leaves no place for a question, before it is encoded.
    fn check_rows(&self, visuals: &[VisualInput]) -> Result<()> {
        let counts = visuals.iter().map(|v| self.config.rows(&v.shape));
        let rows: usize = counts.sum::<tpo_core::Result<usize>>()?;
        let limit = self.config.max_prompt();
        if rows < limit {
            return Ok(());
        }
        Err(Error::Question {
            why: format!(
                "{} image(s) or video(s) take {rows} tokens and the model reads {limit} in all; give fewer, or \
                 a video of fewer frames",
                visuals.len()
            ),
        })
    }
}
