//! LLaVA-OneVision fixtures: the base model under the names of its files, tower to logits.

use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use tpo::core::geometry::{Merge, Packing, Pooling, Tiling, UnpadRule, VideoNewline};
use tpo::core::head::HeadConfigs;
use tpo::core::prompt::Visual;
use tpo::core::traits::{
    Connector as _, LanguageModel, VisionEncoder, VisualInput, VisualRows, VisualShape,
};
use tpo::heads::mask::{MaskHead, MaskHeadConfig};
use tpo::heads::region::{RegionHead, RegionHeadConfig};
use tpo::heads::temporal::{TemporalHead, TemporalHeadConfig};
use tpo::llm::LlmConfig;
use tpo::model::{Connector, ConnectorConfig, Names, Tpo, VisionConfig};
use tpo::vision::{OneVisionConnectorConfig, SiglipConfig};
use tpo::weights::{Checkpoint, KeyScope, KeyTables, LoadOptions, load_module};
use tpo::{BuiltInHeads, TpoConfig};

use super::check::{Report, floats, gradients};
use super::fixture::{Failure, Fixture};
use super::llm::{cross_entropy, mask_rows};
use super::weights::{Stored, compare_gradients};

/// A position of a prompt.
#[derive(Clone, Copy)]
enum Slot {
    Text(i64),
    Visual,
    Padding,
}

struct Base {
    model: Tpo,
    keys: KeyTables<'static>,
    packing: Packing,
}

impl Base {
    /// The base model of a fixture, with heads that nothing is asked of.
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
        let heads = HeadConfigs::default()
            .with::<RegionHead>(&RegionHeadConfig::for_llm(d))?
            .with::<TemporalHead>(&TemporalHeadConfig::mini(d, d_vision).with_clip_seconds(0.5))?
            .with::<MaskHead>(&MaskHeadConfig::mini(d))?;
        let mut config = TpoConfig {
            heads,
            ..TpoConfig::nano(llm.vocab_size)
        };
        config.input.size = vision.image_size;
        config.vision = VisionConfig::Siglip(vision);
        config.connector = ConnectorConfig::OneVision(connector);
        config.llm = llm;
        let keys = config.keys_named::<BuiltInHeads>(names)?;
        let options = LoadOptions {
            scope: KeyScope::Part,
            allow_missing: vec![r"^(heads|task_tokens)\.".into()],
            ..LoadOptions::default()
        };
        let checkpoint = Checkpoint::open(fixture.weights_file())?;
        let model = config.init::<BuiltInHeads>(device)?;
        let (model, _) = load_module(model, &checkpoint, &Stored(&keys), &options)?;
        Ok(Self {
            model,
            keys,
            packing,
        })
    }

    /// Visuals of pictures that are stored as bytes.
    fn visual(
        &self,
        fixture: &Fixture,
        key: &str,
        kind: Visual,
        size: (u32, u32),
        device: &Device,
    ) -> Result<Vec<VisualInput>, Failure> {
        let shape = fixture.stored(key)?.shape.clone();
        let pixels = fixture.ints(key)?;
        let pixels: Vec<f32> = pixels.iter().map(|v| *v as f32 / 127.5 - 1.0).collect();
        let [.., pictures, channels, height, width] = shape[..] else {
            return Err(format!("`{key}` has the shape {shape:?}").into());
        };
        let count: usize = shape[..shape.len() - 4].iter().product();
        let all = TensorData::new(pixels, [count * pictures, channels, height, width]);
        let all = Tensor::<4>::from_data(all, device);
        let visual = |i: usize| VisualInput {
            pixels: all.clone().narrow(0, i * pictures, pictures),
            shape: VisualShape {
                kind,
                size,
                pictures,
            },
        };
        Ok((0..count).map(visual).collect())
    }

    /// Embeddings of a prompt, text and visual rows, with a graph of both. Padding is zero.
    fn embeds(&self, rows: &[Vec<Slot>], visual: Option<Tensor<2>>, device: &Device) -> Tensor<3> {
        let ids = rows.iter().flatten().filter_map(|slot| match slot {
            Slot::Text(id) => Some(*id),
            _ => None,
        });
        let ids: Vec<i64> = ids.collect();
        let texts = ids.len();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, texts]), device);
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
        let index =
            Tensor::<1, Int>::from_data(TensorData::new(index.clone(), [index.len()]), device);
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
        let real = mask.concat();
        for (name, tensor) in [("last_hidden", hidden), ("logits", logits.clone())] {
            let key = format!("out.{part}.{name}");
            let dims = tensor.dims();
            if name == "logits" || fixture.has(&key) {
                let values = floats(tensor)?;
                report.close_values(fixture, &key, &dims, &values, |at| real[at / dims[2]])?;
            }
        }
        Ok(logits)
    }
}

