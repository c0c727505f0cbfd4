//! All-Seeing V2: conversations in which phrases have boxes.

use std::collections::HashMap;
use std::path::Path;

use super::conversation::{LlavaRow, exchanges, media};
use super::spatial::CocoImage;
use super::{At, ConvertOptions, Samples, asked, members, parts, records, text_of};
use crate::DataError;
use crate::schema::{Annotation, BOX_MARK, BoxCoords, Sample, Target, Turn};

/// Coordinates are whole numbers from 0 to this (the dataset's own script, `visualize_rec.py`).
const SCALE: f32 = 999.0;

/// Part of the names of files whose boxes are of the picture as it is. Those of all others are of
/// the picture padded to a square (the dataset's README).
const NOT_PADDED: &str = "wo_square_pad";

/// AS-V2, conversations in the layout of LLaVA. In them objects are `<ref>phrase</ref>` and
/// predicates `<pred>phrase</pred>`, followed by `<box>[[x1, y1, x2, y2], ..]</box>`.
///
/// A row whose answers have boxes becomes a row of annotations: the phrases of the answers that
/// have one box. A phrase that has several in its row, as plurals have and names that are used
/// twice, names no box and is left out; the boxes of a predicate are those of its subject and its
/// object and are passed over. Any other row stays a conversation without tags, with the boxes of
/// its questions.
///
/// Held in memory: sizes of images, where the boxes are of squares.
pub(super) fn as_v2(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    // What is no conversation is said before what its boxes need.
    let records = records(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let padded = !name.contains(NOT_PADDED);
    let sizes = match &options.second {
        Some(second) => sizes(second)?,
        None if !padded => HashMap::new(),
        None => {
            return Err(DataError::InvalidConfig {
                what: "conversion",
                reason: format!(
                    "boxes in {name} are of images padded to squares, and it does not say how large \
                     the images are; take the file of that name with `_{NOT_PADDED}`, or give \
                     COCO's instances_train2017.json as the second file"
                ),
            });
        }
    };
    let each = move |options: &ConvertOptions, at: At, row: LlavaRow| {
        let file = row
            .image
            .as_deref()
            .and_then(|path| path.rsplit('/').next());
        let size = file.and_then(|file| sizes.get(file)).copied();
        let found = rows(options, &at, row, Frame { size, padded });
        found.unwrap_or_else(|why| vec![Err(at.bad(why))])
    };
    Ok(parts(records, options, each))
}

/// `[width, height]` by the name of the image file.
fn sizes(path: &Path) -> Result<HashMap<String, [u32; 2]>, DataError> {
    let images = members::<CocoImage>(path, &["images"])?;
    let sized = images.map(|record| {
        let (at, image) = record?;
        let size = image.size();
        let size = size.ok_or_else(|| at.bad("the image has no `width` and `height`"))?;
        Ok((image.file_name, size))
    });
    sized.collect()
}

/// What the boxes of a row are of.
#[derive(Clone, Copy)]
struct Frame {
    /// `[width, height]` of the image, if known.
    size: Option<[u32; 2]>,
    padded: bool,
}

impl Frame {
    /// The box in the image.
    fn place(self, numbers: [f32; 4]) -> Result<BoxCoords, String> {
        let [x0, y0, x1, y1] = numbers;
        let why = if !numbers.iter().all(|v| (0.0..=SCALE).contains(v)) {
            "reaches outside 0 to 999"
        } else if x0 >= x1 || y0 >= y1 {
            "has no area"
        } else {
            let share = numbers.map(|v| v / SCALE);
            return self.unpadded(share);
        };
        Err(format!("the box {numbers:?} {why}"))
    }

    /// Shares of the square as pixels of the image in its middle (`visualize_rec.py`).
    fn unpadded(self, share: [f32; 4]) -> Result<BoxCoords, String> {
        if !self.padded {
            return Ok(BoxCoords::Normalised(share));
        }
        let [w, h] = self
            .size
            .ok_or("the second file has no size of its image")?;
        let side = w.max(h);
        let [left, top] = [w, h].map(|length| ((side - length) / 2) as f32);
        let across = |v: f32| (v * side as f32 - left).clamp(0.0, w as f32);
        let down = |v: f32| (v * side as f32 - top).clamp(0.0, h as f32);
        let [x0, y0, x1, y1] = share;
        let inside = [across(x0), down(y0), across(x1), down(y1)];
        if inside[0] >= inside[2] || inside[1] >= inside[3] {
            return Err(format!("a box lies in the padding of its image of {w}x{h}"));
        }
        Ok(BoxCoords::Pixels(inside))
    }
}

/// A phrase with every box it has in the answers of a row.
struct Phrase<'a> {
    text: &'a str,
    boxes: Vec<[f32; 4]>,
}

