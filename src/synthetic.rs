//! Made-up clips with known answers, for recipes that need no files.
//!
//! A clip shows squares of two colours on a grey ground; one of them is asked for. Everything
//! about a sample follows from the seed of its source and its number.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use tpo_core::geometry::BoxXyxy;
use tpo_core::head::TargetSet;
use tpo_core::model::{IGNORE_LABEL, PaddingSide, TokenBatch, TpoBatch};
use tpo_core::prompt::{PromptIds, QuestionPrompt, Visual};
use tpo_core::recompute::mix;
use tpo_llm::tokenizer::{EncodeOptions, Tokenizer};
use tpo_train::recipe::MixtureSpec;
use tpo_train::trainer::{GeneratedData, SampleInfo, TrainBatch, TrainData};
use tpo_train::{Stage, TrainError};

use crate::config::TpoConfig;

/// Colours by name, RGB 0–1.
const COLOURS: [(&str, [f32; 3]); 4] = [
    ("red", [0.9, 0.1, 0.1]),
    ("green", [0.1, 0.8, 0.2]),
    ("blue", [0.1, 0.2, 0.9]),
    ("yellow", [0.9, 0.8, 0.1]),
];

/// ImageNet's, with which the encoder was trained (reference implementation).
const MEAN: [f32; 3] = tpo_data::IMAGENET_MEAN;
const STD: [f32; 3] = tpo_data::IMAGENET_STD;

/// Tasks that samples can pose.
const TASKS: [&str; 2] = ["region", "chat"];

/// Numbers from a seed, one after the other.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = mix(self.0, 1);
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What a clip shows and what is asked of it.
struct Sample {
    id: String,
    task: &'static str,
    /// Colour and normalised box of each square; the first is asked for.
    squares: [(usize, [f32; 4]); 2],
}

impl Sample {
    fn new(source: &str, task: &'static str, seed: u64, row: u64) -> Self {
        let mut n = Numbers(mix(seed, row));
        let first = n.below(COLOURS.len());
        let second = (first + 1 + n.below(COLOURS.len() - 1)) % COLOURS.len();
        let side = 0.2 + 0.2 * n.unit() as f32;
        // One in the left half, one in the right, so that they never cover each other.
        let mut square = |left: bool, side: f32| {
            let room = 0.5 - side;
            let x = if left { 0.0 } else { 0.5 } + room * n.unit() as f32;
            let y = (1.0 - side) * n.unit() as f32;
            [x, y, x + side, y + side]
        };
        let is_left = row.is_multiple_of(2);
        let boxes = (square(is_left, side), square(!is_left, 0.25));
        Self {
            id: format!("{source}:{row}"),
            task,
            squares: [(first, boxes.0), (second, boxes.1)],
        }
    }

    fn colour(&self) -> &'static str {
        COLOURS[self.squares[0].0].0
    }

    /// Question and answer; `tokens` are the routing token and the placeholder of the task.
    fn texts(&self, tokens: &str) -> (String, String) {
        match self.task {
            "region" => (
                format!("Where is the {} square?", self.colour()),
                format!("Here: {tokens}"),
            ),
            _ => (
                format!("Is there a {} square?", self.colour()),
                format!("Yes, a {} one.", self.colour()),
            ),
        }
    }

    /// Appends frames `[frames, 3, size, size]`. The second square moves down.
    fn draw(&self, frames: usize, size: usize, out: &mut Vec<f32>) {
        for t in 0..frames {
            let drift = 0.1 * t as f32 / frames.max(1) as f32;
            for channel in 0..3 {
                for y in 0..size {
                    for x in 0..size {
                        let at = |v: usize| (v as f32 + 0.5) / size as f32;
                        let (px, py) = (at(x), at(y));
                        let hit = self.squares.iter().enumerate().find(|(i, (_, b))| {
                            let py = py - drift * *i as f32;
                            (b[0]..b[2]).contains(&px) && (b[1]..b[3]).contains(&py)
                        });
                        let value = hit.map_or(0.5, |(_, (c, _))| COLOURS[*c].1[channel]);
                        out.push((value - MEAN[channel]) / STD[channel]);
                    }
                }
            }
        }
    }
}

/// A source that is drawn from.
struct Source {
    name: String,
    task: &'static str,
    seed: u64,
    rows: u64,
    /// Sum of the shares up to this one's end, in 0–1.
    until: f64,
}

