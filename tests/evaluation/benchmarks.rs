//! MLVU, Perception Test, MMIU, SEED-Bench-2 and the RefCOCO family, with scores worked by hand.

use tpo::data::prompts::box_text;
use tpo::llm::vocabulary::TokenPlan;
use tpo::model::PromptStyle;
use tpo::presets::{mini, mini_tokenizer};

use super::*;

/// Says what it is told, question by question.
struct Says(BTreeMap<String, String>);

impl Says {
    fn new<const N: usize>(answers: [(&str, &str); N]) -> Self {
        Self(answers.map(|(id, text)| (id.into(), text.into())).into())
    }
}

impl Answerer for Says {
    fn identity(&mut self) -> tpo::Result<AnswererIdentity> {
        Ok(AnswererIdentity {
            name: "says".into(),
            weights: String::new(),
            settings: Value::Null,
        })
    }

    fn answer(&mut self, items: &[&Item]) -> Vec<Answered> {
        let answer = |item: &&Item| {
            let reply = Reply {
                text: self.0.get(&item.id).cloned().unwrap_or_default(),
                ..Reply::default()
            };
            Answered {
                media: Some(info_of(&item.media)),
                reply: Ok(reply),
            }
        };
        items.iter().map(answer).collect()
    }
}

/// The mini model with the prompts of a base that reads several images. It knows none of the words.
fn reads_several() -> Session {
    let options = SessionOptions {
        max_new_tokens: 2,
        ..SessionOptions::default()
    };
    let device = Device::flex();
    let known = mini(&device, options.clone()).unwrap();
    let (mut model, mut config) = (known.model().clone(), known.config().clone());
    let mut tokenizer = mini_tokenizer().unwrap();
    let ends = PromptStyle::Qwen.layout().ends().iter().copied();
    let tokens = ends.chain(["<|im_start|>"]);
    let plan = TokenPlan::new(&tokenizer, config.llm.vocab_size, tokens);
    model.llm = plan.apply(&mut tokenizer, model.llm).unwrap();
    config.llm.vocab_size = model.llm.config().vocab_size;
    config.prompt = PromptStyle::Qwen;
    Session::new(model, config, tokenizer, &device, options).unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn json(&self, name: &str, value: Value) -> PathBuf {
        self.write(name, value.to_string().as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn video(&self, name: &str) {
        self.write(name, &std::fs::read(asset("bouncing_shapes.mp4")).unwrap());
    }

    fn picture(&self, name: &str) {
        let path = self.write(name, &[]);
        let picture = image::RgbImage::from_pixel(64, 64, image::Rgb([9; 3]));
        picture
            .save_with_format(path, image::ImageFormat::Png)
            .unwrap();
    }

    fn score(&self, plan: &Plan, says: &mut Says, run: &str) -> Results {
        let results = finish(plan, says, &self.0.path().join(run));
        assert_eq!(results.failed, []);
        results
    }

    fn submitted(&self, run: &str, file: &str) -> Value {
        serde_json::from_slice(&self.lines(run, file)).unwrap()
    }

    fn lines(&self, run: &str, file: &str) -> Vec<u8> {
        read(&self.0.path().join(run).join(SUBMISSION_DIR), file)
    }
}

fn plan_of(file: &DataFile) -> Plan {
    Plan::from_file(file, PlanOptions::default()).unwrap()
}

fn near(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-9,
        "{found}, expected {expected}"
    );
}

fn groups(results: &Results) -> Vec<(&str, usize, Option<f64>)> {
    let groups = results.scores[0].groups.iter();
    let groups = groups.map(|g| (g.group.as_str(), g.questions, g.scores[0].value));
    groups.collect()
}

#[test]
fn mlvu_is_the_mean_of_its_tasks() {
    let f = Folder::new();
    let row = |kind: &str, answer: &str| {
        json!({"video": "v.mp4", "duration": 2.0, "question": "How many?",
            "candidates": ["1", "2"], "answer": answer, "question_type": kind})
    };
    f.json("json/4_count.json", json!([row("count", "1")]));
    let empty = json!({"video": "v.mp4", "question": "", "candidates": ["", ""], "answer": "", "question_type": "plotQA"});
    f.json(
        "json/1_plotQA.json",
        json!([
            row("plotQA", "1"),
            empty,
            row("plotQA", "2"),
            row("plotQA", "3")
        ]),
    );
    // Open questions stand beside them.
    f.json("json/9_summary.json", json!([{"video": "v.mp4", "question": "Summarise.", "answer": "A.", "question_type": "summary"}]));
    f.video("video/1_plotQA/v.mp4");
    f.video("video/v.mp4");
    let mut data = DataFile::new(f.0.path().join("json"), Some(Format::Mlvu));
    data.media = Some(f.0.path().join("video"));
    let plan = plan_of(&data);
    let ids: Vec<_> = plan.items.iter().map(|i| i.id.as_str()).collect();
    assert_eq!(ids, ["plotQA:0", "plotQA:2", "count:0"]);
    // Published rows that nobody can answer: one is empty, the answer of another is no option.
    assert_eq!(plan.skipped.len(), 2, "{:?}", plan.skipped);
    assert!(
        plan.skipped[0].contains("1_plotQA.json:2")
            && plan.skipped[0].contains("question: it is empty")
    );
    assert!(plan.skipped[1].contains("answer `3` is none of the candidates"));
    assert_eq!(plan.prompts, Prompts::mlvu());
    let ask = &plan.items[0].ask;
    assert!(
        ask.system
            .starts_with("Carefully watch this video and pay attention to every detail.")
    );
    assert_eq!(ask.answer_prefix, "Best Option: (");
    assert_eq!(
        ask.text,
        "Question: How many?\nOptions:\n(A) 1\n(B) 2\nOnly give the best option."
    );
    let MediaRef::File { media, .. } = &plan.items[0].media else {
        panic!()
    };
    assert_eq!(media.path, "1_plotQA/v.mp4");

    let mut says = Says::new([("plotQA:0", "A) 1"), ("plotQA:2", "B. 2"), ("count:0", "A")]);
    let results = f.score(&plan, &mut says, "run");
    // plotQA 1 of 2 (its script reads no letter out of `B. 2`), count 1 of 1.
    near(value(&results, "multiple_choice", "accuracy"), 200.0 / 3.0);
    near(value(&results, "multiple_choice", "mean of groups"), 75.0);
    assert_eq!(
        groups(&results),
        [("plotQA", 2, Some(50.0)), ("count", 1, Some(100.0))]
    );
    assert!(results.protocol.metrics[0].contains("MLVU check_ans"));
    assert_eq!(
        f.submitted("run", "mlvu.json"),
        json!([
            {"question_id": "plotQA:0", "question_type": "plotQA", "option": "A"},
            {"question_id": "plotQA:2", "question_type": "plotQA", "option": ""},
            {"question_id": "count:0", "question_type": "count", "option": "A"},
        ])
    );
    let none = DataFile::new(f.0.path().join("video"), Some(Format::Mlvu));
    let error = Plan::from_file(&none, PlanOptions::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("give a task file of mlvu or their folder"),
        "{error}"
    );
}

#[test]
fn perception_test_counts_areas_and_submits_the_test_split() {
    let f = Folder::new();
    f.video("video_7.mp4");
    let question = |id: u32, area: &str| json!({"id": id, "question": "Where?", "options": ["left", "right", "gone"], "answer_id": 1, "area": area});
    let metadata = json!({"split": "valid", "frame_rate": 25.0});
    let valid = f.json("mc_question_valid.json", json!({"video_7": {"metadata": metadata, "mc_question": [
        question(3, "memory"), question(12, "physics"), question(20, "physics"), question(21, "physics"), question(22, "physics")]}}));
    let plan = plan_of(&DataFile::new(&valid, Some(Format::PerceptionTest)));
    assert_eq!(plan.prompts, Prompts::direct());
    assert_eq!(
        plan.items[0].ask.text,
        "Where?\nA. left\nB. right\nC. gone\nAnswer with the option's letter from the given choices directly."
    );
    let mut says = Says::new([
        ("video_7:3", "B"),
        ("video_7:12", "B. right"),
        ("video_7:20", "It is right."),
        ("video_7:21", "C"),
    ]);
    let results = f.score(&plan, &mut says, "valid");
    // One of the five says no letter, one nothing.
    near(value(&results, "multiple_choice", "accuracy"), 40.0);
    near(value(&results, "multiple_choice", "unreadable"), 40.0);
    let physics = ("physics", 4, Some(25.0));
    assert_eq!(groups(&results), [("memory", 1, Some(100.0)), physics]);

    let mut hidden = question(3, "memory");
    hidden.as_object_mut().unwrap().remove("answer_id");
    let test = f.json(
        "mc_question_test.json",
        json!({"video_7": {"metadata": {}, "mc_question": [hidden,
        {"id": "x", "question": "Why?", "options": ["a", "b", "c"]}]}}),
    );
    let plan = plan_of(&DataFile::new(&test, Some(Format::PerceptionTest)));
    let mut says = Says::new([("video_7:3", "C. gone"), ("video_7:x", "D")]);
    let results = f.score(&plan, &mut says, "test");
    assert_eq!((results.questions, results.scores[0].questions), (2, 0));
    assert_eq!(results.scores[0].scores[0].value, None);
    assert_eq!(
        f.submitted("test", "perception_test.json"),
        json!({"video_7": [
            {"id": 3, "answer_id": 2, "answer": "gone"},
            {"id": "x", "answer_id": -1, "answer": ""},
        ]})
    );
}

#[test]
fn questions_about_several_images() {
    let f = Folder::new();
    for name in [
        "a.png",
        "b.png",
        "SEED-Bench-2-image/1.png",
        "SEED-Bench-2-image/2.png",
        "cc3m-image/7_8",
    ] {
        f.picture(name);
    }
    let row = |task: &str, output: &str| {
        json!({"task": task, "question": "Which is real?", "context": "Look.\nA: one\nB: two", "options": "A: one\nB: two",
            "input_image_path": ["./a.png", "./b.png"], "output": output})
    };
    let rows = json!([
        row("blink", "A"),
        row("blink", "A"),
        row("blink", "B"),
        row("order", "B")
    ]);
    let mmiu = f.json("mmiu.json", rows);
    let plan = plan_of(&DataFile::new(&mmiu, Some(Format::Mmiu)));
    assert_eq!(
        plan.items[0].ask.text,
        "Which is real?\nLook.\nA. one\nB. two\nAnswer with the option's letter from the given choices directly."
    );
    let MediaRef::File { media, .. } = &plan.items[0].media else {
        panic!()
    };
    assert_eq!(media.path, "a.png");
    assert_eq!(media.more, ["b.png"]);
    // The same images are looked at once, others are others.
    assert_eq!(plan.items[0].media.key(), plan.items[3].media.key());
    assert!(plan.items[0].media.key().contains("b.png"));
    let mut says = Says::new([
        ("blink:0", "A"),
        ("blink:1", "B"),
        ("blink:2", "A"),
        ("order:3", "(B)"),
    ]);
    let results = f.score(&plan, &mut says, "mmiu");
    // 1 of 3 and 1 of 1: the benchmark's figure is the mean over tasks.
    near(
        value(&results, "multiple_choice", "mean of groups"),
        (100.0 / 3.0 + 100.0) / 2.0,
    );
    near(value(&results, "multiple_choice", "accuracy"), 50.0);

    let row = |id: &str, number: u32, files: Value, source: &str| {
        json!({"question": "<img> or <img>?", "question_id": id, "question_type_id": number, "answer": "D",
            "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4", "data_id": files,
            "data_source": source, "data_type": if number == 5 { "Single Image" } else { "Multiple Images" }})
    };
    let mut one = row("5_0", 5, json!("7_8"), "cc3m");
    one["question"] = "How many?".into();
    let two = json!(["1.png", "2.png"]);
    let seed = f.json("seed.json", json!({
        "questions": [one, row("17_0", 17, two.clone(), "SEED-Bench v2"), row("17_1", 17, two, "SEED-Bench v2")],
        "question_type": {"Instances Counting": 5, "Difference Spotting": 17}}));
    let mut data = DataFile::new(&seed, Some(Format::SeedBench2));
    let plan = plan_of(&data);
    assert!(
        plan.items[1]
            .ask
            .text
            .starts_with("<image> or <image>?\nA. 1\n")
    );
    let mut says = Says::new([("5_0", "D"), ("17_0", "D. 4"), ("17_1", "4")]);
    let results = f.score(&plan, &mut says, "seed");
    near(value(&results, "multiple_choice", "accuracy"), 200.0 / 3.0);
    let expected = [
        ("Instances Counting", 1, Some(100.0)),
        ("Difference Spotting", 2, Some(50.0)),
    ];
    assert_eq!(groups(&results), expected);
    assert_eq!(
        String::from_utf8(f.lines("seed", "seed_bench_2.jsonl")).unwrap(),
        "{\"prediction\":\"D\",\"question_id\":\"5_0\"}\n{\"prediction\":\"D\",\"question_id\":\"17_0\"}\n\
         {\"prediction\":\"\",\"question_id\":\"17_1\"}\n"
    );
    data.convert.split = Some("Multiple Images".into());
    assert_eq!(plan_of(&data).items.len(), 2);

    // The pictures of a question are all or none: nothing answers about the first alone.
    let go = |session: &Session, run: &str| {
        let mut model =
            SessionAnswerer::new(session, run, Route::Model, AnswerForm::Heads).unwrap();
        finish(&plan, &mut model, &f.0.path().join(run))
    };
    let results = go(&nano(), "one");
    let failed: Vec<_> = results.failed.iter().map(|f| f.id.as_str()).collect();
    assert_eq!(failed, ["17_0", "17_1"]);
    let why = "2 videos or images are given and this base model reads one";
    assert!(
        results.failed[0].why.contains(why),
        "{:?}",
        results.failed[0]
    );
    let results = go(&reads_several(), "several");
    assert_eq!(results.failed, []);
    assert_eq!(results.scores[0].questions, 3);
}

#[test]
fn refcoco_reaches_half() {
    let f = Folder::new();
    f.picture("COCO_train2014_000000000007.jpg");
    let text = PlanOptions {
        answers: AnswerForm::Text,
        ..PlanOptions::default()
    };
    let at = |b: [f32; 4]| format!("It is at {}.", box_text(&b.into()));
    // Of the left half of a picture of 64 x 64: all of it, its upper half (IoU 0.5), a quarter.
    let (whole, half, quarter) = (
        at([0.0, 0.0, 0.5, 1.0]),
        at([0.0, 0.0, 0.5, 0.5]),
        at([0.0, 0.0, 0.25, 0.5]),
    );
    let check = |results: &Results| {
        for (score, hits) in [
            ("Acc@0.25", 3.0),
            ("Acc@0.5", 2.0),
            ("Acc@0.75", 1.0),
            ("mIoU", 1.75),
        ] {
            near(value(results, "region", score), 25.0 * hits);
        }
    };
    let objects = f.json(
        "val.json",
        json!([{"question_id": "9", "file_name": "COCO_train2014_000000000007_3.jpg",
        "answer": ["left", "half", "part", "none"], "bbox": [0, 0, 32, 64]}]),
    );
    let plan = Plan::from_file(
        &DataFile::new(&objects, Some(Format::RefCocoObjects)),
        text.clone(),
    )
    .unwrap();
    let mut says = Says::new([
        ("9:0", &whole),
        ("9:1", &half),
        ("9:2", &quarter),
        ("9:3", "no"),
    ]);
    check(&f.score(&plan, &mut says, "objects"));

    let line = |sent: &str| json!({"image": "COCO_train2014_000000000007.jpg", "sent": sent, "bbox": [0, 0, 32, 64], "width": 64, "height": 64});
    let lines = ["left", "half", "part", "none"]
        .map(|sent| line(sent).to_string())
        .join("\n");
    let lines = f.write("refcoco_val.jsonl", lines.as_bytes());
    let plan = Plan::from_file(
        &DataFile::new(&lines, Some(Format::RefCocoLines)),
        text.clone(),
    )
    .unwrap();
    let ids: Vec<String> = plan.items.iter().map(|i| i.id.clone()).collect();
    let said = [whole.clone(), half.clone(), quarter.clone(), "no".into()];
    let mut says = Says(ids.into_iter().zip(said).collect());
    check(&f.score(&plan, &mut says, "lines"));

    // The splits of one file of refs are also scored one by one.
    let refs = f.json("refs.json", json!([
        {"ref_id": 1, "ann_id": 3, "split": "val", "sentences": [{"sent": "left"}, {"sent": "half"}]},
        {"ref_id": 2, "ann_id": 3, "split": "testA", "sentences": [{"sent": "part"}, {"sent": "none"}]}]));
    let mut data = DataFile::new(&refs, Some(Format::RefCoco));
    data.convert.second = Some(f.json("instances.json", json!({
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 3, "image_id": 7, "bbox": [0, 0, 32, 64]}]})));
    let plan = Plan::from_file(&data, text.clone()).unwrap();
    let mut says = Says::new([
        ("ref 1:0", &whole),
        ("ref 1:1", &half),
        ("ref 2:0", &quarter),
        ("ref 2:1", "no"),
    ]);
    let results = f.score(&plan, &mut says, "refs");
    check(&results);
    let splits: Vec<_> = results.scores[0]
        .groups
        .iter()
        .map(|g| (g.group.as_str(), g.scores[1].value))
        .collect();
    assert_eq!(splits, [("val", Some(100.0)), ("testA", Some(0.0))]);
    data.convert.split = Some("testA".into());
    assert_eq!(Plan::from_file(&data, text).unwrap().items.len(), 2);
}
