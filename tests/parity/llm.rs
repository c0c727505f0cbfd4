//! Language-model fixtures: `mistral_lora` and the `hf_*` family.

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use tpo::core::model::IGNORE_LABEL;
use tpo::core::traits::LanguageModel;
use tpo::llm::{CausalLm, KvCache, LlmConfig, LoraConfig, config::LORA_TARGETS};
use tpo::weights::KeyRules;

use super::check::{Report, floats, parameters};
use super::fixture::{Failure, Fixture};
use super::weights::{Stored, compare_gradients, load};

/// Keys of VideoChat-TPO's language model, with PEFT's wrapping.
pub fn peft_rules() -> KeyRules {
    KeyRules::new()
        .owns(["lm."])
        .prefix("lm.base_model.model.", "")
        .lora("default")
}

pub fn lora_config(fixture: &Fixture) -> Result<LlmConfig, Failure> {
    let mut config = LlmConfig::from_hf_json(&fixture.config().to_string())?;
    config.lora = Some(LoraConfig::new(
        fixture.usize("lora_r")?,
        fixture.f64("lora_alpha")?,
        LORA_TARGETS.map(String::from).to_vec(),
    ));
    Ok(config)
}

pub fn mistral_lora(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let rules = peft_rules();
    let trained = device.clone().autodiff();
    let lm = load(
        lora_config(fixture)?.init(&trained)?,
        fixture,
        &Stored(&rules),
    )?;

    let embeds = fixture
        .tensor::<3>("in.inputs_embeds", &trained)?
        .require_grad();
    let [b, s, d] = embeds.dims();
    let mask = mask_rows(fixture, "in.attention_mask")?;
    let states = lm.hidden_states(embeds.clone(), Some(&mask), None)?;
    let flat: Vec<bool> = mask.iter().flatten().copied().collect();
    for (i, state) in states.iter().enumerate() {
        let values = floats(state.clone())?;
        report.close_values(
            fixture,
            &format!("mid.hidden.{i}"),
            &[b, s, d],
            &values,
            |at| flat[at / d],
        )?;
    }
    let hidden = states.last().ok_or("no hidden states")?.clone();
    report.close_values(
        fixture,
        "out.last_hidden",
        &[b, s, d],
        &floats(hidden.clone())?,
        |at| flat[at / d],
    )?;
    let logits = lm.logits(hidden);
    let vocab = lm.vocab_size();
    let shape = [b, s, vocab];
    report.close_values(
        fixture,
        "out.logits",
        &shape,
        &floats(logits.clone())?,
        |at| flat[at / vocab],
    )?;
    let loss = cross_entropy(logits, &fixture.int_rows("in.labels")?);
    report.close(fixture, "out.loss", loss.clone())?;
    let grads = loss.backward();
    compare_gradients(&mut report, fixture, "grad.", &lm, &rules, &grads)?;
    let grad = embeds.grad(&grads).ok_or("the input got no gradient")?;
    report.close(fixture, "grad.in.inputs_embeds", grad)?;

    let lm = load(
        lora_config(fixture)?.init(device)?,
        fixture,
        &Stored(&rules),
    )?;
    let embeds = embeds.inner();
    let steps = count(fixture, "out.decode.step");
    report.part(|report| {
        let prompt = fixture.stored("out.decode.prefill_logits")?.shape[1];
        decode(
            report,
            fixture,
            &lm,
            prompt,
            |from, to| embeds.clone().slice([0..1, from..to, 0..d]),
            steps,
        )?;

        let eos = fixture.json["eos_token_id"].as_i64();
        let first = embeds.clone().slice([0..1, 0..prompt, 0..d]);
        let wanted = fixture.stored("out.greedy_ids")?.shape[1];
        let got = greedy(&lm, first, None, wanted, eos)?;
        report.equal(fixture, "out.greedy_ids", &got.concat())
    })?;

    let merged = lm.merge_lora();
    let weights = parameters(&merged);
    for key in fixture
        .tensors
        .keys()
        .filter(|k| k.starts_with("out.merged."))
    {
        match weights.get(&key["out.merged.".len()..]) {
            Some((shape, values)) => report.close_values(fixture, key, shape, values, |_| true)?,
            None => report.fail(key, "the model has no such parameter".into()),
        }
    }
    let logits = merged.logits(merged.hidden(embeds, Some(&mask))?);
    report.close_values(
        fixture,
        "out.merged_logits",
        &shape,
        &floats(logits)?,
        |at| flat[at / vocab],
    )?;
    report.nothing_left(fixture);
    Ok(report)
}

