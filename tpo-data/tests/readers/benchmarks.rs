//! The benchmarks of LLaVA-OV-TPO: questions about videos, about several images, and boxes.

use super::*;
use tpo_data::ClipRange;

fn why(row: &Result<Sample, DataError>) -> String {
    row.as_ref().unwrap_err().to_string()
}

fn paths(sample: &Sample) -> Vec<&str> {
    let media = sample.media.as_ref().unwrap();
    let more = media.more.iter().map(String::as_str);
    std::iter::once(media.path.as_str()).chain(more).collect()
}

fn of_split(name: &str) -> ConvertOptions {
    ConvertOptions {
        split: Some(name.into()),
        ..ConvertOptions::default()
    }
}

#[test]
fn mlvu() {
    let f = Folder::new();
    let asked = |question: &str, candidates: Value, answer: &str| {
        json!({"video": "movie101_66.mp4", "duration": 246, "question": question,
            "candidates": candidates, "answer": answer, "question_type": "plotQA"})
    };
    let path = f.json(
        "1_plotQA.json",
        json!([
            asked("What color is it?", json!(["Yellow", "Red"]), "Red"),
            // Published so: the script takes the last of equal candidates.
            asked("How many people are there?", json!(["Six", "Three", "Three", "Eight"]), "Three"),
            // Published so in 2_needle.json.
            asked("What does he do?", json!(["Fishing", "Sunbathing"]), "Catching a drone"),
            {"video": "217.mp4", "duration": 480.0, "question": "Please summarize this video.",
             "answer": "Waves.", "question_type": "summary"},
            {"video": "1.mp4", "question": "What?", "candidates": ["a", "b"]},
        ]),
    );
    let options = ConvertOptions {
        media_prefix: "video/1_plotQA".into(),
        ..ConvertOptions::default()
    };
    let rows = read(Format::Mlvu, &path, &options);
    let first = rows[0].as_ref().unwrap();
    assert_eq!(media(first), "video/1_plotQA/movie101_66.mp4");
    assert_eq!(first.media.as_ref().unwrap().duration, Some(246.0));
    assert_eq!(first.id.as_deref(), Some("plotQA:0"));
    assert_eq!(first.meta["task_type"], "plotQA");
    assert_eq!(first.turns[0].options, ["Yellow", "Red"]);
    assert_eq!(first.turns[0].correct, Some(1));
    assert_eq!(rows[1].as_ref().unwrap().turns[0].correct, Some(2));
    let says = "element 2: answer `Catching a drone` is none of the candidates";
    assert!(why(&rows[2]).contains(says), "{}", why(&rows[2]));
    assert!(why(&rows[3]).contains("element 3: no `candidates`"));
    assert!(why(&rows[4]).contains("element 4: missing field `question_type`"));

    let test = f.json(
        "test_question.json",
        json!([{"video": "t.mp4", "duration": 1.5,
        "question": "Which?", "candidates": ["a", "b", "c", "d", "e", "f"],
        "question_type": "anomaly_reco", "question_id": "AR_0"}]),
    );
    let rows = good(Format::Mlvu, &test, &ConvertOptions::default());
    assert_eq!(rows[0].id.as_deref(), Some("AR_0"));
    assert_eq!(
        (rows[0].turns[0].correct, rows[0].turns[0].options.len()),
        (None, 6)
    );
}

