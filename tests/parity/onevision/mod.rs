//! LLaVA-OneVision fixtures: the model under the names of its files, tower to logits and task heads.

mod base;
mod heads;
mod original;
mod parts;

use std::sync::mpsc::channel;

use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo::core::geometry::{Packing, Tiling, UnpadRule};
use tpo::core::head::{HeadConfigs, Sample};
use tpo::core::model::{GenerateEvent, GenerateOptions, GenerateRow, TokenBatch};
use tpo::core::prompt::Visual;
use tpo::core::traits::{LanguageModel, VisualInput, VisualShape};
use tpo::heads::mask::{MaskHead, MaskHeadConfig};
use tpo::heads::region::{RegionHead, RegionHeadConfig};
use tpo::heads::temporal::{TemporalHead, TemporalHeadConfig};
use tpo::llm::LlmConfig;
use tpo::model::{Connector, ConnectorConfig, Names, Tpo, VisionConfig};
use tpo::vision::{OneVisionConnector, OneVisionConnectorConfig, SiglipConfig};
use tpo::weights::{Checkpoint, KeyMap, KeyScope, KeyTables, KeyTarget, LoadOptions, load_module};
use tpo::{BuiltInHeads, TpoConfig};

pub use base::{batch, generate, hugging_face, small_amplitude};
pub use heads::{forward, routed};
pub use original::original;
pub use parts::{geometry, images, pool, preprocess, siglip, siglip_pixels};

use super::boxes::mlp;
use super::check::{Report, floats};
use super::fixture::{Failure, Fixture, Values};
use super::llm::mask_rows;
use super::model::{greedy, tasks};
use super::weights::Stored;

/// A position of a prompt.
#[derive(Clone, Copy)]
enum Slot {
    Text(i64),
    Visual,
    Padding,
}

