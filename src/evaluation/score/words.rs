//! Multiple choice and short answers.

use serde_json::{Value, json};

use super::super::answer::normalise_text;
use super::super::item::Expected;
use super::super::multiple_choice::{ChoiceRule, ChoiceTally};
use super::super::submission::{Answered, Folder};
use super::{GroupScores, Rules, Scored, groups, one, percent};
use crate::error::Result;

fn option(options: &[String], index: usize) -> Option<String> {
    let letter = ('A'..='Z').nth(index)?;
    Some(format!("({letter}) {}", options.get(index)?))
}

pub(super) fn choices(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    rules: &Rules,
    folder: &Folder<'_>,
) -> Result<Scored> {
    let truth = |a: &Answered<'_>| match (&a.item.expected, rules.choice) {
        (Expected::Choice { correct, .. }, ChoiceRule::VideoMme) => {
            Some(('A'..='Z').nth((*correct)?)?.to_string())
        }
        (Expected::Choice { options, correct }, _) => option(options, (*correct)?),
        _ => None,
    };
    let mut tally = ChoiceTally::new(rules.choice);
    let mut rows = Vec::new();
    let mut videos: Vec<(String, Value)> = Vec::new();
    for a in all {
        let truth = truth(a);
        let said = a.words();
        if rules.choice == ChoiceRule::VideoMme {
            let question = json!({
                "question_id": a.item.id,
                "answer": truth,
                "response": said,
            });
            let name = a.item.media.name();
            match videos.iter_mut().find(|v| v.0 == name) {
                Some((_, video)) => {
                    if let Some(questions) = video["questions"].as_array_mut() {
                        questions.push(question);
                    }
                }
                None => {
                    let video = json!({
                        "video_id": name,
                        "duration": a.item.group,
                        "questions": [question],
                    });
                    videos.push((name, video));
                }
            }
        } else {
            rows.push(json!({
                "id": a.item.id,
                "task_type": a.item.group,
                "pred": said,
                "gt": truth,
            }));
        }
        if let Some(truth) = truth {
            tally.add(&a.item.group, said, &truth);
        }
    }
    if rules.choice == ChoiceRule::VideoMme {
        let all: Vec<Value> = videos.into_iter().map(|v| v.1).collect();
        folder.write("video_mme.json", Value::from(all).to_string().as_bytes())?;
    } else {
        folder.lines("choice.jsonl", &rows)?;
    }
    let scores = tally.scores();
    let several = scores.groups.len() > 1;
    let mut list = vec![one("accuracy", scores.overall)];
    if several {
        list.push(one("mean of groups", scores.mean_of_groups));
    }
    let share = |n: usize| percent(n as f64 / known.len().max(1) as f64);
    list.push(one("unreadable", Some(share(scores.unreadable))));
    let groups = scores
        .groups
        .iter()
        .filter(|_| several)
        .map(|g| GroupScores {
            group: g.name.clone(),
            questions: g.questions,
            scores: vec![one("accuracy", g.accuracy)],
        })
        .collect();
    Ok((list, groups))
}

pub(super) fn texts(
    all: &[Answered<'_>],
    known: &[Answered<'_>],
    folder: &Folder<'_>,
) -> Result<Scored> {
    let right = |a: &&Answered<'_>| match &a.item.expected {
        Expected::Text(Some(truth)) => normalise_text(a.words()) == normalise_text(truth),
        _ => false,
    };
    let row = |a: &Answered<'_>| {
        let truth = match &a.item.expected {
            Expected::Text(truth) => truth.as_deref(),
            _ => None,
        };
        json!({
            "id": a.item.id,
            "kind": a.item.group,
            "question": a.row.question,
            "pred": a.words(),
            "gt": truth,
            "right": truth.map(|_| right(&a)),
        })
    };
    let rows: Vec<Value> = all.iter().map(row).collect();
    folder.lines("text.jsonl", &rows)?;
    let accuracy = |of: &[Answered<'_>]| {
        let hits = of.iter().filter(right).count();
        (!of.is_empty()).then(|| percent(hits as f64 / of.len() as f64))
    };
    let of_groups = groups(known);
    let mut scores = vec![one("exact match", accuracy(known))];
    if !of_groups.is_empty() {
        let each: Vec<f64> = of_groups.iter().filter_map(|g| accuracy(&g.1)).collect();
        let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
        scores.push(one("mean of kinds", Some(mean)));
    }
    let groups = of_groups
        .into_iter()
        .map(|(group, members)| GroupScores {
            group: group.into(),
            questions: members.len(),
            scores: vec![one("exact match", accuracy(&members))],
        })
        .collect();
    Ok((scores, groups))
}
