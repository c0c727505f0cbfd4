//! Public datasets, converted to the schema as they stream by.
//!
//! Each reader is an iterator of samples; [`Format`] names them all and [`convert`] opens one.
//! An annotation that cannot be used is an `Err` of the iterator, which continues after it; what ends
//! the dataset ([`DataError::ends_dataset`]) is not one of a record. Only
//! one record is in memory at a time, apart from what must be looked up by number; each reader's
//! doc says what that is.
//!
//! Formats were written down from public documentation and public code that reads them, not from
//! the datasets themselves; where these left something open the reader's doc says so.

mod as_v2;
mod choice;
mod conversation;
mod format;
mod image_choice;
mod json_items;
mod own;
mod spatial;
mod table;
mod temporal;
mod tracking;
mod video_masks;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use format::Choice;
pub use format::Format;
use json_items::JsonItems;
use table::table;

use crate::DataError;
use crate::schema::{Annotation, LineReader, Media, Sample, Turn};
use crate::video::has_extension;

/// Samples of a public dataset; an `Err` costs one record unless it [ends the dataset](DataError::ends_dataset).
pub type Samples = Box<dyn Iterator<Item = Result<Sample, DataError>> + Send>;

/// What a conversion needs besides the format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvertOptions {
    /// Folder prepended to media paths, relative to the data root: `videos/`.
    pub media_prefix: String,
    /// Extension of videos that the dataset names without one.
    pub video_extension: String,
    /// The second file or folder of formats that have two.
    pub second: Option<PathBuf>,
    /// Lengths of videos: a JSON `{video: seconds}` or a csv with columns `id` and `length`.
    pub durations: Option<PathBuf>,
    /// Frames per second of datasets that are folders of frames, where they do not say it
    /// themselves. Defaults are each reader's.
    pub frame_rate: Option<f64>,
    /// Keep only records of this split, where the format marks splits in its records.
    pub split: Option<String>,
    /// Task name of boxes in images.
    pub region_task: String,
    /// Task name of time spans.
    pub temporal_task: String,
    /// Task name of tracks of boxes or masks.
    pub mask_task: String,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            media_prefix: String::new(),
            video_extension: "mp4".into(),
            second: None,
            durations: None,
            frame_rate: None,
            split: None,
            region_task: "region".into(),
            temporal_task: "temporal".into(),
            mask_task: "mask".into(),
        }
    }
}

impl ConvertOptions {
    /// The media path of a name in the dataset.
    fn media(&self, name: &str) -> String {
        if self.media_prefix.is_empty() {
            return name.into();
        }
        format!("{}/{name}", self.media_prefix.trim_end_matches('/'))
    }

    /// The media path of a video that the dataset may name without its extension.
    fn video(&self, name: &str) -> String {
        const KNOWN: [&str; 8] = ["mp4", "mkv", "avi", "webm", "mov", "gif", "mpg", "m4v"];
        if has_extension(Path::new(name), &KNOWN) {
            self.media(name)
        } else {
            self.media(&format!("{name}.{}", self.video_extension))
        }
    }

    /// The options that are set, of those that not every format uses.
    fn set(&self) -> impl Iterator<Item = Choice> {
        [
            (Choice::Second, self.second.is_some()),
            (
                Choice::Extension,
                self.video_extension != Self::default().video_extension,
            ),
            (Choice::Durations, self.durations.is_some()),
            (Choice::FrameRate, self.frame_rate.is_some()),
            (Choice::Split, self.split.is_some()),
        ]
        .into_iter()
        .filter_map(|(option, set)| set.then_some(option))
    }

    fn second(&self, format: Format, what: &str) -> Result<&Path, DataError> {
        self.second
            .as_deref()
            .ok_or_else(|| DataError::InvalidConfig {
                what: "conversion",
                reason: format!("{format} needs a second file: {what}"),
            })
    }
}

/// Opens a dataset.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Json`] and [`DataError::Format`] for files that cannot be opened or do not look as
/// documented, [`DataError::InvalidConfig`] for a missing second file and for an option that the
/// format has no use for; also the last item, when no record is of the split asked for.
pub fn convert(
    format: Format,
    input: &Path,
    options: &ConvertOptions,
) -> Result<Samples, DataError> {
    let useless = options.set().find(|o| !format.options().contains(o));
    if let Some(option) = useless {
        let taken = match &format.flags()[..] {
            [] => "it takes none like it".into(),
            flags => format!("it takes {}", flags.join(", ")),
        };
        return Err(DataError::InvalidConfig {
            what: "conversion",
            reason: format!(
                "{format} has no use for {}, leave it out; {taken}",
                option.flag()
            ),
        });
    }
    format.reader()(input, options)
}

