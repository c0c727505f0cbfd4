//! The main job end to end, and what happens to input that makes no sense.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, FloatDType};
use tpo::core::prompt::Visual;
use tpo::data::MediaLimits;
use tpo::features::FeatureCache;
use tpo::prelude::*;
use tpo::{FrameCost, HeadProgress, HeadStep, TrackFrames};

fn session() -> Session {
    let options = SessionOptions {
        max_new_tokens: 6,
        limits: MediaLimits::default(),
        ..SessionOptions::default()
    };
    Session::nano(&Device::flex(), 7, options).unwrap()
}

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(name)
}

fn where_is() -> Question {
    Question::new("Where is the red circle?").with_task("region")
}

fn region(reply: &Reply) -> RegionPrediction {
    *reply.tasks[0].get::<RegionPrediction>().unwrap()
}

#[test]
fn a_video_is_asked_and_answers_with_a_box() {
    let mut session = session();
    let media = session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    assert_eq!(
        (media.kind, media.size, media.frames.len()),
        (Visual::Video, (320, 240), 8)
    );
    let first = session.ask(where_is()).unwrap().collect_reply().unwrap();
    let b = region(&first);
    let px = b.pixels.unwrap();
    assert!(b.normalised.is_ordered() && px.x1 <= 320.0 && px.y1 <= 240.0);
    assert_eq!(session.history().len(), 1);

    // The same question asked anew gives the same answer; asked second it has a context.
    session.clear_history();
    let again = session.ask(where_is()).unwrap().collect_reply().unwrap();
    assert_eq!((region(&again), &again.text), (b, &first.text));
    let second = session.ask(where_is()).unwrap().collect_reply().unwrap();
    assert_ne!(region(&second).raw, b.raw);
    assert_eq!(session.history().len(), 2);
}

/// "When?" gives spans inside the video and a value of the curve for each of its clips; the
/// features of the video are computed once.
#[test]
fn a_video_is_asked_when() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let options = SessionOptions {
        max_new_tokens: 4,
        progress: Some(HeadProgress(Arc::new(move |step| {
            assert_eq!(step.cost, None);
            let HeadStep { done, total, .. } = step;
            hears
                .lock()
                .unwrap()
                .push((step.what.to_string(), done, total));
        }))),
        ..SessionOptions::default()
    };
    let mut session = Session::nano(&Device::flex(), 7, options).unwrap();
    session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let duration = session.media().unwrap().duration.unwrap();
    let when = || Question::new("When does the circle turn?").with_task("temporal");
    let first = session.ask(when()).unwrap().collect_reply().unwrap();
    let found: TemporalPrediction = first.tasks[0].get::<TemporalPrediction>().unwrap().clone();
    assert_eq!(found.clip_seconds, 0.5);
    assert_eq!(found.saliency.len(), (duration / 0.5) as usize);
    assert!((found.duration - duration).abs() < 1e-9);
    assert!(!found.spans.is_empty());
    for s in &found.spans {
        assert!(s.span.start >= 0.0 && s.span.end <= duration && s.span.start <= s.span.end);
        assert!((0.0..=1.0).contains(&s.score));
    }
    let steps = heard.lock().unwrap().len();
    let (what, done, total) = heard.lock().unwrap().last().cloned().unwrap();
    assert_eq!((what.as_str(), done), ("features", total));

    session.clear_history();
    let again = session.ask(when()).unwrap().collect_reply().unwrap();
    assert_eq!(again.tasks[0].get::<TemporalPrediction>(), Some(&found));
    assert_eq!(heard.lock().unwrap().len(), steps, "computed once");
    let json = serde_json::to_value(&again).unwrap();
    assert!(json["tasks"][0]["value"]["saliency"][0].is_number());

    // Another query, another curve.
    session.clear_history();
    let other = Question::new("When is it blue?").with_task("temporal");
    let other = session.ask(other).unwrap().collect_reply().unwrap();
    assert_ne!(other.tasks[0].get::<TemporalPrediction>(), Some(&found));
}

fn follow(session: &mut Session, question: Question) -> MaskPrediction {
    session.clear_history();
    let reply = session.ask(question.with_task("mask")).unwrap();
    let reply = reply.collect_reply().unwrap();
    assert!(reply.without_head.is_empty());
    reply.tasks[0].get::<MaskPrediction>().unwrap().clone()
}

