//! H.264 pictures from length-prefixed samples.
//!
//! Two pure-Rust decoders share the work. `rusty_h264-decoder` is about twice as fast and
//! reads 8-bit 4:2:0 progressive streams, which is what cameras and datasets hold; `rust_h264`
//! reads interlaced, 10-bit and 4:2:2 streams too and takes over where the first one fails.
//! Both produce the bits ffmpeg produces.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mp4_atom::Avcc;
use rust_h264::decoder::ChromaFormat;
use rust_h264::nal::{self, NalUnit, SpsInfo};

use super::mp4::unsupported;
use crate::DataError;

/// Coded slice of a non-IDR picture, of an IDR picture; sequence parameter set
/// (ITU-T H.264, table 7-1).
const SLICE: u8 = 1;
const IDR_SLICE: u8 = 5;
const SPS: u8 = 7;

/// A decoded picture before colour conversion, without padding.
#[derive(Debug, Clone)]
pub(super) struct Picture {
    pub width: usize,
    pub height: usize,
    pub y: Vec<u8>,
    pub u: Vec<u8>,
    pub v: Vec<u8>,
    pub layout: Layout,
}

/// Chroma subsampling and depth of a [`Picture`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Layout {
    /// 4:2:2, not 4:2:0: chroma is as high as luma.
    pub tall_chroma: bool,
    /// Samples have 10 bits and are two bytes, little-endian.
    pub ten_bit: bool,
}

/// The `avcC` record: parameter sets and the size of NAL length prefixes.
#[derive(Debug, Clone)]
pub(super) struct StreamConfig {
    length_size: usize,
    /// Parameter sets as Annex B.
    headers: Vec<u8>,
    /// The first sequence parameter set.
    pub info: SpsInfo,
}

impl StreamConfig {
    pub(super) fn new(avcc: &Avcc, path: &Path) -> Result<Self, DataError> {
        let corrupt = |reason: String| DataError::corrupt(path, "avcC", reason);
        let mut headers = Vec::new();
        let mut info: Option<SpsInfo> = None;
        let sets = [&avcc.sequence_parameter_sets, &avcc.picture_parameter_sets];
        for unit in sets.into_iter().flatten().filter(|unit| !unit.is_empty()) {
            push_annex_b(&mut headers, unit);
            if unit[0] & 31 == SPS {
                let found = sps_info(unit).map_err(corrupt)?;
                // Only the size matters for memory; the decoder reads the rest itself.
                if !same_size(info.get_or_insert(found), &found) {
                    return Err(unsupported(path, "H.264 with several picture sizes"));
                }
            }
        }
        let avc3 = "H.264 with parameter sets only inside the stream (avc3)";
        let info = info.ok_or_else(|| unsupported(path, avc3))?;
        let (format, bits) = (info.chroma_format, info.bit_depth_luma);
        if format > 2 || bits != info.bit_depth_chroma || !matches!(bits, 8 | 10) {
            let codec = format!("H.264 with chroma format {format} and {bits} bits");
            return Err(unsupported(path, codec));
        }
        Ok(Self {
            length_size: avcc.length_size.into(),
            headers,
            info,
        })
    }

    /// Whether the fast decoder covers this stream.
    pub(super) fn fast(&self) -> bool {
        self.info.progressive && self.info.chroma_format == 1 && self.info.bit_depth_luma == 8
    }

