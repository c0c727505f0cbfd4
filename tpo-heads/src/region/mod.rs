//! The region head: a box from the language model's hidden state at the region token.

mod head;
mod keys;
mod loss;
mod metric;

pub use head::{BoxDecoder, BoxEncoder, RegionHead, RegionHeadConfig, RegionPrediction};
pub use keys::REGION_KEYS;
pub use loss::{RegionLossWeights, region_loss};
pub use metric::{BoxAccuracy, box_iou};
