//! Downloading checkpoints from the Hugging Face hub (feature `hub`).
//!
//! Files are stored in the cache that Python's `huggingface_hub` uses, so that either finds what
//! the other has downloaded. All files of a fetch come from one commit.

use std::path::{Component, Path, PathBuf};

use glob::{Pattern, glob};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::{LlmError, Result};
use crate::tokenizer::guard::no_panic;

/// How often an interrupted download is resumed.
const RETRIES: usize = 3;

/// Files of a checkpoint that this library reads: configurations, weights and tokenizers.
pub const CHECKPOINT_FILES: [&str; 4] = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"];

/// Progress of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchProgress {
    /// File in the repository.
    pub file: String,
    /// Number of this file, from 0.
    pub index: usize,
    /// Number of files to download; cached ones do not count.
    pub files: usize,
    /// Bytes of this file so far.
    pub bytes: u64,
    /// Bytes of this file in all.
    pub total: u64,
}

/// A repository on a hub, and which of its files to fetch.
#[derive(Debug, Clone)]
pub struct HubRepo {
    repo: String,
    revision: String,
    patterns: Vec<String>,
    cache_dir: Option<PathBuf>,
    endpoint: Option<String>,
    token: Option<String>,
}

impl HubRepo {
    /// The model repository `owner/name` at its branch `main`, files [`CHECKPOINT_FILES`].
    pub fn new(repo: impl Into<String>) -> Self {
        Self {
            repo: repo.into(),
            revision: "main".into(),
            patterns: CHECKPOINT_FILES.map(String::from).to_vec(),
            cache_dir: None,
            endpoint: None,
            token: None,
        }
    }

