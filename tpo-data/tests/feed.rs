//! From files to batches: order, resume, shards, prompts, labels, augmentation, bad rows.

#[path = "common/heads.rs"]
mod heads;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use heads::{Truths, registry};
use proptest::prelude::*;
use serde_json::{Value, json};
use tpo_core::geometry::{BoxXyxy, Mask, Rle};
use tpo_core::head::FrameSource;
use tpo_core::model::IGNORE_LABEL;
use tpo_core::prompt::{TextEncoder, Visual};
use tpo_core::token::TaskRegistry;
use tpo_core::traits::VisualShape;
use tpo_core::truth::{Truth, TruthPlace, TruthTarget};
use tpo_data::feed::{
    AugmentConfig, Collated, Cursor, Feed, FeedConfig, MixtureSpec, OrderConfig, Plan, SourceRows,
    SourceSpec, View,
};
use tpo_data::prompts::LayoutEncoder;
use tpo_data::prompts::qwen::QwenLayout;
use tpo_data::{ClipRange, DataError, FrameSampling, ImageTransform};

/// Characters as ids, the model's tokens as one id each, BOS 1.
struct Chars(TaskRegistry);

impl TextEncoder for Chars {
    fn encode_with_bos(&self, text: &str) -> tpo_core::Result<Vec<u32>> {
        let mut ids = vec![1];
        let mut rest = text;
        'next: while !rest.is_empty() {
            for t in self.0.tokens() {
                if let Some(after) = rest.strip_prefix(&t.token) {
                    ids.push(t.id);
                    rest = after;
                    continue 'next;
                }
            }
            let c = rest.chars().next().unwrap();
            ids.push(100 + c as u32);
            rest = &rest[c.len_utf8()..];
        }
        Ok(ids)
    }
}

fn text(ids: impl IntoIterator<Item = u32>) -> String {
    let registry = registry();
    ids.into_iter()
        .map(|id| match registry.tokens().find(|t| t.id == id) {
            Some(t) => t.token.clone(),
            None if id >= 100 => char::from_u32(id - 100).unwrap().to_string(),
            None => format!("|{id}"),
        })
        .collect()
}

fn encoder() -> LayoutEncoder {
    LayoutEncoder {
        slots: Arc::new(|v| match v.kind {
            Visual::Image => Ok(2),
            _ => Ok(3),
        }),
        ..LayoutEncoder::videochat(Arc::new(Chars(registry())), 2)
    }
}

fn open(config: &FeedConfig, cursor: Cursor) -> Result<Feed, DataError> {
    Feed::open(config, &registry(), encoder(), Arc::new(Truths), cursor)
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets")
}

/// A seed under which two rows come in the order of the file.
const IN_ORDER: u64 = 42;

/// A black picture with a white rectangle.
fn picture(path: &Path, size: [u32; 2], [x0, y0, x1, y1]: [u32; 4]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_fn(size[0], size[1], |x, y| {
        let inside = x >= x0 && x < x1 && y >= y0 && y < y1;
        image::Rgb([if inside { 255 } else { 0 }; 3])
    })
    .save(path)
    .unwrap();
}

fn write(dir: &Path, name: &str, rows: &[Value]) -> SourceSpec {
    let path = dir.join(name);
    let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(&path, text).unwrap();
    SourceSpec::file(path)
}

fn small() -> FeedConfig {
    let mut config = FeedConfig::default();
    config.frames.num_frames = 4;
    config.frames.transform = ImageTransform::vision().with_size([8, 8]);
    config.loader.epochs = Some(1);
    config
}

/// Videos, images and text of two sources.
fn mixed(dir: &Path) -> FeedConfig {
    for i in 0..7u32 {
        picture(&dir.join(format!("i{i}.png")), [16, 12], [i, 1, i + 4, 9]);
        for j in 0..5 {
            picture(
                &dir.join(format!("v{i}/{j}.png")),
                [16, 12],
                [i + j, 1, i + j + 2, 9],
            );
        }
    }
    let mut a = Vec::new();
    let mut b = Vec::new();
    for i in 0..7u32 {
        a.push(json!({"id": format!("i{i}"), "media": {"image": format!("i{i}.png")},
            "annotations": [{"task": "region", "query": format!("shape {i}"), "box_pixels": [i, 1, i + 4, 9]}]}));
        b.push(json!({"media": {"frames": format!("v{i}"), "fps": 2.0},
            "annotations": [{"task": "temporal", "query": "it", "spans": [[0.0, 0.5 + f64::from(i) / 7.0]]}]}));
        b.push(json!({"turns": [{"question": format!("{i}?"), "answer": "yes"}]}));
    }
    FeedConfig {
        mixture: MixtureSpec::of(vec![write(dir, "a.jsonl", &a), write(dir, "b.jsonl", &b)]),
        ..small()
    }
}

