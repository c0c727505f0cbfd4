//! LLaVA-OV-TPO through the doors, in small: put together of published files, asked about images and videos of every
//! shape, quantised, exported as its base is published.

#[path = "onevision_doors/files.rs"]
mod files;
#[path = "onevision_doors/full_size.rs"]
mod full_size;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType, TensorData};
use files::{WORDS, base_files, small, tokenizer_json};
use tpo::core::geometry::{Packing, UnpadRule};
use tpo::core::model::{GenerateEvent, GenerateOptions, GenerateRow};
use tpo::core::ops::QuantFormat;
use tpo::core::traits::{VisualInput, VisualShape};
use tpo::data::prompts::{AnswerStart, Opening, VisualSlots};
use tpo::data::{FrameSampling, ImageTransform, MediaLimits, VideoReader, open_frames, read_image};
use tpo::export::{ExportOptions, LoraExport, convert_model};
use tpo::llm::tokenizer::Tokenizer;
use tpo::model::assemble::{AssembleOptions, assemble};
use tpo::model::inspect::{LayoutChoice, inspect};
use tpo::model::memory::ModelMemory;
use tpo::model::{Names, Quantize};
use tpo::prelude::*;
use tpo::weights::{Checkpoint, read_tensor};

fn tokenizer() -> Tokenizer {
    let mut tokenizer =
        Tokenizer::from_tokenizer_json_bytes(tokenizer_json(WORDS).as_bytes()).unwrap();
    let config = small(true);
    let names = ["<image>", "<video>"].map(String::from);
    let own = names.iter().map(String::as_str).zip(WORDS as u32 + 3..);
    let mut tasks: Vec<_> = config
        .tasks
        .tokens()
        .map(|t| (t.token.as_str(), t.id))
        .collect();
    tasks.sort_by_key(|t| t.1);
    tokenizer.add_tokens_with_ids(own.chain(tasks)).unwrap();
    tokenizer
}

fn session(options: SessionOptions) -> Session {
    let (device, config) = (Device::flex(), small(true));
    device.seed(11);
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    let options = SessionOptions {
        max_new_tokens: 4,
        ..options
    };
    Session::new(model, config, tokenizer(), &device, options).unwrap()
}

/// A picture with a gradient, noise and an edge.
fn picture(dir: &Path, name: &str, [width, height]: [u32; 2]) -> PathBuf {
    let path = dir.join(name);
    image::RgbImage::from_fn(width, height, |x, y| {
        let noise = (x.wrapping_mul(7919) ^ y.wrapping_mul(104_729)) % 61;
        let edge = if x > width / 3 { 90 } else { 0 };
        image::Rgb([
            (x % 200 + noise) as u8,
            (y % 180 + edge) as u8,
            (noise + edge) as u8,
        ])
    })
    .save(&path)
    .unwrap();
    path
}

fn asked(session: &mut Session, question: &str) -> (String, BoxXyxy) {
    let question = Question::new(question).with_task("region");
    let reply = session.ask(question).unwrap().collect_reply().unwrap();
    (
        reply.text.clone(),
        reply.prediction::<RegionPrediction>().unwrap().raw,
    )
}

/// The box that the model answers about these pixels, through the model's own functions.
fn expected(session: &Session, visuals: Vec<VisualInput>, question: &str) -> BoxXyxy {
    let config = session.config();
    let slots = visuals.iter().map(|v| VisualSlots {
        kind: v.shape.kind,
        count: config.rows(&v.shape).unwrap(),
    });
    let slots: Vec<VisualSlots> = slots.collect();
    let opening = Opening {
        visuals: &slots,
        answer: AnswerStart::default(),
        ..Opening::text(question)
    };
    let ids = config
        .prompt
        .layout()
        .opening(&opening, session.tokenizer())
        .unwrap();
    let (model, device) = (session.model(), session.device());
    let rows = model.encode_visuals(visuals, None).unwrap();
    let tokens = TokenBatch::pad(&[ids], 0);
    let row = GenerateRow {
        prompt: model.embed(&tokens, rows, &[Vec::new()], device).unwrap(),
        sample: Sample::default(),
        force: vec!["region".into()],
        choose: |_: &[f32], _: &[u32]| Ok(0),
    };
    let options = GenerateOptions {
        max_new_tokens: 4,
        call_order: session.call_order(),
        ..GenerateOptions::default()
    };
    let events = model.generate(vec![row], options).unwrap();
    let output = events
        .map(|e| e.unwrap().1.unwrap())
        .find_map(|event| match event {
            GenerateEvent::Task { output, .. } => Some(output),
            _ => None,
        });
    output.unwrap().get::<RegionPrediction>().unwrap().raw
}

