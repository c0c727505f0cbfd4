//! How positions are written in a row: a box under one of two names, a frame under one of two.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::Rle;

use super::annotation::{
    Annotation, BoxCoords, FramePosition, Saliency, Target, TrackFrame, TrackRegion,
};

/// The one box of two optional fields.
fn one_box(
    normalised: Option<[f32; 4]>,
    pixels: Option<[f32; 4]>,
    names: [&str; 2],
) -> Result<Option<BoxCoords>, String> {
    match (normalised, pixels) {
        (Some(_), Some(_)) => Err(format!("give `{}` or `{}`, not both", names[0], names[1])),
        (Some(b), None) => Ok(Some(BoxCoords::Normalised(b))),
        (None, Some(b)) => Ok(Some(BoxCoords::Pixels(b))),
        (None, None) => Ok(None),
    }
}

fn split(b: Option<BoxCoords>) -> (Option<[f32; 4]>, Option<[f32; 4]>) {
    match b {
        Some(BoxCoords::Normalised(b)) => (Some(b), None),
        Some(BoxCoords::Pixels(b)) => (None, Some(b)),
        None => (None, None),
    }
}

/// A box by itself, in a question: `{"box": [..]}` or `{"box_pixels": [..]}`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BoxFields {
    #[serde(rename = "box", default, skip_serializing_if = "Option::is_none")]
    normalised: Option<[f32; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    box_pixels: Option<[f32; 4]>,
}

impl TryFrom<BoxFields> for BoxCoords {
    type Error = String;
    fn try_from(f: BoxFields) -> Result<Self, String> {
        one_box(f.normalised, f.box_pixels, ["box", "box_pixels"])?
            .ok_or_else(|| "give `box` or `box_pixels`".into())
    }
}

impl From<BoxCoords> for BoxFields {
    fn from(b: BoxCoords) -> Self {
        let (normalised, box_pixels) = split(Some(b));
        Self {
            normalised,
            box_pixels,
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrackFrameFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frame: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<f64>,
    #[serde(rename = "box", default, skip_serializing_if = "Option::is_none")]
    normalised: Option<[f32; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    box_pixels: Option<[f32; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rle: Option<Rle>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    absent: bool,
}

impl TryFrom<TrackFrameFields> for TrackFrame {
    type Error = String;
    fn try_from(f: TrackFrameFields) -> Result<Self, String> {
        let at = match (f.frame, f.time) {
            (Some(frame), None) => FramePosition::Frame(frame),
            (None, Some(time)) => FramePosition::Time(time),
            _ => return Err("a track frame has `frame` or `time`, exactly one of them".into()),
        };
        let b = one_box(f.normalised, f.box_pixels, ["box", "box_pixels"])?;
        let region = match (b, f.rle, f.absent) {
            (Some(b), None, false) => TrackRegion::Box(b),
            (None, Some(rle), false) => TrackRegion::Mask(rle),
            (None, None, true) => TrackRegion::Absent,
            _ => {
                return Err(
                    "a track frame has `box`, `box_pixels`, `rle` or `absent: true`, exactly \
                     one of them"
                        .into(),
                );
            }
        };
        Ok(Self { at, region })
    }
}

impl From<TrackFrame> for TrackFrameFields {
    fn from(f: TrackFrame) -> Self {
        let mut fields = Self::default();
        match f.at {
            FramePosition::Frame(i) => fields.frame = Some(i),
            FramePosition::Time(t) => fields.time = Some(t),
        }
        match f.region {
            TrackRegion::Absent => fields.absent = true,
            TrackRegion::Box(b) => (fields.normalised, fields.box_pixels) = split(Some(b)),
            TrackRegion::Mask(rle) => fields.rle = Some(rle),
        }
        fields
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnnotationFields {
    task: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    query: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_box: Option<[f32; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_box_pixels: Option<[f32; 4]>,
    #[serde(rename = "box", default, skip_serializing_if = "Option::is_none")]
    normalised: Option<[f32; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    box_pixels: Option<[f32; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spans: Option<Vec<[f64; 2]>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    saliency: Option<Saliency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    track: Option<Vec<TrackFrame>>,
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    value: Option<serde_json::Value>,
}

/// `"value": null` is a value; only a missing field is none.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(d).map(Some)
}

impl TryFrom<AnnotationFields> for Annotation {
    type Error = String;
    fn try_from(f: AnnotationFields) -> Result<Self, String> {
        let prompt_box = one_box(
            f.prompt_box,
            f.prompt_box_pixels,
            ["prompt_box", "prompt_box_pixels"],
        )?;
        let b = one_box(f.normalised, f.box_pixels, ["box", "box_pixels"])?;
        if f.saliency.is_some() && f.spans.is_none() {
            return Err("`saliency` goes with `spans`".into());
        }
        let saliency = f.saliency;
        let mut found = Vec::new();
        found.extend(b.map(Target::Box));
        found.extend(f.spans.map(|spans| Target::Spans { spans, saliency }));
        found.extend(f.track.map(Target::Track));
        found.extend(f.value.map(Target::Value));
        let (Some(target), None) = (found.pop(), found.pop()) else {
            return Err(format!(
                "annotation of task `{}` has `box`, `box_pixels`, `spans`, `track` or `value`, \
                 exactly one of them",
                f.task
            ));
        };
        Ok(Self {
            task: f.task,
            query: f.query,
            prompt_box,
            target,
        })
    }
}

impl From<Annotation> for AnnotationFields {
    fn from(a: Annotation) -> Self {
        let (prompt_box, prompt_box_pixels) = split(a.prompt_box);
        let mut fields = Self {
            task: a.task,
            query: a.query,
            prompt_box,
            prompt_box_pixels,
            ..Self::default()
        };
        match a.target {
            Target::Box(b) => (fields.normalised, fields.box_pixels) = split(Some(b)),
            Target::Spans { spans, saliency } => {
                (fields.spans, fields.saliency) = (Some(spans), saliency);
            }
            Target::Track(frames) => fields.track = Some(frames),
            Target::Value(value) => fields.value = Some(value),
        }
        fields
    }
}