fn rows(
    options: &ConvertOptions,
    at: &At,
    row: LlavaRow,
    frame: Frame,
) -> Result<Vec<Result<Sample, DataError>>, String> {
    let mut media = media(options, row.video, row.image, [None, None])?;
    if let Some(media) = &mut media {
        media.size = frame.size;
    }
    let turns = exchanges(row.conversations)?;
    let id = row.id.map_or_else(|| at.number.to_string(), text_of);
    let phrases = phrases(&turns)?;
    if phrases.is_empty() {
        let turns = turns.into_iter().map(|turn| said(turn, frame));
        return Ok(vec![Ok(asked(id, media, turns.collect::<Result<_, _>>()?))]);
    }
    let (mut annotations, mut rows) = (Vec::new(), Vec::new());
    for phrase in phrases {
        let found = match &phrase.boxes[..] {
            [one] => frame.place(*one),
            many => Err(format!(
                "it has {} boxes in this row; an annotation has one",
                many.len()
            )),
        };
        match found {
            Ok(area) => {
                let target = Target::Box(area);
                annotations.push(Annotation::asked(&options.region_task, phrase.text, target));
            }
            Err(why) => rows.push(Err(at.bad(format!("`{}`: {why}", phrase.text)))),
        }
    }
    if !annotations.is_empty() {
        let sample = asked(id, media, Vec::new());
        rows.insert(
            0,
            Ok(Sample {
                annotations,
                ..sample
            }),
        );
    }
    Ok(rows)
}

/// The phrases of the answers that have boxes, in the order of the text.
fn phrases(turns: &[Turn]) -> Result<Vec<Phrase<'_>>, String> {
    let mut found: Vec<Phrase<'_>> = Vec::new();
    for turn in turns {
        let mut last = None;
        for piece in pieces(&turn.answer)? {
            let boxes = match piece {
                Piece::Words(_) => continue,
                Piece::Tagged("box", text) => boxes(text)?,
                tagged => {
                    last = Some(tagged);
                    continue;
                }
            };
            let text = match last {
                Some(Piece::Tagged("ref", text)) => text.trim(),
                // Subjects and objects of a predicate.
                Some(_) => continue,
                None => return Err("a `<box>` of an answer follows no `<ref>`".into()),
            };
            let known = found.iter().position(|p| p.text.eq_ignore_ascii_case(text));
            let at = known.unwrap_or(found.len());
            if known.is_none() {
                found.push(Phrase {
                    text,
                    boxes: Vec::new(),
                });
            }
            for one in boxes {
                if !found[at].boxes.contains(&one) {
                    found[at].boxes.push(one);
                }
            }
        }
    }
    Ok(found)
}

/// A turn without tags, with the boxes of its question.
fn said(turn: Turn, frame: Frame) -> Result<Turn, String> {
    let mut plain = Turn::default();
    for piece in pieces(&turn.question)? {
        match piece {
            Piece::Tagged("box", text) => {
                let placed = boxes(text)?.into_iter().map(|b| frame.place(b));
                let placed: Vec<_> = placed.collect::<Result<_, _>>()?;
                let marks = vec![BOX_MARK; placed.len()].join(", ");
                plain.question.push_str(&format!(" {marks}"));
                plain.boxes.extend(placed);
            }
            Piece::Tagged(_, text) | Piece::Words(text) => plain.question.push_str(text),
        }
    }
    for piece in pieces(&turn.answer)? {
        match piece {
            // Those of a predicate, whose subject and object have no tags.
            Piece::Tagged("box", _) => {}
            Piece::Tagged(_, text) | Piece::Words(text) => plain.answer.push_str(text),
        }
    }
    plain.question = plain.question.trim().into();
    Ok(plain)
}

fn boxes(text: &str) -> Result<Vec<[f32; 4]>, String> {
    let boxes: Vec<[f32; 4]> = serde_json::from_str(text)
        .map_err(|_| format!("`{text}` are no boxes, expected [[x1, y1, x2, y2], ..]"))?;
    if boxes.is_empty() {
        return Err("a `<box>` is empty".into());
    }
    Ok(boxes)
}

/// A piece of a text.
#[derive(Debug, Clone, Copy)]
enum Piece<'a> {
    /// Without a tag.
    Words(&'a str),
    /// The tag, `ref`, `pred` or `box`, and what it holds.
    Tagged(&'static str, &'a str),
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    const TAGS: [(&str, &str, &str); 3] = [
        ("ref", "<ref>", "</ref>"),
        ("pred", "<pred>", "</pred>"),
        ("box", "<box>", "</box>"),
    ];
    let (mut rest, mut found) = (text, Vec::new());
    let first = |text: &str| {
        let tags = TAGS.iter().filter_map(|tag| Some((text.find(tag.1)?, tag)));
        tags.min_by_key(|(at, _)| *at)
    };
    while let Some((start, (name, open, close))) = first(rest) {
        let inside = &rest[start + open.len()..];
        let end = inside.find(close);
        let end = end.ok_or_else(|| format!("`{open}` is not closed"))?;
        found.push(Piece::Words(&rest[..start]));
        found.push(Piece::Tagged(name, &inside[..end]));
        rest = &inside[end + close.len()..];
    }
    found.push(Piece::Words(rest));
    Ok(found)
}
