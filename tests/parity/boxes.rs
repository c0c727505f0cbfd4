//! Box, span and assignment fixtures, and the units of the region head.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use ndarray::Array2;
use tpo::core::geometry::{Mask, assignment, box_ops, span_ops};
use tpo::core::nn::{Mlp, MlpConfig};
use tpo::heads::region::{RegionHeadConfig, RegionLossWeights, region_loss};
use tpo::weights::{Checkpoint, KeyRules};

use super::check::Report;
use super::fixture::{Failure, Fixture};
use super::model::{region_rules, weights_of};
use super::weights::{Stored, load_from};

pub fn box_ops(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let get = |key: &str| fixture.tensor::<2>(key, device);
    for kind in ["random", "pixel", "degenerate"] {
        let (a, b) = (get(&format!("in.{kind}.a"))?, get(&format!("in.{kind}.b"))?);
        let n = a.dims()[0].min(b.dims()[0]);
        let rows = |t: &Tensor<2>| t.clone().slice([0..n, 0..4]);
        let (ra, rb) = (rows(&a), rows(&b));
        let out = |name: &str| format!("out.{kind}.{name}");
        report.close(fixture, &out("area_a"), box_ops::area(a.clone()))?;
        report.close(fixture, &out("iou"), box_ops::iou(a.clone(), b.clone()))?;
        report.close(
            fixture,
            &out("giou"),
            box_ops::generalized_iou(a.clone(), b.clone()),
        )?;
        let iou = box_ops::iou_aligned(ra.clone(), rb.clone());
        report.close(fixture, &out("iou_diag"), iou)?;
        let giou = box_ops::generalized_iou_aligned(ra.clone(), rb.clone());
        report.close(fixture, &out("giou_diag"), giou)?;
        let loss = box_ops::generalized_iou_loss(ra, rb);
        report.close(fixture, &out("giou_loss_elementwise"), loss)?;
    }
    let xyxy = get("in.random.a")?;
    let to_cxcywh = box_ops::xyxy_to_cxcywh(xyxy.clone());
    report.close(fixture, "out.cxcywh_from_xyxy", to_cxcywh)?;
    report.close(fixture, "out.xywh_from_xyxy", box_ops::xyxy_to_xywh(xyxy))?;
    let to_xyxy = box_ops::cxcywh_to_xyxy(get("in.cxcywh")?);
    report.close(fixture, "out.xyxy_from_cxcywh", to_xyxy)?;

    let ad = device.clone().autodiff();
    let wanted = fixture.stored("grad.random.a")?.shape[0];
    let a = fixture
        .tensor::<2>("in.random.a", &ad)?
        .slice([0..wanted, 0..4]);
    let a = a.detach().require_grad();
    let b = fixture
        .tensor::<2>("in.random.b", &ad)?
        .slice([0..wanted, 0..4]);
    let loss = box_ops::generalized_iou_aligned(a.clone(), b)
        .neg()
        .add_scalar(1.0)
        .mean();
    report.close(fixture, "out.random.mean_1_minus_giou", loss.clone())?;
    let grads = loss.backward();
    report.close(
        fixture,
        "grad.random.a",
        a.grad(&grads).ok_or("no gradient")?,
    )?;

    for kind in ["random", "degenerate"] {
        let a = get(&format!("in.span.{kind}.a"))?;
        let b = get(&format!("in.span.{kind}.b"))?;
        let out = |name: &str| format!("out.span.{kind}.{name}");
        let cxw = span_ops::xx_to_cxw(a.clone());
        report.close(fixture, &out("cxw_a"), cxw.clone())?;
        report.close(fixture, &out("xx_roundtrip_a"), span_ops::cxw_to_xx(cxw))?;
        let (_, union) = span_ops::intersection_union(a.clone(), b.clone());
        report.close(fixture, &out("union"), union)?;
        report.close(fixture, &out("iou"), span_ops::iou(a.clone(), b.clone()))?;
        report.close(
            fixture,
            &out("giou"),
            span_ops::generalized_iou(a.clone(), b.clone()),
        )?;
        let iop = span_ops::intersection_over_second(a, b);
        report.close(fixture, &out("inter_over_pred"), iop)?;
    }
    let cxw = fixture.tensor::<2>("in.span.cxw", &ad)?.require_grad();
    let xx = span_ops::cxw_to_xx(cxw.clone());
    report.close(fixture, "out.span.xx_from_cxw", xx.clone())?;
    let target = fixture.tensor::<2>("in.span.grad_target", &ad)?;
    let giou = span_ops::generalized_iou_aligned(xx, target);
    let loss = giou.neg().add_scalar(1.0).mean();
    report.close(fixture, "out.span.mean_1_minus_giou", loss.clone())?;
    let grads = loss.backward();
    report.close(
        fixture,
        "grad.span.cxw",
        cxw.grad(&grads).ok_or("no gradient")?,
    )?;

    hungarian(&mut report, fixture)?;
    report.nothing_left(fixture);
    Ok(report)
}

