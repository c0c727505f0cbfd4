//! Label images: one object number per pixel.

/// An image whose pixels carry the number of their object, 0 for the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// `[height, width]`, row after row.
    pub labels: Vec<u8>,
}
