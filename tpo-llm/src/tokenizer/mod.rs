//! Text to token ids and back.
//!
//! One [`Tokenizer`] over two formats: `tokenizer.json` (Hugging Face `tokenizers`) and
//! sentencepiece `tokenizer.model` with the behaviour of Hugging Face's slow Llama tokenizer,
//! which VideoChat-TPO was trained with.

mod added;
mod decode_stream;
mod files;
pub(crate) mod guard;
mod load;
mod sentencepiece;
mod sentencepiece_decode;
mod tokenizer_json;
mod write;

pub use added::AddedToken;
pub use decode_stream::DecodeStream;
pub use sentencepiece::SentencePieceOptions;

use std::path::PathBuf;

use self::decode_stream::Backend as StreamBackend;
use self::sentencepiece::SentencePiece;
use self::sentencepiece_decode::PieceStream;
use self::tokenizer_json::{TokenizerJson, WindowStream};
use crate::chat_template::{ChatTemplate, Message, RenderOptions};
use crate::error::{LlmError, Result};

/// What is added around the ids of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Prepend the begin-of-text token (for a `tokenizer.json`: whatever its post-processor puts
    /// there, `[CLS]` of BERT included).
    pub add_bos: bool,
    /// Append the end-of-text token (`[SEP]` of BERT included).
    pub add_eos: bool,
    /// Truncate the text's ids on the right so that all, BOS and EOS included, are at most this
    /// many.
    pub max_length: Option<usize>,
}

/// A tokenizer with its special tokens and, if the directory has one, its chat template.
#[derive(Debug)]
pub struct Tokenizer {
    backend: Backend,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    /// Ids that end generation.
    eos_ids: Vec<u32>,
    defaults: EncodeOptions,
    /// The chat template, compiled where it is used: text as it is needs none.
    template: Option<String>,
    /// Where the template would be, for messages.
    origin: PathBuf,
}

#[derive(Debug)]
enum Backend {
    SentencePiece(Box<SentencePiece>),
    Json(Box<TokenizerJson>),
}

impl Tokenizer {
    /// What [`encode`](Self::encode) should add according to the files: BOS for Llama and Mistral,
    /// nothing for Qwen2 and SmolLM2, `[CLS]`/`[SEP]` for BERT.
    pub fn default_options(&self) -> EncodeOptions {
        self.defaults
    }

