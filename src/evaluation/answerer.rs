//! Who answers: a session, or anything else that can.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tpo_core::head::HeadSet;
use tpo_core::truth::Truth;
use tpo_data::feed::{View, place_truth};
use tpo_data::prompts::box_text;
use tpo_data::schema::{
    Annotation, FramePosition, MediaKind, Target, TrackFrame, open_media, resolve,
};
use tpo_data::{MediaLimits, VideoInfo, VideoPart, VideoReader};
use tpo_heads::temporal::features::weights_fingerprint;

use super::answer::{AnswerForm, MediaInfo, Predicted};
use super::item::{Ask, Expected, Item, ItemKind, MediaRef};
use super::protocol::{AnswererIdentity, Route};
use crate::error::{Error, Result};
use crate::model::BuiltInHeads;
use crate::session::{Media, Question, Reply, Session, TrackFrames};

/// Answers questions about media.
pub trait Answerer {
    /// What decides its answers. Asked once per run.
    ///
    /// # Errors
    /// Whatever keeps it from knowing.
    fn identity(&mut self) -> Result<AnswererIdentity>;

    /// Answers questions, each by itself: as many as a run asks at once
    /// ([`RunOptions::batch`](super::RunOptions)), in their order. Of an item a model sees its `media`
    /// and `ask` only; the rest is for oracles.
    fn answer(&mut self, items: &[&Item]) -> Vec<Answered>;

    /// Another one that gives the same answers, for other questions at the same time
    /// ([`RunOptions::answerers`](super::RunOptions)). By default there is none.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn another(&self) -> Result<Option<Box<dyn Answerer + Send>>> {
        Ok(None)
    }

    /// Whether the head of a question says itself what an answer is worth ([`Answerer::score`]),
    /// and not the rules of a benchmark. By default where nobody else can.
    fn scores_itself(&self, item: &Item) -> bool {
        item.kind() == ItemKind::Own
    }

    /// What an answer to one of the last questions is worth to their head. `None` where nobody knows.
    ///
    /// # Errors
    /// Ground truth of which the head can make no target.
    fn score(&mut self, _item: &Item, _reply: &Reply) -> Result<Option<Predicted>> {
        Ok(None)
    }
}

/// What became of a question.
#[derive(Debug)]
pub struct Answered {
    /// What was looked at; `None` if it could not be read.
    pub media: Option<MediaInfo>,
    /// The answer, or why there is none.
    pub reply: std::result::Result<Reply, String>,
}

/// Media that was looked at, under its [`MediaRef::key`].
#[derive(Debug)]
struct Looked {
    key: String,
    info: std::result::Result<MediaInfo, String>,
    media: Option<Media>,
}

/// A session as answerer.
#[derive(Debug)]
pub struct SessionAnswerer<H = BuiltInHeads> {
    /// It shares the weights with the one it was made of, and looks at the media of questions.
    session: Session<H>,
    name: String,
    route: Route,
    form: AnswerForm,
    limits: MediaLimits,
    /// Of the questions at hand; the session looks at the last.
    looked: Vec<Looked>,
}

