//! Sentencepiece models with the behaviour of Hugging Face's slow Llama tokenizer.
//!
//! Text is split at added tokens and every segment between them is encoded by itself. With
//! `legacy` (the reference's setting) each segment gets its own dummy prefix, so
//! `a <temp> b` becomes `▁a ▁ <temp> ▁ ▁b`; without it only the start of the text does.

use std::collections::HashMap;
use std::path::Path;

use kitoken::{Definition, Kitoken, Normalization, SpecialTokenKind};
use sentencepiece_model::{ModelType, SentencePieceModel, Type};

use super::added::{AddedToken, AddedTokens, Segment};
use super::guard::no_panic;
use crate::error::{LlmError, Result};

/// The mark of a space inside pieces, U+2581.
pub(super) const SPACE: char = '▁';

/// Longest ordinary piece in bytes. Published models stay under 100 (sentencepiece's default
/// is 16 characters); the limit keeps a hostile file from costing quadratic time.
const MAX_PIECE_BYTES: usize = 256;

/// How sentencepiece text is split and prefixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentencePieceOptions {
    /// `legacy` of Hugging Face's `LlamaTokenizer`. True in VideoChat-TPO; false in the text tower
    /// of InternVideo2-CLIP.
    pub legacy: bool,
}

impl Default for SentencePieceOptions {
    fn default() -> Self {
        Self { legacy: true }
    }
}

/// What a piece is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    Byte(u8),
}

#[derive(Debug)]
struct Piece {
    text: String,
    kind: Kind,
}

/// A loaded sentencepiece model with its added tokens.
#[derive(Debug)]
pub(super) struct SentencePiece {
    encoder: Kitoken,
    pieces: Vec<Piece>,
    ids: HashMap<String, u32>,
    pub added: AddedTokens,
    pub legacy: bool,
    /// Tokens of the string `<unk>` without a dummy prefix, for `legacy = false`.
    unk_pieces: usize,
    unk_text: String,
    pub unk_surface: String,
    /// Whether decoding drops one leading space mark.
    pub drops_leading_space: bool,
    /// Whether decoding drops all leading space marks (`remove_extra_whitespaces`).
    pub drops_all_leading_space: bool,
    /// Ids of the trainer: unk, bos, eos, pad.
    pub trainer_ids: [Option<u32>; 4],
}

impl SentencePiece {
    /// Reads a serialised model. `path` is for messages.
    pub fn from_bytes(bytes: &[u8], path: &Path, options: SentencePieceOptions) -> Result<Self> {
        let bad = |problem: String| LlmError::TokenizerFile {
            path: path.to_path_buf(),
            problem,
        };
        let model = no_panic(|| SentencePieceModel::from_slice(bytes))
            .map_err(bad)?
            .map_err(|e| bad(format!("not a sentencepiece model, or cut short: {e}")))?;
        let (pieces, ids) = read_pieces(&model).map_err(bad)?;
        let trainer = model
            .trainer()
            .ok_or_else(|| bad("the model holds no trainer settings".into()))?;
        if !matches!(trainer.model_type(), ModelType::Bpe | ModelType::Unigram) {
            return Err(bad("only BPE and unigram models can be read".into()));
        }
        let id = |id: i32, name: &str| -> Result<Option<u32>> {
            match u32::try_from(id) {
                Ok(id) if (id as usize) < pieces.len() => Ok(Some(id)),
                Ok(id) => Err(bad(format!(
                    "{name} is {id} but there are {} pieces",
                    pieces.len()
                ))),
                Err(_) => Ok(None),
            }
        };
        let trainer_ids = [
            id(trainer.unk_id(), "unk_id")?,
            id(trainer.bos_id(), "bos_id")?,
            id(trainer.eos_id(), "eos_id")?,
            id(trainer.pad_id(), "pad_id")?,
        ];
        let unk = trainer_ids[0].ok_or_else(|| bad("the model has no unknown piece".into()))?;
        if pieces[unk as usize].kind != Kind::Unknown {
            return Err(bad(format!("unk_id {unk} is not the unknown piece")));
        }
        let (prefix, squeeze) = model.normalizer().map_or((true, true), |n| {
            (n.add_dummy_prefix(), n.remove_extra_whitespaces())
        });
        let encoder = no_panic(|| {
            let mut definition =
                Definition::from_sentencepiece_slice(bytes).map_err(|e| e.to_string())?;
            if !options.legacy {
                let steps = &mut definition.config.normalization;
                steps.retain(|s| !matches!(s, Normalization::Extend { .. }));
            }
            Kitoken::from_definition(definition).map_err(|e| e.to_string())
        })
        .map_err(bad)?
        .map_err(|e| bad(format!("cannot be used: {e}")))?;
        let mut this = Self {
            encoder,
            unk_text: pieces[unk as usize].text.clone(),
            unk_surface: trainer.unk_surface().to_string(),
            pieces,
            ids,
            added: AddedTokens::default(),
            legacy: options.legacy,
            unk_pieces: 0,
            drops_leading_space: (prefix && options.legacy) || squeeze,
            drops_all_leading_space: squeeze,
            trainer_ids,
        };
        if !options.legacy {
            this.unk_pieces = this.encode_plain(&this.unk_text)?.len();
        }
        Ok(this)
    }

