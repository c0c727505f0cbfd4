//! What the tokens of a video encoder show.

use burn::module::Module;
use burn::tensor::activation::{log_softmax, relu, sigmoid};
use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_data::synthetic::{Clip, Colour, EventKind, RenderedFrame, Shape};

/// Share of a token's pixels a shape must cover for the token to be about it.
const MIN_COVER: f64 = 0.15;
/// Columns: cover, shapes, colours, events and none, box, displacement.
const SHAPES: usize = Shape::ALL.len();
const COLOURS: usize = Colour::ALL.len();
const EVENTS: usize = EventKind::ALL.len() + 1;
const BOX: usize = 4;
const SHIFT: usize = 2;
const COLUMNS: usize = 1 + SHAPES + COLOURS + EVENTS + BOX + SHIFT;
/// Weight of the box and of the displacement, whose errors are small numbers.
const PLACE: f64 = 5.0;

/// One linear layer that reads from a token how much of it is covered, and of the shape that
/// covers most: outline, colour, what is happening to it, its box, how far it has come since the
/// clip began. Thrown away after the pretraining.
#[derive(Module, Debug)]
pub struct PatchHead {
    /// `[dim, 29]`.
    pub read: Linear,
}

/// What is true of the tokens of a clip, time slowest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PatchLabels {
    /// Share of the token's pixels that shapes cover, 0–1.
    pub cover: Vec<f32>,
    /// 1 where one shape covers enough of the token; what follows counts only there.
    pub about: Vec<f32>,
    /// Index of its outline.
    pub shape: Vec<i64>,
    /// Index of its colour at that time.
    pub colour: Vec<i64>,
    /// 0, or 1 + the index of the kind of event that happens to it.
    pub event: Vec<i64>,
    /// Its visible box, normalised xyxy.
    pub area: Vec<[f32; 4]>,
    /// Displacement of its centre since the first frame, as a share of the frame's side.
    pub shift: Vec<[f32; 2]>,
}

/// How well tokens are read; means over the tokens that are about a shape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PatchScores {
    /// Mean absolute error of the cover, over all tokens.
    pub cover_error: f64,
    /// Share of outlines read right.
    pub shape: f64,
    /// Share of colours read right.
    pub colour: f64,
    /// Share of events read right, tokens without one included.
    pub event: f64,
    /// Mean absolute error of a box coordinate.
    pub box_error: f64,
}

impl PatchHead {
    /// A head for tokens of width `dim`.
    pub fn new(dim: usize, device: &Device) -> Self {
        Self {
            read: LinearConfig::new(dim, COLUMNS).init(device),
        }
    }

    /// The loss `[1]` of tokens `[clips, tokens, dim]`, and how well they are read.
    pub fn loss(&self, tokens: Tensor<3>, labels: &[PatchLabels]) -> (Tensor<1>, PatchScores) {
        let [clips, count, dim] = tokens.dims();
        let rows = clips * count;
        let read = self.read.forward(tokens.reshape([rows, dim]));
        let device = read.device();
        let mut at = 0;
        let mut columns = |n: usize| {
            let cut = read.clone().narrow(1, at, n);
            at += n;
            cut
        };
        let (cover, shape, colour) = (columns(1), columns(SHAPES), columns(COLOURS));
        let (event, area, shift) = (columns(EVENTS), columns(BOX), columns(SHIFT));
        let floats = |of: &dyn Fn(&PatchLabels) -> Vec<f32>, width: usize| {
            let values: Vec<f32> = labels.iter().flat_map(of).collect();
            Tensor::<2>::from_data(TensorData::new(values, [rows, width]), &device)
        };
        let truth = floats(&|l| l.cover.clone(), 1);
        let about = floats(&|l| l.about.clone(), 1);
        let number = about.clone().sum().add_scalar(1e-6);
        // Binary cross-entropy of logits, in the form that does not overflow.
        let bce = relu(cover.clone()) - cover.clone() * truth.clone()
            + cover.clone().abs().neg().exp().log1p();
        let mut total = bce.mean();
        let mut hits = [0.0; 3];
        let scalar = |x: Tensor<1>| f64::from(x.inner().into_scalar::<f32>());
        let kinds: [(Tensor<2>, &dyn Fn(&PatchLabels) -> &Vec<i64>); 3] = [
            (shape, &|l| &l.shape),
            (colour, &|l| &l.colour),
            (event, &|l| &l.event),
        ];
        for ((logits, of), hit) in kinds.into_iter().zip(&mut hits) {
            let values: Vec<i64> = labels.iter().flat_map(|l| of(l).clone()).collect();
            let index = TensorData::new(values, [rows, 1]);
            let index = Tensor::<2, Int>::from_data(index, &device);
            let right = logits.clone().argmax(1).equal(index.clone()).float();
            *hit = scalar((right * about.clone()).sum() / number.clone());
            let likely = log_softmax(logits, 1).gather(1, index);
            total = total - (likely * about.clone()).sum() / number.clone();
        }
        let off = (area - floats(&|l| l.area.concat(), BOX)).abs().mean_dim(1);
        let off = (off * about.clone()).sum() / number.clone();
        let moved = (shift - floats(&|l| l.shift.concat(), SHIFT)).abs();
        let moved = (moved.mean_dim(1) * about).sum() / number;
        let scores = PatchScores {
            cover_error: scalar((sigmoid(cover) - truth).abs().mean()),
            shape: hits[0],
            colour: hits[1],
            event: hits[2],
            box_error: scalar(off.clone()),
        };
        (total + (off + moved) * PLACE, scores)
    }
}

