//! Training SAM 2 through video: training and tracking compute the same, gradients reach what
//! they should, and the head's switch.

mod track_common;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use ndarray::Array2;
use tpo_core::geometry::{BoxXyxy, Mask};
use tpo_core::weights::PathStack;
use tpo_heads::mask::sam2::{PointLabel, PointPrompt, Sam2, Sam2Version};
use tpo_heads::mask::track::{
    Click, ObjectId, Propagation, TrackOptions, TrackState, VideoFrame, fill_holes,
};
use tpo_heads::mask::train::{
    Sam2TrainConfig, VideoMaskBatch, VideoObject, VideoPrompt, video_forward, video_losses,
};
use track_common::{SIDE, frame, model_of, rectangle, score_bias};

const FRAMES: usize = 10;
const SIZE: [usize; 2] = [32, 32];

/// Frames `[clips, FRAMES, 3, SIDE, SIDE]` of values 0–1.
fn clips(count: usize) -> Tensor<5> {
    let clip = |clip: usize| {
        let frames = (0..FRAMES).map(|i| frame(3 * clip + i).image * 0.5);
        Tensor::cat(frames.collect(), 0).unsqueeze_dim::<5>(0)
    };
    Tensor::cat((0..count).map(clip).collect(), 0)
}

fn masks() -> Vec<Option<Mask>> {
    (0..FRAMES)
        .map(|i| Some(rectangle(SIZE, [4 + i, 6, 12 + i, 16])))
        .collect()
}

fn object(clip: usize, prompt: VideoPrompt) -> VideoObject {
    VideoObject {
        clip,
        prompt,
        masks: masks(),
    }
}

fn area() -> VideoPrompt {
    VideoPrompt::Area(BoxXyxy::from([0.125, 0.1875, 0.375, 0.5]))
}

/// A box of two corners and padding, as the head's tokens imitate it.
fn tokens(model: &Sam2) -> Tensor<3> {
    let corner = |x, y, label| PointPrompt::new(x, y, label);
    let points = vec![
        corner(20.0, 8.0, PointLabel::TopLeft),
        corner(50.0, 40.0, PointLabel::BottomRight),
    ];
    let encoder = &model.sam_prompt_encoder;
    encoder.embed_points(&[points]).unwrap()
}

/// Puts every parameter on the graph, as the trainer does.
struct Learn;

impl ModuleMapper for Learn {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.inner().autodiff().require_grad())
    }
}

/// Follows one object with the tracker.
fn tracked(model: &Sam2, batch: &VideoMaskBatch, object: &VideoObject) -> Vec<(Vec<f32>, f32)> {
    let clip = batch.frames.clone().narrow(0, object.clip, 1);
    let frames: Vec<VideoFrame> = (0..FRAMES)
        .map(|t| {
            let image = clip.clone().narrow(1, t, 1);
            VideoFrame::from_unit_range(image.reshape([1, 3, SIDE, SIDE]), SIZE)
        })
        .collect();
    let mut state = TrackState::init(model, frames, TrackOptions::default()).unwrap();
    let id = ObjectId(0);
    match &object.prompt {
        VideoPrompt::Area(b) => state.add_box(model, 0, id, b.to_pixels(32.0, 32.0)),
        VideoPrompt::Click([x, y]) => {
            // The tracker's clicks are pixels; half a pixel of the model is added to them.
            let at = |v: f32| (v * SIDE as f32 - 0.5) / SIDE as f32 * 32.0;
            let click = Click {
                x: at(*x),
                y: at(*y),
                positive: true,
            };
            state.add_points(model, 0, id, &[click])
        }
        VideoPrompt::Mask => state.add_mask(model, 0, id, object.masks[0].as_ref().unwrap()),
        VideoPrompt::Tokens(t) => {
            state.add_embedding(model, 0, id, t.clone().inner().unsqueeze_dim(0))
        }
    }
    .unwrap();
    state
        .propagate(model, Propagation::forward())
        .unwrap()
        .map(|masks| {
            let masks = masks.unwrap();
            let found = &masks.objects[0];
            (found.low_res.iter().copied().collect(), found.score)
        })
        .collect()
}

fn batch(model: &Sam2) -> VideoMaskBatch {
    let [_, count, dim] = tokens(model).dims();
    let prompt = VideoPrompt::Tokens(tokens(model).reshape([count, dim]));
    VideoMaskBatch {
        frames: clips(2),
        // Kinds are mixed, so that they are batched in another order than given.
        objects: vec![
            object(1, prompt),
            object(0, VideoPrompt::Mask),
            object(0, area()),
            object(1, VideoPrompt::Click([0.3, 0.4])),
            object(1, area()),
        ],
    }
}

#[test]
fn training_computes_what_the_tracker_computes() {
    for version in [Sam2Version::V2_0, Sam2Version::V2_1] {
        let mut config = track_common::config(version);
        // More frames than slots: memories are selected.
        config.num_maskmem = 4;
        config.tracking.max_obj_ptrs_in_encoder = 5;
        config.tracking.fill_hole_area = 6;
        let mut model = model_of(&config);
        for bias in [3.0, -3.0] {
            score_bias(&mut model, bias);
            let batch = batch(&model);
            let on_graph = model.clone().map(&mut Learn);
            let run = video_forward(&on_graph, &batch).unwrap();
            for (at, object) in batch.objects.iter().enumerate() {
                let expected = tracked(&model, &batch, object);
                for (t, (low_res, score)) in expected.iter().enumerate() {
                    let found = run.masks[t].clone().inner().narrow(0, at, 1);
                    let side = found.dims()[1];
                    let found: Vec<f32> = found.into_data().try_into_vec().unwrap();
                    // The tracker hands out masks without holes.
                    let mut found = Array2::from_shape_vec((side, side), found).unwrap();
                    fill_holes(&mut found, 6);
                    let largest = low_res.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let pairs = found.iter().zip(low_res);
                    let worst = pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                    assert!(largest > 0.1, "masks that say nothing agree easily");
                    assert!(
                        worst <= 1e-5 * largest,
                        "{version:?} object {at} frame {t}: {worst} of {largest}"
                    );
                    let values = run.scores[t].clone().inner().into_data();
                    let scores: Vec<f32> = values.try_into_vec().unwrap();
                    assert!((scores[at] - score).abs() < 1e-5);
                }
            }
        }
    }
}

