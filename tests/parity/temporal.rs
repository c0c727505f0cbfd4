//! Fixtures of the temporal head.

use burn::tensor::{Device, Tensor, f16};
use serde_json::Value;
use tpo::core::geometry::{ScoredSpan, TimeSpan, span_ops};
use tpo::heads::temporal::decode::{KeepSide, WindowRules, WindowStep};
use tpo::heads::temporal::features::TemporalFeatures;
use tpo::heads::temporal::model::{CgDetrInput, CgDetrOutput, TrainingInput};
use tpo::heads::temporal::{
    BatchTargets, CgDetrConfig, CriterionConfig, DecodeConfig, MatchCosts, MomentWindows,
    SaliencyLabels, TemporalHead, TemporalHeadConfig, TemporalTarget, best_frames, cg_detr_rules,
    rank_spans, temporal_nms,
};
use tpo::weights::{KeyMap, KeyRules, KeyTables, KeyTarget};

use super::check::{Report, floats};
use super::fixture::{Failure, Fixture};
use super::weights::{Stored, compare_gradients, load};

/// Sizes of the head from the JSON (`json` is the head's part of it) and the stored shapes.
/// Everything random is off.
pub fn head_config(fixture: &Fixture, json: &Value) -> Result<TemporalHeadConfig, Failure> {
    let n = |key: &str| -> Result<usize, Failure> {
        let value = json[key].as_u64();
        Ok(value.ok_or_else(|| format!("no integer `{key}`"))? as usize)
    };
    let or = |key: &str, otherwise: usize| json[key].as_u64().map_or(otherwise, |v| v as usize);
    let layers = |encoder: &str| {
        let prefix = format!("w.cg_model.{encoder}.layers.");
        let numbers = fixture.tensors.keys().filter_map(|k| {
            let rest = k.strip_prefix(&prefix)?;
            rest.split('.').next()?.parse::<usize>().ok()
        });
        numbers.max().map_or(0, |last| last + 1)
    };
    let positions = "w.cg_model.txt_position_embed.position_embeddings.weight";
    let model = CgDetrConfig::new(n("H")?, n("vd")?, n("hid")?, n("ff")?)
        .with_heads(or("nheads", 8))
        .with_num_queries(n("nq")?)
        .with_num_dummies(n("nd")?)
        .with_total_prompts(n("tp")?)
        .with_num_prompts(n("np")?)
        .with_t2v_layers(layers("transformer.t2v_encoder"))
        .with_encoder_layers(layers("transformer.encoder"))
        .with_decoder_layers(layers("transformer.decoder"))
        .with_dummy_layers(layers("txtproj_encoder"))
        .with_sentence_layers(layers("scls_encoder"))
        .with_moment_layers(layers("transformer.mcls_encoder"))
        .with_text_positions(fixture.stored(positions)?.shape[0])
        .with_dropout(0.0)
        .with_input_dropout(0.0)
        .with_crossed_masks(true);
    let mut criterion = CriterionConfig::reference();
    let number = |value: &Value, into: &mut f64| {
        if let Some(v) = value.as_f64() {
            *into = v;
        }
    };
    let w = &json["weights"];
    for (key, into) in [
        ("span", &mut criterion.span),
        ("giou", &mut criterion.giou),
        ("label", &mut criterion.label),
        ("saliency", &mut criterion.saliency),
        ("ms_align", &mut criterion.ms_align),
        ("distill", &mut criterion.distill),
        ("orthogonal_dummy", &mut criterion.orthogonal_dummy),
    ] {
        number(&w[key], into);
    }
    let mut costs = MatchCosts::new();
    number(&json["set_cost"]["span"], &mut costs.span);
    number(&json["set_cost"]["giou"], &mut costs.giou);
    number(&json["set_cost"]["class"], &mut costs.class);
    criterion.costs = costs;
    number(&json["eos_coef"], &mut criterion.background);
    number(&json["saliency_margin"], &mut criterion.saliency_margin);
    number(&json["lw_wattn"], &mut criterion.attention);
    number(&json["overall_scale_in_tpo"], &mut criterion.scale);
    Ok(TemporalHeadConfig::new(model)
        .with_criterion(criterion)
        .with_start_end(fixture.has("w.temporal_embed.layers.0.weight")))
}

