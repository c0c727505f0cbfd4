//! Running a model over a benchmark: interrupted and resumed, refused, perfect, and in other
//! people's formats.

#[path = "evaluation/benchmarks.rs"]
mod benchmarks;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "evaluation/side_by_side.rs"]
mod side_by_side;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Int, TensorData};
use oracle::{Oracle, info_of};
use serde_json::{Value, json};
use tpo::core::prompt::{PromptIds, TextEncoder, Visual};
use tpo::core::traits::LanguageModel;
use tpo::data::prompts::videochat::VideoChatLayout;
use tpo::data::prompts::{AnswerStart, Opening, PromptLayout, VisualSlots};
use tpo::data::readers::Format;
use tpo::data::synthetic::{Split, WorldConfig};
use tpo::evaluation::*;
use tpo::llm::tokenizer::Tokenizer;
use tpo::prelude::*;

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(name)
}

fn nano() -> Session {
    let options = SessionOptions {
        max_new_tokens: 4,
        ..SessionOptions::default()
    };
    Session::nano(&Device::flex(), 3, options).unwrap()
}

fn world(clips: u64) -> WorldSpec {
    WorldSpec {
        world: WorldConfig {
            frames: 12,
            side: 32,
            max_objects: 2,
            ..WorldConfig::default()
        },
        seed: 5,
        split: Split::HeldOut,
        clips,
        choices: false,
    }
}

fn options(route: Route, kinds: &[ItemKind]) -> PlanOptions {
    PlanOptions {
        route,
        kinds: kinds.to_vec(),
        ..PlanOptions::default()
    }
}

/// Runs to the end.
fn finish(plan: &Plan, answerer: &mut dyn Answerer, dir: &Path) -> Results {
    match run(plan, answerer, dir, &RunOptions::default(), &mut |_| true).unwrap() {
        RunOutcome::Done(results) => *results,
        RunOutcome::Stopped(at) => panic!("stopped at {at:?}"),
    }
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

fn value(results: &Results, task: &str, score: &str) -> f64 {
    let task = results.scores.iter().find(|s| s.task == task);
    let task = task.unwrap_or_else(|| panic!("no task in {results:?}"));
    let found = task.scores.iter().find(|s| s.name == score);
    found
        .unwrap_or_else(|| panic!("no {score} in {task:?}"))
        .value
        .unwrap()
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let plan = Plan::synthetic(&world(2), options(Route::Always, &[])).unwrap();
    let kinds = |k: ItemKind| plan.items.iter().filter(|i| i.kind() == k).count();
    for kind in [
        ItemKind::Text,
        ItemKind::Region,
        ItemKind::Temporal,
        ItemKind::Mask,
    ] {
        assert!(kinds(kind) > 0, "{kind:?}");
    }
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let session = nano();
    let mut model =
        SessionAnswerer::new(&session, "nano", Route::Always, AnswerForm::Heads).unwrap();
    let results = finish(&plan, &mut model, whole.path());
    assert_eq!(
        (results.questions, results.failed.len()),
        (plan.items.len(), 0)
    );
    // Every head was called, so every question has an answer.
    assert!(results.scores.iter().all(|s| s.unanswered == 0));
    assert_eq!(results.scores.len(), 4);

    let stop_at = plan.items.len() / 2;
    let outcome = run(
        &plan,
        &mut model,
        broken.path(),
        &RunOptions::default(),
        &mut |p| p.done < stop_at,
    )
    .unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(p) if p.done == stop_at));
    assert!(!broken.path().join(RESULTS_FILE).exists());
    // The power went while a row was being written.
    let log = broken.path().join(PREDICTIONS_FILE);
    let mut bytes = std::fs::read(&log).unwrap();
    bytes.extend(b"{\"id\":\"held_out-0000");
    std::fs::write(&log, bytes).unwrap();

    let mut first = None;
    let outcome = run(
        &plan,
        &mut model,
        broken.path(),
        &RunOptions::default(),
        &mut |p| {
            first.get_or_insert(p);
            true
        },
    )
    .unwrap();
    assert!(matches!(outcome, RunOutcome::Done(_)));
    let first = first.unwrap();
    assert_eq!((first.done, first.resumed), (stop_at, stop_at));
    for name in [PREDICTIONS_FILE, RESULTS_FILE, PROTOCOL_FILE] {
        assert_eq!(
            read(whole.path(), name),
            read(broken.path(), name),
            "{name}"
        );
    }

    // A finished run asks nothing again.
    let again = finish(&plan, &mut model, broken.path());
    assert_eq!(again, results);

    // Another protocol is refused by name, and started over on request.
    let other = Plan::synthetic(&world(2), options(Route::Model, &[])).unwrap();
    let e = run(
        &other,
        &mut model,
        whole.path(),
        &RunOptions::default(),
        &mut |_| true,
    )
    .unwrap_err();
    let tpo::Error::EvaluationProtocol { differences, .. } = &e else {
        panic!("{e}");
    };
    assert_eq!(differences, &["route: \"always\" then, \"model\" now"]);
    let restart = RunOptions {
        restart: true,
        ..RunOptions::default()
    };
    let outcome = run(&other, &mut model, whole.path(), &restart, &mut |p| {
        p.done < 1
    })
    .unwrap();
    assert!(matches!(outcome, RunOutcome::Stopped(_)));
    assert_eq!(
        read(whole.path(), PREDICTIONS_FILE)
            .split(|b| *b == b'\n')
            .count(),
        2
    );

    // Rows of other questions are damage, not answers.
    let log = broken.path().join(PREDICTIONS_FILE);
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::write(
        &log,
        text.replacen("held_out-000000/0", "held_out-000009/0", 1),
    )
    .unwrap();
    let e = run(
        &plan,
        &mut model,
        broken.path(),
        &RunOptions::default(),
        &mut |_| true,
    );
    assert!(matches!(e, Err(tpo::Error::Evaluation { .. })), "{e:?}");
    // Answers without a protocol are nobody's.
    std::fs::remove_file(broken.path().join(PROTOCOL_FILE)).unwrap();
    let e = run(
        &plan,
        &mut model,
        broken.path(),
        &RunOptions::default(),
        &mut |_| true,
    );
    assert!(e.unwrap_err().to_string().contains("--restart"));
}

