//! One frame through the model: memory attention, decoder, memory encoder.

use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use ndarray::Array2;
use tpo_core::ops::{Resize, activation_dtype, floats};

use super::bank::Selection;
use super::components::fill_holes;
use crate::HeadsError;
use crate::mask::sam2::{
    AxialRope, MaskDecoderOutput, MaskSource, MemoryInput, PointPrompt, PromptEmbedding, Sam2,
    Sam2Features, TrackingConfig,
};

/// Mask logit and, in place of a pointer's score, of what is not there (reference
/// implementation).
const ABSENT: f64 = -1024.0;
/// A given mask as logits is 20 times the mask minus 10 (reference implementation).
const GIVEN: (f64, f64) = (20.0, -10.0);
/// Earlier logits are confined to this before they are a prompt (reference implementation).
const EARLIER: f32 = 32.0;
/// Base of the wavelengths of the time encoding of pointers (reference implementation).
const POINTER_TEMPERATURE: f64 = 10_000.0;

/// Tensors that only depend on the architecture.
#[derive(Debug, Clone)]
pub(super) struct Constants {
    /// Sine encoding of the pixels `[1, pixels, dim]`.
    positions: Tensor<3>,
    /// The same for memories `[1, pixels, memory width]`, made with the first memory.
    memory_positions: Tensor<3>,
    rope: AxialRope,
    /// Low-resolution masks to the model's input size, and back with antialiasing.
    enlarge: Resize,
    reduce: Resize,
    pub(super) image_size: usize,
    grid: [usize; 2],
    dim: usize,
    memory_dim: usize,
    pub(super) device: Device,
    pub(super) dtype: DType,
}

/// What the decoder says about `n` objects, on the graph if the model is.
pub(super) struct Decoded {
    /// `[n, low side, low side]` in f32, holes not filled.
    pub(super) low_res: Tensor<3>,
    /// `[n, dim]`.
    pub(super) pointer: Tensor<2>,
    /// `[n, 1]`.
    pub(super) score: Tensor<2>,
}

impl Decoded {
    /// The same without a graph.
    pub(super) fn inner(&self) -> Self {
        Self {
            low_res: self.low_res.clone().inner(),
            pointer: self.pointer.clone().inner(),
            score: self.score.clone().inner(),
        }
    }

    /// Several one after the other; there is at least one.
    pub(super) fn cat(parts: &[Self]) -> Self {
        let column =
            |part: fn(&Self) -> Tensor<2>| Tensor::cat(parts.iter().map(part).collect(), 0);
        Self {
            low_res: Tensor::cat(parts.iter().map(|d| d.low_res.clone()).collect(), 0),
            pointer: column(|d| d.pointer.clone()),
            score: column(|d| d.score.clone()),
        }
    }
}

/// An object on a frame, as it is kept.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct FrameOutput {
    /// Low-resolution logits, holes filled.
    pub low_res: Arc<Array2<f32>>,
    /// `[1, dim]`.
    pub pointer: Tensor<2>,
    /// Object score.
    pub score: f32,
    /// `[1, pixels, memory width]`; absent until it was made, and when it was forgotten.
    pub memory: Option<Tensor<3>>,
    /// A user corrected this frame, so it is not tracked again.
    pub(super) corrected: bool,
}

impl FrameOutput {
    /// Bytes of its tensors and map.
    pub(super) fn bytes(&self) -> usize {
        let of = |elements: usize, dtype: DType| elements * dtype.size();
        let memory = self.memory.as_ref();
        4 * self.low_res.len()
            + of(self.pointer.shape().num_elements(), self.pointer.dtype())
            + memory.map_or(0, |m| of(m.shape().num_elements(), m.dtype()))
    }
}

impl Constants {
    pub(super) fn new(model: &Sam2) -> Result<Self, HeadsError> {
        let config = model.config();
        let what = "tracking.directly_add_no_mem_embed";
        let added = config.tracking.directly_add_no_mem_embed;
        HeadsError::require(added, what, "true, as in all published models", added)?;
        let embed = model.no_mem_embed.val();
        let dtype = activation_dtype(&embed);
        let device = embed.inner().device();
        let grid = config.prompt_encoder.grid();
        let (dim, memory_dim) = (config.image_encoder.d_model, config.memory_encoder.out_dim);
        let pixels = grid[0] * grid[1];
        let low_side = 4 * grid[0];
        let low = [low_side; 2];
        let full = [config.image_size; 2];
        let sine = |width: usize| {
            tpo_vision::hiera::sine_encoding(grid[0], grid[1], width, &device)
                .reshape([1, pixels, width])
        };
        Ok(Self {
            positions: sine(dim),
            memory_positions: sine(memory_dim),
            rope: model.memory_attention.rope(grid, &device),
            enlarge: Resize::new(low, full, false, &device),
            reduce: Resize::new(full, low, true, &device),
            image_size: config.image_size,
            grid,
            dim,
            memory_dim,
            device,
            dtype,
        })
    }

