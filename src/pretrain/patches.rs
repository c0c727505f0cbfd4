//! What the tokens of a video encoder show.

use burn::module::Module;
use burn::tensor::activation::{log_softmax, relu, sigmoid};
use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo_core::nn::{Linear, LinearConfig};
use tpo_data::synthetic::{Clip, Colour, EventKind, RenderedFrame, Shape};

/// Share of a token's pixels a shape must cover for the token to be about it.
const MIN_COVER: f64 = 0.15;
/// Columns: cover, time, shapes, colours, events and none, box, displacement.
const TIME: usize = 1;
const SHAPES: usize = Shape::ALL.len();
const COLOURS: usize = Colour::ALL.len();
const EVENTS: usize = EventKind::ALL.len() + 1;
const BOX: usize = 4;
const SHIFT: usize = 2;
const COLUMNS: usize = 1 + TIME + SHAPES + COLOURS + EVENTS + BOX + SHIFT;
/// Weight of a token without an event in the loss of events: nine of ten have none.
const QUIET: f64 = 0.3;
/// Weight of time, box and displacement, whose errors are small numbers.
const PLACE: f64 = 5.0;

/// One linear layer that reads from a token how much of it is covered, when it is, and of the shape
/// that covers most: outline, colour, what is happening to it, its box, how far it has come since the
/// clip began. Thrown away after the pretraining.
#[derive(Module, Debug)]
pub(super) struct PatchHead {
    /// `[dim, steps * 30]`.
    pub read: Linear,
    /// Tokens of one time step.
    #[module(skip)]
    pub cells: usize,
    /// Time steps that a token is about.
    #[module(skip)]
    pub steps: usize,
    /// Whether tokens are of single pictures, in which neither time nor event nor displacement shows.
    #[module(skip)]
    pub still: bool,
}

/// What is true of a token.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PatchLabel {
    /// Share of its pixels that shapes cover, 0–1.
    pub cover: f32,
    /// Middle of its time step as a share of the clip, 0–1.
    pub time: f32,
    /// The one shape that covers enough of it.
    pub about: Option<Seen>,
}

/// What is true of a shape during a time step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    /// Index of its outline, if that has a name.
    pub shape: Option<i64>,
    /// Index of its colour at that time.
    pub colour: i64,
    /// 0, or 1 + the index of the kind of event that happens to it.
    pub event: i64,
    /// Its visible box, normalised xyxy.
    pub area: [f32; 4],
    /// Displacement of its centre since the first frame, as a share of the frame's side.
    pub shift: [f32; 2],
}

/// How well tokens are read; means over the tokens that are about a shape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct PatchScores {
    /// Mean absolute error of the cover, over all tokens.
    pub cover_error: f64,
    /// Share of outlines read right.
    pub shape: f64,
    /// Share of colours read right.
    pub colour: f64,
    /// Share of events read right, of the tokens with one.
    pub event: f64,
    /// Share of the tokens without an event that are read so.
    pub quiet: f64,
    /// Mean absolute error of a box coordinate.
    pub box_error: f64,
}

impl PatchHead {
    /// A head for tokens of width `dim`, `cells` of them at a time, each about `steps` time steps
    /// of its place in the frame.
    pub fn new(dim: usize, cells: usize, steps: usize, device: &Device) -> Self {
        Self {
            read: LinearConfig::new(dim, steps * COLUMNS).init(device),
            cells,
            steps,
            still: false,
        }
    }

    /// The head of an encoder that sees one picture at a time.
    pub fn of_pictures(self) -> Self {
        Self {
            still: true,
            ..self
        }
    }