    /// Marks the piece or added token `name` as special; a name the model lacks gets the next id.
    pub fn mark_special(&mut self, name: &str) -> Result<u32> {
        let id = self.token_to_id(name).unwrap_or_else(|| self.next_id());
        self.added.insert(AddedToken::special(name), id)?;
        Ok(id)
    }

    /// The lowest id above all others.
    pub fn next_id(&self) -> u32 {
        let pieces = self.pieces.len() as u32;
        self.added
            .max_id()
            .map_or(pieces, |m| pieces.max(m.saturating_add(1)))
    }

    /// Adds a token with a given id.
    pub fn add(&mut self, token: AddedToken, id: u32) -> Result<()> {
        if let Some(piece) = self.pieces.get(id as usize)
            && piece.text != token.content
        {
            return Err(LlmError::AddedToken {
                problem: format!(
                    "id {id} is the piece `{}`; the first free id is {}",
                    piece.text,
                    self.next_id()
                ),
                token: token.content,
            });
        }
        match self.ids.get(&token.content) {
            Some(&known) if known != id => Err(LlmError::AddedToken {
                token: token.content,
                problem: format!("the model has it as piece {known}, not {id}"),
            }),
            _ => self.added.insert(token, id),
        }
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.added
            .id(token)
            .or_else(|| self.ids.get(token).copied())
    }

    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        match self.added.get(id) {
            Some(token) => Some(&token.content),
            None => self.pieces.get(id as usize).map(|p| p.text.as_str()),
        }
    }

    /// Kind of a piece string, as sentencepiece looks it up: unknown when there is none.
    pub fn kind_of(&self, piece: &str) -> Kind {
        match self.ids.get(piece) {
            Some(&id) => self.pieces[id as usize].kind,
            None => Kind::Unknown,
        }
    }

    /// Text of the unknown piece, `<unk>`.
    pub fn unk_text(&self) -> &str {
        &self.unk_text
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let fail = |problem: String| LlmError::Tokenize {
            action: "encode",
            problem,
        };
        let user_defined: &[SpecialTokenKind] = &[SpecialTokenKind::Priority];
        no_panic(|| self.encoder.encode(text, user_defined))
            .map_err(fail)?
            .map_err(|e| fail(e.to_string()))
    }

    /// Ids of `text` without BOS and EOS.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        if self.legacy {
            for segment in self.added.split(text) {
                match segment {
                    Segment::Added(id) => ids.push(id),
                    Segment::Text(text) => ids.extend(self.encode_plain(text)?),
                }
            }
            return Ok(ids);
        }
        if text.is_empty() {
            return Ok(ids);
        }
        let text = format!("{SPACE}{}", text.replace(SPACE, " "));
        for segment in self.added.split(&text) {
            match segment {
                Segment::Added(id) => ids.push(id),
                // An unknown piece before the text keeps the leading space; its tokens are removed.
                Segment::Text(text) if text.starts_with([SPACE, ' ']) => {
                    let all = self.encode_plain(&format!("{}{text}", self.unk_text))?;
                    ids.extend(all.iter().skip(self.unk_pieces));
                }
                Segment::Text(text) => ids.extend(self.encode_plain(text)?),
            }
        }
        let lone_space = ids
            .first()
            .is_some_and(|f| self.id_to_token(*f) == Some("▁"));
        if lone_space && ids.get(1).is_some_and(|i| self.is_special(*i)) {
            ids.remove(0);
        }
        Ok(ids)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(id).is_some_and(|t| t.special)
    }
}

type Pieces = (Vec<Piece>, HashMap<String, u32>);

fn read_pieces(model: &SentencePieceModel) -> std::result::Result<Pieces, String> {
    if model.pieces().is_empty() {
        return Err(
            "the model has no pieces; the file is empty or not a sentencepiece model".into(),
        );
    }
    let mut pieces = Vec::with_capacity(model.pieces().len());
    let mut ids = HashMap::with_capacity(model.pieces().len());
    let mut normal = 0;
    for (id, piece) in model.pieces().iter().enumerate() {
        let text = piece.piece().to_string();
        let kind = match piece.r#type() {
            Type::Unknown => Kind::Unknown,
            Type::Control => Kind::Control,
            Type::Byte => Kind::Byte(
                byte_of(&text).ok_or_else(|| format!("piece {id} `{text}` is not a byte"))?,
            ),
            Type::Normal | Type::UserDefined | Type::Unused => Kind::Normal,
        };
        if text.is_empty() || text.len() > MAX_PIECE_BYTES {
            return Err(format!(
                "piece {id} has {} bytes; 1 to {MAX_PIECE_BYTES} are allowed",
                text.len()
            ));
        }
        if !piece.score().is_finite() {
            return Err(format!("piece {id} has score {}", piece.score()));
        }
        if let Some(other) = ids.insert(text.clone(), id as u32) {
            return Err(format!("pieces {other} and {id} are both `{text}`"));
        }
        normal += usize::from(kind == Kind::Normal);
        pieces.push(Piece { text, kind });
    }
    if normal == 0 {
        return Err("the model has no ordinary pieces".into());
    }
    Ok((pieces, ids))
}

/// The byte of a piece like `<0x0A>`.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(hex, 16).ok())?
}