/// The language-model half of `small_amplitude`.
pub fn small(
    report: &mut Report,
    small: &Fixture,
    base: &Fixture,
    device: &Device,
) -> Result<(), Failure> {
    let lm = load(
        lora_config(base)?.init(device)?,
        base,
        &Stored(&peft_rules()),
    )?;
    let embeds = base.tensor::<3>("in.inputs_embeds", device)? * 2e-3;
    let states = lm.hidden_states(embeds, None, None)?;
    report.close(small, "out.lm.hidden1", states[1].clone())?;
    let last = states.last().ok_or("no hidden states")?.clone();
    report.close(small, "out.lm.last_hidden", last.clone())?;
    report.close(small, "out.lm.logits", lm.logits(last))
}

pub fn hugging_face(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let rules = KeyRules::new();
    let config = LlmConfig::from_hf_json(&fixture.config().to_string())?;
    let trained = device.clone().autodiff();
    let lm = load(config.init(&trained)?, fixture, &Stored(&rules))?;

    let ids = fixture.int_tensor::<2>("in.input_ids", &trained)?;
    let [_, s] = ids.dims();
    let embeds = lm.embed(ids.clone());
    let states = lm.hidden_states(embeds, None, None)?;
    for (i, state) in states.iter().enumerate() {
        report.close(fixture, &format!("mid.hidden.{i}"), state.clone())?;
    }
    let hidden = states.last().ok_or("no hidden states")?.clone();
    report.close(fixture, "out.last_hidden", hidden.clone())?;
    let logits = lm.logits(hidden);
    report.close(fixture, "out.logits", logits.clone())?;
    let loss = cross_entropy(logits, &fixture.int_rows("in.labels")?);
    report.close(fixture, "out.loss", loss.clone())?;
    let grads = loss.backward();
    compare_gradients(&mut report, fixture, "grad.", &lm, &rules, &grads)?;

    let lm = load(config.init(device)?, fixture, &Stored(&rules))?;
    let first = ids.clone().inner().slice([0..1, 0..s]);
    let embeds = lm.embed(first.clone());
    let d = lm.dim();
    let steps = count(fixture, "out.decode.step");
    report.part(|report| {
        let prompt = fixture.stored("out.decode.prefill_logits")?.shape[1];
        decode(
            report,
            fixture,
            &lm,
            prompt,
            |from, to| embeds.clone().slice([0..1, from..to, 0..d]),
            steps,
        )?;

        let wanted = fixture.stored("out.greedy_ids")?.shape[1];
        let got = greedy(
            &lm,
            embeds.clone().slice([0..1, 0..prompt, 0..d]),
            None,
            wanted,
            None,
        )?;
        report.equal(fixture, "out.greedy_ids", &got.concat())
    })?;

    report.part(|report| {
        let mask = mask_rows(fixture, "in.pad.attention_mask")?;
        let ids = fixture.int_tensor::<2>("in.pad.input_ids", device)?;
        let positions: Vec<Vec<usize>> = fixture
            .int_rows("in.pad.position_ids")?
            .iter()
            .map(|r| r.iter().map(|p| *p as usize).collect())
            .collect();
        let [b, s] = ids.dims();
        let flat: Vec<bool> = mask.iter().flatten().copied().collect();
        let vocab = lm.vocab_size();
        let embeds = lm.embed(ids);
        let compare = |report: &mut Report, hidden: Tensor<3>| -> Result<(), Failure> {
            let logits = lm.logits(hidden.clone());
            report.close_values(
                fixture,
                "out.pad.last_hidden",
                &[b, s, d],
                &floats(hidden)?,
                |at| flat[at / d],
            )?;
            report.close_values(
                fixture,
                "out.pad.logits",
                &[b, s, vocab],
                &floats(logits)?,
                |at| flat[at / vocab],
            )
        };
        // Three ways to the same numbers: given positions, positions 0.., and through the cache.
        let states = lm.hidden_states(embeds.clone(), Some(&mask), Some(&positions))?;
        compare(report, states.last().ok_or("no hidden states")?.clone())?;
        compare(report, lm.hidden(embeds.clone(), Some(&mask))?)?;
        let mut cache = lm.cache(b, s, device);
        compare(report, lm.step(embeds.clone(), Some(&mask), &mut cache)?)?;
        let wanted = fixture.stored("out.pad.greedy_ids")?.shape[1];
        let got = greedy(&lm, embeds, Some(&mask), wanted, None)?;
        report.equal(fixture, "out.pad.greedy_ids", &got.concat())
    })?;
    report.nothing_left(fixture);
    Ok(report)
}

