//! Tokenizer, prompt, frame-sampling and preprocessing fixtures.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tpo::core::prompt::{PromptIds, TextEncoder, Visual};
use tpo::data::prompts::qwen::{QwenLayout, VISUAL_MARK};
use tpo::data::prompts::videochat::{MAX_TOKENS, QuestionPrompt, encode_with_placeholders};
use tpo::data::prompts::{AnswerStart, Opening, PromptLayout, VisualSlots};
use tpo::data::sampling::{FrameSampling, frame_indices};
use tpo::data::{Frame, ImageTransform};
use tpo::llm::tokenizer::{EncodeOptions, Tokenizer};

use super::check::Report;
use super::fixture::{Failure, Fixture, Stored, Values};

/// The sentencepiece model: the given one, the directory's, or the one of the tests.
pub fn tokenizer_file(fixture: &Fixture, given: Option<&Path>) -> Result<PathBuf, Failure> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tpo-llm/tests/fixtures/mistral_v1/tokenizer.model");
    let candidates = [
        given.map(Path::to_path_buf),
        Some(fixture.dir.join("tokenizer.model")),
        Some(tests),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|p| p.exists())
        .ok_or_else(|| "no sentencepiece model; give one with --tokenizer".into())
}

pub fn tokenizer(fixture: &Fixture, given: Option<&Path>) -> Result<Report, Failure> {
    let mut report = Report::default();
    let json = &fixture.json;
    let file = tokenizer_file(fixture, given)?;
    let mut tokenizer = Tokenizer::from_sentencepiece(file, Default::default())?;
    let added = json["tokenizer"]["added_tokens"]
        .as_object()
        .ok_or("no added_tokens")?;
    let mut tokens: Vec<(String, u32)> = added
        .iter()
        .map(|(t, id)| (t.clone(), id.as_u64().unwrap_or_default() as u32))
        .collect();
    tokens.sort_by_key(|t| t.1);
    tokenizer.add_tokens_with_ids(tokens.iter().map(|(t, id)| (t.as_str(), *id)))?;
    let n_query = json["n_query"].as_u64().ok_or("no n_query")? as usize;

    let bos = EncodeOptions {
        add_bos: true,
        ..EncodeOptions::default()
    };
    for (i, case) in cases(json, "plain").enumerate() {
        let text = string(case, "text")?;
        let got = tokenizer.encode(text, bos)?;
        same(&mut report, &format!("plain {i}"), &got, case, "ids");
    }
    for (i, case) in cases(json, "prepare").enumerate() {
        let got = encode_with_placeholders(string(case, "text")?, n_query, &tokenizer)?;
        same(&mut report, &format!("prepare {i}"), &got.ids, case, "ids");
        let index: Vec<u32> = got.visual.iter().map(|v| *v as u32).collect();
        same(
            &mut report,
            &format!("prepare {i} index"),
            &index,
            case,
            "index",
        );
        let mask = vec![1u32; got.len()];
        same(
            &mut report,
            &format!("prepare {i} mask"),
            &mask,
            case,
            "attention_mask",
        );
    }
    for (i, case) in cases(json, "process_qa").enumerate() {
        let visual = match string(case, "media")? {
            "image" => Visual::Image,
            _ => Visual::Video,
        };
        let prompt = QuestionPrompt::new(visual, string(case, "msg")?, string(case, "text")?);
        let expected = string(case, "full_text")?;
        report.expect(
            &format!("process_qa {i} text"),
            prompt.text() == expected,
            || format!("got {:?}, expected {expected:?}", prompt.text()),
        );
        let mut got = prompt.encode(n_query, &tokenizer)?;
        got.truncate(MAX_TOKENS);
        same(
            &mut report,
            &format!("process_qa {i}"),
            &got.ids,
            case,
            "ids",
        );
        let index: Vec<u32> = got.visual.iter().map(|v| *v as u32).collect();
        same(
            &mut report,
            &format!("process_qa {i} index"),
            &index,
            case,
            "index",
        );
    }
    for (i, case) in cases(json, "decode").enumerate() {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        for (key, skip) in [("text", false), ("text_skip_special", true)] {
            let got = tokenizer.decode(&ids, skip)?;
            let expected = string(case, key)?;
            report.expect(&format!("decode {i} {key}"), got == expected, || {
                format!("got {got:?}, expected {expected:?}")
            });
        }
    }
    for (i, case) in cases(json, "frame_indices").enumerate() {
        let number = |key: &str| case[key].as_u64().map(|v| v as usize);
        let sampling: FrameSampling = string(case, "sample")?.parse()?;
        let got = frame_indices(
            sampling,
            number("num_frames").ok_or("no num_frames")?,
            number("vlen").ok_or("no vlen")?,
            case["fps"].as_f64().unwrap_or(25.0),
        )?;
        let got: Vec<u32> = got.iter().map(|i| *i as u32).collect();
        same(
            &mut report,
            &format!("frame_indices {i}"),
            &got,
            case,
            "out",
        );
    }
    Ok(report)
}

