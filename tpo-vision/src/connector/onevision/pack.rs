//! Rows of visual tokens, on the device. Gradients reach every token that is read, and the newline. Shapes
//! are the caller's to check, as [`OneVisionConnector`](super::OneVisionConnector) does.

use burn::tensor::{FloatDType, Tensor};
use tpo_core::geometry::{GridLayout, Layout, Packing, Pooling, VideoNewline};
use tpo_core::ops::{Resize, max_pool_2x2, to_f32};

/// The rows of one visual whose layout is that of `packing`.
///
/// # Shapes
/// - tokens `[pictures * side * side, d]`, picture after picture, and in each row after row
/// - newline `[d]`
/// - output `[layout.rows(), d]`
pub fn rows(
    tokens: Tensor<2>,
    layout: &Layout,
    packing: &Packing,
    newline: &Tensor<1>,
) -> Tensor<2> {
    let [count, d] = tokens.dims();
    let side = packing.side;
    match layout {
        Layout::Flat { newline: false, .. } => tokens,
        Layout::Flat { newline: true, .. } => {
            Tensor::cat(vec![tokens, newline.clone().unsqueeze()], 0)
        }
        Layout::Tiles { base, grid } => {
            let tile = side * side;
            let tiles = tokens.clone().narrow(0, tile, count - tile);
            let mut parts = Vec::new();
            if *base > 0 {
                parts.push(tokens.narrow(0, 0, *base));
            }
            parts.extend(picture(tiles, grid, side, newline));
            match parts.len() {
                1 => parts.remove(0),
                _ => Tensor::cat(parts, 0),
            }
        }
        Layout::Frames {
            frames,
            side: pooled,
            newline: place,
        } => {
            let frames = tokens.reshape([*frames, side, side, d]);
            let pooled = pool(frames, *pooled, packing.pooling);
            video(pooled, *place, newline)
        }
    }
}

/// The rows of a picture's tiles: put together, without margins, shrunk, with newlines. `None` when no row is
/// left.
///
/// # Shapes
/// - tiles `[tiles * side * side, d]`, row-major
/// - output `[grid.size[0] * (grid.size[1] + newline), d]`
pub fn picture(
    tiles: Tensor<2>,
    grid: &GridLayout,
    side: usize,
    newline: &Tensor<1>,
) -> Option<Tensor<2>> {
    let d = tiles.dims()[1];
    let ([down, across], [rows, columns]) = (grid.tiles, grid.size);
    if rows == 0 {
        return None;
    }
    let ends = || newline.clone().reshape([1, 1, d]).expand([rows, 1, d]);
    if columns == 0 {
        return grid.newline.then(|| ends().reshape([rows, d]));
    }
    let [high, wide] = grid.kept.clone();
    let map = tiles
        .reshape([down, across, side, side * d])
        .swap_dims(1, 2)
        .reshape([down * side, across * side, d])
        .slice([high, wide]);
    let map = shrink(map, grid.size);
    let map = if grid.newline {
        Tensor::cat(vec![map, ends()], 1)
    } else {
        map
    };
    Some(map.flatten(0, 1))
}

/// A map `[rows, columns, d]` shrunk bilinearly to `size`, in f32.
pub fn shrink(map: Tensor<3>, size: [usize; 2]) -> Tensor<3> {
    bilinear(map.unsqueeze(), size).squeeze_dim(0)
}

/// Frames with a quarter of their tokens.
///
/// # Shapes
/// - frames `[frames, side, side, d]`
/// - output `[frames, pooled, pooled, d]`, where `pooled` is that of
///   [`Packing::pooled_side`](tpo_core::geometry::Packing::pooled_side)
pub fn pool(frames: Tensor<4>, pooled: usize, pooling: Pooling) -> Tensor<4> {
    let [count, _, _, d] = frames.dims();
    match pooling {
        Pooling::Bilinear => bilinear(frames, [pooled; 2]),
        Pooling::Max => max_pool_2x2(frames),
        Pooling::Average => {
            let even = frames.narrow(1, 0, 2 * pooled).narrow(2, 0, 2 * pooled);
            let blocks: Tensor<6> = even.reshape([count, pooled, 2, pooled, 2, d]);
            let means = blocks.mean_dims(&[2, 4]);
            means.reshape([count, pooled, pooled, d])
        }
    }
}

/// The rows of a video, frame after frame.
///
/// # Shapes
/// - frames `[frames, side, side, d]`
/// - output `[rows, d]`
pub fn video(frames: Tensor<4>, place: VideoNewline, newline: &Tensor<1>) -> Tensor<2> {
    let [count, side, _, d] = frames.dims();
    // Newlines stand at the end of every line of so many rows.
    let lines = match place {
        VideoNewline::NoToken => return frames.reshape([count * side * side, d]),
        VideoNewline::OneToken => 1,
        VideoNewline::Frame => count,
        VideoNewline::Grid => count * side,
    };
    let frames = frames.reshape([lines, count * side * side / lines, d]);
    let ends = newline.clone().reshape([1, 1, d]).expand([lines, 1, d]);
    Tensor::cat(vec![frames, ends], 1).flatten(0, 1)
}

/// Maps `[n, rows, columns, d]` at another size, with half-pixel centres and without antialiasing; in f32.
fn bilinear(maps: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, rows, columns, _] = maps.dims();
    let dtype: FloatDType = maps.dtype().into();
    let resize = Resize::new([rows, columns], size, false, &maps.device());
    resize.apply_channels_last(to_f32(maps)).cast(dtype)
}
