//! SAM 2 assembled.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, FloatDType, Tensor};
use tpo_core::nn::{Conv2d, Conv2dConfig, Linear, LinearConfig, Mlp, MlpConfig};
use tpo_vision::hiera::ImageEncoder;

use super::config::Sam2Config;
use super::mask_decoder::{MaskDecoder, MaskDecoderOutput};
use super::memory_attention::MemoryAttention;
use super::memory_encoder::MemoryEncoder;
use super::prompt_encoder::{PromptEmbedding, PromptEncoder};
use crate::HeadsError;

/// SAM 2 without state: parts of the network and the vectors a tracker needs.
#[derive(Module, Debug)]
pub struct Sam2 {
    /// Hiera and feature pyramid.
    pub image_encoder: ImageEncoder,
    /// Makes a mask prompt a quarter as large, for object pointers of given masks.
    pub mask_downsample: Conv2d,
    /// Conditions a frame on memories.
    pub memory_attention: MemoryAttention,
    /// Makes memories.
    pub memory_encoder: MemoryEncoder,
    /// Encodings of how long ago a memory is, `[num_maskmem, 1, 1, mem_dim]`; the last is for
    /// prompted frames.
    pub maskmem_tpos_enc: Param<Tensor<4>>,
    /// Added to the features of a frame without memories, `[1, 1, dim]`.
    pub no_mem_embed: Param<Tensor<3>>,
    /// Position encoding of a missing memory, `[1, 1, dim]`; not used by the published models.
    pub no_mem_pos_enc: Param<Tensor<3>>,
    /// Pointer of an object that is not visible, `[1, dim]`.
    pub no_obj_ptr: Param<Tensor<2>>,
    /// Added to the memory of a frame in which the object is not visible, `[1, mem_dim]`
    /// (SAM 2.1).
    pub no_obj_embed_spatial: Option<Param<Tensor<2>>>,
    /// Embeds prompts.
    pub sam_prompt_encoder: PromptEncoder,
    /// Predicts masks.
    pub sam_mask_decoder: MaskDecoder,
    /// From a mask token to an object pointer.
    pub obj_ptr_proj: Mlp,
    /// Projects the time encoding of object pointers (SAM 2.1).
    pub obj_ptr_tpos_proj: Option<Linear>,
    #[module(skip)]
    config: Sam2Config,
}

/// What the image encoder gives the decoder and the memory.
#[derive(Debug, Clone)]
pub struct Sam2Features {
    /// Features of stride 16, `[batch, rows, columns, dim]`.
    pub embedding: Tensor<4>,
    /// Features of strides 4 and 8 as the mask decoder adds them, `[batch, 4·rows, 4·columns,
    /// dim / 8]` and `[batch, 2·rows, 2·columns, dim / 4]`.
    pub high_res: [Tensor<4>; 2],
}

impl Sam2Features {
    /// The features with `change` made to every map.
    pub(in crate::mask) fn map(self, change: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self {
            embedding: change(self.embedding),
            high_res: self.high_res.map(change),
        }
    }
}

/// Where the mask of a memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskSource {
    /// A prompt on this frame; the mask is made binary if the configuration says so.
    Prompt,
    /// Tracking.
    Tracking,
}

impl Sam2Config {
    /// Creates the model. Values are drawn on first use.
    ///
    /// # Errors
    /// [`HeadsError::Config`] when [`validate`](Self::validate) finds a problem.
    pub fn init(&self, device: &Device) -> Result<Sam2, HeadsError> {
        self.validate()?;
        let dim = self.image_encoder.d_model;
        let memory = self.memory_encoder.out_dim;
        let small = Initializer::Normal {
            mean: 0.0,
            std: 0.02,
        };
        let tracking = &self.tracking;
        Ok(Sam2 {
            image_encoder: self
                .image_encoder
                .init(device)
                .map_err(tpo_core::CoreError::from)?,
            mask_downsample: Conv2dConfig::new(1, 1, 4).with_stride(4).init(device),
            memory_attention: self.memory_attention.init(device),
            memory_encoder: self.memory_encoder.init(device),
            maskmem_tpos_enc: small.init([self.num_maskmem, 1, 1, memory], device),
            no_mem_embed: small.init([1, 1, dim], device),
            no_mem_pos_enc: small.init([1, 1, dim], device),
            no_obj_ptr: small.init([1, dim], device),
            no_obj_embed_spatial: tracking
                .no_obj_embed_spatial
                .then(|| small.init([1, memory], device)),
            sam_prompt_encoder: self.prompt_encoder.init(device),
            sam_mask_decoder: self.mask_decoder.init(device),
            obj_ptr_proj: MlpConfig::new(vec![dim; 4]).init(device),
            obj_ptr_tpos_proj: (tracking.add_tpos_enc_to_obj_ptrs
                && tracking.proj_tpos_enc_in_obj_ptrs)
                .then(|| LinearConfig::new(dim, memory).init(device)),
            config: self.clone(),
        })
    }
}

impl Sam2 {
    /// The architecture.
    pub fn config(&self) -> &Sam2Config {
        &self.config
    }

