//! The image encoder of SAM 2.

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use tpo_vision::{HieraConfig, ImageEncoder, ImageEncoderConfig, VisionError};

fn encoder() -> ImageEncoder {
    let config = ImageEncoderConfig::sam2(HieraConfig::nano()).with_d_model(32);
    let mut encoder = config.init(&Device::flex()).unwrap();
    // The tables start as zeros.
    encoder.trunk.pos_embed = encoder
        .trunk
        .pos_embed
        .map(|t| t.random_like(Distribution::Default));
    encoder
}

fn images<const N: usize>(shape: [usize; N]) -> Tensor<N> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn distance(a: Tensor<4>, b: Tensor<4>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).abs().max().into_scalar()
}

#[test]
fn the_pyramid_has_strides_4_8_and_16() {
    // Not square: windows of 6 and 3 are padded differently on either side.
    let features = encoder().forward(images([2, 3, 64, 96])).unwrap();
    let shapes: Vec<[usize; 4]> = features.maps.iter().map(|m| m.dims()).collect();
    assert_eq!(shapes, [[2, 16, 24, 32], [2, 8, 12, 32], [2, 4, 6, 32]]);
    let positions = features.position_encoding(2, 32).unwrap();
    assert_eq!(positions.dims(), [1, 4, 6, 32]);
    assert!(features.position_encoding(3, 32).is_none());
}

#[test]
fn an_image_alone_is_encoded_as_in_a_batch() {
    let encoder = encoder();
    let images = images([3, 3, 64, 32]);
    let batch = encoder.forward(images.clone()).unwrap().maps;
    let alone = encoder.forward(images.narrow(0, 1, 1)).unwrap().maps;
    for (batch, alone) in batch.into_iter().zip(alone) {
        assert!(distance(batch.narrow(0, 1, 1), alone) < 1e-5);
    }
}

#[test]
fn values_with_and_without_autodiff_agree() {
    let encoder = encoder();
    // The second is so large that its first stages are run in parts where nothing is recorded.
    for shape in [[1, 3, 96, 64], [1, 3, 288, 256]] {
        let images = images(shape);
        let plain = encoder.forward(images.clone()).unwrap().maps;
        let device = Device::flex().autodiff();
        let images = Tensor::<4>::from_data(images.to_data(), &device);
        let recorded = encoder.clone().train().forward(images).unwrap().maps;
        for (plain, recorded) in plain.into_iter().zip(recorded) {
            assert!(distance(plain, recorded.inner()) < 1e-4);
        }
    }
}

#[test]
fn images_that_cannot_be_cut_are_refused() {
    let encoder = encoder();
    let error = encoder.forward(images([1, 3, 64, 40])).unwrap_err();
    assert!(matches!(error, VisionError::Frames { .. }), "{error}");
    assert!(error.to_string().contains("64x40"), "{error}");
    for shape in [[1, 4, 64, 64], [0, 3, 64, 64], [1, 3, 0, 64]] {
        let images = Tensor::<4>::zeros(shape, &Device::flex());
        let error = encoder.forward(images).unwrap_err();
        assert!(matches!(error, VisionError::Shape { .. }), "{error}");
    }
}