/// "Follow it" gives a mask of the video's size for every frame of the file, or for those the
/// model looked at; a box in the question prompts SAM 2 itself.
#[test]
fn a_video_is_followed() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let options = SessionOptions {
        max_new_tokens: 2,
        progress: Some(HeadProgress(Arc::new(move |step| {
            let HeadStep {
                done, total, cost, ..
            } = step;
            assert_eq!(step.what, "frames");
            hears.lock().unwrap().push((done, total, cost));
        }))),
        ..SessionOptions::default()
    };
    let mut session = Session::nano(&Device::flex(), 7, options).unwrap();
    session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let found = follow(&mut session, Question::new("Follow the red circle."));
    let all = (session.media().unwrap().duration.unwrap() * session.media().unwrap().fps.unwrap())
        .round() as usize;
    assert_eq!((found.frames.len(), found.size), (all, [240, 320]));
    for (i, frame) in found.frames.iter().enumerate() {
        let mask = frame.mask.decode().unwrap();
        assert_eq!((frame.frame, mask.size()), (i, (240, 320)));
        assert_eq!(frame.area.is_some(), mask.area() > 0);
    }
    let steps: Vec<_> = heard.lock().unwrap().drain(..).collect();
    assert!(steps.iter().map(|s| s.0).eq(1..=all) && steps.iter().all(|s| s.1 == all));
    // The first frame says what the others will cost.
    assert_eq!(steps[0].2, None);
    let costs: Vec<FrameCost> = steps[1..].iter().map(|s| s.2.unwrap()).collect();
    let side = session.model().heads.mask.sam.config().image_size;
    for cost in &costs {
        assert_eq!((cost.frames, cost.sampled, cost.side), (all, 8, side));
        assert!(cost.seconds_per_frame > 0.0);
    }
    assert_ne!(costs[0].seconds_per_frame, costs[1].seconds_per_frame);
    assert_eq!(
        follow(&mut session, Question::new("Follow the red circle.")),
        found
    );

    let options = SessionOptions {
        max_new_tokens: 2,
        track: TrackFrames::Sampled,
        ..SessionOptions::default()
    };
    let mut session = Session::nano(&Device::flex(), 7, options).unwrap();
    session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let by_words = follow(
        &mut session,
        Question::new("Follow what is in [32,24,160,120]."),
    );
    let area = BoxXyxy::from([0.1, 0.1, 0.5, 0.5]);
    assert_eq!((by_words.frames.len(), by_words.prompt), (8, Some(area)));
    let by_box = follow(&mut session, Question::new("Follow it.").with_box(area));
    assert_eq!(
        (by_box.prompt, &by_box.frames),
        (Some(area), &by_words.frames)
    );
    let by_token = follow(&mut session, Question::new("Follow it."));
    assert_eq!(by_token.prompt, None);
    assert_ne!(by_token.frames, by_box.frames);
}

#[test]
fn the_cost_of_frames_is_said_in_words() {
    let cost = FrameCost {
        frames: 300,
        sampled: 16,
        side: 1024,
        seconds_per_frame: 9.4,
    };
    assert_eq!(cost.to_string(), "300 frames at 1024², about 47 min here");
    assert_eq!(cost.of(cost.sampled), "16 frames, about 2.5 min");
    assert_eq!(cost.seconds(16), 150.4);
    assert_eq!(cost.of(4), "4 frames, about 38 s");
    assert_eq!(cost.of(3000), "3000 frames, about 7.8 h");
}

/// The mask of an image is that of its one frame.
#[test]
fn an_image_is_segmented() {
    let dir = tempfile::tempdir().unwrap();
    let png = dir.path().join("grey.png");
    image::RgbImage::from_fn(40, 30, |x, y| {
        image::Rgb([if x > 20 && y > 10 { 250 } else { 20 }; 3])
    })
    .save(&png)
    .unwrap();
    let mut session = session();
    session.load_image(&png).unwrap();
    let found = follow(&mut session, Question::new("Segment it."));
    assert_eq!((found.frames.len(), found.size), (1, [30, 40]));
    // Without any frame there is nothing to segment.
    let mut nothing = crate::session();
    let asked = nothing
        .ask(Question::new("Follow it.").with_task("mask"))
        .unwrap();
    let reply = asked.collect_reply().unwrap();
    let [call] = &reply.unanswered[..] else {
        panic!("{reply:?}")
    };
    assert!(
        call.task == "mask" && call.why.contains("ask about a video or an image"),
        "{call:?}"
    );
    assert!(reply.tasks.is_empty());
}