/// The names of a base, in whose fixtures what TPO adds to it is below `tpo.`.
struct Keys(KeyTables<'static>);

impl KeyMap for Keys {
    fn module_path(&self, key: &str) -> KeyTarget {
        self.0.module_path(key.strip_prefix("tpo.").unwrap_or(key))
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        let added = path.starts_with("heads.") || path.starts_with("task_tokens.");
        let key = self.0.checkpoint_key(path, has)?;
        Some(format!("{}{key}", if added { "tpo." } else { "" }))
    }
}

/// A model of a fixture, and what its prompts say.
struct Base {
    model: Tpo,
    keys: Keys,
    packing: Packing,
    /// The ids in the places of images and of videos.
    marks: [i64; 2],
    device: Device,
}

/// What a model answers to every prompt of a batch.
struct Answers {
    ids: Vec<Vec<i64>>,
    /// `[ids, vocab]`, what each id was chosen from.
    logits: Vec<Vec<f32>>,
    /// The embeddings of the tasks that were called.
    tasks: Vec<Vec<Tensor<2>>>,
}

impl Base {
    /// The model of a fixture. Heads that are not in it are there, and nothing is asked of them.
    fn open(fixture: &Fixture, names: Names, device: &Device) -> Result<Self, Failure> {
        let json = fixture.config();
        let vision = SiglipConfig::from_hf_json(&json["vision_config"])?;
        let mut text = json["text_config"].clone();
        text["model_type"] = "qwen2".into();
        let llm = LlmConfig::from_hf_json(&text.to_string())?;
        let unpad = match names {
            Names::Original => UnpadRule::Original,
            _ => UnpadRule::HuggingFace,
        };
        let packing = Packing {
            side: vision.grid(),
            tiling: Tiling {
                tile: u32::try_from(vision.image_size)?,
                pinpoints: serde_json::from_value(json["image_grid_pinpoints"].clone())?,
            },
            ..Packing::one_vision(unpad)
        };
        let (d_vision, d) = (vision.hidden_size, llm.hidden_size);
        let connector = OneVisionConnectorConfig::new(d_vision, d, packing.clone());
        let mut region = RegionHeadConfig::for_llm(d);
        if let Ok(stored) = fixture.stored("w.tpo.loc_decoder.0.weight") {
            region.hidden = stored.shape[0];
        }
        let heads = HeadConfigs::default()
            .with::<RegionHead>(&region)?
            .with::<TemporalHead>(&TemporalHeadConfig::mini(d, d_vision).with_clip_seconds(0.5))?
            .with::<MaskHead>(&MaskHeadConfig::mini(d))?;
        let mut config = TpoConfig {
            heads,
            ..TpoConfig::nano(llm.vocab_size)
        };
        let (ids, vocab) = (&fixture.json["task_ids"], llm.vocab_size);
        if ids.is_object() {
            config.tasks = tasks(|token| ids[format!("<{token}>")].as_u64())?;
        }
        config.input.size = vision.image_size;
        config.vision = VisionConfig::Siglip(vision);
        config.connector = ConnectorConfig::OneVision(connector);
        config.llm = llm;
        let keys = Keys(config.keys_named::<BuiltInHeads>(names)?);
        let options = LoadOptions {
            scope: KeyScope::Part,
            allow_missing: vec![r"^(heads|task_tokens)\.".into()],
            ..LoadOptions::default()
        };
        let file = fixture.weights_file();
        let mut model = config.init::<BuiltInHeads>(device)?;
        if fixture.has("w.tpo.track_embed.layers.0.weight") {
            // Made for a SAM 2 that is not in the fixture.
            let mask = &mut model.heads.mask;
            mask.track_embed = mlp(&file, "tpo.track_embed", device)?;
            mask.track_embed_decode2 = mlp(&file, "tpo.track_embed_decode2", device)?;
        }
        let checkpoint = Checkpoint::open(file)?;
        let (model, _) = load_module(model, &checkpoint, &Stored(&keys), &options)?;
        let model = if ids.is_object() {
            model
        } else {
            // No id of a base alone calls a head.
            let beyond = tasks(|token| {
                let all = [
                    "box_begin",
                    "time_begin",
                    "track_begin",
                    "boxes",
                    "temp",
                    "tracking",
                ];
                let at = all.iter().position(|name| *name == token);
                Some((vocab + at.unwrap_or(all.len())) as u64)
            })?;
            Tpo::new(
                model.vision,
                model.connector,
                model.llm,
                model.heads,
                beyond,
                device,
            )?
        };
        let mark = |key: &str| json[key].as_i64().unwrap_or(-1);
        Ok(Self {
            model,
            keys,
            packing,
            marks: ["image_token_index", "video_token_index"].map(mark),
            device: device.clone(),
        })
    }

    /// The connector with other rows.
    fn connector(&self, packing: Packing) -> Result<OneVisionConnector, Failure> {
        let Connector::OneVision(published) = &self.model.connector else {
            return Err("another connector".into());
        };
        let (_, d_vision) = published.linear_1.shape();
        let (d, _) = published.linear_2.shape();
        let config = OneVisionConnectorConfig::new(d_vision, d, packing);
        let mut connector = config.init(&self.device)?;
        connector.linear_1 = published.linear_1.clone();
        connector.linear_2 = published.linear_2.clone();
        connector.image_newline = published.image_newline.clone();
        Ok(connector)
    }

    /// Images of these sizes.
    fn images(
        &self,
        fixture: &Fixture,
        key: &str,
        sizes: &[(u32, u32)],
    ) -> Result<Vec<VisualInput>, Failure> {
        let clips = self.clips(fixture, key)?;
        if clips.len() != sizes.len() {
            let count = clips.len();
            return Err(format!("`{key}` holds {count} images, {} have sizes", sizes.len()).into());
        }
        let images = clips.into_iter().zip(sizes);
        Ok(images
            .map(|(pixels, size)| visual(pixels, Visual::Image, *size))
            .collect())
    }

    fn videos(&self, fixture: &Fixture, key: &str) -> Result<Vec<VisualInput>, Failure> {
        let tile = self.packing.tiling.tile;
        let clips = self.clips(fixture, key)?.into_iter();
        Ok(clips
            .map(|pixels| visual(pixels, Visual::Video, (tile, tile)))
            .collect())
    }

    /// Stored pictures, `[pictures, 3, side, side]` of each visual. Bytes become pixel values.
    fn clips(&self, fixture: &Fixture, key: &str) -> Result<Vec<Tensor<4>>, Failure> {
        let stored = fixture.stored(key)?;
        let shape = stored.shape.clone();
        let mut pixels = fixture.floats(key)?;
        if let Values::Int(_) = stored.values {
            pixels.iter_mut().for_each(|v| *v = *v / 127.5 - 1.0);
        }
        let [.., pictures, channels, height, width] = shape[..] else {
            return Err(format!("`{key}` has the shape {shape:?}").into());
        };
        let count: usize = shape[..shape.len() - 4].iter().product();
        let all = TensorData::new(pixels, [count * pictures, channels, height, width]);
        let all = Tensor::<4>::from_data(all, &self.device);
        let clip = |i: usize| all.clone().narrow(0, i * pictures, pictures);
        Ok((0..count).map(clip).collect())
    }

    /// Images and videos in the order in which prompts have their marks, one for each row of a visual.
    fn in_order(
        &self,
        ids: &[Vec<i64>],
        images: Vec<VisualInput>,
        videos: Vec<VisualInput>,
    ) -> Result<Vec<VisualInput>, Failure> {
        let mut waiting = [images.into_iter(), videos.into_iter()];
        let mut found = Vec::new();
        for row in ids {
            let mut at = 0;
            while at < row.len() {
                match self.marks.iter().position(|mark| *mark == row[at]) {
                    None => at += 1,
                    Some(kind) => {
                        let next = waiting[kind].next().ok_or("more marks than visuals")?;
                        at += self.packing.rows(&next.shape)?;
                        found.push(next);
                    }
                }
            }
        }
        if waiting.iter_mut().any(|left| left.next().is_some()) {
            return Err("more visuals than marks".into());
        }
        Ok(found)
    }

    fn slots(&self, ids: &[i64], mask: &[bool]) -> Vec<Slot> {
        let slot = |(id, real): (&i64, &bool)| match (real, self.marks.contains(id)) {
            (false, _) => Slot::Padding,
            (_, true) => Slot::Visual,
            (_, false) => Slot::Text(*id),
        };
        ids.iter().zip(mask).map(slot).collect()
    }

    /// Rows of a batch as the model reads them.
    fn tokens(&self, ids: &[Vec<i64>], mask: &[Vec<bool>]) -> TokenBatch {
        let each = |row: &Vec<i64>| row.iter().map(|id| *id as u32).collect();
        let marked = |row: &Vec<i64>| row.iter().map(|id| self.marks.contains(id)).collect();
        TokenBatch {
            ids: ids.iter().map(each).collect(),
            visual: ids.iter().map(marked).collect(),
            mask: mask.to_vec(),
            turns: Vec::new(),
        }
    }

    /// Embeddings `[1, length, d_llm]` of each row without its padding.
    fn prompts(
        &self,
        ids: &[Vec<i64>],
        mask: &[Vec<bool>],
        visuals: Vec<VisualInput>,
    ) -> Result<Vec<Tensor<3>>, Failure> {
        let mut visuals = visuals.into_iter();
        let mut prompts = Vec::new();
        for (ids, mask) in ids.iter().zip(mask) {
            let real = ids.iter().zip(mask).filter(|(_, real)| **real);
            let row: Vec<i64> = real.map(|(id, _)| *id).collect();
            let (mut own, mut left) = (Vec::new(), row.clone());
            left.retain(|id| self.marks.contains(id));
            let mut left = left.len();
            while left > 0 {
                let next = visuals.next().ok_or("more marks than visuals")?;
                left = left.saturating_sub(self.packing.rows(&next.shape)?);
                own.push(next);
            }
            let tokens = self.tokens(std::slice::from_ref(&row), &[vec![true; row.len()]]);
            let rows = self.model.encode_visuals(own, None)?;
            prompts.push(self.model.embed(&tokens, rows, &[], &self.device)?);
        }
        Ok(prompts)
    }

    /// The likeliest ids after prompts, in one batch.
    fn answers(
        &self,
        prompts: Vec<Tensor<3>>,
        options: GenerateOptions,
    ) -> Result<Answers, Failure> {
        let (send, seen) = channel();
        let count = prompts.len();
        let row = |(row, prompt)| {
            let send = send.clone();
            GenerateRow {
                prompt,
                sample: Sample::default(),
                force: Vec::new(),
                choose: move |logits: &[f32], chosen: &[u32]| {
                    let _ = send.send((row, logits.to_vec()));
                    greedy(logits, chosen)
                },
            }
        };
        let rows = prompts.into_iter().enumerate().map(row).collect();
        let mut found = Answers {
            ids: vec![Vec::new(); count],
            logits: vec![Vec::new(); count],
            tasks: vec![Vec::new(); count],
        };
        for event in self.model.generate(rows, options)? {
            let (row, event) = event?;
            match event? {
                GenerateEvent::Token(id) => found.ids[row].push(id.into()),
                GenerateEvent::Task { embedding, .. } => found.tasks[row].push(embedding),
                // The fixtures have no videos for heads.
                GenerateEvent::NoHead { .. } | GenerateEvent::Unanswered { .. } => {}
            }
        }
        drop(send);
        for (row, logits) in seen {
            let row: usize = row;
            found.logits[row].extend::<Vec<f32>>(logits);
        }
        Ok(found)
    }

    /// Embeddings of a prompt, text and visual rows, with a graph of both. Padding is zero.
    fn embeds(&self, rows: &[Vec<Slot>], visual: Option<Tensor<2>>) -> Tensor<3> {
        let ids = rows.iter().flatten().filter_map(|slot| match slot {
            Slot::Text(id) => Some(*id),
            _ => None,
        });
        let ids: Vec<i64> = ids.collect();
        let texts = ids.len();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, texts]), &self.device);
        let text: Tensor<2> = self.model.llm.embed(ids).squeeze_dim(0);
        let d = text.dims()[1];
        let mut parts = vec![text.zeros_like().narrow(0, 0, 1), text];
        parts.extend(visual);
        let (mut next_text, mut next_visual) = (1, 1 + texts as i64);
        let index = rows.iter().flatten().map(|slot| {
            let next = match slot {
                Slot::Padding => return 0,
                Slot::Text(_) => &mut next_text,
                Slot::Visual => &mut next_visual,
            };
            *next += 1;
            *next - 1
        });
        let index: Vec<i64> = index.collect();
        let shape = [rows.len(), rows[0].len(), d];
        let index = Tensor::<1, Int>::from_data(
            TensorData::new(index.clone(), [index.len()]),
            &self.device,
        );
        Tensor::cat(parts, 0).select(0, index).reshape(shape)
    }

    /// Compares hidden states and logits of a batch with `out.{part}.*`, and gives the logits.
    fn compare(
        &self,
        report: &mut Report,
        fixture: &Fixture,
        part: &str,
        embeds: Tensor<3>,
        mask: &[Vec<bool>],
    ) -> Result<Tensor<3>, Failure> {
        let hidden = self.model.llm.hidden(embeds, Some(mask))?;
        let logits = self.model.llm.logits(hidden.clone());
        let key = format!("out.{part}.last_hidden");
        if fixture.has(&key) {
            real(report, fixture, &key, hidden, mask)?;
        }
        real(
            report,
            fixture,
            &format!("out.{part}.logits"),
            logits.clone(),
            mask,
        )?;
        Ok(logits)
    }
}