#[test]
fn a_head_that_is_not_called_is_a_miss() {
    let kinds = [ItemKind::Region, ItemKind::Temporal];
    let plan = Plan::synthetic(&world(1), options(Route::Model, &kinds)).unwrap();
    // Random weights do not call heads in four tokens; this one says nothing at all.
    struct Silent;
    impl Answerer for Silent {
        fn identity(&mut self) -> tpo::Result<AnswererIdentity> {
            Ok(AnswererIdentity {
                name: "silent".into(),
                weights: String::new(),
                settings: Value::Null,
            })
        }
        fn answer(&mut self, items: &[&Item]) -> Vec<Answered> {
            let silent = |item: &&Item| Answered {
                media: Some(info_of(&item.media)),
                reply: Ok(Reply::default()),
            };
            items.iter().map(silent).collect()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let results = finish(&plan, &mut Silent, dir.path());
    for task in &results.scores {
        assert_eq!(task.unanswered, task.questions);
        for score in &task.scores {
            assert_eq!(score.value, Some(0.0), "{} {}", task.task, score.name);
        }
    }
    let all = BTreeMap::from([("nothing".to_string(), results.questions)]);
    assert_eq!(results.not_called, all);
}

#[test]
fn perfect_answers_score_a_hundred() {
    let mut spec = world(3);
    spec.choices = false;
    let plan = Plan::synthetic(&spec, options(Route::Model, &[])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let results = finish(&plan, &mut Oracle(AnswerForm::Heads), dir.path());
    for (task, score) in [
        ("text", "exact match"),
        ("text", "mean of kinds"),
        ("region", "Acc@0.75"),
        ("region", "mIoU"),
        ("temporal", "R1@0.7"),
        ("temporal", "mIoU"),
        ("temporal", "HL mAP Fair"),
        ("temporal", "HIT@1 Fair"),
        ("mask", "J&F"),
    ] {
        let got = value(&results, task, score);
        assert!((got - 100.0).abs() < 1e-3, "{task} {score} {got}");
    }
    assert!(results.scores[0].groups.len() > 3, "kinds of question");
    let rows = String::from_utf8(read(dir.path(), "submission/text.jsonl")).unwrap();
    let texts = results.scores.iter().find(|t| t.task == "text").unwrap();
    assert_eq!(rows.lines().count(), texts.questions);
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let [pred, gt, question] = ["pred", "gt", "question"].map(|k| row[k].as_str().unwrap());
        assert_eq!(row["right"], true);
        assert!(pred.to_lowercase().contains(&gt.to_lowercase()), "{row}");
        assert!(!gt.is_empty() && !question.is_empty(), "{row}");
    }

    spec.choices = true;
    let plan = Plan::synthetic(&spec, options(Route::Model, &[ItemKind::MultipleChoice])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let results = finish(&plan, &mut Oracle(AnswerForm::Heads), dir.path());
    assert_eq!(value(&results, "multiple_choice", "accuracy"), 100.0);
}

#[test]
fn answers_in_words_are_scored_alike() {
    let plan = PlanOptions {
        answers: AnswerForm::Text,
        kinds: vec![ItemKind::Region, ItemKind::Temporal],
        ..PlanOptions::default()
    };
    let plan = Plan::synthetic(&world(2), plan).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let oracle = &mut Oracle(AnswerForm::Text);
    assert_eq!(oracle.0, plan.answers);
    let results = finish(&plan, oracle, dir.path());
    assert_eq!(value(&results, "region", "Acc@0.5"), 100.0);
    assert_eq!(value(&results, "temporal", "R1@0.7"), 100.0);
    let temporal = results
        .scores
        .iter()
        .find(|s| s.task == "temporal")
        .unwrap();
    assert!(temporal.scores.iter().all(|s| !s.name.starts_with("HL")));
}

/// Numbers within 1e-4, everything else equal. Times are rounded to four decimals, where a hair's breadth
/// may be a whole step.
fn assert_alike(a: &Value, b: &Value, place: &str) {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() < 1.01e-4, "{place}: {x}, {y}");
        }
        (Value::Array(x), Value::Array(y)) => {
            assert_eq!(x.len(), y.len(), "{place}");
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                assert_alike(x, y, &format!("{place}[{i}]"));
            }
        }
        (Value::Object(x), Value::Object(y)) => {
            assert!(x.keys().eq(y.keys()), "{place}");
            for (key, x) in x {
                assert_alike(x, &y[key], &format!("{place}.{key}"));
            }
        }
        _ => assert_eq!(a, b, "{place}"),
    }
}

