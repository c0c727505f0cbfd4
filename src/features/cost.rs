//! What going through the frames of a video costs.

use std::fmt;
use std::time::Instant;

/// What it costs a head to go through the frames of a video, by the time of those it is done with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrameCost {
    /// Frames the head goes through.
    pub frames: usize,
    /// Frames the vision encoder looked at, which
    /// [`TrackFrames::Sampled`](crate::TrackFrames::Sampled) goes through.
    pub sampled: usize,
    /// Longer side in pixels of what the head sees of a frame.
    pub side: usize,
    /// Seconds of a frame: half of it is the last one's, a quarter that of the one before, and so on.
    /// A tracker's frames cost more as its memory fills.
    pub seconds_per_frame: f64,
}

impl FrameCost {
    /// Seconds for so many frames.
    pub fn seconds(&self, frames: usize) -> f64 {
        self.seconds_per_frame * frames as f64
    }

    /// What it is when a further frame took so many seconds.
    pub(crate) fn after(self, seconds: f64) -> Self {
        Self {
            seconds_per_frame: (self.seconds_per_frame + seconds) / 2.0,
            ..self
        }
    }

    /// Frames and their time in words: `16 frames, about 2.5 min`.
    pub fn of(&self, frames: usize) -> String {
        format!("{frames} frames, {}", about(self.seconds(frames)))
    }
}

/// All frames in words: `300 frames at 1024², about 47 min here`.
impl fmt::Display for FrameCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, side, .. } = self;
        let time = about(self.seconds(*frames));
        write!(f, "{frames} frames at {side}², {time} here")
    }
}

fn about(seconds: f64) -> String {
    let (minutes, hours) = (seconds / 60.0, seconds / 3600.0);
    match seconds {
        s if s < 90.0 => format!("about {s:.0} s"),
        s if s < 600.0 => format!("about {minutes:.1} min"),
        s if s < 5400.0 => format!("about {minutes:.0} min"),
        _ => format!("about {hours:.1} h"),
    }
}

/// Measures frames as they are read; the time until the next one is read is that of a frame.
#[derive(Debug, Default)]
pub(crate) struct FrameClock {
    /// Number of the frame that was read last, from 1, and when.
    last: Option<(usize, Instant)>,
    cost: Option<FrameCost>,
}

impl FrameClock {
    /// What is known when frame `done` has been read, from 1. `side` is its picture's longer side.
    pub(crate) fn read(
        &mut self,
        [done, frames, sampled]: [usize; 3],
        side: usize,
    ) -> Option<FrameCost> {
        let now = Instant::now();
        let last = self.last.replace((done, now));
        // Another start is another measurement.
        let took = last.filter(|(before, _)| before + 1 == done);
        self.cost = took.map(|(_, then)| {
            let seconds = (now - then).as_secs_f64();
            let first = FrameCost {
                frames,
                sampled,
                side,
                seconds_per_frame: seconds,
            };
            self.cost.map_or(first, |cost| cost.after(seconds))
        });
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::FrameCost;

    #[test]
    fn a_frame_that_takes_longer_counts_for_half() {
        let cost = FrameCost {
            frames: 300,
            sampled: 16,
            side: 1024,
            seconds_per_frame: 9.4,
        };
        let later = cost.after(11.4);
        assert!((later.seconds_per_frame - 10.4).abs() < 1e-9);
        assert!((later.after(8.4).seconds_per_frame - 9.4).abs() < 1e-9);
        assert_eq!((later.frames, later.sampled, later.side), (300, 16, 1024));
    }
}
