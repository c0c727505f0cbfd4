//! What OneVision's connector does with mixed and unusable visuals. Beside the published code it is held by the root
//! package's `tests/parity`.

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use common::params::{gradients, values};
use common::{max_diff, random};
use tpo_core::geometry::{Packing, Pooling, Tiling, UnpadRule};
use tpo_core::traits::{Connector, VisualShape};
use tpo_vision::{OneVisionConnector, OneVisionConnectorConfig, VisionError};

/// Rows of one visual, after a check that they are as many as the layout counts.
fn rows_of(connector: &OneVisionConnector, features: Tensor<3>, visual: VisualShape) -> Tensor<2> {
    let [pictures, tokens, d] = features.dims();
    let features = features.reshape([1, pictures * tokens, d]);
    let found = connector.connect(features, &[visual], None).unwrap();
    assert_eq!(found.counts, [connector.packing().rows(&visual).unwrap()]);
    assert_eq!(found.counts, [found.rows.dims()[0]]);
    found.rows
}

fn image(size: (u32, u32), pictures: usize) -> VisualShape {
    VisualShape {
        pictures,
        ..VisualShape::image(size)
    }
}

/// Tiles of 12 pixels and 3x3 tokens on up to 4x4, shrunk above 4 tiles.
fn small(d_vision: usize, d_llm: usize, device: &Device) -> OneVisionConnector {
    device.seed(3);
    let packing = Packing {
        side: 3,
        tiling: Tiling::up_to(12, 4),
        max_tiles: Some(4),
        ..Packing::one_vision(UnpadRule::HuggingFace)
    };
    let config = OneVisionConnectorConfig::new(d_vision, d_llm, packing);
    config.init(device).unwrap()
}

/// Five pictures each: 2x2 tiles, one line of four, one column of four, a video.
const FIVE: [((u32, u32), bool); 4] = [
    ((24, 16), true),
    ((60, 4), true),
    ((9, 70), true),
    ((24, 24), false),
];

fn five() -> Vec<VisualShape> {
    FIVE.map(|(size, tiled)| {
        if tiled {
            image(size, 5)
        } else {
            VisualShape::video(size, 5)
        }
    })
    .into()
}

#[test]
fn visuals_of_different_kinds_go_together() {
    let device = Device::flex();
    let connector = small(7, 8, &device);
    let visuals = five();
    let features = random([4, 45, 7], &device);
    let all = connector.connect(features.clone(), &visuals, None).unwrap();
    // 9 + 4·7, 9 + 1·13, 9 + 12·2, 5·4 + 1
    assert_eq!(all.counts, [37, 22, 33, 21]);
    let mut start = 0;
    for (i, visual) in visuals.iter().enumerate() {
        let one = rows_of(&connector, features.clone().narrow(0, i, 1), *visual);
        let rows = all.rows.clone().narrow(0, start, all.counts[i]);
        assert!(max_diff(rows, one) < 1e-6, "{visual:?}");
        start += all.counts[i];
    }
    // An image of one picture is whole, a video of one frame is pooled.
    let one = random([2, 9, 7], &device);
    let visuals = [image((5, 9), 1), VisualShape::video((5, 9), 1)];
    assert_eq!(
        connector.connect(one, &visuals, None).unwrap().counts,
        [10, 5]
    );
}

#[test]
fn gradients_reach_newline_projector_and_every_token_that_is_read() {
    let device = Device::flex().autodiff();
    let connector = small(7, 8, &device);
    let features = random([4, 45, 7], &device);
    let run = |features: Tensor<3>| connector.connect(features, &five(), None).unwrap().rows;
    let cotangent = random([37 + 22 + 33 + 21, 8], &device);
    let tracked = features.clone().require_grad();
    let grads = (run(tracked.clone()) * cotangent.clone()).sum().backward();
    let found = gradients(&connector, &grads);
    let names = [
        "image_newline",
        "linear_1.bias",
        "linear_1.weight",
        "linear_2.bias",
        "linear_2.weight",
    ];
    assert_eq!(found.keys().collect::<Vec<_>>(), names);

    // The newline's is the sum of the cotangents of its rows.
    let mut ends = Vec::new();
    for (start, lines, line) in [(9, 4, 7), (46, 1, 13), (68, 12, 2)] {
        ends.extend((1..=lines).map(|i| start + i * line - 1));
    }
    ends.push(112);
    let lines = cotangent.clone().inner();
    for (column, grad) in found["image_newline"].iter().enumerate() {
        let at = |row: &usize| {
            lines
                .clone()
                .slice([*row..*row + 1, column..column + 1])
                .into_scalar::<f32>()
        };
        let sum: f32 = ends.iter().map(at).sum();
        assert!((sum - grad).abs() < 1e-4, "{column}: {sum} {grad}");
    }

    // Along a random direction the loss changes as the gradient says.
    let grad = tracked.grad(&grads).unwrap();
    let direction = random([4, 45, 7], &device);
    let loss = |step: f32| {
        let rows = run(features.clone() + direction.clone() * step);
        (rows * cotangent.clone()).sum().into_scalar::<f32>()
    };
    let slope = (loss(1e-2) - loss(-1e-2)) / 2e-2;
    let expected = (grad.clone() * direction.clone().inner())
        .sum()
        .into_scalar::<f32>();
    assert!(
        (slope - expected).abs() < 1e-2 * expected.abs().max(1.0),
        "{slope} {expected}"
    );
    // Of 36 tokens of each picture's tiles, those of 4x6, 1x12 and 12x1 are no margin.
    let zeros = values(grad)
        .chunks_exact(7)
        .filter(|token| token.iter().all(|v| *v == 0.0))
        .count();
    assert_eq!(zeros, (36 - 24) + (36 - 12) + (36 - 12));
}

