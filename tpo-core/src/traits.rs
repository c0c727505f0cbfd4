//! The traits of the three parts below the heads.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Int, Tensor};

use crate::error::{CoreError, Result};
use crate::gradient_checkpointing::Tape;
use crate::lora::LoraConfig;
use crate::prompt::Visual;

/// Turns frames into visual tokens.
pub trait VisionEncoder: Module + ModuleDisplay + Sync + 'static {
    /// Encodes clips; one frame is an image.
    ///
    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`, normalised as the encoder was trained
    /// - output `[batch, tokens, dim]`
    fn encode(&self, frames: Tensor<5>) -> Result<Tensor<3>>;

    /// [`VisionEncoder::encode`] whose blocks are segments of `tape`, so that their activations
    /// are computed again in the backward pass. Without blocks to forget it is the same.
    fn encode_checkpointed<'m>(
        &'m self,
        frames: Tensor<5>,
        _tape: &mut Tape<'m>,
    ) -> Result<Tensor<3>> {
        self.encode(frames)
    }

    /// Width of a visual token.
    fn dim(&self) -> usize;
}

/// A tokenised instruction that a connector may read beside the visual tokens.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// Token ids `[batch, length]` of the connector's own vocabulary.
    pub ids: Tensor<2, Int>,
    /// 1 where a token is real, 0 on padding, `[batch, length]`.
    pub mask: Tensor<2, Int>,
}

/// What a connector and a prompt know of a visual before a pixel is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisualShape {
    /// Video or image.
    pub kind: Visual,
    /// `(width, height)` of the source in pixels.
    pub size: (u32, u32),
    /// Pictures that go into the encoder: frames of a video, tiles of an image.
    pub pictures: usize,
}

impl VisualShape {
    /// A video of so many sampled frames.
    pub fn video(size: (u32, u32), frames: usize) -> Self {
        Self {
            kind: Visual::Video,
            size,
            pictures: frames,
        }
    }

    /// An image that goes in whole.
    pub fn image(size: (u32, u32)) -> Self {
        Self {
            kind: Visual::Image,
            size,
            pictures: 1,
        }
    }
}

/// A video or image as it goes into the encoder.
#[derive(Debug, Clone)]
pub struct VisualInput {
    /// `[pictures, 3, height, width]`, normalised as the encoder was trained.
    pub pixels: Tensor<4>,
    /// What it is.
    pub shape: VisualShape,
}

impl VisualInput {
    /// Clips `[batch, frames, 3, height, width]` as videos (one frame: images) whose source is of
    /// the size of the frames.
    pub fn clips(frames: Tensor<5>) -> Vec<Self> {
        let [batch, pictures, channels, height, width] = frames.dims();
        let kind = if pictures == 1 {
            Visual::Image
        } else {
            Visual::Video
        };
        let shape = VisualShape {
            kind,
            size: (width as u32, height as u32),
            pictures,
        };
        (0..batch)
            .map(|i| Self {
                pixels: frames
                    .clone()
                    .narrow(0, i, 1)
                    .reshape([pictures, channels, height, width]),
                shape,
            })
            .collect()
    }
}

/// Embeddings of visuals, each with its own number of rows.
#[derive(Debug, Clone)]
pub struct VisualRows {
    /// `[sum of counts, d_llm]`, visual after visual.
    pub rows: Tensor<2>,
    /// Rows of each visual.
    pub counts: Vec<usize>,
}

impl VisualRows {
    /// Visuals of equal length `[batch, rows, d_llm]`.
    pub fn even(rows: Tensor<3>) -> Self {
        let [batch, length, d] = rows.dims();
        Self {
            rows: rows.reshape([batch * length, d]),
            counts: vec![length; batch],
        }
    }
}

/// Turns visual tokens into embeddings the language model reads.
pub trait Connector: Module + ModuleDisplay + Sync + 'static {
    /// # Shapes
    /// - features `[batch, tokens, dim]`, one entry of `visuals` for each of the batch
    /// - output: rows of width `d_llm`, as many per visual as the prompt has slots for it
    fn connect(
        &self,
        features: Tensor<3>,
        visuals: &[VisualShape],
        instruction: Option<&Instruction>,
    ) -> Result<VisualRows>;
}

/// State of a running generation, owned by the caller. Cloning it copies the state;
/// [`DecodeCache::truncate`] rolls it back.
pub trait DecodeCache: Clone + Send {
    /// Positions held.
    fn len(&self) -> usize;
    /// Whether nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Positions that fit.
    fn capacity(&self) -> usize;
    /// Forgets every position from `len` on.
    fn truncate(&mut self, len: usize);
    /// Keeps these rows of the batch, in this order, and forgets the others.
    fn select(&mut self, rows: &[usize]);
    /// Forgets the last position of these rows, as if it had not been fed. The positions before it
    /// move up, so that all rows end at the same place and padding stays on the left.
    fn take_back(&mut self, rows: &[usize]);
}

/// Which positions of a batch are real, per row. Padding may stand on either side.
pub type AttentionMask = [Vec<bool>];

/// To which turn every position of a row belongs, per row, for rows whose turns do not see each
/// other. Turn 0 is what they share (the visual tokens); any other turn sees turn 0 and itself, and
/// its positions go on where those of turn 0 end, so that each is read as if it were the only one.
pub type TurnMap = [Vec<u32>];

/// A causal language model that reads embeddings.
pub trait LanguageModel: Module + ModuleDisplay + Sync + 'static {
    /// Its cache.
    type Cache: DecodeCache;

    /// Width of the hidden state.
    fn dim(&self) -> usize;

    /// Number of logits.
    fn vocab_size(&self) -> usize;

    /// Positions that it was made for. Generation ends there, and caches are not larger.
    fn max_length(&self) -> usize {
        usize::MAX
    }

    /// Embeds ids `[batch, length]` as `[batch, length, dim]`.
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// Hidden states after the final norm `[batch, length, dim]`, with positions `0..length` on
    /// every row whatever the mask, as the reference trains.
    fn hidden(&self, embeds: Tensor<3>, mask: Option<&AttentionMask>) -> Result<Tensor<3>>;

    /// [`LanguageModel::hidden`] whose blocks are segments of `tape`, so that their activations
    /// are computed again in the backward pass. Without blocks to forget it is the same.
    fn hidden_checkpointed<'m>(
        &'m self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        _tape: &mut Tape<'m>,
    ) -> Result<Tensor<3>> {
        self.hidden(embeds, mask)
    }

    /// [`LanguageModel::hidden`] of rows with turns that do not see each other, after what they
    /// share. With a `tape` as [`LanguageModel::hidden_checkpointed`].
    ///
    /// # Errors
    /// [`CoreError::TurnsApart`] when the model cannot, or for a map of another shape or one whose
    /// turns are out of order.
    fn hidden_packed<'m>(
        &'m self,
        _embeds: Tensor<3>,
        _mask: Option<&AttentionMask>,
        _turns: &TurnMap,
        _tape: Option<&mut Tape<'m>>,
    ) -> Result<Tensor<3>> {
        Err(CoreError::TurnsApart {
            why: "this language model reads whole dialogues only; leave `packed_turns` out".into(),
        })
    }

    /// Logits `[batch, length, vocab]` of hidden states `[batch, length, dim]`.
    fn logits(&self, hidden: Tensor<3>) -> Tensor<3>;

    /// Gives the model these adapters without a change of what it computes. With the rank and
    /// targets it has already, the adapters stay and their settings change; otherwise those it has
    /// are added to its weights and new ones are drawn on first use.
    ///
    /// # Errors
    /// [`CoreError::Adapters`] when the model has no adapters or none of that kind.
    fn with_adapters(self, _adapters: &LoraConfig) -> Result<Self> {
        Err(CoreError::Adapters {
            why: "this language model cannot be given adapters; leave `lora` out".into(),
        })
    }

    /// An empty cache for `batch` rows of up to `capacity` positions.
    fn cache(&self, batch: usize, capacity: usize, device: &Device) -> Self::Cache;

    /// Appends embeddings `[batch, length, dim]` to the cache and returns their hidden states
    /// after the final norm. `mask` marks the real positions of the *new* embeddings; padding
    /// must be on the left.
    ///
    /// # Errors
    /// When the cache is full or the shapes differ.
    fn step(
        &self,
        embeds: Tensor<3>,
        mask: Option<&AttentionMask>,
        cache: &mut Self::Cache,
    ) -> Result<Tensor<3>>;
}
