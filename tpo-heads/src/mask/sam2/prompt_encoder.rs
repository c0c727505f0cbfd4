//! Points, boxes and masks as embeddings.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::geometry::BoxPixels;
use tpo_core::nn::{Conv2d, Conv2dConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use tpo_core::ops::{self, activation_dtype, floats, indices};

use super::config::{PointTableLayout, PromptEncoderConfig};
use crate::HeadsError;

/// Added to the variance by norms of maps (reference implementation).
pub(super) const MAP_NORM_EPS: f64 = 1e-6;

/// What a point says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointLabel {
    /// Not a point; fills up lists of different lengths.
    Padding,
    /// Background.
    Negative,
    /// On the object.
    Positive,
    /// Upper left corner of a box.
    TopLeft,
    /// Lower right corner of a box.
    BottomRight,
}

impl PointLabel {
    /// Row in the table of labels, where padding comes last.
    fn row(self) -> usize {
        match self {
            Self::Negative => 0,
            Self::Positive => 1,
            Self::TopLeft => 2,
            Self::BottomRight => 3,
            Self::Padding => 4,
        }
    }
}

/// A point in pixels of the model's input image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PointPrompt {
    /// Column.
    pub x: f32,
    /// Row.
    pub y: f32,
    /// What it says.
    pub label: PointLabel,
}

impl PointPrompt {
    /// A point.
    pub fn new(x: f32, y: f32, label: PointLabel) -> Self {
        Self { x, y, label }
    }

    /// Not a point.
    pub fn padding() -> Self {
        Self::new(0.0, 0.0, PointLabel::Padding)
    }

    /// The corners of a box, as SAM 2's video predictor gives them.
    pub fn corners(b: &BoxPixels) -> [Self; 2] {
        [
            Self::new(b.x0, b.y0, PointLabel::TopLeft),
            Self::new(b.x1, b.y1, PointLabel::BottomRight),
        ]
    }
}

/// Embedded prompts.
#[derive(Debug, Clone)]
pub struct PromptEmbedding {
    /// `[batch, tokens, dim]`.
    pub sparse: Tensor<3>,
    /// `[batch, rows, columns, dim]`, added to the image embedding.
    pub dense: Tensor<4>,
}

/// Random Fourier features of positions; the frequencies are fixed, not learned.
#[derive(Module, Debug)]
pub struct RandomFourier {
    /// Frequencies `[2, dim / 2]` of x and y.
    pub positional_encoding_gaussian_matrix: Param<Tensor<2>>,
}

impl RandomFourier {
    fn new(dim: usize, device: &Device) -> Self {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 1.0,
        };
        let matrix: Param<Tensor<2>> = normal.init([2, dim / 2], device);
        Self {
            positional_encoding_gaussian_matrix: matrix.set_require_grad(false),
        }
    }

    /// Positions `[batch, n, 2]` (x, y, both 0 to 1 within the image) to `[batch, n, dim]` in f32.
    pub fn encode(&self, positions: Tensor<3>) -> Tensor<3> {
        let matrix = self
            .positional_encoding_gaussian_matrix
            .val()
            .detach()
            .cast(FloatDType::F32);
        let centred = positions.cast(FloatDType::F32) * 2.0 - 1.0;
        let angles = centred.matmul(matrix.unsqueeze()) * (2.0 * std::f64::consts::PI);
        Tensor::cat(vec![angles.clone().sin(), angles.cos()], 2)
    }

    /// Encoding of the centres of the pixels of a grid, `[1, rows, columns, dim]` in f32.
    pub fn grid(&self, [rows, columns]: [usize; 2]) -> Tensor<4> {
        let device = self.positional_encoding_gaussian_matrix.val().device();
        let mut positions = Vec::with_capacity(2 * rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                positions.push((column as f32 + 0.5) / columns as f32);
                positions.push((row as f32 + 0.5) / rows as f32);
            }
        }
        let encoded = self.encode(floats(positions, [1, rows * columns, 2], &device));
        let dim = encoded.dims()[2];
        encoded.reshape([1, rows, columns, dim])
    }
}

/// The four learned vectors of point labels, in the layout of the checkpoint.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum PointTable {
    /// Four tables of one row (SAM 2): negative, positive, top left, bottom right.
    Separate(Vec<Embedding>),
    /// One table of four rows (Hugging Face).
    Stacked(Embedding),
}

impl PointTable {
    /// `[4, dim]`.
    fn rows(&self) -> Tensor<2> {
        match self {
            Self::Separate(rows) => {
                Tensor::cat(rows.iter().map(|row| row.weight.val()).collect(), 0)
            }
            Self::Stacked(table) => table.weight.val(),
        }
    }
}

/// Two convolutions that quarter a mask's sides, and one that widens it.
#[derive(Module, Debug)]
pub struct MaskDownscaling {
    /// Kernel 2, stride 2.
    pub conv1: Conv2d,
    /// After `conv1`.
    pub norm1: LayerNorm,
    /// Kernel 2, stride 2.
    pub conv2: Conv2d,
    /// After `conv2`.
    pub norm2: LayerNorm,
    /// Kernel 1.
    pub conv3: Conv2d,
}

impl MaskDownscaling {
    fn new(channels: usize, dim: usize, device: &Device) -> Self {
        let halving = |from, to| Conv2dConfig::new(from, to, 2).with_stride(2).init(device);
        let norm = |width| {
            LayerNormConfig::new(width)
                .with_eps(MAP_NORM_EPS)
                .init(device)
        };
        let first = (channels / 4).max(1);
        Self {
            conv1: halving(1, first),
            norm1: norm(first),
            conv2: halving(first, channels),
            norm2: norm(channels),
            conv3: Conv2dConfig::new(channels, dim, 1).init(device),
        }
    }

