//! Properties of the decoder that hold for any weights.

use burn::tensor::{Device, Int, Tensor, TensorData};
use tpo_core::traits::{DecodeCache, LanguageModel};
use tpo_llm::config::LORA_TARGETS;
use tpo_llm::decoder::OutputLayer;
use tpo_llm::generation::GenerationConfig;
use tpo_llm::{CausalLm, LlmConfig, LlmError, LoraConfig};

/// Grouped heads, a head width that is not hidden / heads, and every kind of the family.
fn configs() -> Vec<LlmConfig> {
    let base = LlmConfig::new(41, 24, 36, 3, 6, 2, 8);
    vec![
        base.clone(),
        base.clone().with_sliding_window(Some(4)),
        base.clone()
            .with_attention_bias(true)
            .with_tie_word_embeddings(true),
        base.clone().lora(lora()),
        base.with_tie_word_embeddings(true).lora(lora()),
    ]
}

fn lora() -> LoraConfig {
    LoraConfig::new(3, 6.0, LORA_TARGETS.map(String::from).to_vec())
}

/// A model whose adapters are not zero.
fn model(config: &LlmConfig) -> CausalLm {
    let device = Device::flex();
    device.seed(11);
    let mut lm = config.init(&device).unwrap();
    for block in &mut lm.model.layers {
        if let Some(lora) = &mut block.self_attn.q_proj.lora {
            lora.b = lora
                .b
                .clone()
                .map(|b| b.random_like(burn::tensor::Distribution::Normal(0.0, 0.2)));
        }
        if let Some(lora) = &mut block.mlp.down_proj.lora {
            lora.b = lora
                .b
                .clone()
                .map(|b| b.random_like(burn::tensor::Distribution::Normal(0.0, 0.2)));
        }
    }
    if let OutputLayer::Tied(tied) = &mut lm.lm_head
        && let Some(lora) = &mut tied.lora
    {
        let normal = burn::tensor::Distribution::Normal(0.0, 0.2);
        lora.b = lora.b.clone().map(|b| b.random_like(normal));
    }
    lm
}

fn ids(rows: &[&[i64]]) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), &Device::flex())
}

fn values<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_into_vec().unwrap()
}

fn assert_close<const D: usize>(a: Tensor<D>, b: Tensor<D>, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (values(a), values(b));
    let norm = b.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-7);
    let diff = a
        .iter()
        .zip(&b)
        .map(|(x, y)| (x - y).powi(2))
        .sum::<f32>()
        .sqrt();
    assert!(diff / norm < 1e-5, "{what}: {}", diff / norm);
}

const PROMPT: [i64; 9] = [1, 7, 30, 2, 2, 19, 40, 5, 11];

#[test]
fn prefill_and_decode_equal_one_forward() {
    for config in configs() {
        let lm = model(&config);
        let embeds = lm.embed(ids(&[&PROMPT]));
        let whole = lm.hidden(embeds.clone(), None).unwrap();
        let d = config.hidden_size;
        for split in [1, 4, 8] {
            let mut cache = lm.cache(1, PROMPT.len(), &Device::flex());
            let mut pieces = vec![
                lm.step(
                    embeds.clone().slice([0..1, 0..split, 0..d]),
                    None,
                    &mut cache,
                )
                .unwrap(),
            ];
            for at in split..PROMPT.len() {
                let one = embeds.clone().slice([0..1, at..at + 1, 0..d]);
                pieces.push(lm.step(one, None, &mut cache).unwrap());
            }
            assert_eq!(cache.len(), PROMPT.len());
            assert_close(Tensor::cat(pieces, 1), whole.clone(), "decode");
        }
    }
}

