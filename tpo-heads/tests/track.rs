//! The tracker: bounded and unbounded, several objects, corrections, readers of frames.

mod track_common;

use std::sync::atomic::{AtomicUsize, Ordering};

use tpo_core::geometry::Mask;
use tpo_heads::HeadsError;
use tpo_heads::mask::sam2::{Sam2, Sam2Version};
use tpo_heads::mask::track::{
    Click, FrameMasks, FrameReader, Keep, ObjectId, Propagation, SeekFrames, TrackOptions,
    TrackState, VideoFrame,
};
use track_common::{
    A, B, BOX, ForwardFrames, SIZE, config, difference, frame, model, model_of, random, rectangle,
    score_bias, video,
};

fn keep(keep: Keep) -> TrackOptions {
    TrackOptions {
        keep,
        ..TrackOptions::default()
    }
}

/// Both kinds of state over the same frames.
fn both(model: &Sam2, frames: usize) -> [TrackState<Vec<VideoFrame>>; 2] {
    [Keep::Everything, Keep::Window]
        .map(|k| TrackState::init(model, video(frames), keep(k)).unwrap())
}

fn run<R: FrameReader>(
    state: &mut TrackState<R>,
    model: &Sam2,
    run: Propagation,
) -> Vec<FrameMasks> {
    let run = state.propagate(model, run).unwrap();
    run.map(|masks| masks.unwrap()).collect()
}

fn same(a: &[FrameMasks], b: &[FrameMasks]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!(difference(a, b), 0.0, "frame {}", a.frame);
    }
}

#[test]
fn bounded_is_random_access_frame_for_frame() {
    for version in [Sam2Version::V2_0, Sam2Version::V2_1] {
        for stride in [1, 3] {
            let mut config = config(version);
            config.num_maskmem = 5;
            config.tracking.memory_temporal_stride_for_eval = stride;
            config.tracking.max_obj_ptrs_in_encoder = 6;
            let model = model_of(&config);
            let [mut all, mut window] = both(&model, 40);
            let outputs = [&mut all, &mut window].map(|state| {
                state.add_box(&model, 9, A, BOX).unwrap();
                state
                    .add_points(&model, 12, B, &[Click::on(20.0, 20.0)])
                    .unwrap();
                let mut out = run(state, &model, Propagation::forward().take(15));
                // A correction of the frame the run stands at, and on from there.
                out.push(
                    state
                        .add_points(&model, 23, A, &[Click::beside(60.0, 40.0)])
                        .unwrap(),
                );
                out.extend(run(state, &model, Propagation::forward().from(23)));
                out.extend(run(state, &model, Propagation::backward()));
                out
            });
            assert_eq!(outputs[0].len(), 15 + 1 + 17 + 10);
            same(&outputs[0], &outputs[1]);
            // Memories do matter: the last frame is not a decoding of the frame alone.
            assert!(window.bytes() < all.bytes());
        }
    }
}

#[test]
fn memories_matter_and_masks_change_from_frame_to_frame() {
    let model = model(Sam2Version::V2_1);
    let [mut a, mut b] = both(&model, 4);
    a.add_box(&model, 0, A, BOX).unwrap();
    b.add_mask(&model, 0, A, &rectangle(SIZE, [50, 20, 70, 40]))
        .unwrap();
    let (a, b) = (
        run(&mut a, &model, Propagation::forward()),
        run(&mut b, &model, Propagation::forward()),
    );
    assert!(difference(&a[2], &b[2]) > 1e-3);
    let logits = |m: &FrameMasks| m.objects[0].low_res.clone();
    assert_ne!(logits(&a[1]), logits(&a[2]));
}

