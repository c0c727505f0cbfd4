//! Tracking results in text files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tpo::evaluation::files::Matched;
use tpo::evaluation::files::tracks::{read_boxes, read_flags, read_resolution};
use tpo::heads::mask::metric::track::{
    Got10kScores, Got10kSequence, LasotScores, LasotSequence, got10k, lasot,
};

use super::Args;
use super::mask::sequence_names;
use super::outcome::{Failure, Grid, Outcome};
use super::progress::Progress;

/// Sequences of the ground truth with the file of their result; others are listed.
fn sequences(args: &Args) -> Result<(Vec<(String, PathBuf)>, Matched), Failure> {
    let names = sequence_names(args.truth()?, args.sequences.as_deref())?;
    let mut found = Vec::new();
    let mut matched = Matched::default();
    for name in names {
        let folder = args.predictions().join(&name);
        let places = [
            args.predictions().join(format!("{name}.txt")),
            folder.join(format!("{name}_001.txt")),
            folder.join(format!("{name}.txt")),
        ];
        match places.into_iter().find(|p| p.is_file()) {
            Some(file) => found.push((name, file)),
            None => matched.without_prediction.push(name),
        }
    }
    matched.matched = found.len();
    if args.strict {
        let name = |p: &Path| p.display().to_string();
        matched.require_complete(&name(args.predictions()), &name(args.truth()?))?;
    }
    if found.is_empty() {
        return Err(format!(
            "{}: no result of any sequence of {}; expected SEQUENCE.txt or SEQUENCE/SEQUENCE_001.txt",
            args.predictions().display(),
            args.truth()?.display()
        )
        .into());
    }
    Ok((found, matched))
}

pub fn lasot(args: &Args) -> Result<Outcome, Failure> {
    let root = args.truth()?;
    let (sequences, matched) = sequences(args)?;
    let progress = Progress::new(sequences.len() as u64, "scoring");
    let mut all = Vec::new();
    for (name, file) in sequences {
        let folder = root.join(&name);
        let truth = read_boxes(folder.join("groundtruth.txt"))?;
        let mut absent = Vec::new();
        for flags in ["full_occlusion.txt", "out_of_view.txt"] {
            let path = folder.join(flags);
            if !path.is_file() {
                continue;
            }
            let flags = read_flags(&path)?;
            if flags.len() != truth.len() {
                return Err(format!(
                    "{}: {} flags for {} annotated frames",
                    path.display(),
                    flags.len(),
                    truth.len()
                )
                .into());
            }
            absent.resize(truth.len(), false);
            absent
                .iter_mut()
                .zip(flags)
                .for_each(|(a, f)| *a |= f > 0.0);
        }
        let predicted = read_boxes(file)?;
        all.push(
            LasotSequence {
                name,
                truth,
                predicted,
                absent,
            }
            .score()?,
        );
        progress.step(1);
    }
    drop(progress);
    let scores = LasotScores::new(all)?;
    let mut outcome = Outcome::new(lasot::PROTOCOL, &json!({"strict": args.strict}))?;
    let mut grid = Grid::new(&[""], 2);
    let mut named = Map::new();
    for (name, value) in [
        ("success AUC", scores.success_auc),
        ("precision (20 px)", scores.precision),
        ("normalised precision (0.2)", scores.normalised_precision),
        (
            "normalised precision AUC (0-0.5)",
            scores.normalised_precision_auc,
        ),
    ] {
        grid.row(name, vec![Some(100.0 * value)]);
        named.insert(name.into(), value.into());
    }
    outcome.grids.push(grid);
    let mut each = Grid::new(&["AUC", "P", "Pnorm"], 2);
    for s in &scores.sequences {
        let values = [s.success_auc, s.precision, s.normalised_precision];
        each.row(s.name.clone(), values.map(|v| Some(100.0 * v)).to_vec());
    }
    outcome.each = Some(each);
    outcome.scores = Value::Object(named);
    outcome.details = json!({"sequences": scores.sequences});
    outcome.matched = Some(matched);
    Ok(outcome)
}

pub fn got10k(args: &Args) -> Result<Outcome, Failure> {
    let root = args.truth()?;
    let (sequences, matched) = sequences(args)?;
    let progress = Progress::new(sequences.len() as u64, "scoring");
    let mut all = Vec::new();
    let mut without_size = 0;
    for (name, file) in sequences {
        let folder = root.join(&name);
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
        all.push(sequence.score()?);
        progress.step(1);
    }
    drop(progress);
    let scores = Got10kScores::new(all);
    let mut outcome = Outcome::new(got10k::PROTOCOL, &json!({"strict": args.strict}))?;
    let mut grid = Grid::new(&["all frames", "mean of sequences"], 2);
    let mut named = Map::new();
    let percent = |v: Option<f64>| v.map(|v| 100.0 * v);
    for (i, (name, value)) in [
        ("AO", scores.ao),
        ("SR0.5", scores.sr_50),
        ("SR0.75", scores.sr_75),
    ]
    .into_iter()
    .enumerate()
    {
        let mean = scores.mean_of_sequences[i];
        grid.row(name, vec![percent(value), percent(mean)]);
        named.insert(name.into(), value.into());
        named.insert(format!("{name} mean of sequences"), mean.into());
    }
    if without_size > 0 {
        outcome.notes.push(format!(
            "{without_size} sequences have no meta_info.ini: their boxes were not cut to the image"
        ));
    }
    outcome.grids.push(grid);
    let mut each = Grid::new(&["AO", "SR0.5", "SR0.75"], 2);
    for s in &scores.sequences {
        each.row(
            s.name.clone(),
            [s.ao, s.sr_50, s.sr_75].map(percent).to_vec(),
        );
    }
    outcome.each = Some(each);
    outcome.scores = Value::Object(named);
    outcome.details = json!({"success_curve": scores.success_curve, "sequences": scores.sequences});
    outcome.matched = Some(matched);
    Ok(outcome)
}