    fn pixels(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Low-resolution logits `[n, low side, low side]` at the model's input size.
    fn full(&self, low_res: Tensor<3>) -> Tensor<3> {
        self.enlarge.apply(low_res.cast(FloatDType::F32))
    }

    /// A kept map as a tensor `[1, low side, low side]`.
    pub(super) fn tensor(&self, map: &Array2<f32>) -> Tensor<3> {
        let (h, w) = map.dim();
        floats(map.iter().copied().collect(), [1, h, w], &self.device)
    }
}

/// Points a box stands for when SAM 2 decides whether the prompt is ambiguous.
const BOX_POINTS: usize = 2;

/// Prompts of one kind for one or more objects of a frame.
#[derive(Debug, Clone)]
pub(in crate::mask) enum Prompts {
    /// Equally many points for every object, in pixels of the model's input; the first two may be
    /// the corners of a box.
    Points(Vec<Vec<PointPrompt>>),
    /// Masks `[n, image_size, image_size]` of zeros and ones.
    Masks(Tensor<3>),
    /// Tokens `[n, tokens, dim]` in place of those of a box.
    Tokens(Tensor<3>),
}

impl Prompts {
    pub(super) fn objects(&self) -> usize {
        match self {
            Self::Points(points) => points.len(),
            Self::Masks(masks) => masks.dims()[0],
            Self::Tokens(tokens) => tokens.dims()[0],
        }
    }

    /// The number of points of each prompt, and what is put before the decoder: beside points and
    /// tokens an earlier mask of the object, confined, or nothing.
    pub(super) fn embed(
        self,
        model: &Sam2,
        constants: &Constants,
        earlier: Option<&Array2<f32>>,
    ) -> Result<(usize, PromptEmbedding), HeadsError> {
        let (encoder, n) = (&model.sam_prompt_encoder, self.objects());
        let dense = || match earlier {
            None => Ok(encoder.no_mask(n)),
            Some(map) => encoder.embed_masks(constants.tensor(map).clamp(-EARLIER, EARLIER)),
        };
        let (count, sparse, dense) = match self {
            Self::Points(points) => {
                let count = points.first().map_or(0, Vec::len);
                (count, encoder.embed_points(&points)?, dense()?)
            }
            Self::Tokens(tokens) => (BOX_POINTS, tokens, dense()?),
            // For models whose given masks are not the output itself.
            Self::Masks(masks) => {
                let dense = encoder.embed_masks(constants.reduce.apply(masks))?;
                (0, no_points(model, n)?, dense)
            }
        };
        Ok((count, PromptEmbedding { sparse, dense }))
    }
}

/// Embeds a prompt without points: two padding points, as the reference has them.
pub(super) fn no_points(model: &Sam2, objects: usize) -> Result<Tensor<3>, HeadsError> {
    let padding = vec![vec![PointPrompt::padding()]; objects];
    model.sam_prompt_encoder.embed_points(&padding)
}

/// Whether a prompt of `points` points gets several masks. `fresh` unless the frame was tracked.
pub(super) fn multimask(tracking: &TrackingConfig, points: usize, fresh: bool) -> bool {
    let range = tracking.multimask_min_pt_num..=tracking.multimask_max_pt_num;
    tracking.multimask_output_in_sam
        && (fresh || tracking.multimask_output_for_tracking)
        && range.contains(&points)
}

/// Runs the decoder on features that are conditioned on memories, or have `no_mem_embed`, and
/// picks a mask per object.
pub(super) fn decode(
    model: &Sam2,
    embedding: Tensor<4>,
    features: &Sam2Features,
    prompt: &PromptEmbedding,
    multimask: bool,
) -> Result<Decoded, HeadsError> {
    let output = model.decode(embedding, &features.high_res, prompt)?;
    Ok(settle(model, &output, multimask))
}

/// Picks a mask per object; none where the object is not visible.
pub(super) fn settle(model: &Sam2, output: &MaskDecoderOutput, multimask: bool) -> Decoded {
    let chosen = model.choose(output, multimask);
    let chosen = if multimask { chosen.best() } else { chosen };
    let [n, _, h, w] = chosen.masks.dims();
    let low_res = chosen.masks.reshape([n, h, w]).cast(FloatDType::F32);
    let absent = chosen.object_score.clone().lower_equal_scalar(0.0);
    let absent = absent.reshape([n, 1, 1]).expand([n, h, w]);
    let low_res = low_res.mask_fill(absent, ABSENT);
    let [_, tokens, dim] = chosen.tokens.dims();
    let token = chosen.tokens.narrow(1, 0, tokens.min(1)).reshape([n, dim]);
    let pointer = model.object_pointer(token, chosen.object_score.clone());
    Decoded {
        low_res,
        pointer,
        score: chosen.object_score,
    }
}

/// Given masks `[n, image_size, image_size]` of zeros and ones as the output itself; the pointers
/// come from the decoder with the masks as prompts.
pub(super) fn given_mask(
    model: &Sam2,
    constants: &Constants,
    features: &Sam2Features,
    mask: Tensor<3>,
) -> Result<Decoded, HeadsError> {
    let (scale, bias) = GIVEN;
    let low_res = constants.reduce.apply(mask.clone() * scale + bias);
    let [n, h, w] = mask.dims();
    let visible = mask
        .clone()
        .reshape([n, h * w])
        .max_dim(1)
        .greater_scalar(0.0)
        .float();
    let prompt = mask.clone().cast(constants.dtype).reshape([n, h, w, 1]);
    let prompt = model.mask_downsample.forward(prompt);
    let [_, h, w, _] = prompt.dims();
    let prompt = PromptEmbedding {
        sparse: no_points(model, n)?,
        dense: model
            .sam_prompt_encoder
            .embed_masks(prompt.reshape([n, h, w]))?,
    };
    let pointer = decode(model, features.embedding.clone(), features, &prompt, false)?.pointer;
    let pointer = model.or_absent(pointer.clone(), visible.clone().cast(pointer.dtype()));
    Ok(Decoded {
        low_res,
        pointer,
        score: visible * scale + bias,
    })
}

/// Memories `[n, pixels, memory width]` and pointers `[n, dim]` of objects, in the order of their
/// [`Selection`].
pub(super) struct Recalled<'a> {
    pub(super) memories: Vec<&'a Tensor<3>>,
    pub(super) pointers: Vec<&'a Tensor<2>>,
}