/// Keys of the head alone.
fn head_keys() -> Result<KeyTables<'static>, Failure> {
    let criterion = KeyRules::new()
        .owns(["cg_criterion."])
        .prefix("cg_criterion.", "criterion.");
    Ok(KeyTables::new()
        .with(cg_detr_rules()?.within("model."))
        .with(criterion))
}

/// Real rows per sample of a mask; padding must be behind.
pub fn lengths(fixture: &Fixture, key: &str) -> Result<Vec<usize>, Failure> {
    let width = *fixture.stored(key)?.shape.last().ok_or("no shape")?;
    fixture
        .floats(key)?
        .chunks(width.max(1))
        .map(|row| {
            let n = row.iter().filter(|v| **v != 0.0).count();
            if row[..n].iter().all(|v| *v != 0.0) {
                Ok(n)
            } else {
                Err(format!("`{key}` has padding before real rows").into())
            }
        })
        .collect()
}

/// Features of every sample of `video` and `text` with their masks, as the head asks for them.
pub fn features(
    fixture: &Fixture,
    [video, video_mask, text, text_mask]: [&str; 4],
    device: &Device,
) -> Result<Vec<TemporalFeatures>, Failure> {
    let rows = |key: &str, mask: &str| -> Result<Vec<Tensor<2>>, Failure> {
        let all = fixture.tensor::<3>(key, device)?;
        let width = all.dims()[2];
        let lengths = lengths(fixture, mask)?.into_iter().enumerate();
        Ok(lengths
            .map(|(b, n)| {
                let rows = all.clone().narrow(0, b, 1).narrow(1, 0, n);
                rows.reshape([n, width])
            })
            .collect())
    };
    let videos = rows(video, video_mask)?;
    Ok(videos
        .into_iter()
        .zip(rows(text, text_mask)?)
        .map(|(video, text)| TemporalFeatures {
            video: Some(video),
            text: Some(text),
        })
        .collect())
}