fn close(a: BoxXyxy, b: BoxXyxy, tolerance: f32) {
    for (a, b) in a.to_array().into_iter().zip(b.to_array()) {
        assert!((a - b).abs() <= tolerance, "{a} and {b}");
    }
}

fn visual((values, dims): (Vec<f32>, [usize; 4]), shape: VisualShape) -> VisualInput {
    VisualInput {
        pixels: Tensor::from_data(TensorData::new(values, dims), &Device::flex()),
        shape: VisualShape {
            pictures: dims[0],
            ..shape
        },
    }
}

/// One image in tiles, several on squares, frames as they are, all in SigLIP's pixels.
#[test]
fn the_model_sees_what_its_base_was_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(SessionOptions::default());
    let pixels = ImageTransform::siglip().with_size([30, 30]);
    let packing = session.config().connector.packing().unwrap().clone();
    let (wide, small) = (
        picture(dir.path(), "a.png", [90, 40]),
        picture(dir.path(), "b.png", [20, 31]),
    );
    let read = |path: &Path| read_image(path, &MediaLimits::default()).unwrap();

    session.load_image(&wide).unwrap();
    let tiles = pixels.tiles(&read(&wide), &packing.tiling).unwrap();
    assert!(tiles.1[0] > 1);
    let tiles = visual(tiles, VisualShape::image((90, 40)));
    let found = asked(&mut session, "Where?").1;
    close(
        found,
        expected(&session, vec![tiles.clone()], "Where?"),
        0.0,
    );

    session.load_images(&[&wide, &small]).unwrap();
    let squares = [(&wide, (90, 40)), (&small, (20, 31))].map(|(path, size)| {
        let square = pixels.squares(&[read(path)]).unwrap();
        visual(square, VisualShape::image(size))
    });
    let found = asked(&mut session, "Where?").1;
    close(found, expected(&session, squares.into(), "Where?"), 1e-6);

    // 32 frames by linspace, of a clip that is shorter.
    let folder = dir.path().join("frames");
    std::fs::create_dir(&folder).unwrap();
    for i in 0..9 {
        picture(&folder, &format!("{i}.png"), [40, 24]);
    }
    let reader = open_frames(&folder, 3.0, &MediaLimits::default()).unwrap();
    let reader = std::sync::Arc::new(reader);
    let media = session.load_reader(reader.clone(), None).unwrap();
    assert_eq!(media.frames.len(), 32);
    assert_eq!((media.frames[0], media.frames[31]), (0, 8));
    assert!(media.frames.is_sorted());
    let frames = reader.read_frames(&media.frames.clone()).unwrap();
    let video = visual(
        pixels.apply(&frames).unwrap(),
        VisualShape::video((40, 24), 32),
    );
    let found = asked(&mut session, "Where?").1;
    close(found, expected(&session, vec![video], "Where?"), 0.0);
    assert_eq!(session.sampling(), FrameSampling::Linspace);

    // About nothing, and several turns.
    session.clear_media();
    let first = asked(&mut session, "Where?").1;
    close(first, expected(&session, Vec::new(), "Where?"), 0.0);
    let second = asked(&mut session, "Where?").1;
    assert_ne!(first, second);
    assert_eq!(session.history().len(), 2);
    session.load_image(&wide).unwrap();
    assert!(session.history().is_empty());
    let turns = [
        asked(&mut session, "Where?").1,
        asked(&mut session, "And now?").1,
    ];
    close(turns[0], expected(&session, vec![tiles], "Where?"), 0.0);
    assert_ne!(turns[0], turns[1]);
}