fn open(path: &Path) -> Result<BufReader<File>, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    Ok(BufReader::with_capacity(1 << 18, file))
}

fn bad(path: &Path, place: impl Into<String>, reason: impl Into<String>) -> DataError {
    DataError::Format {
        path: path.into(),
        place: place.into(),
        reason: reason.into(),
    }
}

/// Whole small text files: labels, ini files, csv of lengths.
fn read_text(path: &Path) -> Result<String, DataError> {
    const MAX_BYTES: u64 = 256 << 20;
    let length = std::fs::metadata(path).map_err(DataError::io(path))?.len();
    if length > MAX_BYTES {
        return Err(bad(
            path,
            "file",
            format!("{length} bytes, expected text below {MAX_BYTES}"),
        ));
    }
    std::fs::read_to_string(path).map_err(DataError::io(path))
}

/// A text file that a dataset may do without.
fn read_optional(path: &Path) -> Result<Option<String>, DataError> {
    path.is_file().then(|| read_text(path)).transpose()
}

/// Whether the first letter of a file, after white space and a byte-order mark, is `{`.
fn is_object(path: &Path) -> Result<bool, DataError> {
    let skipped = |b: u8| b.is_ascii_whitespace() || b"\xEF\xBB\xBF".contains(&b);
    let mut bytes = open(path)?.bytes();
    let first = bytes.find(|byte| !matches!(byte, Ok(b) if skipped(*b)));
    let first = first.transpose().map_err(DataError::io(path))?;
    Ok(first == Some(b'{'))
}

/// Where a value stands in a file.
struct At {
    file: Arc<Path>,
    place: String,
    /// Its number in the container, from 0, or that of its line.
    number: u64,
    /// Name of the member; empty in an array.
    key: String,
}

impl At {
    fn bad(&self, reason: impl Into<String>) -> DataError {
        bad(&self.file, &*self.place, reason)
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, DataError> {
        serde_json::from_slice(bytes).map_err(|e| self.bad(e.to_string()))
    }
}

type Records<T> = Box<dyn Iterator<Item = Result<(At, T), DataError>> + Send>;

/// Members of the JSON object, or elements of the array, that `keys` lead to, as they stand there.
fn items(path: &Path, keys: &[&str]) -> Result<Records<Vec<u8>>, DataError> {
    let file: Arc<Path> = path.into();
    let items = JsonItems::new(open(path)?, path, keys)?;
    Ok(Box::new(items.map(move |item| {
        let item = item?;
        let at = At {
            file: Arc::clone(&file),
            place: match &item.key {
                Some(key) => format!("member `{key}`"),
                None => format!("element {}", item.index),
            },
            number: item.index,
            key: item.key.unwrap_or_default(),
        };
        Ok((at, item.bytes))
    })))
}

/// Lines that are not blank, of at most `limit` bytes.
fn lines(path: &Path, limit: usize) -> Result<Records<Vec<u8>>, DataError> {
    let file: Arc<Path> = path.into();
    let mut lines = LineReader::new(open(path)?, limit);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            let line = match lines.next_line() {
                Ok(line) => line?,
                Err(e) => return Some(Err(DataError::io(&file)(e))),
            };
            let at = At {
                file: Arc::clone(&file),
                place: format!("line {}", line.number),
                number: line.number,
                key: String::new(),
            };
            match line.bytes {
                None => return Some(Err(at.bad(format!("longer than {limit} bytes")))),
                Some(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => {}
                Some(bytes) => return Some(Ok((at, bytes.to_vec()))),
            }
        }
    })))
}

fn parsed<T: DeserializeOwned + 'static>(records: Records<Vec<u8>>) -> Records<T> {
    Box::new(records.map(|record| {
        let (at, bytes) = record?;
        let value = at.parse(&bytes)?;
        Ok((at, value))
    }))
}