    /// NAL units of a sample. A length that does not fit ends the iteration.
    fn units<'a>(&self, sample: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let length_size = self.length_size;
        let mut rest = sample;
        std::iter::from_fn(move || {
            let (prefix, tail) = rest.split_at_checked(length_size)?;
            let len = prefix.iter().fold(0, |n, &b| (n << 8) | usize::from(b));
            let (unit, tail) = tail.split_at_checked(len)?;
            rest = tail;
            Some(unit)
        })
        .filter(|unit| !unit.is_empty())
    }

    /// What a sample is, from the headers of its NAL units.
    pub(super) fn inspect(&self, sample: &[u8]) -> SampleKind {
        let mut kind = SampleKind {
            idr: false,
            reference: false,
        };
        for unit in self.units(sample) {
            match unit[0] & 31 {
                IDR_SLICE => {
                    kind.idr = true;
                    kind.reference = true;
                }
                // nal_ref_idc 0: no other picture depends on this one. Parameter sets and
                // data partitions are kept too.
                SLICE => kind.reference |= unit[0] >> 5 & 3 != 0,
                2..=4 | 7 | 8 => kind.reference = true,
                _ => {}
            }
        }
        kind
    }

    /// Rejects a sample whose own parameter sets change the picture size: the size was checked
    /// against the limits when the file was opened.
    fn check_size(&self, sample: &[u8]) -> Result<(), String> {
        for unit in self.units(sample) {
            if unit[0] & 31 == SPS {
                let info = sps_info(unit)?;
                if !same_size(&info, &self.info) {
                    return Err(format!(
                        "the picture size changes from {}x{} to {}x{} inside the stream",
                        self.info.width, self.info.height, info.width, info.height
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What the NAL headers of a sample say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampleKind {
    /// Decoding can start here.
    pub idr: bool,
    /// Other pictures may depend on this one.
    pub reference: bool,
}

/// One decoder instance; starts at an IDR picture.
pub(super) struct PictureDecoder<'a> {
    config: &'a StreamConfig,
    engine: Engine,
    /// Annex B form of the current sample.
    buffer: Vec<u8>,
}

enum Engine {
    Fast(Box<rusty_h264_decoder::Decoder>),
    /// With the numbers of the samples whose pictures are still to come: this decoder returns
    /// a picture when the next one starts.
    General(Box<rust_h264::decoder::Decoder>, VecDeque<u32>),
}

impl<'a> PictureDecoder<'a> {
    /// `fast` asks for the fast decoder, see [`StreamConfig::fast`].
    pub(super) fn new(config: &'a StreamConfig, fast: bool) -> Result<Self, String> {
        let mut decoder = Self {
            config,
            engine: if fast {
                Engine::Fast(Box::default())
            } else {
                Engine::General(Box::default(), VecDeque::new())
            },
            buffer: Vec::new(),
        };
        let headers = &config.headers;
        guarded(|| match &mut decoder.engine {
            Engine::Fast(d) => d.decode(headers).map(|_| ()).map_err(|e| e.to_string()),
            Engine::General(d, _) => {
                for unit in nal::parse_annex_b(headers) {
                    d.decode_nal(&unit).map_err(|e| e.to_string())?;
                }
                Ok(())
            }
        })??;
        Ok(decoder)
    }

    /// Decodes sample number `number`. Calls `deliver` for every picture that is complete, with
    /// its sample number.
    pub(super) fn decode(
        &mut self,
        number: u32,
        sample: &[u8],
        mut deliver: impl FnMut(u32, Picture),
    ) -> Result<(), String> {
        self.config.check_size(sample)?;
        self.buffer.clear();
        for unit in self.config.units(sample) {
            push_annex_b(&mut self.buffer, unit);
        }
        let (engine, buffer) = (&mut self.engine, &self.buffer);
        match engine {
            Engine::Fast(decoder) => {
                let frame = guarded(|| decoder.decode(buffer))?.map_err(|e| e.to_string())?;
                let Some(f) = frame else {
                    return Err("the picture is incomplete".into());
                };
                let picture = Picture {
                    width: f.width,
                    height: f.height,
                    y: f.y,
                    u: f.u,
                    v: f.v,
                    layout: Layout::default(),
                };
                deliver(number, self.config.check_picture(picture)?);
            }
            Engine::General(decoder, pending) => {
                pending.push_back(number);
                let mut frames = Vec::new();
                guarded(|| {
                    for unit in nal::parse_annex_b(buffer) {
                        let frame = decoder.decode_nal(&unit).map_err(|e| e.to_string())?;
                        frames.extend(frame);
                    }
                    Ok::<(), String>(())
                })??;
                for frame in frames {
                    let number = pending.pop_front().ok_or("more pictures than samples")?;
                    deliver(number, self.config.general_picture(frame)?);
                }
            }
        }
        Ok(())
    }

    /// Whether the picture of a sample that was decoded is still to come.
    pub(super) fn owes(&self, number: u32) -> bool {
        matches!(&self.engine, Engine::General(_, pending) if pending.contains(&number))
    }

    /// Delivers the picture the decoder may still hold.
    pub(super) fn flush(&mut self, mut deliver: impl FnMut(u32, Picture)) -> Result<(), String> {
        if let Engine::General(decoder, pending) = &mut self.engine
            && let Some(frame) = guarded(|| decoder.flush())?
        {
            let number = pending.pop_front().ok_or("more pictures than samples")?;
            deliver(number, self.config.general_picture(frame)?);
        }
        Ok(())
    }
}

impl StreamConfig {
    fn general_picture(&self, frame: rust_h264::decoder::Frame) -> Result<Picture, String> {
        let layout = Layout {
            tall_chroma: frame.chroma_format == ChromaFormat::Yuv422,
            ten_bit: frame.bit_depth != 8,
        };
        self.check_picture(Picture {
            width: frame.width as usize,
            height: frame.height as usize,
            y: frame.y,
            u: frame.u,
            v: frame.v,
            layout,
        })
    }

    /// A single field comes out half as high; everything else must have the announced size.
    fn check_picture(&self, picture: Picture) -> Result<Picture, String> {
        let expected = (self.info.width as usize, self.info.height as usize);
        if (picture.width, picture.height) != expected {
            return Err(format!(
                "the picture is {}x{}, the stream says {}x{}",
                picture.width, picture.height, expected.0, expected.1
            ));
        }
        Ok(picture)
    }
}

/// Runs a third-party decoder; a panic inside it becomes an error. `catch_unwind` is safe code;
/// the decoder may be left in an odd state, so callers drop it after an error. (With
/// `panic = "abort"` in the user's profile there is nothing to catch.)
pub(crate) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        format!("the decoder failed on malformed data: {text}")
    })
}

fn sps_info(unit: &[u8]) -> Result<SpsInfo, String> {
    let mut annex_b = Vec::with_capacity(unit.len() + 4);
    push_annex_b(&mut annex_b, unit);
    guarded(|| {
        let units: Vec<NalUnit> = nal::parse_annex_b(&annex_b);
        let unit = units.first().ok_or("an empty parameter set")?;
        nal::parse_sps_info(unit).map_err(|e| e.to_string())
    })?
}

fn same_size(a: &SpsInfo, b: &SpsInfo) -> bool {
    (a.width, a.height, a.coded_width, a.coded_height)
        == (b.width, b.height, b.coded_width, b.coded_height)
}

fn push_annex_b(out: &mut Vec<u8>, unit: &[u8]) {
    out.extend_from_slice(&[0, 0, 0, 1]);
    out.extend_from_slice(unit);
}