/// Conditions a frame on the memories of objects that all have the layout of `selection`,
/// `[n, rows, columns, dim]`. The features are those of one image, or of one per object.
pub(super) fn condition(
    model: &Sam2,
    constants: &Constants,
    features: &Sam2Features,
    selection: &Selection,
    pointer_limit: usize,
    objects: &[Recalled<'_>],
) -> Result<Tensor<4>, HeadsError> {
    let c = constants;
    let (pixels, width, dim) = (c.pixels(), c.memory_dim, c.dim);
    let split = dim / width;
    let time = model.maskmem_tpos_enc.val();
    let slots = time.dims()[0];

    let mut rows = Vec::with_capacity(objects.len());
    for object in objects {
        let mut parts: Vec<Tensor<3>> = object.memories.iter().map(|m| (*m).clone()).collect();
        for pointer in &object.pointers {
            // A pointer is cut into tokens of the width of a memory.
            let count = pointer.dims()[0];
            parts.push((*pointer).clone().reshape([count, split, width]));
        }
        rows.push(Tensor::cat(parts, 1));
    }
    let memory = Tensor::cat(rows, 0).cast(c.dtype);
    let n = memory.dims()[0];

    let mut positions: Vec<Tensor<3>> = Vec::new();
    for (position, _) in &selection.memories {
        let row = time.clone().narrow(0, slots - position - 1, 1);
        let row = row.reshape([1, 1, width]).cast(FloatDType::F32);
        positions.push(c.memory_positions.clone() + row);
    }
    let pointer_tokens = split * selection.pointers.len();
    if pointer_tokens > 0 {
        positions.push(pointer_times(model, c, selection, pointer_limit));
    }
    let positions = Tensor::cat(positions, 1);
    let keys = positions.dims()[1];
    let input = MemoryInput {
        memory,
        positions: positions.expand([n, keys, width]),
        pointer_tokens,
    };
    let images = features.embedding.dims()[0];
    let frame = features
        .embedding
        .clone()
        .reshape([images, pixels, dim])
        .expand([n, pixels, dim]);
    let out = model
        .memory_attention
        .forward(frame, c.positions.clone(), &input, &c.rope)?;
    Ok(out.reshape([n, c.grid[0], c.grid[1], dim]))
}

/// Encodings of how far away object pointers are, `[1, tokens, memory width]`; zero in SAM 2.0.
fn pointer_times(
    model: &Sam2,
    c: &Constants,
    selection: &Selection,
    pointer_limit: usize,
) -> Tensor<3> {
    let (width, dim) = (c.memory_dim, c.dim);
    let split = dim / width;
    let pointers = selection.pointers.len();
    let tracking = &model.config().tracking;
    if !tracking.add_tpos_enc_to_obj_ptrs {
        return Tensor::zeros([1, split * pointers, width], (&c.device, DType::F32));
    }
    let encoded = match &model.obj_ptr_tpos_proj {
        Some(_) => dim,
        None => width,
    };
    let farthest = pointer_limit.saturating_sub(1).max(1) as f64;
    let half = encoded / 2;
    let mut values = Vec::with_capacity(pointers * encoded);
    for (away, _) in &selection.pointers {
        let angle = |i: usize| {
            let exponent = 2.0 * (i / 2) as f64 / half as f64;
            *away as f64 / farthest / POINTER_TEMPERATURE.powf(exponent)
        };
        values.extend((0..half).map(|i| angle(i).sin() as f32));
        values.extend((0..half).map(|i| angle(i).cos() as f32));
    }
    let mut times = floats(values, [pointers, encoded], &c.device).cast(c.dtype);
    if let Some(projection) = &model.obj_ptr_tpos_proj {
        times = projection.forward(times);
    }
    times
        .cast(FloatDType::F32)
        .reshape([pointers, 1, width])
        .expand([pointers, split, width])
        .reshape([1, split * pointers, width])
}

/// Follows objects to a frame by their memories, without a prompt.
pub(super) fn follow(
    model: &Sam2,
    constants: &Constants,
    features: &Sam2Features,
    selection: &Selection,
    pointer_limit: usize,
    objects: &[Recalled<'_>],
) -> Result<MaskDecoderOutput, HeadsError> {
    let embedding = condition(
        model,
        constants,
        features,
        selection,
        pointer_limit,
        objects,
    )?;
    let n = embedding.dims()[0];
    let prompt = PromptEmbedding {
        sparse: no_points(model, n)?,
        dense: model.sam_prompt_encoder.no_mask(n),
    };
    model.decode(embedding, &features.high_res, &prompt)
}

/// Memories `[n, pixels, memory width]` of masks `[n, low side, low side]` and scores `[n, 1]`.
pub(super) fn encode_memory(
    model: &Sam2,
    constants: &Constants,
    features: &Sam2Features,
    low_res: Tensor<3>,
    score: Tensor<2>,
    source: MaskSource,
) -> Result<Tensor<3>, HeadsError> {
    let n = low_res.dims()[0];
    let (embedding, masks) = (features.embedding.clone(), constants.full(low_res));
    let memory = model.encode_memory(embedding, masks, score.cast(FloatDType::F32), source)?;
    Ok(memory.reshape([n, constants.pixels(), constants.memory_dim]))
}

/// Memories of prompted objects: of their hole-filled masks, which are constants (reference
/// implementation).
pub(super) fn prompt_memory(
    model: &Sam2,
    constants: &Constants,
    features: &Sam2Features,
    outputs: &[&FrameOutput],
) -> Result<Tensor<3>, HeadsError> {
    let maps = outputs.iter().map(|o| constants.tensor(&o.low_res));
    let scores = outputs.iter().map(|o| o.score).collect();
    let scores = floats(scores, [outputs.len(), 1], &constants.device);
    let (low_res, source) = (Tensor::cat(maps.collect(), 0), MaskSource::Prompt);
    encode_memory(model, constants, features, low_res, scores, source)
}

/// Brings decoded masks to the host, fills their holes, and takes the objects apart.
pub(super) fn to_outputs(
    decoded: &Decoded,
    fill_hole_area: usize,
) -> Result<Vec<FrameOutput>, HeadsError> {
    let [n, h, w] = decoded.low_res.dims();
    let read = |data: TensorData, what: &'static str| {
        data.try_into_vec::<f32>().map_err(|e| HeadsError::Shape {
            place: "tracker",
            what,
            expected: format!("readable f32 values ({e:?})"),
            found: vec![n, h, w],
        })
    };
    let maps = read(decoded.low_res.to_data(), "mask logits")?;
    let scores = decoded.score.clone().cast(FloatDType::F32).into_data();
    let scores = read(scores, "object scores")?;
    let mut outputs = Vec::with_capacity(n);
    for (at, map) in maps.chunks_exact(h * w).enumerate() {
        let mut map = Array2::from_shape_vec((h, w), map.to_vec()).unwrap_or_default();
        fill_holes(&mut map, fill_hole_area);
        outputs.push(FrameOutput {
            low_res: Arc::new(map),
            pointer: decoded.pointer.clone().narrow(0, at, 1),
            score: scores[at],
            memory: None,
            corrected: false,
        });
    }
    Ok(outputs)
}
