//! SAM 2 of the mini model learns to follow the shapes of the synthetic world.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use tpo::core::geometry::{Mask, Rle};
use tpo::data::synthetic::{Split, World, WorldConfig};
use tpo::heads::mask::coverage;
use tpo::heads::mask::sam2::{Sam2, Sam2Config, Sam2Version};
use tpo::heads::mask::track::{
    ObjectId, Propagation, Resize, TrackOptions, TrackState, VideoFrame,
};
use tpo::heads::mask::train::{
    PromptMix, Sam2TrainConfig, VideoMaskBatch, VideoObject, VideoPrompt, video_losses,
};

/// Side of the world's frames.
const SIDE: usize = 64;

struct Learn;

impl ModuleMapper for Learn {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.inner().autodiff().require_grad())
    }
}

/// A clip at the size of the model, and the masks of its objects.
struct Clip {
    /// `[frames, 3, image, image]`, 0–1.
    frames: Tensor<4>,
    objects: Vec<Vec<Mask>>,
}

fn world() -> World {
    World::new(WorldConfig::default(), 7).unwrap()
}

fn clip(world: &World, split: Split, index: u64, image: usize) -> Clip {
    let clip = world.clip(split, index);
    let rendered = clip.scene.render_all();
    let pixels = SIDE * SIDE;
    let mut planes = Vec::with_capacity(rendered.len() * 3 * pixels);
    for frame in &rendered {
        let rgb = frame.rgb();
        for channel in 0..3 {
            planes.extend((0..pixels).map(|i| f32::from(rgb[3 * i + channel]) / 255.0));
        }
    }
    let n = rendered.len();
    let data = TensorData::new(planes, [3 * n, SIDE, SIDE]);
    let device = Device::flex();
    let resize = Resize::new([SIDE; 2], [image; 2], false, &device);
    let frames = resize.apply(Tensor::from_data(data, &device));
    let decode = |rle: &Rle| rle.decode().unwrap();
    Clip {
        frames: frames.reshape([n, 3, image, image]),
        objects: clip
            .mask_queries(&rendered)
            .iter()
            .map(|query| query.masks.iter().map(decode).collect())
            .collect(),
    }
}

fn batch(
    clips: &[Clip],
    start: usize,
    frames: usize,
    mix: &PromptMix,
    rng: &mut Xoshiro256PlusPlus,
) -> VideoMaskBatch {
    let mut objects = Vec::new();
    for (at, clip) in clips.iter().enumerate() {
        for masks in &clip.objects {
            if let Some(prompt) = VideoPrompt::sample(&masks[start], mix, rng) {
                objects.push(VideoObject {
                    clip: at,
                    prompt,
                    masks: masks[start..start + frames]
                        .iter()
                        .cloned()
                        .map(Some)
                        .collect(),
                });
            }
        }
    }
    let cut = |c: &Clip| {
        c.frames
            .clone()
            .narrow(0, start, frames)
            .unsqueeze_dim::<5>(0)
    };
    VideoMaskBatch {
        frames: Tensor::cat(clips.iter().map(cut).collect(), 0),
        objects,
    }
}

/// Overlap of two masks; 1 where both are empty.
fn overlap(a: &Mask, b: &Mask) -> f64 {
    let count = |both: fn(bool, bool) -> bool| {
        a.0.iter().zip(&b.0).filter(|(a, b)| both(**a, **b)).count() as f64
    };
    match count(|a, b| a || b) {
        0.0 => 1.0,
        either => count(|a, b| a && b) / either,
    }
}

/// Mean overlap over the frames and objects of clips, prompted with the box of the first frame.
fn quality(model: &Sam2, clips: &[Clip]) -> (f64, f64) {
    let (mut sum, mut count) = (0.0, 0usize); let (mut s0, mut c0) = (0.0, 0usize);
    for clip in clips {
        let n = clip.frames.dims()[0];
        let frames: Vec<VideoFrame> = (0..n)
            .map(|t| VideoFrame::from_unit_range(clip.frames.clone().narrow(0, t, 1), [SIDE; 2]))
            .collect();
        let mut state = TrackState::init(model, frames, TrackOptions::default()).unwrap();
        for (at, masks) in clip.objects.iter().enumerate() {
            let area = masks[0].bounding_box().unwrap();
            state.add_box(model, 0, ObjectId(at as u32), area).unwrap();
        }
        for found in state.propagate(model, Propagation::forward()).unwrap() {
            let found = found.unwrap();
            for (mask, truth) in found.masks().iter().zip(&clip.objects) {
                sum += overlap(mask, &truth[found.frame]);
                count += 1;
                if found.frame == 0 { s0 += overlap(mask, &truth[0]); c0 += 1; }
            }
        }
    }
    (s0 / c0 as f64, sum / count as f64)
}

