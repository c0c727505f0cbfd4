//! Multiple-choice benchmarks about one image or several.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::choice::{choice, option_of};
use super::{At, ConvertOptions, Samples, asked, members, of_split, records, samples, text_of};
use crate::DataError;
use crate::prompts::qwen::VISUAL_MARK;
use crate::schema::Media;

#[derive(Deserialize)]
struct MmiuRow {
    task: String,
    options: String,
    #[serde(default)]
    output: Value,
    input: Option<MmiuInput>,
    #[serde(flatten)]
    flat: MmiuInput,
}

#[derive(Deserialize)]
struct MmiuInput {
    #[serde(default)]
    question: String,
    #[serde(default)]
    context: String,
    #[serde(default)]
    input_image_path: Vec<String>,
}

/// MMIU: the rows of `all.parquet` as JSON or JSONL (`task`, `question`, `context`, `options` of one
/// `A: text` a line, `input_image_path`, `output`), or the JSONL of its first release, which has them in
/// `input` and `output.output_text`. The question is followed by its context, without the options
/// at the end of that. An output of `null` is a question without an answer.
pub(super) fn mmiu(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let each = |options: &ConvertOptions, at: At, row: MmiuRow| {
        let input = row.input.unwrap_or(row.flat);
        let choices = lettered_lines(&row.options);
        let output = row.output.get("output_text").unwrap_or(&row.output);
        let correct = match output {
            Value::Null => None,
            Value::String(answer) => {
                let place = option_of(answer, choices.len());
                let wrong = || format!("output `{answer}` of {} options", choices.len());
                Some(place.ok_or_else(|| at.bad(wrong()))?)
            }
            other => return Err(at.bad(format!("output {other}, expected a letter"))),
        };
        let paths = input.input_image_path.iter();
        let paths = paths.map(|p| options.media(p.strip_prefix("./").unwrap_or(p)));
        let media = Media::images(paths).ok_or_else(|| at.bad("`input_image_path` is empty"))?;
        let context = input.context.trim();
        let context = context.strip_suffix(row.options.trim()).unwrap_or(context);
        let question = format!("{}\n{}", input.question.trim(), context.trim());
        let id = format!("{}:{}", row.task, at.number);
        let mut sample = asked(id, Some(media), vec![choice(&question, choices, correct)]);
        sample.meta.insert("task_type".into(), row.task.into());
        Ok([sample])
    };
    Ok(samples(records(path)?, options, each))
}

/// Options of one `A: text` a line, without their letters; a line without the next letter continues the
/// option before it. Where the first has no letter, every line is an option.
fn lettered_lines(text: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut lettered = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let letter = ('A'..='Z').nth(options.len());
        let rest = letter.and_then(|l| line.strip_prefix(l)?.strip_prefix([':', '.', ')']));
        match (rest, options.last_mut()) {
            (Some(rest), _) => {
                lettered |= options.is_empty();
                options.push(rest.trim().into());
            }
            (None, Some(last)) if lettered => {
                last.push('\n');
                last.push_str(line);
            }
            (None, _) => options.push(line.into()),
        }
    }
    options
}

#[derive(Deserialize)]
struct SeedRow {
    question: String,
    question_id: Value,
    question_type_id: u64,
    choice_a: Value,
    choice_b: Value,
    choice_c: Value,
    choice_d: Value,
    answer: String,
    data_id: Value,
    data_source: String,
    data_type: Option<String>,
    level: Option<String>,
}

/// SEED-Bench-2, `SEED-Bench_v2_level1_2_3.json`: questions about one image or a list of them, which
/// for videos are frames. Images are in the benchmark's two folders, `cc3m-image` and
/// `SEED-Bench-2-image`. A split is a `data_type`: `Single Image`, `Multiple Images`, `Video`,
/// `Interleaved Image`. The options of level L3 are images to be made; its evaluation leaves
/// them out unless told, and this reader does.
pub(super) fn seed_bench_2(path: &Path, options: &ConvertOptions) -> Result<Samples, DataError> {
    let names = members::<u64>(path, &["question_type"])?;
    let names: HashMap<u64, String> = names
        .map(|record| record.map(|(at, number)| (number, at.key)))
        .collect::<Result<_, _>>()?;
    let each = move |options: &ConvertOptions, at: At, row: SeedRow| {
        let number = row.question_type_id;
        let id = text_of(row.question_id);
        let bad = |why: String| at.bad(format!("question `{id}`: {why}"));
        let name = names.get(&number);
        let name = name.ok_or_else(|| bad(format!("`question_type` has no dimension {number}")))?;
        if row.level.as_deref() == Some("L3") {
            let why = format!("the options of `{name}` (level L3) are images to be made; left out");
            return Err(bad(why));
        }
        let folder = match row.data_source.as_str() {
            "cc3m" => "cc3m-image",
            "SEED-Bench v2" => "SEED-Bench-2-image",
            other => {
                let why = format!("`data_source` is `{other}`, expected cc3m or SEED-Bench v2");
                return Err(bad(why));
            }
        };
        let files = match row.data_id {
            Value::Array(files) => files,
            one => vec![one],
        };
        let paths = files.into_iter().map(|file| match file {
            Value::String(file) => Ok(options.media(&format!("{folder}/{file}"))),
            other => Err(bad(format!("`data_id` holds {other}, expected a name"))),
        });
        let media = Media::images(paths.collect::<Result<Vec<_>, _>>()?);
        let media = media.ok_or_else(|| bad("`data_id` is empty".into()))?;
        let choices = [row.choice_a, row.choice_b, row.choice_c, row.choice_d].map(text_of);
        let correct = option_of(&row.answer, choices.len());
        if correct.is_none() {
            let why = format!("answer `{}` is none of A to D", row.answer);
            return Err(bad(why));
        }
        let question = row.question.replace("<img>", VISUAL_MARK);
        let turn = choice(&question, choices.into(), correct);
        let mut sample = asked(id.clone(), Some(media), vec![turn]);
        sample.meta.insert("task_type".into(), name.as_str().into());
        if let Some(kind) = row.data_type {
            sample.meta.insert("data_type".into(), kind.into());
        }
        Ok([sample])
    };
    let rows = of_split(members(path, &["questions"])?, options, |r: &SeedRow| {
        r.data_type.as_deref()
    });
    Ok(samples(rows, options, each))
}
