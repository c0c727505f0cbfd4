//! Masks in PNG folders or as run lengths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tpo_core::geometry::LabelMap;
use tpo_data::{MediaLimits, read_label_png};
use tpo_heads::mask::metric::vos::{ObjectScores, VosOptions, VosProtocol, score_labels};
use tpo_heads::mask::metric::{BitMask, BoundaryTolerance};

use super::outcome::{Grid, Scored};
use super::{Args, Format, progress};
use crate::cli::shared::{Outcome, read};
use crate::evaluation::files::vos::{self, MaskTrack, VosScores};

pub fn vos(args: &Args, format: Format) -> Outcome<Scored> {
    let mut options = VosOptions {
        protocol: match format {
            Format::RefYoutubeVos => VosProtocol::RefYoutubeVos,
            _ => VosProtocol::Davis,
        },
        strict: args.strict,
        ..Default::default()
    };
    if let Some(pixels) = args.contour_pixels {
        options.tolerance = BoundaryTolerance::Pixels(pixels);
    }
    let truth = args.truth()?;
    let mut scored = Scored::new(vos::PROTOCOL, &options)?;
    let scores = match (args.predictions().is_dir(), truth.is_dir()) {
        (true, true) if options.protocol == VosProtocol::Davis => davis_folders(args, &options)?,
        (true, true) => expression_folders(args, &options)?,
        (false, false) => {
            let files = args.tables::<MaskTrack, MaskTrack>()?;
            scored = Scored::of(vos::PROTOCOL, &options, &files)?;
            let bar = progress(files.1.len() as u64, "scoring");
            vos::evaluate(&files.0, &files.1, &options, || bar.inc(1))?
        }
        _ => {
            let why = "predictions and ground truth must both be folders of PNG files, or both JSON lines";
            return Err(why.into());
        }
    };
    scored.set_scores(100.0, 2, scores.scores);
    let mut each = Grid::new(&["J-Mean", "F-Mean"], 2);
    for o in &scores.objects {
        let means = [o.j.mean, o.f.mean];
        each.row(&o.name, means.map(|v| v.map(|v| 100.0 * v)).to_vec());
    }
    scored.each = Some(each);
    scored.details = json!({"objects": scores.objects});
    scored.matched = Some(scores.matched);
    Ok(scored)
}

/// Names to score: those of the list file, or all folders of the ground truth.
pub fn sequence_names(root: &Path, list: Option<&Path>) -> Outcome<Vec<String>> {
    let names: Vec<String> = match list {
        Some(file) => read(file)?
            .lines()
            .map(|l| l.trim().to_string())
            .filter(|l| !l.is_empty())
            .collect(),
        None => entries(root)?
            .into_iter()
            .filter(|p| p.is_dir())
            .filter_map(|p| Some(p.file_name()?.to_str()?.to_string()))
            .collect(),
    };
    if names.is_empty() {
        let why = "no sequence; give the folder that holds one folder per sequence";
        return Err(format!("{}: {why}", root.display()).into());
    }
    Ok(names)
}

/// Entries of a folder, sorted.
fn entries(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect()
    };
    let mut all = read().map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
    all.sort();
    Ok(all)
}

/// Names of the PNG files of a folder, sorted.
fn frames(folder: &Path) -> Outcome<Vec<String>> {
    let png = |p: &PathBuf| p.extension().is_some_and(|e| e == "png");
    let names = entries(folder)?.into_iter().filter(png);
    Ok(names
        .filter_map(|p| Some(p.file_name()?.to_str()?.to_string()))
        .collect())
}

fn labels(folder: &Path, names: &[String]) -> Outcome<Vec<LabelMap>> {
    let limits = MediaLimits::default();
    names
        .iter()
        .map(|n| Ok(read_label_png(folder.join(n), &limits)?))
        .collect()
}

fn davis_folders(args: &Args, options: &VosOptions) -> Outcome<VosScores> {
    let root = args.truth()?;
    let names = sequence_names(root, args.sequences.as_deref())?;
    let wanted = names.into_iter().map(|name| {
        let results = args.predictions().join(&name);
        (name, Some(results).filter(|r| r.is_dir()))
    });
    let (objects, matched) = args.each_result(wanted, "", |name, results| {
        let frames = frames(&root.join(&name))?;
        let truth = labels(&root.join(&name), &frames)?;
        let scored = options.protocol.scored(frames.len());
        let results = labels(&results, &frames[scored])?;
        Ok(score_labels(&name, &truth, &results, options)?)
    })?;
    Ok(VosScores::new(objects, matched))
}

