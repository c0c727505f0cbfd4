//! The formats by name: how each is opened, and which options it takes.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    ConvertOptions, Samples, as_v2, choice, conversation, image_choice, own, spatial, temporal,
    tracking, video_masks,
};
use crate::DataError;

/// Opens a dataset.
type Reader = fn(&Path, &ConvertOptions) -> Result<Samples, DataError>;

/// An option that only some formats have a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Second,
    Extension,
    Durations,
    FrameRate,
    Split,
}

impl Choice {
    /// Its name on the command line.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Second => "--second-file",
            Self::Extension => "--extension",
            Self::Durations => "--durations",
            Self::FrameRate => "--frame-rate",
            Self::Split => "--split",
        }
    }
}

macro_rules! formats {
    ($($variant:ident $name:literal $reader:path [$($option:ident),*] => $help:literal,)*) => {
        /// A public dataset format.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum Format {
            $(#[doc = $help] #[serde(rename = $name)] $variant,)*
        }

        impl Format {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What the input is.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }

            pub(super) fn reader(self) -> Reader {
                match self { $(Self::$variant => $reader,)* }
            }

            /// The options it uses, of those that not every format does.
            pub(super) fn options(self) -> &'static [Choice] {
                match self { $(Self::$variant => &[$(Choice::$option),*],)* }
            }
        }
    };
}

