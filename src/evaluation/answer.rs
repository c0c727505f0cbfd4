//! From what a model says to a prediction.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::Rle;
use tpo_core::head::TaskOutput;
use tpo_data::prompts::{read_box, read_spans, read_track};
use tpo_heads::mask::{MaskPrediction, TrackedFrame};
use tpo_heads::region::RegionPrediction;
use tpo_heads::temporal::TemporalPrediction;

use super::item::{Item, ItemKind};
use super::prompts::Prompts;
use crate::session::Reply;

/// Where the coordinates of an answer are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// In the predictions of the heads.
    #[default]
    Heads,
    /// In the text (paper, Table 11 "textualised").
    Text,
}

/// What the media of an answer was, as far as scoring needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MediaInfo {
    /// Width and height in pixels.
    pub size: [u32; 2],
    /// Seconds of the clip; 0 for an image.
    pub duration: f64,
    /// Frames per second; 0 for an image.
    pub fps: f64,
    /// Frames of the clip.
    pub frames: usize,
}

/// A prediction in the terms of the clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predicted {
    /// What is compared with the right option or text.
    Words(String),
    /// Normalised corners.
    Box([f32; 4]),
    /// Spans and highlight curve.
    Moments {
        /// `[start, end, score]` in seconds, the likeliest first.
        windows: Vec<[f64; 3]>,
        /// A value per piece of `clip_seconds`; empty for an answer in words.
        saliency: Vec<f32>,
        /// Length of a piece in seconds.
        clip_seconds: f64,
    },
    /// A mask per frame of the clip, `null` where there is none, and its normalised box.
    Track {
        /// Masks; empty for an answer in words.
        masks: Vec<Option<Rle>>,
        /// Boxes.
        boxes: Vec<Option<[f32; 4]>>,
    },
    /// What a head answered that scores itself.
    Own {
        /// Its prediction; `null` when it was not called.
        answer: Option<serde_json::Value>,
        /// What that is worth, by the head itself.
        scores: Vec<(String, f64)>,
    },
}

/// What is read out of a reply; `None` when the head did not answer or the text says nothing that
/// can be read.
pub fn read_answer(
    item: &Item,
    reply: &Reply,
    form: AnswerForm,
    prompts: &Prompts,
    media: &MediaInfo,
) -> Option<Predicted> {
    match (item.kind(), form) {
        (ItemKind::MultipleChoice, _) => Some(Predicted::Words(prompts.choice_answer(&reply.text))),
        (ItemKind::Text, _) => Some(Predicted::Words(reply.text.trim().to_string())),
        // Its head says what it is worth (Answerer::score).
        (ItemKind::Own, _) => None,
        (kind, AnswerForm::Text) => in_words(kind, &reply.text, media),
        (kind, AnswerForm::Heads) => {
            let task = item.ask.task.as_deref();
            let mut outputs = reply.tasks.iter().filter(|o| Some(o.task.as_str()) == task);
            outputs.find_map(|output| from_head(kind, output))
        }
    }
}

fn from_head(kind: ItemKind, output: &TaskOutput) -> Option<Predicted> {
    match kind {
        ItemKind::Region => {
            let b: &RegionPrediction = output.get()?;
            Some(Predicted::Box(b.normalised.to_array()))
        }
        ItemKind::Temporal => {
            let t: &TemporalPrediction = output.get()?;
            let windows = t.spans.iter();
            Some(Predicted::Moments {
                windows: windows
                    .map(|s| [s.span.start, s.span.end, s.score])
                    .collect(),
                saliency: t.saliency.clone(),
                clip_seconds: t.clip_seconds,
            })
        }
        _ => {
            let m: &MaskPrediction = output.get()?;
            let mask = |f: &TrackedFrame| f.area.is_some().then(|| f.mask.clone());
            Some(Predicted::Track {
                masks: m.frames.iter().map(mask).collect(),
                boxes: m
                    .frames
                    .iter()
                    .map(|f| f.area.map(|b| b.to_array()))
                    .collect(),
            })
        }
    }
}

