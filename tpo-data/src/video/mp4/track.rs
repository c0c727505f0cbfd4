//! The sample tables of a `trak` box.

use std::path::Path;

use mp4_atom::{
    Avcc, Co64, Colr, Ctts, Elst, ElstEntry, Mdhd, Mvhd, Stco, Stsc, Stss, Stsz, StszSamples, Stts,
    Tkhd, Trex,
};

use super::boxes::Boxes;
use super::edits::present;
use super::{ContainerColour, Movie, Sample, signed, unsupported};
use crate::frame::Rotation;
use crate::{DataError, MediaLimits};

/// Frames per second assumed when the file gives its pictures no duration (a single frame).
/// The default of ffmpeg's image demuxers.
const FALLBACK_FPS: f64 = 25.0;

/// A video track while its samples are collected.
#[derive(Debug)]
pub(super) struct TrackBuilder {
    pub id: u32,
    pub samples: Vec<Sample>,
    /// Sum of the durations so far, which is the decoding time of the next sample.
    pub next_dts: i64,
    /// Defaults of its fragments.
    pub defaults: Trex,
    timescale: u32,
    movie_timescale: u32,
    edits: Vec<ElstEntry>,
    rotation: Rotation,
    avcc: Avcc,
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
            return Err(DataError::corrupt(path, "video track", "it has no samples"));
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
        let scales = (self.timescale, self.movie_timescale);
        let most = limits.max_frames;
        let shown = present(&self.samples, &self.edits, scales, most)
            .map_err(|reason| DataError::corrupt(path, "elst", reason))?;
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
pub(super) fn read_moov(moov: Boxes<'_>, limits: &MediaLimits) -> Result<TrackBuilder, DataError> {
    let movie_timescale = moov.need::<Mvhd>()?.timescale;
    let path = moov.path;
    let mut other_codec = None;
    for item in moov {
        let (name, trak) = item?;
        if name != b"trak".into() {
            continue;
        }
        match read_trak(Boxes::new(trak, "trak", path), movie_timescale, limits) {
            Ok(Some(mut track)) => {
                track.defaults = read_trex(moov, track.id)?;
                return Ok(track);
            }
            Ok(None) => {}
            // Another track may be readable.
            Err(error @ DataError::UnsupportedCodec { .. }) => other_codec = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(other_codec.unwrap_or_else(|| DataError::NoVideoTrack { path: path.into() }))
}

fn read_trex(moov: Boxes<'_>, track: u32) -> Result<Trex, DataError> {
    let mvex = moov.inside("mvex")?;
    for item in mvex {
        let (name, body) = item?;
        if name == b"trex".into() {
            let trex: Trex = mvex.decode(body)?;
            if trex.track_id == track {
                return Ok(trex);
            }
        }
    }
    Ok(Trex::default())
}

/// Reads a `trak` box; `None` when it is not video.
fn read_trak(
    trak: Boxes<'_>,
    movie_timescale: u32,
    limits: &MediaLimits,
) -> Result<Option<TrackBuilder>, DataError> {
    let mdia = trak.inside("mdia")?;
    if mdia.require(b"hdlr".into())?.get(8..12) != Some(b"vide") {
        return Ok(None);
    }
    let tkhd: Tkhd = trak.need()?;
    let m = &tkhd.matrix;
    let timescale = mdia.need::<Mdhd>()?.timescale;
    if timescale == 0 {
        return Err(mdia.corrupt("box `mdhd` has a timescale of 0"));
    }
    let stbl = mdia.inside("minf")?.inside("stbl")?;
    let (avcc, colour) = read_stsd(stbl, limits)?;
    let (samples, next_dts) = read_samples(stbl, limits)?;
    let edits = trak.inside("edts")?.get::<Elst>()?;
    Ok(Some(TrackBuilder {
        id: tkhd.track_id,
        samples,
        next_dts,
        defaults: Trex::default(),
        timescale,
        movie_timescale,
        edits: edits.map_or_else(Vec::new, |elst| elst.entries),
        // In 16.16; only the signs matter for right angles.
        rotation: Rotation::from_matrix_signs([m.a, m.b, m.c, m.d].map(i32::signum)),
        avcc,
        colour,
    }))
}

/// The `avcC` record and the colour description of the first sample entry.
fn read_stsd(
    stbl: Boxes<'_>,
    limits: &MediaLimits,
) -> Result<(Avcc, Option<ContainerColour>), DataError> {
    let stsd = stbl.require(b"stsd".into())?;
    // Version and number of entries.
    let mut entries = Boxes::new(stsd.get(8..).unwrap_or_default(), "stsd", stbl.path);
    let first = entries.next();
    let (codec, entry) = first.ok_or_else(|| entries.corrupt("no sample entry"))??;
    if codec != b"avc1".into() && codec != b"avc3".into() {
        let codec = codec.to_string().escape_debug().to_string();
        return Err(unsupported(stbl.path, codec));
    }
    // Fields of the sample entry: width and height are 24 bytes into it.
    let fields = entry.split_at_checked(78);
    let (fields, boxes) = fields.ok_or_else(|| entries.corrupt("a sample entry is too short"))?;
    let side = |at: usize| u64::from(u16::from_be_bytes([fields[at], fields[at + 1]]));
    limits.check_frame(stbl.path, side(24), side(26))?;
    let boxes = Boxes::new(boxes, "avc1", stbl.path);
    let avcc = boxes.need()?;
    let colour = match boxes.get() {
        Ok(Some(Colr::Nclx {
            matrix_coefficients,
            full_range_flag,
            ..
        })) => Some((matrix_coefficients as u8, full_range_flag)),
        Ok(Some(Colr::Nclc {
            matrix_coefficients,
            ..
        })) => Some((matrix_coefficients as u8, false)),
        _ => None,
    };
    Ok((avcc, colour))
}

/// Expands the sample tables. Returns the samples and the sum of their durations.
fn read_samples(stbl: Boxes<'_>, limits: &MediaLimits) -> Result<(Vec<Sample>, i64), DataError> {
    let missing = || stbl.corrupt("box `stsz` is missing (compact `stz2` is not supported)");
    let stsz: Stsz = stbl.get()?.ok_or_else(missing)?;
    let count = match &stsz.samples {
        StszSamples::Identical { count, .. } => *count as usize,
        StszSamples::Different { sizes } => sizes.len(),
    };
    // Before anything is expanded.
    limits.check_frame_count(stbl.path, count as u64)?;
    if count == 0 {
        // A fragmented file keeps its samples in `moof` boxes.
        return Ok((Vec::new(), 0));
    }
    let sizes = match stsz.samples {
        StszSamples::Identical { size, .. } => vec![size; count],
        StszSamples::Different { sizes } => sizes,
    };
    let stss = stbl.get::<Stss>()?;
    let sample = |size| Sample {
        offset: 0,
        size,
        // Without a table decoding can start anywhere.
        sync: stss.is_none(),
        dts: 0,
        pts: 0,
    };
    let mut samples: Vec<_> = sizes.into_iter().map(sample).collect();
    set_offsets(stbl, &mut samples)?;
    let total = set_times(stbl, &mut samples)?;
    for number in stss.iter().flat_map(|stss| &stss.entries) {
        if let Some(sample) = samples.get_mut((*number as usize).wrapping_sub(1)) {
            sample.sync = true;
        }
    }
    Ok((samples, total))
}

/// Byte offsets from `stsc` and `stco` / `co64`.
fn set_offsets(stbl: Boxes<'_>, samples: &mut [Sample]) -> Result<(), DataError> {
    let offsets: Vec<u64> = match stbl.get::<Stco>()? {
        Some(stco) => stco.entries.into_iter().map(u64::from).collect(),
        None => stbl.need::<Co64>()?.entries,
    };
    let chunks = offsets.len();
    let runs = stbl.need::<Stsc>()?.entries;
    let (count, mut rest) = (samples.len(), samples.iter_mut());
    for (i, run) in runs.iter().enumerate() {
        let first = run.first_chunk as usize;
        let end = runs
            .get(i + 1)
            .map_or(chunks + 1, |r| r.first_chunk as usize);
        let per_chunk = run.samples_per_chunk;
        if first == 0 || end < first || end > chunks + 1 || per_chunk == 0 {
            return Err(stbl.corrupt(format!(
                "run {i} of `stsc`: chunks {first}..{end} of {chunks}, {per_chunk} samples each"
            )));
        }
        for mut offset in offsets[first - 1..end - 1].iter().copied() {
            for _ in 0..per_chunk {
                let Some(sample) = rest.next() else {
                    return Ok(());
                };
                sample.offset = offset;
                offset = offset.saturating_add(u64::from(sample.size));
            }
        }
    }
    match rest.len() {
        0 => Ok(()),
        missing => Err(stbl.corrupt(format!(
            "chunks hold {} samples, the track has {count}",
            count - missing
        ))),
    }
}

/// Decoding times from `stts`, presentation times from `ctts`. Returns the total duration.
fn set_times(stbl: Boxes<'_>, samples: &mut [Sample]) -> Result<i64, DataError> {
    let runs = stbl.need::<Stts>()?.entries;
    // In a table that ends early the last duration continues.
    let last = runs.last().map_or(0, |run| run.sample_delta);
    let durations = runs
        .iter()
        .flat_map(|run| std::iter::repeat_n(run.sample_delta, run.sample_count as usize))
        .chain(std::iter::repeat(last));
    let mut time = 0i64;
    for (sample, duration) in samples.iter_mut().zip(durations) {
        (sample.dts, sample.pts) = (time, time);
        time = time.saturating_add(i64::from(duration));
    }
    let runs = stbl
        .get::<Ctts>()?
        .map_or_else(Vec::new, |ctts| ctts.entries);
    let shifts = runs
        .iter()
        .flat_map(|run| std::iter::repeat_n(run.sample_offset, run.sample_count as usize));
    for (sample, shift) in samples.iter_mut().zip(shifts) {
        sample.pts = sample.dts.saturating_add(signed(shift));
    }
    Ok(time)
}