#[test]
fn features_can_be_kept_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let ask = || {
        let options = SessionOptions {
            max_new_tokens: 2,
            feature_cache: Some(FeatureCache::open(dir.path()).unwrap()),
            ..SessionOptions::default()
        };
        let mut session = Session::nano(&Device::flex(), 7, options).unwrap();
        session
            .load_video(asset("bouncing_shapes.mp4"), None)
            .unwrap();
        let when = Question::new("When?").with_task("temporal");
        let reply = session.ask(when).unwrap().collect_reply().unwrap();
        reply.tasks[0].get::<TemporalPrediction>().unwrap().clone()
    };
    let first = ask();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(ask(), first);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// A head that needs a video says so when there is an image or nothing.
#[test]
fn when_needs_a_video() {
    let mut session = session();
    let when = || Question::new("When?").with_task("temporal");
    let lacks_a_video = |reply: Reply| {
        let [call] = &reply.unanswered[..] else {
            panic!("{reply:?}")
        };
        assert!(
            call.task == "temporal" && call.why.contains("ask about one"),
            "{call:?}"
        );
    };
    lacks_a_video(session.ask(when()).unwrap().collect_reply().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let png = dir.path().join("grey.png");
    image::RgbImage::from_pixel(40, 30, image::Rgb([128; 3]))
        .save(&png)
        .unwrap();
    session.load_image(&png).unwrap();
    lacks_a_video(session.ask(when()).unwrap().collect_reply().unwrap());
    // The session is still usable.
    session.ask(where_is()).unwrap().collect_reply().unwrap();
}

#[test]
fn a_saved_model_answers_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session();
    session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let before = session.ask(where_is()).unwrap().collect_reply().unwrap();
    session.save(dir.path()).unwrap();

    let options = SessionOptions {
        max_new_tokens: 6,
        ..SessionOptions::default()
    };
    let (mut loaded, report) = Session::open(dir.path(), &Device::flex(), options, None).unwrap();
    assert!(report.is_complete());
    loaded
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let after = loaded.ask(where_is()).unwrap().collect_reply().unwrap();
    assert_eq!((region(&before), before.text), (region(&after), after.text));

    let bad = Session::open(
        dir.path().join("none"),
        &Device::flex(),
        Default::default(),
        None,
    );
    assert!(bad.unwrap_err().to_string().contains("does not exist"));
    std::fs::write(dir.path().join("tpo.json"), "{").unwrap();
    let bad = Session::open(dir.path(), &Device::flex(), Default::default(), None);
    assert!(bad.unwrap_err().to_string().contains("tpo.json"));
}

#[test]
fn a_session_without_files_of_a_tokenizer_is_not_saved() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let whole = session();
    whole.save(dir.path()).unwrap();
    let tokenizer = tpo::llm::tokenizer::Tokenizer::from_dir(dir.path());
    let alone = Session::new(
        whole.model().clone(),
        whole.config().clone(),
        std::sync::Arc::new(tokenizer.unwrap()),
        &device,
        SessionOptions::default(),
    )
    .unwrap();
    let empty = tempfile::tempdir().unwrap();
    let error = alone.save(empty.path()).unwrap_err().to_string();
    assert!(error.contains("export_model"), "{error}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn the_order_of_calls_belongs_to_the_model() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let nano = session();
    assert_eq!(nano.call_order(), CallOrder::AsReference);
    let mut config = nano.config().clone();
    // What recipes train keeps routing and task token.
    config.call_order = CallOrder::AsTrained;
    let files = tpo::export::ExportOptions::default();
    let tokenizer = [("tokenizer.json", "assets/byte_tokenizer.json")];
    let tokenizer = tokenizer.map(|(name, path)| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        (name.to_string(), std::fs::read(path).unwrap())
    });
    let model = nano.model().clone();
    tpo::export::export_model(model, &config, &tokenizer, dir.path(), &files).unwrap();
    let open = |options| Session::open(dir.path(), &device, options, None).unwrap().0;
    let kept = open(SessionOptions::default());
    assert_eq!(kept.call_order(), CallOrder::AsTrained);
    let other = open(SessionOptions {
        call_order: Some(CallOrder::AsReference),
        ..SessionOptions::default()
    });
    assert_eq!(other.call_order(), CallOrder::AsReference);
    let mini = tpo::presets::mini(&device, SessionOptions::default()).unwrap();
    assert_eq!(mini.call_order(), CallOrder::AsTrained);
}