#[test]
fn left_padding_changes_nothing() {
    for config in configs() {
        let lm = model(&config);
        let long: Vec<i64> = PROMPT.to_vec();
        let short = [0, 0, 0, 9, 3, 17, 17, 6, 8];
        let mask = vec![vec![true; 9], [vec![false; 3], vec![true; 6]].concat()];
        let mut cache = lm.cache(2, 10, &Device::flex());
        let embeds = lm.embed(ids(&[&long, &short]));
        let prefill = lm.step(embeds, Some(&mask), &mut cache).unwrap();
        let next = lm
            .step(lm.embed(ids(&[&[4], &[4]])), None, &mut cache)
            .unwrap();

        let mut alone = lm.cache(1, 7, &Device::flex());
        let single = lm
            .step(lm.embed(ids(&[&short[3..]])), None, &mut alone)
            .unwrap();
        let single_next = lm.step(lm.embed(ids(&[&[4]])), None, &mut alone).unwrap();
        // Rotations are relative, so that a row whose positions all were too high would answer the same:
        // the keys say that they count from its first real token.
        for layer in 0..config.num_hidden_layers {
            let (padded, _) = cache.layer(layer).unwrap();
            let (keys, _) = alone.layer(layer).unwrap();
            let [_, heads, _, width] = padded.dims();
            let padded = padded.slice([1..2, 0..heads, 3..10, 0..width]);
            assert_close(padded, keys, "keys");
        }
        let d = config.hidden_size;
        assert_close(prefill.slice([1..2, 3..9, 0..d]), single, "padded prefill");
        assert_close(
            next.slice([1..2, 0..1, 0..d]),
            single_next,
            "step after padding",
        );
    }
}

#[test]
fn a_rolled_back_cache_forgets() {
    let config = &configs()[0];
    let lm = model(config);
    let mut cache = lm.cache(1, 16, &Device::flex());
    lm.step(lm.embed(ids(&[&PROMPT])), None, &mut cache)
        .unwrap();
    let before = cache.clone();
    let mark = cache.len();
    lm.step(lm.embed(ids(&[&[33, 34, 35]])), None, &mut cache)
        .unwrap();
    cache.truncate(mark);
    let rolled = lm.step(lm.embed(ids(&[&[12]])), None, &mut cache).unwrap();
    let mut copy = before.clone();
    let clean = lm.step(lm.embed(ids(&[&[12]])), None, &mut copy).unwrap();
    assert_close(rolled, clean, "after rollback");
    assert_eq!(before.len(), mark, "a clone is not written to by its copy");
    let (k, _) = before.layer(0).unwrap();
    assert_eq!(k.dims()[2], mark);
}

/// Rows of a batch that take back what they fed, or drop out, continue as they would alone; in
/// windows too.
#[test]
fn rows_of_a_cache_are_taken_back_and_dropped() {
    for config in configs() {
        let lm = model(&config);
        let device = Device::flex();
        let prompts: [&[i64]; 3] = [
            &[9, 3, 17, 17, 6, 8],
            &[0, 0, 1, 7, 30, 2],
            &[0, 0, 0, 0, 5, 4],
        ];
        let mask = prompts.map(|p| p.iter().map(|id| *id > 0).collect::<Vec<_>>());
        let mut cache = lm.cache(3, 10, &device);
        let feed = |ids: Tensor<2, Int>, mask: Option<&[Vec<bool>]>, cache: &mut _| {
            lm.step(lm.embed(ids), mask, cache).unwrap()
        };
        feed(ids(&prompts), Some(&mask), &mut cache);
        feed(ids(&[&[33], &[34], &[35]]), None, &mut cache);
        cache.take_back(&[0, 2]);
        assert_eq!(cache.len(), 7);
        let next = feed(ids(&[&[12], &[13], &[14]]), None, &mut cache);
        cache.select(&[2, 0]);
        let last = feed(ids(&[&[21], &[22]]), None, &mut cache);
        let whole: [&[i64]; 3] = [
            &[9, 3, 17, 17, 6, 8, 12, 22],
            &[1, 7, 30, 2, 34, 13],
            &[5, 4, 14, 21],
        ];
        let d = config.hidden_size;
        let row = |t: &Tensor<3>, i: usize| t.clone().slice([i..i + 1, 0..1, 0..d]);
        for (i, whole) in whole.iter().enumerate() {
            let mut alone = lm.cache(1, 8, &device);
            let hidden = feed(ids(&[whole]), None, &mut alone);
            let at = |p: usize| hidden.clone().slice([0..1, p..p + 1, 0..d]);
            let before = whole.len() - usize::from(i != 1) - 1;
            assert_close(row(&next, i), at(before), "after taking back");
            if let Some(place) = [2, 0].iter().position(|kept| *kept == i) {
                assert_close(
                    row(&last, place),
                    at(before + 1),
                    "after others dropped out",
                );
            }
        }
        // All rows: nothing moves.
        cache.take_back(&[0, 1]);
        assert_eq!(cache.len(), 8);
    }
}