/// All that a batch is.
fn digest(b: &Collated) -> String {
    let regions = b.targets.get::<BoxXyxy>("region").unwrap();
    let frames: Vec<_> = b
        .visuals
        .iter()
        .map(|(shape, values, dims)| {
            (
                shape,
                dims,
                values
                    .iter()
                    .map(|v| u64::from(v.to_bits()))
                    .fold(7u64, |h, v| h.wrapping_mul(31) ^ v),
            )
        })
        .collect();
    let lines: Vec<_> = b
        .samples
        .iter()
        .map(|s| (s.file.clone(), s.line, s.key))
        .collect();
    format!(
        "{:?} {:?} {:?} {frames:?} {:?} {regions:?} {lines:?}",
        b.at, b.tokens, b.labels, b.boxes
    )
}

fn rest(mut feed: Feed) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(b) = feed.next_batch().unwrap() {
        out.push(digest(&b));
    }
    out
}

#[test]
fn interrupted_anywhere_the_rest_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = mixed(dir.path());
    config.order.batch_size = 2;
    config.loader.epochs = Some(2);
    config.mixture.sampling = Some(FrameSampling::Random { seed: 0 });
    config.mixture.augment = Some(AugmentConfig {
        flip: 0.5,
        crop: 0.5,
        time_crop: 0.5,
        ..AugmentConfig::default()
    });
    let whole = rest(open(&config, Cursor::default()).unwrap());
    // 7 images in 4 batches, 7 videos in 4, 7 texts in 4, twice.
    assert_eq!(whole.len(), 24);
    let halves: std::collections::HashSet<_> = whole.iter().collect();
    assert_eq!(halves.len(), 24, "epochs differ");
    for workers in [0, 1, 3] {
        config.loader.workers = workers;
        config.loader.prefetch = 1 + workers;
        assert_eq!(
            rest(open(&config, Cursor::default()).unwrap()),
            whole,
            "{workers}"
        );
    }
    for stop in 0..=24 {
        let mut feed = open(&config, Cursor::default()).unwrap();
        for _ in 0..stop {
            feed.next_batch().unwrap().unwrap();
        }
        let stored = serde_json::to_string(&feed.cursor()).unwrap();
        drop(feed);
        let cursor: Cursor = serde_json::from_str(&stored).unwrap();
        assert_eq!(
            rest(open(&config, cursor).unwrap()),
            whole[stop..],
            "{stop}"
        );
    }
    // Going back and passing over.
    let mut feed = open(&config, Cursor::default()).unwrap();
    let start = feed.cursor();
    for _ in 0..5 {
        feed.next_batch().unwrap();
    }
    feed.seek(start).unwrap();
    feed.skip_batch();
    assert_eq!(digest(&feed.next_batch().unwrap().unwrap()), whole[1]);
    feed.skip_batch();
    feed.skip_batch();
    assert_eq!(rest(feed), whole[4..]);
    // A cursor of other data is refused.
    let mut feed = open(&config, Cursor::default()).unwrap();
    feed.next_batch().unwrap();
    let cursor = feed.cursor();
    config.order.seed += 1;
    assert!(matches!(
        open(&config, cursor),
        Err(DataError::InvalidConfig { .. })
    ));
    // And one of rows that say something else in as many bytes; one of before does not know.
    config.order.seed -= 1;
    let source = &config.mixture.sources[0];
    let file = source.annotations.clone().unwrap();
    let said = std::fs::read_to_string(&file).unwrap();
    let says = said.replacen("i0", "i1", 1);
    assert_eq!(says.len(), said.len());
    std::fs::write(&file, says).unwrap();
    let error = open(&config, cursor).err().unwrap().to_string();
    assert!(error.contains("the rows of its files changed"), "{error}");
    open(
        &config,
        Cursor {
            content: 0,
            ..cursor
        },
    )
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn shards_partition_the_epoch(
        sizes in proptest::collection::vec((0..40u64, 0..40u64, 0..20u64, 1..3u64), 1..4),
        batch_size in 1..6usize,
        shards in 1..5usize,
        temperature in prop_oneof![Just(1.0), Just(2.0)],
        seed: u64,
        epoch in 0..5u64,
    ) {
        let sources: Vec<SourceRows> = sizes.iter().map(|(a, b, c, repeat)| SourceRows {
            name: "s".into(),
            repeat: *repeat,
            weight: 1.0,
            groups: vec![*a, *b, *c],
            fingerprint: 0,
            content: 0,
        }).collect();
        let order = OrderConfig { seed, batch_size, shards, shard: 0 };
        let plans: Result<Vec<Plan>, _> = (0..shards)
            .map(|shard| Plan::new(&sources, temperature, &OrderConfig { shard, ..order }))
            .collect();
        let Ok(plans) = plans else { return Ok(()) };
        let whole = Plan::new(&sources, temperature, &OrderConfig {
            batch_size: batch_size * shards, shards: 1, ..order
        }).unwrap();
        let mut indices = std::collections::HashSet::new();
        let mut rows = std::collections::HashMap::new();
        prop_assert!(plans.iter().all(|p| p.fingerprint() == whole.fingerprint()));
        for b in 0..whole.batches() {
            let mut joined: Vec<_> = plans.iter().flat_map(|p| p.batch(epoch, b)).collect();
            joined.sort_by_key(|k| k.index);
            let mut all = whole.batch(epoch, b);
            prop_assert!(all.iter().all(|k| k.group == all[0].group), "one group a batch");
            all.sort_by_key(|k| k.index);
            prop_assert_eq!(&joined, &all);
            for k in all {
                prop_assert!(indices.insert(k.index));
                prop_assert!(k.row < sources[k.source].groups[k.group]);
                *rows.entry((k.source, k.group, k.row)).or_insert(0u64) += 1;
            }
        }
        prop_assert_eq!(indices.len() as u64, whole.samples());
        // Whole passes show every row equally often.
        for (s, source) in sources.iter().enumerate().filter(|_| temperature == 1.0) {
            for (g, n) in source.groups.iter().enumerate() {
                for row in 0..*n {
                    prop_assert_eq!(rows.get(&(s, g, row)), Some(&source.repeat));
                }
            }
        }
    }

    #[test]
    fn boxes_spans_and_masks_stay_inside_a_view(
        x in 0.0f32..0.8, y in 0.0f32..0.8, w in 0.05f32..0.2, h in 0.05f32..0.2,
        left in 0u32..20, top in 0u32..20, right in 60u32..100, bottom in 60u32..100,
        flip: bool,
    ) {
        let view = View { crop: Some(([left, top, right, bottom], [100, 100])), flip, ..View::default() };
        let b = BoxXyxy { x0: x, y0: y, x1: x + w, y1: y + h };
        let seen = view.map_box(b);
        prop_assert!(seen.is_ordered() && seen.to_array().iter().all(|v| (0.0..=1.0).contains(v)));
        // Twice mirrored is not mirrored.
        let mirror = View { flip: true, ..View::default() };
        let back = mirror.map_box(mirror.map_box(b));
        prop_assert!(back.to_array().iter().zip(b.to_array()).all(|(a, c)| (a - c).abs() < 1e-6));
        // The box of a mask follows the mask to the pixel.
        let p = [x, y, x + w, y + h].map(|v| (v * 100.0).round() as usize);
        let mask = Mask(ndarray::Array2::from_shape_fn((100, 100), |(r, c)| {
            (p[1]..p[3]).contains(&r) && (p[0]..p[2]).contains(&c)
        }));
        let rle = Rle::encode(&mask);
        let mapped = view.map_mask(&rle, [100, 100]).unwrap();
        let size = mapped.size;
        prop_assert_eq!(size, [(bottom - top) as usize, (right - left) as usize]);
        let pixels = BoxXyxy::from(p.map(|v| v as f32 / 100.0));
        let expected = view.map_box(pixels);
        if let Some(found) = mapped.decode().unwrap().bounding_box() {
            let found = found.to_normalised(size[1] as f32, size[0] as f32);
            for (a, e) in found.to_array().iter().zip(expected.to_array()) {
                prop_assert!((a - e).abs() < 1e-5, "{:?} {:?}", found, expected);
            }
        }
    }
}