/// Parameters with a gradient that is not zero.
struct Reached<'a> {
    grads: &'a burn::tensor::Gradients,
    path: PathStack,
    reached: Vec<String>,
}

impl ModuleVisitor for Reached<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }
    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let largest = param.val().grad(self.grads).map(|g| {
            let value: f32 = g.abs().max().into_scalar();
            value
        });
        if largest.is_some_and(|v| v > 0.0) {
            self.reached.push(self.path.path());
        }
    }
}

#[test]
fn every_part_of_the_model_learns() {
    let config = track_common::config(Sam2Version::V2_1);
    let model = model_of(&config);
    let batch = batch(&model);
    let model = model.map(&mut Learn);
    let terms = video_losses(&model, &batch, &Sam2TrainConfig::new()).unwrap();
    let names: Vec<&str> = terms.terms().iter().map(|t| t.name.as_str()).collect();
    let expected = ["video_focal", "video_dice", "video_iou", "video_object"];
    assert_eq!(names, expected);
    let grads = terms.total().unwrap().backward();
    let mut visit = Reached {
        grads: &grads,
        path: PathStack::default(),
        reached: Vec::new(),
    };
    model.visit(&mut visit);
    for part in [
        "image_encoder.trunk.patch_embed.proj.weight",
        "image_encoder.neck",
        "memory_attention.layers.0.cross_attn_image",
        "memory_encoder.mask_downsampler.layers.0",
        "maskmem_tpos_enc",
        "no_mem_embed",
        "sam_prompt_encoder.point_embeddings",
        "sam_prompt_encoder.mask_downscaling",
        "mask_downsample",
        "sam_mask_decoder.transformer",
        "sam_mask_decoder.iou_prediction_head",
        "sam_mask_decoder.pred_obj_score_head",
        "obj_ptr_proj",
        "obj_ptr_tpos_proj",
    ] {
        let hit = visit.reached.iter().any(|path| path.starts_with(part));
        assert!(hit, "{part} is not reached: {:?}", visit.reached);
    }
}

#[test]
fn hidden_and_unknown_frames_weigh_nothing() {
    let model = model_of(&track_common::config(Sam2Version::V2_0));
    let value = |objects: Vec<VideoObject>, name: &str| {
        let batch = VideoMaskBatch {
            frames: clips(1),
            objects,
        };
        let terms = video_losses(&model, &batch, &Sam2TrainConfig::new()).unwrap();
        let term = terms.terms().iter().find(|t| t.name == name).unwrap();
        let value: f32 = term.value.clone().into_scalar();
        value
    };
    let known_until = |last: usize, rest: Option<Mask>| {
        let mut object = object(0, area());
        for mask in &mut object.masks[last..] {
            *mask = rest.clone();
        }
        vec![object]
    };
    let nothing = Mask(Array2::from_elem((32, 32), false));
    let hidden = known_until(4, Some(nothing));
    let unknown = known_until(4, None);
    for name in ["video_focal", "video_dice", "video_iou"] {
        let (a, b) = (value(hidden.clone(), name), value(unknown.clone(), name));
        assert_eq!(a, b, "{name}");
        assert!(a > 0.0 && a != value(known_until(10, None), name), "{name}");
    }
    // Every score is about 3: log(1 + e^-3) where the object shows, 3 more where it does not.
    let shown = (-3f32).exp().ln_1p();
    assert!((value(unknown, "video_object") - shown).abs() < 1e-5);
    let mixed = value(hidden, "video_object");
    assert!((mixed - (shown + 3.0 * 0.6)).abs() < 1e-5, "{mixed}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model_of(&track_common::config(Sam2Version::V2_0));
    let good = || VideoMaskBatch {
        frames: clips(1),
        objects: vec![object(0, area())],
    };
    let config = Sam2TrainConfig::new();
    let mut elsewhere = good();
    elsewhere.objects[0].clip = 1;
    assert!(video_losses(&model, &elsewhere, &config).is_err());
    let mut small = good();
    small.frames = small.frames.narrow(4, 0, 32);
    assert!(video_losses(&model, &small, &config).is_err());
    let mut no_mask = good();
    no_mask.objects[0].prompt = VideoPrompt::Mask;
    no_mask.objects[0].masks[0] = None;
    assert!(video_losses(&model, &no_mask, &config).is_err());
    let mut pixel_less = good();
    pixel_less.objects[0].masks[1] = Some(Mask(Array2::from_elem((0, 4), false)));
    assert!(video_losses(&model, &pixel_less, &config).is_err());
    let mut nobody = good();
    nobody.objects.clear();
    assert!(
        video_losses(&model, &nobody, &config)
            .unwrap()
            .total()
            .is_none()
    );
    for bad in [
        config.clone().with_focal(f64::NAN),
        config.clone().with_reverse(1.5),
        config.clone().with_frames(0),
    ] {
        assert!(video_losses(&model, &good(), &bad).is_err());
    }
}