/// Members of the JSON object, or elements of the array, that `keys` lead to.
fn members<T: DeserializeOwned + 'static>(
    path: &Path,
    keys: &[&str],
) -> Result<Records<T>, DataError> {
    Ok(parsed(items(path, keys)?))
}

/// Records of a JSON array, or of JSON lines when the file begins with `{`.
fn records<T: DeserializeOwned + 'static>(path: &Path) -> Result<Records<T>, DataError> {
    Ok(parsed(if is_object(path)? {
        lines(path, 64 << 20)?
    } else {
        items(path, &[])?
    }))
}

/// Members of the object in a file.
fn map<T: DeserializeOwned + 'static>(path: &Path) -> Result<HashMap<String, T>, DataError> {
    members(path, &[])?
        .map(|record| record.map(|(at, value)| (at.key, value)))
        .collect()
}

/// The records of the split that is asked for, all when none is.
fn of_split<T: 'static>(
    mut records: Records<T>,
    options: &ConvertOptions,
    split: fn(&T) -> Option<&str>,
) -> Records<T> {
    let Some(wanted) = options.split.clone() else {
        return records;
    };
    let (mut found, mut others) = (false, BTreeSet::new());
    Box::new(std::iter::from_fn(move || {
        for record in records.by_ref() {
            match &record {
                Ok((_, value)) if split(value) == Some(&*wanted) => found = true,
                Ok((_, value)) => {
                    let name = split(value).map(|name| format!("`{name}`"));
                    others.insert(name.unwrap_or_else(|| "no split".into()));
                    continue;
                }
                Err(_) => {}
            }
            return Some(record);
        }
        // Said once, at the end.
        if std::mem::replace(&mut found, true) || others.is_empty() {
            return None;
        }
        let others: Vec<_> = others.iter().map(String::as_str).collect();
        Some(Err(DataError::InvalidConfig {
            what: "conversion",
            reason: format!(
                "no record is of split `{wanted}`; they are of {}",
                others.join(", ")
            ),
        }))
    }))
}

/// What `each` makes of every record.
fn samples<T: 'static, S>(
    records: Records<T>,
    options: &ConvertOptions,
    mut each: impl FnMut(&ConvertOptions, At, T) -> Result<S, DataError> + Send + 'static,
) -> Samples
where
    S: IntoIterator<Item = Sample> + Send + 'static,
    S::IntoIter: Send + 'static,
{
    let options = options.clone();
    rows(records.map(move |record| record.and_then(|(at, value)| each(&options, at, value))))
}

/// What `each` makes of the parts of every record, of which one may be bad and the others good.
fn parts<T: 'static>(
    records: Records<T>,
    options: &ConvertOptions,
    each: impl Fn(&ConvertOptions, At, T) -> Vec<Result<Sample, DataError>> + Send + 'static,
) -> Samples {
    let options = options.clone();
    Box::new(records.flat_map(move |record| match record {
        Ok((at, value)) => each(&options, at, value),
        Err(e) => vec![Err(e)],
    }))
}

/// The samples of records one after the other; a bad record is one error.
fn rows<S>(records: impl Iterator<Item = Result<S, DataError>> + Send + 'static) -> Samples
where
    S: IntoIterator<Item = Sample> + Send + 'static,
    S::IntoIter: Send + 'static,
{
    Box::new(records.flat_map(|record| {
        let (rows, error) = match record {
            Ok(rows) => (Some(rows), None),
            Err(e) => (None, Some(Err(e))),
        };
        rows.into_iter().flatten().map(Ok).chain(error)
    }))
}

/// A sample of one annotation.
fn annotated(id: String, media: Media, annotation: Annotation) -> Sample {
    Sample {
        annotations: vec![annotation],
        ..asked(id, Some(media), Vec::new())
    }
}

/// A sample of questions.
fn asked(id: String, media: Option<Media>, turns: Vec<Turn>) -> Sample {
    Sample {
        id: Some(id),
        media,
        turns,
        ..Sample::default()
    }
}

/// A question whose answer the file does not hold.
fn unlabelled(id: String, media: Media, question: &str) -> Sample {
    let mut sample = asked(id, Some(media), vec![Turn::new(question.trim(), "")]);
    sample.meta.insert("unlabelled".into(), true.into());
    sample
}

/// A number or a text, as text.
fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