#[test]
fn labels_are_the_answers_and_targets_follow_the_tokens() {
    let dir = tempfile::tempdir().unwrap();
    picture(&dir.path().join("a.png"), [10, 10], [0, 0, 5, 5]);
    let rows = [
        json!({"media": {"image": "a.png"},
            "turns": [
                {"question": "Two, near <box>?", "answer": "A <task:region> and <task:region>.", "boxes": [{"box": [0.0, 0.0, 0.5, 1.0]}]},
                {"question": "Timestamp?", "answer": "None."}],
            "annotations": [{"task": "region", "box": [0.1, 0.1, 0.2, 0.2]}, {"task": "region", "box_pixels": [3, 3, 4, 10.5]}]}),
        json!({"media": {"image": "a.png"}, "turns": [{"question": "?", "answer": "<task:region>"}],
            "annotations": [{"task": "region", "box": [0.5, 0.5, 0.6, 0.6]}]}),
    ];
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![write(dir.path(), "x.jsonl", &rows)]),
        ..small()
    };
    config.order.batch_size = 2;
    config.order.seed = IN_ORDER;
    let mut feed = open(&config, Cursor::default()).unwrap();
    let batch = feed.next_batch().unwrap().unwrap();
    assert_eq!(
        text(batch.tokens.ids[0].clone()),
        "|1[INST] <Image>|0|0|1</Image>[/INST]|1 [INST] Two, near <track_box>? [/INST] \
         A <box_begin><boxes> and <box_begin><boxes>.|2 [INST] Timestamp? [/INST] None.|2"
    );
    let learned: Vec<u32> = batch.labels[0]
        .iter()
        .filter(|l| **l != IGNORE_LABEL)
        .map(|l| *l as u32)
        .collect();
    assert_eq!(
        text(learned),
        "A <box_begin><boxes> and <box_begin><boxes>.|2None.|2"
    );
    for (ids, labels) in batch.tokens.ids.iter().zip(&batch.labels) {
        assert_eq!(ids.len(), labels.len());
        assert!(
            ids.iter()
                .zip(labels)
                .all(|(i, l)| *l == IGNORE_LABEL || *l == i64::from(*i))
        );
    }
    assert!(batch.tokens.mask[1].contains(&false));
    let regions = batch.targets.get::<BoxXyxy>("region").unwrap().unwrap();
    let x0: Vec<f32> = regions.iter().map(|b| b.x0).collect();
    assert_eq!(x0, [0.1, 0.3, 0.5]);
    // Less than a pixel outside is cut.
    assert_eq!(regions[1].y1, 1.0);
    assert_eq!(
        batch.boxes,
        [vec![BoxXyxy::from([0.0, 0.0, 0.5, 1.0])], vec![]]
    );
    let slots = batch.tokens.positions_of(32003);
    assert_eq!(slots.len(), regions.len());
    let (tpo, samples) = batch.into_batch(&Device::flex());
    assert_eq!(tpo.visuals.len(), 2);
    for visual in &tpo.visuals {
        assert_eq!(visual.pixels.dims(), [1, 3, 8, 8]);
        assert_eq!(visual.shape, VisualShape::image((10, 10)));
    }
    let [_, second] = samples.try_into().unwrap();
    assert_eq!(second.into_sample().size, Some((10, 10)));
    assert!(feed.next_batch().unwrap().is_none());
}

