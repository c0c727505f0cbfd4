//! Prompts for training, drawn from true masks.

use burn::tensor::Tensor;
use rand::{Rng, RngExt};
use tpo_core::geometry::{BoxXyxy, Mask};

use super::config::PromptMix;

/// What prompts an object on the first frame.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)]
pub enum VideoPrompt {
    /// A box, normalised.
    Area(BoxXyxy),
    /// A click on the object, `[x, y]`, normalised.
    Click([f32; 2]),
    /// The object's true mask on the first frame.
    Mask,
    /// Tokens `[tokens, dim]` in place of those of a box, possibly on the autodiff graph.
    Tokens(Tensor<2>),
}

/// Kinds in the order in which objects are batched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Area,
    Click,
    Mask,
    Tokens,
}

impl VideoPrompt {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Area(_) => Kind::Area,
            Self::Click(_) => Kind::Click,
            Self::Mask => Kind::Mask,
            Self::Tokens(_) => Kind::Tokens,
        }
    }

    /// Draws a box, a click or the mask, in the proportions of `mix`; its share of task tokens is
    /// ignored. `None` for an empty mask, or if nothing else has a share.
    pub fn sample(mask: &Mask, mix: &PromptMix, rng: &mut impl Rng) -> Option<Self> {
        let mix = mix.clone().with_task_token(0.0);
        let kind = Kind::sample(&mix, rng)?;
        Self::of_kind(kind, mask, &mix, rng)
    }

    /// Draws a prompt of one kind; `None` for tokens and an empty mask.
    pub(super) fn of_kind(
        kind: Kind,
        mask: &Mask,
        mix: &PromptMix,
        rng: &mut impl Rng,
    ) -> Option<Self> {
        let (height, width) = mask.size();
        let tight = mask.bounding_box()?;
        match kind {
            Kind::Area => {
                let tight = tight.to_normalised(width as f32, height as f32).to_array();
                let sides = [tight[2] - tight[0], tight[3] - tight[1]];
                let bound = mix.box_noise_bound as f32;
                let mut moved = tight;
                for (i, value) in moved.iter_mut().enumerate() {
                    let by = normal(rng) * mix.box_noise as f32 * sides[i % 2];
                    *value = (*value + by.clamp(-bound, bound)).clamp(0.0, 1.0);
                }
                // Noise may turn a thin box inside out.
                let ordered = moved[0] < moved[2] && moved[1] < moved[3];
                Some(Self::Area(if ordered { moved } else { tight }.into()))
            }
            Kind::Click => {
                let count = mask.0.iter().filter(|p| **p).count();
                let chosen = rng.random_range(0..count);
                let at = mask
                    .0
                    .iter()
                    .enumerate()
                    .filter(|(_, p)| **p)
                    .nth(chosen)?
                    .0;
                let (x, y) = (at % width, at / width);
                Some(Self::Click([
                    (x as f32 + 0.5) / width as f32,
                    (y as f32 + 0.5) / height as f32,
                ]))
            }
            Kind::Mask => Some(Self::Mask),
            Kind::Tokens => None,
        }
    }
}

impl Kind {
    /// `None` if no kind has a share.
    pub(super) fn sample(mix: &PromptMix, rng: &mut impl Rng) -> Option<Self> {
        let shares = [
            (Self::Area, mix.area),
            (Self::Click, mix.click),
            (Self::Mask, mix.mask),
            (Self::Tokens, mix.task_token),
        ];
        let sum: f64 = shares.iter().map(|s| s.1).sum();
        let mut left = rng.random::<f64>() * sum;
        let mut last = None;
        for (kind, share) in shares.into_iter().filter(|s| s.1 > 0.0) {
            last = Some(kind);
            left -= share;
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// Standard normal (Box and Muller).
fn normal(rng: &mut impl Rng) -> f32 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    let radius = (-2.0 * (1.0 - u).ln()).sqrt();
    (radius * (std::f64::consts::TAU * v).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    #[test]
    fn prompts_lie_where_the_object_is() {
        let mask = Mask(Array2::from_shape_fn((20, 40), |(y, x)| {
            (4..14).contains(&y) && (10..30).contains(&x)
        }));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mix = PromptMix::new();
        let mut seen = [0usize; 3];
        for _ in 0..4000 {
            match VideoPrompt::sample(&mask, &mix, &mut rng).unwrap() {
                VideoPrompt::Area(b) => {
                    seen[0] += 1;
                    for (a, b) in b.to_array().into_iter().zip([0.25, 0.2, 0.75, 0.7]) {
                        assert!((a - b).abs() <= 20.0 / 1024.0 + 1e-6);
                    }
                }
                VideoPrompt::Click([x, y]) => {
                    seen[1] += 1;
                    assert!(mask.0[[(y * 20.0) as usize, (x * 40.0) as usize]]);
                }
                VideoPrompt::Mask => seen[2] += 1,
                VideoPrompt::Tokens(_) => panic!("nobody has tokens"),
            }
        }
        // Six standard deviations.
        for (count, share) in seen.into_iter().zip([0.25, 0.25, 0.5]) {
            assert!((count as f64 - 4000.0 * share).abs() < 190.0, "{seen:?}");
        }
        let empty = Mask(Array2::from_elem((3, 3), false));
        assert!(VideoPrompt::sample(&empty, &mix, &mut rng).is_none());
        let none = PromptMix::new()
            .with_mask(0.0)
            .with_area(0.0)
            .with_click(0.0)
            .with_task_token(1.0);
        assert!(VideoPrompt::sample(&mask, &none, &mut rng).is_none());
    }
}
