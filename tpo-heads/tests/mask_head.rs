//! The mask head: losses, the frozen SAM 2, batches, decoding, and what is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use ndarray::Array2;
use tpo_core::CoreError;
use tpo_core::geometry::{BoxXyxy, Mask};
use tpo_core::head::{FrameSource, HeadContext, LossTerms, Sample, TaskHead};
use tpo_heads::HeadsError;
use tpo_heads::mask::sam2::{Sam2Config, Sam2Version};
use tpo_heads::mask::train::{
    PromptMix, Sam2TrainConfig, VideoMaskBatch, VideoObject, VideoPrompt, video_losses,
};
use tpo_heads::mask::{
    BOX_TOKENS, MaskHead, MaskHeadConfig, MaskLossConfig, MaskOutput, MaskTarget, PromptSource,
    box_tokens, mask_box,
};

const D_LLM: usize = 16;

/// A bright square on a dark ground that moves to the right.
struct Square {
    frames: usize,
    /// How often a frame was asked for.
    read: AtomicUsize,
}

impl Square {
    fn new(frames: usize) -> Arc<Self> {
        Arc::new(Self {
            frames,
            read: AtomicUsize::new(0),
        })
    }

    fn area(frame: usize) -> BoxXyxy {
        let x = 0.25 + 0.05 * frame as f32;
        BoxXyxy::from([x, 0.25, x + 0.4, 0.75])
    }

    fn inside(frame: usize, x: f32, y: f32) -> bool {
        let b = Self::area(frame);
        (b.x0..b.x1).contains(&x) && (b.y0..b.y1).contains(&y)
    }

    fn mask(frame: usize) -> Mask {
        Mask(Array2::from_shape_fn((48, 64), |(y, x)| {
            Self::inside(frame, (x as f32 + 0.5) / 64.0, (y as f32 + 0.5) / 48.0)
        }))
    }
}

impl FrameSource for Square {
    fn len(&self) -> usize {
        self.frames
    }

    fn frames(&self, size: usize) -> tpo_core::Result<Tensor<4>> {
        let all = (0..self.frames).map(|i| self.frame(i, size));
        Ok(Tensor::cat(all.collect::<Result<Vec<_>, _>>()?, 0))
    }

    fn frame(&self, index: usize, size: usize) -> tpo_core::Result<Tensor<4>> {
        self.read.fetch_add(1, Ordering::Relaxed);
        let mut values = Vec::with_capacity(3 * size * size);
        for channel in 0..3 {
            for y in 0..size {
                for x in 0..size {
                    let at = |v: usize| (v as f32 + 0.5) / size as f32;
                    let bright = Self::inside(index, at(x), at(y));
                    values.push(if bright {
                        0.9 - 0.1 * channel as f32
                    } else {
                        0.1
                    });
                }
            }
        }
        let data = TensorData::new(values, [1, 3, size, size]);
        Ok(Tensor::from_data(data, &Device::flex()))
    }
}

fn sample(frames: &Arc<Square>) -> Sample {
    Sample {
        size: Some((64, 48)),
        frames: Some(frames.clone()),
        ..Sample::default()
    }
}

fn head(device: &Device) -> MaskHead {
    head_with(Sam2Config::nano(Sam2Version::V2_0), device)
}

fn head_with(sam: Sam2Config, device: &Device) -> MaskHead {
    device.seed(11);
    let head = MaskHeadConfig::new(D_LLM, D_LLM, sam).init(device).unwrap();
    // Drawn now, so that clones are the same.
    sums(&head);
    head
}

fn random(shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}

fn total(terms: &LossTerms) -> f64 {
    scalar(terms.total().unwrap())
}

fn term(terms: &LossTerms, name: &str) -> f64 {
    let found = terms.terms().iter().find(|t| t.name == name);
    scalar(
        found
            .unwrap_or_else(|| panic!("no term {name}"))
            .value
            .clone(),
    )
}

/// Every float parameter: its values.
fn sums<M: Module>(module: &M) -> Vec<TensorData> {
    struct Values(Vec<TensorData>);
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().into_data());
        }
    }
    let mut visitor = Values(Vec::new());
    module.visit(&mut visitor);
    visitor.0
}

/// Number of parameters, and of those that got a gradient.
fn with_gradient<M: Module>(module: &M, grads: &burn::tensor::Gradients) -> (usize, usize) {
    struct Count<'a>(usize, usize, &'a burn::tensor::Gradients);
    impl ModuleVisitor for Count<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += 1;
            self.1 += usize::from(param.val().grad(self.2).is_some());
        }
    }
    let mut visitor = Count(0, 0, grads);
    module.visit(&mut visitor);
    (visitor.0, visitor.1)
}

