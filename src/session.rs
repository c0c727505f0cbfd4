//! A conversation about one video or image.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::{FeatureSource, FrameSource, SampleContext, TaskOutput};
use tpo_core::model::{CallOrder, GenerateEvent, GenerateOptions, PaddingSide, TokenBatch};
use tpo_core::prompt::{MAX_TOKENS, QuestionPrompt, Turn, Visual, timestamps_message};
use tpo_data::sampling::frame_timestamps;
use tpo_data::{
    ClipConfig, FrameSampling, ImageTransform, MediaLimits, Progress, read_image, video_clip_tensor,
};
use tpo_llm::sampling::{Sampler, SamplingConfig};
use tpo_llm::tokenizer::{DecodeStream, Tokenizer};

use crate::config::{TpoConfig, VideoChatTpo};
use crate::error::{Error, Result};
use crate::features::{FeatureCache, FeatureTowers, LazyFeatures, TemporalTowers};
use crate::frames::{HeardFrames, StreamedFrames};

/// How a session reads and answers.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Dtype of the weights in memory; `None` for f32 on the CPU and the file's own elsewhere.
    pub dtype: Option<FloatDType>,
    /// Which frames of a video are looked at.
    pub sampling: FrameSampling,
    /// When heads are called.
    pub call_order: CallOrder,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Greedy or random choice of tokens.
    pub decoding: SamplingConfig,
    /// Bounds on what a media file may cost.
    pub limits: MediaLimits,
    /// Towers of the temporal head for models that do not use their own encoder, such as the
    /// published VideoChat-TPO (InternVideo2-CLIP).
    pub towers: Option<TemporalTowers>,
    /// Where video features are kept between sessions; `None` computes them again.
    pub feature_cache: Option<FeatureCache>,
    /// Which frames of a video the mask head goes through.
    pub track: TrackFrames,
    /// Hears how far a head is that works on many frames: what it does, done, in total.
    pub progress: Option<HeadProgress>,
}

/// Called with what is being done, steps done, steps in total; from any thread.
type OnProgress = dyn Fn(&str, usize, usize) + Send + Sync;

/// Hears (what is being done, steps done, steps in total); may be called from several threads.
#[derive(Clone)]
pub struct HeadProgress(pub Arc<OnProgress>);

impl std::fmt::Debug for HeadProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeadProgress")
    }
}

/// Which frames of a video the mask head goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrackFrames {
    /// Every frame of the file.
    #[default]
    All,
    /// Those the vision encoder looked at (reference implementation).
    Sampled,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            sampling: FrameSampling::Middle,
            call_order: CallOrder::AsReference,
            max_new_tokens: 200,
            decoding: SamplingConfig::greedy(),
            limits: MediaLimits::default(),
            towers: None,
            feature_cache: None,
            track: TrackFrames::All,
            progress: None,
        }
    }
}

/// A question.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The text. `<track_box>` marks the place of a box; boxes without a mark go to the end.
    pub text: String,
    /// Boxes the question is about, normalised.
    pub boxes: Vec<BoxXyxy>,
    /// Tasks to call whatever the model says, for example `region`.
    pub tasks: Vec<String>,
}

impl Question {
    /// A question in words only.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Adds a box.
    pub fn with_box(mut self, area: BoxXyxy) -> Self {
        self.boxes.push(area);
        self
    }

    /// Calls a task whatever the model says.
    pub fn with_task(mut self, task: impl Into<String>) -> Self {
        self.tasks.push(task.into());
        self
    }
}

/// What the session is looking at.
#[derive(Debug, Clone)]
pub struct Media {
    /// The file.
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
    embeddings: Tensor<3>,
}

/// A piece of an answer.
#[derive(Debug, Clone)]
pub enum Event {
    /// Text, without the tokens that call heads.
    Text(String),
    /// A head answered.
    Task(TaskOutput),
    /// The model called a task for which this build has no head.
    NoHead(String),
}

/// A finished answer.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// Predictions in the order of the answer.
    pub tasks: Vec<TaskOutput>,
    /// Tasks that were called and have no head here.
    pub without_head: Vec<String>,
}