/// Questions about several clips that are answered together get the answers they get one by one:
/// words, boxes, spans, masks and scores, however heads are called.
#[test]
fn a_batch_answers_as_one_by_one() {
    let spec = WorldSpec {
        world: WorldConfig::default(),
        seed: 7,
        split: Split::HeldOut,
        clips: 2,
        choices: false,
    };
    let dir = tempfile::tempdir().unwrap();
    for (route, order) in [
        (Route::Model, CallOrder::AsTrained),
        (Route::Always, CallOrder::AsReference),
    ] {
        let options = SessionOptions {
            max_new_tokens: 24,
            call_order: Some(order),
            ..SessionOptions::default()
        };
        let session = tpo::presets::mini(&Device::flex(), options).unwrap();
        let plan = PlanOptions {
            route,
            ..PlanOptions::default()
        };
        let plan = Plan::synthetic(&spec, plan).unwrap();
        let mut model = SessionAnswerer::new(&session, "mini", route, AnswerForm::Heads).unwrap();
        let mut found: Vec<Vec<Value>> = Vec::new();
        for batch in [1, 5, plan.items.len()] {
            let options = RunOptions {
                batch: batch.try_into().unwrap(),
                ..RunOptions::default()
            };
            let run_dir = dir.path().join(format!("{order:?} {batch}"));
            let outcome = run(&plan, &mut model, &run_dir, &options, &mut |_| true).unwrap();
            let RunOutcome::Done(results) = outcome else {
                panic!("it was not stopped")
            };
            assert!(results.failed.is_empty(), "{:?}", results.failed);
            let rows = String::from_utf8(read(&run_dir, PREDICTIONS_FILE)).unwrap();
            let rows = rows.lines().map(|row| serde_json::from_str(row).unwrap());
            let mut rows: Vec<Value> = rows.collect();
            rows.push(serde_json::to_value(&results.scores).unwrap());
            found.push(rows);
        }
        let called = |rows: &[Value]| {
            let calls = rows.iter().filter_map(|row| row["called"].get(0)?.as_str());
            calls.map(str::to_string).collect::<BTreeSet<_>>()
        };
        assert_eq!(called(&found[0]).len(), 3, "every head answers");
        for together in &found[1..] {
            assert_eq!(together.len(), found[0].len());
            for (alone, together) in found[0].iter().zip(together) {
                assert_alike(together, alone, &alone["id"].to_string());
            }
        }
    }
}