    /// Encodes images `[batch, 3, image_size, image_size]`, normalised with the ImageNet
    /// statistics.
    ///
    /// # Errors
    /// [`HeadsError::Shape`] for another size.
    pub fn encode_image(&self, images: Tensor<4>) -> Result<Sam2Features, HeadsError> {
        let side = self.config.image_size;
        let [_, _, height, width] = images.dims();
        if [height, width] != [side, side] {
            return Err(HeadsError::Shape {
                place: "Sam2::encode_image",
                what: "images",
                expected: format!("[batch, 3, {side}, {side}]; resize them first"),
                found: images.dims().to_vec(),
            });
        }
        let maps = self
            .image_encoder
            .forward(images)
            .map_err(tpo_core::CoreError::from)?
            .maps;
        let [fine, coarse, embedding]: [Tensor<4>; 3] = maps.try_into().map_err(|_| {
            let scalp = self.config.image_encoder.scalp;
            let expected = "a pyramid of strides 4, 8 and 16";
            HeadsError::config("image_encoder.scalp", expected, scalp)
        })?;
        let decoder = &self.sam_mask_decoder;
        Ok(Sam2Features {
            embedding,
            high_res: [
                decoder.conv_s0.forward(fine),
                decoder.conv_s1.forward(coarse),
            ],
        })
    }

    /// The embedding of a frame without memories: with `no_mem_embed` added.
    pub fn without_memory(&self, embedding: Tensor<4>) -> Tensor<4> {
        let dtype = embedding.dtype();
        embedding + self.no_mem_embed.val().cast(dtype).unsqueeze()
    }

    /// Predicts masks from an image embedding (conditioned on memories or
    /// [`without_memory`](Self::without_memory)) and prompts.
    ///
    /// # Errors
    /// As [`MaskDecoder::forward`].
    pub fn decode(
        &self,
        embedding: Tensor<4>,
        high_res: &[Tensor<4>; 2],
        prompt: &PromptEmbedding,
    ) -> Result<MaskDecoderOutput, HeadsError> {
        let positions = self.sam_prompt_encoder.dense_encoding();
        self.sam_mask_decoder
            .forward(embedding, positions, prompt, high_res)
    }

    /// The masks SAM 2 uses: several if `multimask`, else one, which falls back to the best of
    /// several where it is unstable if the configuration says so.
    pub fn choose(&self, output: &MaskDecoderOutput, multimask: bool) -> MaskDecoderOutput {
        let tracking = &self.config.tracking;
        if multimask {
            let mut masks = output.multiple();
            if !tracking.use_multimask_token_for_obj_ptr {
                masks.tokens = output.single().tokens;
            }
            masks
        } else if tracking.dynamic_multimask_via_stability {
            output.stable(
                tracking.dynamic_multimask_stability_delta,
                tracking.dynamic_multimask_stability_thresh,
            )
        } else {
            output.single()
        }
    }

    /// Pointer to the object, from the token of its mask.
    ///
    /// # Shapes
    /// - `token` `[batch, dim]`, `object_score` `[batch, 1]`; output `[batch, dim]`
    pub fn object_pointer(&self, token: Tensor<2>, object_score: Tensor<2>) -> Tensor<2> {
        let pointer = self.obj_ptr_proj.forward(token);
        let visible = object_score
            .greater_scalar(0.0)
            .float()
            .cast(pointer.dtype());
        self.or_absent(pointer, visible)
    }

    /// The pointer where the object is visible, 1 in `visible`, and `no_obj_ptr` elsewhere.
    pub(in crate::mask) fn or_absent(&self, pointer: Tensor<2>, visible: Tensor<2>) -> Tensor<2> {
        let absent = self.no_obj_ptr.val().cast(pointer.dtype());
        pointer * visible.clone() + (visible * -1.0 + 1.0) * absent
    }

    /// Makes a memory of a frame, without positions.
    ///
    /// # Shapes
    /// - `embedding` `[batch or 1, rows, columns, dim]`, straight from the image encoder
    /// - `mask_logits` `[batch, 16·rows, 16·columns]`
    /// - `object_score` `[batch, 1]`, used by SAM 2.1 only
    /// - output `[batch, rows, columns, mem_dim]`
    ///
    /// # Errors
    /// As [`MemoryEncoder::forward`].
    pub fn encode_memory(
        &self,
        embedding: Tensor<4>,
        mask_logits: Tensor<3>,
        object_score: Tensor<2>,
        source: MaskSource,
    ) -> Result<Tensor<4>, HeadsError> {
        let tracking = &self.config.tracking;
        let logits = mask_logits.cast(FloatDType::F32);
        let binary = source == MaskSource::Prompt && tracking.binarize_mask_from_pts_for_mem_enc;
        let mask = if binary {
            logits.greater_scalar(0.0).float()
        } else {
            sigmoid(logits)
        };
        let mask = mask * tracking.sigmoid_scale_for_mem_enc + tracking.sigmoid_bias_for_mem_enc;
        let mut features = self.memory_encoder.forward(embedding, mask)?;
        let [batch, _, _, width] = features.dims();
        if let Some(absent) = &self.no_obj_embed_spatial {
            let visible = object_score.greater_scalar(0.0).float();
            let dtype = features.dtype();
            let extra = (visible * -1.0 + 1.0).cast(dtype) * absent.val().cast(dtype);
            features = features + extra.reshape([batch, 1, 1, width]);
        }
        Ok(features)
    }
}
