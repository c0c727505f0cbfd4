//! Boxes, masks and tracks.

use tpo_data::readers::Format;
use tpo_heads::mask::metric::track::{Got10kScores, Got10kSequence, LasotScores};
use tpo_heads::mask::metric::vos::{VosOptions, VosProtocol};

use super::super::files::boxes::{BoxOptions, evaluate_boxes};
use super::super::files::vos;
use super::super::submission::{Answered, Folder, box_track, boxes, masks};
use super::{GroupScores, Rules, Score, Scored, percent};
use crate::error::Result;

pub(super) fn regions(all: &[Answered<'_>], folder: &Folder<'_>) -> Result<Scored> {
    let (predicted, truth): (Vec<_>, Vec<_>) = all.iter().map(boxes).unzip();
    let truth: Vec<_> = truth.into_iter().flatten().collect();
    let predicted = folder.table("boxes.jsonl", predicted)?;
    if truth.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("boxes_truth.jsonl", truth)?;
    let report = evaluate_boxes(&predicted, &truth, &BoxOptions::default())?;
    let mut splits = report.splits.iter().map(|s| GroupScores {
        group: s.split.clone(),
        questions: s.count,
        scores: s.scores(),
    });
    let scores = splits.next().map(|all| all.scores).unwrap_or_default();
    let groups: Vec<_> = splits.collect();
    Ok((scores, if groups.len() > 1 { groups } else { Vec::new() }))
}

pub(super) fn objects(all: &[Answered<'_>], folder: &Folder<'_>) -> Result<Scored> {
    let (mut predicted, mut truth) = (Vec::new(), Vec::new());
    for a in all {
        let (p, t) = masks(a)?;
        predicted.push(p);
        truth.extend(t);
    }
    let predicted = folder.table("masks.jsonl", predicted)?;
    if truth.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("masks_truth.jsonl", truth)?;
    let options = VosOptions {
        protocol: VosProtocol::RefYoutubeVos,
        ..VosOptions::default()
    };
    let scores = vos::evaluate(&predicted, &truth, &options, || ())?;
    let means = scores.scores.iter().filter_map(|s| {
        let name = s.name.strip_suffix("-Mean")?;
        Some(Score::new(name, s.value.map(percent)))
    });
    Ok((means.collect(), Vec::new()))
}

pub(super) fn tracks(all: &[Answered<'_>], rules: &Rules, folder: &Folder<'_>) -> Result<Scored> {
    let is_lasot = rules.are_of(Format::LaSot);
    let mut lasot_sequences = Vec::new();
    let mut got_sequences = Vec::new();
    for a in all {
        let track = box_track(a);
        let name = a.item.id.rsplit('/').next().unwrap_or_default();
        let file = if is_lasot {
            format!("track/{name}.txt")
        } else {
            format!("track/{0}/{0}_001.txt", track.name)
        };
        let line = |b: &[f64; 4]| format!("{},{},{},{}\n", b[0], b[1], b[2], b[3]);
        let text: String = track.predicted.iter().map(line).collect();
        folder.write(&file, text.as_bytes())?;
        if track.truth.is_empty() {
            continue;
        }
        if is_lasot {
            lasot_sequences.push(track.score()?);
        } else {
            let cover = track.absent.iter().map(|a| f64::from(u8::from(!a)));
            let sequence = Got10kSequence {
                cover: cover.collect(),
                resolution: Some(a.media().size.map(f64::from)),
                name: track.name,
                truth: track.truth,
                predicted: track.predicted,
            };
            got_sequences.push(sequence.score()?);
        }
    }
    let list = if !lasot_sequences.is_empty() {
        let s = LasotScores::new(lasot_sequences)?;
        shares([
            ("success", Some(s.success_auc)),
            ("normalised precision", Some(s.normalised_precision)),
            ("precision", Some(s.precision)),
        ])
    } else if !got_sequences.is_empty() {
        let s = Got10kScores::new(got_sequences);
        shares([("AO", s.ao), ("SR0.5", s.sr_50), ("SR0.75", s.sr_75)])
    } else {
        Vec::new()
    };
    Ok((list, Vec::new()))
}

/// Shares of 0–1 as scores.
fn shares<const N: usize>(list: [(&str, Option<f64>); N]) -> Vec<Score> {
    let list = list.map(|(name, share)| Score::new(name, share.map(percent)));
    list.to_vec()
}