formats! {
    Csv "csv" own::csv [FrameRate] => "A csv of your own: video, image or frames; query with left, top, right, bottom (pixels) or start, end (seconds); question, answer.",
    QvHighlights "qvhighlights" temporal::qvhighlights [Extension] => "QVHighlights JSONL: qid, query, vid, duration, relevant_windows, relevant_clip_ids, saliency_scores.",
    CharadesJsonl "charades-sta" temporal::charades [Durations, Extension] => "Charades-STA JSONL in the QVHighlights layout, or the original txt `VID START END##sentence.`; --durations names Charades' csv or a JSON of seconds.",
    ActivityNetCaptions "activitynet-captions" temporal::activitynet [Extension] => "ActivityNet Captions JSON: {\"v_ID\": {duration, timestamps, sentences}}.",
    DiDeMo "didemo" temporal::didemo [Extension] => "DiDeMo JSON array: video, description, times (5-second pieces, first and last).",
    Tacos "tacos" temporal::tacos [Extension] => "TACoS JSON as temporal grounding code distributes it: {\"s13-d21.avi\": {timestamps in frames, fps, num_frames, sentences}}.",
    QuerYd "queryd" temporal::queryd [Second, Durations, Extension] => "QuerYD captions as JSON `{video: [[words]]}` with --second-file the times JSON `{video: [[start, end]]}`.",
    Ego4dNlq "ego4d-nlq" temporal::ego4d_nlq [Split, Extension] => "Ego4D natural language queries, nlq_train.json: videos, clips, annotations, language_queries; media are the clips, CLIP_UID.mp4.",
    YouCook2 "youcook2" temporal::youcook2 [Split, Extension] => "YouCook2 youcookii_annotations_trainval.json: {database: {ID: {duration, subset, recipe_type, annotations of segment and sentence}}}; videos are SUBSET/RECIPE_TYPE/ID.mp4.",
    HiRest "hirest" temporal::hirest [Extension] => "HiREST JSON: {prompt: {video: {relevant, clip, v_duration, bounds, steps}}}.",
    RefCoco "refcoco" spatial::refcoco [Second, Split] => "RefCOCO, RefCOCO+ or RefCOCOg refs as JSON, with --second-file COCO's instances.json.",
    MdetrRefCoco "refcoco-coco-style" spatial::coco_style [] => "RefCOCO family in one COCO-style file: images with caption, annotations with bbox.",
    RefCocoLines "refcoco-jsonl" spatial::refcoco_lines [] => "RefCOCO family in the JSONL of Qwen-VL's and InternVL's evaluations, one expression a line: image, sent, bbox as corners, width, height.",
    RefCocoObjects "refcoco-lmms" spatial::refcoco_objects [] => "RefCOCO family as lmms-lab/RefCOCO has it, a split as JSON or JSONL: question_id, file_name, answer of expressions, bbox.",
    VisualGenome "visual-genome" spatial::visual_genome [] => "Visual Genome region_descriptions.json.",
    AsV2 "as-v2" as_v2::as_v2 [Second, Extension] => "All-Seeing V2 conversation JSON array with <ref>phrase</ref><box>[[x1, y1, x2, y2]]</box>; other files than *_wo_square_pad.json need --second-file COCO's instances.json for the sizes of the images.",
    SaV "sa-v" video_masks::sa_v [Split, Extension] => "A SA-V annotation file, or a folder of them (`*_manual.json`, `*_auto.json`).",
    MeViS "mevis" video_masks::mevis [Second, FrameRate] => "MeViS meta_expressions.json, with --second-file mask_dict.json.",
    RefYouTubeVos "ref-youtube-vos" video_masks::ref_youtube_vos [Second, FrameRate] => "Ref-YouTube-VOS meta_expressions.json, with --second-file the Annotations folder of indexed PNG masks.",
    LaSot "lasot" tracking::lasot [FrameRate] => "A LaSOT folder: CLASS/SEQUENCE/{groundtruth.txt, nlp.txt, full_occlusion.txt, out_of_view.txt, img/}.",
    Got10k "got-10k" tracking::got10k [FrameRate] => "A GOT-10k split folder: SEQUENCE/{groundtruth.txt, absence.label, meta_info.ini, 00000001.jpg, ..}.",
    VideoChat2It "videochat2-it" conversation::videochat2 [Second, Extension] => "VideoChat2-IT JSON array: video or image, QA of {i, q, a}; with --second-file youcookii_annotations_trainval.json the cut clips of YouCook2 are segments of the whole videos.",
    Llava "llava" conversation::llava [Extension] => "LLaVA conversation JSON array: image or video, conversations of {from, value}.",
    ActivityNetRtl "activitynet-rtl" conversation::activitynet_rtl [Extension] => "ActivityNet-RTL, reasoning about time: training JSON {\"v_ID\": {duration, QA of {q, a}}}, or the validation array of vid, question, answer, duration.",
    MvBench "mvbench" choice::mvbench [FrameRate, Extension] => "MVBench task JSON array: video, question, candidates, answer, start, end.",
    NextGqa "next-gqa" choice::next_gqa [Second, Extension] => "NExT-GQA csv of questions a0 to a4, with --second-file gsub_*.json of the time spans.",
    VideoMme "video-mme" choice::video_mme [Extension] => "Video-MME JSON array, by video or by question, or the same as JSONL.",
    Mlvu "mlvu" choice::mlvu [Extension] => "MLVU task JSON array, 1_plotQA.json to 7_topic_reasoning.json: video, duration, question, candidates, answer, question_type; or test_question.json.",
    PerceptionTest "perception-test" choice::perception_test [Second, Split, Extension] => "Perception Test mc_question_*.json: {video: {metadata, mc_question of id, question, options, answer_id, area}}; with --second-file cut_frame_mapping_*.json videos end where they are cut.",
    Mmiu "mmiu" image_choice::mmiu [] => "MMIU, all.parquet as JSON or JSONL: task, question, context, options, input_image_path, output.",
    SeedBench2 "seed-bench-2" image_choice::seed_bench_2 [Split] => "SEED-Bench_v2_level1_2_3.json without level L3; a --split is a data_type: Single Image, Multiple Images, Video, Interleaved Image.",
}

impl Format {
    /// The options of the command line that it uses, of those that not every format does.
    pub fn flags(self) -> Vec<&'static str> {
        self.options().iter().map(|option| option.flag()).collect()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let names: Vec<_> = Self::ALL.iter().map(|f| f.name()).collect();
        let at = names.iter().position(|name| *name == text);
        at.map(|at| Self::ALL[at])
            .ok_or_else(|| DataError::InvalidConfig {
                what: "dataset format",
                reason: format!("`{text}` is not one of {}", names.join(", ")),
            })
    }
}
