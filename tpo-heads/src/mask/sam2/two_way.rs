//! Attention of prompt tokens and image pixels to each other.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tpo_core::nn::{LayerNorm, LayerNormConfig, Mlp, MlpConfig};

use super::attention::Attention;
use super::config::MaskDecoderConfig;

/// One round: tokens among themselves, tokens to the image, an MLP, the image to the tokens, each
/// followed by a layer norm.
#[derive(Module, Debug)]
pub struct TwoWayBlock {
    /// Tokens to tokens.
    pub self_attn: Attention,
    /// After the self-attention.
    pub norm1: LayerNorm,
    /// Tokens to the image.
    pub cross_attn_token_to_image: Attention,
    /// After the attention to the image.
    pub norm2: LayerNorm,
    /// MLP with ReLU.
    pub mlp: Mlp,
    /// After the MLP.
    pub norm3: LayerNorm,
    /// After the image's attention.
    pub norm4: LayerNorm,
    /// The image to the tokens.
    pub cross_attn_image_to_token: Attention,
    /// The first round has no residual and no positions in its self-attention.
    first: bool,
}

/// The rounds, and a last attention of the tokens to the image.
#[derive(Module, Debug)]
pub struct TwoWayTransformer {
    /// The rounds.
    pub layers: Vec<TwoWayBlock>,
    /// Tokens to the image.
    pub final_attn_token_to_image: Attention,
    /// After the last attention.
    pub norm_final_attn: LayerNorm,
}

impl TwoWayBlock {
    fn new(config: &MaskDecoderConfig, first: bool, device: &Device) -> Self {
        let dim = config.dim;
        let inner = dim / config.attention_downsample_rate;
        let attention = |inner| Attention::new(dim, dim, inner, config.num_heads, device);
        let norm = || LayerNormConfig::new(dim).init(device);
        Self {
            self_attn: attention(dim),
            norm1: norm(),
            cross_attn_token_to_image: attention(inner),
            norm2: norm(),
            mlp: MlpConfig::new(vec![dim, config.mlp_dim, dim]).init(device),
            norm3: norm(),
            norm4: norm(),
            cross_attn_image_to_token: attention(inner),
            first,
        }
    }

    fn forward(
        &self,
        tokens: Tensor<3>,
        pixels: Tensor<3>,
        token_positions: &Tensor<3>,
        pixel_positions: &Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let tokens = if self.first {
            self.self_attn
                .forward(tokens.clone(), tokens.clone(), tokens)
        } else {
            let placed = tokens.clone() + token_positions.clone();
            let out = self
                .self_attn
                .forward(placed.clone(), placed, tokens.clone());
            tokens + out
        };
        let tokens = self.norm1.forward(tokens);
        let keys = pixels.clone() + pixel_positions.clone();
        let out = self.cross_attn_token_to_image.forward(
            tokens.clone() + token_positions.clone(),
            keys.clone(),
            pixels.clone(),
        );
        let tokens = self.norm2.forward(tokens + out);
        let tokens = self
            .norm3
            .forward(tokens.clone() + self.mlp.forward(tokens));
        let out = self.cross_attn_image_to_token.forward(
            keys,
            tokens.clone() + token_positions.clone(),
            tokens.clone(),
        );
        (tokens, self.norm4.forward(pixels + out))
    }
}

impl TwoWayTransformer {
    pub(super) fn new(config: &MaskDecoderConfig, device: &Device) -> Self {
        let inner = config.dim / config.attention_downsample_rate;
        Self {
            layers: (0..config.depth)
                .map(|i| TwoWayBlock::new(config, i == 0, device))
                .collect(),
            final_attn_token_to_image: Attention::new(
                config.dim,
                config.dim,
                inner,
                config.num_heads,
                device,
            ),
            norm_final_attn: LayerNormConfig::new(config.dim).init(device),
        }
    }

    /// # Shapes
    /// - `pixels` and `positions` `[batch, pixels, dim]`, `tokens` `[batch, tokens, dim]`
    /// - output: tokens and pixels, shapes unchanged
    pub fn forward(
        &self,
        pixels: Tensor<3>,
        positions: Tensor<3>,
        tokens: Tensor<3>,
    ) -> (Tensor<3>, Tensor<3>) {
        let token_positions = tokens.clone();
        let (mut tokens, mut pixels) = (tokens, pixels);
        for layer in &self.layers {
            (tokens, pixels) = layer.forward(tokens, pixels, &token_positions, &positions);
        }
        let out = self.final_attn_token_to_image.forward(
            tokens.clone() + token_positions,
            pixels.clone() + positions,
            pixels.clone(),
        );
        (self.norm_final_attn.forward(tokens + out), pixels)
    }
}
