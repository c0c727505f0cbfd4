#![recursion_limit = "256"]
//! Every public format, on a sample of it written here.

#[path = "readers/benchmarks.rs"]
mod benchmarks;
#[path = "common/fuzzing.rs"]
mod fuzzing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tpo_core::geometry::{Mask, Rle};
use tpo_data::DataError;
use tpo_data::readers::{ConvertOptions, Format, convert};
use tpo_data::schema::{
    BoxCoords, FramePosition, MediaKind, Sample, Target, TrackFrame, TrackRegion,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
    fn json(&self, name: &str, value: Value) -> PathBuf {
        self.text(name, &value.to_string())
    }
}

/// Converts; every sample must be sound.
fn read(format: Format, path: &Path, options: &ConvertOptions) -> Vec<Result<Sample, DataError>> {
    convert(format, path, options)
        .unwrap()
        .inspect(|row| {
            if let Ok(sample) = row {
                assert_eq!(sample.problems(), [], "{format}: {sample:?}");
            }
        })
        .collect()
}

fn good(format: Format, path: &Path, options: &ConvertOptions) -> Vec<Sample> {
    let rows = read(format, path, options);
    rows.into_iter().map(|r| r.unwrap()).collect()
}

fn second(path: PathBuf) -> ConvertOptions {
    ConvertOptions {
        second: Some(path),
        media_prefix: "data/".into(),
        ..ConvertOptions::default()
    }
}

fn spans(sample: &Sample) -> Vec<[f64; 2]> {
    match &sample.annotations[0].target {
        Target::Spans { spans, .. } => spans.clone(),
        other => panic!("{other:?}"),
    }
}

fn query(sample: &Sample) -> &str {
    sample.annotations[0].query.as_deref().unwrap()
}

fn media(sample: &Sample) -> &str {
    &sample.media.as_ref().unwrap().path
}

fn track(sample: &Sample) -> &[TrackFrame] {
    match &sample.annotations[0].target {
        Target::Track(frames) => frames,
        other => panic!("{other:?}"),
    }
}

#[test]
fn qvhighlights() {
    let f = Folder::new();
    let path = f.text(
        "train.jsonl",
        "{\"qid\": 8737, \"query\": \"A family plays. \", \"duration\": 126, \"vid\": \"bP5K_660.0_810.0\", \
         \"relevant_windows\": [[0, 16]], \"relevant_clip_ids\": [0, 1], \"saliency_scores\": [[4, 1, 1], [4, 2, 1]]}\n\
         \n{\"qid\": \"x\", \"query\": \"Unlabelled\", \"duration\": 150, \"vid\": \"v\"}\n\
         {\"qid\": 3, \"query\"\n",
    );
    let rows = read(Format::QvHighlights, &path, &ConvertOptions::default());
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), query(first)),
        ("bP5K_660.0_810.0.mp4", "A family plays.")
    );
    assert_eq!(spans(first), [[0.0, 16.0]]);
    assert_eq!(first.media.as_ref().unwrap().duration, Some(126.0));
    let Target::Spans {
        saliency: Some(s), ..
    } = &first.annotations[0].target
    else {
        panic!()
    };
    assert_eq!(
        (s.clip_seconds, &s.clips[..], s.scores[1].clone()),
        (2.0, &[0, 1][..], vec![4.0, 2.0, 1.0])
    );
    let unlabelled = rows[1].as_ref().unwrap();
    assert_eq!(unlabelled.turns[0].question, "Unlabelled");
    let error = rows[2].as_ref().unwrap_err().to_string();
    assert!(error.contains("line 4"), "{error}");
}

#[test]
fn charades_as_text_and_as_json_lines() {
    let f = Folder::new();
    let lengths = f.text(
        "v1.csv",
        "id,subject,script,length\n3MSZA,X,\"a, \"\"b\"\"\",30.96\n",
    );
    let options = ConvertOptions {
        durations: Some(lengths),
        ..ConvertOptions::default()
    };
    let text = f.text(
        "test.txt",
        "3MSZA 24.3 30.4##person turn a light on.\nbad line\n",
    );
    let rows = read(Format::CharadesJsonl, &text, &options);
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), query(first)),
        ("3MSZA.mp4", "person turn a light on.")
    );
    assert_eq!(spans(first), [[24.3, 30.4]]);
    assert_eq!(first.media.as_ref().unwrap().duration, Some(30.96));
    assert!(rows[1].as_ref().unwrap_err().to_string().contains("line 2"));
    let lines = f.json("test.jsonl", json!({"qid": 1, "vid": "AO8RW", "duration": 33.67, "query": "q", "relevant_windows": [[0, 6.9]]}));
    let rows = good(Format::CharadesJsonl, &lines, &ConvertOptions::default());
    assert_eq!(
        (media(&rows[0]), spans(&rows[0])),
        ("AO8RW.mp4", vec![[0.0, 6.9]])
    );
}

#[test]
fn captions_by_video() {
    let f = Folder::new();
    let path = f.json("train.json", json!({
        "v_Q": {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81]], "sentences": [" A woman. ", "She moves."]},
        "v_bad": {"duration": 5, "timestamps": [[0, 1]], "sentences": []}
    }));
    let rows = read(
        Format::ActivityNetCaptions,
        &path,
        &ConvertOptions::default(),
    );
    assert_eq!(rows.len(), 3);
    let second = rows[1].as_ref().unwrap();
    assert_eq!((media(second), query(second)), ("v_Q.mp4", "She moves."));
    assert_eq!(spans(second), [[17.37, 60.81]]);
    assert!(rows[2].as_ref().unwrap_err().to_string().contains("v_bad"));

    let tacos = f.json("tacos.json", json!({
        "s13-d21.avi": {"timestamps": [[50, 150]], "fps": 25.0, "num_frames": 1000, "sentences": ["He peels."]}
    }));
    let rows = good(Format::Tacos, &tacos, &ConvertOptions::default());
    assert_eq!(
        (media(&rows[0]), spans(&rows[0])),
        ("s13-d21.avi", vec![[2.0, 6.0]])
    );
    assert_eq!(rows[0].media.as_ref().unwrap().duration, Some(40.0));
}