/// The ids of the published multiple-choice prompt: the texts of the specification (section 10), each
/// piece encoded by itself with the real tokenizer; and those of the wording of before.
#[test]
fn multiple_choice_is_asked_as_published() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("tpo-llm/tests/fixtures/mistral_v1/tokenizer.model");
    let tokenizer = Tokenizer::from_sentencepiece(file, Default::default()).unwrap();
    let opening = |prompts: &Prompts| {
        let options = ["It runs.", "It sits."].map(String::from);
        let ask = prompts.multiple_choice("What does it do?", &options);
        let opening = Opening {
            system: &ask.system,
            visuals: &[VisualSlots {
                kind: Visual::Video,
                count: 96,
            }],
            answer: AnswerStart {
                prefix: &ask.answer_prefix,
                joined: ask.answer_joined,
            },
            ..Opening::text(&ask.text)
        };
        VideoChatLayout.opening(&opening, &tokenizer).unwrap()
    };
    let expected = |system: &str, tail: &str| {
        let encode = |text: &str| tokenizer.encode_with_bos(text).unwrap();
        let question = "Question: What does it do?\nOptions:\n(A) It runs.\n(B) It sits.\nOnly give \
                        the best option.";
        let mut ids = PromptIds::default();
        ids.push_text(&encode(&format!("{system}[INST] <Video>")));
        ids.push_visual(96);
        ids.push_text(&encode("</Video>[/INST]"));
        ids.push_text(&encode(&format!(" [INST] {question} {tail}")));
        ids
    };
    let published = opening(&Prompts::published());
    assert_eq!(published, expected("", "[/INST]Best Option: ("));
    // BOS, `[INST] <Video>`; `[/INST]`, `Best`, ` Option`, `:`, ` (`, and no space after it.
    assert_eq!(published.ids[..5], [1, 733, 16289, 28793, 523]);
    let end = published.len() - 8;
    let tail = published.ids[end..]
        .iter()
        .map(|id| tokenizer.id_to_token(*id).unwrap());
    let pieces = ["▁[", "/", "INST", "]", "Best", "▁Option", ":", "▁("];
    assert_eq!(tail.collect::<Vec<_>>(), pieces);
    let before = Prompts::videochat2();
    let system = before.choice_system.as_str();
    assert!(system.starts_with("Carefully watch the video"));
    assert_eq!(opening(&before), expected(system, "[/INST] Best option:("));
    assert_eq!(opening(&Prompts::plain()).visual_slots(), 96);
}

/// `generate_answer` has a `min_length` of 1: its first token is no end.
#[test]
fn a_published_answer_is_not_empty() {
    let mut options = SessionOptions::default();
    let said = |options: &SessionOptions, published: bool| {
        let session = Session::nano(&Device::flex(), 3, options.clone()).unwrap();
        let question = Question {
            answer_joined: published,
            ..Question::new("Why?")
        };
        let prepared = session.prepare(&question).unwrap();
        session.answer_together(vec![prepared]).unwrap().remove(0)
    };
    // Nothing but the end can be said.
    let session = nano();
    let ends = session.tokenizer().eos_ids();
    let ids = 0..session.tokenizer().vocab_size() as u32;
    options.decoding.suppress_tokens = ids.filter(|id| !ends.contains(id)).collect();
    assert_eq!(said(&options, false).unwrap().text, "");
    let error = said(&options, true).unwrap_err().to_string();
    assert!(error.contains("nothing is left to choose"), "{error}");
}

