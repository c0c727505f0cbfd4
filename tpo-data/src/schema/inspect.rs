//! Does the file of a row exist, and does it agree with the row?

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::sample::{Media, MediaKind, Sample};
use super::validate::Problem;
use crate::video::{open_frames, open_still};
use crate::{DataError, MediaLimits, VideoInfo, VideoReader, open_video};

/// Path of a media file: unchanged when absolute, otherwise below `root`.
pub fn resolve(root: &Path, path: &str) -> PathBuf {
    root.join(path)
}

/// Opens the media of a row, a still image as a video of one frame; of several images the first.
///
/// # Errors
/// Those of [`open_video`] and [`open_frames`].
pub fn open_media(
    media: &Media,
    root: &Path,
    limits: &MediaLimits,
) -> Result<Box<dyn VideoReader>, DataError> {
    let path = resolve(root, &media.path);
    Ok(match media.kind {
        MediaKind::Video => open_video(path, limits)?,
        MediaKind::Frames { fps } => Box::new(open_frames(path, fps, limits)?),
        MediaKind::Image => Box::new(open_still(path, limits)?),
    })
}

/// Opens the file of a row and checks the row against it. Nothing is decoded but still images.
///
/// `Ok(None)` for a row without media. The problems are those the file reveals; call
/// [`Sample::problems`] for the others.
///
/// # Errors
/// Those of [`open_media`]: the file is missing, of an unknown kind, damaged, or too large.
pub fn check_media(
    sample: &Sample,
    root: &Path,
    limits: &MediaLimits,
) -> Result<Option<(VideoInfo, Vec<Problem>)>, DataError> {
    let Some(media) = &sample.media else {
        return Ok(None);
    };
    let reader = open_media(media, root, limits)?;
    for other in media.others() {
        open_media(&other, root, limits)?;
    }
    let info = reader.info().clone();
    // What the row alone shows is not said twice.
    let known = sample.problems();
    let mut problems = sample.check(Some(&info));
    problems.retain(|p| known.iter().all(|k| k.at != p.at));
    Ok(Some((info, problems)))
}

/// Counts over the rows of a file, for display.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// Good rows.
    pub rows: u64,
    /// Rows with a problem.
    pub bad_rows: u64,
    /// Rows by kind of media: `video`, `image`, `images`, `frames`, `text`.
    pub media: BTreeMap<&'static str, u64>,
    /// Annotations by task.
    pub tasks: BTreeMap<String, u64>,
    /// Conversation turns.
    pub turns: u64,
    /// Pictures by `WIDTHxHEIGHT`.
    pub sizes: BTreeMap<String, u64>,
    /// Video lengths in seconds, for the quantiles.
    durations: Vec<f64>,
    /// Frame rates in frames per second.
    rates: Vec<f64>,
}

impl Summary {
    /// Counts a good row and its file.
    pub fn add(&mut self, sample: &Sample, file: Option<&VideoInfo>) {
        self.rows += 1;
        self.turns += sample.turns.len() as u64;
        for a in &sample.annotations {
            *self.tasks.entry(a.task.clone()).or_default() += 1;
        }
        let kind = match sample.media.as_ref().map(|m| (m.kind, m.more.len())) {
            None => "text",
            Some((MediaKind::Video, _)) => "video",
            Some((MediaKind::Image, 0)) => "image",
            Some((MediaKind::Image, _)) => "images",
            Some((MediaKind::Frames { .. }, _)) => "frames",
        };
        *self.media.entry(kind).or_default() += 1;
        if let (Some(media), Some(info)) = (&sample.media, file) {
            let size = format!("{}x{}", info.width, info.height);
            *self.sizes.entry(size).or_default() += 1;
            if media.is_video() {
                self.durations.push(info.duration);
                self.rates.push(info.fps);
            }
        }
    }
}

fn quantiles(values: &[f64]) -> Option<String> {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let (first, last) = (v.first()?, v.last()?);
    let median = v[v.len() / 2];
    Some(format!("{first:.2} to {last:.2}, median {median:.2}"))
}

fn counts<K: fmt::Display>(map: &BTreeMap<K, u64>) -> String {
    let mut rows: Vec<_> = map.iter().collect();
    rows.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let (shown, more) = rows.split_at(rows.len().min(8));
    let mut text: Vec<String> = shown.iter().map(|(k, n)| format!("{k} {n}")).collect();
    if !more.is_empty() {
        text.push(format!("and {} more", more.len()));
    }
    text.join(", ")
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows         {} good, {} bad", self.rows, self.bad_rows)?;
        writeln!(f, "media        {}", counts(&self.media))?;
        writeln!(f, "turns        {}", self.turns)?;
        if !self.tasks.is_empty() {
            writeln!(f, "annotations  {}", counts(&self.tasks))?;
        }
        if !self.sizes.is_empty() {
            writeln!(f, "resolutions  {}", counts(&self.sizes))?;
        }
        if let Some(text) = quantiles(&self.durations) {
            writeln!(f, "durations    {text} s")?;
        }
        if let Some(text) = quantiles(&self.rates) {
            writeln!(f, "frame rates  {text} fps")?;
        }
        Ok(())
    }
}