#[test]
fn merged_adapters_equal_unmerged_and_come_out_again() {
    let lm = model(&configs()[3]);
    let embeds = lm.embed(ids(&[&PROMPT]));
    let run = |lm: &CausalLm| lm.logits(lm.hidden(embeds.clone(), None).unwrap());
    let expected = run(&lm);
    let base = values(lm.model.layers[0].self_attn.q_proj.weight.val());
    let merged = lm.merge_lora();
    assert_ne!(
        values(merged.model.layers[0].self_attn.q_proj.weight.val()),
        base
    );
    assert_close(run(&merged), expected.clone(), "merged");
    let again = merged.merge_lora();
    assert_close(run(&again), expected.clone(), "merged twice");
    let unmerged = again.unmerge_lora();
    assert_close(run(&unmerged), expected, "unmerged");
}

/// Rows of several lengths, padded on the left, go on as each does alone.
#[test]
fn a_batch_decodes_what_its_rows_decode_alone() {
    let lm = model(&configs()[1]);
    let device = Device::flex();
    let prompts: Vec<Vec<u32>> = vec![vec![1, 7, 30, 2, 8], vec![9], vec![3, 3, 21]];
    let longest = 5;
    let padded: Vec<Vec<i64>> = prompts
        .iter()
        .map(|p| {
            let padding = std::iter::repeat_n(0, longest - p.len());
            padding.chain(p.iter().map(|id| i64::from(*id))).collect()
        })
        .collect();
    let mask: Vec<Vec<bool>> = prompts
        .iter()
        .map(|p| (0..longest).map(|i| i >= longest - p.len()).collect())
        .collect();
    let rows: Vec<&[i64]> = padded.iter().map(Vec::as_slice).collect();
    let mut cache = lm.cache(3, longest + 6, &device);
    let mut hidden = lm
        .forward_cached(lm.embed(ids(&rows)), Some(&mask), &mut cache)
        .unwrap();
    let mut found: Vec<Vec<u32>> = vec![Vec::new(); 3];
    for _ in 0..6 {
        let [b, s, d] = hidden.dims();
        let logits = values(lm.logits(hidden.slice([0..b, s - 1..s, 0..d])));
        let next: Vec<[i64; 1]> = logits
            .chunks(lm.vocab_size())
            .map(|row| [row.iter().position(|x| row.iter().all(|y| y <= x)).unwrap() as i64])
            .collect();
        for (found, next) in found.iter_mut().zip(&next) {
            found.push(next[0] as u32);
        }
        let rows: Vec<&[i64]> = next.iter().map(|row| &row[..]).collect();
        hidden = lm
            .forward_cached(lm.embed(ids(&rows)), None, &mut cache)
            .unwrap();
    }
    for (prompt, got) in prompts.iter().zip(&found) {
        let config = GenerationConfig::greedy(6, vec![]);
        let alone: Result<Vec<u32>, _> = lm.stream(prompt, config, &device).unwrap().collect();
        assert_eq!(&alone.unwrap(), got);
        // A stop token is emitted and ends the text.
        let stop = GenerationConfig::greedy(6, vec![got[1]]);
        let stopped: Result<Vec<u32>, _> = lm.stream(prompt, stop, &device).unwrap().collect();
        let end = got.iter().position(|id| *id == got[1]).unwrap();
        assert_eq!(stopped.unwrap(), got[..=end]);
    }
}

