//! The InternVideo2 tower: inputs, gradients, separate tables, half precision.

use burn::module::Module;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use tpo_core::traits::VisionEncoder;
use tpo_vision::{InternVideo2Config, VisionError};

fn clips(batch: usize, frames: usize, device: &Device) -> Tensor<5> {
    let shape = [batch, frames, 3, 56, 56];
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .cast(FloatDType::F32)
        .into_data()
        .iter::<f32>()
        .collect()
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} {b}");
    }
}

#[test]
fn clips_and_images_give_one_feature_each() {
    let device = Device::flex();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    for frames in [8, 1] {
        let clips = clips(3, frames, &device);
        let together = tower.forward(clips.clone()).unwrap();
        assert_eq!(together.dims(), [3, 64]);
        let tokens = tower.encode(clips.clone()).unwrap();
        assert_eq!(tokens.dims(), [3, 1 + frames * 16, 96]);
        for i in 0..3 {
            let alone = tower.forward(clips.clone().narrow(0, i, 1)).unwrap();
            let row = together.clone().narrow(0, i, 1);
            assert_close(&values(alone), &values(row), 1e-4);
        }
    }
}

#[test]
fn other_inputs_are_refused() {
    let device = Device::flex();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    for (shape, part) in [
        ([1, 4, 3, 56, 56], "8 frames, or one for an image; found 4"),
        ([1, 8, 3, 70, 56], "found 70x56"),
        ([1, 8, 4, 56, 56], "found 4"),
        ([0, 8, 3, 56, 56], "is empty"),
    ] {
        let error = tower.forward(Tensor::zeros(shape, &device)).unwrap_err();
        assert!(matches!(error, VisionError::Frames { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn autodiff_computes_the_same_and_reaches_every_parameter() {
    let device = Device::flex().autodiff();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    let clips = clips(2, 8, &device);
    let out = tower.forward(clips.clone()).unwrap();
    let plain = tower.valid().forward(clips.inner()).unwrap();
    assert_close(&values(out.clone()), &values(plain), 1e-4);
    let grads = out.square().mean().backward();
    let block = &tower.blocks[0];
    let q_norm = block.attn.q_norm.as_ref().unwrap();
    for (name, norm) in [
        (
            "cls_token",
            tower.cls_token.grad(&grads).map(|g| g.abs().sum()),
        ),
        (
            "pos_embed",
            tower.pos_embed.grad(&grads).map(|g| g.abs().sum()),
        ),
        ("q_norm", q_norm.weight.grad(&grads).map(|g| g.abs().sum())),
        ("ls1", block.ls1.gamma.grad(&grads).map(|g| g.abs().sum())),
        (
            "v_bias",
            tower
                .clip_projector
                .cross_attn
                .v_bias
                .grad(&grads)
                .map(|g| g.abs().sum()),
        ),
    ] {
        let sum: f32 = norm
            .unwrap_or_else(|| panic!("{name} got no gradient"))
            .into_scalar();
        assert!(sum > 0.0, "{name}");
    }
}

#[test]
fn half_precision_stays_near() {
    let device = Device::flex();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    let clips = clips(1, 8, &device);
    let full = values(tower.forward(clips.clone()).unwrap());
    struct Cast(FloatDType);
    impl burn::module::ModuleMapper for Cast {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<Tensor<D>>,
        ) -> burn::module::Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    for (dtype, tolerance) in [(FloatDType::F16, 0.01), (FloatDType::BF16, 0.05)] {
        let half = tower
            .clone()
            .map(&mut Cast(dtype))
            .forward(clips.clone())
            .unwrap();
        let norm = full.iter().map(|v| v * v).sum::<f32>().sqrt();
        let diff: f32 = values(half)
            .iter()
            .zip(&full)
            .map(|(a, b)| (a - b).powi(2))
            .sum();
        assert!(
            diff.sqrt() / norm < tolerance,
            "{dtype:?}: {}",
            diff.sqrt() / norm
        );
    }
}