/// Without a size to resize to and with a frame rate, clips of a batch have shapes of their own.
#[test]
fn unequal_clips_share_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    for (clip, frames, size) in [("a", 8u32, [16, 12]), ("b", 4, [8, 20])] {
        for j in 0..frames {
            let path = dir.path().join(format!("{clip}/{j}.png"));
            picture(&path, size, [j, 1, j + 2, 9]);
        }
    }
    let row = |clip: &str| {
        json!({"media": {"frames": clip, "fps": 4.0},
            "turns": [{"question": "What?", "answer": "A box."}]})
    };
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![write(dir.path(), "x.jsonl", &[row("a"), row("b")])]),
        ..small()
    };
    config.mixture.sampling = Some(FrameSampling::Fps(2.0));
    config.frames.transform = ImageTransform {
        mean: [0.0; 3],
        std: [1.0; 3],
        ..ImageTransform::region()
    };
    config.order.batch_size = 2;
    config.order.seed = IN_ORDER;
    // As many slots as pixels, so that size and number of pictures must have reached the encoder.
    let encoder = LayoutEncoder {
        slots: Arc::new(|v| Ok(v.pictures * (v.size.0 * v.size.1) as usize)),
        max_tokens: 4096,
        ..encoder()
    };
    let (tasks, start) = (registry(), Cursor::default());
    let mut feed = Feed::open(&config, &tasks, encoder, Arc::new(Truths), start).unwrap();
    let batch = feed.next_batch().unwrap().unwrap();
    assert!(batch.skipped.is_empty(), "{:?}", batch.skipped);
    let found: Vec<_> = batch.visuals.iter().map(|(s, _, d)| (*s, *d)).collect();
    let expected = [
        (VisualShape::video((16, 12), 4), [4, 3, 12, 16]),
        (VisualShape::video((8, 20), 2), [2, 3, 20, 8]),
    ];
    assert_eq!(found, expected);
    let slots: Vec<usize> = batch
        .tokens
        .visual
        .iter()
        .map(|row| row.iter().filter(|v| **v).count())
        .collect();
    assert_eq!(slots, [4 * 16 * 12, 2 * 8 * 20]);
    // The box is where its picture has it, in its own layout.
    for (_, values, [frames, channels, h, w]) in &batch.visuals {
        assert_eq!(values.len(), frames * channels * h * w);
        for (i, frame) in values.chunks(channels * h * w).enumerate() {
            // Two of four frames a second.
            let j = 2 * i + 1;
            let expected = [
                j as f32 / *w as f32,
                1.0 / *h as f32,
                (j + 2) as f32 / *w as f32,
                9.0 / *h as f32,
            ];
            assert_eq!(white(frame, [*h, *w]), Some(expected));
        }
    }
    let host = batch.visuals.clone();
    let (tpo, _) = batch.into_batch(&Device::flex());
    for (visual, (shape, values, dims)) in tpo.visuals.into_iter().zip(host) {
        assert_eq!((visual.shape, visual.pixels.dims()), (shape, dims));
        assert_eq!(
            visual.pixels.into_data().try_to_vec::<f32>().unwrap(),
            values
        );
    }
}

