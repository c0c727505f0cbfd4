//! The base alone.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Gradients, Tensor};
use tpo::core::geometry::Packing;
use tpo::core::model::{CallOrder, GenerateOptions};
use tpo::core::traits::{LanguageModel, VisionEncoder, VisualInput};
use tpo::model::{Connector, Names};
use tpo::weights::PathStack;

use super::super::llm::cross_entropy;
use super::super::model::without_gradient;
use super::super::weights::compare_gradients;
use super::*;

impl Base {
    /// A part of a fixture: rows of its visuals, hidden states, logits, loss and gradients.
    fn part(
        &self,
        report: &mut Report,
        fixture: &Fixture,
        part: &str,
        images: Vec<VisualInput>,
        videos: Vec<VisualInput>,
    ) -> Result<Option<Gradients>, Failure> {
        let input = |name: &str| format!("in.{part}.{name}");
        let (ids, mask) = prompt_rows(fixture, &input("input_ids"), &input("attention_mask"))?;
        let visuals = self.in_order(&ids, images, videos)?;
        let rows = self.model.encode_visuals(visuals, None)?;
        for key in ["out", "mid"].map(|class| format!("{class}.{part}.packed")) {
            if let (true, Some(packed)) = (fixture.has(&key), &rows) {
                let [n, d] = packed.rows.dims();
                let visuals = match fixture.stored(&key)?.shape[..] {
                    [visuals, _, _] => vec![visuals, n / visuals],
                    _ => vec![n],
                };
                let shape = [visuals, vec![d]].concat();
                report.close_values(
                    fixture,
                    &key,
                    &shape,
                    &floats(packed.rows.clone())?,
                    |_| true,
                )?;
            }
        }
        let slots = ids
            .iter()
            .zip(&mask)
            .map(|(ids, mask)| self.slots(ids, mask));
        let slots: Vec<Vec<Slot>> = slots.collect();
        let embeds = self.embeds(&slots, rows.map(|r| r.rows));
        let logits = self.compare(report, fixture, part, embeds, &mask)?;
        let labels = input("labels");
        if !fixture.has(&labels) {
            return Ok(None);
        }
        let loss = cross_entropy(logits, &fixture.int_rows(&labels)?);
        report.close(fixture, &format!("out.{part}.loss"), loss.clone())?;
        let grads = loss.backward();
        let prefix = format!("grad.{part}.");
        compare_gradients(report, fixture, &prefix, &self.model, &self.keys, &grads)?;
        Ok(Some(grads))
    }
}

