//! Ground truth of the heads from a clip: boxes, spans with saliency, masks.

use tpo_core::geometry::{BoxXyxy, Rle};

use super::Clip;
use super::draw::Draw;
use super::event::{Event, EventKind};
use super::render::RenderedFrame;
use crate::schema::{FramePosition, TrackFrame, TrackRegion};

/// "Where is it?" with the box.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionQuery {
    /// Words.
    pub question: String,
    /// The shape.
    pub object: usize,
    /// The frame the question is about.
    pub frame: usize,
    /// Its tight box there, normalised.
    pub area: BoxXyxy,
}

/// "When does it happen?" with the spans and the saliency.
#[derive(Debug, Clone, PartialEq)]
pub struct TemporalQuery {
    /// Words.
    pub question: String,
    /// Index of the event in [`Scene::events`](super::Scene::events).
    pub event: usize,
    /// `(start, end)` in seconds.
    pub spans: Vec<(f64, f64)>,
    /// Per frame, 0 (nothing) to 4 (in the middle of it), as QVHighlights rates clips.
    pub saliency: Vec<f32>,
}

/// "Follow it" with its mask in every frame.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskQuery {
    /// Words.
    pub question: String,
    /// The shape.
    pub object: usize,
    /// Visible pixels per frame; empty masks where it is hidden.
    pub masks: Vec<Rle>,
    /// Tight box per frame, normalised; `None` where it is hidden.
    pub boxes: Vec<Option<BoxXyxy>>,
}

impl MaskQuery {
    /// The masks as a dataset has them.
    pub fn track(self) -> Vec<TrackFrame> {
        let frames = self.masks.into_iter().zip(self.boxes).enumerate();
        frames
            .map(|(frame, (mask, area))| TrackFrame {
                at: FramePosition::Frame(frame as u64),
                region: match area {
                    Some(_) => TrackRegion::Mask(mask),
                    None => TrackRegion::Absent,
                },
            })
            .collect()
    }
}

impl Clip {
    /// One query per shape visible in the first frame that a model sees, and per shape visible in the
    /// last.
    pub fn region_queries(&self, frames: &[RenderedFrame]) -> Vec<RegionQuery> {
        let mut draw = Draw::of(&[self.wording, 1]);
        let mut queries = Vec::new();
        let ends = [
            (self.first_seen(), "at the start"),
            (self.last_seen(), "at the end"),
        ];
        for (frame, when) in ends {
            for object in 0..self.scene.objects.len() {
                if !frames[frame].shows(object) {
                    continue;
                }
                let Some(area) = self.normalised(&frames[frame], object) else {
                    continue;
                };
                let it = self.called(object, &mut draw);
                let question = draw.pick(&[
                    "Where is the {it} {when}?",
                    "Show me the {it} {when}.",
                    "Find the {it} {when}.",
                ]);
                queries.push(RegionQuery {
                    question: question.replace("{it}", &it).replace("{when}", when),
                    object,
                    frame,
                    area,
                });
            }
        }
        queries
    }

    /// One query per event.
    pub fn temporal_queries(&self) -> Vec<TemporalQuery> {
        let mut draw = Draw::of(&[self.wording, 2]);
        let scene = &self.scene;
        scene
            .events
            .iter()
            .enumerate()
            .map(|(i, event)| {
                let what = self.infinitive(event, &mut draw);
                let question = draw.pick(&[
                    "When does {what}?",
                    "At what time does {what}?",
                    "Find the moment: when does {what}?",
                ]);
                let middle = (event.start + event.end - 1) as f32 / 2.0;
                let half = (event.end - event.start) as f32 / 2.0;
                let saliency = (0..scene.frames)
                    .map(|f| {
                        if event.covers(f) {
                            4.0 - 2.0 * (f as f32 - middle).abs() / half
                        } else {
                            0.0
                        }
                    })
                    .collect();
                TemporalQuery {
                    question: question.replace("{what}", &what),
                    event: i,
                    spans: vec![scene.span(event)],
                    saliency,
                }
            })
            .collect()
    }

    /// One query per shape visible in the first frame that a model sees.
    pub fn mask_queries(&self, frames: &[RenderedFrame]) -> Vec<MaskQuery> {
        let mut draw = Draw::of(&[self.wording, 3]);
        let mut queries = Vec::new();
        for object in 0..self.scene.objects.len() {
            if !frames[self.first_seen()].shows(object) {
                continue;
            }
            let it = self.called(object, &mut draw);
            let question = draw.pick(&["Track the {it}.", "Follow the {it}.", "Segment the {it}."]);
            queries.push(MaskQuery {
                question: question.replace("{it}", &it),
                object,
                masks: frames
                    .iter()
                    .map(|f| Rle::encode(&f.mask(object)))
                    .collect(),
                boxes: frames.iter().map(|f| self.normalised(f, object)).collect(),
            });
        }
        queries
    }

    fn normalised(&self, frame: &RenderedFrame, object: usize) -> Option<BoxXyxy> {
        let area = frame.area(object)?;
        let side = self.scene.side as f32;
        Some(BoxXyxy::from([
            area.x0 / side,
            area.y0 / side,
            area.x1 / side,
            area.y1 / side,
        ]))
    }

    /// "the red circle blink".
    fn infinitive(&self, event: &Event, draw: &mut Draw) -> String {
        let it = self.called(event.object, draw);
        match (event.kind, event.other) {
            (EventKind::Collide, Some(other)) => {
                let other = self.called(other, draw);
                format!("the {it} collide with the {other}")
            }
            (kind, _) => format!("the {it} {}", kind.name()),
        }
    }
}