/// Losses on the masks of so many frames, prompted with the task token alone.
fn by_task_token(frames: usize) -> Sam2TrainConfig {
    let mix = PromptMix::new()
        .with_mask(0.0)
        .with_area(0.0)
        .with_click(0.0)
        .with_task_token(1.0);
    Sam2TrainConfig::new().with_frames(frames).with_prompts(mix)
}

#[test]
fn the_loss_by_hand() {
    let device = Device::flex();
    let head = head(&device);
    let boxes = [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 0.5]].map(BoxXyxy::from);
    let targets = boxes.map(MaskTarget::from_box);
    let exact = box_tokens(&head.sam.sam_prompt_encoder, &boxes).unwrap();
    assert_eq!(exact.dims(), [2, BOX_TOKENS, 32]);
    let flat: Vec<f32> = boxes.iter().flat_map(|b| b.to_array()).collect();
    let area = Tensor::<2>::from_data(TensorData::new(flat, [2, 4]), &device);
    // Everything 0.5 beside the truth, one box number 0.8 more.
    let off = Tensor::<2>::from_floats([[0.0; 4], [0.0, 0.8, 0.0, 0.0]], &device);
    let output = MaskOutput {
        prompt: exact + 0.5,
        area: area + off,
    };
    let context = HeadContext::default();
    let terms = head.loss(&output, &targets, &context).unwrap();
    let names: Vec<&str> = terms.terms().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["embedding", "box"]);
    assert!((term(&terms, "embedding") - 0.5).abs() < 1e-6);
    assert!((term(&terms, "box") - 0.1).abs() < 1e-6);
    assert!((total(&terms) - 0.6).abs() < 1e-6);

    // 2 · 0.5 + 10 · 0.1.
    let weighted = head.with_loss(MaskLossConfig::new().with_embedding(2.0).with_area(10.0));
    let terms = weighted.loss(&output, &targets, &context).unwrap();
    assert!((total(&terms) - 2.0).abs() < 1e-5);
}

#[test]
fn a_mask_stands_for_its_box() {
    let device = Device::flex();
    let head = head(&device);
    let output = head.prompts(random([1, D_LLM], &device));
    let context = HeadContext::default();
    let mask = Square::mask(0);
    let by_mask = head
        .loss(&output, &[MaskTarget::from_mask(&mask)], &context)
        .unwrap();
    let area = mask_box(&mask).unwrap();
    let by_box = head
        .loss(&output, &[MaskTarget::from_box(area)], &context)
        .unwrap();
    assert_eq!(total(&by_mask), total(&by_box));
    // A given box goes before the mask.
    let other = BoxXyxy::from([0.0, 0.0, 1.0, 1.0]);
    let both = MaskTarget {
        area: Some(other),
        ..MaskTarget::from_mask(&mask)
    };
    let both = head.loss(&output, &[both], &context).unwrap();
    let alone = head
        .loss(&output, &[MaskTarget::from_box(other)], &context)
        .unwrap();
    assert_eq!(total(&both), total(&alone));
}

#[test]
fn targets_without_area_or_pixels_are_refused() {
    let device = Device::flex();
    let head = head(&device);
    let output = head.prompts(random([2, D_LLM], &device));
    let context = HeadContext::default();
    let good = MaskTarget::from_box([0.1, 0.1, 0.2, 0.2].into());
    let empty = Mask(Array2::from_elem((4, 4), false));
    for (bad, part) in [
        (MaskTarget::from_box([0.3, 0.1, 0.3, 0.2].into()), "no area"),
        (
            MaskTarget::from_box([0.3, 0.1, f32::NAN, 0.2].into()),
            "finite",
        ),
        (MaskTarget::from_mask(&empty), "empty"),
        (MaskTarget::default(), "neither"),
    ] {
        let error = head
            .loss(&output, &[good.clone(), bad], &context)
            .unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(part) && error.contains("target 1"),
            "{error}"
        );
    }
    // Masks are decoded through the frames; without frames the error says so.
    let supervised = head.with_loss(MaskLossConfig::new().with_video(Some(by_task_token(1))));
    let target = MaskTarget::from_mask(&Square::mask(0));
    let error = supervised
        .loss(&output, &[target.clone(), target], &context)
        .unwrap_err();
    assert!(matches!(error, CoreError::MissingInput { .. }), "{error}");
}

