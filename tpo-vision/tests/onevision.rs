//! OneVision's connector beside the published code, and what it does with mixed and unusable visuals.

mod common;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use common::params::{gradients, values};
use common::stored::Stored;
use common::{max_diff, random};
use serde_json::Value;
use tpo_core::geometry::{Merge, Packing, Pooling, Tiling, UnpadRule, VideoNewline, shrunk};
use tpo_core::traits::{Connector, VisualShape};
use tpo_vision::connector::onevision::pack;
use tpo_vision::{OneVisionConnector, OneVisionConnectorConfig, VisionError};

/// The layout that a fixture's configuration says.
fn packing(json: &Value, unpad: UnpadRule) -> Packing {
    let config = &json["config"];
    let vision = &config["vision_config"];
    let number = |key: &str| vision[key].as_u64().unwrap();
    Packing {
        side: (number("image_size") / number("patch_size")) as usize,
        tiling: Tiling {
            tile: number("image_size") as u32,
            pinpoints: serde_json::from_value(config["image_grid_pinpoints"].clone()).unwrap(),
        },
        ..Packing::one_vision(unpad)
    }
}

/// A connector with the weights of a fixture, under the names of its layout.
fn connector(stored: &Stored, packing: Packing, names: [&str; 3]) -> OneVisionConnector {
    let [first, second, newline] = names;
    let weight = |name: &str| stored.tensor::<2>(&format!("{name}.weight"));
    let bias = |name: &str| Some(Param::from_tensor(stored.tensor(&format!("{name}.bias"))));
    let newline = stored.tensor::<1>(newline);
    let [d_llm, d_vision] = weight(first).dims();
    let config = OneVisionConnectorConfig::new(d_vision, d_llm, packing);
    let mut connector = config.init(&newline.device()).unwrap();
    connector.linear_1.weight = weight(first).into();
    connector.linear_1.bias = bias(first);
    connector.linear_2.weight = weight(second).into();
    connector.linear_2.bias = bias(second);
    connector.image_newline = Param::from_tensor(newline);
    connector
}

const HUB: [&str; 3] = [
    "w.multi_modal_projector.linear_1",
    "w.multi_modal_projector.linear_2",
    "w.image_newline",
];
const ORIGINAL: [&str; 3] = [
    "w.model.mm_projector.0",
    "w.model.mm_projector.2",
    "w.model.image_newline",
];

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

#[test]
fn pictures_in_tiles_are_the_published_rows() {
    let stored = Stored::open("ov_images", &Device::flex());
    let cases = stored.json["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for rule in [UnpadRule::HuggingFace, UnpadRule::Original] {
        let nine = packing(&stored.json, rule);
        let four = Packing {
            max_tiles: Some(4),
            ..nine.clone()
        };
        let connectors =
            [("max9", nine), ("max4", four)].map(|(key, p)| (key, connector(&stored, p, HUB)));
        for (i, case) in cases.iter().enumerate() {
            let [height, width] = serde_json::from_value(case["size_hw"].clone()).unwrap();
            let pixels = stored.pixels(&format!("in.{i}.tiles"));
            let features = stored.siglip("w.vision_tower.vision_model", pixels);
            let visual = image((width, height), case["tiles"].as_u64().unwrap() as usize);
            for (key, connector) in &connectors {
                let rows = rows_of(connector, features.clone(), visual);
                stored.assert_close(&format!("out.{i}.{key}"), rows, "out");
            }
        }
    }
}

#[test]
fn variants_are_the_published_rows() {
    let stored = Stored::open("ov_original", &Device::flex());
    let base = packing(&stored.json, UnpadRule::Original);
    let features = |key: &str| {
        let pixels = stored.pixels(key);
        stored.siglip("w.model.vision_tower.vision_tower.vision_model", pixels)
    };
    let (tiles, frames) = (features("in.tiles_0"), features("in.frames_1"));
    let check = |key: &str, features: &Tensor<3>, visual, packing: Packing| {
        let connector = connector(&stored, packing, ORIGINAL);
        let rows = rows_of(&connector, features.clone(), visual);
        stored.assert_close(&format!("out.{key}"), rows, "out");
    };
    let picture = image((40, 22), 9);
    for (key, merge, max_tiles) in [
        ("spatial_unpad.anyres", Merge::SpatialUnpad, None),
        ("spatial_unpad.anyres_max_4", Merge::SpatialUnpad, Some(4)),
        (
            "spatial_unpad_nobase.anyres_max_9",
            Merge::SpatialUnpadNobase,
            Some(9),
        ),
        ("spatial.anyres", Merge::Spatial, None),
        ("flat.anyres_max_9", Merge::Flat, Some(9)),
    ] {
        let packing = Packing {
            merge,
            max_tiles,
            ..base.clone()
        };
        check(&format!("image.{key}"), &tiles, picture, packing);
    }
    let video = VisualShape::video((13, 13), 3);
    for (key, pooling, newline) in [
        (
            "bilinear.one_token",
            Pooling::Bilinear,
            VideoNewline::OneToken,
        ),
        ("bilinear.grid", Pooling::Bilinear, VideoNewline::Grid),
        ("bilinear.frame", Pooling::Bilinear, VideoNewline::Frame),
        (
            "bilinear.no_token",
            Pooling::Bilinear,
            VideoNewline::NoToken,
        ),
        (
            "average.one_token",
            Pooling::Average,
            VideoNewline::OneToken,
        ),
        ("max.one_token", Pooling::Max, VideoNewline::OneToken),
    ] {
        let packing = Packing {
            pooling,
            newline,
            ..base.clone()
        };
        check(&format!("video.{key}"), &frames, video, packing);
    }
}

#[test]
fn pooling_and_shrink_of_the_published_size() {
    let device = Device::flex().autodiff();
    let stored = Stored::open("ov_pool", &device);
    let grid = stored.tensor::<3>("in.grid").require_grad();
    let newline = stored.tensor::<1>("in.newline");
    let frames = grid.clone().reshape([2, 27, 27, 3]);
    for (key, pooling, side) in [
        ("bilinear", Pooling::Bilinear, 14),
        ("average", Pooling::Average, 13),
        ("max", Pooling::Max, 13),
    ] {
        let packing = Packing {
            pooling,
            ..Packing::one_vision(UnpadRule::Original)
        };
        assert_eq!(packing.pooled_side(), side);
        let pooled = pack::pool(frames.clone(), side, pooling);
        stored.assert_close(
            &format!("out.{key}"),
            pooled.reshape([2, side * side, 3]),
            "out",
        );
    }
    let pooled = pack::pool(frames, 14, Pooling::Bilinear);
    for (key, place) in [
        ("one_token", VideoNewline::OneToken),
        ("grid", VideoNewline::Grid),
        ("frame", VideoNewline::Frame),
    ] {
        let rows = pack::video(pooled.clone(), place, &newline);
        stored.assert_close(&format!("out.bilinear.{key}"), rows, "out");
    }
    let cotangent = stored.tensor::<4>("in.cotangent").permute([0, 2, 3, 1]);
    let grads = (pooled * cotangent).sum().backward();
    stored.assert_close("grad.in.grid", grid.grad(&grads).unwrap(), "grad");

    let map = stored.tensor::<3>("in.anyres").permute([1, 2, 0]);
    let [rows, columns, _] = map.dims();
    let size = shrunk([rows, columns], 4 * 27 * 27);
    let small = pack::shrink(map, size).permute([2, 0, 1]);
    stored.assert_close("out.anyres_max4", small, "out");
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