/// What nobody would show has a defined result or is refused in words.
#[test]
fn pictures_and_videos_of_any_shape() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(SessionOptions::default());
    for size in [[1, 3000], [3000, 1], [1, 1], [3000, 2000]] {
        let path = picture(dir.path(), &format!("{size:?}.png"), size);
        let media = session.load_image(&path).unwrap();
        assert_eq!(media.size, (size[0], size[1]));
        assert!(
            asked(&mut session, "Where?")
                .1
                .to_array()
                .iter()
                .all(|v| v.is_finite())
        );
    }
    let many: Vec<PathBuf> = (0..16)
        .map(|i| picture(dir.path(), &format!("{i}.png"), [10 + 3 * i, 40 - i]))
        .collect();
    session.load_images(&many).unwrap();
    let all = asked(&mut session, "Where?");
    session.load_images(&many[..15]).unwrap();
    assert_ne!(asked(&mut session, "Where?").1, all.1);
    let question = |text: &str| Question::new(text).with_task("region");
    session.clear_history();
    // A mark for each image, or none: one too few is refused.
    for (marks, fits) in [(15, true), (0, true), (14, false)] {
        let text = format!("{} Which?", "<image>".repeat(marks));
        let reply = session.ask(question(&text)).map(drop);
        assert_eq!(reply.is_ok(), fits, "{marks}");
        if let Err(error) = reply {
            assert!(error.to_string().contains("14 times and 15"), "{error}");
        }
        session.clear_history();
    }
    // More than the model reads is refused before it is encoded: five rows each.
    let most = session.config().max_prompt();
    let folder = dir.path().join("thumbs");
    std::fs::create_dir(&folder).unwrap();
    let one = picture(&folder, "one.png", [2, 2]);
    let error = session
        .load_images(&vec![one; most / 5 + 1])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("the model reads {most}")),
        "{error}"
    );
    // What was looked at before is still there.
    assert_eq!(session.media().unwrap().size, (10, 40));

    // Videos of one frame, of two, and 32 frames of 4K.
    let rows = |pictures| {
        session
            .config()
            .rows(&VisualShape::video((3840, 2160), pictures))
            .unwrap()
    };
    assert_eq!([rows(1), rows(2), rows(32)], [2, 3, 33]);
    let big = picture(dir.path(), "big.png", [3840, 2160]);
    for count in [1, 2, 32] {
        let folder = dir.path().join(format!("video {count}"));
        std::fs::create_dir(&folder).unwrap();
        for i in 0..count {
            let name = folder.join(format!("{i:02}.png"));
            std::fs::hard_link(&big, name).unwrap();
        }
        let reader = open_frames(&folder, 1.0, &MediaLimits::default()).unwrap();
        let media = session
            .load_reader(std::sync::Arc::new(reader), None)
            .unwrap();
        assert_eq!((media.frame_count, media.frames.len()), (count, 32));
        assert!(
            asked(&mut session, "Where?")
                .1
                .to_array()
                .iter()
                .all(|v| v.is_finite())
        );
    }
    // The place of a visual where none can stand, and other signs of the layout.
    let refused = |session: &mut Session, text: &str, part: &str| {
        let error = session.ask(question(text)).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    session.clear_history();
    refused(
        &mut session,
        "<image> and <image>?",
        "2 times and 1 videos or images",
    );
    refused(&mut session, "A <video>?", "`<video>`");
    session
        .ask(question("What is in <image>?"))
        .unwrap()
        .collect_reply()
        .unwrap();
    refused(&mut session, "And in <image>?", "only the first question");
    session.clear_media();
    refused(
        &mut session,
        "What is in <image>?",
        "1 times and 0 videos or images",
    );
    // A question that is too long.
    let long = "a".repeat(most);
    refused(&mut session, &long, "the model reads");
}