#[test]
fn video_facts_and_lazy_frames() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        json!({"media": {"video": "bouncing_shapes.mp4", "range": [1.0, 3.0]},
        "turns": [{"question": "timestamps?", "answer": "<task:temporal>"}],
        "annotations": [{"task": "temporal", "query": "shapes", "spans": [[0.5, 1.5], [2.5, 9.0]]}]}),
    ];
    let mut source = write(dir.path(), "x.jsonl", &rows);
    source.media = Some(assets());
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![source]),
        ..small()
    };
    config.loader.strict = true;
    let error = open(&config, Cursor::default()).unwrap().next_batch();
    // The second span is past the end of the file, which only the file knows; it is cut.
    let batch = error.unwrap().unwrap();
    let truths = batch.targets.get::<Truth>("temporal").unwrap().unwrap();
    let TruthTarget::Moments { spans, .. } = &truths[0].target else {
        panic!()
    };
    let found: Vec<_> = spans.iter().map(|s| [s.start, s.end]).collect();
    assert_eq!(found, [[0.0, 0.5], [1.5, 2.0]]);
    let prompt = text(batch.tokens.ids[0].clone());
    assert!(
        prompt.contains("The video contains 4 frames sampled at 0."),
        "{prompt}"
    );
    let sample = &batch.samples[0].sample;
    assert_eq!(sample.duration, Some(2.0));
    assert!(sample.timestamps.iter().all(|t| (0.0..2.0).contains(t)));
    let (_, samples) = batch.into_batch(&Device::flex());
    let clip = &samples[0].clip.as_ref().unwrap().frames;
    let frames = clip.frames(16).unwrap();
    assert_eq!(frames.dims(), [4, 3, 16, 16]);
    let one = clip.frame(2, 16).unwrap();
    frames
        .clone()
        .narrow(0, 2, 1)
        .into_data()
        .assert_eq(&one.into_data(), true);
    assert!(clip.frame(4, 16).is_err());
    // One by one, back, again, and in another size between: always the same frames.
    for index in [0, 1, 2, 3, 1, 2, 0, 3, 2, 3] {
        let one = clip.frame(index, 16).unwrap().into_data();
        let expected = frames.clone().narrow(0, index, 1).into_data();
        expected.assert_eq(&one, true);
        assert_eq!(clip.frame(index, 8).unwrap().dims(), [1, 3, 8, 8]);
        let next = clip.frame((index + 1) % 4, 16).unwrap().into_data();
        let expected = frames.clone().narrow(0, (index + 1) % 4, 1).into_data();
        expected.assert_eq(&next, true);
    }
}

/// Normalised box of the white pixels of a clip's frame.
fn white(values: &[f32], [h, w]: [usize; 2]) -> Option<[f32; 4]> {
    let mut b: Option<[usize; 4]> = None;
    for y in 0..h {
        for x in 0..w {
            if values[y * w + x] > 0.5 {
                let b = b.get_or_insert([x, y, x + 1, y + 1]);
                *b = [b[0].min(x), b[1].min(y), b[2].max(x + 1), b[3].max(y + 1)];
            }
        }
    }
    b.map(|[x0, y0, x1, y1]| {
        [
            x0 as f32 / w as f32,
            y0 as f32 / h as f32,
            x1 as f32 / w as f32,
            y1 as f32 / h as f32,
        ]
    })
}

#[test]
fn pictures_boxes_and_masks_are_augmented_together() {
    let dir = tempfile::tempdir().unwrap();
    let (size, r) = ([64u32, 48u32], [20u32, 10, 33, 27]);
    picture(&dir.path().join("a.png"), size, r);
    let mask = Mask(ndarray::Array2::from_shape_fn((48, 64), |(y, x)| {
        (10..27).contains(&y) && (20..33).contains(&x)
    }));
    let rle = serde_json::to_value(Rle::encode(&mask)).unwrap();
    let rows = [json!({"media": {"image": "a.png"}, "annotations": [
        {"task": "region", "query": "the white box", "box_pixels": r},
        {"task": "mask", "query": "the white box", "track": [{"frame": 0, "rle": rle}]}]})];
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![write(dir.path(), "x.jsonl", &rows)]),
        ..small()
    };
    config.frames.transform = ImageTransform {
        mean: [0.0; 3],
        std: [1.0; 3],
        ..ImageTransform::region()
    };
    config.loader.epochs = Some(60);
    config.mixture.augment = Some(AugmentConfig {
        flip: 0.5,
        crop: 0.8,
        min_crop: 0.3,
        ..AugmentConfig::default()
    });
    let mut feed = open(&config, Cursor::default()).unwrap();
    let (mut flips, mut shapes) = (0, std::collections::HashSet::new());
    while let Some(batch) = feed.next_batch().unwrap() {
        let [(_, values, [_, _, h, w])] = &batch.visuals[..] else {
            panic!()
        };
        let (h, w) = (*h, *w);
        let seen = white(values, [h, w]).unwrap();
        let boxed = batch.targets.get::<BoxXyxy>("region").unwrap().unwrap()[0];
        for (a, b) in seen.iter().zip(boxed.to_array()) {
            assert!((a - b).abs() < 1e-5, "{seen:?} {boxed:?}");
        }
        let truths = batch.targets.get::<Truth>("mask").unwrap().unwrap();
        let TruthTarget::Track(frames) = &truths[0].target else {
            panic!()
        };
        let TruthPlace::Mask(rle) = &frames[0].place else {
            panic!()
        };
        let m = rle.decode().unwrap();
        assert_eq!(m.size(), (h, w));
        let plane: Vec<f32> = m.0.iter().map(|v| f32::from(u8::from(*v))).collect();
        assert_eq!(white(&plane, [h, w]), Some(seen));
        flips += usize::from(batch.samples[0].clip.as_ref().unwrap().view.flip);
        shapes.insert((h, w));
    }
    assert!((10..50).contains(&flips), "{flips}");
    assert!(shapes.len() > 10, "{shapes:?}");
}

