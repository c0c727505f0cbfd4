//! Which towers make the features that heads read.

use serde::{Deserialize, Serialize};

/// Which frozen towers the temporal head of a model was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FeatureTowers {
    /// InternVideo2-CLIP, in files of its own: one feature per second (reference implementation).
    InternVideo2,
    /// Of InternVideo2-CLIP the video tower alone; features of a query are those of [`Self::Own`].
    InternVideo2Video,
    /// The model's own vision encoder and language model.
    Own(OwnClips),
}

/// Clips that a model's own encoder makes features of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnClips {
    /// Frames per second of video that are encoded.
    pub frames_per_second: f64,
    /// Frames of a clip. 1 encodes each frame as an image.
    pub frames_per_clip: usize,
    /// Features of a clip, each of an equal part of its time.
    #[serde(default = "one")]
    pub features_per_clip: usize,
}

fn one() -> usize {
    1
}

impl FeatureTowers {
    /// The model's own encoder on single frames, twice a second.
    pub fn own() -> Self {
        Self::Own(OwnClips {
            frames_per_second: 2.0,
            frames_per_clip: 1,
            features_per_clip: 1,
        })
    }

    /// Checks that the values make sense, against the encoder's frames per clip and per token.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self, num_frames: usize, tubelet: usize) -> std::result::Result<(), String> {
        let Some(clips) = self.own_clips() else {
            return Ok(());
        };
        let OwnClips {
            frames_per_second,
            frames_per_clip,
            features_per_clip,
        } = clips;
        if !(frames_per_second.is_finite() && frames_per_second > 0.0) {
            return Err(format!(
                "features.frames_per_second is {frames_per_second}, expected a positive number"
            ));
        }
        if frames_per_clip != 1 && frames_per_clip != num_frames {
            return Err(format!(
                "features.frames_per_clip is {frames_per_clip}, expected 1 or the encoder's \
                 {num_frames}"
            ));
        }
        let steps = frames_per_clip / tubelet.max(1);
        if features_per_clip == 0 || !steps.is_multiple_of(features_per_clip) || steps == 0 {
            return Err(format!(
                "features.features_per_clip is {features_per_clip}, expected a divisor of the \
                 {steps} steps in time of {frames_per_clip} frames in tokens of {tubelet}"
            ));
        }
        Ok(())
    }

    /// Seconds of one row of video features.
    pub fn seconds(&self) -> f64 {
        let Some(clips) = self.own_clips() else {
            return 1.0;
        };
        clips.frames_per_clip as f64 / clips.features_per_clip as f64 / clips.frames_per_second
    }

    /// The clips of a model that uses its own parts.
    pub fn own_clips(&self) -> Option<OwnClips> {
        match *self {
            Self::InternVideo2 | Self::InternVideo2Video => None,
            Self::Own(clips) => Some(clips),
        }
    }

    /// Whether the features of a query are the last hidden states of its words in the model's own language model.
    pub fn own_text(&self) -> bool {
        *self != Self::InternVideo2
    }
}