#[test]
fn perception_test() {
    let f = Folder::new();
    let question = |id: u32, answer: Value| {
        json!({"id": id, "question": "Where is it?", "options": ["left", "right", "gone"],
            "answer_id": answer, "area": "memory", "reasoning": "descriptive", "tag": ["object recognition"]})
    };
    let metadata = |split: &str| {
        json!({"split": split, "video_id": "v", "frame_rate": 30.0,
        "num_frames": 600, "resolution": [1080, 1920], "is_cup_game": 1})
    };
    let path = f.json(
        "mc_question_valid.json",
        json!({
            "video_7": {"metadata": metadata("valid"), "mc_question": [
                question(0, json!(2)), question(14, json!(3)), {"id": 15, "question": "Why?"}],
                "object_tracking": [{"id": 3}]},
            "video_8": {"metadata": metadata("valid"), "mc_question": [question(1, json!(0))]},
            "video_9": {"metadata": metadata("train"), "mc_question": [question(2, json!(0))]},
        }),
    );
    let rows = read(Format::PerceptionTest, &path, &of_split("valid"));
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), first.id.as_deref()),
        ("video_7.mp4", Some("video_7:0"))
    );
    assert_eq!(first.media.as_ref().unwrap().range, None);
    assert_eq!(first.turns[0].correct, Some(2));
    assert_eq!(first.meta["task_type"], "memory");
    assert_eq!(
        (&first.meta["reasoning"], &first.meta["tag"]),
        (&json!("descriptive"), &json!(["object recognition"]))
    );
    let says = "member `video_7`: mc_question[1]: answer 3 of 3 options";
    assert!(why(&rows[1]).contains(says), "{}", why(&rows[1]));
    assert!(why(&rows[2]).contains("mc_question[2]: missing field `options`"));
    assert_eq!(
        (rows.len(), media(rows[3].as_ref().unwrap())),
        (4, "video_8.mp4")
    );

    // The frame from which the end would give the answer away; some have none.
    let cuts = f.json(
        "cut_frame_mapping_valid.json",
        json!({"video_7": 450, "video_8": -1, "video_1": 3}),
    );
    let options = ConvertOptions {
        second: Some(cuts),
        ..of_split("valid")
    };
    let rows = read(Format::PerceptionTest, &path, &options);
    let range = |row: usize| rows[row].as_ref().unwrap().media.as_ref().unwrap().range;
    assert_eq!(
        range(0),
        Some(ClipRange {
            start: 0.0,
            end: 15.0
        })
    );
    assert_eq!(range(3), None);
    let unclear = f.json(
        "unclear.json",
        json!({"video_7": {"metadata": {}, "mc_question": [question(0, json!(1))]}}),
    );
    let options = ConvertOptions {
        split: None,
        ..options
    };
    let rows = read(Format::PerceptionTest, &unclear, &options);
    assert!(why(&rows[0]).contains("cut at frame 450, and no positive `frame_rate`"));

    let test = f.json(
        "mc_question_test.json",
        json!({"video_1": {"metadata": metadata("test"),
        "mc_question": [{"id": 3, "question": "Where?", "options": ["a", "b", "c"]}]}}),
    );
    let rows = good(Format::PerceptionTest, &test, &ConvertOptions::default());
    assert_eq!(
        (rows[0].id.as_deref(), rows[0].turns[0].correct),
        (Some("video_1:3"), None)
    );
    let none = read(Format::PerceptionTest, &test, &of_split("valid"));
    assert!(
        why(&none[0]).contains("they are of `test`"),
        "{}",
        why(&none[0])
    );
}