fn cases<'a>(json: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    json[key].as_array().into_iter().flatten()
}

fn string<'a>(case: &'a Value, key: &str) -> Result<&'a str, Failure> {
    case[key]
        .as_str()
        .ok_or_else(|| format!("no string `{key}`").into())
}

fn same(report: &mut Report, name: &str, got: &[u32], case: &Value, key: &str) {
    let expected: Option<Vec<u32>> = serde_json::from_value(case[key].clone()).ok();
    report.expect(name, expected.as_deref() == Some(got), || {
        format!("got {got:?}, expected {expected:?}")
    });
}

/// One id per character.
struct Chars;

impl TextEncoder for Chars {
    fn encode_with_bos(&self, text: &str) -> tpo::core::Result<Vec<u32>> {
        Ok(text.chars().map(|c| c as u32).collect())
    }
}

/// Exact strings of LLaVA-OneVision's conversation, and what its training does to a message. The template
/// of the Hugging Face conversion is information: the published weights were not trained on it.
pub fn onevision_prompt(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let text = |prompt: &PromptIds| -> String {
        let ids = prompt.ids.iter().zip(&prompt.visual);
        ids.map(|(id, visual)| match char::from_u32(*id) {
            _ if *visual => VISUAL_MARK.into(),
            letter => letter.map_or_else(String::new, String::from),
        })
        .collect()
    };
    let opening = |question: &str| -> Result<String, Failure> {
        let image = VisualSlots {
            kind: Visual::Image,
            count: 1,
        };
        let opening = Opening {
            visuals: &vec![image; question.matches(VISUAL_MARK).count()],
            ..Opening::text(question)
        };
        Ok(text(&QwenLayout.opening(&opening, &Chars)?))
    };
    let [end, ..] = QwenLayout.ends() else {
        return Err("the layout has no end of an answer".into());
    };
    for (i, case) in cases(&fixture.json, "original").enumerate() {
        let turns = case["turns"].as_array().ok_or("no turns")?;
        let mut got = String::new();
        for pair in turns.chunks(2) {
            let question = string(&pair[0], "text")?;
            if got.is_empty() {
                got = opening(question)?;
            } else {
                let mut ids = PromptIds::default();
                ids.push_text(&QwenLayout.further(question, AnswerStart::default(), &Chars)?);
                got += &text(&ids);
            }
            if let Some(answer) = pair.get(1).and_then(|turn| turn["text"].as_str()) {
                got += answer;
                got += end;
            }
        }
        // What follows a finished answer is the beginning of the next turn.
        let expected = string(case, "text")?;
        let expected = expected
            .strip_suffix(&format!("{end}\n"))
            .map_or_else(|| expected.into(), |text| format!("{text}{end}"));
        report.expect(&format!("original {i}"), got == expected, || {
            format!("got {got:?}, expected {expected:?}")
        });
    }
    let frame = opening("?")?;
    let (head, tail) = frame.split_once('?').ok_or("no question")?;
    for (i, case) in cases(&fixture.json, "training_moves").enumerate() {
        let got = opening(string(case, "text")?)?;
        let expected = format!("{head}{}{tail}", string(case, "moved")?);
        report.expect(&format!("training_moves {i}"), got == expected, || {
            format!("got {got:?}, expected {expected:?}")
        });
    }
    Ok(report)
}

