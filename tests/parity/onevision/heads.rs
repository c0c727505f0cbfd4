//! Task heads on the base: our composition, which nobody has published.

use tpo::core::geometry::BoxXyxy;
use tpo::core::head::TargetSet;
use tpo::core::model::{CallOrder, TpoBatch};
use tpo::core::ops::indices;

use super::super::llm::cross_entropy;
use super::super::model::without_gradient;
use super::super::weights::compare_gradients;
use super::base::greedily;
use super::*;

/// Stored boxes `[n, 4]`.
fn boxes(fixture: &Fixture, key: &str) -> Result<Vec<BoxXyxy>, Failure> {
    let flat = fixture.floats(key)?;
    let corners = flat.chunks_exact(4);
    Ok(corners
        .map(|b| BoxXyxy::from([b[0], b[1], b[2], b[3]]))
        .collect())
}

/// `ov_tpo_forward`: answers with boxes, a track and a time. In place of the temporal head's loss the
/// fixture has one that is linear in what the head reads, and the mask head learns given tokens.
pub fn forward(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Base::open(fixture, Names::HuggingFace, &device.clone().autodiff())?;
    let (model, device) = (&base.model, &base.device);
    let (ids, mask) = prompt_rows(fixture, "in.input_ids", "in.attention_mask")?;
    let labels = fixture.int_rows("in.labels")?;
    let tokens = base.tokens(&ids, &mask);
    let images = base.images(fixture, "in.tiles", &sizes(fixture, "in.image_sizes")?)?;
    let prompt = model
        .registry()
        .box_prompt
        .as_ref()
        .ok_or("no box prompt")?;
    let mut asked = boxes(fixture, "in.input_boxes")?.into_iter();
    let mut of_row = |row: &Vec<u32>| -> Vec<BoxXyxy> {
        let count = row.iter().filter(|id| **id == prompt.id).count();
        asked.by_ref().take(count).collect()
    };
    let mut batch = TpoBatch::new(tokens.clone(), device);
    batch.visuals = base.in_order(&ids, images, base.videos(fixture, "in.frames")?)?;
    batch.boxes = tokens.ids.iter().map(&mut of_row).collect();
    batch.labels = Some(labels.clone());
    batch.targets = TargetSet::new().with("region", boxes(fixture, "in.output_boxes")?);
    let out = model.forward(batch, &vec![Sample::default(); ids.len()])?;
    real(
        &mut report,
        fixture,
        "out.embeds",
        out.embeds.clone(),
        &mask,
    )?;
    real(
        &mut report,
        fixture,
        "out.last_hidden",
        out.hidden.clone(),
        &mask,
    )?;
    let logits = model.llm.logits(out.hidden.clone());
    real(&mut report, fixture, "out.logits", logits.clone(), &mask)?;
    let lm_loss = out.lm_loss.clone().ok_or("no LM loss")?;
    report.close(fixture, "out.lm_loss", lm_loss)?;
    // The model computes logits only where there are labels; the long way must agree.
    report.close(fixture, "out.lm_loss", cross_entropy(logits, &labels))?;

    let [b, s, d] = out.hidden.dims();
    let states = |task: &str| -> Result<Tensor<2>, Failure> {
        let at = tokens.positions_of(model.registry().require(task)?.placeholder.id);
        let flat = out.hidden.clone().reshape([b * s, d]);
        Ok(flat.select(0, indices(at, device)))
    };
    let (region, temporal, tracking) = (states("region")?, states("temporal")?, states("mask")?);
    for (name, states) in [
        ("boxes", &region),
        ("temp", &temporal),
        ("tracking", &tracking),
    ] {
        report.close(fixture, &format!("out.task_hidden.{name}"), states.clone())?;
    }
    report.close(
        fixture,
        "out.boxes",
        model.heads.region.decoder.forward(region),
    )?;
    let called: Vec<&str> = out
        .head_losses
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    report.expect("heads", called == ["region"], || {
        format!("{called:?} had losses")
    });
    let box_loss = out.head_losses.first().and_then(|(_, terms)| terms.total());
    report.close(fixture, "out.box_loss", box_loss.ok_or("no box loss")?)?;

    let target = fixture.tensor::<3>("in.prompt_target", device)?;
    let prompt = model.heads.mask.track_embed.forward(tracking.clone());
    let prompt = prompt.reshape(target.dims());
    let area = model.heads.mask.track_embed_decode2.forward(tracking);
    report.close(fixture, "out.prompt", prompt.clone())?;
    report.close(fixture, "out.track_box", area.clone())?;
    let true_area = fixture.tensor::<2>("in.input_boxes", device)?;
    let mask_loss = (prompt - target).abs().mean() + (area - true_area).abs().mean();
    report.close(fixture, "out.mask_loss", mask_loss.clone())?;
    let cotangent = fixture.tensor::<2>("in.temporal_cotangent", device)?;
    let temporal_loss = (temporal * cotangent).sum() / d as f64;
    report.close(fixture, "out.temporal_loss", temporal_loss.clone())?;
    let loss = out.total().ok_or("no loss")? + mask_loss + temporal_loss;
    report.close(fixture, "out.loss", loss.clone())?;

    let grads = loss.backward();
    compare_gradients(&mut report, fixture, "grad.", model, &base.keys, &grads)?;
    let listed = &fixture.json["params_without_grad"];
    without_gradient(&mut report, listed, model, &base.keys, &grads);
    report.nothing_left(fixture);
    Ok(report)
}

/// `ov_tpo_generate`: an answer that calls the region head, in both call orders.
pub fn routed(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let base = Base::open(fixture, Names::HuggingFace, device)?;
    let (ids, mask) = prompt_rows(fixture, "in.input_ids", "in.attention_mask")?;
    let prompts = base.prompts(&ids, &mask, base.videos(fixture, "in.frames")?)?;
    for (name, call_order) in [
        ("as_reference", CallOrder::AsReference),
        ("as_trained", CallOrder::AsTrained),
    ] {
        let key = format!("out.{name}.ids");
        let options = GenerateOptions {
            call_order,
            ..greedily(fixture, &key)?
        };
        let found = base.answers(prompts.clone(), options)?;
        report.equal(fixture, &key, &found.ids.concat())?;
        let called = found.tasks.concat();
        if called.is_empty() {
            return Err(format!("no task was called ({name})").into());
        }
        let key = format!("out.{name}.task_hidden");
        report.close(fixture, &key, Tensor::cat(called, 0))?;
    }
    report.nothing_left(fixture);
    Ok(report)
}
