//! Parts by themselves: the tower, the rows that the connector makes, pixels and counts.

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use tpo::core::geometry::{Layout, Packing, Pooling, Tiling, UnpadRule, VideoNewline, shrunk};
use tpo::core::traits::{Connector as _, VisionEncoder, VisualShape};
use tpo::data::sampling::{FrameSampling, frame_indices};
use tpo::data::{Frame, ImageTransform};
use tpo::model::Names;
use tpo::vision::SiglipConfig;
use tpo::vision::connector::onevision::pack;
use tpo::vision::siglip::SIGLIP_UNUSED_KEYS;
use tpo::weights::KeyRules;

use super::super::check::Report;
use super::super::fixture::{Failure, Fixture};
use super::super::text::frames_of;
use super::super::weights::{Stored, compare_gradients, load};
use super::Base;

/// `hf_siglip_vision`: the tower, layer by layer, without the norm and the pooling that LLaVA-OneVision leaves out.
pub fn siglip(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let config = SiglipConfig::from_hf_json(fixture.config())?;
    let device = device.clone().autodiff();
    let rules = KeyRules::new()
        .owns(["vision_model."])
        .prefix("vision_model.", "")
        .ignore_all(SIGLIP_UNUSED_KEYS)?;
    let tower = load(config.init(&device)?, fixture, &Stored(&rules))?;
    let pixels = fixture
        .tensor::<4>("in.pixel_values", &device)?
        .require_grad();
    let mut hidden = tower.embeddings.forward(pixels.clone());
    report.close(fixture, "mid.hidden.0", hidden.clone())?;
    for (i, layer) in tower.encoder.layers.iter().enumerate() {
        hidden = layer.forward(hidden);
        report.close(fixture, &format!("mid.hidden.{}", i + 1), hidden.clone())?;
    }
    let cotangent = fixture.tensor::<3>("in.cotangent", &device)?;
    let tokens = tower
        .encode(pixels.clone().unsqueeze())?
        .reshape(cotangent.dims());
    report.close(fixture, "out.features", tokens.clone())?;
    let loss = (tokens * cotangent).mean();
    report.close(fixture, "out.loss", loss.clone())?;
    let grads = loss.backward();
    compare_gradients(&mut report, fixture, "grad.", &tower, &rules, &grads)?;
    let grad = pixels.grad(&grads).ok_or("the pixels got no gradient")?;
    report.close(fixture, "grad.in.pixel_values", grad)?;
    report.leave("out.last_hidden_state");
    report.leave("out.pooler_output");
    report.nothing_left(fixture);
    Ok(report)
}