#[test]
fn didemo_takes_the_majority() {
    let f = Folder::new();
    let path = f.json("train_data.json", json!([
        {"annotation_id": 7, "video": "a@b.mov", "description": "dog", "times": [[1, 1], [0, 1], [0, 1], [5, 5]], "num_segments": 6},
        {"annotation_id": 8, "video": "c.avi", "description": "cat", "times": [[5, 5]]},
        {"video": "c.avi", "description": "none", "times": []}
    ]));
    let rows = read(Format::DiDeMo, &path, &ConvertOptions::default());
    assert_eq!(spans(rows[0].as_ref().unwrap()), [[0.0, 10.0]]);
    assert_eq!(media(rows[0].as_ref().unwrap()), "a@b.mov");
    assert_eq!(spans(rows[1].as_ref().unwrap()), [[25.0, 30.0]]);
    assert!(rows[2].is_err());
}

#[test]
fn queryd_and_hirest() {
    let f = Folder::new();
    let captions = f.json(
        "captions.json",
        json!({"video-abc": [["a", "man", "walks"], "he sits"], "video-x": [["y"]]}),
    );
    let times = f.json("times.json", json!({"video-abc": [[1.5, 3.0], [4.0, 6.5]]}));
    let rows = read(Format::QuerYd, &captions, &second(times));
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), query(first)),
        ("data/abc.mp4", "a man walks")
    );
    assert_eq!(spans(rows[1].as_ref().unwrap()), [[4.0, 6.5]]);
    assert!(rows[2].is_err());
    assert!(convert(Format::QuerYd, &captions, &ConvertOptions::default()).is_err());

    let path = f.json("hirest.json", json!({
        "Make tea": {
            "v1.mp4": {"relevant": true, "clip": true, "v_duration": 100.0, "bounds": [10, 60],
                       "steps": [{"index": 0, "heading": "boil water", "absolute_bounds": [10, 30]}]},
            "v2.mp4": {"relevant": false, "clip": false, "v_duration": 5, "bounds": [], "steps": []}
        }
    }));
    let rows = good(Format::HiRest, &path, &ConvertOptions::default());
    let found: Vec<_> = rows.iter().map(|r| (query(r), spans(r)[0])).collect();
    assert_eq!(
        found,
        [("Make tea", [10.0, 60.0]), ("boil water", [10.0, 30.0])]
    );
}

#[test]
fn refcoco_in_both_layouts() {
    let f = Folder::new();
    let refs = f.json("refs.json", json!([
        {"ref_id": 5, "ann_id": 11, "image_id": 2, "split": "train", "category_id": 1,
         "sentences": [{"sent": "left man", "tokens": ["left", "man"]}, {"sent": "guy"}]},
        {"ref_id": 6, "ann_id": 99, "image_id": 2, "split": "train", "sentences": [{"sent": "x"}]},
        {"ref_id": 7, "ann_id": 11, "image_id": 2, "split": "val", "sentences": [{"sent": "y"}]}
    ]));
    let instances = json!({
        "info": {}, "images": [{"id": 2, "file_name": "COCO_1.jpg", "width": 640, "height": 480}, {"id": 3, "file_name": "b.jpg"}],
        "annotations": [{"id": 11, "image_id": 2, "bbox": [10.0, 20.0, 30.0, 40.0], "segmentation": [[1, 2]]}, {"id": 12, "image_id": 3, "bbox": [0, 0, 1, 1]}]
    });
    let mut options = second(f.json("instances.json", instances));
    options.split = Some("train".into());
    let rows = read(Format::RefCoco, &refs, &options);
    assert_eq!(rows.len(), 3);
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), query(first)),
        ("data/COCO_1.jpg", "left man")
    );
    assert_eq!(first.media.as_ref().unwrap().size, Some([640, 480]));
    assert_eq!(first.meta["split"], "train");
    assert_eq!(
        first.annotations[0].target,
        Target::Box(BoxCoords::Pixels([10.0, 20.0, 40.0, 60.0]))
    );
    assert!(rows[2].as_ref().unwrap_err().to_string().contains("99"));

    let coco = f.json("finetune.json", json!({
        "annotations": [{"image_id": 0, "bbox": [1, 2, 3, 4]}, {"image_id": 9, "bbox": [1, 2, 3, 4]}],
        "images": [{"id": 0, "file_name": "a.jpg", "caption": "the cup", "height": 10, "width": 20}]
    }));
    let rows = read(Format::MdetrRefCoco, &coco, &ConvertOptions::default());
    assert_eq!(query(rows[0].as_ref().unwrap()), "the cup");
    assert!(rows[1].is_err());
}

#[test]
fn visual_genome() {
    let f = Folder::new();
    let path = f.json("region_descriptions.json", json!([
        {"id": 1, "regions": [
            {"region_id": 1382, "width": 82, "height": 139, "image_id": 1, "phrase": "the clock is green", "x": 421, "y": 57},
            {"region_id": 1383, "width": 8, "height": 9, "phrase": "shade", "x": 0, "y": 0}]}
    ]));
    let rows = good(Format::VisualGenome, &path, &ConvertOptions::default());
    assert_eq!((media(&rows[1]), query(&rows[1])), ("1.jpg", "shade"));
    assert_eq!(
        rows[0].annotations[0].target,
        Target::Box(BoxCoords::Pixels([421.0, 57.0, 503.0, 196.0]))
    );
}

fn mask(bits: [u8; 4]) -> Rle {
    Rle::encode(&Mask(ndarray::arr2(&[
        [bits[0] > 0, bits[1] > 0],
        [bits[2] > 0, bits[3] > 0],
    ])))
}

fn shown(rle: &Rle) -> Value {
    serde_json::to_value(rle).unwrap()
}

