//! Spatial grounding: a phrase, and the box it names.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{
    At, ConvertOptions, Format, Samples, annotated, members, of_split, records, samples, text_of,
};
use crate::DataError;
use crate::schema::{Annotation, BoxCoords, Media, Sample, Target};

/// `[x, y, width, height]` in pixels to corners.
pub(super) fn xywh([x, y, w, h]: [f32; 4]) -> BoxCoords {
    BoxCoords::Pixels([x, y, x + w, y + h])
}

fn phrase(
    options: &ConvertOptions,
    id: String,
    file: &str,
    size: Option<[u32; 2]>,
    query: &str,
    area: BoxCoords,
) -> Sample {
    let mut media = Media::image(options.media(file));
    media.size = size;
    let annotation = Annotation::asked(&options.region_task, query, Target::Box(area));
    annotated(id, media, annotation)
}

#[derive(Deserialize)]
pub(super) struct CocoImage {
    id: u64,
    pub file_name: String,
    width: Option<u32>,
    height: Option<u32>,
    caption: Option<String>,
}

impl CocoImage {
    pub fn size(&self) -> Option<[u32; 2]> {
        Some([self.width?, self.height?])
    }
}

#[derive(Deserialize)]
struct CocoBox {
    #[serde(default)]
    id: u64,
    image_id: u64,
    bbox: [f32; 4],
}

#[derive(Deserialize)]
struct Ref {
    ref_id: u64,
    ann_id: u64,
    split: Option<String>,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    sent: String,
}

/// RefCOCO, RefCOCO+ and RefCOCOg of the `refer` toolkit: `refs(..).p` written as JSON once
/// (`json.dump(pickle.load(f), g)`; a pickle is not read because loading one runs code) and its
/// `instances.json`. Each sentence becomes a row. Held in memory: the boxes that are referred to
/// and their images.
pub(super) fn refcoco(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let second = options.second(Format::RefCoco, "instances.json")?;
    let wanted: HashSet<u64> = records::<Ref>(path)?
        .filter_map(|r| r.ok().map(|r| r.1.ann_id))
        .collect();
    let mut boxes = HashMap::new();
    let mut image_ids = HashSet::new();
    for record in members::<CocoBox>(second, &["annotations"])? {
        let b = record?.1;
        if wanted.contains(&b.id) {
            image_ids.insert(b.image_id);
            boxes.insert(b.id, (b.image_id, b.bbox));
        }
    }
    let images = images(second, |image| image_ids.contains(&image.id))?;
    let each = move |options: &ConvertOptions, at: At, r: Ref| {
        let ref_id = r.ref_id;
        let missing = |what, id| at.bad(format!("ref {ref_id}: no {what} {id}"));
        let (image_id, area) = boxes
            .get(&r.ann_id)
            .ok_or_else(|| missing("annotation", r.ann_id))?;
        let image = images
            .get(image_id)
            .ok_or_else(|| missing("image", *image_id))?;
        let (file, size) = (&image.file_name, image.size());
        let sentences = r.sentences.iter().enumerate();
        Ok(sentences
            .map(|(i, s)| {
                let id = format!("ref {ref_id}:{i}");
                let mut sample = phrase(options, id, file, size, &s.sent, xywh(*area));
                if let Some(split) = &r.split {
                    sample.meta.insert("split".into(), split.as_str().into());
                }
                sample
            })
            .collect::<Vec<_>>())
    };
    let refs = of_split(records(path)?, options, |r: &Ref| r.split.as_deref());
    Ok(samples(refs, options, each))
}

/// The entries of `images` that are `wanted`, by number.
fn images(
    path: &Path,
    wanted: impl Fn(&CocoImage) -> bool,
) -> Result<HashMap<u64, CocoImage>, DataError> {
    members::<CocoImage>(path, &["images"])?
        .map(|record| record.map(|(_, image)| (image.id, image)))
        .filter(|image| image.as_ref().map_or(true, |(_, image)| wanted(image)))
        .collect()
}

