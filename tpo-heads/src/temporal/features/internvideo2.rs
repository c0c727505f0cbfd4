//! The three files InternVideo2-CLIP is published in.

use std::path::PathBuf;

use tpo_core::weights::LoadReport;
use tpo_llm::text_tower::{TextFiles, TextTower};
use tpo_vision::internvideo2::{InternVideo2, VisionFileKind, VisionFiles, VisionLoadOptions};

use crate::error::HeadsError;

/// Temperature of the contrastive loss, a constant of the reference's configuration. Features do
/// not depend on it.
pub const CLIP_TEMPERATURE: f32 = 0.01;

/// The three files of InternVideo2-CLIP in the order they are merged; later ones win.
///
/// They are published as PyTorch pickles and read as safetensors under unchanged names;
/// `tools/pth_to_safetensors.py` rewrites one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternVideo2Files {
    /// Stage-2 video tower (`InternVideo2-stage2_1b-224p-f4`).
    pub vision: PathBuf,
    /// Whether that file is a stage-2 model or a bare tower.
    pub vision_kind: VisionFileKind,
    /// InternVL-C, for its text tower (`internvl_c_13b_224px`).
    pub text: PathBuf,
    /// CLIP post-training (`1B_clip`), which replaces the video tower's pooling.
    pub clip: Option<PathBuf>,
}

impl InternVideo2Files {
    /// The files of the video tower.
    pub fn vision_files(&self) -> VisionFiles {
        VisionFiles {
            vision: self.vision.clone(),
            kind: self.vision_kind,
            clip: self.clip.clone(),
        }
    }

    /// The files of the text tower.
    pub fn text_files(&self) -> TextFiles {
        TextFiles {
            text: self.text.clone(),
            clip: self.clip.clone(),
        }
    }

    /// Loads both towers, strictly: every parameter comes from a file, and keys that are neither
    /// used nor known to be unused are errors. Tensors stream from the files one at a time.
    ///
    /// # Errors
    /// Everything that is missing, unexpected or of another shape, by name and file.
    pub fn load(
        &self,
        vision: InternVideo2,
        text: TextTower,
        options: &VisionLoadOptions<'_>,
    ) -> Result<(InternVideo2, TextTower, Vec<LoadReport>), HeadsError> {
        let (vision, mut reports) = vision.load(&self.vision_files(), options)?;
        let (text, more) = text.load(&self.text_files(), &options.load)?;
        reports.extend(more);
        Ok((vision, text, reports))
    }
}
