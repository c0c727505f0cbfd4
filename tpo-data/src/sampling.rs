//! Which frames of a video the model sees, and the times it is given of them.
//!
//! The rules are those of the reference implementation, quirks included, because
//! published numbers depend on them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// Most indices one call may produce; a guard against `fps1e9`.
const MAX_INDICES: usize = 10_000_000;

/// Rule that picks frames.
///
/// As text: `middle`, `rand`, `rand:SEED`, `fpsX` (for example `fps1.0`), `linspace` or `uptoX`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FrameSampling {
    /// Middle frame of each of N equal intervals; the default of the reference.
    Middle,
    /// A random frame of each of N equal intervals. The same seed gives the same frames on
    /// every machine and in every version of this crate.
    Random {
        /// Seed of the generator.
        seed: u64,
    },
    /// X frames per second, whatever their number.
    Fps(f64),
    /// N frames from the first to the last, numpy's `linspace(0, count - 1, N, dtype=int)`: a video with
    /// fewer repeats some (LLaVA-OneVision's demo and evaluation).
    Linspace,
    /// X frames per second, every `round(fps / X)`-th, and `Linspace` of N where these are more than N
    /// (LLaVA-OneVision's training, with X = 1 and N = 32).
    UpTo(f64),
}

impl FrameSampling {
    /// Whether a video gives exactly as many frames as are wanted.
    pub fn is_fixed(self) -> bool {
        !matches!(self, Self::Fps(_) | Self::UpTo(_))
    }
}

impl fmt::Display for FrameSampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Middle => f.write_str("middle"),
            Self::Random { seed } => write!(f, "rand:{seed}"),
            Self::Fps(fps) => write!(f, "fps{fps:?}"),
            Self::Linspace => f.write_str("linspace"),
            Self::UpTo(fps) => write!(f, "upto{fps:?}"),
        }
    }
}

impl From<FrameSampling> for String {
    fn from(value: FrameSampling) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for FrameSampling {
    type Error = DataError;

    fn try_from(value: String) -> Result<Self, DataError> {
        value.parse()
    }
}

impl FromStr for FrameSampling {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let seed = |text: &str| text.parse().ok();
        let rate = |text: &str| text.parse().ok().filter(|fps| is_rate(*fps));
        let sampling = match text {
            "middle" => Some(Self::Middle),
            "rand" => Some(Self::Random { seed: 0 }),
            "linspace" => Some(Self::Linspace),
            _ => {
                let after = |prefix| text.strip_prefix(prefix);
                match (after("rand:"), after("fps"), after("upto")) {
                    (Some(text), ..) => seed(text).map(|seed| Self::Random { seed }),
                    (_, Some(text), _) => rate(text).map(Self::Fps),
                    (.., Some(text)) => rate(text).map(Self::UpTo),
                    _ => None,
                }
            }
        };
        let expected = "expected `middle`, `rand`, `rand:SEED`, `fpsX` with X > 0, `linspace` or \
                        `uptoX`";
        sampling.ok_or_else(|| DataError::sampling(format!("`{text}`; {expected}")))
    }
}

/// A part of a video, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipRange {
    /// Start in seconds.
    pub start: f64,
    /// End in seconds.
    pub end: f64,
}