#[test]
fn sa_v_begins_where_the_object_does() {
    let f = Folder::new();
    let (none, one) = (shown(&mask([0; 4])), shown(&mask([0, 1, 0, 1])));
    f.json("ann/sav_000001_manual.json", json!({
        "video_id": "sav_000001", "video_duration": 20.125, "video_frame_count": 483.0, "video_height": 848.0,
        "video_width": 480.0, "video_split": "train", "masklet": [[one, none], [one, one], [none, one]],
        "masklet_id": [0, 4], "masklet_num": 2, "masklet_type": ["manual", "manual"]
    }));
    let rows = good(Format::SaV, &f.path("ann"), &ConvertOptions::default());
    assert_eq!(rows.len(), 2);
    assert_eq!(media(&rows[0]), "sav_000001.mp4");
    assert_eq!(rows[0].media.as_ref().unwrap().range, None);
    assert_eq!(track(&rows[0])[2].region, TrackRegion::Absent);
    assert_eq!(
        rows[0].annotations[0].prompt_box,
        Some(BoxCoords::Pixels([1.0, 0.0, 2.0, 2.0]))
    );
    let second = &rows[1];
    assert_eq!(second.id.as_deref(), Some("sav_000001:4"));
    assert_eq!(track(second)[0].at, FramePosition::Frame(4));
    assert_eq!(
        second.media.as_ref().unwrap().range.unwrap().start,
        4.0 / 24.0
    );
}

#[test]
fn mevis_joins_masks() {
    let f = Folder::new();
    let meta = f.json(
        "meta_expressions.json",
        json!({"videos": {"vid": {
            "vid_id": 1, "frames": ["00000", "00001"], "expressions": {
                "0": {"exp": "both dogs ", "obj_id": [0, 1], "anno_id": [10, 11]},
                "1": {"exp": "one", "obj_id": [0], "anno_id": [10]},
                "2": {"exp": "lost", "obj_id": [0], "anno_id": [12]}}},
            "test": {"frames": ["00000"], "expressions": {"0": {"exp": "no masks"}}}
        }}),
    );
    let dict = f.json("mask_dict.json", json!({
        "10": [shown(&mask([1, 0, 0, 0])), null], "11": [shown(&mask([0, 0, 0, 1])), shown(&mask([0, 1, 0, 0]))]
    }));
    let rows = read(Format::MeViS, &meta, &second(dict.clone()));
    // An unreadable expression costs its video, whose rows belong together.
    assert!(
        rows.iter()
            .any(|r| r.as_ref().is_err_and(|e| e.to_string().contains("`12`")))
    );
    let meta = f.json(
        "meta2.json",
        json!({"videos": {"vid": {"frames": ["00000", "00001"], "expressions": {
        "0": {"exp": "both dogs ", "anno_id": [10, 11]}, "1": {"exp": "one", "anno_id": ["10"]}}},
        "test": {"frames": ["00000"], "expressions": {"0": {"exp": "no masks"}}}}}),
    );
    // Members come in the order of the file, which `json!` sorts.
    let rows = good(Format::MeViS, &meta, &second(dict));
    assert_eq!(rows[0].turns[0].question, "no masks");
    assert_eq!(
        (query(&rows[1]), media(&rows[1])),
        ("both dogs", "data/vid")
    );
    let kind = rows[1].media.as_ref().unwrap().kind;
    assert_eq!(kind, MediaKind::Frames { fps: 6.0 });
    let joined = TrackRegion::Mask(mask([1, 0, 0, 1]));
    assert_eq!(track(&rows[1])[0].region, joined);
    let single = TrackRegion::Mask(mask([0, 1, 0, 0]));
    assert_eq!(track(&rows[1])[1].region, single);
    assert_eq!(track(&rows[2])[1].region, TrackRegion::Absent);
}

fn write_palette(path: &Path, width: u32, pixels: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, width, pixels.len() as u32 / width);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Four);
    encoder.set_palette(vec![0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9]);
    let rows = pixels.chunks(width as usize).flat_map(|row| {
        row.chunks(2)
            .map(|p| p[0] << 4 | p.get(1).copied().unwrap_or(0))
    });
    let data: Vec<u8> = rows.collect();
    encoder
        .write_header()
        .unwrap()
        .write_image_data(&data)
        .unwrap();
}

#[test]
fn ref_youtube_vos_reads_indexed_masks() {
    let f = Folder::new();
    write_palette(&f.path("Annotations/abc/00000.png"), 3, &[0, 2, 1, 0, 2, 0]);
    write_palette(&f.path("Annotations/abc/00005.png"), 3, &[0; 6]);
    let meta = f.json("meta.json", json!({"videos": {
        "abc": {"expressions": {"0": {"exp": "a fish", "obj_id": "2"}, "1": {"exp": "b", "obj_id": "1"}}, "frames": ["00000", "00005"]},
        "gone": {"expressions": {"0": {"exp": "a", "obj_id": "1"}}, "frames": ["00000"]}
    }}));
    let rows = read(Format::RefYouTubeVos, &meta, &second(f.path("Annotations")));
    let first = rows[0].as_ref().unwrap();
    let expected = Mask(ndarray::arr2(&[[false, true, false], [false, true, false]]));
    assert_eq!(
        track(first)[0].region,
        TrackRegion::Mask(Rle::encode(&expected))
    );
    assert_eq!(track(first)[1].region, TrackRegion::Absent);
    assert_eq!(rows.len(), 3);
    assert!(rows[2].is_err());
    // A true-colour picture is not a mask.
    image::RgbImage::new(3, 2)
        .save(f.path("Annotations/abc/00000.png"))
        .unwrap();
    let rows = read(Format::RefYouTubeVos, &meta, &second(f.path("Annotations")));
    assert!(
        rows[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("indexed or grey")
    );
}

#[test]
fn lasot_and_got10k() {
    let f = Folder::new();
    f.text(
        "airplane/airplane-1/groundtruth.txt",
        "367,101,41,16\n366,103,45,16\n0,0,0,0\n1,1,5,5\n",
    );
    f.text("airplane/airplane-1/full_occlusion.txt", "0,0,0,1");
    f.text("airplane/airplane-1/out_of_view.txt", "0,0,0,0");
    f.text(
        "airplane/airplane-1/nlp.txt",
        "white airplane landing on ground\n",
    );
    f.text("airplane/airplane-2/groundtruth.txt", "1,2,3,4,junk\n");
    let rows = read(Format::LaSot, f.0.path(), &ConvertOptions::default());
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), query(first)),
        (
            "airplane/airplane-1/img",
            "white airplane landing on ground"
        )
    );
    assert_eq!(
        first.annotations[0].prompt_box,
        Some(BoxCoords::Pixels([367.0, 101.0, 408.0, 117.0]))
    );
    let absent: Vec<bool> = track(first)
        .iter()
        .map(|t| t.region == TrackRegion::Absent)
        .collect();
    assert_eq!(absent, [false, false, true, true]);
    assert!(rows[1].as_ref().unwrap_err().to_string().contains("line 1"));

    let f = Folder::new();
    f.text(
        "GOT-10k_Train_000001/groundtruth.txt",
        "347.0000,443.0000,429.0000,272.0000\n349,443,429,274\n",
    );
    f.text("GOT-10k_Train_000001/absence.label", "0\n1\n");
    f.text(
        "GOT-10k_Train_000001/meta_info.ini",
        "[METAINFO]\nanno_fps: 10Hz\nobject_class: anaconda\nresolution: (1920, 1080)\n",
    );
    let rows = good(Format::Got10k, f.0.path(), &ConvertOptions::default());
    assert_eq!(
        (media(&rows[0]), query(&rows[0])),
        ("GOT-10k_Train_000001", "anaconda")
    );
    assert_eq!(
        rows[0].media.as_ref().unwrap().kind,
        MediaKind::Frames { fps: 10.0 }
    );
    assert_eq!(track(&rows[0])[1].region, TrackRegion::Absent);
    let empty = Folder::new();
    assert!(convert(Format::Got10k, empty.0.path(), &ConvertOptions::default()).is_err());
}

