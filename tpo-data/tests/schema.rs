//! The schema: round trips, faults of mutated rows, media checks.

#[path = "common/fuzzing.rs"]
mod fuzzing;
#[path = "schema/images.rs"]
mod images;

use std::io::Write;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};
use tpo_core::geometry::{Mask, Rle};
use tpo_data::schema::{
    Annotation, BoxCoords, FramePosition, Media, MediaKind, RowFault, RowLimits, Saliency, Sample,
    SampleReader, Summary, Target, TrackFrame, TrackRegion, Turn, check_media, parse_row,
    write_row,
};
use tpo_data::{ClipRange, DataError, MediaLimits};

/// Times on a grid of milliseconds: exact in JSON with either float parser of serde_json.
fn seconds(max: u32) -> impl Strategy<Value = f64> {
    (0..max * 1000).prop_map(|ms| f64::from(ms) / 1000.0)
}

fn spans() -> impl Strategy<Value = Vec<[f64; 2]>> {
    vec((seconds(500), 1..100_000u32), 1..4).prop_map(|list| {
        list.into_iter()
            .map(|(start, ms)| {
                let end = (start * 1000.0).round() + f64::from(ms);
                [start, end / 1000.0]
            })
            .collect()
    })
}

fn coords() -> impl Strategy<Value = BoxCoords> {
    (
        0.0f32..0.9,
        0.0f32..0.9,
        0.01f32..0.1,
        0.01f32..0.1,
        any::<bool>(),
    )
        .prop_map(|(x, y, w, h, pixels)| {
            if pixels {
                BoxCoords::Pixels([x * 640.0, y * 480.0, (x + w) * 640.0, (y + h) * 480.0])
            } else {
                BoxCoords::Normalised([x, y, x + w, y + h])
            }
        })
}

fn rle() -> impl Strategy<Value = Rle> {
    vec(any::<bool>(), 48).prop_map(|mut bits| {
        bits[7] = true;
        Rle::encode(&Mask(
            ndarray::Array2::from_shape_vec((6, 8), bits).unwrap(),
        ))
    })
}

fn track() -> impl Strategy<Value = Vec<TrackFrame>> {
    let region = prop_oneof![
        1 => Just(TrackRegion::Absent),
        2 => coords().prop_map(TrackRegion::Box),
        2 => rle().prop_map(TrackRegion::Mask),
    ];
    (vec((1..9u64, region), 0..5), coords(), any::<bool>()).prop_map(|(list, first, by_time)| {
        let mut at = 0;
        let mut frames = vec![TrackFrame {
            at: FramePosition::Frame(0),
            region: TrackRegion::Box(first),
        }];
        for (step, region) in list {
            at += step;
            frames.push(TrackFrame {
                at: FramePosition::Frame(at),
                region,
            });
        }
        if by_time {
            for f in &mut frames {
                if let FramePosition::Frame(n) = f.at {
                    f.at = FramePosition::Time(n as f64 / 4.0);
                }
            }
        }
        frames
    })
}

fn saliency() -> impl Strategy<Value = Saliency> {
    vec(vec(0..5u8, 3), 0..6).prop_map(|scores| Saliency {
        clip_seconds: 2.0,
        clips: (0..scores.len() as u32).map(|i| 3 * i).collect(),
        scores: scores
            .into_iter()
            .map(|row| row.into_iter().map(f32::from).collect())
            .collect(),
    })
}

fn annotation() -> impl Strategy<Value = Annotation> {
    let target = prop_oneof![
        coords().prop_map(|b| ("region", Target::Box(b))),
        (spans(), option::of(saliency()))
            .prop_map(|(spans, saliency)| ("temporal", Target::Spans { spans, saliency })),
        track().prop_map(|t| ("mask", Target::Track(t))),
        (any::<i32>(), ".{0,8}").prop_map(|(n, s)| {
            (
                "count",
                Target::Value(json!({"n": n, "deep": [s, null, true]})),
            )
        }),
        Just(("count", Target::Value(Value::Null))),
    ];
    (target, "[a-zé\"\\\\ ]{0,12}", option::of(coords())).prop_map(
        |((task, target), query, prompt_box)| Annotation {
            task: task.into(),
            query: Some(format!("q{query}")),
            prompt_box,
            target,
        },
    )
}