/// MVBench's own layout, asked with its prompt about a part of the sample clip.
#[test]
fn mvbench_in_its_own_layout() {
    let dir = tempfile::tempdir().unwrap();
    let rows = json!([
        {"video": "bouncing_shapes.mp4", "question": "How many circles are there?",
         "candidates": ["1", "2", "3"], "answer": "2"},
        {"video": "bouncing_shapes.mp4", "question": "What happens?", "start": 0.5, "end": 1.5,
         "candidates": ["Nothing.", "It moves."], "answer": "It moves."},
    ]);
    for task in ["action_sequence", "action_count"] {
        let file = dir.path().join(format!("{task}.json"));
        std::fs::write(file, rows.to_string()).unwrap();
    }
    // The benchmark's folder of videos of one task; the other one's lie flat.
    let videos = dir.path().join("videos");
    std::fs::create_dir_all(videos.join("perception/videos")).unwrap();
    let clip = asset("bouncing_shapes.mp4");
    std::fs::copy(&clip, videos.join("perception/videos/bouncing_shapes.mp4")).unwrap();
    std::fs::copy(&clip, videos.join("bouncing_shapes.mp4")).unwrap();
    let mut data = DataFile::new(dir.path(), Some(Format::MvBench));
    data.media = Some(videos);
    let plan = Plan::from_file(&data, PlanOptions::default()).unwrap();
    let names: Vec<_> = plan.items.iter().map(|i| i.group.as_str()).collect();
    assert_eq!(
        names,
        [
            "Action Sequence",
            "Action Sequence",
            "Action Count",
            "Action Count"
        ]
    );
    assert_eq!(plan.prompts, Prompts::published());
    assert_eq!(plan.items[0].ask.answer_prefix, "Best Option: (");
    assert_eq!(
        plan.items[0].ask.text,
        "Question: How many circles are there?\nOptions:\n(A) 1\n(B) 2\n(C) 3\nOnly give the best \
         option."
    );
    let runs = tempfile::tempdir().unwrap();
    let perfect = finish(
        &plan,
        &mut Oracle(AnswerForm::Heads),
        &runs.path().join("a"),
    );
    assert_eq!(value(&perfect, "multiple_choice", "mean of groups"), 100.0);

    let session = nano();
    let mut model =
        SessionAnswerer::new(&session, "nano", Route::Model, AnswerForm::Heads).unwrap();
    let results = finish(&plan, &mut model, &runs.path().join("b"));
    assert!(results.failed.is_empty(), "{:?}", results.failed);
    assert_eq!(results.scores[0].questions, 4);
    let lines = read(&runs.path().join("b"), "submission/multiple_choice.jsonl");
    let first: Value =
        serde_json::from_slice(lines.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(first["gt"], "(B) 2");
    assert!(first["pred"].as_str().unwrap().starts_with('('));
    // The part of a video is another video: same question, other times.
    let rows = String::from_utf8(read(&runs.path().join("b"), PREDICTIONS_FILE)).unwrap();
    let durations: Vec<f64> = rows
        .lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).unwrap()["media"]["duration"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert_eq!(durations[1], 1.0);
    assert!(durations[0] > 1.5);
}

/// Every format's own file gives full marks to who knows everything.
#[test]
fn formats_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    std::fs::copy(asset("bouncing_shapes.mp4"), dir.path().join("v.mp4")).unwrap();
    let runs = tempfile::tempdir().unwrap();
    let score = |data: &DataFile, name: &str| {
        let plan = Plan::from_file(data, PlanOptions::default()).unwrap();
        assert!(plan.skipped.is_empty(), "{:?}", plan.skipped);
        finish(
            &plan,
            &mut Oracle(AnswerForm::Heads),
            &runs.path().join(name),
        )
    };

    let qv = write(
        "qv.jsonl",
        concat!(
            r#"{"qid": 7, "query": "it turns", "vid": "v", "relevant_windows": [[0, 2]], "relevant_clip_ids": [0], "saliency_scores": [[4, 4, 3]]}"#,
            "\n",
        ),
    );
    let results = score(&DataFile::new(&qv, Some(Format::QvHighlights)), "qv");
    assert_eq!(value(&results, "temporal", "mAP"), 100.0);
    assert_eq!(value(&results, "temporal", "HIT@1 VeryGood"), 100.0);
    let line = read(&runs.path().join("qv"), "submission/windows.jsonl");
    let line: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!((&line["qid"], &line["vid"]), (&json!(7), &json!("v")));
    assert_eq!(line["pred_relevant_windows"], json!([[0.0, 2.0, 0.9]]));

    let charades = write(
        "ch.txt",
        "v 0.2 1.9##a shape moves.\nv 0.5 1.0##it turns.\n",
    );
    let results = score(&DataFile::new(&charades, Some(Format::CharadesJsonl)), "ch");
    assert_eq!(value(&results, "temporal", "R1@0.7"), 100.0);

    let gqa = write(
        "gqa.csv",
        "video_id,question,answer,qid,type,a0,a1,a2,a3,a4\nv,why,to run,3,CW,sit,to run,c,d,e\n",
    );
    let mut data = DataFile::new(&gqa, Some(Format::NextGqa));
    let spans = r#"{"v": {"duration": 2.0, "location": {"3": [[0.5, 1.5]]}}}"#;
    data.convert.second = Some(write("gsub.json", spans));
    let results = score(&data, "gqa");
    assert_eq!(value(&results, "grounded", "Acc@GQA"), 100.0);
    assert_eq!(value(&results, "grounded", "mIoU"), 100.0);

    let mme = write(
        "mme.json",
        r#"[{"videoID": "v", "duration": "short", "question_id": "1-1", "question": "What?", "options": ["A. x", "B. y"], "answer": "B", "task_type": "Counting"}]"#,
    );
    let results = score(&DataFile::new(&mme, Some(Format::VideoMme)), "mme");
    assert_eq!(value(&results, "multiple_choice", "accuracy"), 100.0);

    let frames = |folder: &str| {
        for i in 1..=3 {
            let path = dir.path().join(format!("{folder}/{i:08}.png"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(40, 30, image::Rgb([i as u8 * 40; 3]))
                .save(path)
                .unwrap();
        }
    };
    frames("lasot/cat/cat-1/img");
    write(
        "lasot/cat/cat-1/groundtruth.txt",
        "4,4,10,8\n5,4,10,8\n6,5,10,8\n",
    );
    write("lasot/cat/cat-1/full_occlusion.txt", "0,0,1");
    write("lasot/cat/cat-1/nlp.txt", "the cat");
    let results = score(
        &DataFile::new(dir.path().join("lasot"), Some(Format::LaSot)),
        "lasot",
    );
    assert!(value(&results, "track", "success") > 60.0);
    assert!(value(&results, "track", "precision") > 60.0);
    let text = read(&runs.path().join("lasot"), "submission/track/cat-1.txt");
    assert_eq!(String::from_utf8(text).unwrap().lines().count(), 3);

    frames("got/GOT-10k_Val_000001");
    write(
        "got/GOT-10k_Val_000001/groundtruth.txt",
        "4,4,10,8\n5,4,10,8\n6,5,10,8\n",
    );
    let results = score(
        &DataFile::new(dir.path().join("got"), Some(Format::Got10k)),
        "got",
    );
    assert!((value(&results, "track", "AO") - 100.0).abs() < 1e-3);
}

#[test]
fn media_that_cannot_be_read_costs_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(asset("bouncing_shapes.mp4"), dir.path().join("v.mp4")).unwrap();
    let rows = concat!(
        r#"{"id": "a", "media": {"video": "none.mp4"}, "turns": [{"question": "What?", "answer": "red"}, {"question": "Who?", "answer": "he"}], "meta": {"kinds": ["what", "who"]}}"#,
        "\n{\n",
        r#"{"id": "b", "media": {"video": "v.mp4"}, "turns": [{"question": "What?", "answer": "red"}], "meta": {"kind": "what"}}"#,
        "\n",
    );
    let file = dir.path().join("rows.jsonl");
    std::fs::write(&file, rows).unwrap();
    let plan = Plan::from_file(&DataFile::new(&file, None), PlanOptions::default()).unwrap();
    assert_eq!(plan.skipped.len(), 1);
    let ids: Vec<_> = plan
        .items
        .iter()
        .map(|i| (i.id.as_str(), i.group.as_str()))
        .collect();
    assert_eq!(ids, [("a/1", "what"), ("a/2", "who"), ("b", "what")]);
    let session = nano();
    let mut model =
        SessionAnswerer::new(&session, "nano", Route::Model, AnswerForm::Heads).unwrap();
    let run_dir = dir.path().join("run");
    let results = finish(&plan, &mut model, &run_dir);
    let failed: Vec<_> = results.failed.iter().map(|f| f.id.as_str()).collect();
    assert_eq!(failed, ["a/1", "a/2"]);
    assert!(
        results.failed[0].why.contains("none.mp4"),
        "{:?}",
        results.failed
    );
    assert_eq!(results.scores[0].questions, 1);

    let strict = RunOptions {
        strict: true,
        ..RunOptions::default()
    };
    let e = run(
        &plan,
        &mut model,
        dir.path().join("strict"),
        &strict,
        &mut |_| true,
    );
    assert!(matches!(e, Err(tpo::Error::Evaluation { .. })));

    // Once the file is there the same command asks what failed, and nothing else.
    let before = read(&run_dir, PREDICTIONS_FILE);
    std::fs::copy(asset("bouncing_shapes.mp4"), dir.path().join("none.mp4")).unwrap();
    let mut heard = Vec::new();
    let options = RunOptions::default();
    let outcome = run(&plan, &mut model, &run_dir, &options, &mut |p| {
        heard.push((p.done, p.resumed));
        true
    });
    let RunOutcome::Done(results) = outcome.unwrap() else {
        panic!("it was not stopped");
    };
    assert!(results.failed.is_empty(), "{:?}", results.failed);
    assert_eq!(heard, [(1, 1), (2, 1), (3, 1)]);
    let fresh = dir.path().join("fresh");
    finish(&plan, &mut model, &fresh);
    let after = read(&run_dir, PREDICTIONS_FILE);
    assert_eq!(after, read(&fresh, PREDICTIONS_FILE));
    assert_ne!(after, before);

    // In a batch it costs the others nothing.
    std::fs::remove_file(dir.path().join("none.mp4")).unwrap();
    let together = RunOptions {
        batch: 3.try_into().unwrap(),
        ..RunOptions::default()
    };
    let run_dir = dir.path().join("together");
    let mut heard = Vec::new();
    let outcome = run(&plan, &mut model, &run_dir, &together, &mut |p| {
        heard.push(p.done);
        true
    });
    assert!(matches!(outcome, Ok(RunOutcome::Done(r)) if r.failed.len() == 2));
    assert_eq!(heard, [0, 3]);
    let rows = |bytes: Vec<u8>| -> Vec<PredictionRow> {
        let rows = String::from_utf8(bytes).unwrap();
        rows.lines()
            .map(|row| serde_json::from_str(row).unwrap())
            .collect()
    };
    let [before, after] = [before, read(&run_dir, PREDICTIONS_FILE)].map(rows);
    assert_eq!(before, after);
}

#[test]
fn a_training_checkpoint_is_no_folder_of_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let e = Session::open_checkpoint(dir.path(), &Device::flex(), SessionOptions::default());
    assert!(matches!(e, Err(tpo::Error::Train(_))), "{e:?}");
}