#[test]
fn conversations() {
    let f = Folder::new();
    let path = f.json("it.json", json!([
        {"video": "a.webm", "QA": [{"i": "Be short.", "q": "What?", "a": " A dog. "}, {"i": "", "q": "Why?", "a": "b"}], "start": 1.0, "end": 5.0},
        {"image": "b.jpg", "QA": [{"i": "Describe.", "q": "", "a": "c"}]}
    ]));
    let rows = good(Format::VideoChat2It, &path, &ConvertOptions::default());
    assert_eq!(rows[0].turns[0].question, "Be short.\nWhat?");
    assert_eq!(rows[0].turns[0].answer, "A dog.");
    assert_eq!(rows[0].media.as_ref().unwrap().range.unwrap().end, 5.0);
    assert_eq!(rows[1].media.as_ref().unwrap().kind, MediaKind::Image);

    let path = f.json("llava.json", json!([
        {"id": "x1", "image": "coco/1.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bus."}]},
        {"id": 3, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"id": 4, "image": "a.jpg", "conversations": [{"from": "gpt", "value": "?"}, {"from": "human", "value": "!"}]},
        {"id": 5, "video": "v.mp4", "conversations": [{"from": "human", "value": "<video> one <video> two"}, {"from": "gpt", "value": "x"}]},
        {"id": 6, "conversations": [{"from": "human", "value": "unanswered"}]}
    ]));
    let rows = read(Format::Llava, &path, &ConvertOptions::default());
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (first.turns[0].question.as_str(), first.id.as_deref()),
        ("What is it?", Some("x1"))
    );
    assert!(rows[1].as_ref().unwrap().media.is_none());
    assert!(rows[2..].iter().all(Result::is_err));
}

#[test]
fn ego4d_nlq_is_of_clips() {
    let f = Folder::new();
    // Of nlq_train.json only the names of fields are copied.
    let path = f.json("nlq_train.json", json!({"version": "1", "date": "220216", "description": "NLQ Annotations (train)", "videos": [
        {"video_uid": "d250521e", "split": "train", "clips": [{
            "clip_uid": "fae92e70", "video_start_sec": 480.021, "video_end_sec": 960.021, "video_start_frame": 14401, "video_end_frame": 28801,
            "clip_start_sec": 0, "clip_end_sec": 480.0, "clip_start_frame": 0, "clip_end_frame": 14400, "source_clip_uid": "0aca0078",
            "annotations": [{"annotation_uid": "f3083484", "language_queries": [
                {"clip_start_sec": 0.0, "clip_end_sec": 43.5, "video_start_sec": 480.021, "video_end_sec": 523.521, "video_start_frame": 14401,
                 "video_end_frame": 15706, "template": "Objects: How many X’s? (quantity question)", "query": "How many pans are on the shelf? ",
                 "slot_x": "pans", "verb_x": "[verb_not_applicable]", "slot_y": "shelf", "verb_y": "[verb_not_applicable]", "raw_tags": []},
                {"clip_start_sec": 1.0, "clip_end_sec": 2.0, "template": null, "query": null},
                {"clip_start_sec": 7.0, "clip_end_sec": 7.0, "query": "Where was the cup?"}]}]}]},
        {"video_uid": "b", "split": "val", "clips": [{"clip_uid": "c", "annotations": [
            {"annotation_uid": "u", "language_queries": [{"query": "Who did I talk to?"}]}]}]},
        {"video_uid": "b", "split": "val"}
    ]}));
    let options = ConvertOptions {
        media_prefix: "clips".into(),
        ..ConvertOptions::default()
    };
    let rows: Vec<_> = convert(Format::Ego4dNlq, &path, &options)
        .unwrap()
        .collect();
    assert_eq!(rows.len(), 5);
    let first = rows[0].as_ref().unwrap();
    assert_eq!(first.problems(), []);
    assert_eq!(
        (media(first), query(first), spans(first)),
        (
            "clips/fae92e70.mp4",
            "How many pans are on the shelf?",
            vec![[0.0, 43.5]]
        )
    );
    let length = first.media.as_ref().unwrap().duration.unwrap();
    assert!((length - 480.0).abs() < 1e-9);
    assert_eq!(first.id.as_deref(), Some("f3083484:0"));
    assert_eq!(first.meta["video_uid"], "d250521e");
    assert!(
        first.meta["template"]
            .as_str()
            .unwrap()
            .contains("How many")
    );
    let error = rows[1].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("nlq_train.json: element 0: query `f3083484:1` has no text"),
        "{error}"
    );
    // A window without length is found by the check of every row.
    let empty = rows[2].as_ref().unwrap().problems();
    assert!(empty[0].what.contains("no length"), "{empty:?}");
    let asked = rows[3].as_ref().unwrap();
    assert_eq!(asked.turns[0].question, "Who did I talk to?");
    assert!(asked.annotations.is_empty() && asked.meta["unlabelled"] == true);
    let error = rows[4].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("element 2") && error.contains("clips"),
        "{error}"
    );

    let options = ConvertOptions {
        split: Some("val".into()),
        ..ConvertOptions::default()
    };
    let of_split: Vec<_> = convert(Format::Ego4dNlq, &path, &options)
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(of_split.len(), 1);
    assert_eq!(media(&of_split[0]), "c.mp4");
    let flat = f.json("flat.json", json!([]));
    assert!(convert(Format::Ego4dNlq, &flat, &ConvertOptions::default()).is_err());
}

