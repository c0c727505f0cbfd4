//! `tpo evaluate` on samples of our own, scored by the official scripts, and on bad files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tpo::evaluation::files::vos::MaskTrack;
use tpo::evaluation::files::{SampleId, Table};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/evaluate")
        .join(name)
}

fn evaluate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
    command.arg("evaluate");
    command
}

fn run(args: &[&str], predictions: &Path, truth: Option<&Path>) -> Output {
    let mut command = evaluate();
    command.args(args).arg("--predictions").arg(predictions);
    if let Some(truth) = truth {
        command.arg("--ground-truth").arg(truth);
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Scores of a run that must succeed.
fn scores(args: &[&str], predictions: &Path, truth: Option<&Path>) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scores.json");
    let mut all = args.to_vec();
    all.extend(["--json", file.to_str().unwrap()]);
    let output = run(&all, predictions, truth);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The error of a run that must fail to score.
fn error(args: &[&str], predictions: &Path, truth: Option<&Path>) -> String {
    let output = run(args, predictions, truth);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn close(got: &Value, expected: f64) {
    let got = got.as_f64().unwrap();
    assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
}

#[test]
fn qvhighlights_equals_the_official_script_in_every_digit() {
    let (p, g) = (data("qv_predictions.jsonl"), data("qv_truth.jsonl"));
    let official = data("qv_official.json");
    let expect = [
        "--task",
        "temporal",
        "--strict",
        "--expect",
        official.to_str().unwrap(),
    ];
    let output = run(&expect, &p, Some(&g));
    assert!(output.status.success(), "{}", text(&output));

    let document = scores(&["--task", "temporal"], &p, Some(&g));
    assert_eq!(document["protocol"]["format"], "qvhighlights");
    assert_eq!(document["protocol"]["options"]["max_windows"], 10);
    assert_eq!(document["matched"]["matched"], 40);

    // Another score is noticed.
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.json");
    let changed = std::fs::read_to_string(&official)
        .unwrap()
        .replacen("52.5", "52.51", 1);
    std::fs::write(&other, changed).unwrap();
    let output = run(
        &["--task", "temporal", "--expect", other.to_str().unwrap()],
        &p,
        Some(&g),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("MR-full-R1@0.5 is 52.5, expected 52.51"),
        "{}",
        text(&output)
    );
}

#[test]
fn missing_queries_are_listed_and_an_error_under_strict() {
    let dir = tempfile::tempdir().unwrap();
    let p = dir.path().join("p.jsonl");
    let all = std::fs::read_to_string(data("qv_predictions.jsonl")).unwrap();
    let few: Vec<&str> = all.lines().take(30).collect();
    std::fs::write(&p, few.join("\n")).unwrap();
    let g = data("qv_truth.jsonl");
    let document = scores(&["--task", "temporal"], &p, Some(&g));
    assert_eq!(document["matched"]["matched"], 30);
    assert_eq!(
        document["matched"]["without_prediction"]
            .as_array()
            .unwrap()
            .len(),
        10
    );
    let message = error(&["--task", "temporal", "--strict"], &p, Some(&g));
    assert!(
        message.contains("10 of the ground truth have no prediction"),
        "{message}"
    );
}

#[test]
fn charades_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (p, g) = (dir.path().join("p.jsonl"), dir.path().join("g.jsonl"));
    std::fs::write(
        &g,
        "{\"qid\":1,\"relevant_windows\":[[0,10]]}\n{\"qid\":2,\"relevant_windows\":[[0,10]]}\n\
         {\"qid\":3,\"relevant_windows\":[[0,4],[6,10]]}\n",
    )
    .unwrap();
    // IoU 0.5; 0 and then 1; the second of two windows.
    std::fs::write(
        &p,
        "{\"qid\":1,\"pred_relevant_windows\":[[0,5]]}\n\
         {\"qid\":2,\"pred_relevant_windows\":[[20,30],[0,10]]}\n\
         {\"qid\":3,\"pred_relevant_windows\":[[6,10]]}\n",
    )
    .unwrap();
    let args = [
        "--task",
        "temporal",
        "--format",
        "charades-sta",
        "--recall-at",
        "1,5",
    ];
    let s = &scores(&args, &p, Some(&g))["scores"];
    close(&s["R1@0.3"], 66.67);
    close(&s["R1@0.5"], 66.67);
    close(&s["R1@0.7"], 33.33);
    close(&s["R5@0.7"], 66.67);
    close(&s["mIoU"], 50.0);
}

#[test]
fn next_gqa_equals_the_official_script() {
    let (p, g) = (data("gqa_predictions.json"), data("gqa_truth.json"));
    let answers = data("gqa_answers.json");
    let output = run(
        &["--task", "gqa", "--answers", answers.to_str().unwrap()],
        &p,
        Some(&g),
    );
    let table = text(&output);
    // Printed by the script: 68.2 82.7 100.0 95.5 64.4 90.9 81.8
    for (name, value) in [
        ("Acc@GQA", "68.2"),
        ("mIoP", "82.7"),
        ("IoP@0.3", "100.0"),
        ("IoP@0.5", "95.5"),
        ("mIoU", "64.4"),
        ("IoU@0.3", "90.9"),
        ("IoU@0.5", "81.8"),
    ] {
        let line = table.lines().find(|l| l.starts_with(name)).unwrap();
        assert_eq!(line.split_whitespace().last(), Some(value), "{table}");
    }
}

#[test]
fn masks_equal_the_official_code_in_run_lengths_and_in_folders() {
    let (p, g) = (data("vos_predictions.jsonl"), data("vos_truth.jsonl"));
    let official: Value =
        serde_json::from_slice(&std::fs::read(data("vos_official.json")).unwrap()).unwrap();
    for (format, key) in [("davis", "davis"), ("ref-youtube-vos", "ref")] {
        let document = scores(&["--task", "mask", "--format", format], &p, Some(&g));
        for (name, expected) in official[key].as_object().unwrap() {
            close(&document["scores"][name], expected.as_f64().unwrap());
        }
    }

    // Object 1 of both videos, as folders of label images.
    let dir = tempfile::tempdir().unwrap();
    let read = |path: &Path| Table::<MaskTrack>::read(path, &Default::default()).unwrap();
    let first = |t: &&MaskTrack| t.object == SampleId::Number(1);
    let truth = read(&g);
    for (folder, table) in [("truth", &truth), ("results", &read(&p))] {
        for track in table.iter().filter(first) {
            let SampleId::Name(video) = &track.video else {
                panic!()
            };
            let to = dir.path().join(folder).join(video);
            std::fs::create_dir_all(&to).unwrap();
            let whole = truth.get(&format!("{video}/1")).unwrap();
            let [h, w] = whole.masks[0].as_ref().unwrap().size;
            for (i, mask) in track.masks.iter().enumerate() {
                let mask = mask.as_ref().map(|m| m.decode().unwrap());
                let image = image::GrayImage::from_fn(w as u32, h as u32, |x, y| {
                    let on = mask.as_ref().is_some_and(|m| m.0[[y as usize, x as usize]]);
                    image::Luma([on as u8])
                });
                image.save(to.join(format!("{i:05}.png"))).unwrap();
            }
        }
    }
    let lines = |path: &Path, name: &str| {
        let text = std::fs::read_to_string(path).unwrap();
        let kept: Vec<&str> = text
            .lines()
            .filter(|l| l.contains("\"object\":1"))
            .collect();
        let file = dir.path().join(name);
        std::fs::write(&file, kept.join("\n")).unwrap();
        file
    };
    let (p, g) = (lines(&p, "p.jsonl"), lines(&g, "g.jsonl"));
    let (results, truth) = (dir.path().join("results"), dir.path().join("truth"));
    let by_run = scores(&["--task", "mask"], &p, Some(&g));
    let by_file = scores(&["--task", "mask", "--strict"], &results, Some(&truth));
    assert_eq!(by_run["scores"], by_file["scores"]);

    std::fs::remove_file(results.join("tea/00002.png")).unwrap();
    let message = error(&["--task", "mask"], &results, Some(&truth));
    assert!(message.contains("00002.png"), "{message}");
    std::fs::remove_dir_all(results.join("tea")).unwrap();
    let message = error(&["--task", "mask", "--strict"], &results, Some(&truth));
    assert!(message.contains("first: tea"), "{message}");
}

#[test]
fn expressions_in_folders() {
    let dir = tempfile::tempdir().unwrap();
    let save = |path: &str, pixels: [u8; 4]| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_raw(2, 2, pixels.to_vec())
            .unwrap()
            .save(path)
            .unwrap();
    };
    // Frame 1 is not annotated; results are white masks.
    for frame in ["00000", "00002"] {
        save(&format!("truth/v/{frame}.png"), [1, 2, 1, 2]);
    }
    for frame in ["00000", "00001", "00002"] {
        save(&format!("results/v/0/{frame}.png"), [255, 0, 255, 0]);
        save(&format!("results/v/1/{frame}.png"), [255, 0, 0, 0]);
    }
    let meta = dir.path().join("meta.json");
    let expressions = r#"{"videos":{"v":{"expressions":{"0":{"exp":"left","obj_id":"1"},"1":{"exp":"right","obj_id":2}},"frames":[]}}}"#;
    std::fs::write(&meta, expressions).unwrap();
    let args = [
        "--task",
        "mask",
        "--format",
        "ref-youtube-vos",
        "--expressions",
        meta.to_str().unwrap(),
    ];
    let (results, truth) = (dir.path().join("results"), dir.path().join("truth"));
    let document = scores(&args, &results, Some(&truth));
    close(&document["scores"]["J-Mean"], 0.5);
    assert_eq!(document["matched"]["matched"], 2);
    let message = error(&args[..4], &results, Some(&truth));
    assert!(message.contains("--expressions"), "{message}");
}

#[test]
fn tracking_folders() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    // Exact, half, absent.
    write(
        "truth/cat-1/groundtruth.txt",
        "10,10,10,10\n10,10,10,10\n10,10,10,10\n",
    );
    write("truth/cat-1/full_occlusion.txt", "0,0,1");
    write("truth/cat-1/cover.label", "8\n8\n0\n");
    write(
        "truth/cat-1/meta_info.ini",
        "[METAINFO]\nresolution: (100, 100)\n",
    );
    write(
        "results/cat-1.txt",
        "10\t10\t10\t10\n10\t10\t10\t5\n50\t50\t1\t1\n",
    );
    let (results, truth) = (dir.path().join("results"), dir.path().join("truth"));
    let s = scores(
        &["--task", "track", "--format", "lasot"],
        &results,
        Some(&truth),
    );
    // Above 0 .. 0.45 two of three, up to 0.95 one.
    close(
        &s["scores"]["success AUC"],
        (10.0 * 2.0 / 3.0 + 10.0 / 3.0) / 21.0,
    );
    close(&s["scores"]["precision (20 px)"], 2.0 / 3.0);
    let s = scores(
        &["--task", "track", "--format", "got-10k"],
        &results,
        Some(&truth),
    );
    close(&s["scores"]["AO"], 0.5);
    close(&s["scores"]["SR0.5"], 0.0);
    write("results/cat-1.txt", "10,10,10,10\n10,x,10,5\n");
    let message = error(
        &["--task", "track", "--format", "lasot"],
        &results,
        Some(&truth),
    );
    assert!(
        message.contains("cat-1.txt:2: \"x\" is not a number"),
        "{message}"
    );
}