/// An absurd number of tokens is no absurd cache: the text ends where the positions do.
#[test]
fn generation_ends_with_the_positions() {
    let mut config = configs().remove(0);
    config.max_position_embeddings = 12;
    let lm = model(&config);
    let device = Device::flex();
    let prompt = vec![1, 7, 30, 2, 8];
    for most in [7, 8, 1 << 40, usize::MAX] {
        let config = GenerationConfig::greedy(most, vec![]);
        let text: Result<Vec<u32>, _> = lm.stream(&prompt, config, &device).unwrap().collect();
        assert_eq!(text.unwrap().len(), 7);
    }
    let config = GenerationConfig::greedy(3, vec![]);
    let full = lm.stream(&[1; 12], config.clone(), &device).unwrap();
    assert_eq!(full.count(), 1);
    let error = lm.stream(&[1; 13], config, &device).err().unwrap();
    assert!(matches!(
        error,
        LlmError::PromptTooLong {
            tokens: 13,
            positions: 12
        }
    ));
}

#[test]
fn adapters_without_targets_are_on_all_that_can() {
    let settings = LoraConfig {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        targets: Vec::new(),
    };
    for config in configs() {
        let tied = config.tie_word_embeddings;
        let targets = config.adapters(&settings).targets;
        assert_eq!(targets.len(), LORA_TARGETS.len() - usize::from(tied));
        assert_eq!(targets.iter().any(|t| t == "lm_head"), !tied);
        let lm = model(&config).with_adapters(&settings).unwrap();
        assert_eq!(lm.config().lora.as_ref().unwrap().targets, targets);
    }
}

#[test]
fn wrong_input_is_an_error() {
    let lm = model(&configs()[0]);
    let device = Device::flex();
    let mut cache = lm.cache(1, 4, &device);
    let full = lm.forward_cached(lm.embed(ids(&[&PROMPT])), None, &mut cache);
    assert!(matches!(
        full,
        Err(LlmError::CacheFull {
            capacity: 4,
            new: 9,
            ..
        })
    ));
    assert_eq!(cache.len(), 0);
    let narrow = Tensor::zeros([1, 2, 5], &device);
    assert!(matches!(
        lm.hidden_states(narrow, None, None),
        Err(LlmError::Shape { .. })
    ));
    let two = lm.embed(ids(&[&[1], &[2]]));
    assert!(lm.forward_cached(two, None, &mut cache).is_err());
    let mask = [vec![true; 3]];
    let embeds = lm.embed(ids(&[&[1, 2]]));
    assert!(lm.hidden_states(embeds, Some(&mask), None).is_err());
    let config = GenerationConfig::greedy(2, vec![]);
    assert!(lm.stream(&[], config.clone(), &device).is_err());
    assert!(lm.stream(&[41], config, &device).is_err());
}

#[test]
fn gradients_reach_adapters_and_not_through_a_dense_product() {
    let device = Device::flex().autodiff();
    let config = LlmConfig::new(19, 16, 24, 1, 2, 1, 8).lora(lora());
    let lm = config.init(&device).unwrap();
    let embeds = Tensor::<3>::random([1, 5, 16], burn::tensor::Distribution::Default, &device);
    let loss = lm.logits(lm.hidden(embeds, None).unwrap()).square().mean();
    let grads = loss.backward();
    let q = &lm.model.layers[0].self_attn.q_proj;
    let adapter = q.lora.as_ref().unwrap();
    // B starts at zero, so A's gradient is zero and B's is not.
    assert!(
        values(adapter.a.val().grad(&grads).unwrap())
            .iter()
            .all(|g| *g == 0.0)
    );
    assert!(
        values(adapter.b.val().grad(&grads).unwrap())
            .iter()
            .any(|g| *g != 0.0)
    );
}

