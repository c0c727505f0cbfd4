//! The sample tables of a `trak` box.

use std::path::Path;

use super::boxes::{Boxes, Cursor, u32_at, u64_at};
use super::edits::{Edit, present, read_edits};
use super::{ContainerColour, Fault, Movie, Sample};
use crate::frame::Rotation;
use crate::{DataError, MediaLimits};

/// Frames per second assumed when the file gives its pictures no duration (a single frame).
/// The default of ffmpeg's image demuxers.
const FALLBACK_FPS: f64 = 25.0;

/// Defaults of a track's fragments (`trex`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FragmentDefaults {
    pub duration: u32,
    pub size: u32,
    pub flags: u32,
}

/// A video track while its samples are collected.
#[derive(Debug)]
pub(super) struct TrackBuilder {
    pub id: u32,
    pub samples: Vec<Sample>,
    /// Sum of the durations so far, which is the decoding time of the next sample.
    pub next_dts: i64,
    pub defaults: FragmentDefaults,
    timescale: u32,
    movie_timescale: u32,
    edits: Vec<Edit>,
    rotation: Rotation,
    avcc: Vec<u8>,
    colour: Option<ContainerColour>,
}

impl TrackBuilder {
    /// Checks the samples against the file and orders them for presentation.
    pub(super) fn finish(
        mut self,
        len: u64,
        path: &Path,
        limits: &MediaLimits,
    ) -> Result<Movie, DataError> {
        // An empty sample stands for "no change" and decodes to nothing; ffmpeg drops it too.
        self.samples.retain(|s| s.size > 0);
        if self.samples.is_empty() {
            return Err(Fault::corrupt("video track", "it has no samples").at(path));
        }
        for (i, sample) in self.samples.iter().enumerate() {
            let end = sample.offset.saturating_add(u64::from(sample.size));
            if end > len {
                return Err(DataError::Truncated {
                    path: path.into(),
                    sample: i,
                    start: sample.offset,
                    end,
                    len,
                });
            }
        }
        let units = f64::from(self.timescale);
        let first = self.samples.first().map_or(0, |s| s.dts);
        let seconds = self.next_dts.saturating_sub(first).max(0) as f64 / units;
        limits.check_seconds(path, seconds)?;
        let fps = if seconds > 0.0 {
            self.samples.len() as f64 / seconds
        } else {
            FALLBACK_FPS
        };
        let shown = present(
            &self.samples,
            &self.edits,
            self.timescale,
            self.movie_timescale,
            limits.max_frames,
        )
        .map_err(|fault| fault.at(path))?;
        Ok(Movie {
            samples: self.samples,
            shown,
            fps,
            rotation: self.rotation,
            avcc: self.avcc,
            colour: self.colour,
        })
    }
}

/// Reads a `moov` box: the first video track with H.264.
pub(super) fn read_moov(
    moov: &[u8],
    path: &Path,
    limits: &MediaLimits,
) -> Result<TrackBuilder, Fault> {
    let movie_timescale = {
        let mut mvhd = Cursor::new(Boxes::new(moov, "moov").require(b"mvhd")?, "mvhd");
        let (version, _) = mvhd.version_flags()?;
        mvhd.take(if version == 0 { 8 } else { 16 })?;
        mvhd.u32()?
    };
    let mut other_codec = None;
    for item in Boxes::new(moov, "moov") {
        let (name, trak) = item?;
        if &name != b"trak" {
            continue;
        }
        match read_trak(trak, movie_timescale, path, limits) {
            Ok(Some(mut track)) => {
                track.defaults = read_trex(moov, track.id)?;
                return Ok(track);
            }
            Ok(None) => {}
            // Another track may be readable.
            Err(Fault::Codec(codec)) => other_codec = Some(codec),
            Err(fault) => return Err(fault),
        }
    }
    Err(other_codec.map_or(Fault::NoVideo, Fault::Codec))
}

fn read_trex(moov: &[u8], track: u32) -> Result<FragmentDefaults, Fault> {
    let Some(mvex) = Boxes::new(moov, "moov").find(b"mvex")? else {
        return Ok(FragmentDefaults::default());
    };
    for item in Boxes::new(mvex, "mvex") {
        let (name, body) = item?;
        if &name == b"trex" {
            let mut trex = Cursor::new(body, "trex");
            trex.version_flags()?;
            if trex.u32()? == track {
                trex.u32()?;
                return Ok(FragmentDefaults {
                    duration: trex.u32()?,
                    size: trex.u32()?,
                    flags: trex.u32()?,
                });
            }
        }
    }
    Ok(FragmentDefaults::default())
}