#[test]
fn mmiu_in_both_releases() {
    let f = Folder::new();
    let options =
        "A: the first image\nB: the second image\nC: the third image\nof the row\nD: none";
    let context = format!("You are a judge. Select from the following choices.\n{options}\n");
    let images = [
        "./Low-level-semantic/forensic/f_0_0.jpg",
        "./Low-level-semantic/forensic/f_0_1.jpg",
    ];
    let row = |output: Value| {
        json!({"task": "forensic_detection_blink",
        "visual_input_component": "natural image", "source": "blink", "options": options,
        "question": "Which is real?", "context": context, "input_image_path": images, "output": output})
    };
    let path = f.json("all.json", json!([
        row(json!("D")), row(Value::Null), row(json!("E")), row(json!(4)),
        {"task": "t", "options": "A: x\nB: y", "question": "?", "context": "", "input_image_path": [], "output": "A"},
        {"options": "A: x"}, 7
    ]));
    let prefix = ConvertOptions {
        media_prefix: "mmiu".into(),
        ..ConvertOptions::default()
    };
    let rows = read(Format::Mmiu, &path, &prefix);
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        paths(first),
        [
            "mmiu/Low-level-semantic/forensic/f_0_0.jpg",
            "mmiu/Low-level-semantic/forensic/f_0_1.jpg"
        ]
    );
    let turn = &first.turns[0];
    assert_eq!(
        turn.options,
        [
            "the first image",
            "the second image",
            "the third image\nof the row",
            "none"
        ]
    );
    // The context ends with the options, which are asked by the run's own wording.
    let question = "Which is real?\nYou are a judge. Select from the following choices.";
    assert_eq!((turn.question.as_str(), turn.correct), (question, Some(3)));
    assert_eq!(first.id.as_deref(), Some("forensic_detection_blink:0"));
    assert_eq!(first.meta["task_type"], "forensic_detection_blink");
    assert_eq!(rows[1].as_ref().unwrap().turns[0].correct, None);
    for (row, says) in rows[2..].iter().zip([
        "element 2: output `E` of 4 options",
        "element 3: output 4, expected a letter",
        "element 4: `input_image_path` is empty",
        "element 5: missing field `task`",
        "element 6: ",
    ]) {
        assert!(why(row).contains(says), "{says}: {}", why(row));
    }
    assert_eq!(rows.len(), 7);

    let line = json!({"task": "point_tracking", "options": "left\nright", "output": {"output_text": "b"},
        "input": {"input_image_path": images, "question": "Where to?", "context": "Look."}});
    let rows = good(
        Format::Mmiu,
        &f.text("mmiu.jsonl", &line.to_string()),
        &prefix,
    );
    assert_eq!(rows[0].turns[0].question, "Where to?\nLook.");
    assert_eq!(rows[0].turns[0].options, ["left", "right"]);
    assert_eq!(
        (rows[0].turns[0].correct, paths(&rows[0]).len()),
        (Some(1), 2)
    );
}

#[test]
fn seed_bench_2() {
    let f = Folder::new();
    let row = |number: u32, kind: &str, files: Value, change: Value| {
        let mut row = json!({"answer": "A", "choice_a": "One", "choice_b": "Two", "choice_c": "Three",
            "choice_d": "Four", "data_id": files, "data_source": "SEED-Bench v2", "data_type": kind,
            "level": "L1", "question": "How many towels are there?", "question_id": format!("{number}_0"),
            "question_type_id": number, "subpart": "a", "version": "v1"});
        row.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        row
    };
    let two = json!(["task17/SD_1.png", "task17/SD_2.png"]);
    let path = f.json("SEED-Bench_v2_level1_2_3.json", json!({
        "questions": [
            row(5, "Single Image", json!("1454426_2591111986"), json!({"data_source": "cc3m"})),
            row(17, "Multiple Images", two.clone(), json!({"answer": "C"})),
            row(23, "Interleaved Image", two.clone(), json!({"question": "<img>: It is blue. <img>:", "level": "L2"})),
            row(25, "Image Generation", two.clone(), json!({"level": "L3"})),
            row(17, "Multiple Images", two.clone(), json!({"answer": "E"})),
            row(17, "Multiple Images", two.clone(), json!({"data_source": "coco"})),
            row(17, "Multiple Images", json!(["a.png", 3]), json!({})),
            row(17, "Multiple Images", json!([]), json!({})),
            row(99, "Multiple Images", two, json!({})),
        ],
        "question_type": {"Instances Counting": 5, "Difference Spotting": 17, "In-Context Captioning": 23, "Text-to-Image Generation": 25}
    }));
    let rows = read(Format::SeedBench2, &path, &ConvertOptions::default());
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (paths(first), first.id.as_deref()),
        (vec!["cc3m-image/1454426_2591111986"], Some("5_0"))
    );
    assert_eq!(first.meta["task_type"], "Instances Counting");
    assert_eq!(
        (first.turns[0].correct, first.turns[0].options[3].as_str()),
        (Some(0), "Four")
    );
    let second = rows[1].as_ref().unwrap();
    assert_eq!(
        paths(second),
        [
            "SEED-Bench-2-image/task17/SD_1.png",
            "SEED-Bench-2-image/task17/SD_2.png"
        ]
    );
    assert_eq!(
        (second.turns[0].correct, &second.meta["data_type"]),
        (Some(2), &json!("Multiple Images"))
    );
    assert_eq!(
        rows[2].as_ref().unwrap().turns[0].question,
        "<image>: It is blue. <image>:"
    );
    for (row, says) in rows[3..].iter().zip([
        "element 3: question `25_0`: the options of `Text-to-Image Generation` (level L3) are images to be made",
        "answer `E` is none of A to D",
        "`data_source` is `coco`, expected cc3m or SEED-Bench v2",
        "`data_id` holds 3, expected a name",
        "`data_id` is empty",
        "`question_type` has no dimension 99",
    ]) {
        assert!(why(row).contains(says), "{says}: {}", why(row));
    }
    assert_eq!(rows.len(), 9);
    let single = good(Format::SeedBench2, &path, &of_split("Single Image"));
    assert_eq!(single.len(), 1);
    let none = read(Format::SeedBench2, &path, &of_split("Video"));
    assert!(why(&none[0]).contains("no record is of split `Video`"));
    let unnamed = f.json("unnamed.json", json!({"questions": []}));
    let error = convert(Format::SeedBench2, &unnamed, &ConvertOptions::default())
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("there is no member `question_type`"),
        "{error}"
    );
}