fn fresh(config: &Sam2Config, seed: u64) -> Sam2 {
    let device = Device::flex();
    device.seed(seed);
    let model = config.init(&device).unwrap();
    // Values are drawn when they are first looked at.
    struct Draw;
    impl ModuleVisitor for Draw {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
    }
    model.visit(&mut Draw);
    model
}

#[test]
fn the_resolution_of_masks_is_enough() {
    // The best the logits of the mini model can say: the log-odds of how much is covered.
    let world = world();
    let device = Device::flex();
    let best = |low: usize| {
        let resize = Resize::new([low; 2], [SIDE; 2], false, &device);
        let (mut sum, mut count) = (0.0, 0usize);
        for index in 0..10 {
            let found = clip(&world, Split::HeldOut, index, SIDE);
            for mask in found.objects.iter().flatten() {
                let cover = coverage(mask, low, low).unwrap();
                let odds = |c: f32| (c / (1.0 - c)).ln().clamp(-6.0, 6.0);
                let logits: Vec<f32> = cover.into_iter().map(odds).collect();
                let logits = TensorData::new(logits, [1, low, low]);
                let full = resize.apply(Tensor::from_data(logits, &device)).into_data();
                let full: Vec<bool> = full.iter::<f32>().map(|v| v > 0.0).collect();
                let full = Mask(ndarray::Array2::from_shape_vec((SIDE, SIDE), full).unwrap());
                sum += overlap(&full, mask);
                count += 1;
            }
        }
        sum / f64::from(count as u32)
    };
    let (coarse, fine) = (best(16), best(32));
    eprintln!("best mean overlap: 16 x 16 {coarse:.3}, 32 x 32 {fine:.3}");
    assert!(fine > 0.93 && fine > coarse);
}

#[test]
fn four_clips_are_learned() {
    let config = Sam2Config::mini(Sam2Version::V2_0);
    let world = world();
    let clips: Vec<Clip> = (0..4)
        .map(|i| clip(&world, Split::Train, i, config.image_size))
        .collect();
    let losses = Sam2TrainConfig::new();
    let mix = PromptMix::new().with_mask(0.0).with_click(0.0);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let mut model = fresh(&config, 5);
    assert!(model.num_params() <= 800_000, "{}", model.num_params());

    model = model.map(&mut Learn);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let steps = 150;
    for step in 0..steps {
        let start = (step * 5) % 9;
        let batch = batch(&clips, start, 8, &mix, &mut rng);
        let terms = video_losses(&model, &batch, &losses).unwrap();
        let total = terms.total().unwrap();
        let grads = GradientsParams::from_grads(total.backward(), &model);
        // Warm up, then half a cosine.
        let done = step as f64 / steps as f64;
        let warm = ((step + 1) as f64 / 15.0).min(1.0);
        let rate = 3e-3 * warm * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()));
        model = optimizer.step(rate, model, grads);
        if step % 25 == 24 {
            let value: f32 = total.inner().into_scalar();
            eprintln!("step {step}: {value:.4}");
        }
    }
    let after = quality(&model.valid(), &clips).1;
    eprintln!("after: {after:.3}");
    assert!(after > 0.85, "{after}");
}

