//! Multiple-choice benchmarks about videos.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    At, ConvertOptions, Samples, asked, map, members, of_split, parts, records, samples, table,
    text_of,
};
use crate::schema::{Annotation, Media, Sample, Target, Turn};
use crate::{ClipRange, DataError};

pub(super) fn choice(question: &str, options: Vec<String>, correct: Option<usize>) -> Turn {
    Turn {
        question: question.trim().into(),
        options,
        correct,
        ..Turn::default()
    }
}

/// The option that `answer` names by its letter, which may have a text after it.
pub(super) fn option_of(answer: &str, options: usize) -> Option<usize> {
    let letter = answer.trim().bytes().next()?.to_ascii_uppercase();
    let at = usize::from(letter).checked_sub(usize::from(b'A'))?;
    (at < options).then_some(at)
}

#[derive(Deserialize)]
struct MvRow {
    video: String,
    question: String,
    candidates: Vec<String>,
    answer: String,
    start: Option<f64>,
    end: Option<f64>,
}

/// MVBench: one file per task; the answer is the text of a candidate. Tasks whose videos are
/// folders of frames (TVQA at 3 per second) are converted with a frame rate given.
pub(super) fn mvbench(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: MvRow| {
        let correct = row.candidates.iter().position(|c| *c == row.answer);
        if correct.is_none() {
            return Err(at.bad(format!("answer `{}` is none of the candidates", row.answer)));
        }
        let mut media = match options.frame_rate {
            Some(fps) => Media::frames(options.media(&row.video), fps),
            None => Media::video(options.video(&row.video)),
        };
        if let (Some(start), Some(end)) = (row.start, row.end) {
            media.range = Some(ClipRange { start, end });
        }
        let turn = choice(&row.question, row.candidates, correct);
        Ok([asked(at.number.to_string(), Some(media), vec![turn])])
    };
    Ok(samples(records(path)?, options, each))
}

#[derive(Deserialize)]
struct Grounding {
    duration: Option<f64>,
    location: HashMap<String, Vec<[f64; 2]>>,
}

#[derive(Deserialize)]
struct GqaRow {
    #[serde(alias = "video")]
    video_id: String,
    question: String,
    answer: String,
    qid: String,
    a0: String,
    a1: String,
    a2: String,
    a3: String,
    a4: String,
}

/// NExT-GQA: questions in a csv (`video_id`, `question`, `answer` as text or number, `qid`,
/// `a0` to `a4`), the spans that answer them in `gsub_*.json`. The annotation's query is the
/// question. Videos are `VIDEO_ID.mp4`; the dataset maps ids to subfolders in a separate file.
pub(super) fn next_gqa(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let spans: HashMap<String, Grounding> = match options.second.as_deref() {
        Some(second) => map(second)?,
        None => HashMap::new(),
    };
    let each = move |options: &ConvertOptions, at: At, row: GqaRow| {
        let (video, said) = (&row.video_id, &row.answer);
        let candidates = vec![row.a0, row.a1, row.a2, row.a3, row.a4];
        let correct = candidates
            .iter()
            .position(|c| c == said)
            .or_else(|| said.parse().ok().filter(|i| *i < candidates.len()));
        if correct.is_none() {
            return Err(at.bad(format!("answer `{said}` is none of the candidates")));
        }
        let mut media = Media::video(options.video(video));
        let mut annotations = Vec::new();
        if let Some(g) = spans.get(video) {
            media.duration = g.duration;
            if let Some(spans) = g.location.get(&row.qid) {
                let (task, target) = (&options.temporal_task, Target::spans(spans.clone()));
                annotations.push(Annotation::asked(task, &row.question, target));
            }
        }
        let turn = choice(&row.question, candidates, correct);
        let id = format!("{video}:{}", row.qid);
        Ok([Sample {
            annotations,
            ..asked(id, Some(media), vec![turn])
        }])
    };
    let columns = [
        "video_id", "video", "question", "answer", "qid", "a0", "a1", "a2", "a3", "a4",
    ];
    Ok(samples(table(path, &columns)?, options, each))
}

#[derive(Deserialize)]
struct MmeRow {
    video_id: Option<String>,
    #[serde(rename = "videoID")]
    youtube: Option<String>,
    url: Option<String>,
    duration: Option<String>,
    #[serde(default)]
    questions: Vec<MmeQuestion>,
    #[serde(flatten)]
    one: HashMap<String, Value>,
}

#[derive(Deserialize)]
struct MmeQuestion {
    question_id: Option<String>,
    question: String,
    options: Vec<String>,
    answer: String,
    task_type: Option<String>,
}

/// Video-MME, grouped by video (the layout of its evaluation files) or one question a record
/// (its published table as JSON). Videos are named by `videoID`, the YouTube name; grouped files
/// have it in the `url` only.
pub(super) fn video_mme(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, mut row: MmeRow| {
        let from_url = row.url.as_deref().and_then(|u| u.rsplit(['=', '/']).next());
        let name = row
            .youtube
            .or(from_url.map(String::from))
            .or(row.video_id)
            .ok_or_else(|| at.bad("no `videoID`, `url` or `video_id`"))?;
        if row.questions.is_empty() {
            let one = serde_json::to_value(row.one).and_then(serde_json::from_value);
            row.questions.push(one.map_err(|e| at.bad(e.to_string()))?);
        }
        let video = Media::video(options.video(&name));
        let mut out = Vec::new();
        for (i, q) in row.questions.into_iter().enumerate() {
            let correct = option_of(&q.answer, q.options.len());
            if correct.is_none() {
                let options = q.options.len();
                return Err(at.bad(format!("answer `{}` of {options} options", q.answer)));
            }
            let texts = q.options.iter().map(|o| without_letter(o)).collect();
            let id = q.question_id.unwrap_or_else(|| format!("{name}:{i}"));
            let turn = choice(&q.question, texts, correct);
            let mut sample = asked(id, Some(video.clone()), vec![turn]);
            for (key, value) in [("duration", &row.duration), ("task_type", &q.task_type)] {
                if let Some(value) = value {
                    sample.meta.insert(key.into(), json!(value));
                }
            }
            out.push(sample);
        }
        Ok(out)
    };
    Ok(samples(records(path)?, options, each))
}

