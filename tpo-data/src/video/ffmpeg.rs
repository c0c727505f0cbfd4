//! Any container and codec FFmpeg reads (feature `ffmpeg`).

use std::collections::BTreeSet;
use std::path::Path;

use ffmpeg_next as ff;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::software::scaling::{Context as Scaler, Flags};

use super::colour::{ColourSpace, YuvConversion};
use super::h264::{Layout, Picture};
use super::source::Source;
use super::{
    FrameStream, FrameVisitor, OpenVideo, VideoInfo, VideoOptions, VideoReader, distinct_indices,
    until_error,
};
use crate::{DataError, Frame, MediaLimits, Rotation};

/// Containers opened. Play lists and concatenation scripts are not among them: they make
/// FFmpeg open other files and addresses.
const FORMATS: &str = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,\
                       ogg,h264,hevc,obu,ivf,m4v,mjpeg,rm,dv,mxf,nut,yuv4mpegpipe,apng,swf,wtv";

/// Reads any container and codec the linked FFmpeg libraries support.
///
/// The packets are listed once when the file is opened; reading seeks to the key frame before
/// the frames wanted.
#[derive(Debug)]
pub struct FfmpegReader {
    video: OpenVideo,
    conversion: YuvConversion,
    /// Presentation time of every frame in stream units, ascending; empty when the container
    /// does not store it, in which case frames are counted as they are decoded.
    times: Vec<i64>,
    /// Presentation times of key frames, ascending.
    keys: Vec<i64>,
    /// Stream index and seconds per unit.
    stream: usize,
    unit: f64,
}

impl FfmpegReader {
    /// Opens a file.
    ///
    /// # Errors
    /// As [`open_video`](super::open_video).
    pub fn open(path: impl AsRef<Path>, limits: &MediaLimits) -> Result<Self, DataError> {
        Self::open_with(path.as_ref(), &limits.into())
    }

    pub(super) fn open_with(path: &Path, options: &VideoOptions) -> Result<Self, DataError> {
        let limits = &options.limits;
        let source = Source::file(path, limits)?;
        let mut input = open_input(path)?;
        let found = input.streams().best(ff::media::Type::Video);
        let found = found.ok_or_else(|| DataError::NoVideoTrack { path: path.into() })?;
        let (stream, rotation) = (found.index(), rotation(&found));
        let unit = f64::from(found.time_base());
        let rate = f64::from(found.avg_frame_rate());
        let parameters = found.parameters();
        let decoder = open_decoder(path, parameters, limits)?;
        let (width, height) = (decoder.width(), decoder.height());
        limits.check_frame(path, width.into(), height.into())?;
        let (width, height) = rotation.turned((width as usize, height as usize));
        let codec = decoder
            .codec()
            .map_or_else(|| "unknown".into(), |c| c.name().to_owned());

        let mut times = Vec::new();
        let mut keys = Vec::new();
        let (mut count, mut units, mut timed) = (0u64, 0i64, true);
        for (packet_stream, packet) in input.packets() {
            let discarded = packet.flags().bits() & ff::ffi::AV_PKT_FLAG_DISCARD != 0;
            if packet_stream.index() != stream || packet.size() == 0 || discarded {
                continue;
            }
            count += 1;
            limits.check_frame_count(path, count)?;
            units = units.saturating_add(packet.duration().max(0));
            match packet.pts() {
                Some(pts) => {
                    times.push(pts);
                    if packet.is_key() {
                        keys.push(pts);
                    }
                }
                None => timed = false,
            }
        }
        if count == 0 {
            let reason = "it has no packets";
            return Err(DataError::corrupt(path, "video stream", reason));
        }
        times.sort_unstable();
        keys.sort_unstable();
        // Two fields of one picture share a time.
        times.dedup();
        if !timed {
            times.clear();
        }
        let frame_count = if timed { times.len() } else { count as usize };
        let measured = frame_count as f64 / (units as f64 * unit);
        let fps = [rate, measured, 25.0]
            .into_iter()
            .find(|f| f.is_finite() && *f > 0.0)
            .unwrap_or(25.0);
        let mut info = VideoInfo::steady([width, height], frame_count, fps, &codec)?;
        limits.check_seconds(path, info.duration)?;
        info.rotation = rotation;
        if let Some(first) = times.first() {
            info.timestamps = times.iter().map(|t| (t - first) as f64 * unit).collect();
        }
        Ok(Self {
            video: source.opened(limits, info),
            conversion: options.conversion,
            times,
            keys,
            stream,
            unit,
        })
    }

