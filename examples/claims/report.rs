//! Tables of a study, written from its scores alone.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::one::{SCORES_FILE, Scores, WORDS, folder};
use super::study::Study;

/// Columns of the first table: what stands above them, and the score.
const COLUMNS: [(&str, &str); 9] = [
    ("conversation", "text/exact match"),
    ("Acc@0.5", "region/Acc@0.5"),
    ("R1@0.3", "temporal/R1@0.3"),
    ("R1@0.5", "temporal/R1@0.5"),
    ("R1@0.7", "temporal/R1@0.7"),
    ("mIoU", "temporal/mIoU"),
    ("HL mAP", "temporal/HL mAP Good"),
    ("HIT@1", "temporal/HIT@1 Good"),
    ("J&F", "mask/J&F"),
];

/// The paper's own figures beside a variant: (variant, figures as the paper prints them).
const PAPER: [(&str, &str); 9] = [
    ("dialogue", "VideoChat2, MVBench 60.4 (Table 2)"),
    (
        "tpo",
        "MVBench 66.8 (Table 2); Charades R@0.5 40.2, COCO sets Acc@0.5 82.0, Ref-YouTube-VOS J&F \
         63.9 (Table 12, T+R+M+C)",
    ),
    ("region", "COCO sets Acc@0.5 77.3 (Table 12, R)"),
    ("temporal", "Charades R@0.5 30.2 (Table 12, T)"),
    ("mask", "Ref-YouTube-VOS J&F 55.1 (Table 12, M)"),
    ("region-mask", "Acc@0.5 80.2, J&F 58.3 (Table 12, R+M)"),
    (
        "textual",
        "MVBench 64.7; Charades R@0.5 18.6, mIoU 16.0 (Table 11)",
    ),
    ("no-stage-1", "not in the paper"),
    (
        "simple-temporal",
        "MVBench 65.8; Charades R@0.5 17.8, mIoU 15.4 (Table 11)",
    ),
];

/// Everything the tables are made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Collected {
    /// Clips of the held-out split that were asked about.
    pub clips: u64,
    /// Every run that is done.
    pub runs: Vec<Scores>,
}

/// The runs that are done.
pub fn collect(study: &Study, out: &Path) -> Outcome<Collected> {
    let mut runs = Vec::new();
    for variant in &study.variants {
        for seed in &study.seeds {
            let path: PathBuf = folder(out, &variant.name, *seed).join(SCORES_FILE);
            match std::fs::read(&path) {
                Ok(text) => runs.push(serde_json::from_slice(&text)?),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(format!("{}: {e}", path.display()).into()),
            }
        }
    }
    Ok(Collected {
        clips: study.evaluation.clips,
        runs,
    })
}

/// Mean and standard deviation of a score over the seeds of a variant.
fn cell(runs: &[&Scores], key: &str) -> String {
    let values: Vec<f64> = runs
        .iter()
        .filter_map(|r| r.values.get(key).copied())
        .collect();
    match values.len() {
        0 => "–".into(),
        1 => format!("{:.1}", values[0]),
        n => {
            let mean = values.iter().sum::<f64>() / n as f64;
            let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
            format!("{mean:.1} ± {:.1}", (squares / (n - 1) as f64).sqrt())
        }
    }
}

/// The tables as Markdown.
pub fn tables(study: &Study, found: &Collected) -> String {
    let mut text = String::new();
    let of =
        |name: &str| -> Vec<&Scores> { found.runs.iter().filter(|r| r.variant == name).collect() };
    let mut table = |heads: &[String], key: &dyn Fn(usize) -> String| {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let _ = write!(text, "{}", line(heads));
        let _ = write!(text, "{}", line(&vec!["---".to_string(); heads.len()]));
        for variant in &study.variants {
            let runs = of(&variant.name);
            let mut cells = vec![variant.title.clone(), runs.len().to_string()];
            cells.extend((0..heads.len() - 2).map(|i| cell(&runs, &key(i))));
            let _ = write!(text, "{}", line(&cells));
        }
        text.push('\n');
    };
    let first = |names: Vec<String>| {
        let mut heads = vec!["trained on".to_string(), "seeds".to_string()];
        heads.extend(names);
        heads
    };
    let heads = first(COLUMNS.iter().map(|c| c.0.to_string()).collect());
    table(&heads, &|i| COLUMNS[i].1.to_string());
    let mut kinds: Vec<String> = found
        .runs
        .iter()
        .flat_map(|r| r.values.keys())
        .filter_map(|k| k.strip_prefix(WORDS)?.strip_prefix('/'))
        .map(String::from)
        .collect();
    kinds.sort();
    kinds.dedup();
    let heads = first(kinds.clone());
    table(&heads, &|i| format!("{WORDS}/{}", kinds[i]));
    text.push_str(
        "| trained on | the paper's own figures | steps | hours a run |\n|---|---|---|---|\n",
    );
    for variant in &study.variants {
        let runs = of(&variant.name);
        let paper = PAPER.iter().find(|p| p.0 == variant.name);
        let hours = runs.iter().map(|r| r.hours).sum::<f64>() / runs.len().max(1) as f64;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {hours:.2} |",
            variant.title,
            paper.map_or("not in the paper", |p| p.1),
            runs.first().map_or(0, |r| r.steps),
        );
    }
    text
}