/// An adapter of an output layer that is the embedding table: it learns and changes logits, and embeddings
/// stay. Merging it is not possible; removing it gives the output layer a weight of its own.
#[test]
fn a_tied_output_layer_has_an_adapter() {
    let lm = model(&configs()[4]);
    let table = |lm: &CausalLm| values(lm.model.embed_tokens.weight.val());
    let hidden = lm.embed(ids(&[&PROMPT]));
    let logits = |lm: &CausalLm| lm.logits(hidden.clone());
    let OutputLayer::Tied(tied) = &lm.lm_head else {
        panic!("not tied");
    };
    let adapter = tied.lora.clone().unwrap();
    let [a, b] = [&adapter.a, &adapter.b].map(|factor| factor.val().transpose().unsqueeze());
    let embeddings = lm.model.embed_tokens.weight.val().transpose().unsqueeze();
    // Alpha is twice the rank.
    let sum = hidden.clone().matmul(embeddings) + hidden.clone().matmul(a).matmul(b) * 2.0;
    assert_close(logits(&lm), sum.clone(), "by hand");
    let merged = lm.clone().merge_lora();
    assert_close(logits(&merged), sum.clone(), "merged");
    assert_eq!(table(&merged), table(&lm));
    let baked = lm.clone().bake_lora();
    assert!(!baked.config().tie_word_embeddings && baked.lm_head.own().is_some());
    assert_close(logits(&baked), sum, "baked");
    assert_eq!(table(&baked), table(&lm));
    let none = lm.clone().replace_lora(None).unwrap();
    assert!(matches!(&none.lm_head, OutputLayer::Tied(tied) if tied.lora.is_none()));

    let device = Device::flex().autodiff();
    let learning = configs()[4].init(&device).unwrap();
    let hidden = learning.embed(Tensor::from_data(ids(&[&PROMPT]).into_data(), &device));
    let grads = learning.logits(hidden).square().mean().backward();
    let OutputLayer::Tied(tied) = &learning.lm_head else {
        panic!("not tied");
    };
    let b = &tied.lora.as_ref().unwrap().b;
    assert!(
        values(b.val().grad(&grads).unwrap())
            .iter()
            .any(|g| *g != 0.0)
    );
}

#[test]
fn other_adapters_compute_the_same() {
    let lm = model(&configs()[3]);
    let old = lm.config().lora.clone().unwrap();
    let embeds = lm.embed(ids(&[&PROMPT]));
    let run = |lm: &CausalLm| lm.logits(lm.hidden(embeds.clone(), None).unwrap());
    let expected = run(&lm);
    let q = |lm: &CausalLm| lm.model.layers[0].self_attn.q_proj.clone();
    let base = values(q(&lm).weight.val());
    let factor = |lm: &CausalLm| values(q(lm).lora.unwrap().b.val());

    // Dropout alone: every bit as before.
    let dropout = lm.clone().set_lora(old.clone().with_dropout(0.3)).unwrap();
    assert_eq!(factor(&dropout), factor(&lm));
    assert_eq!(dropout.config().lora.as_ref().unwrap().dropout, 0.3);
    // Twice the scale: half the factor.
    let mut louder = old.clone();
    louder.alpha *= 2.0;
    let louder = lm.clone().set_lora(louder).unwrap();
    let halves: Vec<f32> = factor(&lm).iter().map(|b| b / 2.0).collect();
    assert_eq!(factor(&louder), halves);
    assert_eq!(values(q(&louder).weight.val()), base);
    assert_close(run(&louder), expected.clone(), "another alpha");
    // Another rank: the old one goes into the weight, the new product is zero.
    let mut wider = old.clone();
    wider.rank += 1;
    let wider = lm.clone().set_lora(wider).unwrap();
    let adapter = q(&wider).lora.unwrap();
    assert_eq!(adapter.a.dims()[0], old.rank + 1);
    assert!(values(adapter.b.val()).iter().all(|b| *b == 0.0));
    assert_ne!(values(q(&wider).weight.val()), base);
    assert_close(run(&wider), expected.clone(), "another rank");
    // Other targets.
    let mut fewer = old.clone();
    fewer.targets = vec!["v_proj".into()];
    let fewer = lm.clone().set_lora(fewer).unwrap();
    assert!(q(&fewer).lora.is_none());
    assert!(fewer.model.layers[0].self_attn.v_proj.lora.is_some());
    assert_close(run(&fewer), expected, "other targets");
    // What cannot be is said.
    let mut wrong = old;
    wrong.targets = vec!["w_proj".into()];
    wrong.dropout = 1.0;
    let error = lm.set_lora(wrong).unwrap_err().to_string();
    assert!(
        error.contains("`w_proj`") && error.contains("dropout is 1"),
        "{error}"
    );
}