/// What a stage made of the adapters is what the checkpoint is opened with.
#[test]
fn a_checkpoint_has_the_adapters_of_its_stage() {
    const RECIPE: &str = r#"
name = "adapters"
# Other tests draw from the same generator, so weights that did not learn cannot be drawn again.
checkpoints = { weights = "all" }
model = { preset = "nano", lora = { rank = 4, alpha = 8.0 } }

[[stages]]
name = "first"
length = { steps = 2 }
batch_size = 1
data = { sources = [{ name = "chat", synthetic = { tasks = ["chat"], rows = 4 } }] }
groups = [{ name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-2 }]

[[stages]]
name = "second"
length = { steps = 2 }
batch_size = 1
LORA
data = { sources = [{ name = "chat", synthetic = { tasks = ["chat"], rows = 4 } }] }
groups = [{ name = "lora", patterns = ["llm.**.lora.*"], learning_rate = 1e-2 }]
"#;
    let device = Device::flex();
    let logits = |llm: &tpo::llm::CausalLm| -> Vec<f32> {
        let ids = TensorData::new(vec![5i64, 9, 40, 7], [1, 4]);
        let embeds = llm.embed(Tensor::<2, Int>::from_data(ids, &device));
        let hidden = llm.hidden(embeds, None).unwrap();
        llm.logits(hidden).into_data().iter::<f32>().collect()
    };
    for lora in [
        "lora = { rank = 4, alpha = 2.0 }",
        "lora = { rank = 3, alpha = 3.0, targets = [\"q_proj\"] }",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = RECIPE.replace("LORA", lora);
        let recipe = tpo::train::Recipe::read::<&str>(&text, "r", &[]).unwrap();
        let options = tpo::training::RunOptions::new(dir.path(), &device);
        let trained = tpo::training::run_recipe::<BuiltInHeads>(&recipe, &options)
            .unwrap()
            .model;
        let options = SessionOptions::default();
        let opened = Session::open_checkpoint(dir.path(), &device, options).unwrap();
        assert_eq!(opened.config().llm.lora, trained.config.llm.lora);
        let (found, expected) = (logits(&opened.model().llm), logits(&trained.model.llm));
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{lora}: {a}, expected {b}");
        }
    }
}