#[test]
fn youcook2_in_spans_and_in_words() {
    let f = Folder::new();
    let database = f.json("youcookii_annotations_trainval.json", json!({"database": {
        "GLd3aX16zBg": {"duration": 241.62, "subset": "training", "recipe_type": "113", "video_url": "https://www.youtube.com/watch?v=GLd3aX16zBg",
            "annotations": [{"segment": [90, 102], "id": 0, "sentence": "spread margarine on two slices of white bread"},
                            {"segment": [114, 127], "id": 1, "sentence": "place a slice of cheese on the bread "}]},
        "xHr8X2Wpmno": {"duration": 311.77, "subset": "validation", "recipe_type": "101", "video_url": "u",
            "annotations": [{"segment": [41, 54], "id": 0}]}
    }}));
    let rows = read(Format::YouCook2, &database, &ConvertOptions::default());
    assert_eq!(rows.len(), 3);
    let second_step = rows[1].as_ref().unwrap();
    assert_eq!(
        (media(second_step), query(second_step), spans(second_step)),
        (
            "training/113/GLd3aX16zBg.mp4",
            "place a slice of cheese on the bread",
            vec![[114.0, 127.0]]
        )
    );
    assert_eq!(second_step.id.as_deref(), Some("GLd3aX16zBg:1"));
    let length = second_step.media.as_ref().unwrap().duration;
    assert_eq!(length, Some(241.62));
    let error = rows[2].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("`xHr8X2Wpmno`: step 0 has no `sentence`"),
        "{error}"
    );
    let training = ConvertOptions {
        split: Some("training".into()),
        ..ConvertOptions::default()
    };
    assert_eq!(good(Format::YouCook2, &database, &training).len(), 2);
    let nope = ConvertOptions {
        split: Some("nope".into()),
        ..ConvertOptions::default()
    };
    let rows = read(Format::YouCook2, &database, &nope);
    let error = rows[0].as_ref().unwrap_err();
    assert!(
        rows.len() == 1
            && error.ends_dataset()
            && error.to_string().contains("`training`, `validation`"),
        "{rows:?}"
    );

    // As VideoChat2-IT has it: cut clips, or with the annotations parts of the videos.
    let it = f.json("train.json", json!([
        {"video": "training/113/GLd3aX16zBg/split_1.mp4", "QA": [{"i": "Describe the step.", "q": "", "a": "Place cheese on the bread."}]},
        {"video": "training/113/GLd3aX16zBg/split_7.mp4", "QA": [{"a": "b", "q": "q"}]},
        {"video": "training/113/unknown/split_0.mp4", "QA": [{"a": "b", "q": "q"}]},
        {"video": "somewhere.mp4", "QA": [{"a": "b", "q": "q"}]}
    ]));
    let cut = good(Format::VideoChat2It, &it, &ConvertOptions::default());
    assert_eq!(media(&cut[0]), "training/113/GLd3aX16zBg/split_1.mp4");
    let rows = read(Format::VideoChat2It, &it, &second(database));
    let whole = rows[0].as_ref().unwrap();
    assert_eq!(media(whole), "data/training/113/GLd3aX16zBg.mp4");
    let range = whole.media.as_ref().unwrap().range.unwrap();
    assert_eq!((range.start, range.end), (114.0, 127.0));
    assert_eq!(whole.turns[0].answer, "Place cheese on the bread.");
    for (row, why) in rows[1..].iter().zip([
        "`GLd3aX16zBg` has no annotation 7",
        "no video `unknown`",
        "expected SUBSET/RECIPE/ID/split_N.mp4",
    ]) {
        let error = row.as_ref().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn activitynet_rtl_reasons_in_words() {
    let f = Folder::new();
    let train = f.json("activitynet_train.json", json!({
        "v_a": {"duration": 82.73, "QA": [
            {"q": "When is the floor finished? ", "a": "<79.2> <82> The floor is finished between <79.2> and <82>, as a < b and <i>."},
            {"q": "Why?", "a": "It rains."},
            {"q": "When?", "a": "<9> <3> Never."},
            {"q": "When?", "a": "It ends at <100.5>."}]},
        "v_b": {"QA": []}
    }));
    let rows = read(Format::ActivityNetRtl, &train, &ConvertOptions::default());
    assert_eq!(rows.len(), 5);
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), first.id.as_deref()),
        ("v_a.mp4", Some("v_a:0"))
    );
    assert_eq!(first.media.as_ref().unwrap().duration, Some(82.73));
    assert_eq!(first.turns[0].question, "When is the floor finished?");
    let words = "79.2 - 82 seconds. The floor is finished between 79.2 seconds and 82 seconds, as a < b and <i>.";
    assert_eq!(first.turns[0].answer, words);
    // What the evaluation of textual answers reads is the span that was meant.
    let read_back = tpo_data::prompts::read_spans(words);
    assert_eq!((read_back[0].start, read_back[0].end), (79.2, 82.0));
    assert_eq!(rows[1].as_ref().unwrap().turns[0].answer, "It rains.");
    for (row, why) in rows[2..].iter().zip([
        "member `v_a`: the answer to `When?`: its span <9> <3> is empty or reversed",
        "<100.5> is after the end of the video, 82.73 seconds",
        "missing field `duration`",
    ]) {
        let error = row.as_ref().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let val = f.json(
        "annot_val.json",
        json!([
            {"vid": "x_1", "question": "When?", "answer": "<1.5> <2> Then.", "duration": 9.5}
        ]),
    );
    let rows = good(Format::ActivityNetRtl, &val, &ConvertOptions::default());
    assert_eq!(media(&rows[0]), "v_x_1.mp4");
    assert_eq!(rows[0].turns[0].answer, "1.5 - 2 seconds. Then.");
}

