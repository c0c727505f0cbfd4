//! Multiple-choice answers.

use serde_json::{Map, json};

use super::Args;
use super::outcome::{Grid, Scored};
use crate::cli::shared::Outcome;
use crate::evaluation::multiple_choice::{
    ChoiceRow, ChoiceRule, ChoiceScores, ChoiceTally, read_mvbench, read_video_mme,
};

fn scored(
    protocol: &'static str,
    scores: &ChoiceScores,
    groupings: &[(&str, ChoiceScores)],
) -> Outcome<Scored> {
    let mut scored = Scored::new(protocol, &json!({"rule": scores.rule}))?;
    let mut grid = Grid::new(&["accuracy"], 2);
    for group in &scores.groups {
        let name = format!("{} ({})", group.name, group.questions);
        grid.row(name, vec![group.accuracy]);
    }
    grid.row("mean of groups", vec![scores.mean_of_groups]);
    grid.row("overall", vec![scores.overall]);
    scored.grids.push(grid);
    let mut each = Grid::new(&["accuracy"], 2);
    for (name, grouping) in groupings {
        for group in &grouping.groups {
            let name = format!("{name}: {} ({})", group.name, group.questions);
            each.row(name, vec![group.accuracy]);
        }
    }
    scored.each = Some(each);
    let right = scores.groups.iter().map(|g| g.unreadable_counted_right);
    let right: usize = right.sum();
    if scores.unreadable > 0 {
        let what = match scores.rule {
            ChoiceRule::VideoMme => "they are not in the denominator, as in the script".to_string(),
            _ => format!("the rule counts {right} of them right"),
        };
        let unreadable = scores.unreadable;
        let note = format!("{unreadable} answers without an option letter; {what}");
        scored.notes.push(note);
    }
    let groups = scores.groups.iter();
    let groups: Map<_, _> = groups
        .map(|g| (g.name.clone(), json!(g.accuracy)))
        .collect();
    scored.scores = json!({
        "groups": groups, "mean_of_groups": scores.mean_of_groups, "overall": scores.overall,
    });
    let groupings = groupings.iter().map(|(n, g)| (n.to_string(), json!(g)));
    let groupings: Map<_, _> = groupings.collect();
    scored.details = json!({"groups": scores.groups, "groupings": groupings});
    Ok(scored)
}

pub fn mvbench(args: &Args) -> Outcome<Scored> {
    let rule = args.rule.unwrap_or(ChoiceRule::MvBench);
    let protocol = "MVBench check_ans";
    let mut tally = ChoiceTally::new(rule);
    let mut add = |row: &ChoiceRow| tally.add(&row.task_type, &row.pred, &row.gt);
    if args.predictions().extension().is_some_and(|e| e == "json") {
        read_mvbench(args.predictions())?.iter().for_each(&mut add);
        return scored(protocol, &tally.scores(), &[]);
    }
    let rows = args.table::<ChoiceRow>(args.predictions())?;
    rows.iter().for_each(&mut add);
    let mut scored = scored(protocol, &tally.scores(), &[])?;
    scored.read(&rows);
    Ok(scored)
}

pub fn video_mme(args: &Args) -> Outcome<Scored> {
    let rule = args.rule.unwrap_or(ChoiceRule::VideoMme);
    let videos = read_video_mme(args.predictions())?;
    let mut durations = ChoiceTally::new(rule);
    for duration in ["short", "medium", "long"] {
        durations.declare(duration);
    }
    let mut others = [
        ("domain", ChoiceTally::new(rule)),
        ("sub-category", ChoiceTally::new(rule)),
        ("task", ChoiceTally::new(rule)),
    ];
    let mut missing = 0;
    for video in &videos {
        if video.missing {
            missing += 1;
            continue;
        }
        for q in &video.questions {
            durations.add(&video.duration, &q.response, &q.answer);
            let groups = [&video.domain, &video.sub_category, &q.task_type];
            for ((_, tally), group) in others.iter_mut().zip(groups) {
                if !group.is_empty() {
                    tally.add(group, &q.response, &q.answer);
                }
            }
        }
    }
    let groupings: Vec<_> = others.iter().map(|(n, t)| (*n, t.scores())).collect();
    let protocol = "Video-MME eval_your_results";
    let mut scored = scored(protocol, &durations.scores(), &groupings)?;
    if missing > 0 {
        let note = format!("{missing} videos are marked as missing and left out");
        scored.notes.push(note);
    }
    Ok(scored)
}