#[test]
fn refcoco_as_evaluations_have_it() {
    let f = Folder::new();
    let lines = f.text(
        "refcoco_testA.jsonl",
        &[
            json!({"image": "data/coco/train2014/COCO_train2014_000000581857.jpg", "sent": "lady in blue ",
                "bbox": [103.9, 299.9, 238.2, 477.4], "width": 427, "height": 640}),
            json!({"image": "a.jpg", "sent": "a", "bbox": [1, 2, 3]}),
            json!({"image": "a.jpg", "sent": "b", "bbox": [1, 2, 3, 4]}),
        ].map(|line| line.to_string()).join("\n"),
    );
    let rows = read(Format::RefCocoLines, &lines, &ConvertOptions::default());
    let first = rows[0].as_ref().unwrap();
    assert_eq!(
        (media(first), query(first)),
        (
            "data/coco/train2014/COCO_train2014_000000581857.jpg",
            "lady in blue"
        )
    );
    assert_eq!(first.media.as_ref().unwrap().size, Some([427, 640]));
    let corners = BoxCoords::Pixels([103.9, 299.9, 238.2, 477.4]);
    assert_eq!(first.annotations[0].target, Target::Box(corners));
    assert!(why(&rows[1]).contains("line 2") && why(&rows[1]).contains("array of length 4"));
    assert_eq!(rows[2].as_ref().unwrap().media.as_ref().unwrap().size, None);

    let object = |file: &str| {
        json!({"question_id": "469306", "file_name": file, "question": "Caption it.",
        "answer": ["left man", "guy"], "bbox": [10.5, 20.0, 30.0, 40.0], "segmentation": [1.0], "iscrowd": 0})
    };
    let objects = f.json("testA.json", json!([
        object("COCO_train2014_000000581857_16.jpg"), object("COCO_train2014_000000581857.jpg"),
        object("my_picture_7.jpg"), {"question_id": 1, "answer": "left", "file_name": "a", "bbox": [0, 0, 1, 1]},
    ]));
    let prefix = ConvertOptions {
        media_prefix: "train2014".into(),
        ..ConvertOptions::default()
    };
    let rows = read(Format::RefCocoObjects, &objects, &prefix);
    let names: Vec<_> = rows.iter().flatten().map(media).collect();
    let coco = "train2014/COCO_train2014_000000581857.jpg";
    let own = "train2014/my_picture_7.jpg";
    assert_eq!(names, [coco, coco, coco, coco, own, own]);
    let second = rows[1].as_ref().unwrap();
    assert_eq!(
        (query(second), second.id.as_deref()),
        ("guy", Some("469306:1"))
    );
    let corners = BoxCoords::Pixels([10.5, 20.0, 40.5, 60.0]);
    assert_eq!(second.annotations[0].target, Target::Box(corners));
    assert!(
        why(&rows[6]).contains("element 3: invalid type: string \"left\""),
        "{}",
        why(&rows[6])
    );
}
