//! Random augmentations that keep annotations and texts true.

use serde::{Deserialize, Serialize};
use tpo_core::geometry::BoxXyxy;

use super::draw::Draw;
use super::view::View;
use crate::schema::{BoxCoords, Media, Sample, Target, TrackRegion};
use crate::{ClipRange, DataError, VideoInfo};

/// Words after which mirroring would make a text false.
const FLIP_WORDS: [&str; 34] = [
    "left",
    "right",
    "leftmost",
    "rightmost",
    "leftward",
    "rightward",
    "leftwards",
    "rightwards",
    "lefthand",
    "righthand",
    "lefty",
    "righty",
    "rightside",
    "leftside",
    "upperleft",
    "upperright",
    "topleft",
    "topright",
    "bottomleft",
    "bottomright",
    "clockwise",
    "counterclockwise",
    "anticlockwise",
    "east",
    "west",
    "mirror",
    "mirrored",
    "text",
    "word",
    "words",
    "letter",
    "letters",
    "written",
    "reads",
];

/// Which augmentations, how often. All off by default: the reference trains without any.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Probability of mirroring left and right, 0–1. Never applied to a row whose texts contain a word
    /// that mirroring could make false: of sides, directions and writing.
    pub flip: f64,
    /// Probability of a crop, 0–1. It always contains all boxes and masks of the row. Never applied
    /// to a row with its own turns: what they say of the whole picture may not hold for a part.
    pub crop: f64,
    /// Smallest side of a crop as a part of the picture's, 0–1.
    pub min_crop: f64,
    /// Probability of a crop in time, 0–1; only rows whose annotations are all spans and
    /// that have no conversation. It always contains all spans.
    pub time_crop: f64,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            flip: 0.0,
            crop: 0.0,
            min_crop: 0.6,
            time_crop: 0.0,
        }
    }
}

/// Corners `[x0, y0, x1, y1]` of a crop in pixels, and the `[width, height]` it is of.
type Crop = ([u32; 4], [u32; 2]);

impl AugmentConfig {
    /// The numbers that are out of range.
    pub(super) fn problems(&self) -> Vec<String> {
        let shares = [
            ("flip", self.flip),
            ("crop", self.crop),
            ("min_crop", self.min_crop),
            ("time_crop", self.time_crop),
        ];
        shares
            .iter()
            .filter(|(_, share)| !(0.0..=1.0).contains(share))
            .map(|(name, share)| format!("{name} is {share}, expected 0 to 1"))
            .collect()
    }

    /// A view of a row's media. Every number is drawn whether it is used or not, so that turning
    /// one augmentation on leaves the others' choices alone.
    ///
    /// # Errors
    /// [`DataError::Core`] for a mask that cannot be read.
    pub(super) fn view(
        &self,
        sample: &Sample,
        media: &Media,
        info: &VideoInfo,
        draw: &mut Draw,
    ) -> Result<View, DataError> {
        // The fourth belonged to an augmentation of earlier versions; the others' choices stay theirs.
        let chance: [f64; 4] = std::array::from_fn(|_| draw.unit());
        let numbers: [f64; 6] = std::array::from_fn(|_| draw.unit());
        let custom = sample
            .annotations
            .iter()
            .any(|a| matches!(a.target, Target::Value(_)));
        let mut view = View {
            range: media.range,
            ..View::default()
        };
        // The targets of your own head may depend on position: such rows stay as they are.
        if chance[0] < self.flip && !custom && !says_side(sample) {
            view.flip = true;
        }
        if chance[1] < self.crop && !custom && sample.turns.is_empty() {
            view.crop = self.crop(sample, info, &numbers[0..4])?;
        }
        if chance[2] < self.time_crop {
            view.range = time_crop(sample, media, info, &numbers[4..6]).or(view.range);
        }
        Ok(view)
    }

