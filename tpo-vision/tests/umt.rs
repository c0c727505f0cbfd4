//! Behaviour of the video encoder beyond the reference's numbers.

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use common::{max_diff, random};
use tpo_core::traits::VisionEncoder;
use tpo_vision::{UmtConfig, VideoEncoder, VisionError};

fn config() -> UmtConfig {
    UmtConfig::new(32, 16, 24, 4, 3).with_num_frames(4)
}

fn encoder(config: &UmtConfig, device: &Device) -> VideoEncoder {
    device.seed(11);
    VideoEncoder::new(config, device).unwrap()
}

#[test]
fn a_batch_is_its_clips() {
    let device = Device::flex();
    let encoder = encoder(&config(), &device);
    let clips = random([3, 4, 3, 32, 32], &device);
    let batch = encoder.encode(clips.clone()).unwrap();
    assert_eq!(batch.dims(), [3, 16, 24]);
    for i in 0..3 {
        let single = encoder.encode(clips.clone().narrow(0, i, 1)).unwrap();
        assert!(max_diff(batch.clone().narrow(0, i, 1), single) < 1e-5);
    }
}

#[test]
fn other_lengths_and_sizes_are_interpolated() {
    let device = Device::flex();
    let encoder = encoder(&config(), &device);
    for (frames, height, width) in [(1, 32, 32), (7, 32, 32), (2, 48, 80), (16, 16, 16)] {
        let clip = random([1, frames, 3, height, width], &device);
        let tokens = frames * (height / 16) * (width / 16);
        assert_eq!(encoder.encode(clip).unwrap().dims(), [1, tokens, 24]);
    }
    assert_eq!(VisionEncoder::dim(&encoder), 24);
}

#[test]
fn an_image_does_not_take_the_video_table() {
    let device = Device::flex();
    let encoder = encoder(&config(), &device).encoder;
    let image = encoder.position_table(1, 32, 32, &device).unwrap();
    let video = encoder.position_table(8, 32, 32, &device).unwrap();
    assert_eq!(image.dims(), [1, 4, 24]);
    assert_eq!(video.dims(), [1, 32, 24]);
    // The first of eight frames repeats the first pretrained frame, the last does not.
    assert_eq!(max_diff(image.clone(), video.clone().narrow(1, 0, 4)), 0.0);
    assert!(max_diff(image, video.narrow(1, 28, 4)) > 0.1);
}

#[test]
fn tubelets_cover_several_frames() {
    let device = Device::flex();
    let encoder = encoder(&config().with_tubelet_size(2), &device);
    let clip = random([1, 4, 3, 32, 32], &device);
    assert_eq!(encoder.encode(clip).unwrap().dims(), [1, 8, 24]);
    let odd = encoder.encode(random([1, 3, 3, 32, 32], &device));
    let error = odd.unwrap_err().to_string();
    assert!(
        error.contains("3 frames cannot be cut into tubelets of 2"),
        "{error}"
    );
}

#[test]
fn a_stem_comes_before_the_patches() {
    let device = Device::flex();
    let config = config()
        .with_tubelet_size(2)
        .with_axis_positions(true)
        .with_stem(Some(6));
    let encoder = encoder(&config, &device);
    let clip = random([2, 4, 3, 32, 32], &device);
    let tokens = encoder.encode(clip.clone()).unwrap();
    assert_eq!(tokens.dims(), [2, 8, 24]);
    // The embedding by hand: squares of 4 pixels, then patches of 4 × 4 squares.
    let embed = &encoder.encoder.patch_embed;
    let stem = embed.stem.as_ref().unwrap();
    let embedded = embed.forward(clip.clone());
    let squares = clip
        .reshape([2, 4, 3, 8, 4, 8, 4])
        .permute([0, 1, 3, 5, 2, 4, 6])
        .reshape([2 * 4 * 8 * 8, 48]);
    let linear = |x: Tensor<2>, weight: Tensor<5>, bias: Tensor<1>| {
        let [to, ..] = weight.dims();
        let from = x.dims()[1];
        x.matmul(weight.reshape([to, from]).transpose()) + bias.unsqueeze()
    };
    let x = linear(squares, stem.proj.weight.val(), stem.proj.bias.val());
    let x = burn::tensor::activation::gelu(stem.norm.forward(x));
    // [clip, step, frame, row, square row, column, square column, channel]
    let x = x
        .reshape([2, 2, 2, 2, 4, 2, 4, 6])
        .permute([0, 1, 3, 5, 7, 2, 4, 6])
        .reshape([2 * 8, 6 * 2 * 4 * 4]);
    let x = linear(x, embed.proj.weight.val(), embed.proj.bias.val());
    assert_eq!(embedded.dims(), [2, 8, 24]);
    let embedded = embedded.reshape([2 * 8, 24]);
    assert!(max_diff(x.unsqueeze::<3>(), embedded.unsqueeze::<3>()) < 1e-4);
    for bad in [config.clone().with_stem(Some(0)), {
        let mut odd = config.clone().with_stem(Some(6));
        (odd.img_size, odd.patch_size) = (28, 14);
        odd
    }] {
        let error = VideoEncoder::new(&bad, &device).unwrap_err().to_string();
        assert!(error.contains("stem"), "{error}");
    }
}