/// `ov_images`: pictures of any shape in tiles.
pub fn images(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Base::open(fixture, Names::HuggingFace, device)?;
    let most = [9, 4].map(|most| Packing {
        max_tiles: Some(most),
        ..base.packing.clone()
    });
    for (i, case) in list(&fixture.json, "cases")?.iter().enumerate() {
        let [height, width] = serde_json::from_value(case["size_hw"].clone())?;
        let key = format!("in.{i}.tiles");
        let image = base.images(fixture, &key, &[(width, height)])?.remove(0);
        let canvas = base.packing.tiling.canvas((width, height))?;
        same(&mut report, &key, &case["pinpoint_hw"], canvas.size.into());
        same(&mut report, &key, &case["tiles"], canvas.pictures().into());
        let features = base.model.vision.encode(image.pixels.unsqueeze())?;
        for packing in &most {
            let key = format!("max{}", packing.max_tiles.unwrap_or_default());
            let connector = base.connector(packing.clone())?;
            let found = connector.connect(features.clone(), &[image.shape], None)?;
            let count = packing.rows(&image.shape)?;
            same(&mut report, &key, &case[&key]["tokens"], count.into());
            report.close(fixture, &format!("out.{i}.{key}"), found.rows)?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// `ov_pool`: frames made smaller, newlines, a grid that is shrunk.
pub fn pool(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let device = device.clone().autodiff();
    let packing = Packing {
        side: fixture.usize("side")?,
        ..Packing::one_vision(UnpadRule::Original)
    };
    let grid = fixture.tensor::<3>("in.grid", &device)?.require_grad();
    let [frames, _, d] = grid.dims();
    let pooled = |pooling: Pooling| {
        let packing = Packing {
            pooling,
            ..packing.clone()
        };
        let map = grid
            .clone()
            .reshape([frames, packing.side, packing.side, d]);
        pack::pool(map, packing.pooled_side(), pooling)
    };
    for (key, pooling) in [
        ("bilinear", Pooling::Bilinear),
        ("average", Pooling::Average),
        ("max", Pooling::Max),
    ] {
        let map = pooled(pooling);
        let [_, rows, columns, _] = map.dims();
        let tokens = map.reshape([frames, rows * columns, d]);
        report.close(fixture, &format!("out.{key}"), tokens)?;
    }
    let newline = fixture.tensor::<1>("in.newline", &device)?;
    for (key, place) in [
        ("one_token", VideoNewline::OneToken),
        ("grid", VideoNewline::Grid),
        ("frame", VideoNewline::Frame),
    ] {
        let rows = pack::video(pooled(Pooling::Bilinear), place, &newline);
        report.close(fixture, &format!("out.bilinear.{key}"), rows)?;
    }
    let cotangent = fixture.tensor::<4>("in.cotangent", &device)?;
    let loss = (pooled(Pooling::Bilinear) * cotangent.permute([0, 2, 3, 1])).sum();
    let grad = grid.grad(&loss.backward()).ok_or("no gradient")?;
    report.close(fixture, "grad.in.grid", grad)?;

    let tiles = fixture.config()["shrink"]["k"]
        .as_u64()
        .ok_or("no shrink.k")? as usize;
    let map: Tensor<3> = fixture.tensor("in.anyres", &device)?;
    let map = map.permute([1, 2, 0]);
    let [rows, columns, _] = map.dims();
    let size = shrunk([rows, columns], tiles * packing.side * packing.side);
    let small = pack::shrink(map, size).permute([2, 0, 1]);
    report.close(fixture, &format!("out.anyres_max{tiles}"), small)?;
    report.nothing_left(fixture);
    Ok(report)
}

/// `ov_geometry`: tiles and rows of any size by both rules, and which frames of a video are seen.
pub fn geometry(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    for row in list(&fixture.json, "rows")? {
        for (rule, other) in [
            (UnpadRule::HuggingFace, row),
            (UnpadRule::Original, &row["original"]),
        ] {
            let what = format!("{} {rule:?}", row["size_hw"]);
            let found = laid_out(rule, &row["size_hw"])?;
            for (key, found) in found.as_object().into_iter().flatten() {
                let expected = if other[key].is_null() { row } else { other };
                same(
                    &mut report,
                    &format!("{key} of {what}"),
                    &expected[key],
                    found.clone(),
                );
            }
        }
    }
    for (table, wanted) in [("frames", "frames"), ("train_frames", "frames_upbound")] {
        for case in list(&fixture.json, table)? {
            let sampling = match case["video_fps"].as_f64() {
                Some(rate) if case["force_sample"] != true => FrameSampling::UpTo(rate),
                _ => FrameSampling::Linspace,
            };
            let number = |key: &str| case[key].as_u64().ok_or(format!("no `{key}` in {case}"));
            let (most, total) = (number(wanted)? as usize, number("total")? as usize);
            let fps = case["fps"].as_f64().unwrap_or(f64::NAN);
            let found = frame_indices(sampling, most, total, fps)?;
            same(
                &mut report,
                &format!("{table} of {total}"),
                &case["index"],
                found.into(),
            );
        }
    }
    Ok(report)
}

/// What a row of `ov_geometry` says of a size.
fn laid_out(rule: UnpadRule, size: &Value) -> Result<Value, Failure> {
    let packing = Packing::one_vision(rule);
    let shape = tiled(&packing, size)?;
    let canvas = packing.tiling.canvas(shape.size)?;
    let Layout::Tiles { grid, .. } = packing.layout(&shape)? else {
        return Err(format!("{size} is no picture in tiles").into());
    };
    let [top, left] = canvas.margin;
    Ok(serde_json::json!({
        "best_hw": canvas.size,
        "tiles": canvas.pictures(),
        "grid": canvas.grid.map(|n| n * packing.side),
        "unpadded": [grid.kept[0].len(), grid.kept[1].len()],
        "final": grid.size,
        "tokens": packing.rows(&shape)?,
        "fit_hw": canvas.picture,
        "paste_xy": [left, top],
    }))
}

/// An image of a height and width, with all of its tiles.
fn tiled(packing: &Packing, size: &Value) -> Result<VisualShape, Failure> {
    let [height, width] = serde_json::from_value(size.clone())?;
    Ok(VisualShape {
        pictures: packing.tiling.canvas((width, height))?.pictures(),
        ..VisualShape::image((width, height))
    })
}

/// `siglip_preprocess`: pictures resized to squares.
pub fn siglip_pixels(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    for name in fixture
        .tensors
        .keys()
        .filter_map(|key| key.strip_prefix("in."))
    {
        let resized = format!("out.{name}.resized");
        let side = fixture.stored(&resized)?.shape.last().copied().unwrap_or(0);
        let transform = ImageTransform::siglip().with_size([side, side]);
        let (values, _) = transform.apply(&frames(fixture, &format!("in.{name}"))?)?;
        pixels(&mut report, fixture, &resized, &values)?;
        let stored = format!("out.{name}.pixel_values");
        if fixture.has(&stored) {
            pixels(&mut report, fixture, &stored, &values)?;
        }
        report.leave(&format!("out.{name}.resized_pil"));
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// `llava_onevision_preprocess`: tiles, squares and frames, and the rows of pictures of the published size.
pub fn preprocess(fixture: &Fixture) -> Result<Report, Failure> {
    let mut report = Report::default();
    let side = fixture.usize("size")?;
    let transform = ImageTransform::siglip().with_size([side, side]);
    let tiling = Tiling {
        tile: u32::try_from(side)?,
        pinpoints: serde_json::from_value(fixture.config()["image_grid_pinpoints"].clone())?,
    };
    for (i, best) in list(&fixture.json, "best_resolution")?.iter().enumerate() {
        let image = frames(fixture, &format!("in.image.{i}"))?.remove(0);
        let canvas = tiling.canvas((image.width() as u32, image.height() as u32))?;
        same(
            &mut report,
            &format!("best_resolution {i}"),
            best,
            canvas.size.into(),
        );
        let (values, _) = transform.tiles(&image, &tiling)?;
        pixels(
            &mut report,
            fixture,
            &format!("out.image.{i}.pixel_values"),
            &values,
        )?;
        report.leave(&format!("out.image.{i}.pixel_values_pil"));
    }
    let mut several = Vec::new();
    while fixture.has(&format!("in.multi.{}", several.len())) {
        several.extend(frames(fixture, &format!("in.multi.{}", several.len()))?);
    }
    let (values, _) = transform.squares(&several)?;
    for (i, values) in values.chunks_exact(3 * side * side).enumerate() {
        pixels(
            &mut report,
            fixture,
            &format!("out.multi.{i}.pixel_values"),
            values,
        )?;
        report.leave(&format!("out.multi.{i}.pixel_values_pil"));
    }
    let (values, _) = transform.apply(&frames(fixture, "in.video")?)?;
    pixels(
        &mut report,
        fixture,
        "out.video.pixel_values_videos",
        &values,
    )?;

    let packing = Packing::one_vision(UnpadRule::HuggingFace);
    for row in list(&fixture.json, "token_table")? {
        let shape = tiled(&packing, &row["size_hw"])?;
        let what = format!("{}", row["size_hw"]);
        same(&mut report, &what, &row["tiles"], shape.pictures.into());
        same(
            &mut report,
            &what,
            &row["tokens"],
            packing.rows(&shape)?.into(),
        );
    }
    for (frames, rows) in fixture.json["video_tokens"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let video = VisualShape::video((1, 1), frames.parse()?);
        same(
            &mut report,
            &format!("{frames} frames"),
            rows,
            packing.rows(&video)?.into(),
        );
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// Compares pixel values; those that are stored as bytes are `127.5 (value + 1)`. A share of them may be a step of a
/// byte off (the fixture's own rule).
fn pixels(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    values: &[f32],
) -> Result<(), Failure> {
    let mut expected = fixture.floats(key)?;
    if fixture.ints(key).is_ok() {
        expected.iter_mut().for_each(|v| *v = *v / 127.5 - 1.0);
    }
    report.expect(key, expected.len() == values.len(), || {
        format!("{} values, expected {}", values.len(), expected.len())
    });
    let errors = expected.iter().zip(values).map(|(a, b)| (a - b).abs());
    let largest = errors.clone().fold(0.0, f32::max);
    let differ = errors.filter(|error| *error > 1e-5).count() as f64 / values.len().max(1) as f64;
    let tolerance = |of: &str| fixture.tolerance(of);
    report.measure(key, largest.into(), tolerance("atol")?);
    report.measure(
        &format!("{key} (share that differs)"),
        differ,
        tolerance("fraction")?,
    );
    Ok(())
}

/// Stored pictures `[frames, 3, height, width]`, or one.
fn frames(fixture: &Fixture, key: &str) -> Result<Vec<Frame>, Failure> {
    let mut stored = fixture.stored(key)?.clone();
    if stored.shape.len() == 3 {
        stored.shape.insert(0, 1);
    }
    frames_of(&stored, 1)
}

fn list<'a>(json: &'a Value, key: &str) -> Result<&'a Vec<Value>, Failure> {
    json[key]
        .as_array()
        .ok_or_else(|| format!("no list `{key}`").into())
}

fn same(report: &mut Report, what: &str, expected: &Value, found: Value) {
    report.expect(what, *expected == found, || {
        format!("got {found}, expected {expected}")
    });
}