/// The dataset's own example (`visualize_rec.py`), whose boxes are published both ways.
const BUS: [&str; 2] = [
    "A tall red <ref>bus</ref><box>[[290, 201, 835, 850]]</box> is <pred>driving on</pred><box>[[290, 201, 835, 850]]</box>\
     <box>[[0, 603, 984, 998]]</box> a <ref>road</ref><box>[[0, 603, 984, 998]]</box> with <ref>cars</ref>\
     <box>[[827, 589, 885, 681], [1, 603, 238, 803]]</box>; the <ref>Bus</ref><box>[[290, 201, 835, 850]]</box> is full.",
    "A tall red <ref>bus</ref><box>[[290, 260, 835, 781]]</box> is on a <ref>road</ref><box>[[0, 583, 984, 900]]</box>.",
];

fn as_v2(answer: &str) -> Value {
    json!([{"id": 7, "image": "coco/train2017/000000000001.jpg", "conversations": [
        {"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": answer}]}])
}

fn boxes(sample: &Sample) -> Vec<(&str, BoxCoords)> {
    let found = sample.annotations.iter().map(|a| match &a.target {
        Target::Box(area) => (a.query.as_deref().unwrap(), *area),
        other => panic!("{other:?}"),
    });
    found.collect()
}

#[test]
fn as_v2_phrases_become_boxes() {
    let f = Folder::new();
    let path = f.json(
        "rec_detailed_description_42k_wo_square_pad.json",
        as_v2(BUS[0]),
    );
    let rows = read(Format::AsV2, &path, &ConvertOptions::default());
    assert_eq!(rows.len(), 2);
    let row = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(row), row.id.as_deref(), row.turns.len()),
        ("coco/train2017/000000000001.jpg", Some("7"), 0)
    );
    let shares = |b: [f32; 4]| BoxCoords::Normalised(b.map(|v| v / 999.0));
    assert_eq!(
        boxes(row),
        [
            ("bus", shares([290.0, 201.0, 835.0, 850.0])),
            ("road", shares([0.0, 603.0, 984.0, 998.0]))
        ]
    );
    assert!(row.annotations.iter().all(|a| a.task == "region"));
    let error = rows[1].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("element 0: `cars`: it has 2 boxes in this row"),
        "{error}"
    );

    // The same picture, whose sides are as 640 to 514, padded to a square: within the rounding of both.
    let padded = f.json("rec_detailed_description_42k.json", as_v2(BUS[1]));
    let refused = convert(Format::AsV2, &padded, &ConvertOptions::default()).err();
    let refused = refused.unwrap().to_string();
    assert!(
        refused.contains("wo_square_pad") && refused.contains("instances_train2017.json"),
        "{refused}"
    );
    for broken in [f.text("empty.json", ""), f.path("absent.json"), f.path("")] {
        let error = convert(Format::AsV2, &broken, &ConvertOptions::default()).err();
        let error = error.unwrap().to_string();
        assert!(!error.contains("wo_square_pad"), "{error}");
    }
    let (width, height) = (640.0, 514.0);
    let sizes = |name: &str| json!({"images": [{"id": 1, "file_name": name, "width": width as u32, "height": height as u32}], "annotations": []});
    let instances = f.json("instances.json", sizes("000000000001.jpg"));
    let unpadded = good(Format::AsV2, &padded, &second(instances));
    assert_eq!(unpadded[0].media.as_ref().unwrap().size, Some([640, 514]));
    for ((name, at), (same, share)) in boxes(&unpadded[0]).into_iter().zip(boxes(row)) {
        assert_eq!(name, same);
        let [x0, y0, x1, y1] = share.to_array();
        let expected = [x0 * width, y0 * height, x1 * width, y1 * height];
        assert!(matches!(at, BoxCoords::Pixels(_)));
        for (at, expected) in at.to_array().into_iter().zip(expected) {
            assert!((at - expected).abs() <= 1.5, "{name}: {at}, {expected}");
        }
    }
    let others = f.json("others.json", sizes("2.jpg"));
    let rows = read(Format::AsV2, &padded, &second(others));
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| {
        let error = row.as_ref().unwrap_err().to_string();
        error.contains("no size of its image")
    }));
}

#[test]
fn as_v2_without_boxes_in_answers_is_conversation() {
    let f = Folder::new();
    let said = |human: &str, gpt: &str| {
        json!({"id": "r", "image": "a.jpg", "conversations": [
            {"from": "human", "value": human}, {"from": "gpt", "value": gpt}]})
    };
    let words = json!({"id": "t", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]});
    let path = f.json("rec_conversation_22k_wo_square_pad.json", json!([
        said("<image>\nWhat are the two <ref>people</ref><box>[[200, 251, 447, 963], [529, 246, 744, 984]]</box> doing?",
             "They <pred>talk</pred><box>[[200, 251, 447, 963]]</box><box>[[529, 246, 744, 984]]</box>."),
        words,
        said("What?", "A <ref>dog</ref><box>[[1, 2, 3"),
        said("What?", "A <ref>dog</ref><box>dog</box>"),
        said("What?", "<box>[[1, 2, 3, 4]]</box>"),
        said("Where is <box>[[5, 5, 2, 9]]</box>?", "There."),
        said("What?", "A <ref>dog</ref><box>[[1, 2, 1000, 4]]</box>, a <ref>cat</ref><box>[[3, 4, 5, 6]]</box>"),
    ]));
    let rows = read(Format::AsV2, &path, &ConvertOptions::default());
    let people = rows[0].as_ref().unwrap();
    assert_eq!(
        people.turns[0].question,
        "What are the two people <box>, <box> doing?"
    );
    assert_eq!(
        (people.turns[0].boxes.len(), people.turns[0].answer.as_str()),
        (2, "They talk.")
    );
    assert!(people.annotations.is_empty());
    assert!(rows[1].as_ref().unwrap().media.is_none());
    for (row, why) in rows[2..6].iter().zip([
        "element 2: `<box>` is not closed",
        "`dog` are no boxes, expected [[x1, y1, x2, y2], ..]",
        "follows no `<ref>`",
        "has no area",
    ]) {
        let error = row.as_ref().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    // A bad box costs its phrase, not the row.
    assert_eq!(boxes(rows[6].as_ref().unwrap())[0].0, "cat");
    let error = rows[7].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("`dog`") && error.contains("0 to 999"),
        "{error}"
    );
}

