//! Settings of SAM 2's training.

use burn::config::Config;

use crate::HeadsError;

/// How often the first frame is prompted with what. Shares are relative to their sum.
#[derive(Config, Debug, PartialEq)]
pub struct PromptMix {
    /// The true mask (SAM 2 paper, appendix: 0.5).
    #[config(default = 0.5)]
    pub mask: f64,
    /// The box around the true mask (SAM 2 paper, appendix: 0.25).
    #[config(default = 0.25)]
    pub area: f64,
    /// A click on a random pixel of the true mask (SAM 2 paper, appendix: 0.25).
    #[config(default = 0.25)]
    pub click: f64,
    /// The tokens that the mask head makes of the task embedding. Losses then reach the adapter
    /// and the language model through all frames. Without a mask head this share is ignored.
    #[config(default = 0.0)]
    pub task_token: f64,
    /// Standard deviation by which corners of a box move, as a share of its sides (SAM 2's
    /// training code: 0.1), and at most by [`box_noise_bound`](Self::box_noise_bound).
    #[config(default = 0.1)]
    pub box_noise: f64,
    /// Most a corner moves, as a share of the image's side (SAM 2's training code: 20 of 1024
    /// pixels).
    #[config(default = 0.01953125)]
    pub box_noise_bound: f64,
}

/// Losses and sampling of SAM 2's training through video. Weights are those of SAM 2's training:
/// focal, dice, IoU and visibility 20:1:1:1 (SAM 2 paper, appendix).
#[derive(Config, Debug, PartialEq)]
pub struct Sam2TrainConfig {
    /// Weight of the focal loss.
    #[config(default = 20.0)]
    pub focal: f64,
    /// Weight of the dice loss.
    #[config(default = 1.0)]
    pub dice: f64,
    /// Weight of the mean absolute difference between predicted and actual IoU.
    #[config(default = 1.0)]
    pub iou: f64,
    /// Weight of the cross-entropy of the object score.
    #[config(default = 1.0)]
    pub object: f64,
    /// Weight of the foreground in the focal loss; the background has the rest to 1.
    #[config(default = 0.25)]
    pub alpha: f64,
    /// Exponent of the focal loss.
    #[config(default = 2.0)]
    pub gamma: f64,
    /// Frames of a clip (SAM 2 paper, appendix: 8).
    #[config(default = 8)]
    pub frames: usize,
    /// Probability that a clip is run through backward in time (SAM 2 paper, appendix: 0.5). Clips
    /// prompted with the task token run forward from their first frame.
    #[config(default = 0.5)]
    pub reverse: f64,
    /// What prompts the first frame.
    #[config(default = "PromptMix::new()")]
    pub prompts: PromptMix,
}

impl Sam2TrainConfig {
    /// Checks weights and shares.
    ///
    /// # Errors
    /// [`HeadsError::Config`] with the first field that cannot work.
    pub fn validate(&self) -> Result<(), HeadsError> {
        let mix = &self.prompts;
        for (what, value) in [
            ("video.focal", self.focal),
            ("video.dice", self.dice),
            ("video.iou", self.iou),
            ("video.object", self.object),
            ("video.gamma", self.gamma),
            ("video.prompts.mask", mix.mask),
            ("video.prompts.area", mix.area),
            ("video.prompts.click", mix.click),
            ("video.prompts.task_token", mix.task_token),
            ("video.prompts.box_noise", mix.box_noise),
            ("video.prompts.box_noise_bound", mix.box_noise_bound),
        ] {
            let holds = value.is_finite() && value >= 0.0;
            HeadsError::require(holds, what, "a number, not negative", value)?;
        }
        for (what, value) in [("video.alpha", self.alpha), ("video.reverse", self.reverse)] {
            HeadsError::require((0.0..=1.0).contains(&value), what, "in [0, 1]", value)?;
        }
        let sum = mix.mask + mix.area + mix.click + mix.task_token;
        HeadsError::require(sum > 0.0, "video.prompts", "a positive share", sum)?;
        HeadsError::require(self.frames > 0, "video.frames", "at least 1", 0)
    }
}