/// Features of queries are found by the name that training goes by.
#[test]
fn queries_go_by_the_name_of_their_row() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let row = |id: &str, queries: &[&str]| {
        let annotations: Vec<Value> = queries
            .iter()
            .map(|q| json!({"task": "temporal", "query": q, "spans": [[1.0, 2.5]]}))
            .collect();
        json!({"id": id, "media": {"video": "v.mp4"}, "annotations": annotations})
    };
    let rows = [
        row("17", &["it turns"]),
        row("17", &["it stops"]),
        row("18", &["it turns", "it stops"]),
    ];
    let mut text: String = rows.iter().map(|r| format!("{r}\n")).collect();
    let mut nameless = row("", &["it turns"]);
    nameless.as_object_mut().unwrap().remove("id");
    text += &format!("{nameless}\n");
    std::fs::write(&file, text).unwrap();
    let plan = Plan::from_file(&DataFile::new(&file, None), PlanOptions::default()).unwrap();
    let names: Vec<_> = plan
        .items
        .iter()
        .map(|i| (i.id.as_str(), i.query_id.as_deref()))
        .collect();
    let expected = [
        ("17", Some("17")),
        ("17 (2)", Some("17")),
        ("18/1", None),
        ("18/2", None),
        ("line 4", None),
    ];
    assert_eq!(names, expected);
}

