//! How many rows a language model reads of a visual, and how they lie on the grid of visual tokens
//! (LLaVA-OneVision).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::tiling::{Canvas, Tiling};
use crate::config::Problems;
use crate::error::{CoreError, Result};
use crate::prompt::Visual;
use crate::traits::VisualShape;

/// Most tokens along the side of a tile.
const MOST_SIDE: usize = 1 << 10;
/// Most tiles' worth of rows a picture may be shrunk to.
const MOST_TILES: usize = 1 << 10;
/// A grid is shrunk when its sides are longer by more than this factor (published code).
const SHRINK_ABOVE: f64 = 1.1;

/// How the rows of an unpadded picture are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnpadRule {
    /// Rounded to 7 decimals, then cut (transformers).
    HuggingFace,
    /// Cut (LLaVA-NeXT). It differs in about one of 20,000 sizes.
    Original,
}

/// What becomes of the tiles of a picture (`mm_patch_merge_type` of LLaVA-NeXT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    /// The whole picture, then the grid of tiles without its margins, a newline after every row
    /// (OneVision).
    SpatialUnpad,
    /// As [`Merge::SpatialUnpad`], without the whole picture.
    SpatialUnpadNobase,
    /// The whole picture, then the rows of the grid with its margins and without newlines.
    Spatial,
    /// Tile after tile, without newlines.
    Flat,
}

/// Where a video has newlines (`mm_newline_position` of LLaVA-NeXT).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VideoNewline {
    /// One after the last frame (OneVision).
    OneToken,
    /// After every row of every frame.
    Grid,
    /// After every frame.
    Frame,
    /// Nowhere.
    NoToken,
}

/// How the tokens of a video's frame are made fewer (`mm_spatial_pool_mode` of LLaVA-NeXT): two in each
/// direction become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Bilinear, half the side rounded up (OneVision).
    Bilinear,
    /// Mean of 2x2 tokens; an odd last row and column are left out.
    Average,
    /// Largest of 2x2 tokens; an odd last row and column are left out.
    Max,
}

/// From visual tokens to rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packing {
    /// Tokens along the side of a tile or frame.
    pub side: usize,
    /// Canvases of pictures.
    pub tiling: Tiling,
    /// Tiles' worth of tokens to which larger grids are shrunk (9 in `anyres_max_9`); `None` for never.
    pub max_tiles: Option<usize>,
    /// How margins are counted.
    pub unpad: UnpadRule,
    /// What becomes of tiles.
    pub merge: Merge,
    /// What becomes of a frame's tokens.
    pub pooling: Pooling,
    /// Newlines of videos.
    pub newline: VideoNewline,
}

/// The tokens of a visual, as they become rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// All tokens in their order, and a newline at the end or not.
    Flat {
        /// Number of tokens.
        tokens: usize,
        /// Whether a newline follows.
        newline: bool,
    },
    /// A picture in tiles.
    Tiles {
        /// Tokens of the whole picture, which come first; 0 when it is left out.
        base: usize,
        /// The grid of its tiles.
        grid: GridLayout,
    },
    /// The frames of a video.
    Frames {
        /// Number of frames.
        frames: usize,
        /// Tokens along the side of a frame after pooling.
        side: usize,
        /// Where newlines are.
        newline: VideoNewline,
    },
}

/// The grid of a picture's tiles, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridLayout {
    /// Tiles in a column and in a row.
    pub tiles: [usize; 2],
    /// Rows and columns of tokens that are not margin.
    pub kept: [Range<usize>; 2],
    /// Rows and columns after the shrink.
    pub size: [usize; 2],
    /// Whether a newline follows every row.
    pub newline: bool,
}

impl Packing {
    /// Of the published LLaVA-OneVision models, with the rule of the layout of their files.
    pub fn one_vision(unpad: UnpadRule) -> Self {
        Self {
            side: 27,
            tiling: Tiling::up_to(384, 6),
            max_tiles: Some(9),
            unpad,
            merge: Merge::SpatialUnpad,
            pooling: Pooling::Bilinear,
            newline: VideoNewline::OneToken,
        }
    }