/// Compares the positions of a batch that are not padding.
fn real(
    report: &mut Report,
    fixture: &Fixture,
    key: &str,
    values: Tensor<3>,
    mask: &[Vec<bool>],
) -> Result<(), Failure> {
    let dims = values.dims();
    let mask = mask.concat();
    report.close_values(fixture, key, &dims, &floats(values)?, |at| {
        mask[at / dims[2]]
    })
}

fn visual(pixels: Tensor<4>, kind: Visual, size: (u32, u32)) -> VisualInput {
    let shape = VisualShape {
        kind,
        size,
        pictures: pixels.dims()[0],
    };
    VisualInput { pixels, shape }
}

/// Width and height of images, of which fixtures say the height first.
fn sizes(fixture: &Fixture, key: &str) -> Result<Vec<(u32, u32)>, Failure> {
    let rows = fixture.int_rows(key)?;
    Ok(rows.iter().map(|s| (s[1] as u32, s[0] as u32)).collect())
}

/// Ids, and which of them are not padding.
type PromptRows = (Vec<Vec<i64>>, Vec<Vec<bool>>);

/// The rows of a batch.
fn prompt_rows(fixture: &Fixture, ids: &str, mask: &str) -> Result<PromptRows, Failure> {
    let ids = fixture.int_rows(ids)?;
    let mask = if fixture.has(mask) {
        mask_rows(fixture, mask)?
    } else {
        ids.iter().map(|row| vec![true; row.len()]).collect()
    };
    Ok((ids, mask))
}
