//! One reader of pixels: the same frames in any order, for a whole file, a part and an image.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::tensor::Device;
use tpo_core::cancel::CancelToken;
use tpo_core::head::FrameSource;
use tpo_data::feed::View;
use tpo_data::{DataError, FrameBuffer, MediaLimits, VideoFrames, VideoReader, open_video};

fn clip() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/bouncing_shapes.mp4")
}

fn all() -> VideoFrames {
    let reader = open_video(clip(), &MediaLimits::default()).unwrap();
    VideoFrames::new(reader.into(), &Device::flex())
}

#[test]
fn any_order_gives_the_frames_of_the_file() {
    let order = [0, 1, 2, 2, 3, 7, 3, 4, 5, 6];
    let reader = open_video(clip(), &MediaLimits::default()).unwrap();
    let expected = reader.read_frames(&order).unwrap();
    let frames = all();
    for (i, frame) in order.into_iter().zip(&expected) {
        assert_eq!(frames.raw(i).unwrap().rgb(), frame.rgb(), "frame {i}");
    }
    assert_eq!(frames.len(), reader.info().frame_count);
    // The last frame ends the decoder that runs ahead.
    let last = frames.len() - 1;
    for i in [last - 2, last - 1, last] {
        let same = reader.read_frames(&[i]).unwrap();
        assert_eq!(frames.raw(i).unwrap().rgb(), same[0].rgb());
    }

    let some = all().picked(&[7, 3, 4, 4]).unwrap();
    for (i, at) in [5, 4, 7, 7].into_iter().enumerate() {
        assert_eq!(some.raw(i).unwrap().rgb(), expected[at].rgb(), "picked {i}");
    }
    let pixels = some.frames(32).unwrap();
    assert_eq!(pixels.dims(), [4, 3, 32, 32]);
    assert!(pixels.clone().max().into_scalar::<f32>() > 0.5);
    for i in 0..4 {
        let one = some.frame(i, 32).unwrap().into_data();
        pixels
            .clone()
            .narrow(0, i, 1)
            .into_data()
            .assert_eq(&one, true);
    }
}

#[test]
fn frames_that_do_not_exist_are_errors() {
    let frames = all();
    assert!(frames.raw(frames.len()).is_err());
    assert!(frames.frame(100_000, 8).is_err());
    assert!(frames.frame(0, 1_000_000).is_err());
    assert!(frames.picked(&[100_000]).is_err());
    let (limits, device) = (MediaLimits::default(), Device::flex());
    assert!(VideoFrames::image("none.png", &limits, &device).is_err());
    let open = || -> Result<Arc<dyn VideoReader>, DataError> {
        Ok(open_video("none.mp4", &MediaLimits::default())?.into())
    };
    assert!(VideoFrames::lazy(open, &[0], &device).frame(0, 8).is_err());
}

#[test]
fn an_image_is_a_video_of_one_frame_and_a_view_changes_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    let mut picture = image::RgbImage::new(4, 2);
    picture.put_pixel(0, 0, image::Rgb([255, 0, 0]));
    picture.save(&path).unwrap();
    let (limits, device) = (MediaLimits::default(), Device::flex());
    let frames = VideoFrames::image(&path, &limits, &device).unwrap();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames.raw(0).unwrap().rgb()[..3], [255, 0, 0]);
    let frames = frames.with_view(View {
        crop: Some(([0, 0, 2, 2], [4, 2])),
        flip: true,
        ..View::default()
    });
    let seen = frames.raw(0).unwrap();
    assert_eq!((seen.width(), seen.height()), (2, 2));
    assert_eq!(seen.rgb()[..6], [0, 0, 0, 255, 0, 0]);
    let whole = frames.frames(2).unwrap().into_data();
    frames
        .frame(0, 2)
        .unwrap()
        .into_data()
        .assert_eq(&whole, true);
}

#[test]
fn reading_is_heard_and_can_be_cancelled() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let cancel = CancelToken::new();
    let (hears, stops) = (heard.clone(), cancel.clone());
    let frames = all()
        .with_cancel(cancel.clone())
        .with_progress(Some(Arc::new(move |done, total, side| {
            hears.lock().unwrap().push((done, total, side));
            if done == 3 {
                stops.cancel();
            }
        })));
    let total = frames.len();
    for i in 0..3 {
        frames.frame(i, 8).unwrap();
    }
    assert!(cancel.is_cancelled());
    assert!(matches!(frames.raw(3), Err(DataError::Cancelled)));
    let error = frames.frame(3, 8).unwrap_err().to_string();
    assert!(error.contains("cancelled"), "{error}");
    assert!(frames.frames(8).is_err());
    assert_eq!(
        *heard.lock().unwrap(),
        [(1, total, 8), (2, total, 8), (3, total, 8)]
    );
}

/// However long a video is, few of its frames are decoded before they are asked for.
#[test]
fn decoding_runs_a_few_frames_ahead() {
    let reader = open_video(clip(), &MediaLimits::default()).unwrap();
    let frame = reader.read_frames(&[0]).unwrap().remove(0);
    let frames = vec![frame; 40];
    let video = FrameBuffer::new("long", frames, 10.0, &MediaLimits::default()).unwrap();
    let counted = Arc::new(Counted(video, AtomicUsize::new(0)));
    let frames = VideoFrames::new(counted.clone(), &Device::flex());
    frames.raw(0).unwrap();
    frames.raw(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let decoded = counted.1.load(Ordering::Relaxed);
    assert!((2..=6).contains(&decoded), "{decoded}");
}

struct Counted(FrameBuffer, AtomicUsize);

impl VideoReader for Counted {
    fn video(&self) -> &tpo_data::video::OpenVideo {
        self.0.video()
    }
    fn visit_frames(
        &self,
        indices: &[usize],
        visit: &tpo_data::video::FrameVisitor<'_>,
    ) -> Result<(), DataError> {
        self.1.fetch_add(indices.len(), Ordering::Relaxed);
        self.0.visit_frames(indices, visit)
    }
    fn stream(&self, start: usize) -> Result<tpo_data::video::FrameStream<'_>, DataError> {
        let all = self.0.stream(start)?;
        Ok(Box::new(all.inspect(|_| {
            self.1.fetch_add(1, Ordering::Relaxed);
        })))
    }
}