/// `ov_batch`: llava-hf's names, tied embeddings, whose gradient is the sum of both uses.
pub fn batch(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Base::open(fixture, Names::HuggingFace, &device.clone().autodiff())?;
    let sizes = sizes(fixture, "in.interleaved.image_sizes")?;
    for part in ["interleaved", "video", "two_videos", "one_frame", "text"] {
        let (mut images, mut videos) = (Vec::new(), Vec::new());
        match part {
            "interleaved" => {
                for (i, size) in sizes.iter().enumerate() {
                    let key = format!("in.interleaved.tiles_{i}");
                    images.extend(base.images(fixture, &key, &[*size])?);
                }
            }
            "video" | "two_videos" => videos = base.videos(fixture, "in.video.frames")?,
            "one_frame" => videos = base.videos(fixture, "in.one_frame.frames")?,
            _ => {}
        }
        let grads = base.part(&mut report, fixture, part, images, videos)?;
        if let ("text", Some(grads)) = (part, grads) {
            // What sees learns nothing from text.
            let listed = &fixture.json["text_no_grad"];
            without_gradient(&mut report, listed, &base.model, &base.keys, &grads);
        }
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// `hf_llava_onevision`: images of one tile and of several, a batch, a video, both in one prompt.
pub fn hugging_face(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let mut base = Base::open(fixture, Names::HuggingFace, &device.clone().autodiff())?;
    let image = |base: &Base| {
        let sizes = sizes(fixture, "in.image.image_sizes")?;
        base.images(fixture, "in.image.pixel_values", &sizes)
    };
    let video = |base: &Base| base.videos(fixture, "in.video.pixel_values_videos");
    for part in ["image", "multi", "batch", "video", "mixed"] {
        let sizes = |name: &str| sizes(fixture, &format!("in.{name}.image_sizes"));
        let images = match part {
            "image" | "mixed" => image(&base)?,
            "multi" => base.images(fixture, "in.multi.pixel_values", &sizes("multi")?)?,
            "batch" => {
                let second = &sizes("batch")?[1..];
                let second = base.images(fixture, "in.batch.pixel_values_2", second)?;
                [image(&base)?, second].concat()
            }
            _ => Vec::new(),
        };
        let videos = match part {
            "video" | "mixed" => video(&base)?,
            _ => Vec::new(),
        };
        base.part(&mut report, fixture, part, images, videos)?;
    }

    let tiles = base.clips(fixture, "in.image.pixel_values")?.remove(0);
    let features = base.model.vision.encode(tiles.unsqueeze())?;
    let projected = base
        .connector(base.packing.clone())?
        .project(features.clone())?;
    for (key, values) in [
        ("mid.image.vision", features),
        ("mid.image.projected", projected),
    ] {
        let [_, tokens, d] = values.dims();
        let tiles = fixture.stored(key)?.shape[0];
        report.close(fixture, key, values.reshape([tiles, tokens / tiles, d]))?;
    }

    // The same images, shrunk to fewer rows.
    base.packing = Packing {
        max_tiles: Some(2),
        ..base.packing
    };
    base.model.connector = Connector::OneVision(base.connector(base.packing.clone())?);
    let images = image(&base)?;
    base.part(&mut report, fixture, "image_max2", images, Vec::new())?;

    let base = Base::open(fixture, Names::HuggingFace, device)?;
    for (part, visuals) in [("image", image(&base)?), ("video", video(&base)?)] {
        let input = |name: &str| format!("in.{part}.{name}");
        let (ids, mask) = prompt_rows(fixture, &input("input_ids"), &input("attention_mask"))?;
        let key = format!("out.{part}.greedy_ids");
        let options = greedily(fixture, &key)?;
        let found = base.answers(base.prompts(&ids, &mask, visuals)?, options)?;
        report.equal(fixture, &key, &found.ids.concat())?;
    }
    report.nothing_left(fixture);
    Ok(report)
}

/// As many tokens as there are in `key`, none of which ends the answer.
pub fn greedily(fixture: &Fixture, key: &str) -> Result<GenerateOptions, Failure> {
    Ok(GenerateOptions {
        max_new_tokens: *fixture.stored(key)?.shape.last().unwrap_or(&0),
        stop: Vec::new(),
        call_order: CallOrder::AsReference,
        ..GenerateOptions::default()
    })
}

/// `ov_generate`: prompts of different lengths in one batch, and each alone.
pub fn generate(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Base::open(fixture, Names::HuggingFace, device)?;
    let (ids, mask) = prompt_rows(fixture, "in.input_ids", "in.attention_mask")?;
    let images = base.images(fixture, "in.tiles", &sizes(fixture, "in.image_sizes")?)?;
    let visuals = base.in_order(&ids, images, base.videos(fixture, "in.frames")?)?;
    let prompts = base.prompts(&ids, &mask, visuals)?;
    let options = greedily(fixture, "out.ids")?;
    let found = base.answers(prompts.clone(), options.clone())?;
    report.equal(fixture, "out.ids", &found.ids.concat())?;
    let shape = [
        ids.len(),
        options.max_new_tokens,
        base.model.llm.vocab_size(),
    ];
    let logits = found.logits.concat();
    report.close_values(fixture, "out.step_logits", &shape, &logits, |_| true)?;
    for (row, prompt) in prompts.iter().enumerate() {
        let alone = base.answers(vec![prompt.clone()], options.clone())?;
        report.expect(
            &format!("row {row} alone"),
            alone.ids[0] == found.ids[row],
            || format!("got {:?}, in the batch {:?}", alone.ids[0], found.ids[row]),
        );
    }

    let number = |key: &str| fixture.json[key].as_u64().ok_or(format!("no `{key}`"));
    let ending = GenerateOptions {
        stop: vec![number("eos")? as u32],
        ..options
    };
    let length = ending.max_new_tokens;
    let mut ended = base.answers(prompts, ending)?.ids;
    for row in &mut ended {
        row.resize(length, number("pad")? as i64);
    }
    report.equal(fixture, "out.ids_eos", &ended.concat())?;
    report.nothing_left(fixture);
    Ok(report)
}

/// `ov_small_amplitude`: the weights of `ov_batch`, some of which are small, which pins the epsilons.
pub fn small_amplitude(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let weights = Fixture::open(&fixture.dir, "ov_batch")?;
    let mut base = Base::open(&weights, Names::HuggingFace, device)?;
    let mut scale = Scale {
        path: PathStack::default(),
        factor: fixture.json["scale"].as_f64().ok_or("no `scale`")?,
    };
    base.model = base.model.map(&mut scale);
    let features = base.clips(fixture, "in.frames")?;
    let features = base.model.vision.encode(Tensor::stack(features, 0))?;
    let [clips, tokens, d] = features.dims();
    let pictures = fixture.stored("out.features")?.shape[0];
    let features = features.reshape([pictures, clips * tokens / pictures, d]);
    report.close(fixture, "out.features", features)?;
    let embeds = base
        .model
        .llm
        .embed(fixture.int_tensor("in.input_ids", device)?);
    let hidden = base.model.llm.hidden(embeds, None)?;
    report.close(fixture, "out.last_hidden", hidden.clone())?;
    report.close(fixture, "out.logits", base.model.llm.logits(hidden))?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Makes the parameters small that `ov_small_amplitude` says.
struct Scale {
    path: PathStack,
    factor: f64,
}

impl ModuleMapper for Scale {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let named = [
            "patch_embedding",
            "position_embedding",
            "embed_tokens",
            "image_newline",
            "linear_2",
            "out_proj.weight",
            "out_proj.bias",
            "fc2.weight",
            "fc2.bias",
            "o_proj.weight",
            "down_proj.weight",
        ];
        let path = self.path.path();
        let values = path.starts_with("vision.") && path.ends_with("v_proj.bias");
        if path.starts_with("heads.") || !(values || named.iter().any(|n| path.contains(n))) {
            return param;
        }
        let factor = self.factor;
        param.map(|tensor| tensor * factor)
    }
}
