//! The FFmpeg backend against itself and against the pure-Rust one (feature `ffmpeg`).
#![cfg(feature = "ffmpeg")]

mod common;

use common::{data, sample_clip};
use tpo_data::video::{FfmpegReader, VideoReader};
use tpo_data::{DataError, MediaLimits, Rotation, open_video};

#[test]
fn both_backends_return_the_same_frames() {
    let limits = MediaLimits::default();
    // H.264 in MP4 is read without FFmpeg.
    let ours = open_video(sample_clip(), &limits).unwrap();
    let ffmpeg = FfmpegReader::open(sample_clip(), &limits).unwrap();
    assert_eq!(ours.info().frame_count, ffmpeg.info().frame_count);
    assert_eq!(ffmpeg.info().rotation, Rotation::None);
    for indices in [vec![99, 3, 41, 40, 3], vec![0], vec![85]] {
        assert_eq!(
            ours.read_frames(&indices).unwrap(),
            ffmpeg.read_frames(&indices).unwrap(),
            "{indices:?}"
        );
    }
}

#[test]
fn selections_and_streams_agree() {
    for name in ["mpeg4.avi", "vp9.mkv"] {
        let reader = open_video(data(name), &MediaLimits::default()).unwrap();
        let all = reader.read_frames(&(0..12).collect::<Vec<_>>()).unwrap();
        let some = reader.read_frames(&[11, 7, 0, 7]).unwrap();
        for (frame, i) in some.iter().zip([11, 7, 0, 7]) {
            assert_eq!(frame, &all[i], "{name} {i}");
        }
        for start in [0, 7, 11] {
            let streamed: Vec<_> = reader.stream(start).unwrap().map(|f| f.unwrap()).collect();
            assert_eq!(streamed.len(), 12 - start, "{name} from {start}");
            for item in streamed {
                assert_eq!(item.frame, all[item.index], "{name} {}", item.index);
            }
        }
    }
}

#[test]
fn play_lists_and_small_limits_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.mkv");
    let target = data("vp9.mkv");
    let text = format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        target.display()
    );
    std::fs::write(&list, text).unwrap();
    assert!(matches!(
        open_video(&list, &MediaLimits::default()).err(),
        Some(DataError::UnsupportedContainer { .. })
    ));
    let limits = MediaLimits {
        max_frames: 11,
        ..MediaLimits::default()
    };
    assert!(matches!(
        open_video(&target, &limits).err(),
        Some(DataError::LimitExceeded {
            field: "max_frames",
            ..
        })
    ));
}
