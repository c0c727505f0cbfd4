//! Who answers: a session, or anything else that can.

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
use crate::session::{Question, Reply, Session, TrackFrames};

/// Answers questions about media.
pub trait Answerer {
    /// What decides its answers. Asked once per run.
    ///
    /// # Errors
    /// Whatever keeps it from knowing.
    fn identity(&mut self) -> Result<AnswererIdentity>;

    /// Looks at media; the questions that follow are about it.
    ///
    /// # Errors
    /// Media that cannot be read.
    fn look(&mut self, media: &MediaRef) -> Result<MediaInfo>;

    /// Answers one question by itself. `item` is for oracles; a model sees its `ask` only.
    ///
    /// # Errors
    /// A question that cannot be asked.
    fn answer(&mut self, item: &Item, media: &MediaInfo) -> Result<Reply>;

    /// Whether the head of a question says itself what an answer is worth ([`Answerer::score`]),
    /// and not the rules of a benchmark. By default where nobody else can.
    fn scores_itself(&self, item: &Item) -> bool {
        item.kind() == ItemKind::Own
    }

    /// What an answer is worth to the head of its question. `None` where nobody knows.
    ///
    /// # Errors
    /// Ground truth of which the head can make no target.
    fn score(&mut self, _item: &Item, _reply: &Reply) -> Result<Option<Predicted>> {
        Ok(None)
    }
}

/// A session as answerer.
#[derive(Debug)]
pub struct SessionAnswerer<'a, H = BuiltInHeads> {
    session: &'a mut Session<H>,
    name: String,
    route: Route,
    form: AnswerForm,
    limits: MediaLimits,
}

impl<'a, H: HeadSet> SessionAnswerer<'a, H> {
    /// `name` says in the protocol which model it is.
    pub fn new(
        session: &'a mut Session<H>,
        name: impl Into<String>,
        route: Route,
        form: AnswerForm,
    ) -> Self {
        let limits = session.options().limits.clone();
        Self {
            session,
            name: name.into(),
            route,
            form,
            limits,
        }
    }

    fn question(&self, ask: &Ask, media: &MediaInfo) -> Result<Question> {
        let [width, height] = media.size;
        let mut question = Question {
            query: ask.query.clone(),
            system: ask.system.clone(),
            answer_prefix: ask.answer_prefix.clone(),
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

    /// The annotation of a question in the terms of the clip that is looked at, as in training.
    fn truth(&self, item: &Item, task: &str) -> Result<Truth> {
        let media = self.session.media();
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

impl<H: HeadSet> Answerer for SessionAnswerer<'_, H> {
    fn identity(&mut self) -> Result<AnswererIdentity> {
        let options = self.session.options();
        if options.track != TrackFrames::All {
            return Err(Error::Config {
                problems: "masks are scored on every frame; set SessionOptions::track to All"
                    .into(),
            });
        }
        let config = serde_json::to_string(self.session.config()).unwrap_or_default();
        let towers = options.towers.as_ref().map(|t| -> Result<_> {
            Ok(json!({"video": t.video.identity()?, "text": t.text.identity()?}))
        });
        let folder = options.features.as_ref();
        let folder = folder.map(|f| Ok::<_, Error>(f.fingerprint()?.to_hex().to_string()));
        let settings = json!({
            "input": self.session.config().input,
            "config": blake3::hash(config.as_bytes()).to_hex().to_string(),
            "sampling": options.sampling,
            "call_order": self.session.call_order(),
            "max_new_tokens": options.max_new_tokens,
            "decoding": options.decoding,
            "dtype": options.dtype.map(|d| format!("{d:?}")),
            "device": format!("{:?}", self.session.device()),
            "towers": towers.transpose()?,
            "features": folder.transpose()?,
        });
        Ok(AnswererIdentity {
            name: self.name.clone(),
            weights: weights_fingerprint(self.session.model()),
            settings,
        })
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
                (MediaKind::Image, _) => self.session.load_image(resolve(root, &media.path))?,
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

    fn answer(&mut self, item: &Item, media: &MediaInfo) -> Result<Reply> {
        let question = Question {
            id: Some(item.id.clone()),
            ..self.question(&item.ask, media)?
        };
        self.session.clear_history();
        let reply = self.session.ask(question)?.collect_reply();
        self.session.clear_history();
        reply
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
