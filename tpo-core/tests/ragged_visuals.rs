//! A batch of visuals that differ in the shape of their pixels and in their number of rows.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo_core::CoreError;
use tpo_core::gradient_checkpointing::Tape;
use tpo_core::head::NoHeads;
use tpo_core::model::{TokenBatch, TpoBatch, TpoModel};
use tpo_core::prompt::PromptIds;
use tpo_core::token::TaskRegistry;
use tpo_core::traits::{
    AttentionMask, Connector, DecodeCache, Instruction, LanguageModel, VisionEncoder, VisualInput,
    VisualRows, VisualShape,
};

const D: usize = 3;
const VOCAB: usize = 8;

/// A token per pixel: its colours times `scale`.
#[derive(Module, Debug)]
struct Pixels {
    scale: Param<Tensor<1>>,
}

impl Pixels {
    fn tokens(frames: Tensor<5>) -> Tensor<3> {
        let [b, f, c, h, w] = frames.dims();
        frames.permute([0, 1, 3, 4, 2]).reshape([b, f * h * w, c])
    }
}

impl VisionEncoder for Pixels {
    fn encode(&self, frames: Tensor<5>) -> tpo_core::Result<Tensor<3>> {
        Ok(Self::tokens(frames) * self.scale.val().reshape([1, 1, D]))
    }
    fn encode_checkpointed<'m>(
        &'m self,
        frames: Tensor<5>,
        tape: &mut Tape<'m>,
    ) -> tpo_core::Result<Tensor<3>> {
        let scaled = |x: Tensor<3>| x * self.scale.val().reshape([1, 1, D]);
        Ok(tape.segment(Self::tokens(frames), scaled))
    }
    fn dim(&self) -> usize {
        D
    }
}

/// The first tokens of each visual, as many as its source is large, plus the visual's own
/// instruction.
#[derive(Module, Debug)]
struct First {
    /// Whether it leaves out the last visual.
    #[module(skip)]
    forgets: bool,
}

fn rows_of(shape: &VisualShape) -> usize {
    shape.pictures * shape.size.0 as usize / 4
}

impl Connector for First {
    fn connect(
        &self,
        features: Tensor<3>,
        visuals: &[VisualShape],
        instruction: Option<&Instruction>,
    ) -> tpo_core::Result<VisualRows> {
        assert_eq!(features.dims()[0], visuals.len());
        let visuals = &visuals[..visuals.len() - usize::from(self.forgets)];
        let counts: Vec<usize> = visuals.iter().map(rows_of).collect();
        let rows = counts.iter().enumerate().map(|(i, n)| {
            let rows = features.clone().narrow(0, i, 1).narrow(1, 0, *n);
            let rows = rows.reshape([*n, D]);
            match instruction {
                Some(all) => rows + all.ids.clone().narrow(0, i, 1).float(),
                None => rows,
            }
        });
        let rows: Vec<Tensor<2>> = rows.collect();
        Ok(VisualRows {
            rows: if rows.is_empty() {
                Tensor::zeros([0, D], &features.device())
            } else {
                Tensor::cat(rows, 0)
            },
            counts,
        })
    }
}

/// Hidden states are the embeddings.
#[derive(Module, Debug)]
struct Echo {
    table: Param<Tensor<2>>,
}

#[derive(Debug, Clone)]
struct NoCache;

impl DecodeCache for NoCache {
    fn len(&self) -> usize {
        0
    }
    fn capacity(&self) -> usize {
        0
    }
    fn truncate(&mut self, _: usize) {}
    fn select(&mut self, _: &[usize]) {}
    fn take_back(&mut self, _: &[usize]) {}
}

impl LanguageModel for Echo {
    type Cache = NoCache;
    fn dim(&self) -> usize {
        D
    }
    fn vocab_size(&self) -> usize {
        VOCAB
    }
    fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [b, s] = ids.dims();
        let rows = self.table.val().select(0, ids.reshape([b * s]));
        rows.reshape([b, s, D])
    }
    fn hidden(&self, embeds: Tensor<3>, _: Option<&AttentionMask>) -> tpo_core::Result<Tensor<3>> {
        Ok(embeds)
    }
    fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        hidden.matmul(self.table.val().transpose().unsqueeze())
    }
    fn cache(&self, _: usize, _: usize, _: &Device) -> NoCache {
        NoCache
    }
    fn step(
        &self,
        embeds: Tensor<3>,
        _: Option<&AttentionMask>,
        _: &mut NoCache,
    ) -> tpo_core::Result<Tensor<3>> {
        Ok(embeds)
    }
}