/// Three turns behind four shared positions, and a row with one turn that is padded: every turn has
/// the values and gradients that it has alone behind what they share.
#[test]
fn packed_turns_are_as_if_alone() {
    let device = Device::flex().autodiff();
    for config in configs() {
        device.seed(11);
        let lm = config.init(&device).unwrap();
        let shared = [1, 7, 30, 2];
        let turns: [&[i64]; 3] = [&[5, 6, 9], &[12], &[3, 3, 8, 20]];
        let first: Vec<i64> = shared
            .iter()
            .chain(turns.concat().iter())
            .copied()
            .collect();
        let mut second = [shared.as_slice(), &[17, 4]].concat();
        second.resize(first.len(), 0);
        let mut map = vec![vec![0; 4], vec![0; 4]];
        for (turn, ids) in turns.iter().enumerate() {
            map[0].extend(vec![turn as u32 + 1; ids.len()]);
        }
        map[1].extend([1, 1]);
        map[1].resize(first.len(), 0);
        let mask: Vec<Vec<bool>> = [first.len(), 6]
            .iter()
            .map(|real| (0..first.len()).map(|i| i < *real).collect())
            .collect();
        let place = |ids: Tensor<2, Int>| Tensor::from_data(ids.into_data(), &device);
        let embeds = lm
            .embed(place(ids(&[&first, &second])))
            .detach()
            .require_grad();
        let apart = lm.hidden_packed(embeds.clone(), Some(&mask), &map, None);
        if config.sliding_window.is_some() {
            let text = apart.unwrap_err().to_string();
            assert!(text.contains("narrower than the 12"), "{text}");
            continue;
        }
        let apart = apart.unwrap();
        let mut tape = tpo_core::gradient_checkpointing::Tape::new(None);
        let again = lm.hidden_packed(embeds.clone(), Some(&mask), &map, Some(&mut tape));
        assert_close(again.unwrap().inner(), apart.clone().inner(), "recomputed");
        let d = config.hidden_size;
        // Only the turns count: what they share comes once here and once a turn below.
        let weight = |ids: &[i64]| {
            Tensor::<3>::random(
                [1, ids.len(), d],
                burn::tensor::Distribution::Default,
                &device.clone().inner(),
            )
        };
        let places = [
            (0, 4, turns[0]),
            (0, 7, turns[1]),
            (0, 8, turns[2]),
            (1, 4, &[17, 4]),
        ];
        let (mut whole, mut alone) = (Vec::new(), Vec::new());
        for (row, at, ids) in places {
            let end = at + ids.len();
            let weight = Tensor::from_inner(weight(ids));
            let cut = apart.clone().slice([row..row + 1, at..end, 0..d]);
            let behind = Tensor::cat(
                vec![
                    embeds.clone().slice([row..row + 1, 0..4, 0..d]),
                    embeds.clone().slice([row..row + 1, at..end, 0..d]),
                ],
                1,
            );
            let own = lm
                .hidden(behind, None)
                .unwrap()
                .slice([0..1, 4..4 + ids.len(), 0..d]);
            assert_close(cut.clone().inner(), own.clone().inner(), "values");
            whole.push((cut * weight.clone()).sum());
            alone.push((own * weight).sum());
        }
        let gradients = |terms: Vec<Tensor<1>>| {
            let grads = Tensor::cat(terms, 0).sum().backward();
            let q = lm.model.layers[1].self_attn.k_proj.weight.val();
            (embeds.grad(&grads).unwrap(), q.grad(&grads).unwrap())
        };
        let (by_input, by_weight) = gradients(whole);
        let (expected_input, expected_weight) = gradients(alone);
        assert_close(by_input, expected_input, "gradient of the input");
        assert_close(by_weight, expected_weight, "gradient of a weight");
    }
}

#[test]
fn turns_out_of_order_are_refused() {
    let lm = model(&configs()[0]);
    let embeds = lm.embed(ids(&[&[1, 2, 3, 4]]));
    for map in [[1, 0, 1, 1], [0, 2, 1, 1], [0, 1, 0, 1]] {
        let text = lm
            .hidden_packed(embeds.clone(), None, &[map.to_vec()], None)
            .unwrap_err()
            .to_string();
        assert!(text.contains("in order"), "{map:?}: {text}");
    }
    let short = lm.hidden_packed(embeds, None, &[vec![0, 1]], None);
    assert!(short.unwrap_err().to_string().contains("[1, 4]"));
}
