//! Clips of the world as files.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::rows::WorldRows;
use crate::schema::{Media, write_row};
use crate::{DataError, MediaLimits};

/// Name of the file of rows that [`WorldRows::export`] writes.
pub const ROWS_FILE: &str = "rows.jsonl";

impl WorldRows {
    /// Writes all rows as a dataset of this project: every clip as a folder of PNG pictures, which are
    /// lossless, and beside them [`ROWS_FILE`], which exists only when it is complete. Returns its
    /// path. Training on the files is training on the rows in memory.
    ///
    /// # Errors
    /// [`DataError::Io`]; as [`WorldRows::row`].
    pub fn export(&self, dir: impl AsRef<Path>) -> Result<PathBuf, DataError> {
        let dir = dir.as_ref();

        std::fs::create_dir_all(dir).map_err(DataError::io(dir))?;
        let path = dir.join(ROWS_FILE);
        let unfinished = dir.join(format!(".{ROWS_FILE}.tmp"));
        let file = std::fs::File::create(&unfinished).map_err(DataError::io(&unfinished))?;
        let mut out = BufWriter::new(file);
        for row in 0..self.config().rows {
            let clip = self.world().clip(self.config().split, row);
            let (mut sample, _) = self.row(row, &MediaLimits::default())?;
            let folder = format!("clips/{}", clip.name());
            let at = dir.join(&folder);
            std::fs::create_dir_all(&at).map_err(DataError::io(&at))?;
            for (i, frame) in clip.scene.render_all().iter().enumerate() {
                let picture = at.join(format!("{i:04}.png"));
                let side = frame.side() as u32;
                image::save_buffer(
                    &picture,
                    frame.rgb(),
                    side,
                    side,
                    image::ExtendedColorType::Rgb8,
                )
                .map_err(|e| std::io::Error::other(e.to_string()))
                .map_err(DataError::io(&picture))?;
            }
            let media = sample.media.take();
            sample.media = Some(Media {
                size: media.as_ref().and_then(|m| m.size),
                duration: media.as_ref().and_then(|m| m.duration),
                ..Media::frames(folder, clip.scene.fps)
            });
            write_row(&sample, &mut out).map_err(DataError::io(&unfinished))?;
        }
        out.flush()
            .and_then(|()| out.get_ref().sync_all())
            .map_err(DataError::io(&unfinished))?;
        std::fs::rename(&unfinished, &path).map_err(DataError::io(&path))?;
        Ok(path)
    }
}