/// The stream of a stage whose sources are all synthetic.
///
/// A source is drawn for every sample with the mixture's probabilities, then one of its rows. The
/// stream follows from `seed` and its position.
///
/// # Errors
/// [`TrainError::InvalidRecipe`] with every source that is not synthetic or poses a task for which
/// there are no made-up samples.
pub fn synthetic_data(
    stage: &Stage,
    seed: u64,
    config: &TpoConfig,
    tokenizer: Arc<Tokenizer>,
) -> tpo_train::Result<Box<dyn TrainData>> {
    let (sources, epoch) = sources(stage)?;
    let (config, batch_size) = (config.clone(), stage.batch_size.max(1));
    let per_epoch = epoch.div_ceil(batch_size as u64);
    let make = move |index: u64, device: &Device| {
        let samples: Vec<Sample> = (0..batch_size as u64)
            .map(|i| {
                let mut n = Numbers(mix(seed, index * batch_size as u64 + i));
                let share = n.unit();
                let found = sources.iter().find(|s| share < s.until);
                // The shares add up to 1 but for rounding.
                let source = found.unwrap_or(&sources[sources.len() - 1]);
                let row = n.next() % source.rows;
                Sample::new(&source.name, source.task, source.seed, row)
            })
            .collect();
        collate(&samples, &config, &tokenizer, device)
    };
    Ok(Box::new(GeneratedData::new(per_epoch, make)))
}

fn sources(stage: &Stage) -> tpo_train::Result<(Vec<Source>, u64)> {
    let none = MixtureSpec {
        temperature: 1.0,
        sources: Vec::new(),
    };
    let data = stage.data.as_ref().unwrap_or(&none);
    let at = format!("stage `{}`", stage.name);
    let mut problems = Vec::new();
    if data.sources.is_empty() {
        problems.push(format!(
            "{at}: has no data; add `data = {{ sources = [..] }}`"
        ));
    }
    let (mut sources, mut sum, mut epoch) = (Vec::new(), 0.0, 0_u64);
    for source in &data.sources {
        let Some(made) = &source.synthetic else {
            problems.push(format!(
                "{at}, source `{}`: only `synthetic` sources can be read here; give the trainer a \
                 data stream of your own for files",
                source.name
            ));
            continue;
        };
        let Some(task) = TASKS.into_iter().find(|t| *t == made.task) else {
            problems.push(format!(
                "{at}, source `{}`: there are no made-up samples for the task `{}`; there are for: \
                 {}",
                source.name,
                made.task,
                TASKS.join(", ")
            ));
            continue;
        };
        let rows = made.rows.min(source.limit.unwrap_or(u64::MAX)).max(1);
        let size = rows.saturating_mul(source.repeat);
        epoch = epoch.saturating_add(size);
        sum += source.weight * (size as f64).powf(1.0 / data.temperature);
        sources.push(Source {
            name: source.name.clone(),
            task,
            seed: made.seed,
            rows,
            until: sum,
        });
    }
    if !problems.is_empty() {
        return Err(TrainError::InvalidRecipe {
            origin: "the recipe's data".into(),
            problems,
        });
    }
    for source in &mut sources {
        source.until /= sum;
    }
    Ok((sources, epoch.max(1)))
}