    /// Presentation time of the last key frame at or before a time.
    fn key_before(&self, time: i64) -> Option<i64> {
        let n = self.keys.partition_point(|&k| k <= time);
        self.keys[..n].last().copied()
    }

    fn session(&self) -> Result<Session<'_>, DataError> {
        let input = open_input(self.path())?;
        let parameters = input
            .stream(self.stream)
            .ok_or_else(|| self.fail(0, "the stream disappeared"))?
            .parameters();
        Ok(Session {
            reader: self,
            decoder: open_decoder(self.path(), parameters, self.limits())?,
            input,
            scaler: None,
            draining: false,
            counted: 0,
        })
    }

    fn fail(&self, frame: usize, reason: impl Into<String>) -> DataError {
        DataError::decode(self.path(), frame, reason)
    }
}

/// An open file with its decoder.
struct Session<'a> {
    reader: &'a FfmpegReader,
    input: ff::format::context::Input,
    decoder: ff::decoder::Video,
    /// Converter for pixel formats we do not convert ourselves.
    scaler: Option<Scaler>,
    draining: bool,
    /// Frames returned so far, which is the index of the next when times are missing.
    counted: usize,
}

impl Session<'_> {
    /// Goes to the key frame shown at `time` (stream units).
    fn seek(&mut self, time: i64) -> Result<(), DataError> {
        // In units of 1/1000000 s; rounded up, because a time just below the key frame would
        // land on the one before. The end of the range is inclusive in FFmpeg.
        let target = (time as f64 * self.reader.unit * 1e6).ceil() as i64;
        self.input
            .seek(target, ..target)
            .map_err(|e| self.reader.fail(0, format!("seek: {e}")))?;
        self.decoder.flush();
        self.draining = false;
        Ok(())
    }

    /// The next picture and the frame it is, `None` at the end. Pictures that are not in the
    /// list of frames are left out.
    fn next(&mut self) -> Result<Option<(usize, ff::frame::Video)>, DataError> {
        let mut frame = ff::frame::Video::empty();
        loop {
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => {
                    let counted = self.counted;
                    self.counted += 1;
                    let index = if self.reader.times.is_empty() {
                        Some(counted).filter(|&i| i < self.reader.info().frame_count)
                    } else {
                        let time = frame.pts().or_else(|| frame.timestamp());
                        time.and_then(|t| self.reader.times.binary_search(&t).ok())
                    };
                    if let Some(index) = index {
                        return Ok(Some((index, frame)));
                    }
                }
                Err(ff::Error::Eof) => return Ok(None),
                Err(ff::Error::Other { errno }) if errno == ff::error::EAGAIN => self.feed()?,
                Err(e) => return Err(self.reader.fail(self.counted, e.to_string())),
            }
        }
    }

    /// Gives the decoder one packet, or tells it that there are no more.
    fn feed(&mut self) -> Result<(), DataError> {
        let mut packet = ff::Packet::empty();
        loop {
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == self.reader.stream => {
                    // A damaged packet costs its picture, which is reported by its absence.
                    if let Err(error) = self.decoder.send_packet(&packet) {
                        tracing::warn!(%error, "FFmpeg rejected a packet");
                    }
                    return Ok(());
                }
                Ok(()) => {}
                Err(ff::Error::Eof) if !self.draining => {
                    self.draining = true;
                    return self
                        .decoder
                        .send_eof()
                        .map_err(|e| self.reader.fail(self.counted, e.to_string()));
                }
                Err(e) => return Err(self.reader.fail(self.counted, e.to_string())),
            }
        }
    }

    /// RGB, upright.
    fn convert(&mut self, index: usize, frame: &ff::frame::Video) -> Result<Frame, DataError> {
        let reader = self.reader;
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        let shown = reader.info().rotation.turned((width, height));
        if shown != (reader.info().width, reader.info().height) {
            let reason = format!("the picture size changes to {width}x{height}");
            return Err(reader.fail(index, reason));
        }
        let layout = match frame.format() {
            Pixel::YUV420P | Pixel::YUVJ420P => Some((false, false)),
            Pixel::YUV422P | Pixel::YUVJ422P => Some((true, false)),
            Pixel::YUV420P10LE => Some((false, true)),
            Pixel::YUV422P10LE => Some((true, true)),
            _ => None,
        };
        let layout = layout.map(|(tall_chroma, ten_bit)| Layout {
            tall_chroma,
            ten_bit,
        });
        let rgb = match layout {
            Some(layout) => {
                let picture = copy_planes(frame, layout);
                let full = frame.color_range() == ff::color::Range::JPEG
                    || matches!(frame.format(), Pixel::YUVJ420P | Pixel::YUVJ422P);
                ColourSpace::new(matrix_number(frame.color_space()), full, reader.conversion)
                    .to_rgb(&picture)
                    .map_err(|e| reader.fail(index, e))?
            }
            None => self.scale(index, frame)?,
        };
        Ok(rgb.rotated(reader.info().rotation))
    }

    /// Conversion by FFmpeg itself, BT.601 for YCbCr sources. The flags avoid the bias of its
    /// fast path.
    fn scale(&mut self, index: usize, frame: &ff::frame::Video) -> Result<Frame, DataError> {
        let reader = self.reader;
        let fail = |e: ff::Error| reader.fail(index, format!("colour conversion: {e}"));
        let (width, height) = (frame.width(), frame.height());
        let fits = self
            .scaler
            .as_ref()
            .is_some_and(|s| s.input().format == frame.format());
        if !fits {
            let flags = Flags::BICUBIC
                | Flags::ACCURATE_RND
                | Flags::FULL_CHR_H_INT
                | Flags::FULL_CHR_H_INP;
            let format = frame.format();
            let context = Scaler::get(format, width, height, Pixel::RGB24, width, height, flags);
            self.scaler = Some(context.map_err(fail)?);
        }
        let mut out = ff::frame::Video::empty();
        if let Some(scaler) = &mut self.scaler {
            scaler.run(frame, &mut out).map_err(fail)?;
        }
        let row = width as usize * 3;
        let mut rgb = Vec::with_capacity(row * height as usize);
        for line in out.data(0).chunks(out.stride(0)).take(height as usize) {
            rgb.extend_from_slice(&line[..row]);
        }
        Frame::from_rgb(width as usize, height as usize, rgb)
    }
}