/// Questions about an image, a video and nothing, in one batch.
#[test]
fn a_batch_answers_as_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut session = session(SessionOptions::default());
    let a = picture(dir.path(), "a.png", [90, 40]);
    let b = picture(dir.path(), "b.png", [20, 31]);
    let video = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/bouncing_shapes.mp4");
    let question = || Question::new("Where?").with_task("region");
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for i in 0..4 {
        match i {
            0 => session.load_image(&a).map(drop).unwrap(),
            1 => session.load_video(&video, None).map(drop).unwrap(),
            2 => session.clear_media(),
            _ => session.load_images(&[&b, &a]).map(drop).unwrap(),
        }
        together.push(session.prepare(&question()).unwrap());
        alone.push(asked(&mut session, "Where?"));
    }
    let replies = session.answer_together(together).unwrap();
    for (reply, (text, area)) in replies.into_iter().zip(alone) {
        let reply = reply.unwrap();
        close(
            reply.prediction::<RegionPrediction>().unwrap().raw,
            area,
            1e-4,
        );
        assert_eq!(reply.text, text);
    }
}

/// What is reckoned with is a question about what the model looks at, not its longest prompt.
#[test]
fn memory_is_that_of_a_usual_prompt() {
    for (config, per_row) in [
        (TpoConfig::llava_ov_tpo_0_5b(), 2 * 24 * 2 * 64 * 2),
        (TpoConfig::llava_ov_tpo_7b(), 2 * 28 * 4 * 128 * 2),
    ] {
        let usual = config.usual_prompt().unwrap();
        assert_eq!(config.max_prompt(), 32_768);
        assert!((8_829 + 1024..8_840 + 1024).contains(&usual), "{usual}");
        let found = ModelMemory::of::<BuiltInHeads>(&config, FloatDType::BF16, 200).unwrap();
        assert_eq!(found.cache, (usual as u64 + 401) * per_row);
        assert_eq!(
            found.batch(found.per_question * 8),
            NonZeroUsize::new(4).unwrap()
        );
    }
    assert_eq!(TpoConfig::videochat_tpo().usual_prompt().unwrap(), 1024);
    // No picture has more rows.
    let packing = Packing::one_vision(UnpadRule::HuggingFace);
    let most = packing.most_image_rows();
    let mut found = 0;
    for width in (1..=3000).step_by(37) {
        for height in (1..=3000).step_by(41) {
            let pictures = packing.tiling.canvas((width, height)).unwrap().pictures();
            let shape = VisualShape {
                pictures,
                ..VisualShape::image((width, height))
            };
            found = found.max(packing.rows(&shape).unwrap());
        }
    }
    assert!(found <= most && found > 8_000, "{found} of {most}");
}

fn floats(dir: &Path, key: &str) -> Vec<f32> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let tensor = checkpoint.get(key).unwrap_or_else(|| panic!("{key}"));
    read_tensor(tensor).unwrap().iter::<f32>().collect()
}