    /// The loss `[1]` of tokens `[clips, tokens, dim]`, and how well they are read.
    pub fn loss(&self, tokens: Tensor<3>, labels: &[Vec<PatchLabel>]) -> (Tensor<1>, PatchScores) {
        let [clips, count, _] = tokens.dims();
        let (cells, steps) = (self.cells, self.steps);
        let rows = clips * count * steps;
        let read = self.read.forward(tokens);
        let read = read.reshape([clips * count / cells, cells, steps, COLUMNS]);
        let read = read.swap_dims(1, 2).reshape([rows, COLUMNS]);
        let device = read.device();
        let mut at = 0;
        let mut columns = |n: usize| {
            let cut = read.clone().narrow(1, at, n);
            at += n;
            cut
        };
        let (cover, time) = (columns(1), columns(TIME));
        let (shape, colour) = (columns(SHAPES), columns(COLOURS));
        let (event, area, shift) = (columns(EVENTS), columns(BOX), columns(SHIFT));
        // What is read of a token that is about no shape does not count.
        let all = || labels.iter().flatten();
        let seen = || all().map(|label| label.about.unwrap_or_default());
        let floats = |values: Vec<f32>| {
            let width = values.len() / rows;
            Tensor::<2>::from_data(TensorData::new(values, [rows, width]), &device)
        };
        let flag = |on: bool| f32::from(u8::from(on));
        let truth = floats(all().map(|l| l.cover).collect());
        let about = floats(all().map(|l| flag(l.about.is_some())).collect());
        let named = floats(seen().map(|s| flag(s.shape.is_some())).collect());
        let number = about.clone().sum().add_scalar(1e-6);
        // Binary cross-entropy of logits, in the form that does not overflow.
        let bce = relu(cover.clone()) - cover.clone() * truth.clone()
            + cover.clone().abs().neg().exp().log1p();
        let late = (time - floats(all().map(|l| l.time).collect())).abs();
        let moving = if self.still { 0.0 } else { 1.0 };
        let mut total = bce.mean() + late.mean() * (PLACE * moving);
        let scalar = |x: Tensor<1>| f64::from(x.inner().into_scalar::<f32>());
        let indices = |values: Vec<i64>| {
            Tensor::<2, Int>::from_data(TensorData::new(values, [rows, 1]), &device)
        };
        let shape_of = indices(seen().map(|s| s.shape.unwrap_or_default()).collect());
        let colour_of = indices(seen().map(|s| s.colour).collect());
        let event_of = indices(seen().map(|s| s.event).collect());
        let quiet = event_of.clone().equal_elem(0).float() * about.clone();
        let busy = about.clone() - quiet.clone();
        let weight = busy.clone() + quiet.clone().mul_scalar(QUIET);
        for (logits, index, weight, share) in [
            (&shape, &shape_of, &named, 1.0),
            (&colour, &colour_of, &about, 1.0),
            (&event, &event_of, &weight, moving),
        ] {
            let likely = log_softmax(logits.clone(), 1).gather(1, index.clone());
            let number = weight.clone().sum().add_scalar(1e-6);
            total = total - (likely * weight.clone()).sum() / number * share;
        }
        let right = |logits: Tensor<2>, index: Tensor<2, Int>, of: &Tensor<2>| {
            let hits = logits.argmax(1).equal(index).float() * of.clone();
            scalar(hits.sum() / of.clone().sum().add_scalar(1e-6))
        };
        let off = (area - floats(seen().flat_map(|s| s.area).collect())).abs();
        let off = off.mean_dim(1);
        let off = (off * about.clone()).sum() / number.clone();
        let moved = (shift - floats(seen().flat_map(|s| s.shift).collect())).abs();
        let moved = (moved.mean_dim(1) * about.clone()).sum() / number;
        let scores = PatchScores {
            cover_error: scalar((sigmoid(cover) - truth).abs().mean()),
            shape: right(shape, shape_of, &named),
            colour: right(colour, colour_of, &about),
            event: right(event.clone(), event_of.clone(), &busy),
            quiet: right(event, event_of, &quiet),
            box_error: scalar(off.clone()),
        };
        (total + (off + moved * moving) * PLACE, scores)
    }
}