impl<H: HeadSet> SessionAnswerer<H> {
    /// Answers with the model of `session` and as its options say. `name` says in the protocol which model
    /// it is.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(
        session: &Session<H>,
        name: impl Into<String>,
        route: Route,
        form: AnswerForm,
    ) -> Result<Self> {
        Ok(Self {
            session: session.with_model(session.model().clone())?,
            name: name.into(),
            route,
            form,
            limits: session.options().limits.clone(),
            looked: Vec::new(),
        })
    }

    /// Looks at media, unless the session does already.
    fn look_at(&mut self, media: &MediaRef) -> std::result::Result<MediaInfo, String> {
        let key = media.key();
        if let Some(last) = self.looked.last().filter(|last| last.key == key) {
            return last.info.clone();
        }
        let info = self.look(media).map_err(|e| e.to_string());
        self.looked.push(Looked {
            key,
            info: info.clone(),
            media: self.session.media().filter(|_| info.is_ok()).cloned(),
        });
        info
    }

    fn look(&mut self, media: &MediaRef) -> Result<MediaInfo> {
        let found = match media {
            MediaRef::None => {
                self.session.clear_media();
                return Ok(MediaInfo::default());
            }
            MediaRef::Clip(clip) => {
                let frames = clip
                    .scene
                    .render_all()
                    .iter()
                    .map(|f| f.to_frame())
                    .collect::<std::result::Result<_, _>>()?;
                self.session
                    .load_frames(clip.name(), frames, clip.scene.fps)?
            }
            MediaRef::File { media, root } => match (media.kind, media.range) {
                (MediaKind::Image, _) => {
                    let paths = std::iter::once(&media.path).chain(&media.more);
                    let paths: Vec<PathBuf> = paths.map(|path| resolve(root, path)).collect();
                    self.session.load_images(&paths)?
                }
                (MediaKind::Video, None) => {
                    self.session.load_video(resolve(root, &media.path), None)?
                }
                (_, range) => {
                    let whole: Arc<dyn VideoReader> = open_media(media, root, &self.limits)?.into();
                    let reader = match range {
                        Some(range) => Arc::new(VideoPart::new(whole, range)?),
                        None => whole,
                    };
                    self.session.load_reader(reader, None)?
                }
            },
        };
        Ok(MediaInfo {
            size: [found.size.0, found.size.1],
            duration: found.duration.unwrap_or(0.0),
            fps: found.fps.unwrap_or(0.0),
            frames: found.frame_count,
        })
    }

    fn question(&self, ask: &Ask, media: &MediaInfo) -> Result<Question> {
        let [width, height] = media.size;
        let mut question = Question {
            query: ask.query.clone(),
            system: ask.system.clone(),
            answer_prefix: ask.answer_prefix.clone(),
            answer_joined: ask.answer_joined,
            ..Question::default()
        };
        if !ask.boxes.is_empty() && (width == 0 || height == 0) {
            return Err(Error::Question {
                why: "it shows a box and has no picture".into(),
            });
        }
        let token = match self.form {
            AnswerForm::Heads => self.session.model().registry().box_prompt.as_ref(),
            AnswerForm::Text => None,
        };
        let mut words = Vec::new();
        for b in &ask.boxes {
            let b = b.normalised(width, height).check("a box of the question")?;
            match token {
                Some(token) => {
                    words.push(token.token.clone());
                    question.boxes.push(b);
                }
                None => words.push(box_text(&b)),
            }
        }
        let mut words = words.iter();
        let mut parts = ask.text.split("{box}");
        question.text = parts.next().unwrap_or_default().to_string();
        for part in parts {
            // More marks than boxes are text.
            question
                .text
                .push_str(words.next().map_or("{box}", String::as_str));
            question.text.push_str(part);
        }
        if let (Route::Always, AnswerForm::Heads, Some(task)) = (self.route, self.form, &ask.task) {
            question.tasks.push(task.clone());
        }
        Ok(question)
    }

    /// Masks and tracks are scored on every frame.
    fn sees_what_is_scored(&self, item: &Item) -> Result<()> {
        let every_frame = matches!(item.kind(), ItemKind::Mask | ItemKind::Track);
        if every_frame && self.session.options().track != TrackFrames::All {
            return Err(Error::Config {
                problems: "masks are scored on every frame; set SessionOptions::track to All"
                    .into(),
            });
        }
        Ok(())
    }

    /// The annotation of a question in the terms of the clip that is looked at, as in training.
    fn truth(&self, item: &Item, task: &str) -> Result<Truth> {
        let key = item.media.key();
        let looked = self.looked.iter().rfind(|looked| looked.key == key);
        let media = looked.and_then(|looked| looked.media.as_ref());
        let fps = media.and_then(|m| m.fps).unwrap_or(1.0);
        let (width, height) = media.map_or((0, 0), |m| m.size);
        let frames = media.map_or(1, |m| m.frame_count);
        let info = VideoInfo::steady([width as usize, height as usize], frames, fps, "clip")?;
        let times = media.map_or(Vec::new(), |m| m.timestamps.clone());
        let times = if times.is_empty() { vec![0.0] } else { times };
        let target = match &item.expected {
            Expected::Own(value) => Target::Value(value.clone()),
            Expected::Region(Some(area)) => Target::Box(*area),
            Expected::Temporal {
                spans: Some(spans),
                saliency,
            } => Target::Spans {
                spans: spans.clone(),
                saliency: saliency.clone(),
            },
            Expected::Mask(Some(track)) | Expected::Track(Some(track)) => {
                let in_clip = track.iter().filter_map(|f| {
                    let frame = item.frame_in_clip(f.at, fps)? as u64;
                    Some(TrackFrame {
                        at: FramePosition::Frame(frame),
                        region: f.region.clone(),
                    })
                });
                Target::Track(in_clip.collect())
            }
            _ => {
                return Err(Error::Question {
                    why: format!("its ground truth is none of the task `{task}`"),
                });
            }
        };
        let annotation = Annotation {
            task: task.into(),
            query: item.ask.query.clone(),
            prompt_box: item.ask.boxes.first().copied(),
            target,
        };
        Ok(place_truth(
            &annotation,
            &info,
            &View::default(),
            &times,
            0,
        )?)
    }
}

