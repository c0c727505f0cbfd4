//! Questions from benchmark files: any format of the readers, and this project's own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tpo_data::DataError;
use tpo_data::feed::cut_saliency;
use tpo_data::readers::{ConvertOptions, Format, convert};
use tpo_data::schema::{
    Annotation, BOX_MARK, Mark, RowError, RowFault, RowLimits, Sample, SampleReader, Target,
    TrackRegion, Turn, marks,
};

use super::item::{Ask, Expected, Item, ItemKind, MediaRef};
use super::prompts::Prompts;
use super::task_files;
use crate::error::{Error, Result};

/// A benchmark file.
#[derive(Debug, Clone)]
pub struct DataFile {
    /// The file or folder.
    pub path: PathBuf,
    /// Its format; `None` for this project's own JSON lines.
    pub format: Option<Format>,
    /// Folder of the media files; `None` for the folder of the file.
    pub media: Option<PathBuf>,
    /// What else a conversion needs.
    pub convert: ConvertOptions,
}

/// Questions, and what could not become one.
#[derive(Debug, Clone, Default)]
pub struct Items {
    /// The questions in the order of the file.
    pub items: Vec<Item>,
    /// Rows that could not be read, each with its reason.
    pub skipped: Vec<String>,
}

impl DataFile {
    /// A file of a format.
    pub fn new(path: impl Into<PathBuf>, format: Option<Format>) -> Self {
        Self {
            path: path.into(),
            format,
            media: None,
            convert: ConvertOptions::default(),
        }
    }

    fn root(&self) -> PathBuf {
        match &self.media {
            Some(root) => root.clone(),
            None if self.path.is_dir() => self.path.clone(),
            None => self.path.parent().unwrap_or(Path::new(".")).into(),
        }
    }

    /// All questions of the kinds `wanted` (of every kind when empty), at most `limit` rows.
    ///
    /// # Errors
    /// A file that cannot be read at all, or from which no question comes.
    pub fn items(
        &self,
        prompts: &Prompts,
        wanted: &[ItemKind],
        limit: Option<usize>,
    ) -> Result<Items> {
        let mut out = Collector {
            file: self,
            prompts,
            wanted,
            root: self.root(),
            found: Items::default(),
            seen: HashSet::new(),
        };
        for (place, row) in self.rows(&out.root, limit.unwrap_or(usize::MAX))? {
            match row {
                Ok(sample) => out.sample(&sample, &place),
                Err(e) if e.ends_dataset() => return Err(e.into()),
                Err(e) => out.found.skipped.push(e.to_string()),
            }
        }
        if out.found.items.is_empty() {
            return Err(Error::Evaluation {
                path: self.path.clone(),
                why: match out.found.skipped.first() {
                    Some(first) => format!("holds no question that can be asked; first: {first}"),
                    None => "holds no question of the kind asked for; check the task and the \
                             format"
                        .into(),
                },
            });
        }
        Ok(out.found)
    }

    /// At most `limit` rows (of every file of a task), each with its place in the file.
    fn rows(&self, root: &Path, limit: usize) -> Result<Rows> {
        let file = self.path.clone();
        let Some(format) = self.format else {
            let rows = SampleReader::open(file, RowLimits::default())?.take(limit);
            return Ok(Box::new(rows.map(|row| match row {
                Ok((line, sample)) => (format!("line {line}"), Ok(sample)),
                Err(e) => (String::new(), Err(e)),
            })));
        };
        if !task_files::has_tasks(format) {
            let rows = convert(format, &file, &self.convert)?.take(limit);
            return Ok(Box::new(rows.zip(1..).map(move |(row, number)| {
                let row = row.and_then(|sample| checked(sample, &file, number));
                (format!("row {number}"), row)
            })));
        }
        let mut all = Vec::new();
        for task in task_files::tasks(format, &file, root)? {
            let mut options = self.convert.clone();
            task.place(&mut options);
            let rows = convert(format, &task.file, &options)?.take(limit);
            all.push(rows.enumerate().map(move |(i, row)| {
                let place = format!("{}:{i}", task.stem);
                let row = row.and_then(|mut sample| {
                    // MVBench's rows have neither id nor task.
                    if format == Format::MvBench {
                        sample.id = Some(place.clone());
                        let name = Value::from(task.name.as_str());
                        sample.meta.insert("task_type".into(), name);
                    }
                    checked(sample, &task.file, i as u64 + 1)
                });
                (place, row)
            }));
        }
        Ok(Box::new(all.into_iter().flatten()))
    }
}