#[test]
fn multiple_choice() {
    let f = Folder::new();
    let path = f.json("mv.json", json!([
        {"video": "1.webm", "question": "What?", "candidates": ["yes", "no"], "answer": "no", "start": 2.0, "end": 7.5},
        {"video": "1.webm", "question": "What?", "candidates": ["yes", "no"], "answer": "maybe"}
    ]));
    let rows = read(Format::MvBench, &path, &ConvertOptions::default());
    assert_eq!(rows[0].as_ref().unwrap().turns[0].correct, Some(1));
    assert!(rows[1].is_err());

    let csv = f.text(
        "test.csv",
        "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n\
        4010069381,369,640,480,\"how do, they?\",climb,6,CH,sit,run,walk,climb,fly\n\
        4010069381,369,640,480,when,0,7,TN,sit,run,walk,climb,fly\n\
        4010069381,369,640,480,when,none,7,TN,sit,run,walk,climb,fly\n",
    );
    let spans_file = f.json(
        "gsub.json",
        json!({"4010069381": {"duration": 34, "location": {"6": [[1.2, 5.8]]}, "fps": 29.97}}),
    );
    let rows = read(Format::NextGqa, &csv, &second(spans_file));
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (first.turns[0].question.as_str(), first.turns[0].correct),
        ("how do, they?", Some(3))
    );
    assert_eq!(spans(first), [[1.2, 5.8]]);
    assert_eq!(rows[1].as_ref().unwrap().turns[0].correct, Some(0));
    assert!(rows[2].as_ref().unwrap_err().to_string().contains("line 4"));

    let by_video = f.json("mme.json", json!([{"video_id": "001", "duration": "short", "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
        "questions": [{"question_id": "001-1", "task_type": "Counting", "question": "How many?", "options": ["A. one.", "B. two."], "answer": "B"}]}]));
    let rows = good(Format::VideoMme, &by_video, &ConvertOptions::default());
    assert_eq!(
        (media(&rows[0]), rows[0].turns[0].options[1].as_str()),
        ("fFjv93ACGo8.mp4", "two.")
    );
    assert_eq!(rows[0].turns[0].correct, Some(1));
    let by_question = f.text("mme.jsonl", &json!({"videoID": "abc", "question_id": "7", "question": "Q", "options": ["A. x", "B. y"], "answer": "A", "duration": "long"}).to_string());
    let rows = good(Format::VideoMme, &by_question, &ConvertOptions::default());
    assert_eq!(
        (media(&rows[0]), rows[0].turns[0].correct),
        ("abc.mp4", Some(0))
    );
    assert_eq!(rows[0].meta["duration"], "long");
}

#[test]
fn every_format_survives_any_bytes() {
    const ALPHABET: &[u8] = b"{}[]\",:0123aeE.-\\ \n\xFFvq";
    let f = Folder::new();
    let mut seeds: Vec<Vec<u8>> = [
        "", "[", "{", "{}", "[]", "[1]", "{\"a\": 1}", "[[[[", "{\"videos\": {\"a\": {\"frames\": [], \"expressions\": {}}}}",
        "{\"videos\": 3}", "a b##c", "\u{feff}[]", "\"", "video_id,question,answer,qid,a0,a1,a2,a3,a4\n1,2,3",
        "[{\"conversations\": [{\"from\": \"human\", \"value\": \"<box>[[1,2,3,4]]</box>\"}, {\"from\": \"gpt\", \"value\": \"<ref>a</ref><box>[[1,2,3e9,4]]</box><pred>\"}]}]",
        "{\"v_\": {\"duration\": 3, \"QA\": [{\"q\": \"a\", \"a\": \"<1><2.> <é> <\"}]}}",
        "{\"videos\": [{\"video_uid\": \"a\", \"clips\": [{\"clip_uid\": \"\", \"annotations\": []}]}]}",
        "[{\"QA\": []}, {\"video\": \"a\", \"image\": \"b\", \"QA\": []}]",
        "{\"v\": {\"metadata\": {\"frame_rate\": -1e300}, \"mc_question\": [{\"id\": 1e9, \"question\": \"\", \"options\": [], \"answer_id\": 99999999999999999999}, {}, 3]}}",
        "{\"v\": 9223372036854775807}",
        "[{\"video\": \"\", \"question\": \"\", \"question_type\": \"\", \"candidates\": [\"\"], \"answer\": \"\", \"duration\": -1}]",
        "[{\"task\": \"\", \"options\": \"\\nA:\\nB\u{e9}:\\n\", \"output\": \"\u{e9}\", \"input_image_path\": [\"./\", \"\"]}, {\"task\": \"\", \"options\": \"\", \"output\": [1], \"input\": {}}]",
        "{\"question_type\": {\"a\": 0}, \"questions\": [{\"question\": \"<img>\", \"question_id\": {}, \"question_type_id\": 0, \"choice_a\": [], \"choice_b\": 1, \"choice_c\": null, \"choice_d\": \"\", \"answer\": \"\", \"data_id\": {}, \"data_source\": \"cc3m\"}]}",
        "[{\"question_id\": null, \"file_name\": \"_000000000000_.\u{e9}_9\", \"answer\": [\"\"], \"bbox\": [1e38,3e38,3e38,1e38]}]",
        "{\"image\": \"\", \"sent\": \"\", \"bbox\": [1e999,0,-1,0], \"width\": 0, \"height\": 4294967295}",
        "{\"images\": [{\"id\": 1, \"file_name\": \"a\"}], \"annotations\": [{\"image_id\": 1, \"bbox\": [1e999,0,0,0]}]}",
    ].iter().map(|s| s.as_bytes().to_vec()).collect();
    let mut state = 9u64;
    for n in 0..60 {
        let bytes = (0..n * 3).map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ALPHABET[(state >> 40) as usize % ALPHABET.len()]
        });
        seeds.push(bytes.collect());
    }
    for seed in &seeds {
        fuzzing::dataset_file(seed, f.0.path()).unwrap();
        fuzzing::palette(seed, f.0.path()).unwrap();
    }
    write_palette(&f.path("m.png"), 3, &[0, 2, 1, 0, 2, 0]);
    let png = std::fs::read(f.path("m.png")).unwrap();
    for at in 0..png.len() {
        let mut broken = png.clone();
        broken[at] ^= 0x55;
        fuzzing::palette(&broken, f.0.path()).unwrap();
        fuzzing::palette(&png[..at], f.0.path()).unwrap();
    }
}