/// The RefCOCO family as one COCO-style file: every expression is an image entry with its
/// `caption`, and its box an annotation of that entry (the layout referring-expression code
/// derived from MDETR uses). Held in memory: the image entries.
pub(super) fn coco_style(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let images = images(path, |_| true)?;
    let each = move |options: &ConvertOptions, at: At, b: CocoBox| {
        let image = images
            .get(&b.image_id)
            .ok_or_else(|| at.bad(format!("no image {}", b.image_id)))?;
        let query = image
            .caption
            .as_deref()
            .ok_or_else(|| at.bad("its image has no `caption`"))?;
        let id = format!("expression {}:{}", b.image_id, at.number);
        let (file, size) = (&image.file_name, image.size());
        Ok([phrase(options, id, file, size, query, xywh(b.bbox))])
    };
    Ok(samples(members(path, &["annotations"])?, options, each))
}

#[derive(Deserialize)]
struct RefLine {
    image: String,
    sent: String,
    bbox: [f32; 4],
    width: Option<u32>,
    height: Option<u32>,
}

/// The RefCOCO family as one expression a line, the files of Qwen-VL's evaluation, which InternVL's reads
/// too (`refcoco_testA.jsonl`): `image`, `sent`, `bbox` as corners in pixels, `width`, `height`. One
/// file is one split.
pub(super) fn refcoco_lines(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: RefLine| {
        let id = format!("expression {}", at.number);
        let size = row.width.zip(row.height).map(|(w, h)| [w, h]);
        let area = BoxCoords::Pixels(row.bbox);
        Ok([phrase(options, id, &row.image, size, &row.sent, area)])
    };
    Ok(samples(records(path)?, options, each))
}

#[derive(Deserialize)]
struct RefObject {
    question_id: Value,
    file_name: String,
    answer: Vec<String>,
    bbox: [f32; 4],
}

/// The RefCOCO family as `lmms-lab/RefCOCO`, `RefCOCOplus` and `RefCOCOg` have it on Hugging Face, a
/// split written as JSON or JSONL without its pictures: one object a row with all its expressions in
/// `answer`, each of which becomes a row, `bbox` as `[x, y, width, height]` in pixels.
/// Pictures are those of COCO: `COCO_train2014_000000581857_16.jpg` is an object of
/// `COCO_train2014_000000581857.jpg`.
pub(super) fn refcoco_objects(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, _: At, row: RefObject| {
        let name = text_of(row.question_id);
        let file = coco_picture(&row.file_name);
        let expressions = row.answer.iter().enumerate().map(|(i, text)| {
            let id = format!("{name}:{i}");
            phrase(options, id, &file, None, text, xywh(row.bbox))
        });
        Ok(expressions.collect::<Vec<_>>())
    };
    Ok(samples(records(path)?, options, each))
}

/// The picture an object of COCO is in, without the object's number after that of the picture.
fn coco_picture(file: &str) -> String {
    let without_object = || {
        let (stem, extension) = file.rsplit_once('.')?;
        let (picture, object) = stem.rsplit_once('_')?;
        let (_, number) = picture.rsplit_once('_')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (number.len() == 12 && digits(number) && digits(object))
            .then(|| format!("{picture}.{extension}"))
    };
    without_object().unwrap_or_else(|| file.into())
}

#[derive(Deserialize)]
struct VgImage {
    id: Option<u64>,
    image_id: Option<u64>,
    regions: Vec<VgRegion>,
}

#[derive(Deserialize)]
struct VgRegion {
    region_id: u64,
    image_id: Option<u64>,
    phrase: String,
    x: f32,
    y: f32,
    width: f32,
    height: f32,
}

/// Visual Genome region descriptions: every region becomes a row. Images are `ID.jpg`; the file
/// does not say which of the two image folders one is in, so put them into one.
pub(super) fn visual_genome(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, image: VgImage| {
        let of_image = image.id.or(image.image_id);
        let regions = image.regions.iter();
        regions
            .map(|r| {
                let n = r
                    .image_id
                    .or(of_image)
                    .ok_or_else(|| at.bad("no image id"))?;
                let area = xywh([r.x, r.y, r.width, r.height]);
                let (id, file) = (format!("region {}", r.region_id), format!("{n}.jpg"));
                Ok(phrase(options, id, &file, None, &r.phrase, area))
            })
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(samples(records(path)?, options, each))
}