type Rows = Box<dyn Iterator<Item = (String, std::result::Result<Sample, DataError>)>>;

/// A converted row, of which readers do not check what they convert.
fn checked(sample: Sample, file: &Path, line: u64) -> std::result::Result<Sample, DataError> {
    let problems = sample.problems();
    if problems.is_empty() {
        return Ok(sample);
    }
    Err(DataError::Row(RowError {
        file: file.into(),
        line,
        fault: RowFault::Invalid { problems },
    }))
}

struct Collector<'a> {
    file: &'a DataFile,
    prompts: &'a Prompts,
    wanted: &'a [ItemKind],
    root: PathBuf,
    found: Items,
    seen: HashSet<(ItemKind, String)>,
}

impl Collector<'_> {
    fn sample(&mut self, sample: &Sample, place: &str) {
        let id = sample.id.clone().unwrap_or_else(|| place.into());
        let media = match &sample.media {
            Some(media) => MediaRef::File {
                media: Box::new(media.clone()),
                root: self.root.clone(),
            },
            None => MediaRef::None,
        };
        let mut made: Vec<(Expected, Ask, String)> = Vec::new();
        if sample.meta.get("unlabelled") == Some(&Value::Bool(true)) {
            made.extend(self.unlabelled(sample));
        } else {
            for (i, annotation) in sample.annotations.iter().enumerate() {
                match self.annotation(sample, i, annotation) {
                    Ok(one) => made.push(one),
                    Err(why) => self.found.skipped.push(format!("{id}: {why}")),
                }
            }
            for (i, turn) in sample.turns.iter().enumerate() {
                made.extend(self.turn(sample, i, turn));
            }
        }
        // Questions of one kind are numbered where there are several.
        let kinds: Vec<ItemKind> = made.iter().map(|m| m.0.kind()).collect();
        let count = |kind, of: &[ItemKind]| of.iter().filter(|k| **k == kind).count();
        for (i, (expected, ask, group)) in made.into_iter().enumerate() {
            let kind = kinds[i];
            if !self.wanted.is_empty() && !self.wanted.contains(&kind) {
                continue;
            }
            let name = match count(kind, &kinds) {
                1 => id.clone(),
                _ => format!("{id}/{}", count(kind, &kinds[..=i])),
            };
            // A file may name its rows as it likes.
            let mut unique = name.clone();
            let mut copy = 1;
            while !self.seen.insert((kind, unique.clone())) {
                copy += 1;
                unique = format!("{name} ({copy})");
            }
            self.found.items.push(Item {
                id: unique,
                sample: id.clone(),
                query_id: sample.query_id().map(Into::into),
                media: media.clone(),
                ask,
                expected,
                group,
            });
        }
    }

    /// A row of a split whose answers are kept by the benchmark.
    fn unlabelled(&self, sample: &Sample) -> Option<(Expected, Ask, String)> {
        let query = sample.turns.first()?.question.trim();
        let (expected, task, family) = match self.file.format {
            Some(Format::QvHighlights | Format::CharadesJsonl) => {
                let none = Expected::Temporal {
                    spans: None,
                    saliency: None,
                };
                (none, &self.file.convert.temporal_task, "moment")
            }
            _ => (
                Expected::Mask(None),
                &self.file.convert.mask_task,
                "segmentation",
            ),
        };
        let ask = Ask {
            text: self.prompts.question(family, query)?,
            query: Some(query.into()),
            task: Some(task.clone()),
            ..Ask::default()
        };
        Some((expected, ask, "all".into()))
    }

    fn annotation(
        &self,
        sample: &Sample,
        index: usize,
        a: &Annotation,
    ) -> std::result::Result<(Expected, Ask, String), String> {
        let range = sample.media.as_ref().and_then(|m| m.range);
        let start = range.map_or(0.0, |r| r.start.max(0.0));
        let (expected, family) = match &a.target {
            Target::Value(value) => (Expected::Own(value.clone()), "other"),
            Target::Box(b) => (Expected::Region(Some(*b)), "box"),
            Target::Spans { spans, saliency } => {
                let spans = spans
                    .iter()
                    .map(|s| [(s[0] - start).max(0.0), s[1] - start])
                    .filter(|s| s[1] > s[0])
                    .collect();
                let saliency = saliency.as_ref();
                let saliency = saliency.map(|s| cut_saliency(s, start, f64::INFINITY));
                let expected = Expected::Temporal {
                    spans: Some(spans),
                    saliency: saliency.transpose()?,
                };
                (expected, "moment")
            }
            Target::Track(frames) => {
                let masks = frames
                    .iter()
                    .any(|f| matches!(f.region, TrackRegion::Mask(_)));
                let family = match a.prompt_box {
                    Some(_) => "tracking",
                    None => "segmentation",
                };
                if masks {
                    (Expected::Mask(Some(frames.clone())), family)
                } else {
                    (Expected::Track(Some(frames.clone())), family)
                }
            }
        };
        // The conversation's own question, if one of its answers calls this annotation.
        let place = sample.annotations[..index]
            .iter()
            .filter(|o| o.task == a.task)
            .count();
        let calls = sample.turns.iter().flat_map(|t| {
            let tasks = marks(&t.answer).into_iter().filter_map(|(_, m)| match m {
                Mark::Task(name) => Some(name.to_string()),
                Mark::Box => None,
            });
            tasks.map(move |name| (t, name)).collect::<Vec<_>>()
        });
        let turn = calls.filter(|(_, n)| *n == a.task).nth(place).map(|c| c.0);
        let (text, boxes, query) = match turn {
            Some(turn) => {
                let text = turn.question.replace(BOX_MARK, "{box}");
                (text, turn.boxes.clone(), a.query.as_deref())
            }
            None => {
                let query = a.query.as_deref().map(str::trim);
                let known = |f: &&str| {
                    self.prompts.templates.get(*f).is_some_and(|t| {
                        (query.is_some() || !t.contains("{query}"))
                            && (a.prompt_box.is_some() || !t.contains("{box}"))
                    })
                };
                let family = [a.task.as_str(), family].into_iter().find(known);
                let family = family.ok_or_else(|| {
                    format!(
                        "annotation {index} of `{}` has no query that a template can ask",
                        a.task
                    )
                })?;
                let text = self.prompts.question(family, query.unwrap_or_default());
                let boxes = a.prompt_box.into_iter().collect();
                (text.unwrap_or_default(), boxes, query)
            }
        };
        let ask = Ask {
            text,
            boxes,
            query: query.map(String::from),
            task: Some(a.task.clone()),
            ..Ask::default()
        };
        Ok((expected, ask, group(sample, None)))
    }

    fn turn(&self, sample: &Sample, index: usize, turn: &Turn) -> Option<(Expected, Ask, String)> {
        let calls = marks(&turn.answer)
            .iter()
            .any(|(_, m)| matches!(m, Mark::Task(_)));
        if calls {
            return None;
        }
        let question = turn.question.replace(BOX_MARK, "{box}");
        let (expected, ask) = if turn.options.is_empty() {
            if turn.answer.trim().is_empty() {
                return None;
            }
            let ask = Ask {
                text: question,
                boxes: turn.boxes.clone(),
                ..Ask::default()
            };
            (Expected::Text(Some(turn.answer.clone())), ask)
        } else {
            let ask = Ask {
                boxes: turn.boxes.clone(),
                ..self.prompts.multiple_choice(&question, &turn.options)
            };
            let expected = Expected::MultipleChoice {
                options: turn.options.clone(),
                correct: turn.correct,
            };
            (expected, ask)
        };
        Some((expected, ask, group(sample, Some(index))))
    }
}

/// The group of a row: `meta.kinds[turn]`, else the first of `meta.kind`, `meta.task_type`,
/// `meta.duration`, `meta.split` that is text.
fn group(sample: &Sample, turn: Option<usize>) -> String {
    let kinds = sample.meta.get("kinds").and_then(Value::as_array);
    let of_turn = turn.and_then(|i| kinds?.get(i)?.as_str());
    let named = ["kind", "task_type", "duration", "split"]
        .iter()
        .filter(|key| turn.is_some() || **key != "kind")
        .find_map(|key| sample.meta.get(*key)?.as_str());
    of_turn.or(named).unwrap_or("all").into()
}