/// `{prefix}.targets.*`, one per sample.
pub fn targets(fixture: &Fixture, prefix: &str) -> Result<Vec<TemporalTarget>, Failure> {
    let key = |name: &str| format!("{prefix}.targets.{name}");
    let float_rows = |key: &str| -> Result<Vec<Vec<f32>>, Failure> {
        let width = *fixture.stored(key)?.shape.last().ok_or("no shape")?;
        let flat = fixture.floats(key)?;
        Ok(flat.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
    };
    let clips = |key: &str| -> Result<Vec<Vec<usize>>, Failure> {
        let rows = fixture.int_rows(key)?.into_iter();
        Ok(rows
            .map(|r| r.into_iter().map(|v| v as usize).collect())
            .collect())
    };
    let scores = float_rows(&key("saliency_all_labels"))?;
    let relevant = float_rows(&key("relevant_clips"))?;
    let positive = clips(&key("saliency_pos_labels"))?;
    let negative = clips(&key("saliency_neg_labels"))?;
    (0..scores.len())
        .map(|b| {
            let spans = fixture.floats(&key(&format!("spans.{b}")))?;
            let spans = spans.chunks_exact(2).map(|s| [s[0], s[1]]).collect();
            Ok(TemporalTarget {
                windows: MomentWindows::Normalised(spans),
                saliency: SaliencyLabels {
                    scores: scores[b].clone(),
                    positive: positive[b].clone(),
                    negative: negative[b].clone(),
                },
                relevant: Some(relevant[b].clone()),
            })
        })
        .collect()
}

pub fn names(json: &Value) -> Vec<String> {
    let names = json["vid_names"].as_array();
    let names = names.into_iter().flatten();
    names
        .map(|v| v.as_str().unwrap_or_default().to_string())
        .collect()
}

/// The head on a padded batch as the fixture stores it, without the model around it: the padding
/// of a fixture may hold numbers, which no loss of the reference ignores entirely.
///
/// `prompt` is `[batch, d]`; with `clear` the padding is set to zero, as a batch has it in use.
pub fn loss_of_batch(
    fixture: &Fixture,
    head: &TemporalHead,
    prompt: Tensor<2>,
    clear: bool,
) -> Result<Tensor<1>, Failure> {
    let device = prompt.device();
    let stored = |key: &str| -> Result<(Tensor<3>, Vec<usize>), Failure> {
        let rows = fixture.tensor::<3>(key, &device)?;
        let mask = fixture.tensor::<2>(&format!("{key}_mask"), &device)?;
        let [batch, length, _] = rows.dims();
        let rows = if clear {
            rows * mask.reshape([batch, length, 1])
        } else {
            rows
        };
        Ok((rows, lengths(fixture, &format!("{key}_mask"))?))
    };
    let (video, video_lengths) = stored("in.tvg.src_vid")?;
    let (text, text_lengths) = stored("in.tvg.src_txt")?;
    let clips = video_lengths.clone();
    let out = head.model.forward(CgDetrInput {
        video,
        video_lengths,
        text,
        text_lengths,
        prompt,
    })?;
    let targets = BatchTargets::new(&targets(fixture, "in")?, &clips, 1.0, &names(&fixture.json))?;
    let terms = head.criterion(&out, &targets)?.terms;
    Ok(terms.total().ok_or("no temporal loss")?)
}

struct Inputs {
    input: CgDetrInput,
    /// Leaves whose gradients may be compared, by name.
    leaves: [(&'static str, Tensor<3>); 3],
}

fn inputs(fixture: &Fixture, device: &Device) -> Result<Inputs, Failure> {
    let leaf = |key: &str| -> Result<Tensor<3>, Failure> {
        let tensor = fixture.tensor::<3>(key, device)?;
        Ok(if device.is_autodiff() {
            tensor.require_grad()
        } else {
            tensor
        })
    };
    let (video, text) = (leaf("in.src_vid")?, leaf("in.src_txt")?);
    let prompt = leaf("in.prompt_token")?;
    let [batch, _, d] = prompt.dims();
    Ok(Inputs {
        input: CgDetrInput {
            video: video.clone(),
            video_lengths: lengths(fixture, "in.src_vid_mask")?,
            text: text.clone(),
            text_lengths: lengths(fixture, "in.src_txt_mask")?,
            prompt: prompt.clone().reshape([batch, d]),
        },
        leaves: [
            ("grad.in.src_vid", video),
            ("grad.in.src_txt", text),
            ("grad.in.prompt_token", prompt),
        ],
    })
}

fn head(fixture: &Fixture, device: &Device) -> Result<TemporalHead, Failure> {
    let head = head_config(fixture, fixture.config())?.init(device)?;
    load(head, fixture, &Stored(&head_keys()?))
}

/// Last layer, or an earlier one, of a stacked output.
fn layer(x: &Tensor<4>, at: usize) -> Tensor<3> {
    let [_, batch, queries, width] = x.dims();
    x.clone().narrow(0, at, 1).reshape([batch, queries, width])
}

pub fn predictions(
    report: &mut Report,
    fixture: &Fixture,
    out: &CgDetrOutput,
) -> Result<(), Failure> {
    let last = out.spans.dims()[0] - 1;
    report.close(fixture, "out.pred_logits", layer(&out.logits, last))?;
    report.close(fixture, "out.pred_spans", layer(&out.spans, last))?;
    report.close(fixture, "out.saliency_scores", out.saliency.clone())
}

/// `cgdetr_*`: with targets if the fixture has them.
pub fn cgdetr(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    if fixture.has("in.targets.saliency_all_labels") {
        training(&mut report, fixture, &device.clone().autodiff())?;
    } else {
        inference(&mut report, fixture, device)?;
    }
    report.nothing_left(fixture);
    Ok(report)
}

fn inference(report: &mut Report, fixture: &Fixture, device: &Device) -> Result<(), Failure> {
    let head = head(fixture, device)?;
    let out = head.model.forward(inputs(fixture, device)?.input)?;
    predictions(report, fixture, &out)?;
    for at in 0..out.spans.dims()[0] - 1 {
        let logits = format!("out.aux{at}.pred_logits");
        report.close(fixture, &logits, layer(&out.logits, at))?;
        let spans = format!("out.aux{at}.pred_spans");
        report.close(fixture, &spans, layer(&out.spans, at))?;
    }
    report.close(fixture, "out.cate_attn_weights", out.attention.clone())?;
    report.close(fixture, "out.dummy_tokens", out.dummy_tokens.clone())?;
    report.close(fixture, "out.t2vattnvalues", out.text_attention.clone())?;

    let post = &fixture.json["post"];
    if post.is_null() {
        return Ok(());
    }
    let duration = post["duration"].as_f64().ok_or("no duration")?;
    let ranked = ranked(
        &out,
        duration,
        &DecodeConfig::new().with_round_seconds(None),
    )?;
    for (b, ours) in ranked.iter().enumerate() {
        let before = spans_of(&post["ranked_before_round"][b])?;
        compare_ranking(report, &format!("post {b} before rounding"), ours, &before);
        let rounded = WindowRules::rounding(1.0).apply(&before);
        let expected = spans_of(&post["ranked"][b])?;
        let name = format!("post {b} rounded");
        report.expect(&name, rounded == expected, || {
            format!("got {rounded:?}, expected {expected:?}")
        });
        let clips = out.video_lengths[b];
        let row = out.saliency.clone().narrow(0, b, 1).narrow(1, 0, clips);
        let row: Vec<f64> = floats(row)?
            .into_iter()
            .map(|v| f16::from_f32(v).to_f64())
            .collect();
        let expected: Vec<f64> = serde_json::from_value(post["saliency"][b].clone())?;
        // One step of half precision: a value at the edge may round to its neighbour.
        let close = row.len() == expected.len()
            && row
                .iter()
                .zip(&expected)
                .all(|(g, e)| (g - e).abs() <= 1e-3 * e.abs().max(1e-3));
        report.expect(&format!("post {b} saliency"), close, || {
            format!("got {row:?}, expected {expected:?}")
        });
    }
    Ok(())
}

fn ranked(
    out: &CgDetrOutput,
    duration: f64,
    config: &DecodeConfig,
) -> Result<Vec<Vec<ScoredSpan>>, Failure> {
    let last = out.spans.dims()[0] - 1;
    let spans = layer(&out.spans, last);
    let queries = spans.dims()[1];
    let scores = burn::tensor::activation::softmax(layer(&out.logits, last), 2);
    let (spans, scores) = (floats(spans)?, floats(scores)?);
    Ok(spans
        .chunks_exact(queries * 2)
        .zip(scores.chunks_exact(queries * 2))
        .map(|(spans, scores)| {
            let pairs = spans.chunks_exact(2).zip(scores.chunks_exact(2));
            rank_spans(pairs.map(|(s, p)| ([s[0], s[1]], p[0])), duration, config)
        })
        .collect())
}

/// Spans given as `[start, end, score]`.
pub fn spans_of(value: &Value) -> Result<Vec<ScoredSpan>, Failure> {
    let rows: Vec<[f64; 3]> = serde_json::from_value(value.clone())?;
    Ok(rows
        .into_iter()
        .map(|[start, end, score]| ScoredSpan {
            span: TimeSpan { start, end },
            score,
        })
        .collect())
}

/// The same spans in the same order, up to the last printed decimal.
pub fn compare_ranking(
    report: &mut Report,
    name: &str,
    ours: &[ScoredSpan],
    expected: &[ScoredSpan],
) {
    let close = ours.len() == expected.len()
        && ours.iter().zip(expected).all(|(a, b)| {
            let near = |x: f64, y: f64| (x - y).abs() <= 1.5e-4 + 1e-4 * y.abs();
            near(a.span.start, b.span.start)
                && near(a.span.end, b.span.end)
                && near(a.score, b.score)
        });
    report.expect(name, close, || {
        format!("got {ours:?}, expected {expected:?}")
    });
}

fn training(report: &mut Report, fixture: &Fixture, device: &Device) -> Result<(), Failure> {
    let head = head(fixture, device)?;
    let Inputs { input, leaves } = inputs(fixture, device)?;
    let clips = input.video_lengths.clone();
    let out = head.model.forward(input)?;
    let targets = BatchTargets::new(&targets(fixture, "in")?, &clips, 1.0, &names(&fixture.json))?;
    let training = head.model.training(
        &out,
        &TrainingInput {
            relevant: targets.relevant.clone(),
            real_negative: targets.real_negative.clone(),
        },
    );
    predictions(report, fixture, &out)?;
    report.close(fixture, "out.t2vattnvalues", out.text_attention.clone())?;
    report.close(fixture, "out.memory_moment", training.moment.clone())?;
    report.close(fixture, "out.nmmemory_moment", training.other.clone())?;
    report.close(fixture, "out.sentence_txt", training.sentence.clone())?;
    report.close(
        fixture,
        "out.sentence_dummy",
        training.dummy_sentence.clone(),
    )?;
    report.close(fixture, "out.src_vid", training.clips.clone())?;
    let similar = training.moment_similarity.clone();
    report.close(fixture, "out.moment2txt_similarity", similar)?;
    let similar = training.other_similarity.clone();
    report.close(fixture, "out.nmoment2txt_similarity", similar)?;
    let real: Vec<i64> = targets.real_negative.iter().map(|r| *r as i64).collect();
    report.equal(fixture, "out.real_neg_mask", &real)?;
    let stored = fixture.has("out.saliency_scores_neg");
    report.expect("negatives", stored == training.negatives.is_some(), || {
        "only one side has negatives".into()
    });
    if let Some(negatives) = &training.negatives {
        let saliency = negatives.saliency.clone();
        report.close(fixture, "out.saliency_scores_neg", saliency)?;
        let attention = negatives.text_attention.clone();
        report.close(fixture, "out.t2vattnvalues_neg", attention)?;
    }

    let found = head.criterion(&out, &targets)?;
    let layers = found.matches.len();
    for (b, pairs) in found.matches[0].iter().enumerate() {
        let flat: Vec<i64> = pairs
            .iter()
            .map(|p| p.0 as i64)
            .chain(pairs.iter().map(|p| p.1 as i64))
            .collect();
        report.equal(fixture, &format!("out.match.{b}"), &flat)?;
    }
    for at in 0..layers {
        let suffix = match at {
            0 => String::new(),
            _ => format!("_{}", at - 1),
        };
        let key = format!("out.loss.class_error{suffix}");
        report.close_values(fixture, &key, &[], &[found.class_error[at]], |_| true)?;
    }
    for term in found.terms.terms() {
        let key = format!("out.loss.loss_{}", term.name);
        report.close(fixture, &key, term.value.clone())?;
    }
    let total = found.terms.total().ok_or("no loss")?;
    report.close(fixture, "out.tvg_loss_0.05", total.clone())?;

    let grads = total.backward();
    compare_gradients(report, fixture, "grad.", &head, &head_keys()?, &grads)?;
    for (key, leaf) in leaves {
        if fixture.has(key) {
            let grad = leaf.grad(&grads).ok_or_else(|| format!("no {key}"))?;
            report.close(fixture, key, grad)?;
        }
    }
    let got = super::check::gradients(&head, &grads);
    let listed = fixture.json["no_grad_params"].as_array();
    for key in listed.into_iter().flatten().filter_map(|k| k.as_str()) {
        let path = head_keys()?.module_path(&format!("cg_model.{key}"));
        let KeyTarget::Path(path) = path else {
            return Err(format!("`{key}` has no path").into());
        };
        let none = got
            .get(&path)
            .is_none_or(|(_, v)| v.iter().all(|g| *g == 0.0));
        report.expect(&format!("no gradient {key}"), none, || {
            "it got a gradient; the reference gives none".into()
        });
    }
    Ok(())
}

/// `postprocess`: start and end frames, suppression, windows, span arithmetic.
pub fn postprocess(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let a = span_ops::cxw_to_xx(fixture.tensor("in.spans1_cxw", device)?);
    let b = span_ops::cxw_to_xx(fixture.tensor("in.spans2_cxw", device)?);
    report.close(fixture, "out.iou", span_ops::iou(a.clone(), b.clone()))?;
    report.close(fixture, "out.giou", span_ops::generalized_iou(a, b))?;

    let cases: Vec<String> = fixture
        .tensors
        .keys()
        .filter_map(|k| k.strip_prefix("in.post.")?.strip_suffix(".sted"))
        .map(String::from)
        .collect();
    for case in cases {
        let ids = fixture.int_rows(&format!("in.post.{case}.frame_ids"))?;
        let key = format!("in.post.{case}.sted");
        let steps = fixture.stored(&key)?.shape[1];
        let logits = fixture.floats(&key)?;
        let got: Vec<i64> = logits
            .chunks_exact(steps * 2)
            .zip(&ids)
            .flat_map(|(rows, frames)| {
                let rows: Vec<[f32; 2]> = rows.chunks_exact(2).map(|r| [r[0], r[1]]).collect();
                // The reference takes the first sample's number of frames for all.
                let (first, last) = best_frames(&rows, ids[0].len());
                [frames[first], frames[last] + 1]
            })
            .collect();
        report.equal(fixture, &format!("out.post.{case}"), &got)?;
    }

    let cases = fixture.json["temporal_nms"].as_array();
    for (i, case) in cases.into_iter().flatten().enumerate() {
        let threshold = case["nms_thd"].as_f64().ok_or("no nms_thd")?;
        let max = case["max_after_nms"].as_u64().ok_or("no max_after_nms")? as usize;
        let got = temporal_nms(&spans_of(&case["in"])?, threshold, max);
        let expected = spans_of(&case["out"])?;
        report.expect(&format!("temporal_nms {i}"), got == expected, || {
            format!("got {got:?}, expected {expected:?}")
        });
    }
    let cases = fixture.json["postprocessor"].as_array();
    for (i, case) in cases.into_iter().flatten().enumerate() {
        let kw = &case["kw"];
        let number = |key: &str| kw[key].as_f64().ok_or_else(|| format!("no `{key}`"));
        let keep: KeepSide = serde_json::from_value(kw["move_window_method"].clone())?;
        let steps: Vec<WindowStep> = serde_json::from_value(kw["process_func_names"].clone())?;
        let rules = WindowRules {
            clip_length: number("clip_length")?,
            min_time: number("min_ts_val")?,
            max_time: number("max_ts_val")?,
            min_length: number("min_w_l")?,
            max_length: number("max_w_l")?,
            keep,
            steps,
        };
        let got = rules.apply(&spans_of(&case["in"])?);
        let expected = spans_of(&case["out"])?;
        report.expect(&format!("postprocessor {i}"), got == expected, || {
            format!("got {got:?}, expected {expected:?}")
        });
    }
    report.nothing_left(fixture);
    Ok(report)
}