    /// Notes what cannot be used.
    pub fn problems(&self, problems: &mut Problems) {
        problems.sizes(&[("side", self.side)], MOST_SIDE);
        if let Some(most) = self.max_tiles {
            problems.sizes(&[("max_tiles", most)], MOST_TILES);
        }
        problems.unless(
            self.pooling == Pooling::Bilinear || self.side != 1,
            "a side of one token cannot be halved; pool bilinearly",
        );
        self.tiling.problems(problems);
    }

    /// Tokens along the side of a frame after pooling.
    pub fn pooled_side(&self) -> usize {
        match self.pooling {
            Pooling::Bilinear => self.side.div_ceil(2),
            Pooling::Average | Pooling::Max => self.side / 2,
        }
    }

    /// At least as many rows as any image becomes.
    pub fn most_image_rows(&self) -> usize {
        let tile = self.side.saturating_mul(self.side);
        let shrunk = match self.max_tiles {
            Some(most) if self.unpads() => {
                let above = SHRINK_ABOVE * SHRINK_ABOVE;
                (most.saturating_mul(tile) as f64 * above).ceil() as usize
            }
            _ => usize::MAX,
        };
        let rows = |[height, width]: &[u32; 2]| {
            let tiles = [height, width].map(|n| (n / self.tiling.tile.max(1)) as usize);
            let [down, across] = tiles.map(|n| n.saturating_mul(self.side));
            let tokens = down.saturating_mul(across).min(shrunk);
            tokens.saturating_add(down).saturating_add(tile)
        };
        let most = self.tiling.pinpoints.iter().map(rows).max();
        most.unwrap_or(0).max(tile.saturating_add(1))
    }

    /// Rows that a visual becomes.
    ///
    /// # Errors
    /// As [`Packing::layout`].
    pub fn rows(&self, visual: &VisualShape) -> Result<usize> {
        Ok(self.layout(visual)?.rows())
    }

    /// How the tokens of a visual become rows. An image of one picture is one tile, one of several
    /// is the whole picture in one tile and the tiles of its canvas.
    ///
    /// # Errors
    /// [`CoreError::Visual`] for no pictures, for an image of several whose canvas has another number or of
    /// which nothing is left, and as [`Tiling::canvas`].
    pub fn layout(&self, visual: &VisualShape) -> Result<Layout> {
        let (width, height) = visual.size;
        let tile = self.side.saturating_mul(self.side);
        let unpads = self.unpads();
        let refuse = |why: String| {
            let what = match visual.kind {
                Visual::Video => "video",
                Visual::Image | Visual::None => "image",
            };
            Err(CoreError::visual(
                format!(
                    "{what} of {width}x{height} pixels in {} pictures",
                    visual.pictures
                ),
                why,
            ))
        };
        match (visual.kind, visual.pictures) {
            (Visual::None, _) => refuse("text has no rows of its own".into()),
            (_, 0) => refuse("there is nothing to look at; give at least one picture".into()),
            (Visual::Video, frames) => {
                let side = self.pooled_side();
                let newline = match self.newline {
                    _ if self.merge == Merge::Flat => VideoNewline::NoToken,
                    VideoNewline::OneToken if !unpads => VideoNewline::NoToken,
                    other => other,
                };
                Ok(Layout::Frames {
                    frames,
                    side,
                    newline,
                })
            }
            (Visual::Image, 1) => Ok(Layout::Flat {
                tokens: tile,
                newline: unpads,
            }),
            (Visual::Image, pictures) => {
                let canvas = self.tiling.canvas(visual.size)?;
                if canvas.pictures() != pictures {
                    let [rows, columns] = canvas.grid;
                    return refuse(format!(
                        "its canvas has {rows}x{columns} tiles, with the whole picture {}; make the tiles \
                         with the same pinpoints, or give it whole, as one picture",
                        canvas.pictures()
                    ));
                }
                if self.merge == Merge::Flat {
                    return Ok(Layout::Flat {
                        tokens: pictures.saturating_mul(tile),
                        newline: false,
                    });
                }
                let base = match self.merge {
                    Merge::SpatialUnpadNobase => 0,
                    _ => tile,
                };
                let grid = self.grid(visual.size, canvas, unpads);
                let layout = Layout::Tiles { base, grid };
                if layout.rows() == 0 {
                    return refuse("it is so thin that no row is left of it; give it whole".into());
                }
                Ok(layout)
            }
        }
    }