#[test]
fn published_files_become_a_model_that_answers() {
    let root = tempfile::tempdir().unwrap();
    for (tied, names) in [
        (true, Names::Original),
        (true, Names::HuggingFace),
        (false, Names::HuggingFace5),
        (false, Names::InMemory),
    ] {
        let dir = root.path().join(format!("{names:?}"));
        let files = base_files(&dir, tied, names);
        let options = AssembleOptions {
            sizes: Some(small(tied)),
            ..AssembleOptions::default()
        };
        let out = dir.join("model");
        let done = assemble(&files, &out, &options, None).unwrap();
        let parts: Vec<&str> = done.parts.iter().map(|p| p.part).collect();
        assert_eq!(parts, ["LLaVA-OneVision", "SAM 2", "CG-DETR"]);
        assert!(done.not_taken.is_empty(), "{:?}", done.not_taken);
        // Tensors of the width of its text; the rest goes over.
        let other: Vec<&str> = done.parts[2]
            .ignored
            .iter()
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(other.len(), 6, "{other:?}");
        assert!(
            other.iter().all(|key| key.contains("txt_proj")),
            "{other:?}"
        );
        let drawn: Vec<&str> = done.drawn.iter().map(|(of, _)| of.as_str()).collect();
        assert!(
            drawn.contains(&"heads.region") && drawn.contains(&"llm.lm_head"),
            "{drawn:?}"
        );
        assert!(
            !drawn
                .iter()
                .any(|of| of.starts_with("vision") || of.starts_with("connector"))
        );

        // Spare rows become the mean of the words'; all others are as they were, and none is added.
        let tables = if tied { 1 } else { 2 };
        let keys = ["model.embed_tokens.weight", "lm_head.base_layer.weight"];
        for (key, path) in keys
            .into_iter()
            .zip(["embed_tokens.weight", "lm_head.weight"])
            .take(tables)
        {
            let (found, before) = (
                floats(&out, key),
                floats(&files.base, &base_key(&files.base, path)),
            );
            let rows: Vec<&[f32]> = found.chunks(128).collect();
            let before: Vec<&[f32]> = before.chunks(128).collect();
            assert_eq!(rows.len(), 318);
            let used = WORDS + 3;
            for (i, row) in rows.iter().enumerate() {
                if (used + 2..used + 9).contains(&i) {
                    let mean = |c: usize| {
                        before[..used].iter().map(|r| f64::from(r[c])).sum::<f64>() / used as f64
                    };
                    assert!((0..128).all(|c| (f64::from(row[c]) - mean(c)).abs() < 1e-7));
                } else {
                    assert_eq!(*row, before[i], "{names:?} {i}");
                }
            }
        }
        let taken = floats(&out, "cg_model.transformer.encoder.layers.0.linear1.weight");
        let given = floats(
            files.temporal.as_ref().unwrap(),
            "transformer.encoder.layers.0.linear1.weight",
        );
        assert_eq!(taken, given);
        let found = inspect(&out, LayoutChoice::Auto).unwrap();
        assert!(found.is_fine(), "{found}");
        let json = std::fs::read_to_string(out.join("tokenizer.json")).unwrap();
        for token in ["<image>", "<video>", "<box_begin>", "<track_box>"] {
            assert!(
                json.contains(&format!("\"content\":\"{token}\"")),
                "{token}"
            );
        }

        let (mut session, _) =
            Session::open(&out, &Device::flex(), SessionOptions::default(), None).unwrap();
        let lora = session.config().llm.lora.as_ref().unwrap();
        assert!(lora.targets.iter().any(|t| t == "lm_head"));
        session
            .load_image(picture(&dir, "a.png", [50, 40]))
            .unwrap();
        asked(&mut session, "Where?");
        for quantize in [
            Quantize::from(QuantFormat::Q8_0),
            Quantize::from(QuantFormat::Q4_0),
            Quantize {
                llm: Some(QuantFormat::Q8_0),
                vision: Some(QuantFormat::Q8_0),
            },
        ] {
            let options = SessionOptions {
                quantize,
                ..SessionOptions::default()
            };
            let (mut small, _) = Session::open(&out, &Device::flex(), options, None).unwrap();
            small.load_image(dir.join("a.png")).unwrap();
            session.clear_history();
            let (exact, rough) = (
                asked(&mut session, "Where?").1,
                asked(&mut small, "Where?").1,
            );
            assert_ne!(exact, rough);
            close(exact, rough, 0.25);
        }
    }
}

/// The key that ends so.
fn base_key(dir: &Path, end: &str) -> String {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let key = checkpoint.tensors().find(|t| t.key.ends_with(end));
    key.unwrap().key.clone()
}

#[test]
fn files_of_another_model_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let files = base_files(root.path(), true, Names::HuggingFace);
    let out = root.path().join("out");
    let sized = AssembleOptions {
        sizes: Some(small(true)),
        ..AssembleOptions::default()
    };
    // The base says its own sizes; the published SAM 2 is another than the file's.
    let error = assemble(&files, &out, &AssembleOptions::default(), None).unwrap_err();
    assert!(error.to_string().contains("SAM 2 (--sam2"), "{error}");
    let mut other = files.clone();
    other.base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/mini");
    let error = assemble(&other, &out, &AssembleOptions::default(), None).unwrap_err();
    assert!(
        error.to_string().contains("is no LLaVA-OneVision"),
        "{error}"
    );
    // A tensor of the warm start that is wider where it must not be.
    let mut wider = sized.clone();
    let heads = &mut wider.sizes.as_mut().unwrap().heads;
    let mut temporal = heads.get::<TemporalHead>().unwrap();
    temporal.model.d_hidden = 96;
    *heads = heads.clone().with::<TemporalHead>(&temporal).unwrap();
    let error = assemble(&files, &out, &wider, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("CG-DETR (--temporal") && error.contains("linear1.weight"),
        "{error}"
    );
    // A vocabulary of another size.
    let mut larger = sized;
    larger.sizes.as_mut().unwrap().llm.vocab_size = 400;
    let error = assemble(&files, &out, &larger, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("LLaVA-OneVision (--base") && error.contains("embed_tokens.weight"),
        "{error}"
    );
    assert!(!out.exists() || out.read_dir().unwrap().next().is_none());
}