/// Labels of the tokens of a clip, time slowest, whose frames are cut into tokens of `tubelet` frames
/// and `patch` pixels.
pub(super) fn labels(
    clip: &Clip,
    frames: &[RenderedFrame],
    tubelet: usize,
    patch: usize,
) -> Vec<PatchLabel> {
    let scene = &clip.scene;
    let grid = scene.side / patch;
    let mut labels = Vec::new();
    let steps = scene.frames / tubelet;
    for step in 0..steps {
        let span = step * tubelet..(step + 1) * tubelet;
        // Pixels of every shape in every token, over the frames of the step.
        let objects = scene.objects.len();
        let mut counts = vec![0usize; grid * grid * objects];
        for frame in &frames[span.clone()] {
            for object in 0..objects {
                let mask = frame.mask(object);
                for ((y, x), _) in mask.0.indexed_iter().filter(|(_, on)| **on) {
                    let token = y / patch * grid + x / patch;
                    counts[token * objects + object] += 1;
                }
            }
        }
        let seen: Vec<_> = (0..objects)
            .map(|object| Seen::new(clip, frames, span.clone(), object))
            .collect();
        let pixels = (patch * patch * tubelet) as f64;
        for counts in counts.chunks(objects.max(1)) {
            let covered: usize = counts.iter().sum();
            let most = (0..counts.len()).max_by_key(|o| counts[*o]);
            let most = most.filter(|o| counts[*o] as f64 >= MIN_COVER * pixels);
            labels.push(PatchLabel {
                cover: (covered as f64 / pixels) as f32,
                time: (step as f32 + 0.5) / steps as f32,
                about: most.and_then(|o| seen[o]),
            });
        }
    }
    labels
}