/// Reads a `trak` box; `None` when it is not video.
fn read_trak(
    trak: &[u8],
    movie_timescale: u32,
    path: &Path,
    limits: &MediaLimits,
) -> Result<Option<TrackBuilder>, Fault> {
    let mdia = Boxes::new(trak, "trak").require(b"mdia")?;
    let mut hdlr = Cursor::new(Boxes::new(mdia, "mdia").require(b"hdlr")?, "hdlr");
    hdlr.take(8)?;
    if &hdlr.fourcc()? != b"vide" {
        return Ok(None);
    }
    let (id, rotation) = read_tkhd(Boxes::new(trak, "trak").require(b"tkhd")?)?;
    let timescale = {
        let mut mdhd = Cursor::new(Boxes::new(mdia, "mdia").require(b"mdhd")?, "mdhd");
        let (version, _) = mdhd.version_flags()?;
        mdhd.take(if version == 0 { 8 } else { 16 })?;
        mdhd.u32()?
    };
    if timescale == 0 {
        return Err(Fault::corrupt("mdhd", "a timescale of 0"));
    }
    let minf = Boxes::new(mdia, "mdia").require(b"minf")?;
    let stbl = Boxes::new(minf, "minf").require(b"stbl")?;
    let (avcc, colour) = read_stsd(Boxes::new(stbl, "stbl").require(b"stsd")?, path, limits)?;
    let (samples, next_dts) = read_samples(stbl, path, limits)?;
    Ok(Some(TrackBuilder {
        id,
        samples,
        next_dts,
        defaults: FragmentDefaults::default(),
        timescale,
        movie_timescale,
        edits: read_edits(trak)?,
        rotation,
        avcc,
        colour,
    }))
}

/// Track number and rotation.
fn read_tkhd(body: &[u8]) -> Result<(u32, Rotation), Fault> {
    let mut tkhd = Cursor::new(body, "tkhd");
    let (version, _) = tkhd.version_flags()?;
    let wide = version != 0;
    tkhd.take(if wide { 16 } else { 8 })?;
    let id = tkhd.u32()?;
    // Reserved, duration, reserved, layer, group, volume, reserved.
    tkhd.take(if wide { 28 } else { 24 })?;
    let (a, b) = (tkhd.i32()?, tkhd.i32()?);
    tkhd.take(4)?;
    let (c, d) = (tkhd.i32()?, tkhd.i32()?);
    // In 16.16; only the signs matter for right angles.
    let rotation = Rotation::from_matrix_signs([a, b, c, d].map(i32::signum));
    Ok((id, rotation))
}

/// The `avcC` record and the colour description of the first sample entry.
fn read_stsd(
    body: &[u8],
    path: &Path,
    limits: &MediaLimits,
) -> Result<(Vec<u8>, Option<ContainerColour>), Fault> {
    let mut stsd = Cursor::new(body, "stsd");
    stsd.take(8)?;
    let Some(entry) = Boxes::new(stsd.rest(), "stsd").next() else {
        return Err(Fault::corrupt("stsd", "no sample entry"));
    };
    let (codec, entry) = entry?;
    if !matches!(&codec, b"avc1" | b"avc3") {
        return Err(Fault::Codec(
            String::from_utf8_lossy(&codec).escape_debug().to_string(),
        ));
    }
    let mut entry = Cursor::new(entry, "avc1");
    entry.take(24)?;
    let (width, height) = (entry.u16()?, entry.u16()?);
    limits.check_frame(path, u64::from(width), u64::from(height))?;
    entry.take(50)?;
    let avcc = Boxes::new(entry.rest(), "avc1").require(b"avcC")?.to_vec();
    let colour = match Boxes::new(entry.rest(), "avc1").find(b"colr")? {
        Some(body) => read_colr(body)?,
        None => None,
    };
    Ok((avcc, colour))
}

fn read_colr(body: &[u8]) -> Result<Option<ContainerColour>, Fault> {
    let mut colr = Cursor::new(body, "colr");
    let kind = colr.fourcc()?;
    if !matches!(&kind, b"nclx" | b"nclc") {
        return Ok(None);
    }
    colr.take(4)?;
    let matrix = colr.u16()? as u8;
    let full_range = match &kind {
        b"nclx" => Some(colr.u8()? & 0x80 != 0),
        _ => None,
    };
    Ok(Some(ContainerColour { matrix, full_range }))
}

/// Expands the sample tables. Returns the samples and the sum of their durations.
fn read_samples(
    stbl: &[u8],
    path: &Path,
    limits: &MediaLimits,
) -> Result<(Vec<Sample>, i64), Fault> {
    let find = |name: &'static [u8; 4]| Boxes::new(stbl, "stbl").find(name);
    let Some(stsz) = find(b"stsz")? else {
        return Err(Fault::corrupt(
            "stbl",
            "box `stsz` is missing (compact `stz2` is not supported)",
        ));
    };
    let mut stsz = Cursor::new(stsz, "stsz");
    stsz.version_flags()?;
    let common_size = stsz.u32()?;
    let (count, sizes) = if common_size == 0 {
        stsz.table(4)?
    } else {
        (stsz.u32()? as usize, &[][..])
    };
    // Before anything is expanded.
    limits.check_frame_count(path, count as u64)?;
    if count == 0 {
        // A fragmented file keeps its samples in `moof` boxes.
        return Ok((Vec::new(), 0));
    }

    let mut samples = Vec::with_capacity(count);
    for i in 0..count {
        samples.push(Sample {
            offset: 0,
            size: u32_at(sizes, i).unwrap_or(common_size),
            sync: false,
            dts: 0,
            pts: 0,
        });
    }
    set_offsets(stbl, &mut samples)?;
    let total = set_times(stbl, &mut samples)?;

    match find(b"stss")? {
        None => samples.iter_mut().for_each(|s| s.sync = true),
        Some(body) => {
            let mut stss = Cursor::new(body, "stss");
            stss.version_flags()?;
            let (entries, table) = stss.table(4)?;
            for i in 0..entries {
                let number = u32_at(table, i).unwrap_or(0) as usize;
                if let Some(sample) = number.checked_sub(1).and_then(|n| samples.get_mut(n)) {
                    sample.sync = true;
                }
            }
        }
    }
    Ok((samples, total))
}

