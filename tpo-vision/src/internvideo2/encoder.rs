//! The video tower.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use tpo_core::traits::VisionEncoder;

use super::attention_pool::AttentionPool;
use super::block::{INIT_STD, InternVideo2Block};
use super::config::InternVideo2Config;
use super::position::{TableGrid, sincos_3d};
use crate::drop_path::DropPathConfig;
use crate::error::{Result, VisionError, check_video};
use crate::umt::PatchEmbed;

/// The video tower of InternVideo2-CLIP: clips to one vector each. Paths of the parameters are the
/// checkpoint's keys without `vision_encoder.`.
#[derive(Module, Debug)]
pub struct InternVideo2 {
    /// Class token `[1, 1, dim]`.
    pub cls_token: Param<Tensor<3>>,
    /// Joint position table `[1, 1 + steps·grid², dim]`, the class token's row first.
    pub pos_embed: Param<Tensor<3>>,
    /// Patch embedding.
    pub patch_embed: PatchEmbed,
    /// Blocks. No norm follows the last.
    pub blocks: Vec<InternVideo2Block>,
    /// Attention pooling.
    pub clip_projector: AttentionPool,
    #[module(skip)]
    config: InternVideo2Config,
}

/// A parameter whose values are computed when it is first used.
fn table(
    shape: [usize; 3],
    device: &Device,
    values: impl Fn() -> Vec<f32> + Send + Sync + 'static,
) -> Param<Tensor<3>> {
    Param::uninitialized(
        burn::module::ParamId::new(),
        move |device, require_grad| {
            let tensor = Tensor::from_data(TensorData::new(values(), shape), device);
            if require_grad {
                tensor.require_grad()
            } else {
                tensor
            }
        },
        device.clone(),
        true,
        shape.into(),
    )
}

impl InternVideo2Config {
    /// Creates the tower with the reference's initialisation: linear weights normal with
    /// deviation 0.02, position table of sines. Values are drawn on first use, so a tower that is
    /// loaded right away never draws them.
    ///
    /// # Errors
    /// [`VisionError::Config`] when [`validate`](Self::validate) finds problems.
    pub fn init(&self, device: &Device) -> Result<InternVideo2> {
        self.validate()?;
        let dim = self.embed_dim;
        let grid = TableGrid {
            steps: self.steps(),
            side: self.grid(),
        };
        let normal = Initializer::Normal {
            mean: 0.0,
            std: INIT_STD,
        };
        Ok(InternVideo2 {
            cls_token: normal.init([1, 1, dim], device),
            pos_embed: table([1, grid.rows(), dim], device, move || sincos_3d(grid, dim)),
            patch_embed: PatchEmbed::new(dim, [self.tubelet_size, self.patch_size], None, device),
            blocks: DropPathConfig::linear_decay(self.drop_path_rate, self.depth)
                .into_iter()
                .map(|drop_path| InternVideo2Block::new(self, drop_path, device))
                .collect(),
            clip_projector: AttentionPool::new(self, device),
            config: self.clone(),
        })
    }
}

impl InternVideo2 {
    /// The architecture.
    pub fn config(&self) -> &InternVideo2Config {
        &self.config
    }

    /// Dtype of the parameters, to which frames are cast.
    pub fn dtype(&self) -> DType {
        self.patch_embed.proj.bias.val().dtype()
    }

    /// One feature per clip, **not** normalised, as the reference feeds it to the temporal head.
    ///
    /// A clip has the configured number of frames, or one: an image.
    ///
    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`, normalised with the ImageNet statistics
    /// - output `[batch, clip_embed_dim]`
    ///
    /// # Errors
    /// [`VisionError::Frames`].
    pub fn forward(&self, frames: Tensor<5>) -> Result<Tensor<2>> {
        Ok(self.pool(self.tokens(frames)?))
    }

    /// Tokens after the last block, the class token first.
    ///
    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`
    /// - output `[batch, 1 + steps·grid², dim]`
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn tokens(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let blocks = self.blocks.iter();
        Ok(blocks.fold(self.input(frames)?, |x, block| block.forward(x)))
    }

    /// Pools tokens `[batch, tokens, dim]` to features `[batch, clip_embed_dim]`.
    pub fn pool(&self, tokens: Tensor<3>) -> Tensor<2> {
        self.clip_projector.forward(tokens).squeeze_dim(1)
    }

    /// Positions of a clip `[1, tokens, dim]`, or of an image: there the patches' rows are the
    /// mean over time.
    pub fn position_table(&self, image: bool) -> Tensor<3> {
        let joint = self.pos_embed.val();
        if !image {
            return joint;
        }
        let dim = self.config.embed_dim;
        let (steps, cells) = (self.config.steps(), self.config.grid().pow(2));
        let class = joint.clone().narrow(1, 0, 1);
        let rows = joint.narrow(1, 1, steps * cells);
        let dtype = rows.dtype();
        let rows = rows.cast(FloatDType::F32).reshape([1, steps, cells * dim]);
        let patches = rows.mean_dim(1).reshape([1, cells, dim]).cast(dtype);
        Tensor::cat(vec![class, patches], 1)
    }

    /// What the first block reads, `[batch, tokens, dim]`: the class token, then the patches, with
    /// their positions.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn input(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let image = self.check(frames.dims())?;
        let patches = self.patch_embed.forward(frames.cast(self.dtype()));
        let [batch, _, dim] = patches.dims();
        let class = self.cls_token.val().expand([batch, 1, dim]);
        Ok(Tensor::cat(vec![class, patches], 1) + self.position_table(image))
    }

    fn check(&self, found: [usize; 5]) -> Result<bool> {
        let place = "InternVideo2";
        let [_, frames, _, height, width] = found;
        check_video(place, found)?;
        let InternVideo2Config {
            num_frames,
            img_size,
            tubelet_size,
            ..
        } = self.config;
        let image = frames == 1 && tubelet_size == 1 && num_frames != 1;
        if !image && frames != num_frames {
            return Err(VisionError::frames(
                place,
                format_args!("a clip has {num_frames} frames, or one for an image; found {frames}"),
            ));
        }
        if [height, width] != [img_size; 2] {
            return Err(VisionError::frames(
                place,
                format_args!(
                    "frames must be {img_size}x{img_size} pixels, found {height}x{width}; resize \
                     them, or load the checkpoint into a config of that size"
                ),
            ));
        }
        Ok(image)
    }
}

/// The tokens of the last block, for a connector that reads them all.
impl VisionEncoder for InternVideo2 {
    fn encode(&self, frames: Tensor<5>) -> tpo_core::Result<Tensor<3>> {
        Ok(self.tokens(frames)?)
    }

    fn dim(&self) -> usize {
        self.config.embed_dim
    }
}
