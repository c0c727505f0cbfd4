//! Tiles of pictures and rows of visuals, beside the integers of both published implementations.

use serde_json::Value;
use tpo_core::CoreError;
use tpo_core::geometry::{
    Layout, Merge, Packing, Pooling, Tiling, UnpadRule, VideoNewline, shrunk, unpad,
};
use tpo_core::prompt::Visual;
use tpo_core::traits::VisualShape;

fn pair(row: &Value, key: &str) -> [usize; 2] {
    serde_json::from_value(row[key].clone()).unwrap()
}

/// An image with all of its tiles.
fn tiled(packing: &Packing, size: (u32, u32)) -> VisualShape {
    VisualShape {
        pictures: packing.tiling.canvas(size).unwrap().pictures(),
        ..VisualShape::image(size)
    }
}

/// Everything a row of the fixture says, as the fixture says it.
fn found(rule: UnpadRule, size: (u32, u32)) -> Value {
    let packing = Packing::one_vision(rule);
    let canvas = packing.tiling.canvas(size).unwrap();
    let shape = tiled(&packing, size);
    let Layout::Tiles { base: 729, grid } = packing.layout(&shape).unwrap() else {
        panic!("{size:?} is no picture in tiles");
    };
    let [top, left] = canvas.margin;
    serde_json::json!({
        "best_hw": canvas.size,
        "tiles": canvas.pictures(),
        "grid": canvas.grid.map(|n| n * 27),
        "unpadded": [grid.kept[0].len(), grid.kept[1].len()],
        "final": grid.size,
        "tokens": packing.rows(&shape).unwrap(),
        "fit_hw": canvas.picture,
        "paste_xy": [left, top],
    })
}

#[test]
fn every_size_has_the_integers_of_both_codes() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/ov_geometry.json")).unwrap();
    let rows = fixture["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 85);
    let mut differ = 0;
    for row in rows {
        let [height, width] = pair(row, "size_hw").map(|n| n as u32);
        for (rule, other) in [
            (UnpadRule::HuggingFace, row),
            (UnpadRule::Original, &row["original"]),
        ] {
            for (key, value) in found(rule, (width, height)).as_object().unwrap() {
                let expected = if other[key].is_null() {
                    &row[key]
                } else {
                    &other[key]
                };
                assert_eq!(value, expected, "{key} of {height}x{width}, {rule:?}");
            }
        }
        differ += usize::from(!row["original"].is_null());
    }
    assert_eq!(differ, 8);
}

#[test]
fn rows_of_videos_and_whole_images() {
    let packing = Packing::one_vision(UnpadRule::Original);
    let rows = |packing: &Packing, shape| packing.rows(&shape).unwrap();
    let size = (640, 480);
    let video = |frames| VisualShape::video(size, frames);
    assert_eq!(rows(&packing, VisualShape::image(size)), 730);
    for (frames, count) in [(1, 197), (2, 393), (8, 1569), (32, 6273)] {
        assert_eq!(rows(&packing, video(frames)), count);
    }
    let with = |change: &dyn Fn(&mut Packing)| {
        let mut other = packing.clone();
        change(&mut other);
        other
    };
    for (newline, count) in [
        (VideoNewline::Grid, 2 * 14 * 15),
        (VideoNewline::Frame, 2 * 197),
        (VideoNewline::NoToken, 2 * 196),
    ] {
        assert_eq!(rows(&with(&|p| p.newline = newline), video(2)), count);
    }
    for pooling in [Pooling::Average, Pooling::Max] {
        assert_eq!(rows(&with(&|p| p.pooling = pooling), video(2)), 2 * 169 + 1);
    }
    // 640x480 on 2x2 tiles: 54x54 tokens, of which 40 rows are no margin.
    for (merge, picture, whole, two_frames) in [
        (Merge::SpatialUnpad, 729 + 40 * 55, 730, 393),
        (Merge::SpatialUnpadNobase, 40 * 55, 730, 393),
        (Merge::Spatial, 729 + 54 * 54, 729, 392),
        (Merge::Flat, 5 * 729, 729, 392),
    ] {
        let packing = with(&|p| p.merge = merge);
        assert_eq!(rows(&packing, tiled(&packing, size)), picture, "{merge:?}");
        assert_eq!(rows(&packing, VisualShape::image(size)), whole, "{merge:?}");
        assert_eq!(rows(&packing, video(2)), two_frames, "{merge:?}");
    }
    let all = with(&|p| p.max_tiles = None);
    let large = (2304, 2304);
    assert_eq!(rows(&all, tiled(&all, large)), 729 + 162 * 163);
    assert_eq!(rows(&packing, tiled(&packing, large)), 729 + 81 * 82);
}

