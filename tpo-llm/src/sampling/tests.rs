//! Sampling against numbers worked by hand and against the drawn frequencies.

use super::*;

const NEG: f32 = f32::NEG_INFINITY;

fn config(edit: impl FnOnce(&mut SamplingConfig)) -> SamplingConfig {
    let mut c = SamplingConfig::sampling(1.0, 7);
    edit(&mut c);
    c
}

/// The probabilities that are drawn from, one per id.
fn distribution(c: SamplingConfig, logits: &[f32], history: &[u32]) -> Vec<f32> {
    let sampler = Sampler::new(c).unwrap();
    let candidates = sampler.scores(logits, history);
    let candidates = sampler.candidates(&candidates.unwrap()).unwrap();
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut out = vec![0.0; logits.len()];
    for (id, weight) in candidates {
        out[id as usize] = (weight / total) as f32;
    }
    out
}

fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-6, "{got:?} is not {want:?}");
    }
}

/// Logits whose softmax is `p`.
fn logits_of(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let mut s = Sampler::new(SamplingConfig::greedy()).unwrap();
    assert_eq!(s.sample(&[1.0, 3.0, 3.0, 2.0], &[]).unwrap(), 1);
    assert_eq!(s.sample(&[-5.0, NEG, -4.0], &[]).unwrap(), 2);
    assert_eq!(s.sample(&[0.0, -0.0], &[]).unwrap(), 0);
}

#[test]
fn temperature() {
    let p = [0.5, 0.25, 0.25];
    close(&distribution(config(|_| {}), &logits_of(&p), &[]), &p);
    // At 1/2 the probabilities are squared: 4, 1, 1 sixths.
    let half = config(|c| c.temperature = 0.5);
    close(
        &distribution(half, &logits_of(&p), &[]),
        &[4.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0],
    );
    // Nearly zero: all on the largest, no overflow.
    let cold = config(|c| c.temperature = 1e-30);
    close(
        &distribution(cold, &[3e38, -3e38, 1.0], &[]),
        &[1.0, 0.0, 0.0],
    );
}

#[test]
fn top_k_keeps_ties_of_the_last() {
    let k2 = || config(|c| c.top_k = 2);
    let p = logits_of(&[0.4, 0.3, 0.2, 0.1]);
    close(
        &distribution(k2(), &p, &[]),
        &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0],
    );
    let tie = logits_of(&[0.5, 0.2, 0.2, 0.1]);
    close(
        &distribution(k2(), &tie, &[]),
        &[5.0 / 9.0, 2.0 / 9.0, 2.0 / 9.0, 0.0],
    );
    let more = config(|c| c.top_k = 50);
    close(&distribution(more, &p, &[]), &[0.4, 0.3, 0.2, 0.1]);
    // Masked ids stay out even when k reaches them.
    let masked = config(|c| c.top_k = 3);
    close(
        &distribution(masked, &[0.0, NEG, NEG, NEG], &[]),
        &[1.0, 0.0, 0.0, 0.0],
    );
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    let p = logits_of(&[0.1, 0.5, 0.15, 0.25]);
    let at = |top_p: f32| distribution(config(|c| c.top_p = top_p), &p, &[]);
    close(&at(0.7), &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
    close(&at(0.8), &[0.0, 5.0 / 9.0, 1.5 / 9.0, 2.5 / 9.0]);
    close(&at(0.3), &[0.0, 1.0, 0.0, 0.0]);
    // At least one is kept.
    close(&at(1e-6), &[0.0, 1.0, 0.0, 0.0]);
    close(&at(1.0), &[0.1, 0.5, 0.15, 0.25]);
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let p = logits_of(&[0.5, 0.3, 0.15, 0.05]);
    let got = distribution(config(|c| c.min_p = 0.2), &p, &[]);
    close(&got, &[5.0 / 9.5, 3.0 / 9.5, 1.5 / 9.5, 0.0]);
}

#[test]
fn filters_work_one_after_the_other() {
    // top-k first: 0.4 and 0.3 become 4/7 and 3/7; then top-p 0.5 keeps only the first.
    // top-p alone would have kept both.
    let p = logits_of(&[0.4, 0.3, 0.2, 0.1]);
    let both = config(|c| {
        c.top_k = 2;
        c.top_p = 0.5;
    });
    close(&distribution(both, &p, &[]), &[1.0, 0.0, 0.0, 0.0]);
    let alone = config(|c| c.top_p = 0.5);
    close(
        &distribution(alone, &p, &[]),
        &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0],
    );
    // Temperature before top-p: 0.6/0.4 at 1/2 is 9/13 and 4/13, so 0.65 keeps one.
    let cool = config(|c| {
        c.temperature = 0.5;
        c.top_p = 0.65;
    });
    close(
        &distribution(cool, &logits_of(&[0.6, 0.4]), &[]),
        &[1.0, 0.0],
    );
}

