//! SAM 2's modules: prompts at their edges, shapes, batches.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use tpo_core::geometry::BoxPixels;
use tpo_heads::HeadsError;
use tpo_heads::mask::sam2::{
    MaskDecoderOutput, MaskSource, MemoryInput, PointLabel, PointPrompt, PromptEmbedding, Sam2,
    Sam2Config, Sam2Version,
};
use tpo_vision::hiera::sine_encoding;

fn model(version: Sam2Version) -> Sam2 {
    Sam2Config::nano(version).init(&Device::flex()).unwrap()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).abs().max().into_scalar()
}

fn point(x: f32, y: f32) -> PointPrompt {
    PointPrompt::new(x, y, PointLabel::Positive)
}

fn embedded(model: &Sam2, points: &[Vec<PointPrompt>]) -> PromptEmbedding {
    PromptEmbedding {
        sparse: model.sam_prompt_encoder.embed_points(points).unwrap(),
        dense: model.sam_prompt_encoder.no_mask(points.len()),
    }
}

const BOX: BoxPixels = BoxPixels {
    x0: 4.0,
    y0: 8.0,
    x1: 40.0,
    y1: 63.0,
};

#[test]
fn lists_of_different_lengths_are_padded() {
    let prompts = model(Sam2Version::V2_0).sam_prompt_encoder;
    let long = vec![point(1.0, 2.0), point(30.0, 60.0)];
    let short = vec![point(5.0, 6.0)];
    let both = prompts
        .embed_points(&[long.clone(), short.clone()])
        .unwrap();
    assert_eq!(both.dims(), [2, 3, 32]);
    let alone = prompts.embed_points(&[long]).unwrap();
    assert_eq!(distance(both.clone().narrow(0, 0, 1), alone), 0.0);
    // Padding is the same vector wherever it stands.
    let padding = prompts.not_a_point_embed.weight.val().unsqueeze::<3>();
    for at in [1, 2] {
        let token = both.clone().slice([1..2, at..at + 1, 0..32]);
        assert_eq!(distance(token, padding.clone()), 0.0);
    }
    assert_eq!(prompts.embed_points(&[vec![]]).unwrap().dims(), [1, 1, 32]);
}

#[test]
fn coordinates_may_lie_outside_but_must_be_numbers() {
    let prompts = model(Sam2Version::V2_0).sam_prompt_encoder;
    let outside = prompts.embed_points(&[vec![point(-50.0, 1e6)]]).unwrap();
    assert!(outside.abs().max().into_scalar::<f32>().is_finite());
    let error = prompts
        .embed_points(&[vec![point(1.0, 1.0), point(f32::NAN, 0.0)]])
        .unwrap_err();
    assert!(matches!(
        error,
        HeadsError::NotFinite {
            count: 1,
            first: 1,
            ..
        }
    ));
    let mut endless = BOX;
    endless.x1 = f32::INFINITY;
    let corners = PointPrompt::corners(&endless).to_vec();
    assert!(prompts.embed_points(&[corners]).is_err());
}

#[test]
fn mask_prompts_have_the_size_of_the_decoder_s() {
    let prompts = model(Sam2Version::V2_0).sam_prompt_encoder;
    assert!(prompts.embed_masks(random([1, 16, 15])).is_err());
    assert_eq!(
        prompts.embed_masks(random([2, 16, 16])).unwrap().dims(),
        [2, 4, 4, 32]
    );
}

#[test]
fn a_batch_is_decoded_as_its_items_and_one_image_serves_all() {
    let model = model(Sam2Version::V2_0);
    let features = model.encode_image(random([1, 3, 64, 64])).unwrap();
    let embedding = model.without_memory(features.embedding.clone());
    let prompts = [[3.0, 5.0], [40.0, 20.0]].map(|[x, y]| vec![point(x, y)]);
    let decode = |points: &[Vec<PointPrompt>]| {
        let prompt = embedded(&model, points);
        model
            .decode(embedding.clone(), &features.high_res, &prompt)
            .unwrap()
    };
    let both = decode(&prompts);
    assert_eq!(both.masks.dims(), [2, 4, 16, 16]);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = decode(std::slice::from_ref(prompt));
        let item = both.masks.clone().narrow(0, i, 1);
        assert!(distance(item, alone.masks) < 1e-4);
        let iou = both.iou.clone().narrow(0, i, 1);
        assert!(distance(iou, alone.iou) < 1e-5);
    }
    // Without any prompt there are still the decoder's own tokens.
    let prompt = PromptEmbedding {
        sparse: Tensor::zeros([1, 0, 32], &Device::flex()),
        dense: model.sam_prompt_encoder.no_mask(1),
    };
    let output = model
        .decode(embedding.clone(), &features.high_res, &prompt)
        .unwrap();
    assert_eq!(model.choose(&output, true).masks.dims(), [1, 3, 16, 16]);
    assert_eq!(model.choose(&output, false).masks.dims(), [1, 1, 16, 16]);

    let [fine, coarse] = features.high_res.clone();
    let error = model.decode(embedding, &[coarse, fine], &prompt);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("high-resolution"), "{error}");
    let wrong = PromptEmbedding {
        sparse: prompt.sparse,
        dense: random([1, 4, 5, 32]),
    };
    assert!(
        model
            .decode(features.embedding, &features.high_res, &wrong)
            .is_err()
    );
}