fn open_input(path: &Path) -> Result<ff::format::context::Input, DataError> {
    let io = DataError::io(path);
    ff::init().map_err(|e| io(std::io::Error::other(e)))?;
    // An absolute path cannot be taken for an address.
    let absolute = path.canonicalize().map_err(io)?;
    if absolute.to_str().is_none_or(|p| p.contains('\0')) {
        return Err(io(std::io::Error::other(
            "FFmpeg needs a file name in UTF-8",
        )));
    }
    let mut options = ff::Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("format_whitelist", FORMATS);
    ff::format::input_with_dictionary(&absolute, options).map_err(|e| {
        DataError::UnsupportedContainer {
            path: path.into(),
            found: format!("FFmpeg says: {e}"),
            hint: "check that it is a video and not cut off",
        }
    })
}

fn open_decoder(
    path: &Path,
    parameters: ff::codec::Parameters,
    limits: &MediaLimits,
) -> Result<ff::decoder::Video, DataError> {
    let id = parameters.id();
    let codec = format!("{id:?}");
    let open = || {
        let decoder = ff::decoder::find(id).ok_or(ff::Error::DecoderNotFound)?;
        let mut context = ff::codec::context::Context::from_parameters(parameters)?;
        context.set_threading(ff::codec::threading::Config::kind(
            ff::codec::threading::Type::Frame,
        ));
        let mut options = ff::Dictionary::new();
        options.set("max_pixels", &limits.max_pixels_per_frame.to_string());
        context.decoder().open_as_with(decoder, options)?.video()
    };
    open().map_err(|e: ff::Error| DataError::UnsupportedCodec {
        path: path.into(),
        codec: format!("{codec} (FFmpeg says: {e})"),
        hint: "the linked FFmpeg libraries may lack this decoder",
    })
}

