//! Tables of a study, written from its scores alone.

use std::fmt::{self, Write as _};
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

/// A score over the seeds of a variant.
struct Spread {
    count: usize,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl Spread {
    fn of(runs: &[&Scores], key: &str) -> Option<Self> {
        let values: Vec<f64> = runs
            .iter()
            .filter_map(|r| r.values.get(key).copied())
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (!values.is_empty()).then(|| Self {
            count: values.len(),
            mean,
            squares: values.iter().map(|v| (v - mean).powi(2)).sum(),
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.mean)?;
        if self.count > 1 {
            let deviation = (self.squares / (self.count - 1) as f64).sqrt();
            write!(f, " ± {deviation:.1}")?;
        }
        Ok(())
    }
}

fn cell(runs: &[&Scores], key: &str) -> String {
    Spread::of(runs, key).map_or("–".into(), |s| s.to_string())
}

/// Difference, and twice its standard error if more than one run is done.
///
/// Two rows of three runs say little about how far runs scatter; all rows together say more, so the
/// variance over seeds is pooled over `all`.
fn difference(ahead: &Spread, behind: &Spread, all: &[Spread]) -> (f64, Option<f64>) {
    let freedom: usize = all.iter().map(|s| s.count - 1).sum();
    let squares: f64 = all.iter().map(|s| s.squares).sum();
    let counts = 1.0 / ahead.count as f64 + 1.0 / behind.count as f64;
    let error = (freedom > 0).then(|| 2.0 * (squares / freedom as f64 * counts).sqrt());
    (ahead.mean - behind.mean, error)
}

fn verdict(difference: f64, error: Option<f64>) -> &'static str {
    match error {
        None => "one run each is not enough",
        Some(error) if difference > error => "holds",
        Some(error) if difference < -error => "does not hold: the opposite does",
        Some(_) => "not shown: within the spread",
    }
}

/// The tables as Markdown.
pub fn tables(study: &Study, found: &Collected) -> String {
    let mut text = String::new();
    let of =
        |name: &str| -> Vec<&Scores> { found.runs.iter().filter(|r| r.variant == name).collect() };
    text.push_str("| claim | in the paper | here | difference | |\n|---|---|---|---|---|\n");
    for claim in &study.claims {
        let [ahead, behind] =
            [&claim.ahead, &claim.behind].map(|name| Spread::of(&of(name), &claim.score));
        let all: Vec<Spread> = study
            .variants
            .iter()
            .filter_map(|v| Spread::of(&of(&v.name), &claim.score))
            .collect();
        let [here, by, verdict] = match (ahead, behind) {
            (Some(a), Some(b)) => {
                let (by, error) = difference(&a, &b, &all);
                let bound = error.map_or(String::new(), |e| format!(" ± {e:.1}"));
                let verdict = verdict(by, error).to_string();
                [
                    format!("{a} against {b}"),
                    format!("{by:+.1}{bound}"),
                    verdict,
                ]
            }
            _ => ["–".into(), "–".into(), "not run".into()],
        };
        let _ = writeln!(
            text,
            "| {} | {} | {here} | {by} | {verdict} |",
            claim.claim, claim.paper
        );
    }
    text.push('\n');
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
        let hours = runs.iter().map(|r| r.hours).sum::<f64>() / runs.len().max(1) as f64;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {hours:.2} |",
            variant.title,
            variant.paper.as_deref().unwrap_or("not in the paper"),
            runs.first().map_or(0, |r| r.steps),
        );
    }
    text
}
