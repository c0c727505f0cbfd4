//! Reading a tokenizer from files.

use std::path::Path;

use super::files::{DirectoryFiles, FilesOf};
use super::sentencepiece::SentencePiece;
use super::tokenizer_json::TokenizerJson;
use super::{Backend, EncodeOptions, SentencePieceOptions, Tokenizer, guard};
use crate::error::{LlmError, Result};

/// Hugging Face's form.
const JSON: &str = "tokenizer.json";
/// A sentencepiece model in a directory.
const MODEL: &str = "tokenizer.model";

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint directory, `tokenizer.json` if there is one, else
    /// `tokenizer.model`, with special tokens, switches and chat template from
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`,
    /// `generation_config.json` and `chat_template.jinja`, as far as they exist.
    ///
    /// # Errors
    /// [`LlmError::TokenizerFile`] when there is no tokenizer file or one is damaged,
    /// [`LlmError::Io`]. A chat template that does not compile is an error where it is used.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        if let Some(this) = Self::from_json_of(FilesOf::Dir(dir))? {
            return Ok(this);
        }
        if dir.join(MODEL).is_file() {
            return Self::from_sentencepiece_dir(dir);
        }
        Err(LlmError::TokenizerFile {
            path: dir.to_path_buf(),
            problem: format!("the directory holds neither {JSON} nor {MODEL}"),
        })
    }

    /// [`Self::from_dir`] of files at hand (name, bytes), with a `tokenizer.json` among them; `origin`
    /// is for messages.
    ///
    /// # Errors
    /// As [`Self::from_dir`].
    pub fn from_files(files: &[(String, Vec<u8>)], origin: impl AsRef<Path>) -> Result<Self> {
        let origin = origin.as_ref();
        let this = Self::from_json_of(FilesOf::Named(files, origin))?;
        this.ok_or_else(|| LlmError::TokenizerFile {
            path: origin.to_path_buf(),
            problem: format!("there is no {JSON} among the files"),
        })
    }

    /// The tokenizer of a `tokenizer.json` and the files beside it, if there is one.
    fn from_json_of(files: FilesOf<'_>) -> Result<Option<Self>> {
        let Some(bytes) = files.bytes(JSON)? else {
            return Ok(None);
        };
        let path = files.path(JSON);
        let mut this = Self::from_json_at(&bytes, &path)?;
        this.apply(DirectoryFiles::read(files)?, &path)?;
        this.origin = files.origin().into();
        Ok(Some(this))
    }

    /// [`Self::from_dir`] by `tokenizer.model`, whatever else there is: the way to read
    /// VideoChat-TPO, whose ids come from the slow tokenizer.
    ///
    /// # Errors
    /// As [`Self::from_dir`].
    pub fn from_sentencepiece_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(MODEL);
        let files = DirectoryFiles::read(FilesOf::Dir(dir))?;
        let options = SentencePieceOptions {
            legacy: files.legacy.unwrap_or(true),
        };
        let mut this = Self::from_sentencepiece(&path, options)?;
        this.apply(files, &path)?;
        this.origin = dir.into();
        Ok(this)
    }

    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LlmError::TokenizerFile`].
    pub fn from_tokenizer_json_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_json_at(bytes, Path::new("<memory>"))
    }

    /// Reads a sentencepiece model file alone. BOS is added by default, EOS is not (the defaults
    /// of Hugging Face's Llama tokenizer).
    ///
    /// # Errors
    /// [`LlmError::TokenizerFile`], [`LlmError::Io`].
    pub fn from_sentencepiece(
        path: impl AsRef<Path>,
        options: SentencePieceOptions,
    ) -> Result<Self> {
        let path = path.as_ref();
        let bytes = guard::read_file(path)?;
        let mut model = SentencePiece::from_bytes(&bytes, path, options)?;
        let [unk, bos, eos, pad] = model.trainer_ids;
        for id in [unk, bos, eos].into_iter().flatten() {
            if let Some(name) = model.id_to_token(id).map(String::from) {
                model.mark_special(&name)?;
            }
        }
        Ok(Self {
            backend: Backend::SentencePiece(Box::new(model)),
            bos,
            eos,
            pad,
            unk,
            eos_ids: eos.into_iter().collect(),
            defaults: EncodeOptions {
                add_bos: bos.is_some(),
                add_eos: false,
                max_length: None,
            },
            template: None,
            origin: path.into(),
        })
    }

    fn from_json_at(bytes: &[u8], path: &Path) -> Result<Self> {
        let json = TokenizerJson::from_bytes(bytes, path)?;
        let one = |ids: &[u32]| match ids {
            [id] => Some(*id),
            _ => None,
        };
        let (bos, eos) = (one(&json.prefix), one(&json.suffix));
        Ok(Self {
            defaults: EncodeOptions {
                add_bos: !json.prefix.is_empty(),
                add_eos: !json.suffix.is_empty(),
                max_length: None,
            },
            bos,
            eos,
            pad: None,
            unk: None,
            eos_ids: eos.into_iter().collect(),
            backend: Backend::Json(Box::new(json)),
            template: None,
            origin: path.into(),
        })
    }

    /// Applies what the files beside the tokenizer say.
    fn apply(&mut self, files: DirectoryFiles, path: &Path) -> Result<()> {
        let bad = |problem: String| LlmError::TokenizerFile {
            path: path.to_path_buf(),
            problem,
        };
        for (id, token) in files.added {
            self.add(token, id)?;
        }
        let names = [&files.bos, &files.eos, &files.pad, &files.unk];
        for name in names.into_iter().flatten().chain(&files.additional_special) {
            match &mut self.backend {
                Backend::SentencePiece(m) => {
                    m.mark_special(name)?;
                }
                Backend::Json(m) if m.token_to_id(name).is_none() => {
                    return Err(bad(format!(
                        "the special token `{name}` named in tokenizer_config.json or \
                         special_tokens_map.json is not in the vocabulary"
                    )));
                }
                Backend::Json(_) => {}
            }
        }
        let id = |name: &Option<String>| name.as_deref().and_then(|n| self.token_to_id(n));
        let (bos, eos, pad, unk) = (
            id(&files.bos),
            id(&files.eos),
            id(&files.pad),
            id(&files.unk),
        );
        self.bos = bos.or(self.bos).or(files.generation_bos);
        self.eos = eos.or(self.eos).or(files.generation_eos.first().copied());
        self.pad = pad.or(self.pad).or(files.generation_pad);
        self.unk = unk.or(self.unk);
        self.eos_ids = files.generation_eos;
        if let Some(eos) = self.eos
            && !self.eos_ids.contains(&eos)
        {
            self.eos_ids.insert(0, eos);
        }
        // In a tokenizer.json the post-processor decides; the switches are for slow tokenizers.
        if matches!(self.backend, Backend::SentencePiece(_)) {
            self.defaults.add_bos = files.add_bos.unwrap_or(self.defaults.add_bos);
            self.defaults.add_eos = files.add_eos.unwrap_or(self.defaults.add_eos);
        }
        self.template = files.template;
        Ok(())
    }
}