/// Rotation of the display matrix.
fn rotation(stream: &ff::Stream) -> Rotation {
    let matrix = stream
        .side_data()
        .find(|s| s.kind() == ff::packet::side_data::Type::DisplayMatrix);
    let Some(matrix) = matrix else {
        return Rotation::None;
    };
    let sign = |i: usize| {
        matrix
            .data()
            .get(4 * i..4 * i + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, |b| i32::from_ne_bytes(b).signum())
    };
    Rotation::from_matrix_signs([sign(0), sign(1), sign(3), sign(4)])
}

/// ISO/IEC 23091-2 number of a colour matrix.
fn matrix_number(space: ff::color::Space) -> u8 {
    match space {
        ff::color::Space::BT709 => 1,
        ff::color::Space::FCC => 4,
        ff::color::Space::SMPTE240M => 7,
        ff::color::Space::BT2020NCL | ff::color::Space::BT2020CL => 9,
        _ => 2,
    }
}

fn copy_planes(frame: &ff::frame::Video, layout: Layout) -> Picture {
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let bytes = if layout.ten_bit { 2 } else { 1 };
    let chroma_height = height.div_ceil(if layout.tall_chroma { 1 } else { 2 });
    let plane = |i: usize, width: usize, height: usize| -> Vec<u8> {
        let row = width * bytes;
        let lines = frame.data(i).chunks(frame.stride(i)).take(height);
        lines.flat_map(|line| line[..row].iter().copied()).collect()
    };
    Picture {
        width,
        height,
        y: plane(0, width, height),
        u: plane(1, width.div_ceil(2), chroma_height),
        v: plane(2, width.div_ceil(2), chroma_height),
        layout,
    }
}

impl VideoReader for FfmpegReader {
    fn video(&self) -> &OpenVideo {
        &self.video
    }

    fn visit_frames(&self, indices: &[usize], visit: &FrameVisitor<'_>) -> Result<(), DataError> {
        let wanted = distinct_indices(indices, self.info().frame_count)?;
        let mut missing = BTreeSet::from_iter(wanted);
        // First with seeking; if a seek landed too late, once more from the start.
        for seeking in [true, false] {
            if missing.is_empty() || (seeking && self.times.is_empty()) {
                continue;
            }
            let mut session = self.session()?;
            // The frame the session has come to, and the first that is still to be looked for.
            let (mut position, mut from) = (0, 0);
            while let Some(&target) = missing.range(from..).next() {
                if seeking
                    && let Some(key) = self.key_before(self.times[target])
                    && key > self.times[position]
                {
                    session.seek(key)?;
                    position = self.times.binary_search(&key).unwrap_or(position);
                }
                let Some((index, frame)) = session.next()? else {
                    break;
                };
                position = position.max(index);
                if missing.remove(&index) {
                    visit(index, session.convert(index, &frame)?)?;
                }
                if index >= target {
                    from = target + 1;
                }
            }
        }
        match missing.first() {
            Some(&index) => Err(self.fail(index, "FFmpeg returned no picture")),
            None => Ok(()),
        }
    }

    fn stream(&self, start: usize) -> Result<FrameStream<'_>, DataError> {
        distinct_indices(&[start], self.info().frame_count)?;
        let mut session = self.session()?;
        if let Some(key) = self.times.get(start).and_then(|&t| self.key_before(t))
            && key > self.times[0]
        {
            session.seek(key)?;
        }
        Ok(until_error(std::iter::from_fn(move || {
            loop {
                return Some(match session.next() {
                    Ok(None) => return None,
                    Ok(Some((index, _))) if index < start => continue,
                    Ok(Some((index, frame))) => session
                        .convert(index, &frame)
                        .map(|frame| self.info().timed(index, frame)),
                    Err(e) => Err(e),
                });
            }
        })))
    }
}
