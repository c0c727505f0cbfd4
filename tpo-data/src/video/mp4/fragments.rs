//! Fragmented files (`moof`): the samples of a streaming download or a phone recording.

use mp4_atom::{Tfdt, Tfhd, Trun};

use super::boxes::Boxes;
use super::track::TrackBuilder;
use super::{Sample, signed};
use crate::{DataError, MediaLimits};

/// Bit of the sample flags that says decoding cannot start here (ISO/IEC 14496-12, 8.8.3.1).
const NON_SYNC: u32 = 0x1_0000;

/// Adds the samples of a `moof` box that starts at byte `start` of the file.
pub(super) fn read_moof(
    moof: Boxes<'_>,
    start: u64,
    track: &mut TrackBuilder,
    limits: &MediaLimits,
) -> Result<(), DataError> {
    for item in moof {
        let (name, traf) = item?;
        if name == b"traf".into() {
            read_traf(Boxes::new(traf, "traf", moof.path), start, track, limits)?;
        }
    }
    Ok(())
}

fn read_traf(
    traf: Boxes<'_>,
    moof_start: u64,
    track: &mut TrackBuilder,
    limits: &MediaLimits,
) -> Result<(), DataError> {
    let tfhd: Tfhd = traf.need()?;
    if tfhd.track_id != track.id {
        return Ok(());
    }
    let defaults = &track.defaults;
    let duration = tfhd.default_sample_duration;
    let duration = duration.unwrap_or(defaults.default_sample_duration);
    let size = tfhd.default_sample_size;
    let size = size.unwrap_or(defaults.default_sample_size);
    let flags = tfhd.default_sample_flags;
    let flags = flags.unwrap_or(defaults.default_sample_flags);
    if let Some(tfdt) = traf.get::<Tfdt>()? {
        let time = i64::try_from(tfdt.base_media_decode_time).unwrap_or(i64::MAX);
        if track.samples.is_empty() || time >= track.next_dts {
            track.next_dts = time;
        }
    }
    let base = tfhd.base_data_offset.unwrap_or(moof_start);
    let mut offset = base;
    for item in traf {
        let (name, body) = item?;
        if name != b"trun".into() {
            continue;
        }
        let trun: Trun = traf.decode(body)?;
        // Every per-sample field is optional, so the bytes do not bound the count.
        let count = track.samples.len() + trun.samples.len();
        limits.check_frame_count(traf.path, count as u64)?;
        if let Some(shift) = trun.data_offset {
            offset = base.saturating_add_signed(i64::from(shift));
        }
        for entry in &trun.samples {
            let size = entry.size.unwrap_or(size);
            track.samples.push(Sample {
                offset,
                size,
                sync: entry.flags.unwrap_or(flags) & NON_SYNC == 0,
                dts: track.next_dts,
                pts: track
                    .next_dts
                    .saturating_add(signed(entry.cts.unwrap_or(0))),
            });
            offset = offset.saturating_add(u64::from(size));
            let duration = i64::from(entry.duration.unwrap_or(duration));
            track.next_dts = track.next_dts.saturating_add(duration);
        }
    }
    Ok(())
}
