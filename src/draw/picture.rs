//! Frames as pictures, and pictures in files.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use image::codecs::gif::{GifEncoder, Repeat};
use image::imageops::{FilterType, resize};
use image::{Delay, DynamicImage, RgbImage};
use tpo_data::Frame;

use crate::error::{Error, Result};

/// Slowest encoding and best colours is 1, the fastest 30.
const GIF_SPEED: i32 = 10;

/// A frame as a picture.
///
/// # Errors
/// [`Error::Picture`] for a frame too large for a picture.
pub fn picture(frame: Frame) -> Result<RgbImage> {
    let (w, h) = (frame.width() as u32, frame.height() as u32);
    RgbImage::from_raw(w, h, frame.into_rgb()).ok_or_else(|| Error::Picture {
        what: "a frame".into(),
        why: format!("its pixels do not fill {w}x{h}"),
    })
}

/// A small picture enlarged by a whole number, its longest side at most `side` pixels.
pub fn enlarged(picture: RgbImage, side: u32) -> RgbImage {
    let (w, h) = picture.dimensions();
    match side / w.max(h).max(1) {
        0 | 1 => picture,
        factor => resize(&picture, w * factor, h * factor, FilterType::Nearest),
    }
}

/// Writes a picture in the format that the file's name says; makes its folder.
///
/// # Errors
/// [`Error::Picture`] when the file cannot be written or its format is unknown.
pub fn save_picture(picture: &RgbImage, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    make_folder(path)?;
    picture.save(path).map_err(|e| failed(path, e))
}

/// An animated GIF, written picture by picture; it repeats for ever.
pub struct Animation {
    gif: GifEncoder<BufWriter<File>>,
    path: PathBuf,
    delay: Delay,
}

impl Animation {
    /// Begins a file whose pictures are shown `fps` a second; makes its folder.
    ///
    /// # Errors
    /// [`Error::Picture`] when the file cannot be written.
    pub fn create(path: impl AsRef<Path>, fps: f64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        make_folder(&path)?;
        let file = File::create(&path).map_err(|e| failed(&path, e))?;
        let mut gif = GifEncoder::new_with_speed(BufWriter::new(file), GIF_SPEED);
        gif.set_repeat(Repeat::Infinite)
            .map_err(|e| failed(&path, e))?;
        let delay = Delay::from_numer_denom_ms((1000.0 / fps).clamp(20.0, 2000.0) as u32, 1);
        Ok(Self { gif, path, delay })
    }

    /// Adds a picture.
    ///
    /// # Errors
    /// [`Error::Picture`] when the file cannot be written.
    pub fn push(&mut self, picture: RgbImage) -> Result<()> {
        let rgba = DynamicImage::ImageRgb8(picture).into_rgba8();
        let frame = image::Frame::from_parts(rgba, 0, 0, self.delay);
        let done = self.gif.encode_frame(frame);
        done.map_err(|e| failed(&self.path, e))
    }
}

fn make_folder(path: &Path) -> Result<()> {
    match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => std::fs::create_dir_all(dir).map_err(|e| failed(dir, e)),
        None => Ok(()),
    }
}

fn failed(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Picture {
        what: path.display().to_string(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn small_pictures_grow_by_whole_numbers() {
        let small = RgbImage::from_pixel(20, 10, Rgb([1, 2, 3]));
        assert_eq!(enlarged(small.clone(), 70).dimensions(), (60, 30));
        assert_eq!(enlarged(small, 39).dimensions(), (20, 10));
    }

    #[test]
    fn files_are_written_into_new_folders_and_errors_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let small = RgbImage::from_pixel(20, 10, Rgb([1, 2, 3]));
        let path = dir.path().join("a/b/animation.gif");
        let mut animation = Animation::create(&path, 4.0).unwrap();
        animation.push(small.clone()).unwrap();
        drop(animation);
        assert!(path.metadata().unwrap().len() > 0);
        save_picture(&small, dir.path().join("c/small.png")).unwrap();
        let error = save_picture(&small, dir.path().join("small.nothing")).unwrap_err();
        assert!(error.to_string().contains("small.nothing"), "{error}");
    }
}