    /// A crop that contains everything annotated, in whole pixels; `None` when that is all of it.
    fn crop(
        &self,
        sample: &Sample,
        info: &VideoInfo,
        numbers: &[f64],
    ) -> Result<Option<Crop>, DataError> {
        let (w, h) = (info.width as u32, info.height as u32);
        let place = |b: &BoxCoords| b.normalised(w, h);
        let asked = sample.turns.iter().flat_map(|t| &t.boxes);
        let mut boxes: Vec<BoxXyxy> = asked.map(place).collect();
        for a in &sample.annotations {
            boxes.extend(a.prompt_box.as_ref().map(place));
            match &a.target {
                Target::Box(b) => boxes.push(place(b)),
                Target::Track(frames) => {
                    for f in frames {
                        match &f.region {
                            TrackRegion::Absent => {}
                            TrackRegion::Box(b) => boxes.push(place(b)),
                            TrackRegion::Mask(rle) => {
                                let [mh, mw] = rle.size.map(|v| v as f32);
                                let tight = rle.decode()?.bounding_box();
                                boxes.extend(tight.map(|b| b.to_normalised(mw, mh)));
                            }
                        }
                    }
                }
                Target::Spans { .. } | Target::Value(_) => {}
            }
        }
        let keep = boxes
            .iter()
            .map(|b| b.to_array().map(f64::from))
            .reduce(|k, b| {
                [
                    k[0].min(b[0]),
                    k[1].min(b[1]),
                    k[2].max(b[2]),
                    k[3].max(b[3]),
                ]
            });
        let side = |size: u32, low: f64, high: f64, scale: f64, place: f64| -> [u32; 2] {
            let n = f64::from(size);
            // Whole pixels around what is kept, one more for masks of another scale.
            let low = ((low * n).floor() - 1.0).clamp(0.0, n);
            let high = ((high * n).ceil() + 1.0).clamp(0.0, n);
            let length = (self.min_crop + (1.0 - self.min_crop) * scale) * n;
            let length = length.round().max(high - low).clamp(1.0, n);
            let (first, last) = ((high - length).max(0.0), low.min(n - length));
            let start = (first + (last - first).max(0.0) * place).round();
            // Not `clamp`, which panics on numbers that are none.
            let start = start.max(first).min(last.max(0.0));
            [start as u32, ((start + length) as u32).min(size)]
        };
        // Without boxes any place will do: what is kept is a point in the middle.
        let k = keep.unwrap_or([0.5; 4]);
        let [x0, x1] = side(w, k[0], k[2], numbers[0], numbers[2]);
        let [y0, y1] = side(h, k[1], k[3], numbers[1], numbers[3]);
        Ok(([x0, y0, x1, y1] != [0, 0, w, h]).then_some(([x0, y0, x1, y1], [w, h])))
    }
}

/// Whether a text of the row contains a word that mirroring makes false.
fn says_side(sample: &Sample) -> bool {
    let turns = sample
        .turns
        .iter()
        .flat_map(|t| [&t.question, &t.answer].into_iter().chain(&t.options));
    let queries = sample.annotations.iter().filter_map(|a| a.query.as_ref());
    turns.chain(queries).any(|text| {
        text.to_lowercase()
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| FLIP_WORDS.contains(&word))
    })
}

/// A part of the time that holds all spans; it begins with a rated piece where pieces are rated.
fn time_crop(
    sample: &Sample,
    media: &Media,
    info: &VideoInfo,
    numbers: &[f64],
) -> Option<ClipRange> {
    if !media.is_video() || !sample.turns.is_empty() || sample.annotations.is_empty() {
        return None;
    }
    let whole = View {
        range: media.range,
        ..View::default()
    };
    let (start, end) = whole.seconds(info);
    let (mut low, mut high, mut piece) = (f64::INFINITY, f64::NEG_INFINITY, 0.0f64);
    for a in &sample.annotations {
        let Target::Spans { spans, saliency } = &a.target else {
            return None;
        };
        for [a, b] in spans {
            low = low.min(*a);
            high = high.max(*b);
        }
        if let Some(s) = saliency {
            piece = piece.max(s.clip_seconds);
        }
    }
    let (low, high) = (low.clamp(start, end), high.clamp(start, end));
    let mut from = start + (low - start) * numbers[0];
    if piece > 0.0 {
        from = (from / piece).floor() * piece;
    }
    let from = from.max(start);
    let to = end - (end - high) * numbers[1];
    (to > from && (from, to) != (start, end)).then_some(ClipRange {
        start: from,
        end: to,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_of_side_forbid_the_mirror() {
        for (words, says) in [
            ("the man on the LEFT", true),
            ("left-most cup", true),
            ("brightly lit", false),
            ("turn clockwise!", true),
            ("leftovers", false),
        ] {
            let row = json!({"turns": [{"question": "q", "answer": words}]});
            let row = serde_json::from_value(row).unwrap();
            assert_eq!(says_side(&row), says, "{words}");
        }
    }
}
