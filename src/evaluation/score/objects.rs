//! Boxes, masks and tracks.

use tpo_heads::mask::metric::track::{Got10kScores, Got10kSequence, LasotScores, LasotSequence};
use tpo_heads::mask::metric::vos::{VosOptions, VosProtocol};

use super::super::files::boxes::{BoxOptions, evaluate_boxes};
use super::super::files::vos;
use super::super::submission::{Answered, BoxTrack, Folder, boxes, masks};
use super::{GroupScores, Rules, Score, Scored, one, percent};
use crate::error::Result;

pub(super) fn regions(all: &[Answered<'_>], folder: &Folder<'_>) -> Result<Scored> {
    let (predicted, truth): (Vec<_>, Vec<_>) = all.iter().map(boxes).unzip();
    let truth: Vec<_> = truth.into_iter().flatten().collect();
    let predicted = folder.table("boxes.jsonl", &predicted)?;
    if truth.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("boxes_truth.jsonl", &truth)?;
    let report = evaluate_boxes(&predicted, &truth, &BoxOptions::default())?;
    let mut splits = report.splits.iter().map(|s| {
        let mut scores: Vec<Score> = s
            .accuracy
            .iter()
            .map(|(t, v)| one(format!("Acc@{t}"), Some(*v)))
            .collect();
        scores.push(one("mIoU", Some(s.miou)));
        GroupScores {
            group: s.split.clone(),
            questions: s.count,
            scores,
        }
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
    let predicted = folder.table("masks.jsonl", &predicted)?;
    if truth.is_empty() {
        return Ok(Default::default());
    }
    let truth = folder.table("masks_truth.jsonl", &truth)?;
    let options = VosOptions {
        protocol: VosProtocol::RefYoutubeVos,
        ..VosOptions::default()
    };
    let scores = vos::evaluate(&predicted, &truth, &options, || ())?;
    let list = [
        ("J&F", scores.jf_mean),
        ("J", scores.j_mean),
        ("F", scores.f_mean),
    ];
    let list = list.map(|(n, v)| one(n, v.map(percent))).to_vec();
    Ok((list, Vec::new()))
}

pub(super) fn tracks(all: &[Answered<'_>], rules: &Rules, folder: &Folder<'_>) -> Result<Scored> {
    let mut lasot_sequences = Vec::new();
    let mut got_sequences = Vec::new();
    for a in all {
        let track = BoxTrack::new(a);
        let name = a.item.id.rsplit('/').next().unwrap_or_default();
        let file = if rules.lasot {
            format!("track/{name}.txt")
        } else {
            format!("track/{0}/{0}_001.txt", track.name)
        };
        folder.write(&file, track.text().as_bytes())?;
        if track.truth.is_empty() {
            continue;
        }
        if rules.lasot {
            lasot_sequences.push(
                LasotSequence {
                    name: track.name,
                    truth: track.truth,
                    predicted: track.predicted,
                    absent: track.absent,
                }
                .score()?,
            );
        } else {
            let cover = track.absent.iter().map(|a| f64::from(u8::from(!a)));
            got_sequences.push(
                Got10kSequence {
                    name: track.name,
                    truth: track.truth,
                    predicted: track.predicted,
                    cover: cover.collect(),
                    resolution: Some(track.size),
                }
                .score()?,
            );
        }
    }
    let list = if !lasot_sequences.is_empty() {
        let s = LasotScores::new(lasot_sequences)?;
        vec![
            ("success", Some(s.success_auc)),
            ("normalised precision", Some(s.normalised_precision)),
            ("precision", Some(s.precision)),
        ]
    } else if !got_sequences.is_empty() {
        let s = Got10kScores::new(got_sequences);
        vec![("AO", s.ao), ("SR0.5", s.sr_50), ("SR0.75", s.sr_75)]
    } else {
        Vec::new()
    };
    let list = list.into_iter().map(|(n, v)| one(n, v.map(percent)));
    Ok((list.collect(), Vec::new()))
}
