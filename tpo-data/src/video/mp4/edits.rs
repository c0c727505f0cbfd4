//! Edit lists: which part of the track is shown, and when.

use mp4_atom::ElstEntry;

use super::{Sample, Shown};

/// Shown pictures in presentation order, with times in seconds.
///
/// Without an edit list every picture is shown, the first at 0 s. With one, the pictures whose
/// time lies in an edit are shown at their place on the movie's time line; ffmpeg does the
/// same.
///
/// `max_frames` bounds what is shown.
pub(super) fn present(
    samples: &[Sample],
    edits: &[ElstEntry],
    (timescale, movie_timescale): (u32, u32),
    max_frames: u64,
) -> Result<Vec<Shown>, String> {
    let units = f64::from(timescale);
    let mut order: Vec<u32> = (0..samples.len() as u32).collect();
    order.sort_by_key(|&i| samples[i as usize].pts);
    let pts = |i: u32| samples[i as usize].pts;
    let first = order.first().map_or(0, |&i| pts(i));
    let whole = || {
        order
            .iter()
            .map(|&i| Shown {
                sample: i,
                seconds: pts(i).saturating_sub(first) as f64 / units,
            })
            .collect::<Vec<_>>()
    };
    if edits.iter().all(|e| e.media_time.is_none()) || movie_timescale == 0 {
        return Ok(whole());
    }
    let mut shown = Vec::new();
    // Movie time of the next edit, in seconds.
    let mut origin = 0.0;
    for edit in edits {
        let length = edit.segment_duration as f64 / f64::from(movie_timescale);
        if let Some(start) = edit.media_time {
            let start = i64::try_from(start).unwrap_or(i64::MAX);
            let end = if edit.segment_duration == 0 {
                i64::MAX
            } else {
                start.saturating_add((length * units).round() as i64)
            };
            let from = order.partition_point(|&i| pts(i) < start);
            let to = order.partition_point(|&i| pts(i) < end).max(from);
            if (shown.len() + (to - from)) as u64 > max_frames {
                return Err(format!("the edits show more than {max_frames} frames"));
            }
            shown.extend(order[from..to].iter().map(|&i| Shown {
                sample: i,
                seconds: origin + (pts(i) - start) as f64 / units,
            }));
        }
        origin += length;
    }
    if shown.is_empty() {
        // An edit list that shows nothing is a broken muxer's; the pictures are there.
        tracing::warn!("the edit list shows no frame, it is ignored");
        return Ok(whole());
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I P B B in decoding order, 10 units apart, shown from 20 on.
    fn samples() -> Vec<Sample> {
        [20, 50, 30, 40]
            .iter()
            .enumerate()
            .map(|(i, &pts)| Sample {
                offset: 0,
                size: 1,
                sync: i == 0,
                dts: 10 * i as i64,
                pts,
            })
            .collect()
    }

    fn edit(duration: u64, start: i64) -> ElstEntry {
        ElstEntry {
            segment_duration: duration,
            media_time: start.try_into().ok(),
            ..ElstEntry::default()
        }
    }

    fn run(edits: &[ElstEntry]) -> Vec<(u32, f64)> {
        present(&samples(), edits, (10, 1000), 100)
            .unwrap()
            .iter()
            .map(|s| (s.sample, s.seconds))
            .collect()
    }

    #[test]
    fn presentation_order_without_edits() {
        assert_eq!(run(&[]), [(0, 0.0), (2, 1.0), (3, 2.0), (1, 3.0)]);
    }

    #[test]
    fn one_edit_cuts_both_ends() {
        assert_eq!(run(&[edit(4000, 20)]).len(), 4);
        assert_eq!(run(&[edit(2000, 30)]), [(2, 0.0), (3, 1.0)]);
        assert_eq!(run(&[edit(0, 40)]), [(3, 0.0), (1, 1.0)]);
    }

    #[test]
    fn an_empty_edit_delays() {
        assert_eq!(run(&[edit(500, -1), edit(2000, 20)]), [(0, 0.5), (2, 1.5)]);
    }

    #[test]
    fn hostile_edits_are_bounded() {
        let many = vec![edit(0, 0); 1000];
        assert!(present(&samples(), &many, (10, 1000), 100).is_err());
        assert_eq!(run(&[edit(u64::MAX, i64::MAX)]).len(), 4);
    }
}
