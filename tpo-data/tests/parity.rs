//! Values of the reference implementation: torchvision's transforms and the frame sampling.

mod common;

use common::stored::{Stored, fixture, float, frames, json};
use safetensors::SafeTensors;
use serde_json::Value;
use tpo_data::sampling::frame_indices;
use tpo_data::{Frame, FrameSampling, ImageTransform};

#[test]
fn frame_indices_equal_the_reference() {
    let fixture = json("frame_indices.json");
    let cases = fixture["frame_indices"].as_array().unwrap();
    assert_eq!(cases.len(), 22);
    for case in cases {
        let sampling: FrameSampling = case["sample"].as_str().unwrap().parse().unwrap();
        let got = frame_indices(
            sampling,
            case["num_frames"].as_u64().unwrap() as usize,
            case["vlen"].as_u64().unwrap() as usize,
            case["fps"].as_f64().unwrap_or(f64::NAN),
        )
        .unwrap();
        let expected: Vec<usize> = serde_json::from_value(case["out"].clone()).unwrap();
        assert_eq!(got, expected, "{case}");
    }
}

/// LLaVA-OneVision: numpy's linspace of its demo and evaluation, and its training's frame a second.
#[test]
fn onevision_frames_equal_the_reference() {
    let fixture = json("onevision_frames.json");
    let number = |case: &Value, key: &str| case[key].as_u64().unwrap() as usize;
    let check = |sampling, case: &Value, wanted: &str| {
        let fps = case["fps"].as_f64().unwrap_or(f64::NAN);
        let got = frame_indices(sampling, number(case, wanted), number(case, "total"), fps);
        let expected: Vec<usize> = serde_json::from_value(case["index"].clone()).unwrap();
        assert_eq!(got.unwrap(), expected, "{case}");
    };
    let cases = |key: &str| fixture[key].as_array().unwrap().clone();
    assert_eq!(
        (cases("frames").len(), cases("train_frames").len()),
        (11, 6)
    );
    for case in cases("frames") {
        check(FrameSampling::Linspace, &case, "frames");
    }
    for case in cases("train_frames") {
        let sampling = if case["force_sample"].as_bool().unwrap() {
            FrameSampling::Linspace
        } else {
            FrameSampling::UpTo(case["video_fps"].as_f64().unwrap())
        };
        check(sampling, &case, "frames_upbound");
    }
}

/// Largest difference, and the share of values that differ at all, on every `step` [rows,
/// columns].
fn compare(
    transform: &ImageTransform,
    frames: &[Frame],
    step: [usize; 2],
    expected: &Stored,
) -> (f32, f64) {
    let (values, [t, 3, h, w]) = transform.apply(frames).unwrap() else {
        panic!("three channels");
    };
    assert_eq!(
        expected.shape,
        [t, 3, h.div_ceil(step[0]), w.div_ceil(step[1])]
    );
    let mut expected = expected.values.iter();
    let (mut largest, mut different, mut count) = (0.0f32, 0, 0);
    for plane in values.chunks_exact(h * w) {
        for row in plane.chunks_exact(w).step_by(step[0]) {
            for v in row.iter().step_by(step[1]) {
                let d = (v - expected.next().unwrap()).abs();
                largest = largest.max(d);
                different += usize::from(d > 1e-4);
                count += 1;
            }
        }
    }
    (largest, different as f64 / count as f64)
}

#[test]
fn transforms_equal_torchvision() {
    let bytes = fixture("preprocess.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let atol = json("preprocess.json")["tolerance"]["atol"]
        .as_f64()
        .unwrap() as f32;
    let small = frames(&tensors, "in.frames_u8", 1);
    let big = frames(&tensors, "in.big_lowres_u8", 8);

    for (name, antialias) in [("aa", true), ("noaa", false)] {
        let vision = ImageTransform::vision().with_antialias(antialias);
        let mask = ImageTransform::mask().with_antialias(antialias);
        for (out, transform, input, step) in [
            ("vision", &vision, &small, [5, 7]),
            ("vision_down", &vision, &big, [3, 3]),
            ("mask", &mask, &small, [37, 41]),
        ] {
            let expected = float(&tensors, &format!("out.{out}.{name}"));
            let (largest, different) = compare(transform, input, step, &expected);
            println!("{out}.{name}: largest difference {largest}, {different} differ");
            assert!(largest <= atol, "{out}.{name}: {largest}");
            // 8-bit rounding of a value half way may fall on the other side: at most 1 %.
            assert!(different <= 0.01, "{out}.{name}: {different} differ");
            if out == "mask" {
                assert!(largest <= 1e-5, "{out}.{name}: {largest}");
            }
        }
    }
    let expected = float(&tensors, "out.region");
    let (largest, _) = compare(&ImageTransform::region(), &small, [2, 2], &expected);
    assert!(largest <= 1e-6, "region: {largest}");
}