/// Four items: stable, unstable, empty (stable by definition), everything.
#[test]
fn unstable_masks_fall_back_to_the_best_of_the_others() {
    let device = Device::flex();
    let single = Tensor::<2>::from_data(
        [
            [1.0f32, 1.0, -1.0, -1.0],
            [1.0, 0.01, -0.01, -1.0],
            [-1.0, -1.0, -1.0, -1.0],
            [1.0, 1.0, 1.0, 1.0],
        ],
        &device,
    )
    .reshape([4, 1, 2, 2]);
    let others = Tensor::<4>::ones([4, 1, 2, 2], &device);
    let output = MaskDecoderOutput {
        masks: Tensor::cat(vec![single.clone(), others.clone() * 7.0, others * 8.0], 1),
        iou: Tensor::<2>::from_data([[0.9f32, 0.3, 0.2]; 4], &device),
        tokens: Tensor::<3>::zeros([4, 3, 2], &device),
        object_score: Tensor::<2>::zeros([4, 1], &device),
    };
    let ratios: Vec<f32> = output.stability(0.05).into_data().iter::<f32>().collect();
    // Above 0.05 there is one pixel of the second item, above -0.05 there are three.
    assert_eq!(ratios, [1.0, 1.0 / 3.0, 1.0, 1.0]);
    let chosen = output.stable(0.05, 0.98);
    let masks: Vec<f32> = chosen.masks.into_data().iter::<f32>().collect();
    assert_eq!(masks[4..8], [7.0; 4]);
    let single: Vec<f32> = single.into_data().iter::<f32>().collect();
    assert_eq!((&masks[..4], &masks[8..]), (&single[..4], &single[8..]));
    let iou: Vec<f32> = chosen.iou.into_data().iter::<f32>().collect();
    assert_eq!(iou, [0.9, 0.3, 0.9, 0.9]);
}

#[test]
fn a_frame_attends_to_memories_and_pointers() {
    let model = model(Sam2Version::V2_1);
    let device = Device::flex();
    let (batch, grid, width) = (2, 16, 16);
    let rope = model.memory_attention.rope([4, 4], &device);
    let features = random([batch, grid, 32]);
    let positions = sine_encoding(4, 4, 32, &device).reshape([1, grid, 32]);
    let memory = random([batch, 2 * grid + 4, width]);
    let input = |memory: Tensor<3>, pointer_tokens| MemoryInput {
        positions: memory.zeros_like(),
        memory,
        pointer_tokens,
    };
    let attend = |features: Tensor<3>, input: &MemoryInput| {
        model
            .memory_attention
            .forward(features, positions.clone(), input, &rope)
    };
    let both = attend(features.clone(), &input(memory.clone(), 4)).unwrap();
    assert_eq!(both.dims(), [batch, grid, 32]);
    let alone = attend(
        features.clone().narrow(0, 1, 1),
        &input(memory.clone().narrow(0, 1, 1), 4),
    )
    .unwrap();
    assert!(distance(both.clone().narrow(0, 1, 1), alone) < 1e-5);

    // Pointers have no position: their order does not matter. That of pixels does.
    let swap = |a: usize, b: usize| {
        let mut order: Vec<i64> = (0..2 * grid as i64 + 4).collect();
        order.swap(a, b);
        let n = order.len();
        let order = Tensor::<1, burn::tensor::Int>::from_data(
            burn::tensor::TensorData::new(order, [n]),
            &device,
        );
        attend(features.clone(), &input(memory.clone().select(1, order), 4)).unwrap()
    };
    assert!(distance(both.clone(), swap(2 * grid, 2 * grid + 3)) < 1e-5);
    assert!(distance(both, swap(0, 5)) > 1e-5);

    for pointers in [3, 40] {
        let error = attend(features.clone(), &input(memory.clone(), pointers)).unwrap_err();
        assert!(matches!(error, HeadsError::Shape { .. }), "{error}");
    }
}

