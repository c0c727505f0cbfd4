//! Fragmented files (`moof`): the samples of a streaming download or a phone recording.

use std::path::Path;

use super::boxes::{Boxes, Cursor};
use super::track::TrackBuilder;
use super::{Fault, Sample};
use crate::MediaLimits;

/// Bit of the sample flags that says decoding cannot start here (ISO/IEC 14496-12, 8.8.3.1).
const NON_SYNC: u32 = 0x1_0000;

/// Adds the samples of a `moof` box that starts at byte `start` of the file.
pub(super) fn read_moof(
    moof: &[u8],
    start: u64,
    track: &mut TrackBuilder,
    path: &Path,
    limits: &MediaLimits,
) -> Result<(), Fault> {
    for item in Boxes::new(moof, "moof") {
        let (name, traf) = item?;
        if &name == b"traf" {
            read_traf(traf, start, track, path, limits)?;
        }
    }
    Ok(())
}

fn read_traf(
    traf: &[u8],
    moof_start: u64,
    track: &mut TrackBuilder,
    path: &Path,
    limits: &MediaLimits,
) -> Result<(), Fault> {
    let mut tfhd = Cursor::new(Boxes::new(traf, "traf").require(b"tfhd")?, "tfhd");
    let (_, flags) = tfhd.version_flags()?;
    if tfhd.u32()? != track.id {
        return Ok(());
    }
    let base = if flags & 0x1 != 0 {
        tfhd.u64()?
    } else {
        moof_start
    };
    if flags & 0x2 != 0 {
        tfhd.u32()?;
    }
    let mut defaults = track.defaults;
    if flags & 0x8 != 0 {
        defaults.duration = tfhd.u32()?;
    }
    if flags & 0x10 != 0 {
        defaults.size = tfhd.u32()?;
    }
    if flags & 0x20 != 0 {
        defaults.flags = tfhd.u32()?;
    }
    if let Some(body) = Boxes::new(traf, "traf").find(b"tfdt")? {
        let mut tfdt = Cursor::new(body, "tfdt");
        let (version, _) = tfdt.version_flags()?;
        let time = i64::try_from(tfdt.u32_or_64(version)?).unwrap_or(i64::MAX);
        if track.samples.is_empty() || time >= track.next_dts {
            track.next_dts = time;
        }
    }
    let mut offset = base;
    for item in Boxes::new(traf, "traf") {
        let (name, body) = item?;
        if &name != b"trun" {
            continue;
        }
        let mut trun = Cursor::new(body, "trun");
        let (_, flags) = trun.version_flags()?;
        let count = trun.u32()? as usize;
        // Every per-sample field is optional, so the bytes do not bound the count.
        limits.check_frame_count(
            path,
            (track.samples.len() as u64).saturating_add(count as u64),
        )?;
        if flags & 0x1 != 0 {
            offset = base.saturating_add_signed(i64::from(trun.i32()?));
        }
        let first_flags = (flags & 0x4 != 0).then(|| trun.u32()).transpose()?;
        for i in 0..count {
            let field = |bit: u32, default: u32, trun: &mut Cursor| {
                if flags & bit != 0 {
                    trun.u32()
                } else {
                    Ok(default)
                }
            };
            let duration = field(0x100, defaults.duration, &mut trun)?;
            let size = field(0x200, defaults.size, &mut trun)?;
            let default_flags = match first_flags {
                Some(first) if i == 0 => first,
                _ => defaults.flags,
            };
            let sample_flags = field(0x400, default_flags, &mut trun)?;
            let shift = field(0x800, 0, &mut trun)?.cast_signed();
            track.samples.push(Sample {
                offset,
                size,
                sync: sample_flags & NON_SYNC == 0,
                dts: track.next_dts,
                pts: track.next_dts.saturating_add(i64::from(shift)),
            });
            offset = offset.saturating_add(u64::from(size));
            track.next_dts = track.next_dts.saturating_add(i64::from(duration));
        }
    }
    Ok(())
}