fn hungarian(report: &mut Report, fixture: &Fixture) -> Result<(), Failure> {
    let cases = fixture.json["hungarian_cases"]
        .as_array()
        .ok_or("no hungarian_cases")?;
    for (i, case) in cases.iter().enumerate() {
        let maximise = case["maximize"].as_bool().unwrap_or(false);
        let sign = if maximise { -1.0 } else { 1.0 };
        let cost: Vec<Vec<f64>> = serde_json::from_value(case["cost"].clone())?;
        let signed: Vec<Vec<f64>> = cost
            .iter()
            .map(|r| r.iter().map(|c| c * sign).collect())
            .collect();
        let pairs = assignment::assign(&signed)?;
        let total: f64 = pairs.iter().map(|(r, c)| cost[*r][*c]).sum();
        let expected = case["total"].as_f64().ok_or("no total")?;
        report.measure(
            &format!("hungarian {i} total"),
            (total - expected).abs(),
            1e-6,
        );
        if case["kind"].as_str().is_some_and(|k| k.contains("no ties")) {
            let list = |key: &str| -> Result<Vec<usize>, Failure> {
                Ok(serde_json::from_value(case[key].clone())?)
            };
            let expected: Vec<_> = list("rows")?.into_iter().zip(list("cols")?).collect();
            report.expect(&format!("hungarian {i}"), pairs == expected, || {
                format!("matched {pairs:?}, expected {expected:?}")
            });
        }
    }
    Ok(())
}

pub fn region_units(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let hidden = fixture.tensor::<2>("in.hidden", device)?;
    let boxes = fixture.tensor::<2>("in.boxes", device)?;
    let file = weights_of(fixture)?;
    let shape = Checkpoint::open(&file)?
        .get("w.loc_decoder.0.weight")
        .map(|t| t.shape.clone());
    let Some([d_hidden, d_llm]) = shape.as_deref() else {
        return Err("no matrix `w.loc_decoder.0.weight` in the weights".into());
    };
    let config = RegionHeadConfig::new(*d_llm, *d_hidden);
    let head = load_from(config.init(device), &file, &Stored(&region_rules()?))?;
    report.close(
        fixture,
        "out.loc_decoder",
        head.decoder.forward(hidden.clone()),
    )?;
    report.close(fixture, "out.loc_encoder", head.encoder.forward(boxes))?;

    let ad = device.clone().autodiff();
    let weights = RegionLossWeights::reference();
    let pred = fixture.tensor::<2>("in.pred", &ad)?.require_grad();
    let target = fixture.tensor::<2>("in.target", &ad)?;
    let loss = region_loss(pred.clone(), target.clone(), &weights);
    let loss = loss.total().ok_or("no terms")?;
    report.close(fixture, "out.box_loss", loss.clone())?;
    let grads = loss.backward();
    report.close(
        fixture,
        "grad.in.pred",
        pred.grad(&grads).ok_or("no gradient")?,
    )?;
    let invalid = fixture.tensor::<2>("in.invalid_pred", &ad)?;
    let n = invalid.dims()[0];
    let target = target.slice([0..n, 0..4]);
    let loss = region_loss(invalid, target, &weights).total();
    report.close(fixture, "out.box_loss_all_invalid", loss.ok_or("no terms")?)?;

    let auxiliary = fixture.tensor::<1>("in.box2_pred", device)?;
    let first = fixture
        .tensor::<2>("in.target", device)?
        .slice([0..1, 0..4]);
    let l1 = (auxiliary - first.reshape([4])).abs().mean();
    report.close(fixture, "out.track_box_loss", l1)?;
    for name in [
        "track_embed",
        "track_embed_decode2",
        "temporal_embed",
        "action_embed",
    ] {
        let mlp = mlp(&file, name, device)?;
        report.close(fixture, &format!("out.{name}"), mlp.forward(hidden.clone()))?;
    }

    let shape = fixture.stored("in.masks")?.shape.clone();
    let [n, h, w] = shape[..] else {
        return Err("in.masks must have three axes".into());
    };
    let masks = fixture.floats("in.masks")?;
    let mut got = Vec::new();
    for mask in masks.chunks_exact(h * w) {
        let dense = Array2::from_shape_vec((h, w), mask.iter().map(|v| *v > 0.5).collect())?;
        got.extend(Mask(dense).outer_boundary_box().unwrap_or([-1.0; 4]));
    }
    report.close_values(fixture, "out.mask_boxes", &[n, 4], &got, |_| true)?;
    report.nothing_left(fixture);
    Ok(report)
}

/// One of the reference's two-layer MLPs, with the widths its weights have.
pub fn mlp(file: &Path, name: &str, device: &Device) -> Result<Mlp, Failure> {
    let checkpoint = Checkpoint::open(file)?;
    let mut widths = Vec::new();
    for layer in 0.. {
        let key = format!("w.{name}.layers.{layer}.weight");
        let Some(entry) = checkpoint.tensors().find(|t| t.key == key) else {
            break;
        };
        if layer == 0 {
            widths.push(entry.shape[1]);
        }
        widths.push(entry.shape[0]);
    }
    let rules = KeyRules::new()
        .owns([format!("{name}.")])
        .prefix(&format!("{name}."), "");
    load_from(MlpConfig::new(widths).init(device), file, &Stored(&rules))
}