impl<H: HeadSet> Answerer for SessionAnswerer<H> {
    fn identity(&mut self) -> Result<AnswererIdentity> {
        let options = self.session.options();
        let config = serde_json::to_string(self.session.config()).unwrap_or_default();
        let towers = options.towers.as_ref().map(|t| -> Result<_> {
            let (video, text) = (t.video.as_ref(), t.text.as_ref());
            let video = video.map(|tower| tower.identity()).transpose()?;
            let text = text.map(|tower| tower.identity()).transpose()?;
            Ok(json!({"video": video, "text": text}))
        });
        let folder = options.features.as_ref();
        let folder = folder.map(|f| Ok::<_, Error>(f.fingerprint()?.to_hex().to_string()));
        let mut settings = json!({
            "input": self.session.config().input,
            "config": blake3::hash(config.as_bytes()).to_hex().to_string(),
            "sampling": self.session.sampling(),
            "call_order": self.session.call_order(),
            "max_new_tokens": options.max_new_tokens,
            "decoding": options.decoding,
            "dtype": options.dtype.map(|d| format!("{d:?}")),
            "device": format!("{:?}", self.session.device()),
            "towers": towers.transpose()?,
            "features": folder.transpose()?,
        });
        // Runs of before, when there was no choice, can be continued.
        if options.track == TrackFrames::Sampled {
            settings["track"] = "sampled".into();
        }
        Ok(AnswererIdentity {
            name: self.name.clone(),
            weights: weights_fingerprint(self.session.model()),
            settings,
        })
    }

    fn answer(&mut self, items: &[&Item]) -> Vec<Answered> {
        self.session.clear_history();
        // A file that could not be read may be there by now.
        let current = self.looked.pop().filter(|looked| looked.info.is_ok());
        self.looked = current.into_iter().collect();
        let (mut prepared, mut answered) = (Vec::new(), Vec::new());
        for item in items {
            let media = self.look_at(&item.media);
            let question = media.clone().and_then(|media| {
                let question = self
                    .sees_what_is_scored(item)
                    .and_then(|()| self.question(&item.ask, &media))
                    .and_then(|question| {
                        let id = item.query_id.clone();
                        self.session.prepare(&Question { id, ..question })
                    });
                question.map_err(|e| e.to_string())
            });
            answered.push((media.ok(), question.map(|question| prepared.push(question))));
        }
        let (mut replies, all) = match self.session.answer_together(prepared) {
            Ok(replies) => (replies.into_iter(), String::new()),
            Err(e) => (Vec::new().into_iter(), e.to_string()),
        };
        let mut next = || match replies.next() {
            Some(reply) => reply.map_err(|e| e.to_string()),
            None => Err(all.clone()),
        };
        let answered = answered.into_iter().map(|(media, prepared)| Answered {
            media,
            reply: prepared.and_then(|()| next()),
        });
        answered.collect()
    }

    fn another(&self) -> Result<Option<Box<dyn Answerer + Send>>> {
        let another = Self::new(&self.session, self.name.clone(), self.route, self.form)?;
        Ok(Some(Box::new(another)))
    }

    fn scores_itself(&self, item: &Item) -> bool {
        let task = item.ask.task.as_deref();
        let head = task.and_then(|task| self.session.model().heads.head(task));
        match (item.kind(), self.form) {
            (ItemKind::Own, _) => true,
            (_, AnswerForm::Text) => false,
            _ => item.expected.is_known() && head.is_some_and(|h| !h.scored_by_benchmarks()),
        }
    }

    fn score(&mut self, item: &Item, reply: &Reply) -> Result<Option<Predicted>> {
        let Some(task) = &item.ask.task else {
            return Ok(None);
        };
        let Some(head) = self.session.model().heads.head(task) else {
            return Err(Error::Question {
                why: format!("this program has no head for the task `{task}`"),
            });
        };
        let answer = reply.tasks.iter().find(|o| o.task == *task);
        let scores = head.score_answer(answer, &self.truth(item, task)?)?;
        Ok(Some(Predicted::Own {
            answer: answer.map(|a| a.to_json()),
            scores: scores
                .into_iter()
                .map(|(n, v)| (n.to_string(), v))
                .collect(),
        }))
    }
}