/// Frame indices of a whole video, equal to the reference's `get_frame_indices` and the
/// truncation its caller applies.
///
/// * `num_frames`: frames wanted, by `UpTo` at most; with `Middle` and `Random` a video with fewer
///   yields every frame and then repeats the last index. `Fps` ignores it.
/// * `frame_count`: frames of the video.
/// * `fps`: frames per second of the video; only `Fps` and `UpTo` use it.
///
/// Intervals are numpy's `linspace(0, frame_count, n + 1)` truncated to integers. With
/// `Fps(x)` the times are `arange(d/2, duration + d/2, d)`, `d = 1/x`, rounded half to even,
/// those past the end dropped, and the list cut to a multiple of `x`: a video shorter than a
/// second at `Fps(8.0)` yields no frame at all. As in the reference, a fractional remainder
/// below 1 (only possible when `x` is not an integer and does not divide the count) also
/// yields no frame, because it is written `indices[:-0]` there.
///
/// `Random` draws from `[start, end - 1)` of each interval as the reference does, so the last
/// frame of an interval of two or more is never drawn; when an interval holds a single frame,
/// distinct frames are drawn from the whole video instead. The generator is ours (SplitMix64):
/// Python's cannot be reproduced.
///
/// # Errors
/// [`DataError::InvalidSampling`] when `frame_count` is 0, `num_frames` is 0 (not for `Fps`)
/// or a rate is not a positive number.
pub fn frame_indices(
    sampling: FrameSampling,
    num_frames: usize,
    frame_count: usize,
    fps: f64,
) -> Result<Vec<usize>, DataError> {
    if frame_count == 0 {
        return Err(DataError::sampling("the video has no frames"));
    }
    if let FrameSampling::Fps(rate) = sampling {
        return fps_indices(rate, frame_count, fps);
    }
    if num_frames == 0 || num_frames > MAX_INDICES {
        return Err(DataError::sampling(format!(
            "{num_frames} frames asked for, expected 1 to {MAX_INDICES}"
        )));
    }
    match sampling {
        FrameSampling::UpTo(rate) => {
            check_rates(rate, fps)?;
            // Python's `round`; where that is 0, it fails, and this takes every frame.
            let step = ((fps / rate).round_ties_even() as usize).max(1);
            if frame_count.div_ceil(step) <= num_frames {
                return Ok((0..frame_count).step_by(step).collect());
            }
            return Ok(linspace(frame_count - 1, num_frames));
        }
        FrameSampling::Linspace => return Ok(linspace(frame_count - 1, num_frames)),
        _ => {}
    }
    let n = num_frames.min(frame_count);
    let bounds = linspace(frame_count, n + 1);
    // Inclusive ends, as in the reference.
    let ranges = bounds.windows(2).map(|w| (w[0], w[1].saturating_sub(1)));
    let mut indices: Vec<usize> = match sampling {
        FrameSampling::Random { seed } => {
            let mut rng = SplitMix64(seed);
            let drawn: Option<Vec<usize>> = ranges
                .map(|(a, b)| (b > a).then(|| a + rng.below(b - a)))
                .collect();
            drawn.unwrap_or_else(|| distinct(&mut SplitMix64(seed), frame_count, n))
        }
        _ => ranges.map(|(a, b)| (a + b) / 2).collect(),
    };
    let last = indices.last().copied().unwrap_or(0);
    indices.resize(num_frames, last);
    Ok(indices)
}

/// As [`frame_indices`] for a part of a video.
///
/// The clip covers `int((end - start) * fps)` frames from frame `int(start * fps)`, as in the
/// reference; it is first clamped to the video and holds at least one frame.
///
/// # Errors
/// As [`frame_indices`], and when the clip is not a positive span inside the video.
pub fn clip_frame_indices(
    sampling: FrameSampling,
    num_frames: usize,
    frame_count: usize,
    fps: f64,
    clip: ClipRange,
) -> Result<Vec<usize>, DataError> {
    let (first, count) = clip_frames(frame_count, fps, clip)?;
    let mut indices = frame_indices(sampling, num_frames, count, fps)?;
    indices.iter_mut().for_each(|i| *i += first);
    Ok(indices)
}

/// First frame and number of frames of a part of a video; see [`clip_frame_indices`].
pub(crate) fn clip_frames(
    frame_count: usize,
    fps: f64,
    clip: ClipRange,
) -> Result<(usize, usize), DataError> {
    let ClipRange { start, end } = clip;
    if !is_rate(fps) {
        let reason = format!("a clip needs the frame rate of the video, got {fps}");
        return Err(DataError::sampling(reason));
    }
    let duration = frame_count as f64 / fps;
    if !(start.is_finite() && end.is_finite()) || start >= end || end <= 0.0 || start >= duration {
        return Err(DataError::sampling(format!(
            "clip [{start}, {end}] s is not a positive span of a video of {duration} s"
        )));
    }
    let (start, end) = (start.max(0.0), end.min(duration));
    let first = ((start * fps) as usize).min(frame_count.saturating_sub(1));
    let count = (((end - start) * fps) as usize).clamp(1, frame_count - first);
    Ok((first, count))
}