#[test]
fn state_does_not_grow_with_the_video() {
    let model = model(Sam2Version::V2_0);
    // Enough frames to fill the window.
    let kept = [40, 160].map(|frames| {
        let reader = ForwardFrames::new((0..frames).map(|i| Ok(frame(i))));
        let mut state = TrackState::init(&model, reader, TrackOptions::default()).unwrap();
        state.add_box(&model, 0, A, BOX).unwrap();
        state.add_box(&model, 0, B, BOX).unwrap();
        let mut largest = 0;
        let mut run = state.propagate(&model, Propagation::forward()).unwrap();
        let mut seen = 0;
        while let Some(masks) = run.next() {
            assert_eq!(masks.unwrap().objects.len(), 2);
            seen += 1;
            largest = largest.max(run.state().bytes());
        }
        assert_eq!(seen, frames);
        (largest, state.bytes())
    });
    assert_eq!(kept[0], kept[1]);
    // Everything kept grows.
    let [mut all, _] = both(&model, 60);
    all.add_box(&model, 0, A, BOX).unwrap();
    let _ = run(&mut all, &model, Propagation::forward().take(30));
    let half = all.bytes();
    let _ = run(&mut all, &model, Propagation::forward().from(30));
    assert!(all.bytes() as f64 > 1.7 * half as f64);
}

#[test]
fn objects_do_not_influence_each_other() {
    let model = model(Sam2Version::V2_1);
    let alone = [A, B].map(|id| {
        let [_, mut state] = both(&model, 12);
        prompt(&mut state, &model, id);
        run(&mut state, &model, Propagation::forward())
    });
    let [_, mut state] = both(&model, 12);
    prompt(&mut state, &model, A);
    prompt(&mut state, &model, B);
    let together = run(&mut state, &model, Propagation::forward());
    for (frame, masks) in together.iter().enumerate() {
        assert_eq!(masks.objects.len(), 2);
        for (object, alone) in alone.iter().enumerate() {
            let mut one = masks.clone();
            one.objects = vec![masks.objects[object].clone()];
            let d = difference(&one, &alone[frame]);
            assert!(d < 1e-3, "frame {frame}, object {object}: {d}");
        }
    }
    // Removing one in the middle leaves the other as it was.
    let [_, mut state] = both(&model, 12);
    prompt(&mut state, &model, A);
    prompt(&mut state, &model, B);
    let _ = run(&mut state, &model, Propagation::forward().take(6));
    state.remove_object(A).unwrap();
    assert_eq!(state.objects(), [B]);
    for masks in run(&mut state, &model, Propagation::forward().from(6)) {
        assert!(difference(&masks, &alone[1][masks.frame]) < 1e-3);
    }
    let error = state.remove_object(A).unwrap_err();
    assert!(matches!(error, HeadsError::NoSuchObject { object: 1, .. }));
}

fn prompt(state: &mut TrackState<Vec<VideoFrame>>, model: &Sam2, id: ObjectId) {
    if id == A {
        state.add_box(model, 0, id, BOX).unwrap();
    } else {
        let clicks = [Click::on(60.0, 20.0), Click::beside(5.0, 5.0)];
        state.add_points(model, 0, id, &clicks).unwrap();
    }
}

#[test]
fn a_new_object_joins_on_the_way() {
    let model = model(Sam2Version::V2_0);
    let reader = ForwardFrames::new((0..12).map(|i| Ok(frame(i))));
    let mut state = TrackState::init(&model, reader, TrackOptions::default()).unwrap();
    state.add_box(&model, 0, A, BOX).unwrap();
    let _ = run(&mut state, &model, Propagation::forward().take(5));
    state.add_box(&model, 5, B, BOX).unwrap();
    let rest = run(&mut state, &model, Propagation::forward().from(5));
    assert_eq!(rest.len(), 7);
    assert!(rest.iter().all(|m| m.objects.len() == 2));
}

