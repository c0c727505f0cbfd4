//! A model in other number formats: what fits, what is refused, and that a converted directory is
//! what quantising while loading gives.

use burn::tensor::{Device, FloatDType};
use tpo::core::ops::QuantFormat;
use tpo::export::{ExportOptions, convert_model};
use tpo::model::memory::{ModelMemory, choose_format};
use tpo::model::{Quantize, VisionConfig};
use tpo::prelude::*;
use tpo::{Error, presets};

const ANSWER: usize = 20;

fn options(quantize: Quantize, memory: u64) -> SessionOptions {
    SessionOptions {
        quantize,
        memory: Some(memory),
        max_new_tokens: ANSWER,
        ..SessionOptions::default()
    }
}

fn needs(config: &TpoConfig, dtype: FloatDType) -> u64 {
    ModelMemory::of::<BuiltInHeads>(config, dtype, ANSWER)
        .unwrap()
        .total()
}

#[test]
fn the_best_that_fits_is_taken_and_what_does_not_is_refused() {
    let device = Device::flex();
    let config = presets::mini_config().unwrap();
    let (f32, bf16) = (
        needs(&config, FloatDType::F32),
        needs(&config, FloatDType::BF16),
    );
    let open = |options| Session::open("assets/mini", &device, options, None);
    for (memory, dtype) in [
        (f32, FloatDType::F32),
        (f32 - 1, FloatDType::BF16),
        (bf16, FloatDType::BF16),
    ] {
        let (session, _) = open(options(Quantize::default(), memory)).unwrap();
        assert_eq!(session.options().dtype, Some(dtype));
    }
    // Neither float type fits, the quantised weights do.
    let error = open(options(Quantize::default(), bf16 - 1)).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }));
    let text = error.to_string();
    assert!(text.contains("give --dtype bf16 --quantize q8_0"), "{text}");
    assert!(open(options(QuantFormat::Q8_0.into(), bf16 - 1)).is_ok());
    // What is asked for is not silently changed.
    let asked = SessionOptions {
        dtype: Some(FloatDType::F32),
        ..options(Quantize::default(), f32 - 1)
    };
    let text = open(asked).unwrap_err().to_string();
    assert!(text.contains("give --dtype bf16"), "{text}");
    let text = open(options(Quantize::default(), 1 << 20))
        .unwrap_err()
        .to_string();
    assert!(text.contains("free memory"), "{text}");
}

/// The published sizes, in GiB.
#[test]
fn the_published_model_is_refused_in_f32_on_24_gb() {
    let mut config = TpoConfig::videochat_tpo();
    let gib = |config: &TpoConfig, dtype| needs(config, dtype) as f64 / (1_u64 << 30) as f64;
    assert!((29.0..34.0).contains(&gib(&config, FloatDType::F32)));
    assert!((15.0..17.5).contains(&gib(&config, FloatDType::BF16)));
    let memory = Some(22 << 30);
    let chosen = choose_format::<BuiltInHeads>(&config, None, ANSWER, 0, memory).unwrap();
    assert_eq!(chosen, FloatDType::BF16);
    let refused = choose_format::<BuiltInHeads>(&config, Some(FloatDType::F32), ANSWER, 0, memory);
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("give --dtype bf16") && text.contains("asked for"),
        "{text}"
    );
    for (format, most) in [(QuantFormat::Q8_0, 10.6), (QuantFormat::Q4_0, 7.3)] {
        config.llm.quantization = Some(format);
        assert!(gib(&config, FloatDType::BF16) < most, "{format:?}");
    }
}

#[test]
fn a_converted_model_answers_as_one_quantised_while_loading() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let all = Quantize {
        llm: Some(QuantFormat::Q8_0),
        vision: Some(QuantFormat::Q8_0),
    };
    for parts in [all, QuantFormat::Q4_0.into()] {
        let format = parts.llm.unwrap();
        let small = dir.path().join(format.name());
        let export = ExportOptions::default();
        let report = convert_model::<BuiltInHeads>("assets/mini", &small, parts, &export, None);
        let written = report.unwrap().bytes;
        let original = std::fs::metadata("assets/mini/model.safetensors")
            .unwrap()
            .len();
        assert!(written < original, "{written} of {original}");

        let answers = |dir: &std::path::Path, quantize| {
            let (mut session, _) =
                Session::open(dir, &device, options(quantize, u64::MAX), None).unwrap();
            assert_eq!(session.config().llm.quantization, parts.llm);
            let VisionConfig::Umt(vision) = &session.config().vision else {
                panic!("another encoder");
            };
            assert_eq!(vision.quantization, parts.vision);
            session
                .load_video("assets/bouncing_shapes.mp4", None)
                .unwrap();
            ["Count the shapes.", "Where is the red circle at the start?"].map(|text| {
                let reply = session
                    .ask(Question::new(text))
                    .unwrap()
                    .collect_reply()
                    .unwrap();
                let drawn: Vec<String> = reply
                    .tasks
                    .iter()
                    .map(|t| t.drawing().text.clone())
                    .collect();
                (reply.text.clone(), drawn)
            })
        };
        let converted = answers(&small, Quantize::default());
        assert_eq!(converted, answers("assets/mini".as_ref(), parts));
        assert!(!converted[1].1.is_empty(), "{converted:?}");
        // It is not quantised a second time in another format.
        let other = match format {
            QuantFormat::Q8_0 => QuantFormat::Q4_0,
            QuantFormat::Q4_0 => QuantFormat::Q8_0,
        };
        let error = Session::open(&small, &device, options(other.into(), u64::MAX), None);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("quantised as"), "{text}");
    }
}
