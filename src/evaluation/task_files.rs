//! The files of MVBench and MLVU: one per task, each with its folder of videos.

use std::path::{Path, PathBuf};

use tpo_data::readers::{ConvertOptions, Format};

use crate::error::{Error, Result};

/// MVBench's files without their extension, in the benchmark's order, with the folder of their videos
/// below the media root.
const MVBENCH: [(&str, &str); 20] = [
    ("action_sequence", "star/Charades_v1_480"),
    ("action_prediction", "star/Charades_v1_480"),
    ("action_antonym", "ssv2_video"),
    ("fine_grained_action", "Moments_in_Time_Raw/videos"),
    ("unexpected_action", "FunQA_test/test"),
    ("object_existence", "clevrer/video_validation"),
    ("object_interaction", "star/Charades_v1_480"),
    ("object_shuffle", "perception/videos"),
    ("moving_direction", "clevrer/video_validation"),
    ("action_localization", "sta/sta_video"),
    ("scene_transition", "scene_qa/video"),
    ("action_count", "perception/videos"),
    ("moving_count", "clevrer/video_validation"),
    ("moving_attribute", "clevrer/video_validation"),
    ("state_change", "perception/videos"),
    ("fine_grained_pose", "nturgbd"),
    ("character_order", "perception/videos"),
    ("egocentric_navigation", "vlnqa"),
    (FOLDERS_OF_FRAMES, "tvqa/frames_fps3_hq"),
    ("counterfactual_inference", "clevrer/video_validation"),
];
/// The task whose videos are folders of frames, three of a second.
const FOLDERS_OF_FRAMES: &str = "episodic_reasoning";

/// The same of MLVU's multiple choice, whose mean is its M-Avg.
const MLVU: [(&str, &str); 7] = [
    ("1_plotQA", "1_plotQA"),
    ("2_needle", "2_needle"),
    ("3_ego", "3_ego"),
    ("4_count", "4_count"),
    ("5_order", "5_order"),
    ("6_anomaly_reco", "6_anomaly_reco"),
    ("7_topic_reasoning", "7_topic_reasoning"),
];

/// Whether a format is a file for each task of its benchmark.
pub(super) fn has_tasks(format: Format) -> bool {
    matches!(format, Format::MvBench | Format::Mlvu)
}

/// What MVBench calls the task of a file: its words with capitals.
fn task_name(stem: &str) -> String {
    let stem = stem.replace("fine_grained", "fine-grained");
    let capitalised = stem.split('_').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    capitalised.collect::<Vec<_>>().join(" ")
}

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

/// The task files at `path`: one, or all of a folder in the benchmark's order, others after them
/// (of MLVU none: its other files are open questions). The benchmark's folders of videos are used where
/// they exist below `media`.
pub(super) fn tasks(format: Format, path: &Path, media: &Path) -> Result<Vec<Task>> {
    let known: &[(&str, &'static str)] = match format {
        Format::Mlvu => &MLVU,
        _ => &MVBENCH,
    };
    let place = |stem: &str| known.iter().position(|t| t.0 == stem);
    let stem = |file: &Path| {
        let stem = file.file_stem();
        stem.map_or_else(String::new, |s| s.to_string_lossy().into_owned())
    };
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let failed = |e: std::io::Error| Error::Evaluation {
            path: path.into(),
            why: e.to_string(),
        };
        files.clear();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            let asked = format != Format::Mlvu || place(&stem(&file)).is_some();
            if asked && file.extension().is_some_and(|e| e == "json") {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(Error::Evaluation {
                path: path.into(),
                why: format!(
                    "holds no .json file of a task; give a task file of {format} or their folder"
                ),
            });
        }
    }
    let mut tasks: Vec<Task> = files
        .into_iter()
        .map(|file| {
            let stem = stem(&file);
            let known = place(&stem).map(|i| known[i]);
            Task {
                name: known.map_or_else(|| stem.clone(), |t| task_name(t.0)),
                folder: known.map(|t| t.1).filter(|f| media.join(f).is_dir()),
                frame_rate: (stem == FOLDERS_OF_FRAMES).then_some(3.0),
                stem,
                file,
            }
        })
        .collect();
    tasks.sort_by_key(|t| place(&t.stem).unwrap_or(known.len()));
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_the_names_of_the_benchmark() {
        let names = MVBENCH.map(|t| task_name(t.0));
        for name in ["Action Sequence", "Fine-grained Pose", "Episodic Reasoning"] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
    }
}