/// Prefill, then one position at a time; compares logits, hidden states and the first layer's
/// cache after the prefill.
fn decode(
    report: &mut Report,
    fixture: &Fixture,
    lm: &CausalLm,
    prompt: usize,
    embeds: impl Fn(usize, usize) -> Tensor<3>,
    steps: usize,
) -> Result<(), Failure> {
    let first = embeds(0, prompt);
    let mut cache = lm.cache(1, prompt + steps, &first.device());
    let hidden = lm.step(first, None, &mut cache)?;
    report.close(fixture, "out.decode.prefill_logits", lm.logits(hidden))?;
    compare_cache(report, fixture, &cache)?;
    for i in 0..steps {
        let hidden = lm.step(embeds(prompt + i, prompt + i + 1), None, &mut cache)?;
        report.close(
            fixture,
            &format!("out.decode.step{i}_hidden"),
            hidden.clone(),
        )?;
        let logits = lm.logits(hidden);
        report.close(fixture, &format!("out.decode.step{i}_logits"), logits)?;
    }
    Ok(())
}

/// A sliding-window reference cache keeps only the last positions; ours keeps all.
fn compare_cache(report: &mut Report, fixture: &Fixture, cache: &KvCache) -> Result<(), Failure> {
    let (k, v) = cache.layer(0).ok_or("the cache has no layer 0")?;
    for (key, held) in [("mid.decode.k0", k), ("mid.decode.v0", v)] {
        let kept = fixture.stored(key)?.shape[2];
        let [b, h, len, d] = held.dims();
        let tail = held.slice([0..b, 0..h, len - kept..len, 0..d]);
        report.close(fixture, key, tail)?;
    }
    Ok(())
}

/// Greedy ids `[batch][wanted]`, fewer when a row of a single batch emits `eos`.
fn greedy(
    lm: &CausalLm,
    prompt: Tensor<3>,
    mask: Option<&[Vec<bool>]>,
    wanted: usize,
    eos: Option<i64>,
) -> Result<Vec<Vec<i64>>, Failure> {
    let [b, s, d] = prompt.dims();
    let device = prompt.device();
    let mut cache = lm.cache(b, s + wanted, &device);
    let mut hidden = lm.step(prompt, mask, &mut cache)?;
    let mut out = vec![Vec::new(); b];
    for _ in 0..wanted {
        let [_, len, _] = hidden.dims();
        let last = hidden.slice([0..b, len - 1..len, 0..d]);
        let next = lm.logits(last).argmax(2).reshape([b, 1]);
        let ids: Vec<i64> = next.clone().into_data().iter::<i64>().collect();
        for (row, id) in out.iter_mut().zip(&ids) {
            row.push(*id);
        }
        if b == 1 && eos == Some(ids[0]) {
            break;
        }
        let next = Tensor::<2, Int>::from_data(TensorData::new(ids, [b, 1]), &device);
        hidden = lm.step(lm.embed(next), None, &mut cache)?;
    }
    Ok(out)
}

/// Shifted cross entropy over all logits, the long way round, to check the model's own.
pub fn cross_entropy(logits: Tensor<3>, labels: &[Vec<i64>]) -> Tensor<1> {
    let [b, s, vocab] = logits.dims();
    let device = logits.device();
    let mut rows = Vec::new();
    let mut targets = Vec::new();
    for (r, labels) in labels.iter().enumerate() {
        for (t, label) in labels.iter().enumerate().skip(1) {
            if *label != IGNORE_LABEL {
                rows.push((r * s + t - 1) as i64);
                targets.push(*label);
            }
        }
    }
    let n = rows.len();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), &device);
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [n, 1]), &device);
    let logits = logits
        .cast(FloatDType::F32)
        .reshape([b * s, vocab])
        .select(0, rows);
    burn::tensor::activation::log_softmax(logits, 1)
        .gather(1, targets)
        .mean()
        .neg()
}

pub fn mask_rows(fixture: &Fixture, key: &str) -> Result<Vec<Vec<bool>>, Failure> {
    Ok(fixture
        .int_rows(key)?
        .iter()
        .map(|r| r.iter().map(|v| *v != 0).collect())
        .collect())
}

fn count(fixture: &Fixture, prefix: &str) -> usize {
    fixture
        .tensors
        .keys()
        .filter(|k| k.starts_with(prefix) && k.ends_with("_logits"))
        .count()
}
