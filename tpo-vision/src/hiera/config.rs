//! Architecture of the image encoder.

use burn::config::Config;
use tpo_core::config::Problems;

use crate::error::{Result, VisionError};

/// Channels of an image.
pub(super) const CHANNELS: usize = 3;
/// Kernel, stride and padding of the patch embedding (reference implementation).
pub(super) const PATCH: (usize, usize, usize) = (7, 4, 3);
/// Widths above this are taken for a mistake in a file; the largest published one is 144.
const MOST_CHANNELS: usize = 1 << 14;
/// Stages of the trunk.
pub(super) const STAGES: usize = 4;

/// Architecture of [`Hiera`](super::Hiera). Field names are those of the SAM 2 configuration files.
#[derive(Config, Debug, PartialEq)]
pub struct HieraConfig {
    /// Width of the first stage; every further stage doubles it.
    pub embed_dim: usize,
    /// Heads of the first stage; every further stage doubles them.
    pub num_heads: usize,
    /// Blocks per stage.
    pub stages: [usize; 4],
    /// Indices of the blocks that attend globally.
    pub global_att_blocks: Vec<usize>,
    /// Side of a window per stage, in pixels of that stage's map.
    #[config(default = "[8, 4, 14, 7]")]
    pub window_spec: [usize; 4],
    /// Height and width of the position table that is resized to the image.
    #[config(default = "[7, 7]")]
    pub window_pos_embed_bkg_spatial_size: [usize; 2],
    /// Stages after the first that begin with pooled queries. The reference uses all three.
    #[config(default = 3)]
    pub q_pool: usize,
    /// Width of the hidden layer of a block's MLP, in multiples of the block's width.
    #[config(default = 4)]
    pub mlp_ratio: usize,
    /// Largest drop-path probability; it rises linearly over the blocks. Training only.
    #[config(default = 0.0)]
    pub drop_path_rate: f64,
    /// Added to the variance in layer norms.
    #[config(default = 1e-6)]
    pub layer_norm_eps: f64,
}

/// Architecture of [`ImageEncoder`](super::ImageEncoder).
#[derive(Config, Debug, PartialEq)]
pub struct ImageEncoderConfig {
    /// The trunk.
    pub trunk: HieraConfig,
    /// Channels of every map of the pyramid.
    #[config(default = 256)]
    pub d_model: usize,
    /// Levels, finest first, to which the next coarser one is added, upsampled.
    #[config(default = "vec![2, 3]")]
    pub fpn_top_down_levels: Vec<usize>,
    /// Coarsest levels that are not returned.
    #[config(default = 1)]
    pub scalp: usize,
}

/// What distinguishes one block from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockShape {
    pub dim: usize,
    pub dim_out: usize,
    pub heads: usize,
    /// `None`: global attention.
    pub window: Option<usize>,
    pub pool: bool,
    /// Last block of its stage.
    pub ends_stage: bool,
}

impl HieraConfig {
    /// Hiera-T: 12 blocks, width 96 (SAM 2 configuration files; so are the others).
    pub fn tiny() -> Self {
        Self::new(96, 1, [1, 2, 7, 2], vec![5, 7, 9])
    }

    /// Hiera-S: 16 blocks, width 96.
    pub fn small() -> Self {
        Self::new(96, 1, [1, 2, 11, 2], vec![7, 10, 13])
    }

    /// Hiera-B+: 24 blocks, width 112.
    pub fn base_plus() -> Self {
        Self::new(112, 2, [2, 3, 16, 3], vec![12, 16, 20])
            .with_window_pos_embed_bkg_spatial_size([14, 14])
    }

    /// Hiera-L: 48 blocks, width 144; the trunk of VideoChat-TPO's mask head.
    pub fn large() -> Self {
        Self::new(144, 2, [2, 6, 36, 4], vec![23, 33, 43]).with_window_spec([8, 4, 16, 8])
    }

    /// Seven blocks of width 16, for images of 128 pixels: the trunk of the mini model.
    pub fn mini() -> Self {
        Self::new(16, 1, [1, 2, 3, 1], vec![2, 5]).with_window_spec([8, 8, 8, 4])
    }

    /// Six blocks of width 8, for tests.
    pub fn nano() -> Self {
        Self::new(8, 1, [1, 2, 2, 1], vec![4]).with_window_spec([8, 4, 6, 3])
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.stages
            .iter()
            .fold(0, |sum: usize, count| sum.saturating_add(*count))
    }

    /// Widths of the stages' outputs, finest first.
    pub fn widths(&self) -> [usize; 4] {
        std::array::from_fn(|stage| self.embed_dim << stage)
    }

    /// Image sides must be a multiple of this: the position table of the first window must tile
    /// the patches, and every stage halve them.
    pub fn side_multiple(&self) -> usize {
        PATCH.1 * least_common_multiple(self.window_spec[0].max(1), 1 << self.q_pool.min(3))
    }

