//! Features that were computed before, in a folder.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use tpo_core::head::TaskHead;
use tpo_heads::HeadsError;
use tpo_heads::temporal::TemporalHead;
use tpo_heads::temporal::features::{FeatureMatrix, PrecomputedOptions};

use super::hash_file;
use crate::error::{Error, Result};
use crate::model::TpoConfig;

/// How files of features end, in the order in which they are looked for.
const ENDINGS: [&str; 3] = ["npz", "npy", "safetensors"];
/// Folder of the features of queries.
const QUERIES: &str = "text";
/// What QVHighlights puts before the number of a query.
const QUERY_PREFIX: &str = "qid";
/// Longest file name, in bytes, that file systems take with an ending.
const LONGEST_NAME: usize = 240;
/// By how many rows features may differ from what the length of their video says: towers round differently.
pub(super) const SLACK: usize = 2;
/// Columns with the endpoints of clips, which files may have already.
const ENDPOINTS: usize = 2;

/// A folder of features that were computed before, by the names of videos and queries: those of
/// `videos/abc.mp4` in `abc.npz`, `abc.npy` or `abc.safetensors`, those of a query in `text/`, called
/// `qid17` or `17` for the question 17, or like the query itself with `_` for everything that is no letter,
/// digit, space, `-` or `.`. Folders of videos do not count: `a/clip.mp4` and `b/clip.mp4` share
/// `clip.npz`, so videos of one name need feature folders of their own.
///
/// Features of a video `[rows, width]` in several folders within, one per tower, are put side by side in
/// the order of the folders' names.
#[derive(Debug, Clone)]
pub struct FeatureFolder {
    dir: PathBuf,
    /// Folders within, of one tower each.
    within: Vec<PathBuf>,
}

/// What a model's temporal head reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FeatureNeeds {
    /// Widths of a row of a video and of a query; `None` for a model without the head.
    widths: Option<(usize, usize)>,
    /// Seconds between the starts of two rows of a video.
    pub seconds: f64,
}

impl FeatureNeeds {
    pub fn of(config: &TpoConfig) -> Self {
        let written = config.heads.0.contains_key(TemporalHead::NAME);
        // Somebody's own head of that name may read anything.
        let head = written.then(|| config.heads.get::<TemporalHead>().ok());
        Self {
            widths: head
                .flatten()
                .map(|head| (head.model.d_video, head.model.d_text)),
            seconds: config.feature_seconds(),
        }
    }
}

/// What is seen of a video file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// For a part: the second at which it begins.
    pub from: Option<f64>,
    /// Seconds that are seen.
    pub duration: f64,
}

