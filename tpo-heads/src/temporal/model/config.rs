//! Sizes of CG-DETR.

use burn::config::Config;
use burn::tensor::Device;

use super::CgDetr;
use crate::HeadsError;
use crate::temporal::layers::{LayerSizes, WeightInit};

/// Columns that say where a clip begins and ends, 0–1 ("temporal endpoint features").
pub const TEF_COLUMNS: usize = 2;

/// Configuration of [`CgDetr`].
#[derive(Config, Debug, PartialEq)]
pub struct CgDetrConfig {
    /// Width of the text features, and of the task embedding put behind them.
    pub d_text: usize,
    /// Width of the video features without the two endpoint columns.
    pub d_video: usize,
    /// Width of the head.
    pub d_model: usize,
    /// Width of the feed-forward layers.
    pub d_hidden: usize,
    /// Attention heads everywhere; divides `d_model`.
    #[config(default = 8)]
    pub heads: usize,
    /// Spans predicted per text.
    #[config(default = 10)]
    pub num_queries: usize,
    /// Dummy tokens before the text.
    #[config(default = 45)]
    pub num_dummies: usize,
    /// Learned prompts of the saliency token.
    #[config(default = 10)]
    pub total_prompts: usize,
    /// Prompts of these that one saliency token uses.
    #[config(default = 1)]
    pub num_prompts: usize,
    /// Layers of the text-to-video encoder.
    #[config(default = 2)]
    pub t2v_layers: usize,
    /// Layers of the video encoder.
    #[config(default = 3)]
    pub encoder_layers: usize,
    /// Layers of the span decoder.
    #[config(default = 3)]
    pub decoder_layers: usize,
    /// Layers that let the dummies read the text.
    #[config(default = 2)]
    pub dummy_layers: usize,
    /// Layers of the sentence encoder (training).
    #[config(default = 1)]
    pub sentence_layers: usize,
    /// Layers of the moment encoder (training).
    #[config(default = 1)]
    pub moment_layers: usize,
    /// Dropout inside: attention weights, hidden layers, residual branches.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Dropout of the input features.
    #[config(default = 0.5)]
    pub input_dropout: f64,
    /// Rows of the table of text positions. The published model carries the table unused.
    #[config(default = 100)]
    pub text_positions: usize,
    /// Reproduces a slip of the reference: the mask that hides padded words from padded clips is
    /// laid out head by head where the scores are sample by sample, so that in a batch some heads
    /// of one sample miss the words another sample lacks. The published model was trained with
    /// it. Alone in its batch a sample is not touched; without the slip it never is.
    #[config(default = false)]
    pub crossed_masks: bool,
}

impl CgDetrConfig {
    /// VideoChat-TPO: 256 wide, text of 4096 and video of 768 columns (published checkpoint).
    pub fn videochat_tpo() -> Self {
        Self::new(4096, 768, 256, 1024)
    }

    /// A head of the same build with one layer of each kind.
    pub fn mini(d_text: usize, d_video: usize) -> Self {
        Self::new(d_text, d_video, 32, 64)
            .with_heads(4)
            .with_num_dummies(4)
            .with_total_prompts(4)
            .with_t2v_layers(1)
            .with_encoder_layers(1)
            .with_decoder_layers(2)
            .with_dummy_layers(1)
            .with_text_positions(32)
    }

    /// Checks sizes and rates.
    ///
    /// # Errors
    /// [`HeadsError::Config`] with the first field that cannot work.
    pub fn validate(&self) -> Result<(), HeadsError> {
        for (what, value) in [
            ("d_text", self.d_text),
            ("d_video", self.d_video),
            ("d_model", self.d_model),
            ("d_hidden", self.d_hidden),
            ("heads", self.heads),
            ("num_queries", self.num_queries),
            ("num_dummies", self.num_dummies),
            ("t2v_layers", self.t2v_layers),
            ("decoder_layers", self.decoder_layers),
            ("text_positions", self.text_positions),
        ] {
            HeadsError::require(value > 0, what, "at least 1", value)?;
        }
        let expected = format!("a multiple of 4 and of heads ({})", self.heads);
        let even = self.d_model.is_multiple_of(self.heads) && self.d_model.is_multiple_of(4);
        HeadsError::require(even, "d_model", expected, self.d_model)?;
        let expected = format!("1 to total_prompts ({})", self.total_prompts);
        let known = (1..=self.total_prompts).contains(&self.num_prompts);
        HeadsError::require(known, "num_prompts", expected, self.num_prompts)?;
        for (what, value) in [
            ("dropout", self.dropout),
            ("input_dropout", self.input_dropout),
        ] {
            let holds = (0.0..1.0).contains(&value);
            HeadsError::require(holds, what, "at least 0 and below 1", value)?;
        }
        Ok(())
    }

    pub(super) fn layers(&self, init: WeightInit) -> LayerSizes {
        LayerSizes {
            d_model: self.d_model,
            d_hidden: self.d_hidden,
            heads: self.heads,
            dropout: self.dropout,
            init,
        }
    }

    /// Creates the model with random weights.
    ///
    /// # Errors
    /// [`HeadsError::Config`].
    pub fn init(&self, device: &Device) -> Result<CgDetr, HeadsError> {
        self.validate()?;
        Ok(CgDetr::new(self, device))
    }
}