/// What words say of the whole picture may not be in a part of it.
#[test]
fn a_row_with_words_of_its_own_is_not_cropped() {
    let dir = tempfile::tempdir().unwrap();
    let (size, r) = ([64u32, 48u32], [20u32, 10, 33, 27]);
    picture(&dir.path().join("a.png"), size, r);
    let rows = [json!({"media": {"image": "a.png"},
        "turns": [{"question": "Where is the white box?", "answer": "In the middle."}]})];
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![write(dir.path(), "x.jsonl", &rows)]),
        ..small()
    };
    config.loader.epochs = Some(10);
    config.mixture.augment = Some(AugmentConfig {
        crop: 1.0,
        min_crop: 0.3,
        ..AugmentConfig::default()
    });
    let mut feed = open(&config, Cursor::default()).unwrap();
    while let Some(batch) = feed.next_batch().unwrap() {
        assert_eq!(batch.samples[0].clip.as_ref().unwrap().view.crop, None);
    }
}

#[test]
fn time_crops_hold_all_spans_and_rated_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        json!({"media": {"video": "bouncing_shapes.mp4"}, "annotations": [{"task": "temporal", "query": "x",
        "spans": [[1.25, 1.5], [1.75, 2.5]], "saliency": {"clip_seconds": 0.5, "clips": [2, 3, 4], "scores": [[1.0], [2.0], [3.0]]}}]}),
    ];
    let mut source = write(dir.path(), "x.jsonl", &rows);
    source.media = Some(assets());
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![source]),
        ..small()
    };
    config.loader.epochs = Some(30);
    config.mixture.augment = Some(AugmentConfig {
        time_crop: 1.0,
        ..AugmentConfig::default()
    });
    let mut feed = open(&config, Cursor::default()).unwrap();
    let mut starts = std::collections::HashSet::new();
    while let Some(batch) = feed.next_batch().unwrap() {
        let sample = &batch.samples[0];
        let ClipRange { start, end } = sample.clip.as_ref().unwrap().view.range.unwrap();
        let TruthTarget::Moments {
            spans, saliency, ..
        } = &sample.truths[0].target
        else {
            panic!()
        };
        assert!(start <= 1.25 && end >= 2.5 && (start / 0.5).fract() == 0.0);
        let back: Vec<_> = spans
            .iter()
            .map(|s| [s.start + start, s.end + start])
            .collect();
        for (a, b) in back.iter().flatten().zip([1.25, 1.5, 1.75, 2.5]) {
            assert!((a - b).abs() < 1e-9);
        }
        let s = saliency.as_ref().unwrap();
        let first = (start / 0.5) as u32;
        assert_eq!(
            s.clips.iter().map(|c| c + first).collect::<Vec<_>>(),
            [2, 3, 4]
        );
        assert!((sample.sample.duration.unwrap() - (end - start)).abs() < 1e-9);
        starts.insert((start * 2.0) as i64);
    }
    assert!(starts.len() > 1);
}

#[test]
fn bad_rows_are_skipped_counted_and_listed_or_fatal() {
    let dir = tempfile::tempdir().unwrap();
    picture(&dir.path().join("a.png"), [10, 10], [0, 0, 5, 5]);
    std::fs::write(
        dir.path().join("broken.png"),
        b"\x89PNG\r\n\x1a\nnot really",
    )
    .unwrap();
    let row = |media: &str, task: &str| json!({"media": {"image": media}, "annotations": [{"task": task, "query": "x", "box": [0.0, 0.0, 1.0, 1.0]}]});
    let rows = [
        row("a.png", "region"),
        row("broken.png", "region"),
        row("missing.png", "region"),
        row("a.png", "unknown-task"),
        row("a.png", "temporal"),
        json!({"media": {"image": "a.png"}, "turns": [{"question": "no answer"}]}),
        json!({"media": {"image": "a.png"}, "turns": [{"question": "say <boxes>", "answer": "x"}]}),
        json!({"media": {"image": "a.png"}, "turns": [{"question": "x".repeat(2000), "answer": "too long"}]}),
        json!({"media": {"image": "a.png"}, "annotations": [{"task": "region", "query": "x", "box_pixels": [0, 0, 50, 5]}]}),
        json!({"nonsense": 1}),
        row("a.png", "region"),
    ];
    let mut config = FeedConfig {
        mixture: MixtureSpec::of(vec![write(dir.path(), "x.jsonl", &rows)]),
        ..small()
    };
    config.order.batch_size = 3;
    let mut feed = open(&config, Cursor::default()).unwrap();
    assert_eq!(feed.bad_rows().count, 1);
    let mut used = Vec::new();
    while let Some(batch) = feed.next_batch().unwrap() {
        used.extend(batch.samples.iter().map(|s| s.line));
    }
    used.sort_unstable();
    assert_eq!(used, [1, 11]);
    let mut lines: Vec<u64> = feed.bad_rows().first.iter().map(|r| r.line).collect();
    lines.sort_unstable();
    assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let text = feed.skipped_rows().unwrap();
    let counts = "1 of 11 rows refused, 8 of 10 rows skipped; first: ";
    assert!(
        text.starts_with(counts) && text.contains("x.jsonl:10"),
        "{text}"
    );
    for r in &feed.bad_rows().first {
        let text = r.to_string();
        let expected = match r.line {
            2 | 3 => ".png",
            4 => "task `unknown-task`: it is not registered",
            5 => "no moments",
            6 => "no answer",
            7 => "token `<boxes>`",
            8 => "the limit is 1024",
            9 => "outside",
            _ => "unknown field",
        };
        assert!(text.contains(expected), "{text}");
    }
    config.loader.strict = true;
    assert!(
        matches!(open(&config, Cursor::default()), Err(DataError::StrictRow(r)) if r.line == 10)
    );
    let only = [row("missing.png", "region")];
    config.mixture.sources = vec![write(dir.path(), "y.jsonl", &only)];
    let mut strict = open(&config, Cursor::default()).unwrap();
    assert!(matches!(strict.next_batch(), Err(DataError::StrictRow(r)) if r.line == 1));
    config.loader.strict = false;
    config.loader.epochs = None;
    let mut hopeless = open(&config, Cursor::default()).unwrap();
    assert!(matches!(
        hopeless.next_batch(),
        Err(DataError::InvalidConfig { .. })
    ));
}