impl FeatureFolder {
    /// A folder that is there. No file is read before it is needed.
    ///
    /// # Errors
    /// [`Error::FeatureIo`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let mut within = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(Error::feature_io(&dir))? {
            let path = entry.map_err(Error::feature_io(&dir))?.path();
            if path.is_dir() && !path.ends_with(QUERIES) {
                within.push(path);
            }
        }
        within.sort();
        Ok(Self { dir, within })
    }

    /// A hash of the names and bytes of all files, which are read.
    ///
    /// # Errors
    /// [`Error::FeatureIo`].
    pub fn fingerprint(&self) -> Result<blake3::Hash> {
        let mut files = Vec::new();
        let queries = self.dir.join(QUERIES);
        let queries = queries.is_dir().then_some(&queries);
        for dir in self.within.iter().chain(queries).chain([&self.dir]) {
            for entry in std::fs::read_dir(dir).map_err(Error::feature_io(dir))? {
                let entry = entry.map_err(Error::feature_io(dir))?;
                let path = entry.path();
                if path.is_file() {
                    let name = path.strip_prefix(&self.dir).unwrap_or(&path).to_path_buf();
                    files.push((name, hash_file(&path)?));
                }
            }
        }
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(blake3::hash(format!("{files:?}").as_bytes()))
    }

    /// Features of a video file `[rows, width]` on the CPU; `None` where there is no file of its name.
    ///
    /// # Errors
    /// [`HeadsError::FeatureFile`] for a file that cannot be read, of another width than the model's or
    /// of another number of rows than the length of the video says.
    pub(super) fn video(
        &self,
        media: &Path,
        seen: Seen,
        needs: &FeatureNeeds,
    ) -> std::result::Result<Option<Tensor<2>>, HeadsError> {
        let name = stem(media);
        let files: Vec<PathBuf> = match find(&self.dir, &name) {
            Some(file) => vec![file],
            None => self
                .within
                .iter()
                .filter_map(|dir| find(dir, &name))
                .collect(),
        };
        let Some(first) = files.first() else {
            return Ok(None);
        };
        let rows = PrecomputedOptions::default().read(&files)?;
        let bad = |why: String| HeadsError::FeatureFile {
            path: first.clone(),
            why,
        };
        if let Some((width, _)) = needs.widths
            && rows.width() != width
            && rows.width() != width + ENDPOINTS
        {
            return Err(bad(of_width(&rows, width, files.len())));
        }
        let count = |seconds: f64| (seconds / needs.seconds).round() as usize;
        let (skip, wanted) = (count(seen.from.unwrap_or(0.0)), count(seen.duration));
        let end = skip + wanted;
        let fits = match seen.from {
            Some(_) => rows.rows() > skip && rows.rows() + SLACK >= end,
            None => rows.rows().abs_diff(end) <= SLACK,
        };
        if !fits {
            return Err(bad(format!(
                "it has {} rows, expected {end}: the model reads a row every {} s and the video is seen \
                 to second {:.1}",
                rows.rows(),
                needs.seconds,
                seen.from.unwrap_or(0.0) + seen.duration
            )));
        }
        let all = rows.to_tensor(&Device::flex());
        Ok(Some(match seen.from {
            Some(_) => all.narrow(0, skip, wanted.max(1).min(rows.rows() - skip)),
            None => all,
        }))
    }

    /// Features of a query `[tokens, width]` on the CPU, by the name of its question or its words; `None`
    /// where there is no file of either.
    ///
    /// # Errors
    /// [`HeadsError::FeatureFile`] for a file that cannot be read or of another width than the model's.
    pub(super) fn query(
        &self,
        id: Option<&str>,
        query: &str,
        needs: &FeatureNeeds,
    ) -> std::result::Result<Option<Tensor<2>>, HeadsError> {
        let dir = self.dir.join(QUERIES);
        let names = query_names(id, query);
        let Some(file) = names.iter().find_map(|name| find(&dir, name)) else {
            return Ok(None);
        };
        let rows = PrecomputedOptions::default().read(&[&file])?;
        match needs.widths {
            Some((_, width)) if rows.width() != width => Err(HeadsError::FeatureFile {
                why: of_width(&rows, width, 1),
                path: file,
            }),
            _ => Ok(Some(rows.to_tensor(&Device::flex()))),
        }
    }

    /// The file of a video that [`Self::video`] looks for.
    pub(super) fn video_file(&self, media: &Path) -> String {
        self.looked_for(&self.dir, &stem(media))
    }

    /// The file of a query that [`Self::query`] looks for.
    pub(super) fn query_file(&self, id: Option<&str>, query: &str) -> String {
        let names = query_names(id, query);
        self.looked_for(&self.dir.join(QUERIES), names.first().map_or("", |n| n))
    }

    fn looked_for(&self, dir: &Path, name: &str) -> String {
        format!("{}.{}", dir.join(name).display(), ENDINGS.join("|"))
    }
}

fn of_width(rows: &FeatureMatrix, width: usize, files: usize) -> String {
    let beside = match files {
        1 => String::new(),
        n => format!(" beside those of {} other folders", n - 1),
    };
    format!(
        "its rows{beside} are {} wide, expected {width}: the temporal head was made for features of another \
         tower; give features of that one, or train a head on these",
        rows.width()
    )
}

fn stem(media: &Path) -> String {
    let name = media.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut files = ENDINGS
        .iter()
        .map(|ending| dir.join(format!("{name}.{ending}")));
    files.find(|file| file.is_file())
}

/// Names of the file of a query, the surest first.
fn query_names(id: Option<&str>, query: &str) -> Vec<String> {
    let plain = |text: &str| -> String {
        let kept = |c: char| c.is_alphanumeric() || " -.".contains(c);
        let text = text.trim().chars().map(|c| if kept(c) { c } else { '_' });
        text.collect()
    };
    let id = id.map(plain);
    let of_id = id
        .iter()
        .flat_map(|id| [format!("{QUERY_PREFIX}{id}"), id.clone()]);
    let names = of_id.chain([plain(query)]);
    names
        .filter(|n| !n.is_empty() && n.len() <= LONGEST_NAME)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_have_names_that_a_file_can_have() {
        let names = query_names(Some("17"), "When does it turn/stop?");
        assert_eq!(names, ["qid17", "17", "When does it turn_stop_"]);
        assert_eq!(query_names(None, "../../etc/passwd"), [".._.._etc_passwd"]);
        assert!(query_names(None, &"long ".repeat(60)).is_empty());
    }
}