/// A model, its tokenizer, what it is looking at and what was said.
#[derive(Debug)]
pub struct Session {
    model: VideoChatTpo,
    config: TpoConfig,
    tokenizer: Arc<Tokenizer>,
    /// Towers of the temporal head.
    towers: Option<TemporalTowers>,
    /// Video features of the media, once a head has asked for them.
    video_features: Arc<OnceLock<Tensor<2>>>,
    /// Features of the question being answered.
    features: Option<LazyFeatures>,
    /// Frames of the media for heads that look again.
    frames: Option<HeardFrames>,
    /// Name of the media for the heads.
    media_name: String,
    /// The tokenizer's files, to be written beside the weights.
    pub(crate) tokenizer_files: Vec<(String, Vec<u8>)>,
    device: Device,
    options: SessionOptions,
    media: Option<Media>,
    history: Vec<Turn>,
    /// Boxes of the questions in the history, in order; their marks stand in its text.
    history_boxes: Vec<BoxXyxy>,
    /// The question being answered.
    asked: String,
    /// Its boxes.
    asked_boxes: Vec<BoxXyxy>,
}

impl Session {
    /// Puts a model and a tokenizer together.
    ///
    /// # Errors
    /// When the tokenizer does not hold the task tokens under the ids the model has for them.
    pub fn new(
        model: VideoChatTpo,
        config: TpoConfig,
        tokenizer: Tokenizer,
        device: &Device,
        options: SessionOptions,
    ) -> Result<Self> {
        config.validate()?;
        model.registry().check(|t| tokenizer.token_to_id(t))?;
        let tokenizer = Arc::new(tokenizer);
        let towers = match (&options.towers, &config.features) {
            (Some(towers), _) => Some(towers.clone()),
            (None, FeatureTowers::InternVideo2) => None,
            (
                None,
                FeatureTowers::Own {
                    frames_per_second,
                    frames_per_clip,
                },
            ) => Some(TemporalTowers::of_model(
                &model,
                &tokenizer,
                config.input.size,
                *frames_per_second,
                *frames_per_clip,
            )?),
        };
        Ok(Self {
            model,
            config,
            tokenizer,
            towers,
            video_features: Arc::default(),
            features: None,
            frames: None,
            media_name: String::new(),
            tokenizer_files: Vec::new(),
            device: device.clone(),
            options,
            media: None,
            history: Vec::new(),
            history_boxes: Vec::new(),
            asked: String::new(),
            asked_boxes: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &VideoChatTpo {
        &self.model
    }

    /// Sizes and tasks of the model.
    pub fn config(&self) -> &TpoConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What is being looked at.
    pub fn media(&self) -> Option<&Media> {
        self.media.as_ref()
    }

    /// What was said since the media was loaded.
    pub fn history(&self) -> &[Turn] {
        &self.history
    }

    /// Forgets the conversation and keeps the media.
    pub fn clear_history(&mut self) {
        self.history.clear();
        self.history_boxes.clear();
    }

    /// Looks at a video: samples and encodes its frames. Forgets the conversation.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is no video, is empty, truncated or beyond the limits.
    pub fn load_video(
        &mut self,
        path: impl AsRef<Path>,
        progress: Option<Progress<'_>>,
    ) -> Result<&Media> {
        let path = path.as_ref();
        let clip = ClipConfig {
            sampling: self.options.sampling,
            num_frames: self.config.input.frames,
            range: None,
            transform: self.transform(),
        };
        let clip = video_clip_tensor(path, &clip, &self.options.limits, &self.device, progress)?;
        let media = Media {
            path: path.into(),
            kind: Visual::Video,
            size: (clip.info.width as u32, clip.info.height as u32),
            duration: Some(clip.info.duration),
            fps: Some(clip.info.fps),
            frames: clip.indices,
            timestamps: clip.timestamps,
            embeddings: self.model.encode_visual(clip.tensor, None)?,
        };
        let (limits, device) = (&self.options.limits, &self.device);
        let frames = match self.options.track {
            TrackFrames::All => StreamedFrames::video(path, limits, device)?,
            TrackFrames::Sampled => StreamedFrames::picked(path, &media.frames, limits, device)?,
        };
        self.look_at(media, frames)
    }

    /// Looks at an image. Forgets the conversation.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is no image or is beyond the limits.
    pub fn load_image(&mut self, path: impl AsRef<Path>) -> Result<&Media> {
        let path = path.as_ref();
        let frame = read_image(path, &self.options.limits)?;
        let size = (frame.width() as u32, frame.height() as u32);
        let pixels = self.transform().apply_tensor(&[frame], &self.device)?;
        let media = Media {
            path: path.into(),
            kind: Visual::Image,
            size,
            duration: None,
            fps: None,
            frames: vec![0],
            timestamps: Vec::new(),
            embeddings: self.model.encode_visual(pixels, None)?,
        };
        let frames = StreamedFrames::image(path, &self.options.limits, &self.device)?;
        self.look_at(media, frames)
    }

    fn look_at(&mut self, media: Media, frames: StreamedFrames) -> Result<&Media> {
        self.clear_history();
        self.video_features = Arc::default();
        self.media_name = media.path.display().to_string();
        self.frames = Some(HeardFrames {
            frames,
            progress: self.options.progress.clone(),
        });
        Ok(self.media.insert(media))
    }

    fn transform(&self) -> ImageTransform {
        let side = self.config.input.size;
        ImageTransform::vision()
            .with_size([side, side])
            .with_antialias(self.config.input.antialias)
    }

    /// Asks. The answer comes as an iterator of [`Event`]s; it enters the history when the
    /// iterator has ended.
    ///
    /// # Errors
    /// [`Error::Question`] when the prompt is longer than the model reads; a bad box; a task that
    /// does not exist.
    pub fn ask(&mut self, question: Question) -> Result<Answer<'_>> {
        for (i, b) in question.boxes.iter().enumerate() {
            b.check(&format!("box {i} of the question"))?;
        }
        let text = self.place_boxes(&question);
        let message = self.timestamps_message(&text);
        let visual = self.media.as_ref().map_or(Visual::None, |m| m.kind);
        let prompt = if self.history.is_empty() {
            QuestionPrompt::new(visual, &message, &text)
        } else {
            QuestionPrompt::with_history(visual, &message, &self.history, &text)
        };
        let n_visual = self.media.as_ref().map_or(0, |m| m.embeddings.dims()[1]);
        let ids = prompt.encode(n_visual, &self.tokenizer)?;
        let limit = MAX_TOKENS.min(self.config.llm.max_position_embeddings);
        if ids.len() > limit {
            return Err(Error::Question {
                why: format!(
                    "the prompt has {} tokens and the model reads {limit}; shorten the question \
                     or clear the history",
                    ids.len()
                ),
            });
        }
        let tokens = TokenBatch::pad(&[ids], PaddingSide::Left, 0);
        let embeddings = self.media.as_ref().map(|m| m.embeddings.clone());
        let boxes = [[&self.history_boxes[..], &question.boxes].concat()];
        let prompt = self
            .model
            .embed(&tokens, embeddings, &boxes, &self.device)?;

        let options = GenerateOptions {
            max_new_tokens: self.options.max_new_tokens,
            stop: self.tokenizer.eos_ids().to_vec(),
            call_order: self.options.call_order,
            force: question.tasks,
        };
        self.asked = text.clone();
        self.asked_boxes.clone_from(&question.boxes);
        let mut sampler = Sampler::new(self.options.decoding.clone())?;
        self.features = match (&self.towers, &self.media) {
            (Some(towers), Some(media)) if media.kind == Visual::Video => Some(LazyFeatures {
                towers: towers.clone(),
                video: media.path.clone(),
                query: question.text.clone(),
                limits: self.options.limits.clone(),
                antialias: self.config.input.antialias,
                cache: self.options.feature_cache.clone(),
                memo: self.video_features.clone(),
                progress: self.options.progress.clone(),
            }),
            _ => None,
        };
        let sample = match &self.media {
            Some(m) => SampleContext {
                size: Some(m.size),
                duration: m.duration,
                timestamps: &m.timestamps,
                query: Some(&self.asked),
                boxes: &self.asked_boxes,
                id: Some(&self.media_name),
                frames: self.frames.as_ref().map(|f| f as &dyn FrameSource),
                features: self.features.as_ref().map(|f| f as &dyn FeatureSource),
            },
            None => SampleContext {
                query: Some(&self.asked),
                boxes: &self.asked_boxes,
                ..SampleContext::default()
            },
        };
        let run = self
            .model
            .generate(prompt, sample, options, move |logits, history| {
                Ok(sampler.sample(logits, history)?)
            })?;
        let silent = self
            .model
            .registry()
            .tokens()
            .map(|t| t.id)
            .chain(self.tokenizer.eos_ids().iter().copied())
            .collect();
        Ok(Answer {
            run: Some(Box::new(run)),
            shown: Some(self.tokenizer.decode_stream(true)),
            raw: Vec::new(),
            silent,
            tokenizer: &self.tokenizer,
            question: text,
            boxes: question.boxes,
            box_mark: self.model.registry().box_prompt.as_ref().map(|t| t.id),
            history: &mut self.history,
            history_boxes: &mut self.history_boxes,
        })
    }

    /// Every box gets a placeholder; missing ones are put at the end.
    fn place_boxes(&self, question: &Question) -> String {
        let mut text = question.text.clone();
        if let Some(mark) = &self.model.registry().box_prompt {
            let there = text.matches(&mark.token).count();
            for _ in there..question.boxes.len() {
                text.push(' ');
                text.push_str(&mark.token);
            }
        }
        text
    }

    /// The reference tells the frame times only to questions that say "timestamp".
    fn timestamps_message(&self, question: &str) -> String {
        match &self.media {
            Some(Media {
                fps: Some(fps),
                frames,
                ..
            }) if question.contains("timestamp") => {
                timestamps_message(&frame_timestamps(frames, *fps))
            }
            _ => String::new(),
        }
    }
}

type Run<'a> = Box<dyn Iterator<Item = tpo_core::Result<GenerateEvent>> + 'a>;

/// A running answer.
pub struct Answer<'a> {
    run: Option<Run<'a>>,
    shown: Option<DecodeStream<'a>>,
    raw: Vec<u32>,
    silent: Vec<u32>,
    tokenizer: &'a Tokenizer,
    question: String,
    boxes: Vec<BoxXyxy>,
    box_mark: Option<u32>,
    history: &'a mut Vec<Turn>,
    history_boxes: &'a mut Vec<BoxXyxy>,
}

impl Answer<'_> {
    /// Runs to the end and collects everything.
    ///
    /// # Errors
    /// The first error of the run.
    pub fn collect_reply(self) -> Result<Reply> {
        let mut reply = Reply::default();
        for event in self {
            match event? {
                Event::Text(text) => reply.text.push_str(&text),
                Event::Task(output) => reply.tasks.push(output),
                Event::NoHead(task) => reply.without_head.push(task),
            }
        }
        Ok(reply)
    }