impl PatchLabels {
    /// Labels of a clip whose frames are cut into tokens of `tubelet` frames and `patch` pixels.
    pub fn new(clip: &Clip, frames: &[RenderedFrame], tubelet: usize, patch: usize) -> Self {
        let scene = &clip.scene;
        let grid = scene.side / patch;
        let side = scene.side as f32;
        let mut labels = Self::default();
        for step in 0..scene.frames / tubelet {
            let span = step * tubelet..(step + 1) * tubelet;
            // Pixels of every shape in every token, over the frames of the step.
            let mut counts = vec![vec![0usize; scene.objects.len()]; grid * grid];
            for frame in &frames[span.clone()] {
                for object in 0..scene.objects.len() {
                    let mask = frame.mask(object);
                    for ((y, x), _) in mask.0.indexed_iter().filter(|(_, on)| **on) {
                        counts[y / patch * grid + x / patch][object] += 1;
                    }
                }
            }
            let about: Vec<_> = (0..scene.objects.len())
                .map(|object| About::new(clip, frames, span.clone(), object, side))
                .collect();
            let pixels = (patch * patch * tubelet) as f64;
            for counts in counts {
                let covered: usize = counts.iter().sum();
                labels.cover.push((covered as f64 / pixels) as f32);
                let most = (0..counts.len()).max_by_key(|o| counts[*o]);
                let most = most.filter(|o| counts[*o] as f64 >= MIN_COVER * pixels);
                let found = most.and_then(|o| about[o].clone());
                labels.about.push(f32::from(u8::from(found.is_some())));
                let found = found.unwrap_or_default();
                labels.shape.push(found.shape);
                labels.colour.push(found.colour);
                labels.event.push(found.event);
                labels.area.push(found.area);
                labels.shift.push(found.shift);
            }
        }
        labels
    }
}

/// What is true of a shape during a step.
#[derive(Clone, Default)]
struct About {
    shape: i64,
    colour: i64,
    event: i64,
    area: [f32; 4],
    shift: [f32; 2],
}

impl About {
    /// `None` where it does not show.
    fn new(
        clip: &Clip,
        frames: &[RenderedFrame],
        span: std::ops::Range<usize>,
        object: usize,
        side: f32,
    ) -> Option<Self> {
        let scene = &clip.scene;
        let shown = span.clone().rev().find(|f| frames[*f].visible(object) > 0)?;
        let area = frames[shown].area(object)?;
        let states = &scene.objects[object].states;
        let happens = scene
            .events
            .iter()
            .find(|e| e.involves(object) && span.clone().any(|f| e.covers(f)));
        let near = |c: &&Colour| -> i32 {
            let (a, b) = (c.rgb(), states[shown].colour);
            (0..3).map(|i| (i32::from(a[i]) - i32::from(b[i])).pow(2)).sum()
        };
        let colour = Colour::ALL.iter().min_by_key(near)?;
        let (first, now) = (states[0], states[shown]);
        Some(Self {
            shape: scene.objects[object].look.shape as i64,
            colour: *colour as i64,
            event: happens.map_or(0, |e| 1 + e.kind as i64),
            area: [area.x0, area.y0, area.x1, area.y1].map(|v| v / side),
            shift: [now.x - first.x, now.y - first.y].map(|v| v as f32 / side),
        })
    }
}