/// Frames shown in the middle of equal intervals, `rate` per second, as many as fit completely into
/// the video: index `(i + 0.5) / rate · fps` rounded down. A video of `rate` frames per second
/// gives every frame once, which [`FrameSampling::Fps`] does not.
///
/// # Errors
/// [`DataError::InvalidSampling`] when a rate is not a positive number, there are no frames, or
/// the result has too many.
pub fn shown_indices(rate: f64, frame_count: usize, fps: f64) -> Result<Vec<usize>, DataError> {
    check_rates(rate, fps)?;
    let count = intervals(frame_count as f64 / fps, rate);
    if frame_count == 0 || count > MAX_INDICES {
        return Err(DataError::sampling(format!(
            "{count} frames of a video of {frame_count}; at least one must be there, at most \
             {MAX_INDICES} may be asked for"
        )));
    }
    Ok((0..count)
        .map(|i| (((i as f64 + 0.5) / rate * fps) as usize).min(frame_count - 1))
        .collect())
}

/// Whole intervals of `1 / rate` seconds in `duration` seconds; rounding of the division does not
/// lose one.
pub fn intervals(duration: f64, rate: f64) -> usize {
    // Saturates on infinities, 0 for what is no number.
    (duration * rate + 1e-6) as usize
}

/// The times of frames as the model is told them, in chat and training: seconds from the first frame
/// of the clip, `index / fps` rounded to one decimal as Python's `round(x, 1)` does (reference
/// implementation). `indices` count in the file, of which `clip` is a part.
///
/// # Errors
/// [`DataError::InvalidSampling`] for a part that is not a positive span of the video.
pub fn told_times(
    indices: &[usize],
    frame_count: usize,
    fps: f64,
    clip: Option<ClipRange>,
) -> Result<Vec<f64>, DataError> {
    let first = match clip {
        Some(clip) => clip_frames(frame_count, fps, clip)?.0,
        None => 0,
    };
    let time = |i: &usize| round_to_tenth(i.saturating_sub(first) as f64 / fps);
    Ok(indices.iter().map(time).collect())
}

/// Rounds seconds to one decimal as Python's `round(x, 1)`: exact value, ties to even.
pub fn round_to_tenth(seconds: f64) -> f64 {
    // Both Python and Rust round the exact binary value correctly, so printing and reading
    // back is the same function.
    format!("{seconds:.1}").parse().unwrap_or(seconds)
}

/// numpy `linspace(0, stop, n, dtype=int)`, `n` at least 1.
fn linspace(stop: usize, n: usize) -> Vec<usize> {
    let step = stop as f64 / (n - 1).max(1) as f64;
    let mut numbers: Vec<usize> = (0..n).map(|i| (i as f64 * step) as usize).collect();
    // numpy writes the end point itself, where it is not the start too.
    if let [_, .., last] = &mut numbers[..] {
        *last = stop;
    }
    numbers
}

/// Whether a number of frames per second can be one.
pub(crate) fn is_rate(fps: f64) -> bool {
    fps.is_finite() && fps > 0.0
}

fn check_rates(sampling: f64, video: f64) -> Result<(), DataError> {
    for (name, rate) in [
        ("sampling rate", sampling),
        ("frame rate of the video", video),
    ] {
        if !is_rate(rate) {
            let reason = format!("{name} must be a positive number, got {rate}");
            return Err(DataError::sampling(reason));
        }
    }
    Ok(())
}