#[test]
fn repetition_penalty_counts_each_id_once() {
    let c = || {
        let mut c = SamplingConfig::greedy();
        c.repetition_penalty = 2.0;
        Sampler::new(c).unwrap()
    };
    // 3 becomes 1.5; twice in the history makes no difference.
    assert_eq!(c().sample(&[3.0, 1.4, 0.0], &[0, 0, 0]).unwrap(), 0);
    assert_eq!(c().sample(&[3.0, 1.6, 0.0], &[0, 0, 0]).unwrap(), 1);
    // Negative logits are multiplied: -1 becomes -2.
    assert_eq!(c().sample(&[-1.0, -1.5], &[0]).unwrap(), 1);
    // Ids past the logits do not matter.
    assert_eq!(c().sample(&[1.0, 0.9], &[77]).unwrap(), 0);
    // Before temperature: exp(2/2 - 2) against exp(2 - 2).
    let got = distribution(config(|c| c.repetition_penalty = 2.0), &[2.0, 2.0], &[0]);
    let e = (-1.0_f32).exp();
    close(&got, &[e / (1.0 + e), 1.0 / (1.0 + e)]);
}

#[test]
fn no_repeat_ngram_and_suppressed() {
    let mut c = SamplingConfig::greedy();
    c.no_repeat_ngram_size = 2;
    let mut s = Sampler::new(c).unwrap();
    // 0 1 was seen and the last id is 0, so 1 is banned.
    assert_eq!(s.sample(&[0.0, 9.0, 5.0], &[0, 1, 2, 0]).unwrap(), 2);
    assert_eq!(s.sample(&[0.0, 9.0, 5.0], &[0, 1, 2]).unwrap(), 1);
    assert_eq!(s.sample(&[0.0, 9.0, 5.0], &[]).unwrap(), 1);
    let mut c = SamplingConfig::greedy();
    c.no_repeat_ngram_size = 1;
    c.suppress_tokens = vec![3, 99];
    let mut s = Sampler::new(c).unwrap();
    assert_eq!(s.sample(&[0.0, 9.0, 5.0, 100.0], &[1]).unwrap(), 2);
}

#[test]
fn drawn_frequencies_follow_the_distribution() {
    let p = [0.05, 0.4, 0.0, 0.25, 0.3];
    let logits = logits_of(&p);
    let mut s = Sampler::new(SamplingConfig::sampling(1.0, 2024)).unwrap();
    let n = 100_000;
    let mut counts = [0.0_f64; 5];
    for _ in 0..n {
        counts[s.sample(&logits, &[]).unwrap() as usize] += 1.0;
    }
    assert_eq!(counts[2], 0.0);
    // Chi-square with 3 degrees of freedom: 16.27 is exceeded once in a thousand seeds.
    let chi: f64 = p
        .iter()
        .zip(counts)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, c)| {
            let e = f64::from(*p) * f64::from(n);
            (c - e).powi(2) / e
        })
        .sum();
    assert!(chi < 16.27, "chi-square {chi}, counts {counts:?}");
}

#[test]
fn seeds_decide() {
    let logits = vec![0.0; 1000];
    let draw = |seed| {
        let mut s = Sampler::new(SamplingConfig::sampling(1.0, seed)).unwrap();
        (0..20)
            .map(|_| s.sample(&logits, &[]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // A clone continues from the same place.
    let mut a = Sampler::new(SamplingConfig::sampling(1.0, 3)).unwrap();
    a.sample(&logits, &[]).unwrap();
    let mut b = a.clone();
    assert_eq!(
        a.sample(&logits, &[]).unwrap(),
        b.sample(&logits, &[]).unwrap()
    );
}

#[test]
fn bad_logits_are_errors() {
    for c in [SamplingConfig::greedy(), SamplingConfig::sampling(1.0, 0)] {
        let mut s = Sampler::new(c).unwrap();
        for logits in [
            &[][..],
            &[0.0, f32::NAN],
            &[f32::INFINITY, 0.0],
            &[NEG, NEG],
        ] {
            let error = s.sample(logits, &[]).unwrap_err();
            assert!(
                matches!(error, LlmError::Logits { .. }),
                "{logits:?}: {error}"
            );
        }
        let error = s.sample(&[0.0, 1.0, f32::NAN], &[]).unwrap_err();
        assert!(error.to_string().contains("value 2"), "{error}");
    }
}

#[test]
fn settings_are_checked_all_at_once() {
    let bad = SamplingConfig {
        temperature: -1.0,
        top_p: 0.0,
        min_p: f32::NAN,
        repetition_penalty: 0.0,
        ..SamplingConfig::greedy()
    };
    let text = Sampler::new(bad).unwrap_err().to_string();
    for name in ["temperature", "top_p", "min_p", "repetition_penalty"] {
        assert!(text.contains(name), "{text}");
    }
    assert!(SamplingConfig::sampling(f32::NAN, 0).validate().is_err());
    assert!(
        SamplingConfig::sampling(f32::INFINITY, 0)
            .validate()
            .is_err()
    );
    let json = serde_json::to_string(&SamplingConfig::greedy()).unwrap();
    assert_eq!(
        serde_json::from_str::<SamplingConfig>(&json).unwrap(),
        SamplingConfig::greedy()
    );
    assert!(serde_json::from_str::<SamplingConfig>(r#"{"temprature": 1}"#).is_err());
}