#[test]
fn regions_and_choices() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let p = file(
        "p.jsonl",
        "{\"id\":\"a\",\"box\":[0,0,1,0.5]}\n{\"id\":\"b\",\"box\":null}\n",
    );
    let g = file(
        "g.jsonl",
        "{\"id\":\"a\",\"box\":[0,0,1,1],\"split\":\"val\"}\n{\"id\":\"b\",\"box\":[0,0,1,1]}\n",
    );
    let s = scores(&["--task", "region"], &p, Some(&g));
    close(&s["scores"]["all"]["Acc@0.5"], 50.0);
    close(&s["scores"]["val"]["mIoU"], 50.0);

    let mvbench = file(
        "m.jsonl",
        "{\"id\":1,\"task_type\":\"Action Order\",\"pred\":\"(A) x\",\"gt\":\"(A) x\"}\n\
         {\"id\":2,\"task_type\":\"Action Order\",\"pred\":\"(B)\",\"gt\":\"(A) x\"}\n\
         {\"id\":3,\"task_type\":\"Count\",\"pred\":\"(\",\"gt\":\"(C) x\"}\n",
    );
    let s = scores(&["--task", "multiple-choice"], &mvbench, None);
    close(&s["scores"]["mean_of_groups"], 75.0);
    // As the task was called before.
    let s = scores(&["--task", "choice", "--rule", "letter"], &mvbench, None);
    close(&s["scores"]["mean_of_groups"], 25.0);

    // The JSON of MLVU's script.
    let mlvu = file(
        "mlvu.json",
        r#"{"acc_dict": {}, "res_list": [
            {"pred": "A) x", "gt": "(A) x", "question_type": "plotQA", "video": "a.mp4"},
            {"pred": "B. y", "gt": "(B) y", "question_type": "plotQA", "video": "a.mp4"},
            {"pred": "B", "gt": "(B) y", "question_type": "count", "video": "a.mp4"}]}"#,
    );
    let s = scores(
        &["--task", "multiple-choice", "--rule", "mlvu"],
        &mlvu,
        None,
    );
    close(&s["scores"]["groups"]["plotQA"], 50.0);
    close(&s["scores"]["mean_of_groups"], 75.0);

    let mme = file(
        "v.json",
        r#"[{"video_id":"1","duration":"short","domain":"Knowledge","questions":[
             {"task_type":"Counting Problem","answer":"C","response":"C. Berries."},
             {"task_type":"Counting Problem","answer":"D","response":"no idea"}]},
            {"video_id":"2","duration":"long","questions":[{"answer":"A","response":"B"}]}]"#,
    );
    let s = scores(
        &["--task", "multiple-choice", "--format", "video-mme"],
        &mme,
        None,
    );
    close(&s["scores"]["groups"]["short"], 100.0);
    close(&s["scores"]["overall"], 50.0);
    assert!(s["scores"]["groups"]["medium"].is_null());
}