    /// `[batch, 4·rows, 4·columns, 1]` to `[batch, rows, columns, dim]`.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = ops::gelu(self.norm1.forward(self.conv1.forward(x)));
        let x = ops::gelu(self.norm2.forward(self.conv2.forward(x)));
        self.conv3.forward(x)
    }
}

/// The prompt encoder.
#[derive(Module, Debug)]
pub struct PromptEncoder {
    /// Position encoding.
    pub pe_layer: RandomFourier,
    /// Vectors of point labels.
    pub point_embeddings: PointTable,
    /// Vector of padding.
    pub not_a_point_embed: Embedding,
    /// Mask prompts.
    pub mask_downscaling: MaskDownscaling,
    /// Stands for a mask where none is given.
    pub no_mask_embed: Embedding,
    #[module(skip)]
    config: PromptEncoderConfig,
}

impl PromptEncoderConfig {
    /// Creates the encoder with the reference's initialisation. Values are drawn on first use.
    pub fn init(&self, device: &Device) -> PromptEncoder {
        let table = |rows| {
            EmbeddingConfig::new(rows, self.dim)
                .with_std(1.0)
                .init(device)
        };
        PromptEncoder {
            pe_layer: RandomFourier::new(self.dim, device),
            point_embeddings: match self.point_table {
                PointTableLayout::Separate => {
                    PointTable::Separate((0..4).map(|_| table(1)).collect())
                }
                PointTableLayout::Stacked => PointTable::Stacked(table(4)),
            },
            not_a_point_embed: table(1),
            mask_downscaling: MaskDownscaling::new(self.mask_in_chans, self.dim, device),
            no_mask_embed: table(1),
            config: self.clone(),
        }
    }
}

impl PromptEncoder {
    /// The architecture.
    pub fn config(&self) -> &PromptEncoderConfig {
        &self.config
    }

    /// Encoding of the pixels of the image embedding, `[1, rows, columns, dim]` in f32.
    pub fn dense_encoding(&self) -> Tensor<4> {
        self.pe_layer.grid(self.config.grid())
    }

    /// Embeds points, one list per item.
    ///
    /// Lists of different lengths are filled up with padding, and every list gets one more padding
    /// point, which the reference adds whenever no separate box is given.
    ///
    /// # Shapes
    /// - output `[batch, longest + 1, dim]`
    ///
    /// # Errors
    /// [`HeadsError::NotFinite`] for a coordinate that is not a number.
    pub fn embed_points(&self, points: &[Vec<PointPrompt>]) -> Result<Tensor<3>, HeadsError> {
        let length = points.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let padding = PointPrompt::padding();
        let all: Vec<PointPrompt> = points
            .iter()
            .flat_map(|list| {
                list.iter()
                    .copied()
                    .chain(std::iter::repeat(padding))
                    .take(length)
            })
            .collect();
        let bad = |p: &&PointPrompt| !(p.x.is_finite() && p.y.is_finite());
        let count = all.iter().filter(bad).count();
        if let Some(first) = all.iter().position(|p| bad(&p)) {
            return Err(HeadsError::NotFinite {
                place: "PromptEncoder::embed_points",
                what: "points".into(),
                count,
                first,
            });
        }
        let batch = points.len();
        let rows = self.point_embeddings.rows();
        let (device, dtype, dim) = (rows.device(), activation_dtype(&rows), self.config.dim);
        if batch == 0 {
            return Ok(Tensor::zeros([batch, length, dim], (&device, dtype)));
        }
        let [height, width] = self.config.image_size.map(|side| side as f32);
        // Half a pixel moves a coordinate to the pixel's centre.
        let positions: Vec<f32> = all
            .iter()
            .flat_map(|p| [(p.x + 0.5) / width, (p.y + 0.5) / height])
            .collect();
        let is_point: Vec<f32> = all
            .iter()
            .map(|p| f32::from(u8::from(p.label != PointLabel::Padding)))
            .collect();
        let positions = floats(positions, [batch, length, 2], &device);
        let is_point = floats(is_point, [batch, length, 1], &device);
        let labels = indices(all.iter().map(|p| p.label.row()), &device);
        let places = (self.pe_layer.encode(positions) * is_point).cast(dtype);
        let table = vec![rows, self.not_a_point_embed.weight.val()];
        let table = Tensor::cat(table, 0).cast(dtype);
        Ok(places + table.select(0, labels).reshape([batch, length, dim]))
    }

    /// Embeds mask logits `[batch, 4·rows, 4·columns]` to `[batch, rows, columns, dim]`.
    ///
    /// # Errors
    /// [`HeadsError::Shape`] for another size.
    pub fn embed_masks(&self, masks: Tensor<3>) -> Result<Tensor<4>, HeadsError> {
        let [batch, height, width] = masks.dims();
        let [rows, columns] = self.config.grid();
        if [height, width] != [4 * rows, 4 * columns] {
            return Err(HeadsError::Shape {
                place: "PromptEncoder::embed_masks",
                what: "mask logits",
                expected: format!("[batch, {}, {}]", 4 * rows, 4 * columns),
                found: vec![batch, height, width],
            });
        }
        let dtype = activation_dtype(&self.no_mask_embed.weight.val());
        Ok(self
            .mask_downscaling
            .forward(masks.cast(dtype).reshape([batch, height, width, 1])))
    }

    /// What stands for a mask where none is given, `[batch, rows, columns, dim]`.
    pub fn no_mask(&self, batch: usize) -> Tensor<4> {
        let [rows, columns] = self.config.grid();
        let dim = self.config.dim;
        self.no_mask_embed
            .weight
            .val()
            .reshape([1, 1, 1, dim])
            .expand([batch, rows, columns, dim])
    }
}
