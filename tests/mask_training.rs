//! What the masks of the mini model's SAM 2 can say of the synthetic world, and its size.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use tpo::core::geometry::{Mask, Rle};
use tpo::core::ops::Resize;
use tpo::data::synthetic::{Split, World, WorldConfig};
use tpo::heads::mask::{MaskHead, coverage};

/// Side of the world's frames.
const SIDE: usize = 64;

fn masks(index: u64) -> Vec<Mask> {
    let world = World::new(WorldConfig::default(), 7).unwrap();
    let clip = world.clip(Split::HeldOut, index);
    let queries = clip.mask_queries(&clip.scene.render_all());
    let all = queries.iter().flat_map(|query| &query.masks);
    all.map(|rle: &Rle| rle.decode().unwrap()).collect()
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

#[test]
fn the_resolution_of_masks_is_enough() {
    // The best the logits of the mini model can say: the log-odds of how much is covered.
    let device = Device::flex();
    let best = |low: usize| {
        let resize = Resize::new([low; 2], [SIDE; 2], false, &device);
        let (mut sum, mut count) = (0.0, 0usize);
        for index in 0..10 {
            for mask in &masks(index) {
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
fn the_model_is_small() {
    let config = tpo::presets::mini_config().unwrap();
    let config = config.heads.get::<MaskHead>().unwrap().sam;
    let count = config.init(&Device::flex()).unwrap().num_params();
    assert!(count <= 910_000, "{count}");
    // The grid of the masks is the finer one above.
    assert_eq!(config.prompt_encoder.grid().map(|n| 4 * n), [32, 32]);
}
