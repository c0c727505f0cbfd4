//! Spatial grounding: a phrase, and the box it names.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;

use super::temporal::spread;
use super::{ConvertOptions, Format, JsonItems, Samples, bad, open, records};
use crate::DataError;
use crate::schema::{Annotation, BoxCoords, Media, Sample, Target};

type Items = JsonItems<BufReader<File>>;

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
    Sample {
        id: Some(id),
        media: Some(media),
        annotations: vec![Annotation {
            task: options.region_task.clone(),
            query: Some(query.trim().to_string()),
            prompt_box: None,
            target: Target::Box(area),
        }],
        ..Sample::default()
    }
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
    #[serde(default)]
    width: Option<u32>,
    #[serde(default)]
    height: Option<u32>,
    #[serde(default)]
    caption: Option<String>,
}

impl CocoImage {
    fn size(&self) -> Option<[u32; 2]> {
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
    #[serde(default)]
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
        .filter_map(|r| r.ok().map(|(_, r)| r.ann_id))
        .collect();
    let mut boxes = HashMap::new();
    let mut image_ids = HashSet::new();
    for item in Items::new(open(second)?, second, &["annotations"])? {
        let b: CocoBox = Items::parse(second, &item?)?;
        if wanted.contains(&b.id) {
            image_ids.insert(b.image_id);
            boxes.insert(b.id, (b.image_id, b.bbox));
        }
    }
    let mut images = HashMap::new();
    for item in Items::new(open(second)?, second, &["images"])? {
        let image: CocoImage = Items::parse(second, &item?)?;
        if image_ids.contains(&image.id) {
            images.insert(image.id, image);
        }
    }
    let (options, file) = (options.clone(), path.to_path_buf());
    Ok(Box::new(records::<Ref>(path)?.flat_map(move |row| {
        let rows = row.and_then(|(_, r)| {
            if options.split.is_some() && r.split != options.split {
                return Ok(Vec::new());
            }
            let place = format!("ref {}", r.ref_id);
            let (image_id, b) = boxes
                .get(&r.ann_id)
                .ok_or_else(|| bad(&file, &place, format!("no annotation {}", r.ann_id)))?;
            let image = images
                .get(image_id)
                .ok_or_else(|| bad(&file, &place, format!("no image {image_id}")))?;
            Ok(r.sentences
                .iter()
                .enumerate()
                .map(|(i, s)| {
                    let id = format!("ref {}:{i}", r.ref_id);
                    phrase(
                        &options,
                        id,
                        &image.file_name,
                        image.size(),
                        &s.sent,
                        xywh(*b),
                    )
                })
                .collect())
        });
        spread(rows)
    })))
}

/// The RefCOCO family as one COCO-style file: every expression is an image entry with its
/// `caption`, and its box an annotation of that entry (the layout referring-expression code
/// derived from MDETR uses). Held in memory: the image entries.
pub(super) fn coco_style(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let mut images = HashMap::new();
    for item in Items::new(open(path)?, path, &["images"])? {
        let image: CocoImage = Items::parse(path, &item?)?;
        images.insert(image.id, image);
    }
    let (options, file) = (options.clone(), path.to_path_buf());
    let items = Items::new(open(path)?, path, &["annotations"])?;
    Ok(Box::new(items.map(move |item| {
        let item = item?;
        let b: CocoBox = Items::parse(&file, &item)?;
        let place = || format!("annotation {}", item.index);
        let image = images
            .get(&b.image_id)
            .ok_or_else(|| bad(&file, place(), format!("no image {}", b.image_id)))?;
        let query = image
            .caption
            .as_deref()
            .ok_or_else(|| bad(&file, place(), "its image has no `caption`"))?;
        let id = format!("expression {}:{}", b.image_id, item.index);
        Ok(phrase(
            &options,
            id,
            &image.file_name,
            image.size(),
            query,
            xywh(b.bbox),
        ))
    })))
}

#[derive(Deserialize)]
struct VgImage {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    image_id: Option<u64>,
    regions: Vec<VgRegion>,
}

#[derive(Deserialize)]
struct VgRegion {
    region_id: u64,
    #[serde(default)]
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
    let (options, file) = (options.clone(), path.to_path_buf());
    Ok(Box::new(records::<VgImage>(path)?.flat_map(move |image| {
        let rows = image.and_then(|(index, image)| {
            let of_image = image.id.or(image.image_id);
            image
                .regions
                .iter()
                .map(|r| {
                    let n = r
                        .image_id
                        .or(of_image)
                        .ok_or_else(|| bad(&file, format!("element {index}"), "no image id"))?;
                    let b = xywh([r.x, r.y, r.width, r.height]);
                    let id = format!("region {}", r.region_id);
                    Ok(phrase(
                        &options,
                        id,
                        &format!("{n}.jpg"),
                        None,
                        &r.phrase,
                        b,
                    ))
                })
                .collect()
        });
        spread(rows)
    })))
}
