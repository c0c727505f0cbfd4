//! Peak of the heap while tracking: four times as many frames take no more.

mod track_common;

use peak_alloc::PeakAlloc;
use tpo_heads::mask::sam2::Sam2Version;
use tpo_heads::mask::track::{Propagation, TrackOptions, TrackState};
use track_common::{A, B, BOX, ForwardFrames, frame, model};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

// One test only: others would allocate meanwhile.
#[test]
fn the_peak_of_four_times_the_frames_is_the_same() {
    let model = model(Sam2Version::V2_1);
    let peak = |frames: usize| {
        let reader = ForwardFrames::new((0..frames).map(|i| Ok(frame(i))));
        let mut state = TrackState::init(&model, reader, TrackOptions::default()).unwrap();
        state.add_box(&model, 0, A, BOX).unwrap();
        state.add_box(&model, 0, B, BOX).unwrap();
        HEAP.reset_peak_usage();
        let mut seen = 0;
        for masks in state.propagate(&model, Propagation::forward()).unwrap() {
            assert_eq!(masks.unwrap().masks().len(), 2);
            seen += 1;
        }
        assert_eq!(seen, frames);
        HEAP.peak_usage() as f64
    };
    // Thread pools and tables are made by the first run.
    // The windows are full after 32 frames: the prompted one, those that point at it and those that
    // the next one looks at.
    peak(40);
    let (short, long) = (peak(40), peak(160));
    assert!(
        long - short < 120.0 * 100.0,
        "{short} bytes for 40 frames, {long} for 160"
    );
}
