//! Pixels of SigLIP and LLaVA-OneVision, equal to those of transformers.

mod common;

use common::stored::{fixture, float, frames, json};
use safetensors::SafeTensors;
use tpo_core::geometry::{Packing, Tiling, UnpadRule};
use tpo_core::traits::VisualShape;
use tpo_data::{Frame, ImageTransform};

/// Asserts that values and shape are those stored, to the bit.
fn assert_bits(tensors: &SafeTensors, key: &str, (values, shape): (Vec<f32>, [usize; 4])) {
    let stored = float(tensors, key);
    assert_eq!(shape[4 - stored.shape.len()..], stored.shape[..], "{key}");
    let differ = values.iter().zip(&stored.values);
    let differ = differ.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!((values.len(), differ), (stored.values.len(), 0), "{key}");
}

/// A frame of a uint8 tensor `[3, height, width]`.
fn frame(tensors: &SafeTensors, key: &str) -> Frame {
    let view = tensors.tensor(key).unwrap();
    let &[3, h, w] = view.shape() else {
        panic!("{:?}", view.shape());
    };
    let byte = |i: usize| view.data()[i % 3 * h * w + i / 3];
    Frame::from_rgb(w, h, (0..3 * h * w).map(byte).collect()).unwrap()
}

#[test]
fn siglip_pixels_equal_transformers_to_the_bit() {
    let bytes = fixture("siglip_preprocess.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let small = ImageTransform::siglip().with_size([28, 28]);
    for i in 0..9 {
        let found = small.apply(&[frame(&tensors, &format!("in.{i}"))]).unwrap();
        assert_bits(&tensors, &format!("out.{i}.pixel_values"), found);
    }
    let big = frame(&tensors, "in.big0");
    let (values, shape) = ImageTransform::siglip().apply(&[big]).unwrap();
    assert_eq!(shape, [1, 3, 384, 384]);
    let resized = tensors.tensor("out.big0.resized").unwrap();
    let expected = resized
        .data()
        .iter()
        .map(|b| (f32::from(*b) - 127.5) / 127.5);
    assert!(values.into_iter().eq(expected));
}

#[test]
fn tiles_squares_and_frames_equal_transformers_to_the_bit() {
    let bytes = fixture("llava_onevision_preprocess.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let json = json("llava_onevision_preprocess.json");
    let transform = ImageTransform::siglip().with_size([28, 28]);
    let pinpoints = json["config"]["image_grid_pinpoints"].clone();
    let tiling = Tiling {
        tile: 28,
        pinpoints: serde_json::from_value(pinpoints).unwrap(),
    };
    for (i, best) in json["best_resolution"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let image = frame(&tensors, &format!("in.image.{i}"));
        let canvas = tiling
            .canvas((image.width() as u32, image.height() as u32))
            .unwrap();
        assert_eq!(serde_json::json!(canvas.size), *best, "{i}");
        let found = transform.tiles(&image, &tiling).unwrap();
        assert_bits(&tensors, &format!("out.image.{i}.pixel_values"), found);
    }
    let several: Vec<Frame> = (0..3)
        .map(|i| frame(&tensors, &format!("in.multi.{i}")))
        .collect();
    let (values, shape) = transform.squares(&several).unwrap();
    assert_eq!(shape, [3, 3, 28, 28]);
    for (i, values) in values.chunks_exact(3 * 28 * 28).enumerate() {
        let found = (values.to_vec(), [1, 3, 28, 28]);
        assert_bits(&tensors, &format!("out.multi.{i}.pixel_values"), found);
    }
    let video = transform.apply(&frames(&tensors, "in.video", 1)).unwrap();
    assert_bits(&tensors, "out.video.pixel_values_videos", video);
}

#[test]
fn rows_of_real_sizes_equal_transformers() {
    let json = json("llava_onevision_preprocess.json");
    let packing = Packing::one_vision(UnpadRule::HuggingFace);
    let table = json["token_table"].as_array().unwrap();
    assert_eq!(table.len(), 43);
    for row in table {
        let [height, width]: [u32; 2] = serde_json::from_value(row["size_hw"].clone()).unwrap();
        let size = (width, height);
        let pictures = packing.tiling.canvas(size).unwrap().pictures();
        assert_eq!(row["tiles"], pictures, "{row}");
        let image = VisualShape {
            pictures,
            ..VisualShape::image(size)
        };
        assert_eq!(row["tokens"], packing.rows(&image).unwrap(), "{row}");
    }
    for (frames, rows) in json["video_tokens"].as_object().unwrap() {
        let video = VisualShape::video((1, 1), frames.parse().unwrap());
        assert_eq!(*rows, packing.rows(&video).unwrap());
    }
}

#[test]
fn thin_and_large_pictures_take_no_more_memory_than_their_tiles() {
    let red = |w: usize, h: usize| Frame::from_rgb(w, h, [255, 0, 0].repeat(w * h)).unwrap();
    let transform = ImageTransform::siglip();
    let tiling = Tiling::up_to(384, 6);
    for (w, h, pictures, line) in [(3000, 1, 2, 384), (1, 3000, 2, 1), (3840, 2160, 25, 2304)] {
        let (values, shape) = transform.tiles(&red(w, h), &tiling).unwrap();
        assert_eq!(shape, [pictures, 3, 384, 384], "{w}x{h}");
        // The red of the tiles of the canvas, of which each is a part.
        let canvas = tiling.canvas((w as u32, h as u32)).unwrap();
        let reds = values[3 * 384 * 384..]
            .chunks_exact(384 * 384)
            .step_by(3)
            .flatten();
        let red = reds.filter(|v| **v == 1.0).count();
        assert_eq!(red, line * canvas.picture[0] as usize, "{w}x{h}");
    }
    // Canvases of 2^34 pixels that are never made: the mean, and the picture's line in the middle.
    let long = 1 << 17;
    let (values, shape) = transform
        .squares(&[red(long, 1), red(1, long), red(9, 9)])
        .unwrap();
    assert_eq!(shape, [3, 3, 384, 384]);
    let mean = (127.0 - 127.5) / 127.5;
    for picture in values[..2 * 3 * 384 * 384].chunks_exact(3 * 384 * 384) {
        assert!(picture.iter().all(|v| *v == mean));
    }
    assert!(
        values[2 * 3 * 384 * 384..][..384 * 384]
            .iter()
            .all(|v| *v == 1.0)
    );
    let (values, _) = transform.squares(&[red(800, 100)]).unwrap();
    let red = values[..384 * 384].iter().filter(|v| **v == 1.0).count();
    assert!((40 * 384..50 * 384).contains(&red), "{red}");
}

#[test]
fn transforms_that_have_no_tiles_are_errors() {
    let frame = Frame::from_rgb(2, 1, vec![0; 6]).unwrap();
    let tiling = Tiling::up_to(384, 6);
    let why =
        |found: Result<(Vec<f32>, [usize; 4]), tpo_data::DataError>| found.unwrap_err().to_string();
    let siglip = ImageTransform::siglip();
    let vision = ImageTransform::vision();
    assert!(why(vision.tiles(&frame, &tiling)).contains("384x384"));
    let other = Tiling {
        pinpoints: vec![[384, 400]],
        ..tiling.clone()
    };
    assert!(why(siglip.tiles(&frame, &other)).contains("[384, 400]"));
    assert!(why(vision.squares(std::slice::from_ref(&frame))).contains("Uint8"));
    assert!(why(siglip.squares(&[])).contains("no frames"));
    assert!(why(siglip.clone().with_antialias(false).apply(&[frame])).contains("antialias"));
    let json = serde_json::to_string(&siglip).unwrap();
    assert_eq!(
        serde_json::from_str::<ImageTransform>(&json).unwrap(),
        siglip
    );
}
