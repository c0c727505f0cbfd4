//! Multiple choice and short answers.

use serde_json::{Value, json};
use tpo_data::readers::Format;

use super::super::answer::normalise_text;
use super::super::item::Expected;
use super::super::multiple_choice::ChoiceTally;
use super::super::submission::{Answered, Folder, sample_id};
use super::{GroupScores, Rules, Score, Scored, grouped, percent};
use crate::error::Result;

/// The right option as the benchmark's files have it: `(A) text`, in Video-MME's `A`.
fn right_option(a: &Answered<'_>, rules: &Rules) -> Option<String> {
    let Expected::MultipleChoice {
        options,
        correct: Some(correct),
    } = &a.item.expected
    else {
        return None;
    };
    let letter = ('A'..='Z').nth(*correct)?;
    if rules.are_of(Format::VideoMme) {
        return Some(letter.into());
    }
    Some(format!("({letter}) {}", options.get(*correct)?))
}

pub(super) fn choices(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    rules: &Rules,
    folder: &Folder<'_>,
) -> Result<Scored> {
    let mut tally = ChoiceTally::new(rules.choice());
    for a in known {
        if let Some(truth) = right_option(a, rules) {
            tally.add(&a.item.group, a.words(), &truth);
        }
    }
    if rules.are_of(Format::VideoMme) {
        let videos = video_mme(all, rules).to_string();
        folder.write("video_mme.json", videos.as_bytes())?;
    } else {
        let row = |a: &Answered<'_>| {
            json!({
                "id": a.item.id,
                "task_type": a.item.group,
                "pred": a.words(),
                "gt": right_option(a, rules),
            })
        };
        let rows: Vec<Value> = all.iter().map(row).collect();
        folder.lines("multiple_choice.jsonl", &rows)?;
    }
    for_servers(all, rules, folder)?;
    let scores = tally.scores();
    let several = scores.groups.len() > 1;
    let mut list = vec![Score::new("accuracy", scores.overall)];
    if several {
        list.push(Score::new("mean of groups", scores.mean_of_groups));
    }
    let unreadable = scores.unreadable as f64 / known.len().max(1) as f64;
    list.push(Score::new("unreadable", percent(unreadable)));
    let groups = scores
        .groups
        .iter()
        .filter(|_| several)
        .map(|g| GroupScores {
            group: g.name.clone(),
            questions: g.questions,
            scores: vec![Score::new("accuracy", g.accuracy)],
        })
        .collect();
    Ok((list, groups))
}

/// What the servers of benchmarks take that keep answers to themselves, or rank results.
fn for_servers(all: &[Answered<'_>], rules: &Rules, folder: &Folder<'_>) -> Result<()> {
    let letter = |a: &Answered<'_>| rules.choice().letter(a.words());
    match rules.0 {
        Some(Format::PerceptionTest) => {
            let text = perception_test(all, letter).to_string();
            folder.write("perception_test.json", text.as_bytes())?;
        }
        Some(Format::Mlvu) => {
            let rows = all.iter().map(|a| {
                let option = letter(a).map(String::from).unwrap_or_default();
                json!({"question_id": a.item.id, "question_type": a.item.group, "option": option})
            });
            let text = rows.collect::<Value>().to_string();
            folder.write("mlvu.json", text.as_bytes())?;
        }
        Some(Format::SeedBench2) => {
            let rows = all.iter().map(|a| {
                let prediction = letter(a).map(String::from).unwrap_or_default();
                json!({"question_id": a.item.id, "prediction": prediction})
            });
            folder.lines("seed_bench_2.jsonl", &rows.collect::<Vec<_>>())?;
        }
        _ => {}
    }
    Ok(())
}

/// Perception Test's answers, `{VIDEO: [{"id", "answer_id", "answer"}]}`; -1 where none can be read. The id
/// of a question is `VIDEO:ID`.
fn perception_test(all: &[Answered<'_>], letter: impl Fn(&Answered<'_>) -> Option<char>) -> Value {
    let mut videos = serde_json::Map::new();
    for a in all {
        let Expected::MultipleChoice { options, .. } = &a.item.expected else {
            continue;
        };
        let (video, id) = a.item.id.rsplit_once(':').unwrap_or(("", &a.item.id));
        let place = letter(a).and_then(|l| ('A'..='Z').position(|other| other == l));
        let answer = place.and_then(|place| options.get(place));
        let place = place.filter(|_| answer.is_some());
        let row = json!({
            "id": sample_id(id),
            "answer_id": place.map_or(-1, |place| place as i64),
            "answer": answer.map_or("", String::as_str),
        });
        let rows = videos.entry(video).or_insert_with(|| json!([]));
        if let Value::Array(rows) = rows {
            rows.push(row);
        }
    }
    videos.into()
}

/// The result file of Video-MME: its videos with their questions.
fn video_mme(all: &[Answered<'_>], rules: &Rules) -> Value {
    let mut videos: Vec<(String, &str, Vec<Value>)> = Vec::new();
    for a in all {
        let question = json!({
            "question_id": a.item.id,
            "answer": right_option(a, rules),
            "response": a.words(),
        });
        let name = a.item.media.name();
        match videos.iter_mut().find(|v| v.0 == name) {
            Some((_, _, questions)) => questions.push(question),
            None => videos.push((name, &a.item.group, vec![question])),
        }
    }
    let videos = videos.into_iter().map(|(name, duration, questions)| {
        json!({"video_id": name, "duration": duration, "questions": questions})
    });
    videos.collect()
}

pub(super) fn texts(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    folder: &Folder<'_>,
) -> Result<Scored> {
    let truth = |a: &Answered<'_>| match &a.item.expected {
        Expected::Text(truth) => truth.clone(),
        _ => None,
    };
    let right = |a: &Answered<'_>| Some(normalise_text(a.words()) == normalise_text(&truth(a)?));
    let row = |a: &Answered<'_>| {
        json!({
            "id": a.item.id,
            "kind": a.item.group,
            "question": a.row.question,
            "pred": a.words(),
            "gt": truth(a),
            "right": right(a),
        })
    };
    let rows: Vec<Value> = all.iter().map(row).collect();
    folder.lines("text.jsonl", &rows)?;
    let accuracy = |of: &[Answered<'_>]| {
        let hits = of.iter().filter(|a| right(a) == Some(true)).count();
        let share = (!of.is_empty()).then(|| percent(hits as f64 / of.len() as f64));
        vec![Score::new("exact match", share)]
    };
    let mut scores = accuracy(known);
    let groups = grouped(known, |members| Ok(accuracy(members)))?;
    if !groups.is_empty() {
        let each: Vec<f64> = groups.iter().filter_map(|g| g.scores[0].value).collect();
        let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
        scores.push(Score::new("mean of kinds", mean));
    }
    Ok((scores, groups))
}