/// `meta_expressions.json` of Ref-YouTube-VOS.
#[derive(Deserialize)]
struct MetaExpressions {
    videos: BTreeMap<String, MetaVideo>,
}
#[derive(Deserialize)]
struct MetaVideo {
    expressions: BTreeMap<String, MetaExpression>,
}
#[derive(Deserialize)]
struct MetaExpression {
    obj_id: Value,
}

/// The label of an expression's object: a number, or a number in quotes.
fn object_label(id: &Value) -> Option<u8> {
    let number = id.as_u64().or_else(|| id.as_str()?.parse().ok())?;
    u8::try_from(number).ok().filter(|n| *n > 0)
}

/// One expression of one video: where its annotation is, and which label.
struct Expression {
    name: String,
    truth: PathBuf,
    /// `None`: everything that is not background.
    label: Option<u8>,
    results: PathBuf,
}

fn expressions(args: &Args) -> Outcome<Vec<Expression>> {
    let root = args.truth()?;
    let wanted = sequence_names(root, args.sequences.as_deref())?;
    let expression = |video: &str, id: &str, truth: PathBuf, label| Expression {
        name: format!("{video}/{id}"),
        results: args.predictions().join(video).join(id),
        truth,
        label,
    };
    let mut all = Vec::new();
    if let Some(file) = &args.expressions {
        let at = file.display();
        let meta: MetaExpressions = serde_json::from_str(&read(file)?).map_err(|e| {
            format!("{at}: {e}; expected {{\"videos\": {{VIDEO: {{\"expressions\": {{ID: {{\"obj_id\": 1}}}}}}}}}}")
        })?;
        for video in wanted {
            let expressions = meta.videos.get(&video).map(|v| &v.expressions);
            for (e, MetaExpression { obj_id }) in expressions.into_iter().flatten() {
                let label = object_label(obj_id).ok_or_else(|| {
                    format!("{at}: video {video}, expression {e}: obj_id {obj_id} is no label")
                })?;
                all.push(expression(&video, e, root.join(&video), Some(label)));
            }
        }
        return Ok(all);
    }
    for video in wanted {
        let folders = entries(&root.join(&video))?;
        for truth in folders.into_iter().filter(|p| p.is_dir()) {
            let name = truth.file_name().map(|n| n.to_string_lossy().into_owned());
            all.push(expression(&video, &name.unwrap_or_default(), truth, None));
        }
    }
    if all.is_empty() {
        return Err(format!(
            "{}: no folder VIDEO/EXPRESSION; for folders VIDEO with object numbers give --expressions meta_expressions.json",
            root.display()
        )
        .into());
    }
    Ok(all)
}

fn expression_folders(args: &Args, options: &VosOptions) -> Outcome<VosScores> {
    let bits = |map: &LabelMap, label: Option<u8>| {
        let labels = &map.labels;
        BitMask::from_fn(map.height, map.width, |y, x| {
            let pixel = labels[y * map.width + x];
            label.map_or(pixel > 0, |l| pixel == l)
        })
    };
    let wanted = expressions(args)?.into_iter().map(|e| {
        let name = e.name.clone();
        (name, Some(e).filter(|e| e.results.is_dir()))
    });
    let (objects, matched) = args.each_result(wanted, "", |name, e| {
        // The frames that are annotated; results may have more.
        let names = frames(&e.truth)?;
        if names.is_empty() {
            return Err(format!("{}: no PNG file", e.truth.display()).into());
        }
        let truth = labels(&e.truth, &names)?;
        let results = labels(&e.results, &names)?;
        let pairs = truth.iter().zip(&results);
        let pairs = pairs.map(|(t, r)| (bits(t, e.label), bits(r, None)));
        Ok(vec![ObjectScores::new(name, pairs, options)?])
    })?;
    Ok(VosScores::new(objects, matched))
}