#[test]
#[ignore]
fn zz_driver() {
    let var = |n: &str, d: f64| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let (lr, steps, n, frames) = (var("LR", 2e-3), var("STEPS", 300.) as usize, var("CLIPS", 4.) as usize, var("FRAMES", 8.) as usize);
    let mut config = Sam2Config::mini(Sam2Version::V2_0);
    if let Ok(path) = std::env::var("SAM") { config = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap(); }
    let world = world();
    let mix = PromptMix::new().with_mask(var("MASK", 0.0)).with_click(var("CLICK", 0.0)).with_area(1.0);
    let losses = Sam2TrainConfig::new().with_frames(frames).with_focal(var("FOCAL", 20.)).with_dice(var("DICE", 1.0)).with_alpha(var("ALPHA", 0.25));
    let start_from = var("PHASE2", 1e9) as usize; let frames2 = var("FRAMES2", 8.) as usize; let n2 = var("CLIPS2", 4.) as usize;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let model = fresh(&config, 5); eprintln!("{} parameters", model.num_params()); let mut model = model.map(&mut Learn);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init();
    let held: Vec<Clip> = (0..25).map(|i| clip(&world, Split::HeldOut, i, config.image_size)).collect();
    let (mut spent, mut next) = (0.0, 0u64);
    let begin = std::time::Instant::now();
    for step in 0..steps {
        let (n, frames) = if step >= start_from { (n2, frames2) } else { (n, frames) };
        let clips: Vec<Clip> = (0..n).map(|i| clip(&world, Split::Train, next + i as u64, config.image_size)).collect();
        next += n as u64;
        let start = (step * 5) % (17 - frames);
        let batch = batch(&clips, start, frames, &mix, &mut rng);
        if batch.objects.is_empty() { continue; }
        let t0 = std::time::Instant::now();
        let terms = video_losses(&model, &batch, &losses).unwrap();
        let total = terms.total().unwrap();
        let forward = t0.elapsed().as_secs_f64();
        let back = total.backward();
        let backward = t0.elapsed().as_secs_f64() - forward;
        let grads = GradientsParams::from_grads(back, &model);
        let done = step as f64 / steps as f64;
        let warm = ((step + 1) as f64 / 30.0).min(1.0);
        let rate = lr * warm * (0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()));
        model = optimizer.step(rate, model, grads);
        spent += t0.elapsed().as_secs_f64();
        if step % 10 == 9 {
            let value: Vec<String> = terms.terms().iter().map(|t| format!("{} {:.4}", t.name, t.value.clone().inner().into_scalar::<f32>())).collect();
            eprintln!("{step} {} objects {} fwd {forward:.2} bwd {backward:.2} mean {:.3} s/step", value.join(" "), batch.objects.len(), spent / (step + 1) as f64);
        }
        if step + 1 == steps || step % 100 == 99 {
            eprintln!("J held out {:?} at {step}, {:.0} s", quality(&model.valid(), &held[..if step + 1 == steps { 25 } else { 6 }]), begin.elapsed().as_secs_f64());
        }
    }
}

struct Collect<'a> { grads: &'a GradientsParams, out: Vec<(burn::module::ParamId, String, Tensor<1>, f64)>, path: Vec<String> }
impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _k: &str) { self.path.push(name.into()); }
    fn exit_module(&mut self, _n: &str, _k: &str) { self.path.pop(); }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(g) = self.grads.get::<D>(param.id) {
            let n: f32 = g.clone().powi_scalar(2).sum().into_scalar();
            self.out.push((param.id, self.path.join("."), g.flatten::<1>(0, D - 1), f64::from(n).sqrt()));
        } else { eprintln!("no grad: {}", self.path.join(".")); }
    }
}
struct Shift { id: burn::module::ParamId, by: Tensor<1> }
impl ModuleMapper for Shift {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.id == self.id { let by = self.by.clone(); param.map(|v| { let s = v.shape(); v + by.reshape(s) }) } else { param }
    }
}

#[test]
#[ignore]
fn zz_gradients() {
    let config = Sam2Config::mini(Sam2Version::V2_0);
    let world = world();
    let clips: Vec<Clip> = (0..2).map(|i| clip(&world, Split::Train, i, config.image_size)).collect();
    let losses = Sam2TrainConfig::new();
    let mix = PromptMix::new().with_mask(0.0).with_click(0.0);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let plain = fresh(&config, 5);
    let frames = std::env::var("FRAMES").ok().and_then(|v| v.parse().ok()).unwrap_or(3);
    let batch = batch(&clips, 0, frames, &mix, &mut rng);
    let model = plain.clone().map(&mut Learn);
    let terms = video_losses(&model, &batch, &losses).unwrap();
    for t in terms.terms() { eprintln!("{} {}", t.name, t.value.clone().inner().into_scalar::<f32>()); }
    let grads = GradientsParams::from_grads(terms.total().unwrap().backward(), &model);
    let mut c = Collect { grads: &grads, out: vec![], path: vec![] };
    model.visit(&mut c);
    let at = |m: &Sam2| f64::from(video_losses(m, &batch, &losses).unwrap().total().unwrap().into_scalar::<f32>());
    for (id, name, g, n) in c.out {
        if n == 0.0 { eprintln!("ZERO {name}"); continue; }
        let h = (2e-3 / n).min(0.05);
        let dir = g.inner() * (h / n);
        let up = at(&plain.clone().map(&mut Shift { id, by: dir.clone() }));
        let down = at(&plain.clone().map(&mut Shift { id, by: -dir }));
        let fd = (up - down) / (2.0 * h);
        let bad = if (fd / n - 1.0).abs() > 0.1 { "  <<<<" } else { "" };
        eprintln!("{name:70} {n:.3e} fd/grad {:.3}{bad}", fd / n);
    }
}