#[test]
fn bad_rows_name_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let (p, g) = (dir.path().join("p.jsonl"), dir.path().join("g.jsonl"));
    std::fs::write(
        &g,
        "{\"qid\":1,\"relevant_windows\":[[0,10]]}\n{\"qid\":2,\"relevant_windows\":[[0,10]]}\n",
    )
    .unwrap();
    let good = "{\"qid\":1,\"pred_relevant_windows\":[[0,5,0.5]]}\n".as_bytes();
    let huge = format!(
        "{{\"qid\":2,\"query\":\"{}\",\"pred_relevant_windows\":[[0,5,NaN]]}}",
        "x".repeat(10 << 20)
    );
    let fields = "\"pred_saliency_scores\":[1]";
    let only_scores = format!("{{\"qid\":2,{fields}}}");
    for (bad, why) in [
        (
            "{\"qid\":2,\"pred_relevant_windows\":[[0,5,NaN]]}".as_bytes(),
            "NaN",
        ),
        (
            b"{\"qid\":2,\"pred_relevant_windows\":[[5,0,0.5]]}",
            "ends before it starts",
        ),
        (b"{\"qid\":2,\"pred_relevant_windows\":[]}", "empty list"),
        (b"{\"qid\":2,\"pred_relevant_windows\":[[0,5]]}", "no score"),
        (
            b"{\"qid\":1,\"pred_relevant_windows\":[[0,5,1]]}",
            "already on line 1",
        ),
        (
            b"{\"qid\":2,\"pred_relevant_windows\":[[0,5,1e999]]}",
            "number out of range",
        ),
        (
            b"{\"qid\":2,\"pred_windows\":[[0,5,1]]}",
            "neither `pred_relevant_windows`",
        ),
        (
            b"{\"qid\":2,\"query\":\"\xff\",\"pred_relevant_windows\":[[0,5,1]]}",
            "not UTF-8",
        ),
        (b"{\"qid\":2,\"pred_rel", "cut off"),
        (b"\x00\x01\x02", "one JSON object"),
        (only_scores.as_bytes(), "has no `pred_relevant_windows`"),
        (huge.as_bytes(), "NaN"),
    ] {
        std::fs::write(&p, [good, bad, b"\n"].concat()).unwrap();
        let message = error(&["--task", "temporal"], &p, Some(&g));
        assert!(
            message.contains("p.jsonl:2:") && message.contains(why),
            "{why}: {message}"
        );
    }
    std::fs::write(&p, [good, huge.as_bytes()].concat()).unwrap();
    let message = error(&["--task", "temporal", "--max-row-mib", "1"], &p, Some(&g));
    assert!(
        message.contains("p.jsonl:2: the line is longer than 1048576 bytes"),
        "{message}"
    );

    // What can be scored all the same.
    let reversed = b"{\"qid\":2,\"pred_relevant_windows\":[],\"mood\":1}";
    std::fs::write(&p, [good, reversed].concat()).unwrap();
    let s = scores(&["--task", "temporal", "--unusable", "score"], &p, Some(&g));
    close(&s["scores"]["full"]["MR-R1"]["0.5"], 50.0);
    assert_eq!(s["files"][0]["unknown_fields"][0]["name"], "mood");
    let message = error(
        &["--task", "temporal", "--unusable", "score", "--strict"],
        &p,
        Some(&g),
    );
    assert!(
        message.contains("p.jsonl:2: the format has no field `mood`"),
        "{message}"
    );
    std::fs::write(&p, [good, b"{\"qid\":2,"].concat()).unwrap();
    let s = scores(&["--task", "temporal", "--skip-bad-rows"], &p, Some(&g));
    assert_eq!(s["files"][0]["skipped"].as_array().unwrap().len(), 1);
    std::fs::write(&p, b"").unwrap();
    assert!(error(&["--task", "temporal"], &p, Some(&g)).contains("share no qid"));
    let none = dir.path().join("none.jsonl");
    assert!(error(&["--task", "temporal"], &none, Some(&g)).contains("none.jsonl"));
    assert!(
        error(&["--task", "region", "--format", "lasot"], &p, Some(&g))
            .contains("has no format lasot")
    );
    assert!(error(&["--task", "temporal"], &p, None).contains("--ground-truth"));
}