/// A batch of two is the mean of its samples, values and gradients.
#[test]
fn two_are_as_one_and_one() {
    let device = Device::flex().autodiff();
    let video = by_task_token(1);
    let head = head(&device).with_loss(MaskLossConfig::new().with_video(Some(video)));
    let task = random([2, D_LLM], &device).require_grad();
    let (short, long) = (Square::new(3), Square::new(5));
    let samples = [sample(&short), sample(&long)];
    let targets = [
        MaskTarget::from_mask(&Square::mask(0)).with_mask(2, &Square::mask(2)),
        MaskTarget::from_mask(&Square::mask(1)).with_mask(4, &Square::mask(4)),
    ];
    let run = |rows: &[usize]| {
        let context = HeadContext {
            samples: &samples,
            rows,
        };
        let own: Vec<Tensor<2>> = rows.iter().map(|r| task.clone().narrow(0, *r, 1)).collect();
        let output = head.forward(Tensor::cat(own, 0), &context).unwrap();
        let targets: Vec<MaskTarget> = rows.iter().map(|r| targets[*r].clone()).collect();
        let terms = head.loss(&output, &targets, &context).unwrap();
        let loss = terms.total().unwrap();
        let gradient = task.grad(&loss.backward()).unwrap();
        (total(&terms), gradient)
    };
    let (both, gradient) = run(&[0, 1]);
    let ((first, g1), (second, g2)) = (run(&[0]), run(&[1]));
    assert!((first - second).abs() > 1e-3, "the samples differ");
    let mean = (first + second) / 2.0;
    assert!((both - mean).abs() <= 1e-5 * mean, "{both} {mean}");
    let expected = (g1 + g2) / 2.0;
    let scale: f32 = expected.clone().abs().max().into_scalar();
    let apart: f32 = (gradient - expected).abs().max().into_scalar();
    assert!(
        scale > 0.0 && apart <= 1e-5 * scale.max(1.0),
        "{apart} of {scale}"
    );
    // The order of tokens does not matter either.
    let (reversed, _) = run(&[1, 0]);
    assert!((both - reversed).abs() <= 1e-5 * mean);
}

/// A frozen SAM 2 gets no gradient and stays as it is; the adapter learns from masks through it.
#[test]
fn sam_is_frozen_and_masks_teach_the_adapter() {
    let device = Device::flex().autodiff();
    // Masks alone.
    let loss = MaskLossConfig::new()
        .with_embedding(0.0)
        .with_area(0.0)
        .with_video(Some(by_task_token(1)));
    let mut head = head(&device).with_loss(loss);
    let before = sums(&head.sam);
    let adapter = sums(&head.track_embed);
    let frames = Square::new(1);
    let samples = [sample(&frames)];
    let context = HeadContext {
        samples: &samples,
        rows: &[0],
    };
    let target = [MaskTarget::from_mask(&Square::mask(0))];
    let task = random([1, D_LLM], &device);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
    let mut losses = Vec::new();
    for _ in 0..12 {
        let output = head.forward(task.clone(), &context).unwrap();
        let terms = head.loss(&output, &target, &context).unwrap();
        for name in ["video_focal", "video_dice", "video_iou"] {
            assert!(term(&terms, name).is_finite());
        }
        losses.push(term(&terms, "video_dice") + 20.0 * term(&terms, "video_focal"));
        let grads = terms.total().unwrap().backward();
        assert_eq!(with_gradient(&head.sam, &grads).1, 0);
        assert_eq!(with_gradient(&head.track_embed, &grads), (4, 4));
        let grads = GradientsParams::from_grads(grads, &head);
        head = optimizer.step(0.02, head, grads);
    }
    assert_eq!(before, sums(&head.sam));
    assert_ne!(adapter, sums(&head.track_embed));
    let (first, last) = (losses[0], losses[11]);
    assert!(last < 0.9 * first, "{losses:?}");
}