#[test]
fn any_size_has_a_defined_result() {
    let packing = Packing::one_vision(UnpadRule::HuggingFace);
    for (size, rows) in [
        ((3000, 1), 729 + 28),
        ((1, 3000), 729 + 2 * 27),
        ((u32::MAX, 1), 729 + 28),
        ((1, u32::MAX), 729 + 2 * 27),
        ((u32::MAX, u32::MAX), 729 + 81 * 82),
        ((1, 1), 729 + 27 * 28),
    ] {
        assert_eq!(
            packing.rows(&tiled(&packing, size)).unwrap(),
            rows,
            "{size:?}"
        );
        let canvas = packing.tiling.canvas(size).unwrap();
        assert!(canvas.picture.iter().all(|n| *n > 0), "{size:?}");
    }
    // Even grids: nothing of a thin picture is left, or lines that are only newlines.
    assert_eq!(unpad((60, 1), [2, 2], UnpadRule::HuggingFace), [1..1, 0..2]);
    assert_eq!(unpad((1, 60), [2, 2], UnpadRule::HuggingFace), [0..2, 1..1]);
    assert_eq!(shrunk([0, 40], 9), [0, 40]);
    // A line of 400 tokens would lose its only row.
    assert_eq!(shrunk([1, 400], 4), [1, 40]);
    let frames = VisualShape::video((1, 1), usize::MAX);
    assert_eq!(packing.rows(&frames).unwrap(), usize::MAX);
}

proptest::proptest! {
    #[test]
    fn pictures_lie_on_their_canvas(w in 1u32.., h in 1u32.., narrow in 1u32..40, wide in 1u32..5000) {
        for rule in [UnpadRule::HuggingFace, UnpadRule::Original] {
            let packing = Packing::one_vision(rule);
            for size in [(w, h), (narrow, wide), (wide, narrow), (wide, wide / 3 + 1)] {
                let canvas = packing.tiling.canvas(size).unwrap();
                for axis in 0..2 {
                    let [all, shown, margin] = [canvas.size, canvas.picture, canvas.margin].map(|n| n[axis]);
                    assert!(shown > 0 && shown + 2 * margin <= all && all <= shown + 2 * margin + 1);
                }
                let shape = tiled(&packing, size);
                let Layout::Tiles { grid, .. } = packing.layout(&shape).unwrap() else {
                    panic!("{size:?}");
                };
                for axis in 0..2 {
                    assert!(grid.kept[axis].end <= grid.tiles[axis] * 27);
                    assert!(grid.size[axis] <= grid.kept[axis].len());
                }
                // The largest that there is in published models: 162x49 tokens.
                assert!((729 + 27..=8829).contains(&packing.rows(&shape).unwrap()));
            }
        }
    }
}

#[test]
fn what_cannot_be_laid_out_is_said() {
    let packing = Packing::one_vision(UnpadRule::HuggingFace);
    let why = |packing: &Packing, shape: VisualShape| match packing.rows(&shape) {
        Err(CoreError::Visual { what, why }) => format!("{what}: {why}"),
        other => panic!("{other:?}"),
    };
    let image = |size, pictures| VisualShape {
        pictures,
        ..VisualShape::image(size)
    };
    for size in [(0, 5), (5, 0), (0, 0)] {
        assert!(why(&packing, image(size, 2)).contains("no pixels"));
    }
    let text = why(&packing, image((640, 480), 6));
    assert!(
        text.contains("image of 640x480 pixels in 6 pictures"),
        "{text}"
    );
    assert!(
        text.contains("2x2 tiles, with the whole picture 5"),
        "{text}"
    );
    assert!(why(&packing, VisualShape::video((5, 5), 0)).contains("at least one"));
    let nothing = VisualShape {
        kind: Visual::None,
        ..VisualShape::image((5, 5))
    };
    assert!(why(&packing, nothing).contains("text"));
    let thin = Packing {
        side: 2,
        tiling: Tiling::up_to(8, 2),
        merge: Merge::SpatialUnpadNobase,
        ..packing
    };
    assert!(why(&thin, tiled(&thin, (60, 1))).contains("no row"));
    for (tile, pinpoints) in [
        (0, vec![[384, 384]]),
        (384, vec![]),
        (384, vec![[384, 385]]),
        (384, vec![[0, 384]]),
        (1, vec![[4096, 4096]]),
        (u32::MAX, vec![[u32::MAX, u32::MAX]]),
    ] {
        let tiling = Tiling { tile, pinpoints };
        let found = tiling.canvas((5, 5));
        assert!(matches!(found, Err(CoreError::Visual { .. })), "{tiling:?}");
    }
}