#[test]
fn a_given_mask_is_the_mask_and_corrections_stay() {
    let model = model(Sam2Version::V2_0);
    let size = [64, 64];
    let frames: Vec<_> = (0..6).map(|i| track_common::frame_of(i, size)).collect();
    let mut state = TrackState::init(&model, frames, keep(Keep::Everything)).unwrap();
    let given = rectangle(size, [8, 16, 40, 48]);
    let masks = state.add_mask(&model, 0, A, &given).unwrap();
    // Going through a quarter of the resolution takes three pixels off each corner.
    let differ = |masks: &FrameMasks, given: &Mask| {
        let mask = masks.masks().remove(0);
        mask.0.iter().zip(&given.0).filter(|(a, b)| a != b).count()
    };
    assert!(
        differ(&masks, &given) <= 12,
        "{} pixels differ",
        differ(&masks, &given)
    );
    assert_eq!(masks.objects[0].score, 10.0);
    let first = run(&mut state, &model, Propagation::forward());
    assert!(differ(&first[0], &given) <= 12);
    let corrected = rectangle(size, [20, 20, 60, 60]);
    state.add_mask(&model, 3, A, &corrected).unwrap();
    let second = run(&mut state, &model, Propagation::forward());
    assert!(differ(&second[3], &corrected) <= 12);
    assert_eq!(difference(&first[2], &second[2]), 0.0);
    assert!(difference(&first[4], &second[4]) > 0.0);
    // Taking the correction back brings the first run back.
    state.clear_prompts(3, A).unwrap();
    same(&first, &run(&mut state, &model, Propagation::forward()));
    // A mask of another size is refused.
    let error = state.add_mask(&model, 0, A, &rectangle([3, 3], [0, 0, 1, 1]));
    assert!(matches!(error, Err(HeadsError::Shape { .. })));
}

#[test]
fn a_corrected_run_is_the_same_bounded() {
    let model = model(Sam2Version::V2_0);
    let [all, window] = both(&model, 12).map(|mut state| {
        state.add_box(&model, 0, A, BOX).unwrap();
        let _ = run(&mut state, &model, Propagation::forward().take(8));
        state
            .add_points(&model, 7, A, &[Click::on(30.0, 30.0)])
            .unwrap();
        run(&mut state, &model, Propagation::forward().from(7))
    });
    same(&all, &window);
}

#[test]
fn an_object_that_leaves_and_returns() {
    let mut model = model(Sam2Version::V2_1);
    let [_, mut state] = both(&model, 12);
    state.add_box(&model, 0, A, BOX).unwrap();
    let before = run(&mut state, &model, Propagation::forward().take(4));
    assert!(before.iter().all(|m| m.objects[0].score > 0.0));
    score_bias(&mut model, -3.0);
    let hidden = run(&mut state, &model, Propagation::forward().from(4).take(4));
    for masks in &hidden {
        assert!(masks.objects[0].score <= 0.0);
        assert!(masks.objects[0].low_res.iter().all(|v| *v == -1024.0));
        assert_eq!(masks.masks()[0].area(), 0);
        assert!(masks.masks()[0].bounding_box().is_none());
    }
    let kept = state.inspect(A, 7).unwrap();
    let absent = model.no_obj_ptr.val();
    let d = (kept.pointer.clone() - absent)
        .abs()
        .max()
        .into_scalar::<f32>();
    assert!(d < 1e-6, "{d}");
    score_bias(&mut model, 3.0);
    let back = run(&mut state, &model, Propagation::forward().from(8));
    assert!(back.iter().all(|m| m.objects[0].score > 0.0));
}

#[test]
fn an_empty_mask_says_that_the_object_is_not_there() {
    let model = model(Sam2Version::V2_1);
    let [_, mut state] = both(&model, 3);
    let empty = rectangle(SIZE, [0, 0, 0, 0]);
    let masks = state.add_mask(&model, 0, A, &empty).unwrap();
    assert_eq!(masks.objects[0].score, -10.0);
    assert_eq!(masks.masks(), [empty]);
    assert_eq!(run(&mut state, &model, Propagation::forward()).len(), 3);
}