#[test]
fn an_export_in_any_layout_reads_back_to_the_bit() {
    let root = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let dir = root.path().join(format!("tied {tied}"));
        let files = base_files(&dir, tied, Names::HuggingFace);
        let options = AssembleOptions {
            sizes: Some(small(tied)),
            ..AssembleOptions::default()
        };
        let model = dir.join("model");
        assemble(&files, &model, &options, None).unwrap();
        let write = |from: &Path, to: &str, options: ExportOptions| {
            let to = dir.join(to);
            convert_model::<BuiltInHeads>(from, &to, Quantize::default(), &options, None)
                .map(|_| to)
        };
        let layout = |names| ExportOptions {
            layout: Some(names),
            ..ExportOptions::default()
        };
        let merged = |names| ExportOptions {
            lora: LoraExport::Merged,
            ..layout(names)
        };
        let own = write(
            &model,
            "own",
            ExportOptions {
                layout: None,
                ..merged(Names::Original)
            },
        )
        .unwrap();
        let expected = tensors(&own);
        for names in [Names::HuggingFace, Names::HuggingFace5, Names::InMemory] {
            let out = write(&model, &format!("{names:?}"), merged(names)).unwrap();
            let checkpoint = Checkpoint::open(&out).unwrap();
            assert_eq!(Names::of(&checkpoint), Some(names));
            assert!(
                checkpoint
                    .tensors()
                    .any(|t| t.key.ends_with("post_layernorm.weight"))
            );
            assert!(inspect(&out, LayoutChoice::Auto).unwrap().is_fine());
            let back = write(&out, &format!("{names:?} back"), ExportOptions::default()).unwrap();
            let found = tensors(&back);
            assert!(found.keys().eq(expected.keys()));
            for (key, data) in &expected {
                found[key].assert_eq(data, true);
            }
            // As a base: its config.json says the same sizes, and nothing is missing.
            std::fs::remove_file(out.join("tpo.json")).unwrap();
            let found = inspect(&out, LayoutChoice::Auto).unwrap();
            assert!(
                found.layout.as_ref().unwrap().contains("of width 128"),
                "{found}"
            );
        }
        // What the base's code cannot read.
        for (options, part) in [
            (layout(Names::HuggingFace), "--merge"),
            (merged(Names::Original), "siglip-so400m-patch14-384"),
        ] {
            let error = write(&model, "refused", options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let quantised = dir.join("q8");
        let q8 = Quantize::from(QuantFormat::Q8_0);
        convert_model::<BuiltInHeads>(&own, &quantised, q8, &ExportOptions::default(), None)
            .unwrap();
        let error = write(&quantised, "refused", layout(Names::HuggingFace))
            .unwrap_err()
            .to_string();
        assert!(error.contains("quantised"), "{error}");
    }
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/mini");
    let options = ExportOptions {
        layout: Some(Names::Original),
        ..ExportOptions::default()
    };
    let out = root.path().join("mini");
    let error = convert_model::<BuiltInHeads>(&mini, &out, Quantize::default(), &options, None);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("only a LLaVA-OV-TPO"), "{error}");
}

fn tensors(dir: &Path) -> std::collections::BTreeMap<String, TensorData> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let all = checkpoint
        .tensors()
        .map(|t| (t.key.clone(), read_tensor(t).unwrap()));
    all.collect()
}