    /// Ids of `text`.
    ///
    /// # Errors
    /// [`LlmError::Tokenize`] when BOS or EOS is asked for and the tokenizer has none, when
    /// `max_length` has no room for them, or when the text cannot be encoded.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        let fail = |problem: String| LlmError::Tokenize {
            action: "encode",
            problem,
        };
        let (prefix, suffix): (&[u32], &[u32]) = match &self.backend {
            Backend::Json(m) => (&m.prefix, &m.suffix),
            Backend::SentencePiece(_) => (&[], &[]),
        };
        let around = |add: bool, ids: &[u32], id: Option<u32>, name: &str| match (add, ids, id) {
            (false, ..) => Ok(Vec::new()),
            (true, [], Some(id)) => Ok(vec![id]),
            (true, [], None) => Err(fail(format!("the tokenizer has no {name} token to add"))),
            (true, ids, _) => Ok(ids.to_vec()),
        };
        let mut ids = around(options.add_bos, prefix, self.bos, "BOS")?;
        let tail = around(options.add_eos, suffix, self.eos, "EOS")?;
        let mut body = self.encode_segment(text)?;
        if let Some(max) = options.max_length {
            let room = max.checked_sub(ids.len() + tail.len()).ok_or_else(|| {
                fail(format!(
                    "max_length {max} has no room for the tokens around the text"
                ))
            })?;
            body.truncate(room);
        }
        ids.append(&mut body);
        ids.extend(tail);
        Ok(ids)
    }

    /// Ids of `text` alone: no BOS, no EOS.
    ///
    /// # Errors
    /// [`LlmError::Tokenize`].
    pub fn encode_segment(&self, text: &str) -> Result<Vec<u32>> {
        match &self.backend {
            Backend::SentencePiece(m) => m.encode(text),
            Backend::Json(m) => m.encode(text),
        }
    }

    /// Text of `ids`. With `skip_special`, BOS, EOS and other control tokens are left out; task
    /// tokens like `<box_begin>` stay.
    ///
    /// # Errors
    /// [`LlmError::UnknownTokenId`] for an id outside a sentencepiece vocabulary (ids unknown to a
    /// `tokenizer.json` are left out, as Hugging Face does).
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match &self.backend {
            Backend::Json(m) => m.decode(ids, skip_special),
            Backend::SentencePiece(m) => {
                let mut stream = PieceStream::new(m, skip_special);
                let mut text = String::new();
                for &id in ids {
                    text.push_str(&stream.push(id)?);
                }
                text.push_str(&stream.finish());
                Ok(text)
            }
        }
    }

    /// A decoder for ids that arrive one at a time.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream(match &self.backend {
            Backend::SentencePiece(m) => {
                StreamBackend::SentencePiece(PieceStream::new(m, skip_special))
            }
            Backend::Json(m) => StreamBackend::Json(WindowStream::new(m, skip_special)),
        })
    }

    /// Id of a token string, exactly as the vocabulary spells it (`▁the`, `<temp>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.backend {
            Backend::SentencePiece(m) => m.token_to_id(token),
            Backend::Json(m) => m.token_to_id(token),
        }
    }

    /// The vocabulary's spelling of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match &self.backend {
            Backend::SentencePiece(m) => m.id_to_token(id).map(String::from),
            Backend::Json(m) => m.id_to_token(id),
        }
    }

    /// Whether `id` is a control token, left out by `decode(.., true)`.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.backend {
            Backend::SentencePiece(m) => m.is_special(id),
            Backend::Json(m) => m.is_special(id),
        }
    }

    /// Highest id plus one, added tokens included: the least number of embedding rows. Equals
    /// Hugging Face's `len(tokenizer)` when ids have no gaps.
    pub fn vocab_size(&self) -> usize {
        let next = match &self.backend {
            Backend::SentencePiece(m) => m.next_id(),
            Backend::Json(m) => m.next_id(),
        };
        next as usize
    }

    /// Adds tokens after the vocabulary and returns their ids, in order. A token that exists
    /// keeps its id. Grow the embeddings to [`vocab_size`](Self::vocab_size) afterwards
    /// ([`TokenPlan::apply`](crate::vocabulary::TokenPlan::apply) does both).
    ///
    /// # Errors
    /// [`LlmError::AddedToken`] for an empty token; tokens before it stay added.
    pub fn add_tokens(&mut self, tokens: &[AddedToken]) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(tokens.len());
        for token in tokens {
            let token = token.clone();
            ids.push(match &mut self.backend {
                Backend::Json(m) => m.add(token, None)?,
                Backend::SentencePiece(m) => {
                    let id = m.token_to_id(&token.content).unwrap_or_else(|| m.next_id());
                    m.add(token, id)?;
                    id
                }
            });
        }
        Ok(ids)
    }

    /// Adds tokens with given ids, such as the task tokens of a checkpoint.
    ///
    /// # Errors
    /// [`LlmError::AddedToken`] when a token exists with another id, an id is taken, or (for a
    /// `tokenizer.json`) an id is not the next free one; tokens before it stay added.
    pub fn add_tokens_with_ids<'t>(
        &mut self,
        tokens: impl IntoIterator<Item = (&'t str, u32)>,
    ) -> Result<()> {
        for (name, id) in tokens {
            self.add(AddedToken::new(name), id)?;
        }
        Ok(())
    }

    fn add(&mut self, token: AddedToken, id: u32) -> Result<()> {
        match &mut self.backend {
            Backend::SentencePiece(m) => m.add(token, id),
            Backend::Json(m) => m.add(token, Some(id)).map(drop),
        }
    }

    /// Begin-of-text id.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-text id.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Padding id.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Id of unknown text.
    pub fn unk_id(&self) -> Option<u32> {
        self.unk
    }

    /// Every id that ends generation: the EOS token and those of `generation_config.json`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Sets the end-of-text id, for a tokenizer read without its configuration files.
    pub fn set_eos_id(&mut self, id: Option<u32>) {
        self.eos = id;
        self.eos_ids = id.into_iter().collect();
    }

    /// The chat template, if the directory has one (the one named `default`, or the only one).
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] for one that does not compile.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let template = self.template.as_deref().map(ChatTemplate::new).transpose();
        template.map_err(|error| self.named(error))
    }

    /// The error of a chat template with where it is.
    fn named(&self, error: LlmError) -> LlmError {
        match error {
            LlmError::ChatTemplate { problem } => LlmError::ChatTemplate {
                problem: format!("{}: {problem}", self.origin.display()),
            },
            other => other,
        }
    }

    /// Renders `messages` with the directory's chat template. Encode the result with
    /// [`encode_segment`](Self::encode_segment): templates write BOS themselves.
    ///
    /// # Errors
    /// [`LlmError::ChatTemplate`] when there is no template, it does not compile or it rejects the
    /// messages.
    pub fn apply_chat_template(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let template = self.chat_template()?.ok_or_else(|| {
            self.named(LlmError::ChatTemplate {
                problem:
                    "there is no chat template; give the text laid out as the model learnt it \
                          (`tpo generate --raw`)"
                        .into(),
            })
        })?;
        let name = |id: Option<u32>| id.and_then(|id| self.id_to_token(id));
        let text = template.render(
            messages,
            &RenderOptions {
                add_generation_prompt,
                bos_token: name(self.bos),
                eos_token: name(self.eos),
                pad_token: name(self.pad),
                unk_token: name(self.unk),
                ..RenderOptions::default()
            },
        );
        text.map_err(|error| self.named(error))
    }
}

/// Prepends BOS where this tokenizer does so by default.
impl tpo_core::prompt::TextEncoder for Tokenizer {
    fn encode_with_bos(&self, text: &str) -> tpo_core::Result<Vec<u32>> {
        let options = EncodeOptions {
            add_bos: self.defaults.add_bos,
            ..EncodeOptions::default()
        };
        Ok(self.encode(text, options)?)
    }
}