fn fps_indices(rate: f64, frame_count: usize, fps: f64) -> Result<Vec<usize>, DataError> {
    check_rates(rate, fps)?;
    let duration = frame_count as f64 / fps;
    let delta = 1.0 / rate;
    let start = 0.0 + delta / 2.0;
    let stop = duration + delta / 2.0;
    // numpy arange: the length from the arguments, the step from the first two values.
    let len = ((stop - start) / delta).ceil();
    if !(0.0..=MAX_INDICES as f64).contains(&len) {
        return Err(DataError::sampling(format!(
            "{rate} frames per second of {duration} s are {len} frames, at most {MAX_INDICES} are allowed"
        )));
    }
    let step = (start + delta) - start;
    let mut indices: Vec<usize> = (0..len as usize)
        .map(|i| ((start + i as f64 * step) * fps).round_ties_even())
        .filter(|&i| i < frame_count as f64)
        .map(|i| i as usize)
        .collect();
    let remainder = indices.len() as f64 % rate;
    if remainder != 0.0 {
        // indices[:-int(remainder)], and indices[:-0] is empty.
        let drop = remainder as usize;
        let keep = if drop == 0 { 0 } else { indices.len() - drop };
        indices.truncate(keep);
    }
    Ok(indices)
}

/// `n` distinct numbers below `count`, ascending.
fn distinct(rng: &mut SplitMix64, count: usize, n: usize) -> Vec<usize> {
    // Reached only when an interval holds one frame, so count < 2 * n: small.
    let mut all: Vec<usize> = (0..count).collect();
    for i in 0..n {
        let j = i + rng.below(count - i);
        all.swap(i, j);
    }
    all.truncate(n);
    all.sort_unstable();
    all
}