    /// Branch, tag or commit.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = revision.into();
        self
    }

    /// Which files: names, with `*` for any characters (`/` included), `?` for one and `[ab]` for one
    /// of some.
    pub fn files<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.patterns = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// Where to keep files, instead of `$HF_HOME/hub` or `~/.cache/huggingface/hub`.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Another server that speaks the hub's protocol. The stored token is not sent to it.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Access token, instead of the one `hf auth login` stored.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The directory of an earlier fetch of this revision that has a file for every pattern.
    /// Does not touch the network.
    pub fn cached(&self) -> Option<PathBuf> {
        self.check_names().ok()?;
        let (cache, repo) = (self.cache(), self.hub_repo(&self.revision));
        let refs = cache.path().join(repo.folder_name()).join("refs");
        let commit = std::fs::read_to_string(refs.join(&self.revision)).ok()?;
        if !is_plain_path(commit.trim()) {
            return None;
        }
        let dir = cache.repo(repo).pointer_path(commit.trim());
        let below = format!("{}/**/", Pattern::escape(dir.to_str()?));
        let held = |p: &String| {
            let mut found = glob(&format!("{below}{p}")).into_iter().flatten();
            found.any(|file| file.is_ok_and(|f| f.is_file()))
        };
        self.patterns.iter().all(held).then_some(dir)
    }

    /// Downloads the files that are not cached and returns the directory that holds them all.
    ///
    /// The patterns of which no file exists are ignored as long as another matches one: a
    /// checkpoint has a `tokenizer.json` or a `tokenizer.model`.
    ///
    /// # Errors
    /// [`LlmError::Hub`] when the repository cannot be listed, no file matches, or a download
    /// fails or is incomplete.
    pub fn fetch(&self, mut progress: impl FnMut(&FetchProgress)) -> Result<PathBuf> {
        self.check_names()?;
        let cache = self.cache();
        let api = self.api(&cache)?;
        let info = self
            .guarded("list the repository", || {
                api.repo(self.hub_repo(&self.revision)).info()
            })
            .map_err(|e| self.with_cached_hint(e))?;
        if info.sha.contains('/') || !is_plain_path(&info.sha) {
            return Err(self.error(format!("the hub sent `{}` as its commit", info.sha)));
        }
        let names: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        let patterns: Vec<Pattern> = self
            .patterns
            .iter()
            .map(|p| Pattern::new(p).map_err(|e| self.error(format!("the pattern `{p}`: {e}"))))
            .collect::<Result<_>>()?;
        let wanted: Vec<&String> = names
            .iter()
            .filter(|n| patterns.iter().any(|p| p.matches(n)))
            .collect();
        if wanted.is_empty() {
            return Err(self.error(format!(
                "none of its {} files matches {}",
                names.len(),
                self.patterns.join(", ")
            )));
        }
        if let Some(bad) = wanted.iter().find(|n| !is_plain_path(n)) {
            return Err(self.error(format!("the hub lists a file outside its folder: `{bad}`")));
        }
        let pinned = self.hub_repo(&info.sha);
        let dir = cache.repo(pinned.clone()).pointer_path(&info.sha);
        let missing: Vec<&String> = wanted
            .into_iter()
            .filter(|n| !dir.join(n).is_file())
            .collect();
        for (index, file) in missing.iter().enumerate() {
            let mut report = Report {
                callback: &mut progress,
                state: FetchProgress {
                    file: (*file).clone(),
                    index,
                    files: missing.len(),
                    bytes: 0,
                    total: 0,
                },
            };
            let path = self.guarded(&format!("download {file}"), || {
                api.repo(pinned.clone())
                    .download_with_progress(file, &mut report)
            })?;
            let expected = report.state.total;
            self.check_length(&path, file, expected)?;
        }
        cache
            .repo(self.hub_repo(&self.revision))
            .create_ref(&info.sha)
            .map_err(|e| self.error(format!("cannot write to the cache: {e}")))?;
        Ok(dir)
    }

    fn api(&self, cache: &Cache) -> Result<Api> {
        let mut builder = match &self.endpoint {
            Some(url) => ApiBuilder::from_env()
                .with_endpoint(url.trim_end_matches('/').to_string())
                .with_token(None),
            None => ApiBuilder::from_env(),
        };
        if self.token.is_some() {
            builder = builder.with_token(self.token.clone());
        }
        let builder = builder
            .with_cache_dir(cache.path().clone())
            .with_progress(false)
            .with_retries(RETRIES);
        self.guarded("set up the connection", || builder.build())
    }

    fn check_length(&self, path: &Path, file: &str, expected: u64) -> Result<()> {
        let found = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        if found == expected {
            return Ok(());
        }
        // The entry of the snapshot is a link to the blob; both go.
        if let Ok(blob) = std::fs::canonicalize(path) {
            let _ = std::fs::remove_file(blob);
        }
        let _ = std::fs::remove_file(path);
        Err(self.error(format!(
            "{file} came out with {found} of {expected} bytes and was removed; try again"
        )))
    }

    fn check_names(&self) -> Result<()> {
        let ok = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let parts: Vec<&str> = self.repo.split('/').collect();
        let named = |p: &&str| p.chars().all(ok) && !p.trim_matches('.').is_empty();
        if parts.len() > 2 || !parts.iter().all(named) {
            return Err(self.error("the name must look like `owner/name`".into()));
        }
        if !is_plain_path(&self.revision) {
            return Err(self.error("the revision is not a branch, tag or commit".into()));
        }
        Ok(())
    }

    fn guarded<T>(&self, what: &str, f: impl FnOnce() -> Result<T, ApiError>) -> Result<T> {
        let problem = match no_panic(f) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic,
        };
        let hint = if problem.contains("404") {
            "; check the spelling of the name, the revision and the file"
        } else if problem.contains("401") || problem.contains("403") {
            "; it is private or gated (or does not exist): log in with `hf auth login` or give a \
             token"
        } else {
            ""
        };
        Err(self.error(format!("cannot {what}: {problem}{hint}")))
    }

    fn with_cached_hint(&self, error: LlmError) -> LlmError {
        match (error, self.cached()) {
            (LlmError::Hub { problem, .. }, Some(dir)) => self.error(format!(
                "{problem}; an earlier download is at {}",
                dir.display()
            )),
            (error, _) => error,
        }
    }

    fn cache(&self) -> Cache {
        self.cache_dir
            .clone()
            .map_or_else(Cache::from_env, Cache::new)
    }

    fn hub_repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_string())
    }

    fn error(&self, problem: String) -> LlmError {
        LlmError::Hub {
            repo: self.repo.clone(),
            revision: self.revision.clone(),
            problem,
        }
    }
}

/// Forwards hf-hub's progress.
struct Report<'a> {
    callback: &'a mut dyn FnMut(&FetchProgress),
    state: FetchProgress,
}

impl Progress for &mut Report<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        // Called again when a download resumes; what is on disk follows as an update.
        self.state.total = size as u64;
        self.state.bytes = 0;
        (self.callback)(&self.state);
    }

    fn update(&mut self, size: usize) {
        self.state.bytes += size as u64;
        (self.callback)(&self.state);
    }

    fn finish(&mut self) {
        (self.callback)(&self.state);
    }
}

/// A relative path of ordinary names: nothing that leaves its folder.
fn is_plain_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_folder() {
        for bad in ["", "/etc/x", "../x", "a/../../x", "a\\b", "c:x", "./a"] {
            assert!(!is_plain_path(bad), "{bad}");
        }
        assert!(is_plain_path("refs/pr/1") && is_plain_path("model-00001-of-00002.safetensors"));
    }
}
