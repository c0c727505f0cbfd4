//! The UMT encoder.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::ops::activation_dtype;

use super::UmtConfig;
use super::block::UmtBlock;
use super::config::CHANNELS;
use super::patch_embed::PatchEmbed;
use super::position::{ClipGrid, PositionTables, axes_table, clip_table};
use crate::drop_path::DropPathConfig;
use crate::error::{Result, VisionError, check_patches, check_video};

/// The video transformer without the layer norm that follows it, see
/// [`VideoEncoder`](super::VideoEncoder).
#[derive(Module, Debug)]
pub struct Umt {
    /// Tubelet embedding.
    pub patch_embed: PatchEmbed,
    /// The blocks up to the one whose output is returned.
    pub blocks: Vec<UmtBlock>,
    #[module(skip)]
    config: UmtConfig,
    #[module(skip)]
    positions: PositionTables,
}

impl UmtConfig {
    /// Creates the encoder with the reference's initialisation (linear Xavier uniform, biases
    /// zero, norms one). Values are drawn on first use.
    ///
    /// # Errors
    /// [`VisionError::Config`] when [`validate`](Self::validate) finds problems.
    pub fn init(&self, device: &Device) -> Result<Umt> {
        self.validate()?;
        let tubelet = [self.tubelet_size, self.patch_size];
        let patch_embed = PatchEmbed::new(self.encoder_embed_dim, tubelet, self.stem, device);
        let blocks = DropPathConfig::linear_decay(self.drop_path_rate, self.encoder_depth)
            .into_iter()
            .take(self.blocks())
            .map(|drop_path| UmtBlock::new(self, drop_path, device))
            .collect();
        Ok(Umt {
            patch_embed,
            blocks,
            config: self.clone(),
            positions: PositionTables::default(),
        })
    }
}

impl Umt {
    /// The architecture.
    pub fn config(&self) -> &UmtConfig {
        &self.config
    }

    /// Dtype of the parameters, and of what [`VideoEncoder`](super::VideoEncoder) returns.
    pub fn dtype(&self) -> DType {
        self.patch_embed.proj.bias.val().dtype()
    }

    /// Encodes clips. One frame is an image and takes the image position table.
    ///
    /// Numbers of frames and frame sizes other than the configured ones are accepted as long as
    /// they cut into whole tubelets and patches; the position table is interpolated as the
    /// reference does for an encoder configured for that size.
    ///
    /// # Shapes
    /// - frames `[batch, frames, 3, height, width]`, normalised with the ImageNet statistics
    /// - output `[batch, steps · rows · columns, dim]`, time slowest, then patch rows
    ///
    /// # Errors
    /// [`VisionError::Frames`].
    pub fn forward(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let mut x = self.tokens(frames)?;
        for block in &self.blocks {
            x = block.forward(x);
        }
        Ok(x)
    }

    /// [`forward`](Self::forward) with every block a checkpointed segment of `tape`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_checkpointed<'m>(
        &'m self,
        frames: Tensor<5>,
        tape: &mut Tape<'m>,
    ) -> Result<Tensor<3>> {
        let mut x = self.tokens(frames)?;
        for block in &self.blocks {
            x = tape.segment(x, move |x| block.forward(x));
        }
        Ok(x)
    }

    /// Patches with their positions, `[batch, tokens, dim]`.
    fn tokens(&self, frames: Tensor<5>) -> Result<Tensor<3>> {
        let grid = self.check(frames.dims())?;
        let dtype = activation_dtype(&self.patch_embed.proj.bias.val());
        let tokens = self.patch_embed.forward(frames.cast(dtype));
        let positions = self.table(grid, &tokens.device(), dtype);
        Ok(tokens + positions)
    }

    /// The position table added to the tokens of a clip, `[1, tokens, dim]` in f32, without
    /// autodiff.
    ///
    /// # Errors
    /// As [`forward`](Self::forward) for a clip of this size.
    pub fn position_table(
        &self,
        frames: usize,
        height: usize,
        width: usize,
        device: &Device,
    ) -> Result<Tensor<3>> {
        let grid = self.check([1, frames, CHANNELS, height, width])?;
        Ok(self.table(grid, device, DType::F32))
    }

    /// Checks the shape of a clip and gives its grid of tokens.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn check(&self, shape: [usize; 5]) -> Result<ClipGrid> {
        const PLACE: &str = "video encoder";
        let [_, frames, _, height, width] = shape;
        let UmtConfig {
            patch_size: patch,
            tubelet_size: tubelet,
            ..
        } = self.config;
        check_video(PLACE, shape)?;
        check_patches(PLACE, [height, width], patch)?;
        if !frames.is_multiple_of(tubelet) {
            return Err(VisionError::frames(
                PLACE,
                format_args!(
                    "{frames} frames cannot be cut into tubelets of {tubelet}; sample a multiple \
                     of {tubelet}"
                ),
            ));
        }
        Ok(ClipGrid::new(frames, height, width, tubelet, patch))
    }

    fn table(&self, grid: ClipGrid, device: &Device, dtype: DType) -> Tensor<3> {
        let dim = self.config.encoder_embed_dim;
        self.positions.get(grid, dim, device, dtype, || {
            if self.config.axis_positions {
                axes_table(grid, dim)
            } else {
                clip_table(grid, dim, self.config.ckpt_num_frame)
            }
        })
    }
}