fn slots(ids: &[i64], mask: &[bool], marks: &[i64]) -> Vec<Slot> {
    let slot = |(id, real): (&i64, &bool)| match (real, marks.contains(id)) {
        (false, _) => Slot::Padding,
        (_, true) => Slot::Visual,
        (_, false) => Slot::Text(*id),
    };
    ids.iter().zip(mask).map(slot).collect()
}

/// `ov_batch`: llava-hf's names, tied embeddings, whose gradient is the sum of both uses.
pub fn batch(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let device = device.clone().autodiff();
    let base = Base::open(fixture, Names::HuggingFace, &device)?;
    let json = fixture.config();
    let marks = ["image_token_index", "video_token_index"].map(|k| json[k].as_i64().unwrap_or(-1));
    let sizes = fixture.int_rows("in.interleaved.image_sizes")?;
    let sizes: Vec<(u32, u32)> = sizes.iter().map(|s| (s[1] as u32, s[0] as u32)).collect();
    let tile = base.packing.tiling.tile;
    for part in ["interleaved", "video", "two_videos", "one_frame", "text"] {
        let video = |key: &str| base.visual(fixture, key, Visual::Video, (tile, tile), &device);
        let visuals = match part {
            "interleaved" => {
                let mut visuals = Vec::new();
                for (i, size) in sizes.iter().enumerate() {
                    let key = format!("in.interleaved.tiles_{i}");
                    let pictures = fixture.stored(&key)?.shape[0];
                    let image = base.visual(fixture, &key, Visual::Image, *size, &device)?;
                    if image.len() != 1 || image[0].shape.pictures != pictures {
                        return Err(format!("`{key}` is not one image").into());
                    }
                    visuals.extend(image);
                }
                visuals
            }
            "video" | "two_videos" => video("in.video.frames")?,
            "one_frame" => video("in.one_frame.frames")?,
            _ => Vec::new(),
        };
        let rows = base.model.encode_visuals(visuals, None)?;
        if let ("video", Some(VisualRows { rows, counts })) = (part, &rows) {
            let [_, d] = rows.dims();
            let packed = rows.clone().reshape([counts.len(), counts[0], d]);
            report.close(fixture, "out.video.packed", packed)?;
        }
        let ids = fixture.int_rows(&format!("in.{part}.input_ids"))?;
        let mask_key = format!("in.{part}.attention_mask");
        let mask = if fixture.has(&mask_key) {
            mask_rows(fixture, &mask_key)?
        } else {
            ids.iter().map(|row| vec![true; row.len()]).collect()
        };
        let prompt = ids
            .iter()
            .zip(&mask)
            .map(|(ids, mask)| slots(ids, mask, &marks));
        let prompt: Vec<Vec<Slot>> = prompt.collect();
        let embeds = base.embeds(&prompt, rows.map(|r| r.rows), &device);
        let logits = base.compare(&mut report, fixture, part, embeds, &mask)?;
        let labels = format!("in.{part}.labels");
        if !fixture.has(&labels) {
            continue;
        }
        let loss = cross_entropy(logits, &fixture.int_rows(&labels)?);
        report.close(fixture, &format!("out.{part}.loss"), loss.clone())?;
        let grads = loss.backward();
        let prefix = format!("grad.{part}.");
        compare_gradients(
            &mut report,
            fixture,
            &prefix,
            &base.model,
            &base.keys,
            &grads,
        )?;
        if part == "text" {
            nothing_seen(&mut report, fixture, &base, &grads);
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// What sees learns nothing from text.
fn nothing_seen(report: &mut Report, fixture: &Fixture, base: &Base, grads: &Gradients) {
    use tpo::weights::{KeyMap, KeyTarget};
    let found = gradients(&base.model, grads);
    let listed = fixture.json["text_no_grad"].as_array();
    for key in listed.into_iter().flatten().filter_map(|k| k.as_str()) {
        if let KeyTarget::Path(path) = base.keys.module_path(key) {
            let zero = found
                .get(&path)
                .is_none_or(|(_, v)| v.iter().all(|g| *g == 0.0));
            report.expect(&format!("no gradient {key}"), zero, || {
                "it got a gradient from text".into()
            });
        }
    }
}

/// `ov_original`: lmms-lab's names and code, one mark in the place of a visual.
pub fn original(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let device = device.clone().autodiff();
    let base = Base::open(fixture, Names::Original, &device)?;
    let sizes = fixture.int_rows("in.image_sizes")?;
    let size = |i: usize| (sizes[i][1] as u32, sizes[i][0] as u32);
    let mut visuals = Vec::new();
    for (i, (key, kind)) in [
        ("in.tiles_0", Visual::Image),
        ("in.frames_1", Visual::Video),
        ("in.tiles_2", Visual::Image),
        ("in.tiles_3", Visual::Image),
    ]
    .into_iter()
    .enumerate()
    {
        visuals.extend(base.visual(fixture, key, kind, size(i), &device)?);
    }
    variants(&mut report, fixture, &base, &visuals)?;
    let rows = base.model.encode_visuals(visuals, None)?.ok_or("no rows")?;

    // The mark becomes as many slots as the visual has rows; labels there are none.
    let (ids, labels) = (
        fixture.int_rows("in.input_ids")?,
        fixture.int_rows("in.labels")?,
    );
    let real = mask_rows(fixture, "in.attention_mask")?;
    let mut counts = rows.counts.iter();
    let mut prompts: Vec<Vec<(Slot, i64)>> = Vec::new();
    for row in 0..ids.len() {
        let mut prompt = Vec::new();
        for at in (0..ids[row].len()).filter(|at| real[row][*at]) {
            match ids[row][at] {
                -200 => {
                    let count = counts.next().ok_or("more marks than visuals")?;
                    prompt.extend(vec![(Slot::Visual, -100); *count]);
                }
                id => prompt.push((Slot::Text(id), labels[row][at])),
            }
        }
        prompts.push(prompt);
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let cut = fixture.usize("max_length_cut")?;
    for (part, length, left) in [
        ("right", longest, false),
        ("left", longest, true),
        ("cut", cut, false),
    ] {
        let whole = prompts.iter().map(|prompt| {
            let mut row = prompt.clone();
            row.truncate(length);
            let padding = vec![(Slot::Padding, -100); length - row.len()];
            if left {
                [padding, row].concat()
            } else {
                [row, padding].concat()
            }
        });
        let whole: Vec<Vec<(Slot, i64)>> = whole.collect();
        let mask: Vec<Vec<bool>> = whole
            .iter()
            .map(|row| {
                row.iter()
                    .map(|(slot, _)| !matches!(slot, Slot::Padding))
                    .collect()
            })
            .collect();
        let labels: Vec<Vec<i64>> = whole
            .iter()
            .map(|row| row.iter().map(|(_, label)| *label).collect())
            .collect();
        let flags: Vec<i64> = mask.iter().flatten().map(|real| i64::from(*real)).collect();
        report.equal(fixture, &format!("out.{part}.attention_mask"), &flags)?;
        report.equal(fixture, &format!("out.{part}.labels"), &labels.concat())?;
        let slots = whole
            .iter()
            .map(|row| row.iter().map(|(slot, _)| *slot).collect());
        let slots: Vec<Vec<Slot>> = slots.collect();
        // A cut row leaves visual rows over.
        let kept = kept_rows(&prompts, length, rows.rows.clone());
        let embeds = base.embeds(&slots, Some(kept), &device);
        report.close(fixture, &format!("out.{part}.embeds"), embeds.clone())?;
        let logits = base.compare(&mut report, fixture, part, embeds, &mask)?;
        let loss = cross_entropy(logits, &labels);
        report.close(fixture, &format!("out.{part}.loss"), loss.clone())?;
        if part == "right" {
            let grads = loss.backward();
            compare_gradients(
                &mut report,
                fixture,
                "grad.",
                &base.model,
                &base.keys,
                &grads,
            )?;
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// The visual rows of prompts that are cut after so many positions.
fn kept_rows(prompts: &[Vec<(Slot, i64)>], length: usize, rows: Tensor<2>) -> Tensor<2> {
    let all = prompts.iter().flat_map(|p| p.iter().enumerate());
    let visual = all.filter(|(_, (slot, _))| matches!(slot, Slot::Visual));
    let kept = visual.zip(0_i64..).filter(|((at, _), _)| *at < length);
    let kept: Vec<i64> = kept.map(|(_, row)| row).collect();
    let index = TensorData::new(kept.clone(), [kept.len()]);
    let index = Tensor::<1, Int>::from_data(index, &rows.device());
    rows.select(0, index)
}

/// Other ways to make rows of the first image and the video.
fn variants(
    report: &mut Report,
    fixture: &Fixture,
    base: &Base,
    visuals: &[VisualInput],
) -> Result<(), Failure> {
    let Connector::OneVision(published) = &base.model.connector else {
        return Err("another connector".into());
    };
    let ours = &base.packing;
    let images = [
        ("spatial_unpad.anyres", Merge::SpatialUnpad, None),
        ("spatial.anyres", Merge::Spatial, None),
        ("spatial_unpad.anyres_max_4", Merge::SpatialUnpad, Some(4)),
        (
            "spatial_unpad_nobase.anyres_max_9",
            Merge::SpatialUnpadNobase,
            Some(9),
        ),
        ("flat.anyres_max_9", Merge::Flat, Some(9)),
    ];
    let images = images.map(|(name, merge, max_tiles)| {
        let packing = Packing {
            merge,
            max_tiles,
            ..ours.clone()
        };
        (format!("out.image.{name}"), packing, 0)
    });
    let videos = [
        (
            "bilinear.one_token",
            Pooling::Bilinear,
            VideoNewline::OneToken,
        ),
        ("bilinear.grid", Pooling::Bilinear, VideoNewline::Grid),
        ("bilinear.frame", Pooling::Bilinear, VideoNewline::Frame),
        (
            "bilinear.no_token",
            Pooling::Bilinear,
            VideoNewline::NoToken,
        ),
        (
            "average.one_token",
            Pooling::Average,
            VideoNewline::OneToken,
        ),
        ("max.one_token", Pooling::Max, VideoNewline::OneToken),
    ];
    let videos = videos.map(|(name, pooling, newline)| {
        let packing = Packing {
            pooling,
            newline,
            ..ours.clone()
        };
        (format!("out.video.{name}"), packing, 1)
    });
    for (key, packing, visual) in images.into_iter().chain(videos) {
        let VisualInput { pixels, shape } = visuals[visual].clone();
        let features = base.model.vision.encode(pixels.unsqueeze())?;
        let (_, d_vision) = published.linear_1.shape();
        let (d, _) = published.linear_2.shape();
        let config = OneVisionConnectorConfig::new(d_vision, d, packing);
        let mut connector = config.init(&features.device())?;
        connector.linear_1 = published.linear_1.clone();
        connector.linear_2 = published.linear_2.clone();
        connector.image_newline = published.image_newline.clone();
        let rows = connector.connect(features, &[shape], None)?;
        report.close(fixture, &key, rows.rows)?;
    }
    Ok(())
}