/// Byte offsets from `stsc` and `stco` / `co64`.
fn set_offsets(stbl: &[u8], samples: &mut [Sample]) -> Result<(), Fault> {
    let find = |name: &'static [u8; 4]| Boxes::new(stbl, "stbl").find(name);
    let (wide, body) = match (find(b"stco")?, find(b"co64")?) {
        (Some(body), _) => (false, body),
        (None, Some(body)) => (true, body),
        (None, None) => return Err(Fault::corrupt("stbl", "no chunk offsets")),
    };
    let mut offsets = Cursor::new(body, "stco");
    offsets.version_flags()?;
    let (chunks, offsets) = offsets.table(if wide { 8 } else { 4 })?;
    let mut stsc = Cursor::new(Boxes::new(stbl, "stbl").require(b"stsc")?, "stsc");
    stsc.version_flags()?;
    let (runs, table) = stsc.table(12)?;
    let first_chunk = |run: usize| u32_at(table, 3 * run).unwrap_or(0) as usize;

    let mut next = 0;
    for run in 0..runs {
        let first = first_chunk(run);
        let end = if run + 1 < runs {
            first_chunk(run + 1)
        } else {
            chunks + 1
        };
        let per_chunk = u32_at(table, 3 * run + 1).unwrap_or(0) as usize;
        if first == 0 || end < first || end > chunks + 1 || per_chunk == 0 {
            return Err(Fault::corrupt(
                "stsc",
                format!("run {run}: chunks {first}..{end} of {chunks}, {per_chunk} samples each"),
            ));
        }
        for chunk in first..end {
            let mut offset = if wide {
                u64_at(offsets, chunk - 1)
            } else {
                u32_at(offsets, chunk - 1).map(u64::from)
            }
            .unwrap_or(u64::MAX);
            for _ in 0..per_chunk {
                let Some(sample) = samples.get_mut(next) else {
                    return Ok(());
                };
                sample.offset = offset;
                offset = offset.saturating_add(u64::from(sample.size));
                next += 1;
            }
        }
    }
    if next < samples.len() {
        return Err(Fault::corrupt(
            "stsc",
            format!(
                "chunks hold {next} samples, the track has {}",
                samples.len()
            ),
        ));
    }
    Ok(())
}

/// Decoding times from `stts`, presentation times from `ctts`. Returns the total duration.
fn set_times(stbl: &[u8], samples: &mut [Sample]) -> Result<i64, Fault> {
    let mut stts = Cursor::new(Boxes::new(stbl, "stbl").require(b"stts")?, "stts");
    stts.version_flags()?;
    let (runs, table) = stts.table(8)?;
    let mut time = 0i64;
    let mut rest = samples.iter_mut();
    let mut last_delta = 0;
    'runs: for run in 0..runs {
        let count = u32_at(table, 2 * run).unwrap_or(0);
        last_delta = i64::from(u32_at(table, 2 * run + 1).unwrap_or(0));
        for _ in 0..count {
            let Some(sample) = rest.next() else {
                break 'runs;
            };
            sample.dts = time;
            time = time.saturating_add(last_delta);
        }
    }
    // A table that ends early: the last duration continues.
    for sample in rest {
        sample.dts = time;
        time = time.saturating_add(last_delta);
    }
    for sample in samples.iter_mut() {
        sample.pts = sample.dts;
    }
    if let Some(body) = Boxes::new(stbl, "stbl").find(b"ctts")? {
        let mut ctts = Cursor::new(body, "ctts");
        ctts.version_flags()?;
        let (runs, table) = ctts.table(8)?;
        let mut rest = samples.iter_mut();
        'offsets: for run in 0..runs {
            let count = u32_at(table, 2 * run).unwrap_or(0);
            // Signed in practice in both versions of the box.
            let offset = u32_at(table, 2 * run + 1).unwrap_or(0).cast_signed();
            for _ in 0..count {
                let Some(sample) = rest.next() else {
                    break 'offsets;
                };
                sample.pts = sample.dts.saturating_add(i64::from(offset));
            }
        }
    }
    Ok(time)
}