fn collate(
    samples: &[Sample],
    config: &TpoConfig,
    tokenizer: &Tokenizer,
    device: &Device,
) -> tpo_train::Result<TrainBatch> {
    let failed = |e: String| TrainError::InvalidRecipe {
        origin: "the made-up samples".into(),
        problems: vec![e],
    };
    let n_visual = config.connector.qformer.n_query();
    let region = config.tasks.get("region");
    let call = region.map_or(String::new(), |t| {
        format!("{}{}", t.routing.token, t.placeholder.token)
    });
    let (mut rows, mut labels, mut boxes) = (Vec::new(), Vec::new(), Vec::new());
    let mut pixels = Vec::new();
    for sample in samples {
        let (question, answer) = sample.texts(&call);
        let mut prompt = QuestionPrompt::new(Visual::Video, "", &question)
            .encode(n_visual, tokenizer)
            .map_err(|e| failed(e.to_string()))?;
        let plain = EncodeOptions {
            add_bos: false,
            ..tokenizer.default_options()
        };
        let mut ids = tokenizer
            .encode(&answer, plain)
            .map_err(|e| failed(e.to_string()))?;
        ids.extend(tokenizer.eos_id());
        let mut row = vec![IGNORE_LABEL; prompt.len()];
        row.extend(ids.iter().map(|id| i64::from(*id)));
        prompt.push_text(&ids);
        rows.push(prompt);
        labels.push(row);
        if sample.task == "region" {
            boxes.push(BoxXyxy::from(sample.squares[0].1));
        }
        sample.draw(config.input.frames, config.input.size, &mut pixels);
    }
    let length = rows.iter().map(PromptIds::len).max().unwrap_or(0);
    for row in &mut labels {
        row.resize(length, IGNORE_LABEL);
    }
    let side = config.input.size;
    let shape = [samples.len(), config.input.frames, 3, side, side];
    let mut batch = TpoBatch::new(TokenBatch::pad(&rows, PaddingSide::Right, 0), device);
    let frames = Tensor::<5>::from_data(TensorData::new(pixels, shape), device);
    batch.frames = Some(frames);
    batch.labels = Some(labels);
    if !boxes.is_empty() {
        batch.targets = TargetSet::new().with("region", boxes);
    }
    let samples = samples
        .iter()
        .map(|s| SampleInfo {
            task: s.task.into(),
            media: Some(s.id.clone()),
            size: Some((side as u32, side as u32)),
            query: Some(s.texts("").0),
            ..SampleInfo::named(&s.id)
        })
        .collect();
    Ok(TrainBatch { batch, samples })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_dir::mini_tokenizer;

    #[test]
    fn samples_follow_from_their_number() {
        for row in 0..50 {
            let sample = Sample::new("s", "region", 3, row);
            let again = Sample::new("s", "region", 3, row);
            assert_eq!(sample.squares, again.squares);
            let [(a, [ax0, ay0, ax1, ay1]), (b, [bx0, _, bx1, _])] = sample.squares;
            assert!(a != b && ax0 >= 0.0 && ay0 >= 0.0 && ax1 <= 1.0 && ay1 <= 1.0);
            assert!(ax1 <= bx0 || bx1 <= ax0);
        }
        assert_ne!(
            Sample::new("s", "region", 3, 0).squares,
            Sample::new("s", "region", 4, 0).squares
        );
    }

    #[test]
    fn what_is_drawn_is_where_the_box_says() {
        let sample = Sample::new("s", "region", 1, 4);
        let (frames, size) = (2, 64);
        let mut pixels = Vec::new();
        sample.draw(frames, size, &mut pixels);
        assert_eq!(pixels.len(), frames * 3 * size * size);
        let (colour, b) = sample.squares[0];
        let plane = &pixels[..size * size];
        let red = (COLOURS[colour].1[0] - MEAN[0]) / STD[0];
        let hits = plane.iter().filter(|v| **v == red).count() as f32;
        let area = (b[2] - b[0]) * (b[3] - b[1]) * (size * size) as f32;
        assert!((hits / area - 1.0).abs() < 0.15, "{hits} of {area}");
    }

    #[test]
    fn a_batch_has_labels_where_the_answer_is() {
        let tokenizer = mini_tokenizer().unwrap();
        let config = TpoConfig::mini(tokenizer.vocab_size());
        let samples = [
            Sample::new("s", "region", 1, 0),
            Sample::new("s", "chat", 1, 1),
        ];
        let device = Device::flex();
        let batch = collate(&samples, &config, &tokenizer, &device)
            .unwrap()
            .batch;
        batch.tokens.check().unwrap();
        let region = config.tasks.get("region").unwrap();
        assert_eq!(batch.tokens.positions_of(region.placeholder.id).len(), 1);
        let labels = batch.labels.unwrap();
        assert!(labels[0].contains(&i64::from(region.routing.id)));
        assert!(!labels[1].contains(&i64::from(region.routing.id)));
        for (row, ids) in labels.iter().zip(&batch.tokens.ids) {
            for (label, id) in row.iter().zip(ids) {
                assert!(*label == IGNORE_LABEL || *label == i64::from(*id));
            }
        }
        assert_eq!(batch.frames.unwrap().dims()[0], 2);
    }
}