pub fn preprocess(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let frames = frames_of(fixture.stored("in.frames_u8")?, 1)?;
    let big = frames_of(fixture.stored("in.big_lowres_u8")?, 8)?;
    for (suffix, antialias) in [("aa", true), ("noaa", false)] {
        let vision = ImageTransform::vision().with_antialias(antialias);
        compare(
            &mut report,
            fixture,
            &format!("out.vision.{suffix}"),
            &vision,
            &frames,
            [5, 7],
            true,
        )?;
        let down = format!("out.vision_down.{suffix}");
        compare(&mut report, fixture, &down, &vision, &big, [3, 3], true)?;
        let mask = ImageTransform::mask().with_antialias(antialias);
        compare(
            &mut report,
            fixture,
            &format!("out.mask.{suffix}"),
            &mask,
            &frames,
            [37, 41],
            false,
        )?;
    }
    compare(
        &mut report,
        fixture,
        "out.region",
        &ImageTransform::region(),
        &frames,
        [2, 2],
        false,
    )?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Compares every `stride`-th row and column at the fixture's absolute tolerance. On the uint8
/// path up to 1 % of the values may differ by one step (the fixture's own rule).
fn compare(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    transform: &ImageTransform,
    frames: &[Frame],
    stride: [usize; 2],
    steps_allowed: bool,
) -> Result<(), Failure> {
    let atol = fixture.json["tolerance"]["atol"]
        .as_f64()
        .ok_or("no atol")?;
    let (values, [t, c, h, w]) = transform.apply(frames)?;
    let expected = fixture.floats(key)?;
    let shape = &fixture.stored(key)?.shape;
    let (rows, columns) = (h.div_ceil(stride[0]), w.div_ceil(stride[1]));
    if *shape != [t, c, rows, columns] {
        report.fail(
            key,
            format!("shape {:?}, expected {shape:?}", [t, c, rows, columns]),
        );
        return Ok(());
    }
    let (mut worst, mut off) = (0f64, 0usize);
    let mut at = 0;
    for plane in values.chunks_exact(h * w) {
        for y in (0..h).step_by(stride[0]) {
            for x in (0..w).step_by(stride[1]) {
                let error = (plane[y * w + x] - expected[at]).abs() as f64;
                worst = worst.max(error);
                // A value that differs by a whole step, not by rounding of the arithmetic.
                off += (error > 1e-3) as usize;
                at += 1;
            }
        }
    }
    report.measure(key, worst, atol);
    if steps_allowed {
        let share = off as f64 / expected.len() as f64;
        report.measure(&format!("{key} share of values one step off"), share, 0.01);
    }
    Ok(())
}

/// Planar uint8 `[frames, 3, h, w]`, enlarged by a whole factor.
/// Stored bytes `[frames, 3, height, width]`, each pixel so many times in both directions.
pub fn frames_of(stored: &Stored, factor: usize) -> Result<Vec<Frame>, Failure> {
    let [_, _, h, w] = stored.shape[..] else {
        return Err("frames must have four axes".into());
    };
    let Values::Int(values) = &stored.values else {
        return Err("frames must be integers".into());
    };
    let mut frames = Vec::new();
    for frame in values.chunks_exact(3 * h * w) {
        let (height, width) = (h * factor, w * factor);
        let mut rgb = Vec::with_capacity(3 * height * width);
        for y in 0..height {
            for x in 0..width {
                let planes = frame.chunks_exact(h * w);
                rgb.extend(planes.map(|plane| plane[y / factor * w + x / factor] as u8));
            }
        }
        frames.push(Frame::from_rgb(width, height, rgb)?);
    }
    Ok(frames)
}