#[test]
fn hidden_objects_leave_a_mark_in_memory_and_pointer() {
    let device = Device::flex();
    let scores = Tensor::<2>::from_data([[2.0f32], [-2.0]], &device);
    for version in [Sam2Version::V2_0, Sam2Version::V2_1] {
        let model = model(version);
        let token = random([1, 32]).expand([2, 32]);
        let pointers = model.object_pointer(token.clone(), scores.clone());
        let absent = model.no_obj_ptr.val();
        assert!(distance(pointers.clone().narrow(0, 1, 1), absent) < 1e-6);
        let projected = model.obj_ptr_proj.forward(token).narrow(0, 0, 1);
        assert!(distance(pointers.narrow(0, 0, 1), projected) < 1e-6);

        let embedding = random([1, 4, 4, 32]);
        let logits = random([1, 64, 64]).expand([2, 64, 64]);
        let encode = |source| {
            model
                .encode_memory(embedding.clone(), logits.clone(), scores.clone(), source)
                .unwrap()
        };
        let memory = encode(MaskSource::Tracking);
        assert_eq!(memory.dims(), [2, 4, 4, 16]);
        let difference = memory.clone().narrow(0, 1, 1) - memory.clone().narrow(0, 0, 1);
        match &model.no_obj_embed_spatial {
            None => assert_eq!(difference.abs().max().into_scalar::<f32>(), 0.0),
            Some(mark) => {
                let mark = mark.val().reshape([1, 1, 1, 16]).expand([1, 4, 4, 16]);
                assert!(distance(difference, mark) < 1e-5);
            }
        }
        assert!(distance(memory, encode(MaskSource::Prompt)) > 1e-5);
        let error = model
            .encode_memory(
                embedding,
                random([1, 64, 60]),
                scores.clone(),
                MaskSource::Prompt,
            )
            .unwrap_err();
        assert!(error.to_string().contains("mask"), "{error}");
    }
}

#[test]
fn half_precision_runs_end_to_end() {
    use burn::module::{Module, ModuleMapper, Param};
    struct Cast(FloatDType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    let model = model(Sam2Version::V2_1).map(&mut Cast(FloatDType::F16));
    let image = random([1, 3, 64, 64]);
    let masks = |model: &Sam2| {
        let features = model.encode_image(image.clone()).unwrap();
        let prompt = embedded(model, &[PointPrompt::corners(&BOX).to_vec()]);
        let embedding = model.without_memory(features.embedding.clone());
        let output = model
            .decode(embedding, &features.high_res, &prompt)
            .unwrap();
        (features, model.choose(&output, false))
    };
    let (features, chosen) = masks(&model);
    assert_eq!(chosen.masks.dims(), [1, 1, 16, 16]);
    // On the CPU only the weights are of half precision.
    let (_, wide) = masks(&model.clone().map(&mut Cast(FloatDType::F32)));
    let largest: f32 = wide.masks.clone().abs().max().into_scalar();
    assert_eq!(chosen.masks.dtype(), DType::F32);
    assert!(distance(chosen.masks, wide.masks) < 1e-3 * largest.max(1.0));
    let memory = model
        .encode_memory(
            features.embedding,
            random([1, 64, 64]),
            chosen.object_score.cast(FloatDType::F32),
            MaskSource::Tracking,
        )
        .unwrap();
    let device = Device::flex();
    let rope = model.memory_attention.rope([4, 4], &device);
    let memory = MemoryInput {
        memory: memory.reshape([1, 16, 16]),
        positions: sine_encoding(4, 4, 16, &device).reshape([1, 16, 16]),
        pointer_tokens: 0,
    };
    let positions = sine_encoding(4, 4, 32, &device).reshape([1, 16, 32]);
    let features = random([1, 16, 32]).cast(FloatDType::F16);
    let out = model
        .memory_attention
        .forward(features, positions, &memory, &rope)
        .unwrap();
    let largest: f32 = out.cast(FloatDType::F32).abs().max().into_scalar();
    assert!(largest.is_finite());
}