#[test]
fn embeddings_take_the_place_of_boxes() {
    let model = model(Sam2Version::V2_0);
    let [mut by_box, mut by_tokens] = both(&model, 5);
    by_box.add_box(&model, 0, A, BOX).unwrap();
    let scale = |b: tpo_core::geometry::BoxPixels| {
        b.to_normalised(SIZE[1] as f32, SIZE[0] as f32)
            .to_pixels(64.0, 64.0)
    };
    let corners = tpo_heads::mask::sam2::PointPrompt::corners(&scale(BOX)).to_vec();
    let tokens = model.sam_prompt_encoder.embed_points(&[corners]).unwrap();
    by_tokens.add_embedding(&model, 0, A, tokens).unwrap();
    let (a, b) = (
        run(&mut by_box, &model, Propagation::forward()),
        run(&mut by_tokens, &model, Propagation::forward()),
    );
    for (a, b) in a.iter().zip(&b) {
        assert!(difference(a, b) < 1e-4);
    }
    let [_, mut state] = both(&model, 1);
    for shape in [[2, 3, 32], [1, 0, 32], [1, 3, 31]] {
        let error = state.add_embedding(&model, 0, A, random(shape));
        assert!(matches!(error, Err(HeadsError::Shape { .. })), "{shape:?}");
    }
    let error = state.add_embedding(&model, 0, A, random([1, 3, 32]) / 0.0);
    assert!(matches!(error, Err(HeadsError::NotFinite { .. })));
    assert!(state.objects().is_empty());
}

#[test]
fn pixels_can_belong_to_one_object_only() {
    let model = model(Sam2Version::V2_0);
    let run = |non_overlapping: bool| {
        let options = TrackOptions {
            non_overlapping_masks: non_overlapping,
            ..TrackOptions::default()
        };
        let mut state = TrackState::init(&model, video(5), options).unwrap();
        let (a, b) = (
            rectangle(SIZE, [0, 0, 40, 30]),
            rectangle(SIZE, [20, 10, 60, 40]),
        );
        state.add_mask(&model, 0, A, &a).unwrap();
        state.add_mask(&model, 0, B, &b).unwrap();
        run(&mut state, &model, Propagation::forward())
    };
    let overlap = |masks: &FrameMasks| {
        let [Mask(a), Mask(b)] = &masks.masks()[..] else {
            panic!("two objects");
        };
        a.iter().zip(b).filter(|(a, b)| **a && **b).count()
    };
    let (free, apart) = (run(false), run(true));
    assert!(overlap(&free[0]) > 300);
    assert!(apart.iter().all(|m| overlap(m) == 0));
}