/// Steele, Lea and Flood's SplitMix64: tiny, and stable for ever, which a crate's `StdRng`
/// does not promise.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`, `n > 0`. The bias of the multiplication is below n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_stays_in_its_interval_and_repeats() {
        for seed in 0..200 {
            let sampling = FrameSampling::Random { seed };
            let a = frame_indices(sampling, 8, 64, 25.0).unwrap();
            assert_eq!(a, frame_indices(sampling, 8, 64, 25.0).unwrap());
            for (i, &x) in a.iter().enumerate() {
                assert!((8 * i..8 * i + 7).contains(&x), "{a:?}");
            }
            let b = frame_indices(sampling, 8, 12, 25.0).unwrap();
            assert!(b.windows(2).all(|w| w[0] < w[1]) && b[7] < 12, "{b:?}");
        }
        let drawn = |seed| frame_indices(FrameSampling::Random { seed }, 8, 640, 25.0).unwrap();
        assert_ne!(drawn(1), drawn(2));
        // Pinned (computed independently in Python): a change of the generator would change every published run.
        assert_eq!(drawn(7), PINNED_SEED_7);
    }

    const PINNED_SEED_7: [usize; 8] = [30, 81, 231, 286, 355, 419, 516, 585];

    #[test]
    fn clip_offsets_and_clamps() {
        let clip = |start, end| {
            clip_frame_indices(
                FrameSampling::Middle,
                4,
                100,
                25.0,
                ClipRange { start, end },
            )
        };
        assert_eq!(clip(1.0, 3.0).unwrap(), [30, 43, 55, 68]);
        assert_eq!(clip(-5.0, 99.0).unwrap(), [12, 37, 62, 87]);
        assert_eq!(clip(3.99, 4.0).unwrap(), [99; 4]);
        for (start, end) in [
            (2.0, 2.0),
            (3.0, 1.0),
            (4.0, 5.0),
            (f64::NAN, 1.0),
            (-2.0, -1.0),
        ] {
            assert!(clip(start, end).is_err(), "{start} {end}");
        }
    }

    #[test]
    fn text_form_round_trips() {
        for s in [
            "middle", "rand:7", "fps0.5", "fps8.0", "linspace", "upto1.0",
        ] {
            assert_eq!(s.parse::<FrameSampling>().unwrap().to_string(), s);
        }
        for s in [
            "", "fps", "upto", "upto0", "fps0", "fps-1", "fpsnan", "fpsinf", "rand:x", "last",
        ] {
            assert!(s.parse::<FrameSampling>().is_err(), "{s}");
        }
    }

    #[test]
    fn absurd_requests_are_errors() {
        let f = frame_indices;
        assert!(f(FrameSampling::Middle, 16, 0, 25.0).is_err());
        assert!(f(FrameSampling::Middle, 0, 5, 25.0).is_err());
        assert!(f(FrameSampling::Middle, usize::MAX, 5, 25.0).is_err());
        assert!(f(FrameSampling::Fps(1e12), 16, 5, 25.0).is_err());
        assert!(f(FrameSampling::Fps(1.0), 16, 5, 0.0).is_err());
        assert!(f(FrameSampling::Fps(1.0), 16, 5, f64::NAN).is_err());
        assert!(f(FrameSampling::UpTo(1.0), 16, 5, f64::NAN).is_err());
        assert!(f(FrameSampling::Linspace, 0, 5, 25.0).is_err());
        assert!(f(FrameSampling::Fps(f64::MIN_POSITIVE), 16, 5, 25.0).is_ok_and(|v| v.is_empty()));
    }

    #[test]
    fn a_fractional_rate_that_leaves_a_fraction_yields_nothing() {
        // 100 frames at 25 fps, 1.5 per second: 6 indices, 6 % 1.5 = 0, kept.
        let f = |n| {
            frame_indices(FrameSampling::Fps(1.5), 16, n, 25.0)
                .unwrap()
                .len()
        };
        assert_eq!(f(100), 6);
        // 4 indices: remainder 1, one dropped. 5 indices: remainder 0.5, [:-0], none left.
        assert_eq!(f(67), 3);
        assert_eq!(f(84), 0);
    }

    #[test]
    fn a_frame_a_second_by_hand() {
        let f = |n, count, fps| frame_indices(FrameSampling::UpTo(1.0), n, count, fps).unwrap();
        assert_eq!(f(32, 100, 29.97), [0, 30, 60, 90]);
        // 2.5 rounds to the even 2; three frames do not fit into two.
        assert_eq!(f(3, 5, 2.5), [0, 2, 4]);
        assert_eq!(f(2, 5, 2.5), [0, 4]);
        assert_eq!(f(1, 5, 2.5), [0]);
        assert_eq!(f(8, 3, 0.4), [0, 1, 2]);
        assert_eq!(f(8, 3, 1e300), [0]);
    }

    #[test]
    fn shown_frames_by_hand() {
        assert_eq!(
            shown_indices(2.0, 16, 2.0).unwrap(),
            (0..16).collect::<Vec<_>>()
        );
        // 10 frames at 25 per second are 0.4 s: two of 5 per second, in the middle of each.
        assert_eq!(shown_indices(5.0, 10, 25.0).unwrap(), [2, 7]);
        assert_eq!(
            shown_indices(4.0, 2, 1.0).unwrap(),
            [0, 0, 0, 0, 1, 1, 1, 1]
        );
        assert!(shown_indices(1.0, 10, 25.0).unwrap().is_empty());
        assert_eq!(intervals(0.1 + 0.2, 10.0), 3);
        for (rate, n, fps) in [
            (0.0, 1, 1.0),
            (1.0, 0, 1.0),
            (1.0, 1, f64::NAN),
            (1e300, 5, 1e-300),
        ] {
            assert!(shown_indices(rate, n, fps).is_err(), "{rate} {n} {fps}");
        }
    }

    #[test]
    fn times_round_as_python() {
        for (x, y) in [
            (0.25, 0.2),
            (0.35, 0.3),
            (0.75, 0.8),
            (2.45, 2.5),
            (7.0, 7.0),
            (0.05, 0.1),
        ] {
            assert_eq!(round_to_tenth(x), y, "round({x}, 1)");
        }
        let told = |indices: &[usize], clip| told_times(indices, 60, 30.0, clip).unwrap();
        assert_eq!(told(&[8, 27, 46], None), [0.3, 0.9, 1.5]);
        // A part counts from its own first frame, number 15.
        let part = ClipRange {
            start: 0.51,
            end: 2.0,
        };
        assert_eq!(told(&[15, 27, 46], Some(part)), [0.0, 0.4, 1.0]);
    }
}