#[test]
fn unusable_clips_are_errors() {
    let device = Device::flex();
    let encoder = encoder(&config(), &device);
    let encode = |shape: [usize; 5]| encoder.encode(Tensor::zeros(shape, &device)).unwrap_err();
    let checked = |shape: [usize; 5]| encoder.encoder.check(shape).unwrap_err();
    for (error, part) in [
        (encode([1, 4, 1, 32, 32]), "found 1"),
        (
            encode([1, 4, 3, 33, 32]),
            "33x32 pixels cannot be cut into patches of 16x16",
        ),
        (encode([1, 4, 3, 32, 8]), "32x8"),
        (checked([0, 4, 3, 32, 32]), "is empty"),
        (checked([1, 0, 3, 32, 32]), "is empty"),
        (checked([1, 4, 3, 0, 32]), "is empty"),
    ] {
        assert!(matches!(error, VisionError::Frames { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = tpo_core::CoreError::from(encode([1, 4, 4, 32, 32]));
    assert!(error.to_string().contains("found 4"), "{error}");
}

#[test]
fn a_config_that_does_not_add_up_is_an_error() {
    let bad = UmtConfig::new(32, 16, 25, 4, 3);
    assert!(matches!(
        VideoEncoder::new(&bad, &Device::flex()),
        Err(VisionError::Config { .. })
    ));
}

#[test]
fn drop_path_acts_in_training_only() {
    let device = Device::flex().autodiff();
    let encoder = encoder(&config().with_drop_path_rate(0.9), &device);
    let clip = random([2, 4, 3, 32, 32], &device);
    let first = encoder.encode(clip.clone()).unwrap();
    let second = encoder.encode(clip.clone()).unwrap();
    assert!(max_diff(first, second) > 1e-3);

    let valid = encoder.valid();
    let first = valid.encode(clip.clone().inner()).unwrap();
    let second = valid.encode(clip.clone().inner()).unwrap();
    assert_eq!(max_diff(first.clone(), second), 0.0);
    // Without drop-path the same weights give the same result.
    let frozen = encoder.freeze();
    assert!(max_diff(first, frozen.forward(clip).unwrap()) < 1e-5);
}

#[test]
fn a_frozen_encoder_runs_without_autodiff() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    let trained = encoder(&config(), &device);
    let clip = random([1, 4, 3, 32, 32], &device);
    let tokens = trained.encode(clip.clone()).unwrap();
    assert!(tokens.is_tracked());

    let frozen = trained.clone().freeze();
    let constant = frozen.encode(clip.clone()).unwrap();
    assert!(!constant.is_tracked());
    assert!(constant.is_autodiff());
    assert_eq!(
        constant.gradient_checkpointing_strategy(),
        device.gradient_checkpointing_strategy()
    );
    assert!(max_diff(tokens, constant) < 1e-5);

    // A gradient asked for at the frames still passes a frozen encoder.
    let clip = clip.require_grad();
    let grads = frozen
        .encode(clip.clone())
        .unwrap()
        .square()
        .sum()
        .backward();
    let grad = clip.grad(&grads).unwrap();
    assert!(grad.abs().max().into_scalar::<f32>() > 0.0);
}

#[test]
fn half_precision_parameters_take_f32_frames() {
    struct Half;
    impl ModuleMapper for Half {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(FloatDType::F16))
        }
    }
    let device = Device::flex();
    let full = encoder(&config(), &device);
    let half = full.clone().map(&mut Half);
    let clip = random([1, 4, 3, 32, 32], &device);
    let expected = full.encode(clip.clone()).unwrap();
    let tokens = half.encode(clip).unwrap();
    assert_eq!(tokens.dtype(), DType::F16);
    assert!(max_diff(expected, tokens.cast(FloatDType::F32)) < 0.05);
}