fn media() -> impl Strategy<Value = Media> {
    let kind = prop_oneof![
        Just(MediaKind::Video),
        (1..120u32).prop_map(|n| MediaKind::Frames {
            fps: f64::from(n) / 4.0
        }),
    ];
    (
        kind,
        "[a-z0-9/_.]{1,20}",
        option::of(seconds(10)),
        any::<bool>(),
    )
        .prop_map(|(kind, path, start, size)| Media {
            kind,
            path,
            more: Vec::new(),
            range: start.map(|start| ClipRange {
                start: 0.0,
                end: start + 100_000.0,
            }),
            size: size.then_some([640, 480]),
            duration: None,
        })
}

fn sample() -> impl Strategy<Value = Sample> {
    (
        option::of("[a-z]{1,5}"),
        media(),
        vec(("\\PC{0,20}", "\\PC{0,20}"), 0..3),
        vec(annotation(), 1..4),
        any::<bool>(),
    )
        .prop_map(|(id, media, turns, annotations, calls)| {
            // Angle brackets in random text might make marks.
            let clean = |t: String| t.replace(['<', '['], "(");
            let mut turns: Vec<Turn> = turns
                .into_iter()
                .map(|(q, a)| Turn::new(format!("q{}", clean(q)), clean(a)))
                .collect();
            if calls {
                for a in &annotations {
                    turns.push(Turn::new("where?", format!("here <task:{}>", a.task)));
                }
                turns.push(Turn {
                    question: "at <box>?".into(),
                    boxes: vec![BoxCoords::Normalised([0.0, 0.0, 1.0, 0.5])],
                    options: vec!["a".into(), "b".into()],
                    correct: Some(1),
                    ..Turn::default()
                });
            }
            let mut sample = Sample {
                id,
                media: Some(media),
                turns,
                annotations,
                ..Sample::default()
            };
            sample.meta.insert("source".into(), json!({"x": [1, 2]}));
            sample
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn ten_thousand_rows_round_trip(sample in sample()) {
        prop_assert_eq!(sample.problems(), vec![]);
        let mut line = Vec::new();
        write_row(&sample, &mut line).unwrap();
        prop_assert_eq!(line.pop(), Some(b'\n'));
        prop_assert!(!line.contains(&b'\n'));
        let back = parse_row(&line, &RowLimits::default()).unwrap();
        prop_assert_eq!(back, sample);
    }
}

/// A row with every part in it.
fn full_row() -> Value {
    json!({
        "id": "r", "media": {"video": "x.mp4", "range": [0.5, 8.0], "size": [320, 240], "duration": 9.0},
        "turns": [
            {"question": "Where is it, from <box>?", "answer": "At <task:region> in <task:temporal>, <task:mask>, <task:count>.",
             "boxes": [{"box": [0.1, 0.1, 0.2, 0.2]}]},
            {"question": "Which?", "options": ["a", "b"], "correct": 1}
        ],
        "annotations": [
            {"task": "region", "query": "ball", "box_pixels": [10.0, 20.0, 50.0, 60.0]},
            {"task": "temporal", "spans": [[1.0, 2.5]], "saliency": {"clip_seconds": 2.0, "clips": [0, 1], "scores": [[1.0], [2.0]]}},
            {"task": "mask", "prompt_box": [0.0, 0.0, 0.5, 0.5], "track": [
                {"frame": 0, "box": [0.1, 0.1, 0.3, 0.3]},
                {"frame": 2, "rle": {"size": [2, 2], "counts": "13"}},
                {"frame": 3, "absent": true}]},
            {"task": "count", "value": 3}
        ]
    })
}

fn set(row: &mut Value, pointer: &str, value: Value) {
    *row.pointer_mut(pointer)
        .unwrap_or_else(|| panic!("{pointer}")) = value;
}

/// What a mutation must be reported as.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Json,
    Invalid,
    Utf8,
    TooLong,
    Media,
}

fn kind(fault: &RowFault) -> Kind {
    match fault {
        RowFault::Json { .. } => Kind::Json,
        RowFault::Invalid { .. } => Kind::Invalid,
        RowFault::Utf8 { .. } => Kind::Utf8,
        RowFault::TooLong { .. } => Kind::TooLong,
        _ => Kind::Media,
    }
}

/// The `n`-th bad row: its bytes and how it must be reported.
fn mutated(n: usize) -> (Vec<u8>, Kind) {
    let mut row = full_row();
    let leaves = [
        "/id",
        "/media/video",
        "/media/range",
        "/media/range/0",
        "/media/size/1",
        "/media/duration",
        "/turns/0/question",
        "/turns/0/answer",
        "/turns/0/boxes/0/box/2",
        "/turns/1/options",
        "/turns/1/correct",
        "/annotations/0/task",
        "/annotations/0/box_pixels",
        "/annotations/1/spans/0",
        "/annotations/1/spans/0/1",
        "/annotations/1/saliency/clips/0",
        "/annotations/1/saliency/scores/0/0",
        "/annotations/2/track/0",
        "/annotations/2/track/0/frame",
        "/annotations/2/track/1/rle/size/0",
        "/annotations/2/track/1/rle/counts",
        "/turns",
        "/annotations",
    ];
    let wrong = [json!({"x": 1}), json!([[]]), json!(true)];
    let invalid: [(&str, Value); 26] = [
        ("/media/range", json!([5.0, 1.0])),
        ("/media/range/0", json!(-1.0)),
        ("/media/range", json!([99.0, 100.0])),
        ("/media/duration", json!(-3.0)),
        ("/media/size", json!([0, 5])),
        ("/media/video", json!("")),
        ("/turns/0/boxes/0/box", json!([0.1, 0.1, 1.2, 0.2])),
        ("/turns/0/boxes/0/box", json!([0.5, 0.1, 0.2, 0.2])),
        ("/turns/0/question", json!("no box mark")),
        ("/turns/0/answer", json!("<task:region> only")),
        ("/turns/0/answer", json!("[<VID_PLH>]")),
        ("/turns/1/correct", json!(2)),
        ("/turns/1/options", json!(["one"])),
        (
            "/annotations/0/box_pixels",
            json!([10.0, 20.0, 500.0, 60.0]),
        ),
        ("/annotations/0/box_pixels", json!([10.0, 20.0, 10.0, 60.0])),
        ("/annotations/0/box_pixels", json!([1e39, 20.0, 1e39, 60.0])),
        ("/annotations/0/task", json!("two words")),
        ("/annotations/1/spans/0", json!([-1.0, 2.0])),
        ("/annotations/1/spans/0", json!([3.0, 2.0])),
        ("/annotations/1/spans/0", json!([3.0, 99.0])),
        ("/annotations/1/spans", json!([])),
        ("/annotations/1/saliency/clips", json!([0])),
        ("/annotations/1/saliency/scores/0/0", json!(-1.0)),
        ("/annotations/2/track/1/frame", json!(0)),
        ("/annotations/2/track/1/rle/counts", json!("99999")),
        (
            "/annotations/2/track/1/rle/size",
            json!([3, 100_000_000_000_u64]),
        ),
    ];
    let text = |row: &Value| row.to_string().into_bytes();
    match n % 8 {
        0 => {
            let i = n / 8;
            set(
                &mut row,
                leaves[i % leaves.len()],
                wrong[i / leaves.len() % 3].clone(),
            );
            (text(&row), Kind::Json)
        }
        1 | 2 => {
            let (at, value) = &invalid[(n / 8 * 2 + n % 2) % invalid.len()];
            set(&mut row, at, value.clone());
            // A number beyond f32 is refused while it is read.
            let beyond = value.to_string().contains("e+39") || value.to_string().contains("e39");
            (text(&row), if beyond { Kind::Json } else { Kind::Invalid })
        }
        3 => {
            // A literal that Python writes and JSON does not have.
            let literal = ["NaN", "Infinity", "-Infinity", "1e999", "None", "'x'", ""][n / 8 % 7];
            let line = row
                .to_string()
                .replacen("[1.0,2.5]", &format!("[{literal},2.5]"), 1);
            assert!(line.contains(&format!("[{literal},2.5]")));
            (line.into_bytes(), Kind::Json)
        }
        4 => {
            let mut line = text(&row);
            let at = 7 + n % (line.len() - 8);
            line.insert(at, [0xFF, 0xC0, 0x80][n / 8 % 3]);
            (line, Kind::Utf8)
        }
        5 => {
            let mut line = text(&row);
            line.truncate(1 + n * 7 % (line.len() - 1));
            (line, Kind::Json)
        }
        6 => {
            let places = [
                "",
                "/media",
                "/turns/0",
                "/annotations/0",
                "/annotations/2/track/0",
                "/annotations/1/saliency",
            ];
            let at = row.pointer_mut(places[n / 8 % places.len()]).unwrap();
            at[format!("extra_{n}")] = json!(1);
            (text(&row), Kind::Json)
        }
        _ => {
            if n < 8 {
                row["meta"] = json!({"x": "y".repeat(10 << 20)});
                return (text(&row), Kind::TooLong);
            }
            row["media"]["video"] = json!(format!("missing-{n}.mp4"));
            (text(&row), Kind::Media)
        }
    }
}

#[test]
fn a_thousand_mutated_rows_are_reported_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let good = full_row().to_string();
    let mut file = std::fs::File::create(&path).unwrap();
    let mut expected = Vec::new();
    for n in 0..1000 {
        let (line, kind) = mutated(n);
        assert!(!line.contains(&b'\n'));
        file.write_all(&line).unwrap();
        file.write_all(if n % 3 == 0 { b"\r\n\n" } else { b"\n" })
            .unwrap();
        // A good row behind each bad one shows that reading went on in the right place.
        writeln!(file, "{good}").unwrap();
        expected.push(kind);
    }
    drop(file);
    let mut reader = SampleReader::open(&path, RowLimits::default()).unwrap();
    let (mut faults, mut fine) = (Vec::new(), 0);
    let limits = MediaLimits::default();
    let mut last = 0;
    while let Some(row) = reader.next_row() {
        let (line, _, row) = row.unwrap();
        assert!(line > last);
        last = line;
        match row {
            Err(e) => {
                assert_eq!(e.line, line);
                let text = e.to_string();
                assert!(
                    text.len() < 2000 && text.contains(&format!(":{line}: ")),
                    "{text}"
                );
                faults.push(kind(&e.fault));
            }
            Ok(sample) => {
                let name = &sample.media.as_ref().unwrap().path;
                if name.starts_with("missing") {
                    let e = check_media(&sample, dir.path(), &limits).unwrap_err();
                    assert!(matches!(e, DataError::Io { .. }), "{e}");
                    faults.push(Kind::Media);
                } else {
                    fine += 1;
                }
            }
        }
    }
    assert_eq!(fine, 1000);
    for (n, (found, wanted)) in faults.iter().zip(&expected).enumerate() {
        assert_eq!(
            found,
            wanted,
            "row {n}: {}",
            String::from_utf8_lossy(&mutated(n).0)
        );
    }
    assert_eq!(faults.len(), 1000);
    // The iterator form says the same.
    let reader = SampleReader::open(&path, RowLimits::default()).unwrap();
    let bad = reader
        .filter(|r| matches!(r, Err(DataError::Row(_))))
        .count();
    assert_eq!(bad, expected.iter().filter(|k| **k != Kind::Media).count());
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 1u64;
    let mut byte = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    let good = full_row().to_string().into_bytes();
    for round in 0..3000 {
        let mut line = good.clone();
        if round % 2 == 0 {
            for _ in 0..1 + round % 5 {
                let at = usize::from(byte()) * 7 % line.len();
                line[at] = byte();
            }
        } else {
            line = (0..round % 200).map(|_| byte()).collect();
        }
        fuzzing::rows(&line);
    }
}

