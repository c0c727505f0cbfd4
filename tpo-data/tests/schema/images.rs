//! Rows of several images.

use std::path::Path;

use serde_json::{Value, json};
use tpo_data::schema::{Media, RowLimits, Sample, Summary, check_media, parse_row, write_row};
use tpo_data::{DataError, MediaLimits};

fn row(value: &Value) -> Sample {
    parse_row(value.to_string().as_bytes(), &RowLimits::default()).unwrap()
}

fn problems(value: &Value) -> Vec<String> {
    let problems = row(value).problems();
    problems.iter().map(ToString::to_string).collect()
}

fn picture(dir: &Path, name: &str, side: u32) {
    let picture = image::RgbImage::from_pixel(side, side, image::Rgb([9; 3]));
    picture.save(dir.join(name)).unwrap();
}

#[test]
fn several_images_round_trip() {
    let value = json!({
        "media": {"images": ["a.png", "b.png", "c.png"]},
        "turns": [{"question": "What changes?", "options": ["x", "y"], "correct": 1}],
    });
    let sample = row(&value);
    assert_eq!(sample.problems(), []);
    let media = sample.media.as_ref().unwrap();
    assert_eq!(media.path, "a.png");
    assert_eq!(media.more, ["b.png", "c.png"]);
    assert!(!media.is_video());
    let mut line = Vec::new();
    write_row(&sample, &mut line).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&line).unwrap(), value);
    // One of a list is an image.
    let one = row(&json!({"media": {"images": ["a.png"]}, "turns": [{"question": "What?"}]}));
    assert_eq!(one.media, Some(Media::image("a.png")));
    for (media, why) in [
        (json!({"images": []}), "`images` is empty"),
        (
            json!({"images": ["a.png"], "image": "b.png"}),
            "exactly one of them",
        ),
        (
            json!({"images": ["a.png"], "fps": 2}),
            "`fps` goes with `frames` only",
        ),
        (json!({"images": "a.png"}), "expected a sequence"),
    ] {
        let line = json!({"media": media, "turns": [{"question": "What?"}]}).to_string();
        let fault = parse_row(line.as_bytes(), &RowLimits::default()).unwrap_err();
        assert!(fault.to_string().contains(why), "{fault}");
    }
}

#[test]
fn a_row_shows_so_many_images() {
    let of = |images: Vec<&str>| {
        problems(&json!({"media": {"images": images}, "turns": [{"question": "What?"}]}))
    };
    assert!(of(vec!["a.png"; 256]).is_empty());
    assert_eq!(
        of(vec!["a.png"; 257]),
        ["media.images: 257 images; a row shows at most 256"]
    );
    assert_eq!(
        of(vec!["a.png", " "]),
        ["media: a path is empty or holds a zero byte"]
    );
}

#[test]
fn every_image_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let limits = MediaLimits::default();
    picture(dir.path(), "a.png", 4);
    picture(dir.path(), "b.png", 6);
    let of =
        |names: &[&str]| row(&json!({"media": {"images": names}, "turns": [{"question": "?"}]}));
    let both = of(&["a.png", "b.png"]);
    let (first, problems) = check_media(&both, dir.path(), &limits).unwrap().unwrap();
    assert_eq!(((first.width, first.height), problems), ((4, 4), vec![]));
    let mut summary = Summary::default();
    summary.add(&both, Some(&first));
    assert_eq!(summary.media["images"], 1);
    let error = check_media(&of(&["a.png", "c.png"]), dir.path(), &limits).unwrap_err();
    let DataError::Io { path, .. } = &error else {
        panic!("{error}")
    };
    assert!(path.ends_with("c.png"), "{error}");
}