#[test]
fn frames_in_memory_are_looked_at() {
    let mut session = nano();
    let clip = &tpo::data::synthetic::World::new(world(1).world, 5)
        .unwrap()
        .clip(Split::HeldOut, 0);
    let frames: Vec<_> = clip
        .scene
        .render_all()
        .iter()
        .map(|f| f.to_frame().unwrap())
        .collect();
    let media = session.load_frames("clip", frames, clip.scene.fps).unwrap();
    assert_eq!((media.size, media.frame_count), ((32, 32), 12));
    assert_eq!(media.duration, Some(6.0));
    let ask = |s: &mut Session, task: &str| {
        let question = Question::new("Where?").with_task(task);
        s.ask(question).unwrap().collect_reply().unwrap()
    };
    let reply = ask(&mut session, "temporal");
    let when: &TemporalPrediction = reply.tasks[0].get().unwrap();
    // The nano model samples by the rule Shown: each of the twelve frames of six seconds.
    assert_eq!((when.duration, when.saliency.len()), (6.0, 12));
    let reply = ask(&mut session, "mask");
    let mask: &MaskPrediction = reply.tasks[0].get().unwrap();
    assert_eq!(mask.frames.len(), 12);
    session.clear_media();
    assert!(session.media().is_none());
    assert!(session.load_frames("none", Vec::new(), 2.0).is_err());
}