type Model = TpoModel<Pixels, First, Echo, NoHeads>;

const SCALE: [f32; D] = [1.0, 2.0, 4.0];

fn model(forgets: bool, device: &Device) -> Model {
    let table: Vec<f32> = (0..VOCAB * D).map(|v| -(v as f32)).collect();
    let table = Tensor::from_data(TensorData::new(table, [VOCAB, D]), device);
    let vision = Pixels {
        scale: Param::from_tensor(Tensor::from_floats(SCALE, device)),
    };
    let llm = Echo {
        table: Param::from_tensor(table),
    };
    let (heads, registry) = (NoHeads::default(), TaskRegistry::new());
    Model::new(vision, First { forgets }, llm, heads, registry, device).unwrap()
}

/// Pixels `[pictures, 3, height, width]` and width of the source. The first and the last are of one
/// shape and go through the encoder together, with different numbers of rows: 4, 1 and 2.
const VISUALS: [([usize; 4], u32); 3] = [([2, D, 2, 3], 8), ([1, D, 1, 2], 4), ([2, D, 2, 3], 4)];
const ROWS: [usize; 3] = [4, 1, 2];
/// What is added to the rows of each visual.
const INSTRUCTIONS: [i64; 3] = [1000, 2000, 3000];

/// The value of a pixel.
fn pixel(visual: usize, flat: usize) -> f32 {
    (100 * visual + flat) as f32
}

fn visuals(device: &Device) -> Vec<VisualInput> {
    let one = |(i, (dims, width)): (usize, &([usize; 4], u32))| {
        let values: Vec<f32> = (0..dims.iter().product()).map(|p| pixel(i, p)).collect();
        let pixels = Tensor::from_data(TensorData::new(values, *dims), device);
        VisualInput {
            pixels: match device.gradient_checkpointing_strategy() {
                Some(_) => pixels.require_grad(),
                None => pixels,
            },
            shape: VisualShape::video((*width, 6), dims[0]),
        }
    };
    VISUALS.iter().enumerate().map(one).collect()
}

/// Where the pixel of token `row` and channel `c` of a visual is among its values.
fn place(visual: usize, row: usize, c: usize) -> usize {
    let [_, channels, h, w] = VISUALS[visual].0;
    let (picture, at) = (row / (h * w), row % (h * w));
    (picture * channels + c) * h * w + at
}

/// One visual in the first row of the batch and two in the second, with text around them.
fn batch(slots: [usize; 3], device: &Device) -> TpoBatch {
    let mut prompts = [PromptIds::default(), PromptIds::default()];
    prompts[0].push_text(&[1]);
    prompts[0].push_visual(slots[0]);
    prompts[0].push_text(&[5]);
    prompts[1].push_visual(slots[1]);
    prompts[1].push_text(&[6, 7]);
    prompts[1].push_visual(slots[2]);
    let tokens = TokenBatch::pad(&prompts, 2);
    let mut batch = TpoBatch::new(tokens, device);
    batch.visuals = visuals(device);
    let ids = Tensor::from_data(TensorData::new(INSTRUCTIONS.to_vec(), [3, 1]), device);
    batch.instruction = Some(Instruction {
        mask: ids.ones_like(),
        ids,
    });
    batch
}

/// The slots of each visual in the flattened batch of two rows of six.
const SLOTS: [&[usize]; 3] = [&[1, 2, 3, 4], &[6], &[9, 10]];