    fn finish(&mut self) -> Option<Result<Event>> {
        self.run = None;
        // A mark the model wrote itself has no box; in the history it would ask for one.
        let mark = self.box_mark;
        self.raw.retain(|id| Some(*id) != mark);
        let answer = match self.tokenizer.decode(&self.raw, true) {
            Ok(text) => text,
            Err(e) => return Some(Err(e.into())),
        };
        self.history_boxes.append(&mut self.boxes);
        self.history.push(Turn {
            question: std::mem::take(&mut self.question),
            answer,
        });
        match self.shown.take()?.finish() {
            Ok(rest) if rest.is_empty() => None,
            Ok(rest) => Some(Ok(Event::Text(rest))),
            Err(e) => Some(Err(e.into())),
        }
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let event = match self.run.as_mut()?.next() {
                None => return self.finish(),
                Some(Ok(event)) => event,
                Some(Err(e)) => {
                    self.run = None;
                    return Some(Err(e.into()));
                }
            };
            match event {
                GenerateEvent::Token(id) => {
                    self.raw.push(id);
                    if self.silent.contains(&id) {
                        continue;
                    }
                    let Some(shown) = self.shown.as_mut() else {
                        continue;
                    };
                    match shown.push(id) {
                        Ok(text) if text.is_empty() => {}
                        Ok(text) => return Some(Ok(Event::Text(text))),
                        Err(e) => {
                            self.run = None;
                            return Some(Err(e.into()));
                        }
                    }
                }
                GenerateEvent::Task { output, .. } => return Some(Ok(Event::Task(output))),
                GenerateEvent::NoHead { task, .. } => return Some(Ok(Event::NoHead(task))),
            }
        }
    }
}
