//! YCbCr to RGB.

use serde::{Deserialize, Serialize};
use yuv::{YuvPlanarImage, YuvRange, YuvStandardMatrix};

use super::h264::{Layout, Picture};
use crate::Frame;

/// Arithmetic of the YCbCr to RGB conversion. Chroma is repeated, not interpolated, in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YuvConversion {
    /// The bits of decord and of FFmpeg's default scaler on x86, which round every product
    /// down and so come out 1.2/255 darker on average. It is what the published models were
    /// trained and evaluated with. Covers 8-bit 4:2:0; other layouts are converted exactly.
    #[default]
    Reference,
    /// The textbook formula, rounded to nearest.
    Exact,
}

/// How the samples of a stream encode colour, and how to convert them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColourSpace {
    matrix: YuvStandardMatrix,
    range: YuvRange,
    /// For [`YuvConversion::Reference`].
    fixed: Option<FixedPoint>,
}

impl ColourSpace {
    /// From the matrix coefficients (ISO/IEC 23091-2) and range of the stream. Unspecified
    /// means BT.601, whatever the picture size, as in FFmpeg's converter.
    pub(super) fn new(matrix: u8, full_range: bool, conversion: YuvConversion) -> Self {
        Self {
            matrix: match matrix {
                1 => YuvStandardMatrix::Bt709,
                4 => YuvStandardMatrix::Fcc,
                7 => YuvStandardMatrix::Smpte240,
                9 | 10 => YuvStandardMatrix::Bt2020,
                _ => YuvStandardMatrix::Bt601,
            },
            range: if full_range {
                YuvRange::Full
            } else {
                YuvRange::Limited
            },
            fixed: (conversion == YuvConversion::Reference)
                .then(|| FixedPoint::new(matrix, full_range)),
        }
    }

    /// Converts a picture.
    pub(super) fn to_rgb(self, picture: &Picture) -> Result<Frame, String> {
        let Picture { width, height, .. } = *picture;
        let mut rgb = vec![0; width * height * 3];
        let stride = width as u32 * 3;
        let (m, r) = (self.matrix, self.range);
        let Layout {
            tall_chroma,
            ten_bit,
        } = picture.layout;
        let converted = if ten_bit {
            let [y, u, v] = [&picture.y, &picture.u, &picture.v].map(|p| words(p));
            let image = planar(picture, &y, &u, &v);
            if tall_chroma {
                yuv::i210_to_rgb(&image, &mut rgb, stride, r, m)
            } else {
                yuv::i010_to_rgb(&image, &mut rgb, stride, r, m)
            }
        } else {
            let image = planar(picture, &picture.y, &picture.u, &picture.v);
            match (tall_chroma, self.fixed) {
                (true, _) => yuv::yuv422_to_rgb(&image, &mut rgb, stride, r, m),
                (false, None) => yuv::yuv420_to_rgb(&image, &mut rgb, stride, r, m),
                (false, Some(fixed)) => {
                    fixed.convert(picture, &mut rgb);
                    Ok(())
                }
            }
        };
        converted.map_err(|e| format!("colour conversion: {e:?}"))?;
        Frame::from_rgb(width, height, rgb).map_err(|e| e.to_string())
    }
}

/// FFmpeg's `yuv2rgb` SIMD arithmetic: inputs times 8, coefficients times 2^13, each product
/// shifted down by 16 on its own.
#[derive(Debug, Clone, Copy)]
struct FixedPoint {
    y_offset: i32,
    y: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

impl FixedPoint {
    fn new(matrix: u8, full_range: bool) -> Self {
        // FFmpeg's `ff_yuv2rgb_coeffs` as of 4.x, which decord 0.6 ships: red from V, blue
        // from U, green from U, green from V; times 2^16, for the limited range.
        let chroma: [i64; 4] = match matrix {
            1 => [117_489, 138_438, 13_975, 34_925],
            4 => [104_448, 132_798, 24_759, 53_109],
            7 => [117_579, 136_230, 16_907, 35_559],
            9 | 10 => [110_013, 140_363, 12_277, 42_626],
            _ => [104_597, 132_201, 25_675, 53_279],
        };
        let (y, chroma, y_offset) = if full_range {
            (1 << 16, chroma.map(|c| c * 224 / 255), 0)
        } else {
            ((1 << 16) * 255 / 219, chroma, 16 * 8)
        };
        let round = |c: i64| (((c << 13) + (1 << 15)) >> 16) as i32;
        let [red_v, blue_u, green_u, green_v] = chroma;
        Self {
            y_offset,
            y: round(y),
            red_v: round(red_v),
            green_u: round(-green_u),
            green_v: round(-green_v),
            blue_u: round(blue_u),
        }
    }

    fn convert(self, picture: &Picture, rgb: &mut [u8]) {
        let width = picture.width;
        let chroma_width = width.div_ceil(2);
        let mut chroma = vec![[0i16; 3]; chroma_width];
        // pulp compiles the closure for the widest instruction set of this machine.
        pulp::Arch::new().dispatch(|| {
            let rows = rgb.chunks_exact_mut(width * 3);
            for (i, (out, y)) in rows.zip(picture.y.chunks_exact(width)).enumerate() {
                if i % 2 == 0 {
                    let at = i / 2 * chroma_width..(i / 2 + 1) * chroma_width;
                    self.chroma_row(&picture.u[at.clone()], &picture.v[at], &mut chroma);
                }
                self.row(y, &chroma, out);
            }
        });
    }

    /// What chroma adds to red, green and blue.
    #[inline(always)]
    fn chroma_row(self, u: &[u8], v: &[u8], out: &mut [[i16; 3]]) {
        for ((add, &u), &v) in out.iter_mut().zip(u).zip(v) {
            let (u, v) = (i32::from(u) * 8 - 1024, i32::from(v) * 8 - 1024);
            *add = [
                ((v * self.red_v) >> 16) as i16,
                (((u * self.green_u) >> 16) + ((v * self.green_v) >> 16)) as i16,
                ((u * self.blue_u) >> 16) as i16,
            ];
        }
    }

    #[inline(always)]
    fn row(self, y: &[u8], chroma: &[[i16; 3]], out: &mut [u8]) {
        let luma = |y: u8| (((i32::from(y) * 8 - self.y_offset) * self.y) >> 16) as i16;
        let pixel = |y: u8, add: &[i16; 3]| add.map(|a| (luma(y) + a).clamp(0, 255) as u8);
        for ((out, y), add) in out.chunks_mut(6).zip(y.chunks(2)).zip(chroma) {
            for (out, &y) in out.chunks_exact_mut(3).zip(y) {
                out.copy_from_slice(&pixel(y, add));
            }
        }
    }
}

fn planar<'a, T: Copy + std::fmt::Debug>(
    picture: &Picture,
    y: &'a [T],
    u: &'a [T],
    v: &'a [T],
) -> YuvPlanarImage<'a, T> {
    let (width, height) = (picture.width as u32, picture.height as u32);
    let chroma = width.div_ceil(2);
    YuvPlanarImage {
        y_plane: y,
        y_stride: width,
        u_plane: u,
        u_stride: chroma,
        v_plane: v,
        v_stride: chroma,
        width,
        height,
    }
}

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect()
}
