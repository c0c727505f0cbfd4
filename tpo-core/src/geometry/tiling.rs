//! Pictures in tiles ("anyres" of LLaVA-OneVision, arXiv 2408.03326): which canvas a picture is laid
//! on, and where.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::config::Problems;
use crate::error::{CoreError, Result};

/// Largest side of a canvas in pixels, and most canvases of a choice; beyond any known model.
const MOST: usize = 1 << 14;
/// Most tiles of a canvas. Known models have up to 81.
const MOST_TILES: u32 = 1 << 10;

/// The canvases that a picture may be laid on, each a whole number of square tiles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tiling {
    /// Side of a tile in pixels, which is that of the vision encoder's pictures.
    pub tile: u32,
    /// `[height, width]` of every canvas in pixels (`image_grid_pinpoints`). The first of equally
    /// good ones is taken.
    pub pinpoints: Vec<[u32; 2]>,
}

/// A picture on a canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// `[height, width]` of the canvas in pixels.
    pub size: [u32; 2],
    /// Tiles in a column and in a row.
    pub grid: [usize; 2],
    /// `[height, width]` that the picture is resized to, its aspect ratio kept.
    pub picture: [u32; 2],
    /// Pixels `[above, left of]` the picture.
    pub margin: [u32; 2],
}

impl Tiling {
    /// Canvases of 1 to `most` tiles in each direction, those of one tile's height first. With tiles of
    /// 384 pixels and `most = 6` they are those of the published OneVision models.
    pub fn up_to(tile: u32, most: u32) -> Self {
        let side = |n: u32| n.saturating_mul(tile);
        let row = |rows| (1..=most).map(move |columns| [side(rows), side(columns)]);
        Self {
            tile,
            pinpoints: (1..=most).flat_map(row).collect(),
        }
    }

    /// Notes what cannot be used.
    pub fn problems(&self, problems: &mut Problems) {
        problems.sizes(&[("tile", self.tile as usize)], MOST);
        problems.sizes(&[("the number of pinpoints", self.pinpoints.len())], MOST);
        let tile = self.tile.max(1);
        for [height, width] in &self.pinpoints {
            let fits = [height, width]
                .iter()
                .all(|n| **n > 0 && n.is_multiple_of(tile) && **n as usize <= MOST);
            problems.unless(
                fits && (height / tile).saturating_mul(width / tile) <= MOST_TILES,
                format_args!(
                    "pinpoint [{height}, {width}] must be multiples of the tile of {tile} pixels, at most \
                     {MOST} per side and {MOST_TILES} tiles"
                ),
            );
        }
    }

    /// The canvas for a picture of `(width, height)` pixels: the one that shows most of its pixels, of those
    /// the one with the least empty space, of those the first.
    ///
    /// # Errors
    /// [`CoreError::Visual`] for a side of 0, and for canvases that cannot be used.
    pub fn canvas(&self, (width, height): (u32, u32)) -> Result<Canvas> {
        let what = || format!("image of {width}x{height} pixels");
        let mut problems = Problems::default();
        self.problems(&mut problems);
        problems.into_result(|all| CoreError::visual(what(), all.join("; ")))?;
        if width == 0 || height == 0 {
            return Err(CoreError::visual(what(), "it has no pixels"));
        }
        let (w, h) = (f64::from(width), f64::from(height));
        let pixels = u64::from(width) * u64::from(height);
        // In f64 and in this order, as the published code in Python.
        let cost = |[rows, columns]: [u32; 2]| {
            let scale = (f64::from(columns) / w).min(f64::from(rows) / h);
            let shown = (w * scale) as u64 * (h * scale) as u64;
            let used = shown.min(pixels);
            let all = u64::from(rows) * u64::from(columns);
            (Reverse(used), all.saturating_sub(used))
        };
        let best = self.pinpoints.iter().min_by_key(|p| cost(**p));
        let size = *best.ok_or_else(|| CoreError::visual(what(), "there is no canvas"))?;
        let (scale_h, scale_w) = (f64::from(size[0]) / h, f64::from(size[1]) / w);
        let fit = |side: f64, scale: f64, most: u32| ((side * scale).ceil() as u32).min(most);
        let picture = if scale_w < scale_h {
            [fit(h, scale_w, size[0]), size[1]]
        } else {
            [size[0], fit(w, scale_h, size[1])]
        };
        Ok(Canvas {
            size,
            grid: size.map(|n| (n / self.tile) as usize),
            picture,
            margin: [0, 1].map(|axis| (size[axis] - picture[axis]) / 2),
        })
    }
}

impl Canvas {
    /// Pictures that go into the encoder: the whole picture in one tile, then every tile of the canvas.
    pub fn pictures(&self) -> usize {
        1 + self.grid[0] * self.grid[1]
    }
}