#[test]
fn templates_depend_on_the_place_only_and_text_style_has_no_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = mixed(dir.path());
    let asked = |config: &FeedConfig| {
        let mut feed = open(config, Cursor::default()).unwrap();
        let mut out = std::collections::BTreeMap::new();
        while let Some(b) = feed.next_batch().unwrap() {
            for (s, ids) in b.samples.iter().zip(&b.tokens.ids) {
                let real = ids.iter().copied().filter(|i| *i != 0);
                out.insert((s.file.clone(), s.line), text(real));
            }
        }
        out
    };
    let plain = asked(&config);
    assert_eq!(plain.len(), 21);
    let wordings: std::collections::HashSet<_> = plain
        .values()
        .filter(|t| t.contains("shape"))
        .map(|t| t.replace(|c: char| c.is_ascii_digit(), ""))
        .collect();
    assert!(wordings.len() > 3, "{wordings:?}");
    // Augmenting leaves the wording alone.
    config.mixture.augment = Some(AugmentConfig {
        flip: 1.0,
        ..AugmentConfig::default()
    });
    assert_eq!(asked(&config), plain);
    config.mixture.augment = None;
    for source in &mut config.mixture.sources {
        source.textual = true;
    }
    let words = asked(&config);
    let row = words.values().find(|t| t.contains("shape 2")).unwrap();
    assert!(
        row.contains("[0.12, 0.08, 0.38, 0.75]") && !row.contains("<boxes>"),
        "{row}"
    );
    let row = words.values().find(|t| t.contains(" seconds")).unwrap();
    assert!(row.contains("0.0 - ") && !row.contains("<temp>"), "{row}");
}

/// Counts the questions that are laid out, one a row.
struct Counting(Chars, Arc<AtomicUsize>);

impl TextEncoder for Counting {
    fn encode_with_bos(&self, text: &str) -> tpo_core::Result<Vec<u32>> {
        if text.starts_with(" [INST]") {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
        self.0.encode_with_bos(text)
    }
}

#[test]
fn no_more_is_prepared_ahead_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = mixed(dir.path());
    config.order.batch_size = 2;
    config.loader.workers = 3;
    config.loader.prefetch = 2;
    let made = Arc::new(AtomicUsize::new(0));
    let counting = LayoutEncoder {
        tokenizer: Arc::new(Counting(Chars(registry()), Arc::clone(&made))),
        ..encoder()
    };
    let (tasks, start) = (registry(), Cursor::default());
    let mut feed = Feed::open(&config, &tasks, counting, Arc::new(Truths), start).unwrap();
    for done in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(60));
        let n = made.load(Ordering::SeqCst);
        assert!(n <= 2 * (done + 2), "{n} after {done}");
        feed.next_batch().unwrap().unwrap();
    }
}

#[test]
fn a_mixture_is_a_table_of_a_recipe() {
    let text = r#"
        temperature = 2.0
        sampling = "rand"
        augment = { flip = 0.5 }
        [[sources]]
        name = "a"
        annotations = "a.jsonl"
        repeat = 2
        apart = true
    "#;
    let mixture: MixtureSpec = toml::from_str(text).unwrap();
    let source = &mixture.sources[0];
    assert_eq!((mixture.temperature, source.repeat), (2.0, 2));
    assert!(
        source.packed_turns,
        "`apart` was its name in earlier versions"
    );
    let back: MixtureSpec = toml::from_str(&toml::to_string(&mixture).unwrap()).unwrap();
    assert_eq!(back, mixture);
    assert!(mixture.problems("data", (16, 64)).is_empty());
    assert!(toml::from_str::<MixtureSpec>("temprature = 1").is_err());
}