impl Seen {
    /// `None` where it does not show.
    fn new(
        clip: &Clip,
        frames: &[RenderedFrame],
        span: std::ops::Range<usize>,
        object: usize,
    ) -> Option<Self> {
        let scene = &clip.scene;
        let side = scene.side as f32;
        let shown = span
            .clone()
            .rev()
            .find(|f| frames[*f].visible(object) > 0)?;
        let area = frames[shown].area(object)?;
        let states = &scene.objects[object].states;
        let happens = scene
            .events
            .iter()
            .find(|e| e.involves(object) && span.clone().any(|f| e.covers(f)));
        let near = |c: &&Colour| -> i32 {
            let (a, b) = (c.rgb(), states[shown].colour);
            (0..3)
                .map(|i| (i32::from(a[i]) - i32::from(b[i])).pow(2))
                .sum()
        };
        let colour = Colour::ALL.iter().min_by_key(near)?;
        let (first, now) = (states[0], states[shown]);
        Some(Self {
            shape: scene.objects[object].look.shape().map(|s| s as i64),
            colour: *colour as i64,
            event: happens.map_or(0, |e| 1 + e.kind as i64),
            area: [area.x0, area.y0, area.x1, area.y1].map(|v| v / side),
            shift: [now.x - first.x, now.y - first.y].map(|v| v as f32 / side),
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;
    use tpo_core::nn::Weight;
    use tpo_data::synthetic::{Split, World, WorldConfig};

    use super::super::learning;
    use super::*;

    fn clips() -> (Vec<Clip>, Vec<Vec<PatchLabel>>) {
        let world = World::new(WorldConfig::default(), 4).unwrap();
        let clips: Vec<Clip> = (0..6).map(|i| world.clip(Split::Train, i)).collect();
        let labels = clips
            .iter()
            .map(|c| labels(c, &c.scene.render_all(), 2, 16))
            .collect();
        (clips, labels)
    }

    #[test]
    fn labels_say_what_the_pixels_show() {
        let (clips, labels) = clips();
        for (clip, labels) in clips.iter().zip(&labels) {
            let frames = clip.scene.render_all();
            let grid = clip.scene.side / 16;
            let steps = clip.scene.frames / 2;
            assert_eq!(labels.len(), steps * grid * grid);
            for step in 0..steps {
                let of_step = step * grid * grid..(step + 1) * grid * grid;
                let middle = (step as f32 + 0.5) / steps as f32;
                assert!(labels[of_step.clone()].iter().all(|l| l.time == middle));
                let cover: f32 = labels[of_step.clone()].iter().map(|l| l.cover).sum();
                let pixels: usize = (2 * step..2 * step + 2)
                    .flat_map(|f| (0..clip.scene.objects.len()).map(move |o| (f, o)))
                    .map(|(f, o)| frames[f].visible(o))
                    .sum();
                let expected = pixels as f32 / (16.0 * 16.0 * 2.0);
                assert!((cover - expected).abs() < 1e-3, "{cover} {expected}");
                for at in of_step {
                    let Some(seen) = labels[at].about else {
                        continue;
                    };
                    let cell = at % (grid * grid);
                    let objects = &clip.scene.objects;
                    let named = objects
                        .iter()
                        .position(|o| o.look.shape().map(|s| s as i64) == seen.shape);
                    assert!(named.is_some());
                    // The box reaches into the cell in one of the frames of the step.
                    let [x0, y0, x1, y1] = seen.area;
                    let near = |low: f32, high: f32, cell: usize| {
                        let (a, b) = (cell as f32 / grid as f32, (cell + 1) as f32 / grid as f32);
                        low < b + 0.15 && high > a - 0.15
                    };
                    assert!(near(x0, x1, cell % grid) && near(y0, y1, cell / grid));
                }
            }
        }
    }

    #[test]
    fn outlines_without_a_name_have_no_label() {
        let config = WorldConfig {
            irregular: 1.0,
            ..WorldConfig::default()
        };
        let clip = World::new(config, 4).unwrap().clip(Split::Train, 0);
        let irregular = labels(&clip, &clip.scene.render_all(), 2, 16);
        let seen =
            |labels: &[PatchLabel]| labels.iter().filter_map(|l| l.about).collect::<Vec<_>>();
        assert!(!seen(&irregular).is_empty());
        assert!(seen(&irregular).iter().all(|s| s.shape.is_none()));
        let (_, named) = clips();
        assert!(seen(&named.concat()).iter().all(|s| s.shape.is_some()));
    }

    /// What one picture does not show is no part of the loss of its tokens, and has no gradient.
    #[test]
    fn tokens_of_single_pictures_are_not_asked_what_happens() {
        let (_, labels) = clips();
        let device = Device::default();
        let shape = [labels.len(), labels[0].len(), 8];
        let tokens = Tensor::<3>::random(shape, Distribution::Default, &device);
        let head = PatchHead::new(8, 16, 1, &device);
        let columns = |head: PatchHead| {
            let head = learning(head);
            let (loss, _) = head.loss(tokens.clone().autodiff(), &labels);
            let grads = loss.backward();
            let Weight::Float(weight) = &head.read.weight else {
                panic!("a new layer is not quantised");
            };
            let rows = weight.val().grad(&grads).unwrap().abs().sum_dim(1);
            let rows: Vec<f32> = rows.into_data().iter().collect();
            (0..COLUMNS)
                .filter(|c| rows[*c] == 0.0)
                .collect::<Vec<usize>>()
        };
        assert!(columns(head.clone()).is_empty());
        let event = 1 + TIME + SHAPES + COLOURS;
        let mut silent = vec![1];
        silent.extend(event..event + EVENTS);
        silent.extend(COLUMNS - SHIFT..COLUMNS);
        assert_eq!(columns(head.of_pictures()), silent);
    }

    #[test]
    fn a_query_reads_its_place_over_its_time_steps() {
        let (_, labels) = clips();
        let device = Device::default();
        let (cells, steps) = (16, 2);
        let queries = labels[0].len() / steps;
        // Tokens that hold the cover of their two time steps as logits, and a head that reads them.
        let logit = |p: f32| {
            let p = p.clamp(1e-4, 1.0 - 1e-4);
            (p / (1.0 - p)).ln()
        };
        let mut values = Vec::new();
        for labels in &labels {
            for query in 0..queries {
                let (group, cell) = (query / cells, query % cells);
                for step in 0..steps {
                    values.push(logit(labels[(group * steps + step) * cells + cell].cover));
                }
            }
        }
        let data = TensorData::new(values, [labels.len(), queries, steps]);
        let tokens = Tensor::<3>::from_data(data, &device);
        let mut head = PatchHead::new(steps, cells, steps, &device);
        let mut weight = vec![0.0f32; steps * steps * COLUMNS];
        for step in 0..steps {
            weight[step * COLUMNS * steps + step] = 1.0;
        }
        let weight = TensorData::new(weight, [steps * COLUMNS, steps]);
        head.read.weight = Tensor::<2>::from_data(weight, &device).into();
        head.read.bias = None;
        let (_, scores) = head.loss(tokens, &labels);
        assert!(scores.cover_error < 1e-3, "{scores:?}");
        // Every logit is zero, so every shape is read as the first and no event is seen.
        assert!(scores.quiet > 0.999 && scores.event < 0.001, "{scores:?}");
    }
}