/// The head's video loss is [`video_losses`] of the tokens the adapter makes; it reaches the adapter
/// through a frozen SAM 2, and SAM 2 itself where that learns.
#[test]
fn video_teaches_the_adapter_and_sam_where_it_learns() {
    const FRAMES: usize = 4;
    let device = Device::flex().autodiff();
    let frames = [Square::new(FRAMES + 1), Square::new(FRAMES)];
    let samples = [sample(&frames[0]), sample(&frames[1])];
    let context = HeadContext {
        samples: &samples,
        rows: &[0, 1],
    };
    // Nothing is known of the second video's frame 2.
    let known = [vec![0, 1, 2, 3, 4], vec![0, 1, 3]];
    let targets: Vec<MaskTarget> = known
        .iter()
        .map(|known| {
            let masks = known.iter();
            masks.fold(MaskTarget::default(), |target, t| {
                target.with_mask(*t, &Square::mask(*t))
            })
        })
        .collect();
    let task = random([2, D_LLM], &device);
    let with = |video: Sam2TrainConfig, learns: bool| {
        let loss = MaskLossConfig::new()
            .with_embedding(0.0)
            .with_area(0.0)
            .with_video(Some(video));
        let mut sam = Sam2Config::nano(Sam2Version::V2_0);
        // A frozen SAM 2 drops nothing. One that learns does, and then no two numbers are equal.
        assert!(sam.memory_attention.dropout > 0.0);
        if learns {
            sam.memory_attention.dropout = 0.0;
        }
        let mut head = head_with(sam, &device).with_loss(loss);
        if learns {
            head.sam = head.sam.set_require_grad(true);
        }
        head
    };
    let tokens = by_task_token(FRAMES);
    let names = ["video_focal", "video_dice", "video_iou", "video_object"];
    for learns in [false, true] {
        let head = with(tokens.clone(), learns);
        let output = head.forward(task.clone(), &context).unwrap();
        let terms = head.loss(&output, &targets, &context).unwrap();

        let clip = |source: &Arc<Square>| {
            let all = source.frames(head.sam.config().image_size).unwrap();
            all.narrow(0, 0, FRAMES).unsqueeze_dim::<5>(0)
        };
        let dim = output.prompt.dims()[2];
        let batch = VideoMaskBatch {
            frames: Tensor::cat(frames.iter().map(clip).collect(), 0),
            objects: (0..2)
                .map(|at| VideoObject {
                    clip: at,
                    prompt: VideoPrompt::Tokens(
                        output
                            .prompt
                            .clone()
                            .inner()
                            .narrow(0, at, 1)
                            .reshape([BOX_TOKENS, dim]),
                    ),
                    masks: (0..FRAMES)
                        .map(|t| known[at].contains(&t).then(|| Square::mask(t)))
                        .collect(),
                })
                .collect(),
        };
        let expected = video_losses(&head.sam.valid(), &batch, &tokens).unwrap();
        for name in names {
            let (found, expected) = (term(&terms, name), term(&expected, name));
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(1e-3),
                "{name}: {found}, expected {expected}"
            );
        }

        let grads = terms.total().unwrap().backward();
        assert_eq!(with_gradient(&head.track_embed, &grads), (4, 4));
        assert_eq!(with_gradient(&head.track_embed_decode2, &grads).1, 4);
        let (all, reached) = with_gradient(&head.sam, &grads);
        match learns {
            // Weights of clicks, masks and corners have no part in tokens.
            true => assert!(2 * reached > all, "{reached} of {all}"),
            false => assert_eq!(reached, 0),
        }
    }

    // Prompts from the masks teach a SAM 2 that learns, and there is nothing to add to a frozen one.
    let prompts = Sam2TrainConfig::new().with_frames(FRAMES);
    for learns in [false, true] {
        let head = with(prompts.clone(), learns);
        let output = head.forward(task.clone(), &context).unwrap();
        let terms = head.loss(&output, &targets, &context).unwrap();
        assert_eq!(terms.terms().len(), if learns { 6 } else { 2 });
        if learns {
            let grads = terms.total().unwrap().backward();
            assert!(with_gradient(&head.sam, &grads).1 > 0);
        }
    }

    // A mask beyond the end.
    let head = with(tokens, false);
    let output = head.forward(task, &context).unwrap();
    let beyond = [targets[0].clone(), targets[0].clone()];
    let error = head.loss(&output, &beyond, &context).unwrap_err();
    let wanted = HeadsError::MaskTarget {
        token: 1,
        why: "it has a mask of a frame that the video has not",
    };
    assert_eq!(error.to_string(), CoreError::from(wanted).to_string());
}

