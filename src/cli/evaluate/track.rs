//! Tracking results in text files.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tpo_heads::mask::metric::track::{
    Got10kScores, Got10kSequence, LasotScores, LasotSequence, got10k, lasot,
};

use super::Args;
use super::mask::sequence_names;
use super::outcome::{Grid, Scored};
use crate::cli::shared::Outcome;
use crate::evaluation::files::tracks::{read_boxes, read_flags, read_resolution};
use crate::evaluation::files::{Matched, Score};

/// Scores every sequence of the ground truth that has a result; others are listed. `score` takes
/// name, folder of the ground truth and file of the result.
fn each_sequence<T>(
    args: &Args,
    mut score: impl FnMut(String, PathBuf, PathBuf) -> Outcome<T>,
) -> Outcome<(Vec<T>, Matched)> {
    let root = args.truth()?;
    let names = sequence_names(root, args.sequences.as_deref())?;
    let wanted = names.into_iter().map(|name| {
        let folder = args.predictions().join(&name);
        let places = [
            args.predictions().join(format!("{name}.txt")),
            folder.join(format!("{name}_001.txt")),
            folder.join(format!("{name}.txt")),
        ];
        (name, places.into_iter().find(|p| p.is_file()))
    });
    let hint = "; expected SEQUENCE.txt or SEQUENCE/SEQUENCE_001.txt";
    args.each_result(wanted, hint, |name, file| {
        let folder = root.join(&name);
        Ok(vec![score(name, folder, file)?])
    })
}

pub fn lasot(args: &Args) -> Outcome<Scored> {
    let (all, matched) = each_sequence(args, |name, folder, file| {
        let truth = read_boxes(folder.join("groundtruth.txt"))?;
        let mut absent = Vec::new();
        for flags in ["full_occlusion.txt", "out_of_view.txt"] {
            let path = folder.join(flags);
            if !path.is_file() {
                continue;
            }
            let flags = read_flags(&path)?;
            if flags.len() != truth.len() {
                let (path, flags, frames) = (path.display(), flags.len(), truth.len());
                return Err(format!("{path}: {flags} flags for {frames} annotated frames").into());
            }
            absent.resize(truth.len(), false);
            let flags = absent.iter_mut().zip(flags);
            flags.for_each(|(a, f)| *a |= f > 0.0);
        }
        let sequence = LasotSequence {
            name,
            truth,
            predicted: read_boxes(file)?,
            absent,
        };
        Ok(sequence.score()?)
    })?;
    let scores = LasotScores::new(all)?;
    let mut scored = Scored::new(lasot::PROTOCOL, &json!({"strict": args.strict}))?;
    let values = [
        ("success AUC", scores.success_auc),
        ("precision (20 px)", scores.precision),
        ("normalised precision (0.2)", scores.normalised_precision),
        (
            "normalised precision AUC (0-0.5)",
            scores.normalised_precision_auc,
        ),
    ];
    let values = values.map(|(name, value)| Score::new(name, value));
    scored.set_scores(100.0, 2, values);
    let mut each = Grid::new(&["AUC", "P", "Pnorm"], 2);
    for s in &scores.sequences {
        let values = [s.success_auc, s.precision, s.normalised_precision];
        each.row(&s.name, values.map(|v| Some(100.0 * v)).to_vec());
    }
    scored.each = Some(each);
    scored.details = json!({"sequences": scores.sequences});
    scored.matched = Some(matched);
    Ok(scored)
}

pub fn got10k(args: &Args) -> Outcome<Scored> {
    let mut without_size = 0;
    let (all, matched) = each_sequence(args, |name, folder, file| {
        let optional = |name: &str| Some(folder.join(name)).filter(|p| p.is_file());
        let cover = optional("cover.label").map(read_flags).transpose()?;
        let resolution = optional("meta_info.ini").map(read_resolution).transpose()?;
        without_size += resolution.is_none() as usize;
        let sequence = Got10kSequence {
            name,
            truth: read_boxes(folder.join("groundtruth.txt"))?,
            predicted: read_boxes(file)?,
            cover: cover.unwrap_or_default(),
            resolution,
        };
        Ok(sequence.score()?)
    })?;
    let scores = Got10kScores::new(all);
    let mut scored = Scored::new(got10k::PROTOCOL, &json!({"strict": args.strict}))?;
    let mut grid = Grid::new(&["all frames", "mean of sequences"], 2);
    let mut named = Map::new();
    let percent = |v: Option<f64>| v.map(|v| 100.0 * v);
    let values = [
        ("AO", scores.ao),
        ("SR0.5", scores.sr_50),
        ("SR0.75", scores.sr_75),
    ];
    for ((name, value), mean) in values.into_iter().zip(scores.mean_of_sequences) {
        grid.row(name, vec![percent(value), percent(mean)]);
        named.insert(name.into(), value.into());
        named.insert(format!("{name} mean of sequences"), mean.into());
    }
    if without_size > 0 {
        let what = "sequences have no meta_info.ini: their boxes were not cut to the image";
        scored.notes.push(format!("{without_size} {what}"));
    }
    scored.grids.push(grid);
    let mut each = Grid::new(&["AO", "SR0.5", "SR0.75"], 2);
    for s in &scores.sequences {
        each.row(&s.name, [s.ao, s.sr_50, s.sr_75].map(percent).to_vec());
    }
    scored.each = Some(each);
    scored.scores = Value::Object(named);
    scored.details = json!({"success_curve": scores.success_curve, "sequences": scores.sequences});
    scored.matched = Some(matched);
    Ok(scored)
}