/// `A. text` without its letter.
fn without_letter(option: &str) -> String {
    let text = option.trim();
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), Some('.' | ')')) if c.is_ascii_uppercase() => chars.as_str().trim().into(),
        _ => text.into(),
    }
}

#[derive(Deserialize)]
struct MlvuRow {
    video: String,
    duration: Option<f64>,
    question: String,
    #[serde(default)]
    candidates: Vec<String>,
    answer: Option<String>,
    question_type: String,
    question_id: Option<String>,
}

/// MLVU: one file per task, `1_plotQA.json` to `7_topic_reasoning.json`; the answer is the text of a
/// candidate, of equal ones the last, as its script has it. The questions of the test set
/// (`test_question.json`) have a `question_id` and may lack the answer. The open questions
/// of `8_sub_scene.json` and `9_summary.json` are not multiple choice.
pub(super) fn mlvu(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: MlvuRow| {
        let kind = row.question_type;
        if row.candidates.is_empty() {
            let why = format!(
                "no `candidates`: a question of `{kind}` is open, and judged by a language model"
            );
            return Err(at.bad(why));
        }
        let correct = match &row.answer {
            Some(answer) => {
                let place = row.candidates.iter().rposition(|c| c == answer);
                let missing = || format!("answer `{answer}` is none of the candidates");
                Some(place.ok_or_else(|| at.bad(missing()))?)
            }
            None => None,
        };
        let id = row.question_id;
        let id = id.unwrap_or_else(|| format!("{kind}:{}", at.number));
        let mut media = Media::video(options.video(&row.video));
        media.duration = row.duration;
        let turn = choice(&row.question, row.candidates, correct);
        let mut sample = asked(id, Some(media), vec![turn]);
        sample.meta.insert("task_type".into(), kind.into());
        Ok([sample])
    };
    Ok(samples(records(path)?, options, each))
}

#[derive(Deserialize)]
struct PerceptionVideo {
    metadata: PerceptionMetadata,
    #[serde(default)]
    mc_question: Vec<Value>,
}

#[derive(Deserialize)]
struct PerceptionMetadata {
    split: Option<String>,
    frame_rate: Option<f64>,
}

#[derive(Deserialize)]
struct PerceptionQuestion {
    id: Value,
    question: String,
    options: Vec<String>,
    answer_id: Option<usize>,
    area: Option<String>,
    reasoning: Option<String>,
    #[serde(default)]
    tag: Vec<String>,
}

/// Perception Test: `mc_question_valid.json` and its siblings, an object of videos with their
/// questions; those of the test split have no answer. The second file is the benchmark's own
/// `cut_frame_mapping_valid.json`, `{video: frame}`: a video is seen up to this frame, which
/// would give an answer away; 0 or less cuts nothing.
pub(super) fn perception_test(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let cuts: HashMap<String, i64> = match options.second.as_deref() {
        Some(second) => map(second)?,
        None => HashMap::new(),
    };
    let videos = of_split(members(path, &[])?, options, |v: &PerceptionVideo| {
        v.metadata.split.as_deref()
    });
    let each = move |options: &ConvertOptions, at: At, video: PerceptionVideo| {
        let media = || -> Result<Media, DataError> {
            let mut media = Media::video(options.video(&at.key));
            let cut = cuts.get(&at.key).filter(|frame| **frame > 0);
            if let Some(frame) = cut {
                let rate = video.metadata.frame_rate.filter(|r| *r > 0.0);
                let rate = rate.ok_or_else(|| {
                    at.bad(format!(
                        "cut at frame {frame}, and no positive `frame_rate`"
                    ))
                })?;
                let (start, end) = (0.0, *frame as f64 / rate);
                media.range = Some(ClipRange { start, end });
            }
            Ok(media)
        };
        let question = |(i, q): (usize, &Value)| {
            let wrong = |why: String| at.bad(format!("mc_question[{i}]: {why}"));
            let q = PerceptionQuestion::deserialize(q).map_err(|e| wrong(e.to_string()))?;
            let count = q.options.len();
            if let Some(answer) = q.answer_id.filter(|a| *a >= count) {
                return Err(wrong(format!("answer {answer} of {count} options")));
            }
            let id = format!("{}:{}", at.key, text_of(q.id));
            let turn = choice(&q.question, q.options, q.answer_id);
            let mut sample = asked(id, Some(media()?), vec![turn]);
            for (key, value) in [("task_type", q.area), ("reasoning", q.reasoning)] {
                if let Some(value) = value {
                    sample.meta.insert(key.into(), value.into());
                }
            }
            if !q.tag.is_empty() {
                sample.meta.insert("tag".into(), json!(q.tag));
            }
            Ok(sample)
        };
        video.mc_question.iter().enumerate().map(question).collect()
    };
    Ok(parts(videos, options, each))
}