#[test]
fn masks_of_every_frame() {
    let device = Device::flex();
    let head = head(&device);
    let (short, long) = (Square::new(1), Square::new(4));
    let samples = [sample(&short), sample(&long)];
    let context = HeadContext {
        samples: &samples,
        rows: &[1, 0],
    };
    let task = random([2, D_LLM], &device);
    let output = head.forward(task.clone(), &context).unwrap();
    let found = head.decode(output, &context).unwrap();
    let lengths: Vec<usize> = found.iter().map(|p| p.frames.len()).collect();
    assert_eq!(lengths, [4, 1]);
    for prediction in &found {
        assert_eq!((prediction.size, prediction.prompt), ([48, 64], None));
        assert!(prediction.auxiliary.is_ordered());
        for (i, frame) in prediction.frames.iter().enumerate() {
            assert_eq!((frame.frame, frame.mask.size), (i, [48, 64]));
            let mask = frame.mask.decode().unwrap();
            assert_eq!(frame.area, mask_box(&mask));
            assert_eq!(frame.area.is_none(), mask.area() == 0);
        }
    }
    // Frames are read one at a time and once each.
    assert_eq!(long.read.load(Ordering::Relaxed), 4);
    // The second token alone gives the same.
    let context = HeadContext {
        samples: &samples,
        rows: &[0],
    };
    let output = head.forward(task.narrow(0, 1, 1), &context).unwrap();
    let alone = head.decode(output, &context).unwrap();
    assert_eq!(alone[0], found[1]);
    let json = serde_json::to_value(&found[0]).unwrap();
    assert!(json["frames"][0]["mask"]["counts"].is_string());
}

#[test]
fn the_box_of_a_question_prompts_sam_itself() {
    let device = Device::flex();
    let head = head(&device);
    let frames = Square::new(2);
    let area = BoxXyxy::from([0.25, 0.25, 0.75, 0.75]);
    let boxes = [area];
    let run = |head: &MaskHead, boxes: &[BoxXyxy], query: Option<&str>, task: f32| {
        let samples = [Sample {
            boxes: boxes.to_vec(),
            query: query.map(String::from),
            ..sample(&frames)
        }];
        let context = HeadContext {
            samples: &samples,
            rows: &[0],
        };
        let task = Tensor::<2>::full([1, D_LLM], task, &device);
        let output = head.forward(task, &context).unwrap();
        head.decode(output, &context).map(|p| p[0].clone())
    };
    let boxed = run(&head, &boxes, None, 1.0).unwrap();
    assert_eq!(boxed.prompt, Some(area));
    // The task token plays no part; the box in pixels of the source is the same box.
    let worded = run(&head, &[], Some("follow [16,12,48,36]"), -1.0).unwrap();
    assert_eq!((worded.prompt, &worded.frames), (Some(area), &boxed.frames));
    // Unless the head is told to listen to the token only.
    let token = head.clone().with_prompt(PromptSource::TaskToken);
    let followed = run(&token, &boxes, None, 1.0).unwrap();
    let alone = run(&head, &[], None, 1.0).unwrap();
    assert_eq!((followed.prompt, &followed), (None, &alone));
    for query in ["[16,12,480,36]", "[16,12,16,36]"] {
        let error = run(&head, &[], Some(query), 1.0).unwrap_err();
        assert!(matches!(error, CoreError::InvalidBox { .. }), "{error}");
    }
}

#[test]
fn what_decoding_needs_is_said() {
    let device = Device::flex();
    let head = head(&device);
    let frames = Square::new(1);
    let none = Square::new(0);
    for (context, part) in [
        (Sample::default(), "size"),
        (
            Sample {
                size: Some((64, 48)),
                ..Sample::default()
            },
            "frames",
        ),
        (
            Sample {
                frames: Some(frames.clone()),
                ..Sample::default()
            },
            "size",
        ),
        (sample(&none), "frame 0"),
    ] {
        let samples = [context];
        let context = HeadContext {
            samples: &samples,
            rows: &[0],
        };
        let output = head.prompts(Tensor::ones([1, D_LLM], &device));
        let error = head.decode(output, &context).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let task = Tensor::<2>::full([1, D_LLM], f32::NAN, &device);
    let samples = [sample(&frames)];
    let context = HeadContext {
        samples: &samples,
        rows: &[0],
    };
    let output = head.prompts(task);
    assert!(head.decode(output, &context).is_err(), "not a number");
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    MaskHeadConfig::videochat_tpo().validate().unwrap();
    let video = Sam2TrainConfig::new();
    for (change, part) in [
        (MaskHeadConfig::mini(0), "d_llm"),
        (
            MaskHeadConfig::mini(8).with_loss(MaskLossConfig::new().with_area(f64::NAN)),
            "loss.area",
        ),
        (
            MaskHeadConfig::mini(8)
                .with_loss(MaskLossConfig::new().with_video(Some(video.clone().with_alpha(1.5)))),
            "alpha",
        ),
        (
            MaskHeadConfig::mini(8)
                .with_loss(MaskLossConfig::new().with_video(Some(video.with_frames(0)))),
            "frames",
        ),
    ] {
        let error = change.init(&Device::flex()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
