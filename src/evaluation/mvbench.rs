//! The files of MVBench: one per task, each with its folder of videos.

use std::path::{Path, PathBuf};

use tpo_data::readers::ConvertOptions;

use crate::error::{Error, Result};

/// (file without extension, task, folder of its videos below the media root, frames per second of
/// tasks whose videos are folders of frames), in the benchmark's order.
const TASKS: [(&str, &str, &str, Option<f64>); 20] = [
    (
        "action_sequence",
        "Action Sequence",
        "star/Charades_v1_480",
        None,
    ),
    (
        "action_prediction",
        "Action Prediction",
        "star/Charades_v1_480",
        None,
    ),
    ("action_antonym", "Action Antonym", "ssv2_video", None),
    (
        "fine_grained_action",
        "Fine-grained Action",
        "Moments_in_Time_Raw/videos",
        None,
    ),
    (
        "unexpected_action",
        "Unexpected Action",
        "FunQA_test/test",
        None,
    ),
    (
        "object_existence",
        "Object Existence",
        "clevrer/video_validation",
        None,
    ),
    (
        "object_interaction",
        "Object Interaction",
        "star/Charades_v1_480",
        None,
    ),
    (
        "object_shuffle",
        "Object Shuffle",
        "perception/videos",
        None,
    ),
    (
        "moving_direction",
        "Moving Direction",
        "clevrer/video_validation",
        None,
    ),
    (
        "action_localization",
        "Action Localization",
        "sta/sta_video",
        None,
    ),
    (
        "scene_transition",
        "Scene Transition",
        "scene_qa/video",
        None,
    ),
    ("action_count", "Action Count", "perception/videos", None),
    (
        "moving_count",
        "Moving Count",
        "clevrer/video_validation",
        None,
    ),
    (
        "moving_attribute",
        "Moving Attribute",
        "clevrer/video_validation",
        None,
    ),
    ("state_change", "State Change", "perception/videos", None),
    ("fine_grained_pose", "Fine-grained Pose", "nturgbd", None),
    (
        "character_order",
        "Character Order",
        "perception/videos",
        None,
    ),
    (
        "egocentric_navigation",
        "Egocentric Navigation",
        "vlnqa",
        None,
    ),
    (
        "episodic_reasoning",
        "Episodic Reasoning",
        "tvqa/frames_fps3_hq",
        Some(3.0),
    ),
    (
        "counterfactual_inference",
        "Counterfactual Inference",
        "clevrer/video_validation",
        None,
    ),
];

/// One task file.
pub(super) struct Task {
    pub file: PathBuf,
    /// Name of the file without extension.
    pub stem: String,
    /// Name of the task.
    pub name: String,
    folder: Option<&'static str>,
    frame_rate: Option<f64>,
}

impl Task {
    /// Sets where its videos are; what the caller has set stays.
    pub fn place(&self, options: &mut ConvertOptions) {
        if let (true, Some(folder)) = (options.media_prefix.is_empty(), self.folder) {
            options.media_prefix = folder.into();
        }
        options.frame_rate = options.frame_rate.or(self.frame_rate);
    }
}

/// The task files at `path`: one, or all of a folder in the benchmark's order, others behind them.
/// The benchmark's folders of videos are used where they exist below `media`.
pub(super) fn tasks(path: &Path, media: &Path) -> Result<Vec<Task>> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let failed = |e: std::io::Error| Error::Evaluation {
            path: path.into(),
            why: e.to_string(),
        };
        files.clear();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if file.extension().is_some_and(|e| e == "json") {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(Error::Evaluation {
                path: path.into(),
                why: "holds no .json file; give a task file of MVBench or their folder".into(),
            });
        }
    }
    let place = |stem: &str| TASKS.iter().position(|t| t.0 == stem);
    let mut tasks: Vec<Task> = files
        .into_iter()
        .map(|file| {
            let stem = file
                .file_stem()
                .map_or_else(String::new, |s| s.to_string_lossy().into_owned());
            let known = place(&stem).map(|i| TASKS[i]);
            Task {
                name: known.map_or_else(|| stem.clone(), |t| t.1.into()),
                folder: known.map(|t| t.2).filter(|f| media.join(f).is_dir()),
                frame_rate: known.and_then(|t| t.3),
                stem,
                file,
            }
        })
        .collect();
    tasks.sort_by_key(|t| place(&t.stem).unwrap_or(TASKS.len()));
    Ok(tasks)
}