#[test]
fn prompts_that_cannot_be_used() {
    let model = model(Sam2Version::V2_0);
    let [_, mut state] = both(&model, 3);
    let b = |x0, y0, x1, y1| tpo_core::geometry::BoxPixels { x0, y0, x1, y1 };
    for (area, why) in [
        (b(10.0, 10.0, 10.0, 20.0), "no area"),
        (b(5.0, 9.0, 30.0, 9.0), "no area"),
        (b(20.0, 10.0, 10.0, 20.0), "reversed"),
        (b(f32::NAN, 0.0, 1.0, 1.0), "finite"),
        (b(0.0, 0.0, f32::INFINITY, 1.0), "finite"),
        (b(80.0, 0.0, 90.0, 10.0), "outside"),
        (b(-9.0, -9.0, 0.0, 0.0), "outside"),
    ] {
        let error = state.add_box(&model, 0, A, area).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    for point in [(-1.0, 3.0), (3.0, 49.0), (f32::NAN, 1.0)] {
        let error = state.add_points(&model, 0, A, &[Click::on(point.0, point.1)]);
        assert!(matches!(error, Err(HeadsError::Prompt { frame: 0, .. })));
    }
    assert!(state.add_points(&model, 0, A, &[]).is_err());
    let error = state.add_box(&model, 3, A, BOX).unwrap_err();
    assert_eq!(
        error.to_string(),
        "frame 3 does not exist: the video has 3 frames"
    );
    assert!(state.objects().is_empty());
    let error = state.propagate(&model, Propagation::forward()).unwrap_err();
    assert!(matches!(error, HeadsError::NothingToTrack { object: None }));
    // Partly outside is as the reference has it.
    let masks = state
        .add_box(&model, 2, A, b(-20.0, 10.0, 30.0, 60.0))
        .unwrap();
    assert_eq!((masks.frame, masks.size), (2, SIZE));
    // An object without prompts is named.
    state.add_box(&model, 2, B, BOX).unwrap();
    state.clear_prompts(2, B).unwrap();
    let error = state.propagate(&model, Propagation::forward()).unwrap_err();
    assert!(error.to_string().contains("object 7"), "{error}");
    state.reset();
    assert!(state.objects().is_empty());
}

#[test]
fn videos_of_one_frame_changing_size_and_4k() {
    let model = model(Sam2Version::V2_0);
    let [_, mut state] = both(&model, 1);
    state.add_box(&model, 0, A, BOX).unwrap();
    assert_eq!(run(&mut state, &model, Propagation::forward()).len(), 1);
    assert!(run(&mut state, &model, Propagation::backward()).is_empty());

    let sizes = [[48, 80], [48, 80], [80, 48], [2160, 3840], [1, 1]];
    let frames: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(i, s)| track_common::frame_of(i, *s))
        .collect();
    let mut state = TrackState::init(&model, frames, TrackOptions::default()).unwrap();
    state.add_box(&model, 0, A, BOX).unwrap();
    for (masks, size) in run(&mut state, &model, Propagation::forward())
        .iter()
        .zip(sizes)
    {
        assert_eq!(masks.masks()[0].size(), (size[0], size[1]));
    }
    let mut state = TrackState::init(
        &model,
        vec![track_common::frame_of(0, [0, 5])],
        TrackOptions::default(),
    )
    .unwrap();
    assert!(state.add_box(&model, 0, A, BOX).is_err());
    let wrong = VideoFrame {
        image: random([1, 3, 32, 64]),
        size: SIZE,
    };
    let mut state = TrackState::init(&model, vec![wrong], TrackOptions::default()).unwrap();
    let error = state.add_box(&model, 0, A, BOX).unwrap_err();
    assert!(matches!(error, HeadsError::Shape { .. }));
}

#[test]
fn what_was_forgotten_is_said() {
    let model = model(Sam2Version::V2_0);
    let [mut all, mut window] = both(&model, 40);
    for state in [&mut all, &mut window] {
        state.add_box(&model, 0, A, BOX).unwrap();
        assert_eq!(run(state, &model, Propagation::forward()).len(), 40);
    }
    let clicks = [Click::on(30.0, 30.0)];
    assert!(all.add_points(&model, 20, A, &clicks).is_ok());
    let error = window.add_points(&model, 20, A, &clicks).unwrap_err();
    assert!(
        matches!(error, HeadsError::FrameGone { frame: 20, .. }),
        "{error}"
    );
    let error = window
        .propagate(&model, Propagation::forward().from(20))
        .unwrap_err();
    assert!(
        matches!(error, HeadsError::FrameGone { frame: 20, .. }),
        "{error}"
    );
    // The same again from the start is fine, and so is the frame the run stands at.
    assert_eq!(run(&mut window, &model, Propagation::forward()).len(), 40);
    assert!(window.add_points(&model, 39, A, &clicks).is_ok());
}