#[test]
fn the_file_is_held_against_the_row() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let limits = MediaLimits::default();
    let row = |media: Value, annotation: Value| -> Sample {
        let row = json!({"media": media, "annotations": [annotation]});
        parse_row(row.to_string().as_bytes(), &RowLimits::default()).unwrap()
    };
    let video = || json!({"video": "bouncing_shapes.mp4"});
    let fine = row(
        video(),
        json!({"task": "region", "query": "x", "box_pixels": [0, 0, 320, 240.5]}),
    );
    let (facts, problems) = check_media(&fine, &root, &limits).unwrap().unwrap();
    assert_eq!((facts.width, facts.height), (320, 240));
    assert_eq!(problems, []);
    let length = facts.duration;
    for (media, annotation, at) in [
        (
            json!({"video": "bouncing_shapes.mp4", "size": [240, 320]}),
            json!({"task": "region", "query": "x", "box": [0, 0, 1, 1]}),
            "media.size",
        ),
        (
            json!({"video": "bouncing_shapes.mp4", "duration": length + 9.0}),
            json!({"task": "region", "query": "x", "box": [0, 0, 1, 1]}),
            "media.duration",
        ),
        (
            json!({"video": "bouncing_shapes.mp4", "range": [length + 5.0, length + 9.0]}),
            json!({"task": "region", "query": "x", "box": [0, 0, 1, 1]}),
            "media.range",
        ),
        (
            video(),
            json!({"task": "region", "query": "x", "box_pixels": [0, 0, 322, 100]}),
            "annotations[0].box",
        ),
        (
            video(),
            json!({"task": "temporal", "query": "x", "spans": [[0, 1], [length + 1.0, length + 2.0]]}),
            "annotations[0].spans[1]",
        ),
        (
            video(),
            json!({"task": "mask", "query": "x", "track": [{"frame": 0, "box": [0, 0, 1, 1]}, {"frame": 99999, "absent": true}]}),
            "annotations[0].track[1]",
        ),
        (
            video(),
            json!({"task": "mask", "query": "x", "track": [{"time": 0.0, "rle": {"size": [2, 2], "counts": "13"}}]}),
            "annotations[0].track[0]",
        ),
    ] {
        let (_, problems) = check_media(&row(media, annotation), &root, &limits)
            .unwrap()
            .unwrap();
        let places: Vec<_> = problems.iter().map(|p| p.at.as_str()).collect();
        assert_eq!(places, [at]);
    }
    let mut summary = Summary::default();
    summary.add(&fine, Some(&facts));
    let text = summary.to_string();
    assert!(
        text.contains("320x240 1") && text.contains("region 1"),
        "{text}"
    );
}

#[test]
fn every_problem_of_a_row_is_listed() {
    let row = json!({
        "media": {"image": "a.jpg", "range": [2, 1]},
        "turns": [{"question": " ", "answer": "<box>"}],
        "annotations": [{"task": "temporal", "spans": [[2, 1]]}, {"task": "region", "box": [0, 0, 2, 2]}]
    });
    let sample: Sample = serde_json::from_value(row).unwrap();
    let problems = sample.problems();
    let places: Vec<_> = problems.iter().map(|p| p.at.as_str()).collect();
    assert_eq!(
        places,
        [
            "media.range",
            "media.range",
            "turns[0].question",
            "turns[0].answer",
            "annotations[0].spans",
            "annotations[0].spans[0]",
            "annotations[1].box",
            "annotations[0]",
            "annotations[1]",
        ]
    );
}