fn in_words(kind: ItemKind, text: &str, media: &MediaInfo) -> Option<Predicted> {
    match kind {
        ItemKind::Region => Some(Predicted::Box(read_box(text)?.to_array())),
        ItemKind::Temporal => {
            // All spans of a text are equally likely; scores only keep their order.
            let windows: Vec<[f64; 3]> = read_spans(text)
                .iter()
                .enumerate()
                .map(|(i, s)| [s.start, s.end, 1.0 / (i + 1) as f64])
                .collect();
            (!windows.is_empty()).then_some(Predicted::Moments {
                windows,
                saliency: Vec::new(),
                clip_seconds: 0.0,
            })
        }
        _ => {
            let said = read_track(text);
            if said.is_empty() {
                return None;
            }
            let fps = if media.fps > 0.0 { media.fps } else { 1.0 };
            let nearest = |frame: usize| {
                let time = frame as f64 / fps;
                said.iter()
                    .min_by(|a, b| (a.0 - time).abs().total_cmp(&(b.0 - time).abs()))
                    .map(|(_, b)| b.to_array())
            };
            Some(Predicted::Track {
                masks: Vec::new(),
                boxes: (0..media.frames).map(nearest).collect(),
            })
        }
    }
}

/// Text as exact match compares it: lower case, single spaces, no article in front, no
/// punctuation at the ends.
pub fn normalise_text(text: &str) -> String {
    let edge = |c: char| c.is_whitespace() || ".,;:!?\"'`()[]".contains(c);
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.trim_matches(edge).split_whitespace().collect();
    let skip = match words.as_slice() {
        ["a" | "an" | "the", _, ..] => 1,
        _ => 0,
    };
    words[skip..].join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::item::{Ask, Expected, MediaRef};
    use super::*;
    use tpo_core::geometry::BoxXyxy;

    #[test]
    fn texts_by_hand() {
        for (said, is) in [
            ("Red.", "red"),
            (" The  top left! ", "top left"),
            ("a", "a"),
            ("An apple", "apple"),
            ("\"yes\"", "yes"),
            ("", ""),
            ("2", "2"),
        ] {
            assert_eq!(normalise_text(said), is, "{said}");
        }
    }

    fn item(expected: Expected) -> Item {
        Item {
            id: "1".into(),
            sample: "1".into(),
            query_id: None,
            media: MediaRef::None,
            ask: Ask {
                task: Some("region".into()),
                ..Ask::default()
            },
            expected,
            group: String::new(),
        }
    }

    #[test]
    fn only_the_asked_head_answers() {
        let b = BoxXyxy::from([0.1, 0.2, 0.3, 0.4]);
        let value = RegionPrediction {
            raw: b,
            normalised: b,
            pixels: None,
        };
        let mut reply = Reply {
            text: "It is at [0.5, 0.5, 1.0, 1.0].".into(),
            tasks: vec![TaskOutput::new(
                "other",
                0,
                Arc::new(value),
                Default::default(),
            )],
            ..Reply::default()
        };
        let (item, prompts) = (item(Expected::Region(None)), Prompts::plain());
        let read =
            |reply: &Reply, form| read_answer(&item, reply, form, &prompts, &MediaInfo::default());
        assert_eq!(read(&reply, AnswerForm::Heads), None);
        reply.tasks[0].task = "region".into();
        assert_eq!(
            read(&reply, AnswerForm::Heads),
            Some(Predicted::Box([0.1, 0.2, 0.3, 0.4]))
        );
        assert_eq!(
            read(&reply, AnswerForm::Text),
            Some(Predicted::Box([0.5, 0.5, 1.0, 1.0]))
        );
        reply.text = "somewhere".into();
        assert_eq!(read(&reply, AnswerForm::Text), None);
    }

    #[test]
    fn tracks_in_words_take_the_nearest_time() {
        let media = MediaInfo {
            size: [10, 10],
            duration: 2.0,
            fps: 2.0,
            frames: 4,
        };
        let text = "0.0 s [0.0, 0.0, 0.5, 0.5]; 1.5 s [0.5, 0.5, 1.0, 1.0]";
        let Some(Predicted::Track { boxes, .. }) = in_words(ItemKind::Track, text, &media) else {
            panic!("no track");
        };
        let (a, b) = (Some([0.0, 0.0, 0.5, 0.5]), Some([0.5, 0.5, 1.0, 1.0]));
        assert_eq!(boxes, [a, a, b, b]);
    }
}