    /// Whether images lose their margins and have newlines, which go together.
    fn unpads(&self) -> bool {
        matches!(self.merge, Merge::SpatialUnpad | Merge::SpatialUnpadNobase)
    }

    fn grid(&self, size: (u32, u32), canvas: Canvas, unpads: bool) -> GridLayout {
        let tiles = canvas.grid;
        let whole = tiles.map(|n| n.saturating_mul(self.side));
        let kept = if unpads {
            unpad(size, whole, self.unpad)
        } else {
            whole.map(|n| 0..n)
        };
        let left = [kept[0].len(), kept[1].len()];
        let size = match self.max_tiles {
            Some(most) if unpads => shrunk(
                left,
                most.saturating_mul(self.side.saturating_mul(self.side)),
            ),
            _ => left,
        };
        GridLayout {
            tiles,
            kept,
            size,
            newline: unpads,
        }
    }
}

impl Layout {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        let with = |n: usize, newline: bool| n.saturating_add(usize::from(newline));
        match self {
            Self::Flat { tokens, newline } => with(*tokens, *newline),
            Self::Tiles { base, grid } => {
                let [rows, columns] = grid.size;
                base.saturating_add(rows.saturating_mul(with(columns, grid.newline)))
            }
            Self::Frames {
                frames,
                side,
                newline,
            } => {
                let line = with(*side, *newline == VideoNewline::Grid);
                let frame = with(side.saturating_mul(line), *newline == VideoNewline::Frame);
                with(
                    frames.saturating_mul(frame),
                    *newline == VideoNewline::OneToken,
                )
            }
        }
    }
}

/// Rows and columns of a grid `[rows, columns]` that show a picture of `(width, height)` pixels, all
/// positive, which was centred on it. Of an odd margin one row stays on the side of the end.
pub fn unpad((width, height): (u32, u32), grid: [usize; 2], rule: UnpadRule) -> [Range<usize>; 2] {
    let (w, h) = (f64::from(width), f64::from(height));
    let [rows, columns] = grid.map(|n| n as f64);
    // In f64 and in this order, as both published codes in Python.
    let (axis, shown) = if w / h > columns / rows {
        (0, h * (columns / w))
    } else {
        (1, w * (rows / h))
    };
    let shown = match rule {
        UnpadRule::Original => shown.floor(),
        // Rounding to 7 decimals, then cutting, differs from cutting just below a whole number.
        UnpadRule::HuggingFace if shown.floor() + 1.0 - shown < 5e-8 => shown.floor() + 1.0,
        UnpadRule::HuggingFace => shown.floor(),
    };
    let margin = grid[axis].saturating_sub(shown as usize) / 2;
    let mut kept = grid.map(|n| 0..n);
    kept[axis] = margin..grid[axis] - margin;
    kept
}

/// Rows and columns of a grid when it is shrunk to about `most` tokens, if it has a good deal more. None
/// becomes 0 that was not.
pub fn shrunk(grid: [usize; 2], most: usize) -> [usize; 2] {
    let [rows, columns] = grid.map(|n| n as f64);
    let ratio = (rows * columns / most.max(1) as f64).sqrt();
    if ratio <= SHRINK_ABOVE {
        return grid;
    }
    // Python's `//` of floats: the remainder is exact, so a quotient that rounds up to a whole
    // number is not taken for it.
    [rows, columns].map(|n| (((n - n % ratio) / ratio).round() as usize).max(1))
}