#[test]
fn streams_run_forward_and_files_both_ways() {
    let model = model(Sam2Version::V2_1);
    let frames = 30;
    let opened = AtomicUsize::new(0);
    let open = |start: usize| {
        opened.fetch_add(1, Ordering::Relaxed);
        Ok((start..frames).map(|i| Ok(frame(i))))
    };
    let seek = SeekFrames::new(Some(frames), open);
    let mut file = TrackState::init(&model, seek, TrackOptions::default()).unwrap();
    let [_, mut memory] = both(&model, frames);
    file.add_box(&model, 25, A, BOX).unwrap();
    memory.add_box(&model, 25, A, BOX).unwrap();
    for direction in [Propagation::forward(), Propagation::backward()] {
        same(
            &run(&mut memory, &model, direction),
            &run(&mut file, &model, direction),
        );
    }
    // Once forward, and once per block of eight backward.
    let opened = opened.into_inner();
    assert!(opened <= 2 + 26usize.div_ceil(8), "{opened}");

    let stream = || ForwardFrames::new((0..frames).map(|i| Ok(frame(i)))).with_frame_count(frames);
    let mut once = TrackState::init(&model, stream(), TrackOptions::default()).unwrap();
    once.add_box(&model, 3, A, BOX).unwrap();
    let [_, mut memory] = both(&model, frames);
    memory.add_box(&model, 3, A, BOX).unwrap();
    same(
        &run(&mut memory, &model, Propagation::forward()),
        &run(&mut once, &model, Propagation::forward()),
    );
    let error = once.add_box(&model, 0, A, BOX).unwrap_err();
    assert!(matches!(error, HeadsError::FrameGone { frame: 0, .. }));
    // Asking for what does not exist does not use up the stream.
    let mut once = TrackState::init(&model, stream(), TrackOptions::default()).unwrap();
    assert!(once.add_box(&model, frames, A, BOX).is_err());
    assert!(once.add_box(&model, 0, A, BOX).is_ok());
}

#[test]
fn prompts_on_several_frames_of_a_stream_are_remembered() {
    // The stream has moved on when the run begins, so the memory of the first prompt must have
    // been made on the way.
    let model = model(Sam2Version::V2_0);
    let stream = ForwardFrames::new((0..12).map(|i| Ok(frame(i)))).with_frame_count(12);
    let mut once = TrackState::init(&model, stream, TrackOptions::default()).unwrap();
    let [_, mut memory] = both(&model, 12);
    once.add_box(&model, 0, A, BOX).unwrap();
    memory.add_box(&model, 0, A, BOX).unwrap();
    once.add_box(&model, 4, A, BOX).unwrap();
    memory.add_box(&model, 4, A, BOX).unwrap();
    let from = Propagation::forward().from(4);
    same(
        &run(&mut memory, &model, from),
        &run(&mut once, &model, from),
    );
}

#[test]
fn an_error_of_the_reader_ends_the_run() {
    let model = model(Sam2Version::V2_0);
    let frames = (0..6).map(|i| match i {
        3 => Err(HeadsError::Frame {
            frame: 3,
            source: "a torn file".into(),
        }),
        _ => Ok(frame(i)),
    });
    let mut state =
        TrackState::init(&model, ForwardFrames::new(frames), TrackOptions::default()).unwrap();
    state.add_box(&model, 0, A, BOX).unwrap();
    let all: Vec<_> = state
        .propagate(&model, Propagation::forward())
        .unwrap()
        .collect();
    assert_eq!(all.len(), 4);
    assert!(all[..3].iter().all(Result::is_ok));
    let error = all[3].as_ref().unwrap_err().to_string();
    assert_eq!(error, "frame 3: a torn file");
}

/// After a frame that cannot be read the others are still those that they are called.
#[test]
fn a_torn_frame_does_not_shift_the_others() {
    let torn = |i: usize| match i {
        3 => Err(HeadsError::Frame {
            frame: 3,
            source: "a torn file".into(),
        }),
        _ => Ok(frame(i)),
    };
    let equals = |found: Option<VideoFrame>, i: usize| {
        let data = found.unwrap().image.into_data();
        data.assert_eq(&frame(i).image.into_data(), true);
    };
    let mut once = ForwardFrames::new((0..6).map(torn));
    equals(once.read(2).unwrap(), 2);
    assert!(once.read(3).is_err());
    assert!(matches!(once.read(3), Err(HeadsError::FrameGone { .. })));
    equals(once.read(4).unwrap(), 4);
    equals(once.read(5).unwrap(), 5);
    assert!(once.read(6).unwrap().is_none());

    let mut seek = SeekFrames::new(Some(6), |start| Ok((start..6).map(torn)));
    equals(seek.read(2).unwrap(), 2);
    for _ in 0..2 {
        assert!(seek.read(3).is_err());
    }
    for i in [4, 5, 2] {
        equals(seek.read(i).unwrap(), i);
    }
}