#[test]
fn half_precision_gives_rows_of_its_kind() {
    struct To(FloatDType);
    impl ModuleMapper for To {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    let device = Device::flex();
    let full = small(7, 8, &device);
    let features = random([4, 45, 7], &device);
    let expected = full.connect(features.clone(), &five(), None).unwrap();
    for (float, dtype) in [
        (FloatDType::F16, DType::F16),
        (FloatDType::BF16, DType::BF16),
    ] {
        let half = full.clone().map(&mut To(float));
        for features in [features.clone(), features.clone().cast(float)] {
            let kind = features.dtype();
            let found = half.connect(features, &five(), None).unwrap();
            assert_eq!(found.counts, expected.counts);
            assert!(
                [DType::F32, dtype].contains(&found.rows.dtype()),
                "{kind:?} {dtype:?}"
            );
            let rows = found.rows.cast(FloatDType::F32);
            assert!(
                max_diff(rows, expected.rows.clone()) < 0.05,
                "{kind:?} {dtype:?}"
            );
        }
    }
}

#[test]
fn thin_pictures_keep_their_newlines_or_nothing() {
    let device = Device::flex();
    device.seed(3);
    let packing = Packing {
        side: 2,
        tiling: Tiling::up_to(8, 2),
        ..Packing::one_vision(UnpadRule::HuggingFace)
    };
    let connector = OneVisionConnectorConfig::new(7, 8, packing)
        .init(&device)
        .unwrap();
    let newline = connector.image_newline.val();
    for (size, lines) in [((60, 1), 0), ((1, 60), 2)] {
        let pictures = connector.packing().tiling.canvas(size).unwrap().pictures();
        let features = random([pictures, 4, 7], &device);
        let rows = rows_of(&connector, features, image(size, pictures));
        assert_eq!(rows.dims(), [4 + lines, 8], "{size:?}");
        for line in 4..4 + lines {
            let row = rows.clone().narrow(0, line, 1).squeeze_dim(0);
            assert_eq!(max_diff(row, newline.clone()), 0.0);
        }
    }
}

#[test]
fn unusable_features_and_sizes_are_errors() {
    let device = Device::flex();
    let connector = small(7, 8, &device);
    let run = |shape, visuals: &[VisualShape]| {
        let found = connector.connect(random(shape, &device), visuals, None);
        found.unwrap_err().to_string()
    };
    let tiled = image((24, 20), 5);
    let text = run([1, 44, 7], &[tiled]);
    assert!(
        text.contains("pictures x 9") && text.contains("[1, 44, 7]"),
        "{text}"
    );
    assert!(run([2, 45, 7], &[tiled]).contains("[5] pictures"));
    assert!(run([1, 45, 6], &[tiled]).contains("[batch, tokens, 7]"));
    assert!(run([1, 45, 7], &[image((24, 60), 5)]).contains("tiles"));
    assert!(run([1, 45, 7], &[image((0, 60), 5)]).contains("no pixels"));
    assert!(run([1, 9, 7], &[]).contains("[] pictures"));

    let wrong = |change: &dyn Fn(&mut OneVisionConnectorConfig)| {
        let mut config = OneVisionConnectorConfig::one_vision(896, UnpadRule::HuggingFace);
        change(&mut config);
        match config.init(&device) {
            Err(VisionError::Config { problems, .. }) => problems.join("; "),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let text = wrong(&|c| {
        c.d_llm = 0;
        c.packing.side = 0;
        c.packing.max_tiles = Some(0);
        c.packing.tiling.pinpoints.push([384, 500]);
    });
    for part in ["d_llm", "side must not", "max_tiles", "[384, 500]"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        wrong(&|c| {
            c.packing.side = 1;
            c.packing.pooling = Pooling::Max;
        })
        .contains("halved")
    );
    let published = OneVisionConnectorConfig::one_vision(896, UnpadRule::HuggingFace);
    let json = serde_json::to_value(&published).unwrap();
    assert_eq!(
        serde_json::from_value::<OneVisionConnectorConfig>(json).unwrap(),
        published
    );
}