#[test]
fn every_mistake_of_a_mixture_is_told() {
    let nothing = SourceSpec {
        repeat: 0,
        weight: -1.0,
        ..SourceSpec::default()
    };
    let twice = SourceSpec::file("a.jsonl");
    let often = SourceSpec {
        repeat: 2_000_000,
        ..twice.clone()
    };
    let mixture = MixtureSpec {
        temperature: 0.0,
        augment: Some(AugmentConfig {
            crop: f64::NAN,
            ..AugmentConfig::default()
        }),
        ..MixtureSpec::of(vec![nothing, twice, often])
    };
    let found = mixture.problems("data", (16, 64));
    for (found, expected) in found.iter().zip([
        "data.temperature is 0",
        "data.augment: crop is NaN, expected 0 to 1",
        "data.sources[0] ``.name is empty",
        "data.sources[0] ``: needs `annotations` (a file) or `synthetic`",
        "data.sources[0] ``.weight is -1",
        "data.sources[0] ``: `repeat` and `limit` must be at least 1",
        "data.sources[2] `a.jsonl`: an earlier source has this name",
        "data.sources[2] `a.jsonl`.repeat is 2000000; must be at most 1000000",
    ]) {
        assert!(found.starts_with(expected), "{found}, expected {expected}");
    }
    assert_eq!(found.len(), 8, "{found:#?}");
    let config = FeedConfig { mixture, ..small() };
    assert!(open(&config, Cursor::default()).is_err());
}

/// A row about several images has all of them in order, the first with its boxes, and rows of one and of
/// several share a batch. A base that reads one refuses the row in words.
#[test]
fn a_row_of_several_images() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("a", [16, 12]), ("b", [8, 20]), ("c", [16, 16])] {
        picture(&dir.path().join(format!("{name}.png")), size, [1, 1, 3, 9]);
    }
    let several = json!({"media": {"images": ["a.png", "b.png", "c.png"]},
        "turns": [{"question": "Is <image> like <image> or <image>?", "answer": "<task:region>"}],
        "annotations": [{"task": "region", "query": "it", "box_pixels": [1, 1, 3, 9]}]});
    let one = json!({"media": {"image": "b.png"},
        "turns": [{"question": "What?", "answer": "A box."}]});
    let source = write(dir.path(), "x.jsonl", &[several, one]);
    let mut config = FeedConfig {
        mixture: MixtureSpec {
            // Compared images stay as they are.
            augment: Some(AugmentConfig {
                flip: 1.0,
                ..AugmentConfig::default()
            }),
            ..MixtureSpec::of(vec![source])
        },
        ..small()
    };
    config.order.batch_size = 2;
    config.order.seed = IN_ORDER;
    let tasks = registry();
    let open = |config: &FeedConfig, encoder| {
        Feed::open(config, &tasks, encoder, Arc::new(Truths), Cursor::default()).unwrap()
    };
    let qwen = LayoutEncoder {
        layout: Arc::new(QwenLayout),
        ..encoder()
    };
    let batch = open(&config, qwen).next_batch().unwrap().unwrap();
    assert!(batch.skipped.is_empty(), "{:?}", batch.skipped);
    let sizes: Vec<_> = batch
        .visuals
        .iter()
        .map(|(s, _, _)| (s.size, s.pictures))
        .collect();
    let expected = [((16, 12), 1), ((8, 20), 1), ((16, 16), 1), ((8, 20), 1)];
    assert_eq!(sizes, expected);
    let slots = |row: &Vec<bool>| row.iter().filter(|v| **v).count();
    let slots: Vec<usize> = batch.tokens.visual.iter().map(slots).collect();
    assert_eq!(slots, [6, 2]);
    let ids = batch.tokens.ids[0].iter().zip(&batch.tokens.visual[0]);
    let ids = ids.zip(&batch.tokens.mask[0]).filter(|(_, real)| **real);
    let said: String = ids
        .map(|((id, visual), _)| if *visual { "#".into() } else { text([*id]) })
        .collect();
    let asked = "<|im_start|>user\nIs ## like ## or ##?<|im_end|>";
    assert!(said.contains(asked), "{said}");
    let found = batch.targets.get::<BoxXyxy>("region").unwrap().unwrap();
    assert_eq!(
        found[0].to_array(),
        [1.0 / 16.0, 1.0 / 12.0, 3.0 / 16.0, 0.75]
    );

    // A base of tiles reads several on square canvases, and one whole.
    let mut squares = config.clone();
    squares.frames.transform = ImageTransform::siglip().with_size([8, 8]);
    squares.frames.squares = true;
    squares.mixture.augment = None;
    let qwen = LayoutEncoder {
        layout: Arc::new(QwenLayout),
        ..encoder()
    };
    let batch = open(&squares, qwen).next_batch().unwrap().unwrap();
    let transform = &squares.frames.transform;
    let read = |name: &str| {
        let path = dir.path().join(format!("{name}.png"));
        [tpo_data::read_image(path, &squares.media).unwrap()]
    };
    let square = |name: &str| transform.squares(&read(name)).unwrap().0;
    let mut expected = ["a", "b", "c"].map(square).to_vec();
    expected.push(transform.apply(&read("b")).unwrap().0);
    assert_ne!(expected[1], expected[3]);
    let values: Vec<_> = batch.visuals.into_iter().map(|(_, v, _)| v).collect();
    assert_eq!(values, expected);

    let batch = open(&config, encoder()).next_batch().unwrap().unwrap();
    assert_eq!(batch.skipped.len(), 1);
    let why = batch.skipped[0].to_string();
    assert!(why.contains("3 videos or images"), "{why}");
    config.loader.strict = true;
    let mut feed = open(&config, encoder());
    assert!(matches!(feed.next_batch(), Err(DataError::StrictRow(_))));
}