#[test]
fn half_precision_runs_the_whole_chain() {
    let dir = tempfile::tempdir().unwrap();
    session().save(dir.path()).unwrap();
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        let options = SessionOptions {
            max_new_tokens: 2,
            dtype: Some(dtype),
            ..SessionOptions::default()
        };
        let (mut half, report) = Session::open(dir.path(), &Device::flex(), options, None).unwrap();
        assert!(!report.cast.is_empty());
        half.load_video(asset("bouncing_shapes.mp4"), None).unwrap();
        let question = where_is().with_box([0.1, 0.1, 0.5, 0.5].into());
        let reply = half.ask(question).unwrap().collect_reply().unwrap();
        assert!(
            region(&reply).raw.to_array().iter().all(|v| v.is_finite()),
            "{dtype:?}"
        );
    }
}

#[test]
fn frames_that_fill_no_token_are_filled_up() {
    let device = Device::flex();
    for (rate, frames) in [(0.75, 3), (1.0, 4)] {
        let options = SessionOptions {
            sampling: Some(tpo::data::FrameSampling::Fps(rate)),
            ..SessionOptions::default()
        };
        let mut session = tpo::presets::mini(&device, options).unwrap();
        assert_eq!(session.config().vision.clip().1, 2, "frames of a token");
        let clip = asset("bouncing_shapes.mp4");
        let media = session.load_video(clip, None).unwrap();
        assert_eq!(media.frames.len(), frames);
        let reply = session.ask(where_is()).unwrap().collect_reply().unwrap();
        region(&reply).normalised.check("the box").unwrap();
    }
}

#[test]
fn a_directory_without_sizes_is_told_from_the_published_model() {
    let dir = tempfile::tempdir().unwrap();
    session().save(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("tpo.json")).unwrap();
    let opened = Session::open(dir.path(), &Device::flex(), Default::default(), None);
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("has no tpo.json"), "{error}");
}

#[test]
fn files_that_are_no_media_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut session = session();
    let real = std::fs::read(asset("bouncing_shapes.mp4")).unwrap();
    for path in [
        file("text.mp4", b"this is a text file"),
        file("empty.mp4", b""),
        file("half.mp4", &real[..real.len() / 2]),
        dir.path().join("missing.mp4"),
    ] {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let error = session.load_video(&path, None).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
    }
    // A PNG header that claims 100,000 x 100,000 pixels.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend([0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0, 8, 2, 0, 0, 0]);
    png.extend(crc32(&png[12..]).to_be_bytes());
    for path in [file("huge.png", &png), file("empty.png", b"")] {
        assert!(session.load_image(&path).is_err(), "{}", path.display());
    }
    assert!(
        session.media().is_none(),
        "a failed load leaves nothing behind"
    );
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for b in bytes {
        crc ^= *b as u32;
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                0xedb8_8320 ^ (crc >> 1)
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

#[test]
fn questions_that_make_no_sense_are_errors_and_leave_the_session_usable() {
    let mut session = session();
    session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let text = |e: tpo::Error| e.to_string();

    let reversed = where_is().with_box(BoxXyxy::from([9.0, 9.0, 1.0, 1.0]));
    assert!(text(session.ask(reversed).err().unwrap()).contains("reversed"));
    let long = Question::new("why ".repeat(25_000));
    assert!(text(session.ask(long).err().unwrap()).contains("shorten"));
    let unknown = where_is().with_task("dance");
    assert!(text(session.ask(unknown).err().unwrap()).contains("dance"));
    let placeholder = Question::new("what is [<VID_PLH>]?");
    assert!(session.ask(placeholder).is_err());
    let mark = Question::new("what is in <track_box>?");
    assert!(text(session.ask(mark).err().unwrap()).contains("--box"));
    for token in ["<boxes>", "<tracking>", "<box_begin>"] {
        let slot = Question::new(format!("where is {token}?"));
        assert!(text(session.ask(slot).err().unwrap()).contains(token));
    }

    let boxed = Question::new("what is in <track_box>?").with_box([0.1, 0.1, 0.5, 0.5].into());
    session.ask(boxed).unwrap().collect_reply().unwrap();
    let empty = session.ask(Question::new("")).unwrap().collect_reply();
    empty.unwrap();
    let far = Question::new("follow [10,10,900,20]").with_task("mask");
    let error = session.ask(far).unwrap().collect_reply().unwrap_err();
    assert!(text(error).contains("outside the image"));
    session.ask(where_is()).unwrap().collect_reply().unwrap();
}

#[test]
fn a_reply_is_plain_json() {
    let mut session = session();
    session
        .load_video(asset("bouncing_shapes.mp4"), None)
        .unwrap();
    let reply = session.ask(where_is()).unwrap().collect_reply().unwrap();
    let json = serde_json::to_value(&reply).unwrap();
    assert_eq!(json["tasks"][0]["task"], "region");
    assert!(json["tasks"][0]["value"]["pixels"][0].is_number());
}