fn values<const N: usize>(tensor: Tensor<N>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

#[test]
fn every_visual_fills_its_own_slots() {
    let device = Device::flex();
    let model = model(false, &device);
    let output = model.forward(batch(ROWS, &device), &[]).unwrap();
    assert_eq!(output.embeds.dims(), [2, 6, D]);
    let text = |id: usize| (0..D).map(move |c| -((id * D + c) as f32));
    let ids = [1, 0, 0, 0, 0, 5, 0, 6, 7, 0, 0, 2];
    let mut expected: Vec<f32> = ids.into_iter().flat_map(text).collect();
    for (visual, slots) in SLOTS.iter().enumerate() {
        for (row, slot) in slots.iter().enumerate() {
            for c in 0..D {
                expected[slot * D + c] =
                    pixel(visual, place(visual, row, c)) * SCALE[c] + INSTRUCTIONS[visual] as f32;
            }
        }
    }
    assert_eq!(values(output.embeds), expected);

    // Together and alone they are the same.
    let all = model.encode_visuals(visuals(&device), None).unwrap();
    let all = all.unwrap();
    assert_eq!(all.counts, ROWS);
    let alone = visuals(&device).into_iter().flat_map(|visual| {
        let found = model.encode_visuals(vec![visual], None).unwrap();
        values(found.unwrap().rows)
    });
    assert_eq!(values(all.rows), alone.collect::<Vec<_>>());
    assert!(model.encode_visuals(Vec::new(), None).unwrap().is_none());
}

#[test]
fn gradients_reach_every_visual() {
    let device = Device::flex().autodiff();
    for checkpointed in [false, true] {
        let model = model(false, &device);
        let batch = batch(ROWS, &device);
        let pixels: Vec<Tensor<4>> = batch.visuals.iter().map(|v| v.pixels.clone()).collect();
        let mut tape = Tape::new(None);
        let output = if checkpointed {
            model.forward_with(batch, &[], Some(&mut tape))
        } else {
            model.forward(batch, &[])
        };
        // Position and channel weigh differently, so that a row in a wrong slot is seen.
        let weight = |at: usize| 1.0 + at as f32;
        let weights: Vec<f32> = (0..2 * 6 * D).map(weight).collect();
        let weights = Tensor::<3>::from_data(TensorData::new(weights, [2, 6, D]), &device);
        let loss = (output.unwrap().hidden * weights).sum();

        let mut found: Vec<Vec<f32>> = VISUALS.map(|(d, _)| vec![0.0; d.iter().product()]).into();
        let mut scale = vec![0.0; D];
        let add = |sum: &mut Vec<f32>, part: Option<Vec<f32>>| {
            for (sum, part) in sum.iter_mut().zip(part.into_iter().flatten()) {
                *sum += part;
            }
        };
        assert_eq!(tape.is_empty(), !checkpointed);
        tape.backward(&loss, |grads| {
            for (sum, pixels) in found.iter_mut().zip(&pixels) {
                add(sum, pixels.grad(grads).map(values));
            }
            add(&mut scale, model.vision.scale.val().grad(grads).map(values));
        });

        let mut expected = found.clone();
        expected.iter_mut().for_each(|v| v.fill(0.0));
        let mut expected_scale = vec![0.0; D];
        for (visual, slots) in SLOTS.iter().enumerate() {
            for (row, slot) in slots.iter().enumerate() {
                for c in 0..D {
                    let (at, weight) = (place(visual, row, c), weight(slot * D + c));
                    expected[visual][at] = weight * SCALE[c];
                    expected_scale[c] += weight * pixel(visual, at);
                }
            }
        }
        assert_eq!(found, expected, "checkpointed: {checkpointed}");
        assert_eq!(scale, expected_scale, "checkpointed: {checkpointed}");
    }
}

#[test]
fn slots_and_rows_must_agree() {
    let device = Device::flex();
    let complete = model(false, &device);
    // Each sample by itself: slots for three rows in the wrong place are no place for them.
    for (slots, sample, marked, found_there) in [
        ([4, 1, 1], "sample 1", 2, 3),
        ([5, 1, 2], "sample 1", 3, 2),
        ([3, 2, 2], "sample 0", 3, 4),
        ([0, 0, 0], "all samples", 0, 7),
    ] {
        let error = complete.forward(batch(slots, &device), &[]).unwrap_err();
        let CoreError::SlotCount { what, slots, found } = error else {
            panic!("{error}");
        };
        assert!(what.contains(sample), "{what}");
        assert_eq!((slots, found), (marked, found_there));
    }
    let mut without = batch(ROWS, &device);
    without.visuals.clear();
    without.instruction = None;
    assert!(matches!(
        complete.forward(without, &[]),
        Err(CoreError::SlotCount {
            slots: 7,
            found: 0,
            ..
        })
    ));
    // A connector that leaves one out.
    let error = model(true, &device).forward(batch(ROWS, &device), &[]);
    assert!(matches!(
        error,
        Err(CoreError::SlotCount { what, slots: 2, found: 1 }) if what.contains("connector")
    ));
}
