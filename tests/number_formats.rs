//! A model in other number formats: what fits, what is refused, and that a converted directory is
//! what quantising while loading gives.

use std::collections::BTreeSet;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType};
use tpo::core::ops::QuantFormat;
use tpo::export::{ExportOptions, convert_model};
use tpo::model::memory::{ModelMemory, WeightFormat, choose_format};
use tpo::model::{Quantize, VisionConfig};
use tpo::prelude::*;
use tpo::train::Recipe;
use tpo::training::{RunOptions, run_recipe};
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
    let choose = |dtype| {
        choose_format::<BuiltInHeads>(&config, dtype, Quantize::default(), ANSWER, 0, memory)
    };
    assert_eq!(choose(None).unwrap(), FloatDType::BF16);
    let refused = choose(Some(FloatDType::F32));
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

/// The cache is what is allocated: two positions for each word of an answer, one more, and the prompt.
#[test]
fn an_absurd_answer_is_as_long_as_the_model_reads() {
    let config = TpoConfig::videochat_tpo();
    let of = |answer| ModelMemory::of::<BuiltInHeads>(&config, FloatDType::BF16, answer).unwrap();
    let position = (of(1).cache - of(0).cache) / 2;
    let prompt = config.max_prompt() as u64;
    assert_eq!(of(20).cache, (prompt + 41) * position);
    let room = config.llm.max_position_embeddings - config.max_prompt();
    assert_eq!(of(usize::MAX), of(room));
}

/// Formats that an already quantised directory cannot take are not offered, and the vision encoder's
/// format is among the flags.
#[test]
fn what_is_quantised_already_stays_so() {
    let mut config = presets::mini_config().unwrap();
    let flags = |config: &TpoConfig, asked| -> Vec<String> {
        let formats = WeightFormat::of(config, asked).into_iter();
        formats.map(WeightFormat::flags).collect()
    };
    let all = [
        "--dtype f32",
        "--dtype bf16",
        "--dtype bf16 --quantize q8_0",
        "--dtype bf16 --quantize q4_0",
    ];
    assert_eq!(flags(&config, None), all);
    let vision = Quantize {
        llm: None,
        vision: Some(QuantFormat::Q8_0),
    };
    let asked = WeightFormat {
        dtype: FloatDType::F32,
        quantize: Quantize {
            llm: Some(QuantFormat::Q8_0),
            ..vision
        },
    };
    let vision_too = |flags: &str| format!("{flags} --quantize-vision q8_0");
    let mut expected = vec![vision_too("--dtype f32 --quantize q8_0")];
    expected.extend(all.map(vision_too));
    assert_eq!(flags(&config, Some(asked)), expected);
    // The same for a vision encoder that is quantised in the files.
    config.quantize(vision).unwrap();
    assert_eq!(flags(&config, None), all.map(vision_too));
    config.quantize(QuantFormat::Q4_0.into()).unwrap();
    let fixed = ["f32", "bf16"].map(|d| vision_too(&format!("--dtype {d} --quantize q4_0")));
    assert_eq!(flags(&config, None), fixed);
    // And in the table of what is refused.
    let parts = Quantize::default();
    let refused = choose_format::<BuiltInHeads>(&config, None, parts, ANSWER, 0, Some(1 << 20));
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("--dtype f32 --quantize q4_0 --quantize-vision q8_0"),
        "{text}"
    );
    assert!(!text.contains("--quantize q8_0"), "{text}");
    let parts = QuantFormat::Q8_0.into();
    let refused = choose_format::<BuiltInHeads>(&config, None, parts, ANSWER, 0, None);
    assert!(matches!(refused, Err(Error::Config { .. })));
}

/// Number formats of a module's floats.
fn dtypes(module: &impl Module) -> BTreeSet<String> {
    #[derive(Default)]
    struct Read(BTreeSet<String>);
    impl ModuleVisitor for Read {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.insert(format!("{:?}", param.val().dtype()));
        }
    }
    let mut read = Read::default();
    module.visit(&mut read);
    read.0
}

/// Files, drawn adapters and the checkpoint itself are of several types; a session is of one.
#[test]
fn a_checkpoint_trained_in_bf16_answers_in_one_type() {
    const RECIPE: &str = r#"
name = "narrow"
[model]
directory = "assets/mini"
quantize_vision = "q8_0"
lora = { rank = 2, alpha = 4.0 }
[logging]
tensorboard = false
curves = false
[[stages]]
name = "tokens"
length = { steps = 2 }
batch_size = 2
precision = "bf16"
data = { sources = [{ name = "w", synthetic = { tasks = ["region"], rows = 4 } }] }
groups = [{ name = "tokens", patterns = ["task_tokens.region"], learning_rate = 1e-3 }]
"#;
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let recipe = Recipe::read::<&str>(RECIPE, "narrow.toml", &[]).unwrap();
    run_recipe::<BuiltInHeads>(&recipe, &RunOptions::new(dir.path(), &device)).unwrap();
    for (dtype, held) in [(None, "F32"), (Some(FloatDType::BF16), "BF16")] {
        let options = SessionOptions {
            dtype,
            ..SessionOptions::default()
        };
        let mut session = Session::open_checkpoint(dir.path(), &device, options).unwrap();
        assert_eq!(dtypes(session.model()), BTreeSet::from([held.to_string()]));
        let quantize = session.config().quantization();
        assert_eq!(
            (quantize.llm, quantize.vision),
            (None, Some(QuantFormat::Q8_0))
        );
        session
            .load_video("assets/bouncing_shapes.mp4", None)
            .unwrap();
        let question = Question::new("Where is the red circle at the start?").with_task("region");
        let reply = session.ask(question).unwrap().collect_reply().unwrap();
        assert!(reply.tasks[0].get::<RegionPrediction>().is_some(), "{held}");
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