    /// The blocks in order. The first block of a stage still has the window of the stage before.
    pub(super) fn blocks(&self) -> Vec<BlockShape> {
        let mut blocks = Vec::with_capacity(self.depth());
        for (stage, &count) in self.stages.iter().enumerate() {
            for at in 0..count {
                let enters = stage > 0 && at == 0;
                let previous = stage - usize::from(enters);
                let global = self.global_att_blocks.contains(&blocks.len());
                blocks.push(BlockShape {
                    dim: self.embed_dim << previous,
                    dim_out: self.embed_dim << stage,
                    heads: self.num_heads << stage,
                    window: (!global).then_some(self.window_spec[previous]),
                    pool: enters && stage <= self.q_pool,
                    ends_stage: at + 1 == count,
                });
            }
        }
        blocks
    }

    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`VisionError::Config`] with every broken rule.
    pub fn validate(&self) -> Result<()> {
        let [rows, columns] = self.window_pos_embed_bkg_spatial_size;
        let (fewest, most) = (self.stages.iter().min(), self.stages.iter().max());
        let widest = self.window_spec.iter().max();
        let count = |n: Option<&usize>| n.copied().unwrap_or(0);
        let mut problems = Problems::default();
        problems.not_zero(&[
            ("embed_dim", self.embed_dim),
            ("num_heads", self.num_heads),
            ("mlp_ratio", self.mlp_ratio),
            ("a block count of stages", count(fewest)),
            ("window_pos_embed_bkg_spatial_size", rows.min(columns)),
        ]);
        problems.at_most(&[
            ("embed_dim", self.embed_dim, MOST_CHANNELS),
            ("num_heads", self.num_heads, MOST_CHANNELS),
            ("mlp_ratio", self.mlp_ratio, 64),
            ("a block count of stages", count(most), 1000),
            ("a side in window_spec", count(widest), 1024),
            ("window_pos_embed_bkg_spatial_size", rows.max(columns), 1024),
            ("q_pool", self.q_pool, STAGES - 1),
        ]);
        problems.multiple(("embed_dim", self.embed_dim), ("num_heads", self.num_heads));
        for (stage, &window) in self.window_spec.iter().enumerate() {
            problems.unless(
                window > 0 && (stage >= self.q_pool.min(3) || window % 2 == 0),
                format_args!(
                    "window_spec[{stage}] {window} must be positive, and even where the next \
                     stage pools in it"
                ),
            );
        }
        let depth = self.depth();
        for block in self.global_att_blocks.iter().filter(|b| **b >= depth) {
            problems.add(format_args!(
                "global_att_blocks holds {block}, there are {depth} blocks"
            ));
        }
        problems.dropout(&[("drop_path_rate", self.drop_path_rate)]);
        problems.positive(&[("layer_norm_eps", self.layer_norm_eps)]);
        problems.into_result(VisionError::config("Hiera"))
    }
}

impl ImageEncoderConfig {
    /// The pyramid of SAM 2 on `trunk`: 256 channels, strides 4, 8 and 16.
    pub fn sam2(trunk: HieraConfig) -> Self {
        Self::new(trunk)
    }

    /// Levels that are returned.
    pub fn levels(&self) -> usize {
        STAGES.saturating_sub(self.scalp)
    }

    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`VisionError::Config`] with every broken rule.
    pub fn validate(&self) -> Result<()> {
        self.trunk.validate()?;
        let (d_model, levels) = (self.d_model, &self.fpn_top_down_levels);
        let mut problems = Problems::default();
        problems.unless(
            d_model > 0 && d_model.is_multiple_of(4) && d_model <= MOST_CHANNELS,
            format_args!(
                "d_model {d_model} must be a positive multiple of 4 (sines and cosines of rows \
                 and columns) and at most {MOST_CHANNELS}"
            ),
        );
        problems.unless(
            self.scalp < STAGES,
            format_args!("scalp {} leaves no level", self.scalp),
        );
        problems.unless(
            levels.iter().all(|l| *l < STAGES),
            format_args!("fpn_top_down_levels are {levels:?}, levels are 0 to 3"),
        );
        problems.unless(
            levels.is_empty() || self.trunk.q_pool == STAGES - 1,
            format_args!(
                "fpn_top_down_levels needs stages that halve the map, q_pool is {}",
                self.trunk.q_pool
            ),
        );
        problems.into_result(VisionError::config("image encoder"))
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x.max(1) * b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_the_large_trunk() {
        let config = HieraConfig::large();
        let blocks = config.blocks();
        assert_eq!(blocks.len(), 48);
        // The first block of the second stage pools within the first stage's windows.
        let entry = blocks[2];
        assert_eq!((entry.dim, entry.dim_out, entry.heads), (144, 288, 4));
        assert_eq!((entry.window, entry.pool), (Some(8), true));
        assert_eq!(blocks[3].window, Some(4));
        assert_eq!(blocks[8].window, Some(4));
        assert_eq!(blocks[9].window, Some(16));
        assert_eq!(blocks[23].window, None);
        assert_eq!(blocks[44].window, Some(16));
        assert_eq!(blocks[47].window, Some(8));
        let ends: Vec<usize> = (0..48).filter(|&i| blocks[i].ends_stage).collect();
        assert_eq!(ends, [1, 7, 43, 47]);
        assert_eq!(config.widths(), [144, 288, 576, 1152]);
        assert_eq!(config.side_multiple(), 32);
    }

    #[test]
    fn presets_are_valid_and_problems_are_listed() {
        for trunk in [
            HieraConfig::tiny(),
            HieraConfig::small(),
            HieraConfig::base_plus(),
            HieraConfig::large(),
            HieraConfig::mini(),
            HieraConfig::nano(),
        ] {
            ImageEncoderConfig::sam2(trunk).validate().unwrap();
        }
        let broken = HieraConfig::new(10, 3, [1, 1, 1, 0], vec![3])
            .with_window_spec([7, 4, 0, 7])
            .with_q_pool(4);
        let VisionError::Config { problems, .. } = broken.validate().unwrap_err() else {
            panic!("not a config error");
        };
        assert_eq!(problems.len(), 6, "{problems:?}");
        let broken = ImageEncoderConfig::sam2(HieraConfig::mini().with_q_pool(2))
            .with_scalp(4)
            .with_d_model(6)
            .with_fpn_top_down_levels(vec![4]);
        let VisionError::Config { problems, .. } = broken.validate().unwrap_err() else {
            panic!("not a config error");
        };
        assert_eq!(problems.len(), 4, "{problems:?}");
    }
}