#[test]
fn the_help_shows_every_format() {
    let mut command = evaluate();
    let help = text(&command.arg("--help").output().unwrap());
    for format in [
        "qvhighlights",
        "charades-sta",
        "next-gqa",
        "davis",
        "ref-youtube-vos",
        "lasot",
        "got-10k",
        "refcoco",
        "mvbench",
        "video-mme",
        "mlvu",
        "perception-test",
        "mmiu",
        "seed-bench-2",
        "refcoco-jsonl",
        "refcoco-lmms",
    ] {
        assert!(help.matches(format).count() >= 2, "{format}");
    }
}

/// A model is run, its submission scored by itself gives the same numbers, and another protocol is
/// refused.
#[test]
fn a_model_is_run_and_its_submission_scores_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let go = |args: &[&str]| {
        let mut command = evaluate();
        command
            .args(["--preset", "nano", "--synthetic", "1", "--device", "cpu"])
            .args(["--task", "region", "--max-new-tokens", "2", "--out"])
            .arg(&out)
            .args(args);
        command.output().unwrap()
    };
    let output = go(&["--route", "always"]);
    assert!(output.status.success(), "{}", text(&output));
    let results: Value =
        serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["protocol"]["route"], "always");
    assert_eq!(results["scores"][0]["unanswered"], 0);
    let found = &results["scores"][0]["scores"];
    let miou = found
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["name"] == "mIoU")
        .unwrap();
    let again = scores(
        &["--task", "region", "--strict"],
        &out.join("submission/boxes.jsonl"),
        Some(&out.join("submission/boxes_truth.jsonl")),
    );
    close(
        &again["scores"]["all"]["mIoU"],
        miou["value"].as_f64().unwrap(),
    );

    let output = go(&["--route", "model"]);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output);
    assert!(
        message.contains("route") && message.contains("--restart"),
        "{message}"
    );
    let output = go(&["--route", "model", "--restart"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("region"), "{}", text(&output));
    // Neither a model nor predictions.
    let output = evaluate().args(["--task", "region"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--predictions"), "{}", text(&output));
}

/// The mask head goes through the frames that `--track` names; what is scored on every frame cannot be
/// asked of a few.
#[test]
fn the_mask_head_goes_through_the_frames_that_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let chat = |track: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpo"));
        command
            .args(["chat", "--preset", "nano", "--device", "cpu"])
            .args(["--video", "assets/bouncing_shapes.mp4"])
            .args(["--ask", "Follow it.", "--task", "mask"])
            .args([
                "--max-new-tokens",
                "2",
                "--track",
                track,
                "--threads",
                "1",
                "--out",
            ])
            .arg(dir.path().join("chat.png"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let (sampled, all) = (chat("sampled"), chat("all"));
    assert!(sampled.contains("of 8 frames]"), "{sampled}");
    assert!(
        all.contains(" frames]") && !all.contains("of 8 frames]"),
        "{all}"
    );

    let go = |task: &str| {
        let mut command = evaluate();
        command
            .args(["--preset", "nano", "--synthetic", "1", "--device", "cpu"])
            .args(["--max-new-tokens", "2", "--track", "sampled"])
            .args(["--task", task, "--out"])
            .arg(dir.path().join(task));
        command.output().unwrap()
    };
    let refused = go("mask");
    assert_eq!(refused.status.code(), Some(2));
    let message = text(&refused);
    assert!(message.contains("every frame") && message.contains("--track"));
    let output = go("region");
    assert!(output.status.success(), "{}", text(&output));
    let protocol = std::fs::read_to_string(dir.path().join("region/protocol.json")).unwrap();
    let protocol: Value = serde_json::from_str(&protocol).unwrap();
    assert_eq!(protocol["model"]["settings"]["track"], "sampled");
}