#[test]
fn names_of_formats_are_unique_and_parse() {
    let mut names = BTreeMap::new();
    for f in Format::ALL {
        assert_eq!(f.name().parse::<Format>().unwrap(), *f);
        assert!(names.insert(f.name(), f).is_none());
        assert_eq!(serde_json::to_value(f).unwrap(), f.name());
    }
    assert!("coco".parse::<Format>().is_err());
}

#[test]
fn an_option_without_a_use_is_refused() {
    let f = Folder::new();
    let path = f.text("rows.csv", "video,query,start,end\na.mp4,the dog,1,2\n");
    let refused = |change: fn(&mut ConvertOptions)| {
        let mut options = ConvertOptions::default();
        change(&mut options);
        let error = convert(Format::Csv, &path, &options).err().unwrap();
        error.to_string()
    };
    for (error, flag) in [
        (refused(|o| o.split = Some("train".into())), "--split"),
        (refused(|o| o.second = Some("a".into())), "--second-file"),
        (refused(|o| o.durations = Some("a".into())), "--durations"),
        (refused(|o| o.video_extension = "mkv".into()), "--extension"),
    ] {
        let says = format!("csv has no use for {flag}, leave it out; it takes --frame-rate");
        assert!(error.contains(&says), "{error}");
    }
}

#[test]
fn a_table_of_ones_own() {
    let folder = Folder::new();
    let path = folder.text(
        "rows.csv",
        "video,image,frames,query,left,top,right,bottom,start,end,question,answer,note\n\
         a.mp4,,,the dog,10,20,110.5,220,,,,,kept out\n\
         a.mp4,,,the dog jumps,,,,,1.5,4,,,\n\
         ,b.png,,,,,,,,,What is it?,\"A ball, red.\",\n\
         ,,c,the cat,0,0,8,8,0,2,Who?,A cat.,\n\
         a.mp4,b.png,,the dog,1,1,2,2,,,,,\n\
         a.mp4,,,,1,1,2,2,,,,,\n\
         a.mp4,,,the dog,1,,2,2,,,,,\n\
         a.mp4,,,the dog,,,,,3,,,,\n\
         a.mp4,,,the dog,,,,,,,,,\n\
         a.mp4,,,the dog,left,1,2,2,,,,,\n",
    );
    let options = ConvertOptions {
        media_prefix: "clips/".into(),
        frame_rate: Some(2.0),
        ..ConvertOptions::default()
    };
    let rows = read(Format::Csv, &path, &options);
    let good: Vec<&Sample> = rows.iter().filter_map(|r| r.as_ref().ok()).collect();
    // A row that is refused later is found by its line.
    let ids: Vec<_> = good.iter().map(|r| r.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["2", "3", "4", "5"]);
    assert_eq!((media(good[0]), query(good[0])), ("clips/a.mp4", "the dog"));
    assert_eq!(good[1].id.as_deref(), Some("3"));
    let target = &good[0].annotations[0].target;
    let pixels = BoxCoords::Pixels([10.0, 20.0, 110.5, 220.0]);
    assert_eq!(*target, Target::Box(pixels));
    assert_eq!(spans(good[1]), [[1.5, 4.0]]);
    assert_eq!(good[2].turns[0].answer, "A ball, red.");
    assert_eq!(good[3].annotations.len(), 2);
    assert_eq!(
        good[3].media.as_ref().unwrap().kind,
        MediaKind::Frames { fps: 2.0 }
    );
    let bad: Vec<String> = rows
        .iter()
        .filter_map(|r| r.as_ref().err())
        .map(ToString::to_string)
        .collect();
    for (error, says) in bad.iter().zip([
        "one of `video`, `image` and `frames`",
        "a box needs a `query`",
        "`left`, `top`, `right` and `bottom`",
        "`start` and `end`",
        "nothing to learn",
        "line 11: column `left` holds `left`, expected a number",
    ]) {
        assert!(error.contains(says), "{says}: {error}");
    }
    assert_eq!(bad.len(), 6, "{bad:#?}");
    // Folders of frames have no rate of their own.
    let without = read(Format::Csv, &path, &ConvertOptions::default());
    let error = without[3].as_ref().unwrap_err().to_string();
    assert!(error.contains("--frame-rate"), "{error}");
    for (header, says) in [
        (
            "Video,Query",
            "the columns are `Video`, `Query`; expected some of video, image",
        ),
        (
            "video;query",
            "`video;query`; they are separated by ';', not by commas",
        ),
    ] {
        let path = folder.text("unknown.csv", &format!("{header}\na.mp4,x\n"));
        let error = convert(Format::Csv, &path, &ConvertOptions::default()).err();
        let error = error.unwrap().to_string();
        assert!(error.contains("line 1") && error.contains(says), "{error}");
    }
}
