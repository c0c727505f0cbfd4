//! Who knows every answer.

use std::sync::Arc;

use serde_json::Value;
use tpo::core::geometry::Rle;
use tpo::data::prompts::box_text;
use tpo::data::schema::{FramePosition, TrackRegion};
use tpo::evaluation::*;
use tpo::heads::mask::TrackedFrame;
use tpo::prelude::*;

/// Facts of the world's clips and of files, without a model.
pub fn info_of(media: &MediaRef) -> MediaInfo {
    match media {
        MediaRef::Clip(clip) => MediaInfo {
            size: [clip.scene.side as u32; 2],
            duration: clip.scene.duration(),
            fps: clip.scene.fps,
            frames: clip.scene.frames,
        },
        MediaRef::File { media, root } => {
            let reader = tpo::data::schema::open_media(media, root, &Default::default()).unwrap();
            let info = reader.info();
            MediaInfo {
                size: [info.width as u32, info.height as u32],
                duration: info.duration,
                fps: info.fps,
                frames: info.frame_count,
            }
        }
        MediaRef::None => MediaInfo::default(),
    }
}

/// Knows everything. With `AnswerForm::Text` it says it in words.
pub struct Oracle(pub AnswerForm);

impl Answerer for Oracle {
    fn identity(&mut self) -> tpo::Result<AnswererIdentity> {
        Ok(AnswererIdentity {
            name: "oracle".into(),
            weights: String::new(),
            settings: Value::Null,
        })
    }

    fn answer(&mut self, items: &[&Item]) -> Vec<Answered> {
        let answer = |item: &&Item| {
            let media = info_of(&item.media);
            Answered {
                media: Some(media),
                reply: Ok(self.reply(item, &media)),
            }
        };
        items.iter().map(answer).collect()
    }
}

impl Oracle {
    fn reply(&self, item: &Item, media: &MediaInfo) -> Reply {
        let [w, h] = media.size;
        let mut reply = Reply::default();
        let task = item.ask.task.clone().unwrap_or_default();
        let mut head = |value: Arc<dyn tpo::core::head::Prediction>| {
            reply
                .tasks
                .push(TaskOutput::new(task.clone(), 0, value, Drawing::default()));
        };
        match &item.expected {
            Expected::MultipleChoice { options, correct } => {
                let i = correct.unwrap();
                let letter = ('A'..='Z').nth(i).unwrap();
                // What follows the bracket of the prefix, and an explanation.
                let open = if item.ask.answer_prefix.is_empty() {
                    "("
                } else {
                    ""
                };
                reply.text = format!("{open}{letter}) {}\nBecause.", options[i]);
            }
            // Its own head would have to say it.
            Expected::Own(_) => {}
            Expected::Text(text) => {
                reply.text = format!("{}.", text.clone().unwrap().to_uppercase())
            }
            Expected::Region(area) => {
                let b = area.unwrap().normalised(w, h);
                reply.text = format!("It is at {}.", box_text(&b));
                reply.tasks.push(TaskOutput::new(
                    task,
                    0,
                    Arc::new(RegionPrediction {
                        raw: b,
                        normalised: b,
                        pixels: None,
                    }),
                    Drawing::default(),
                ));
            }
            Expected::Temporal { spans, saliency } => {
                let spans = spans.clone().unwrap();
                let words: Vec<String> = spans
                    .iter()
                    .map(|s| format!("{:.1} - {:.1} seconds", s[0], s[1]))
                    .collect();
                let spans = spans
                    .iter()
                    .map(|s| ScoredSpan {
                        span: TimeSpan::new(s[0], s[1]).unwrap(),
                        score: 0.9,
                    })
                    .collect();
                let rated = saliency.clone();
                let mut curve = Vec::new();
                if let Some(s) = &rated {
                    curve = vec![0.0; (media.duration / s.clip_seconds).ceil() as usize];
                    for (c, r) in s.clips.iter().zip(&s.scores) {
                        curve[*c as usize] = r.iter().sum();
                    }
                }
                head(Arc::new(TemporalPrediction {
                    spans,
                    saliency: curve,
                    clip_seconds: rated.map_or(2.0, |s| s.clip_seconds),
                    duration: media.duration,
                }));
                reply.text = words.join(", ");
            }
            Expected::Mask(track) | Expected::Track(track) => {
                let empty = || Rle::from_runs([h as usize, w as usize], &[u64::from(w * h)]);
                let mut frames: Vec<TrackedFrame> = (0..media.frames)
                    .map(|frame| TrackedFrame {
                        frame,
                        mask: empty().unwrap(),
                        area: None,
                        score: -1.0,
                    })
                    .collect();
                for f in track.as_ref().unwrap() {
                    let FramePosition::Frame(n) = f.at else {
                        panic!()
                    };
                    let slot = &mut frames[n as usize];
                    match &f.region {
                        TrackRegion::Mask(rle) => {
                            slot.mask = rle.clone();
                            slot.area = Some(BoxXyxy::from([0.0, 0.0, 1.0, 1.0]));
                        }
                        TrackRegion::Box(b) => slot.area = Some(b.normalised(w, h)),
                        TrackRegion::Absent => {}
                    }
                }
                head(Arc::new(MaskPrediction {
                    size: [h as usize, w as usize],
                    frames,
                    prompt: None,
                    auxiliary: BoxXyxy::from([0.0; 4]),
                }));
            }
        }
        reply
    }
}
