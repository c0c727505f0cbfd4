//! Feature extractors and feature files.

use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use tpo_core::head::FeatureSource;
use tpo_heads::HeadsError;
use tpo_heads::temporal::features::{
    ClipFeatureExtractor, ClipInput, ClipTower, InternVideo2Features, LanguageModelFeatures,
    PrecomputedOptions, QueryFeatureExtractor, TEMPORAL_TEXT_FEATURES, TEMPORAL_VIDEO_FEATURES,
    TemporalFeatures, TextTowerFeatures, read_features,
};
use tpo_llm::tokenizer::Tokenizer;
use tpo_llm::{LlmConfig, QueryTokenizer, TextTowerConfig};
use tpo_vision::{InternVideo2Config, UmtConfig, VideoEncoder};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn clips(n: usize, input: &ClipInput, device: &Device) -> Tensor<5> {
    let shape = [n, input.frames_per_clip, 3, input.size, input.size];
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn values(features: Tensor<2>) -> Vec<f32> {
    features.into_data().iter::<f32>().collect()
}

/// One by one, in batches of two, and all at once must agree.
fn batch_is_single(extractor: &dyn ClipFeatureExtractor) {
    let clips = clips(5, extractor.input(), &Device::flex());
    let together = extractor.extract(clips.clone()).unwrap();
    assert_eq!(together.dims(), [5, extractor.width()]);
    let together = values(together);
    for i in 0..5 {
        let alone = values(extractor.extract(clips.clone().narrow(0, i, 1)).unwrap());
        let row = &together[i * extractor.width()..(i + 1) * extractor.width()];
        for (a, b) in alone.iter().zip(row) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
        }
    }
}

#[test]
fn a_batch_of_clips_equals_its_clips() {
    let device = Device::flex();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    batch_is_single(&InternVideo2Features::new(tower).with_clips_per_batch(2));
    let encoder = VideoEncoder::new(&UmtConfig::mini(), &device).unwrap();
    let input = ClipInput::one_per_second(64);
    batch_is_single(&ClipTower::of_encoder(encoder, "umt-mini", input).unwrap());
}

#[test]
fn towers_never_run_with_autodiff() {
    let device = Device::flex().autodiff();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    let plain = InternVideo2Features::new(tower.valid());
    let extractor = InternVideo2Features::new(tower);
    assert!(!extractor.device().is_autodiff());
    let clips = clips(1, extractor.input(), &device).require_grad();
    let features = extractor.extract(clips.clone()).unwrap();
    assert!(!features.device().is_autodiff() && !features.is_tracked());
    assert_eq!(extractor.identity().unwrap(), plain.identity().unwrap());
    assert_eq!(values(features), values(plain.extract(clips).unwrap()));

    let lm = LlmConfig::mini(400).init(&device).unwrap();
    let extractor = LanguageModelFeatures::new(lm, tokenizer(), "mini");
    let features = extractor.extract("when?").unwrap();
    assert!(!features.device().is_autodiff());
}

#[test]
fn other_weights_have_another_identity() {
    let device = Device::flex();
    let extractor = |seed| {
        device.seed(seed);
        let tower = InternVideo2Config::mini().init(&device).unwrap();
        InternVideo2Features::new(tower).identity().unwrap()
    };
    // Nothing else draws between seed and identity in this thread; equal seeds may still differ
    // when another test draws, so only inequality is claimed.
    assert_ne!(extractor(1), extractor(2));
}

#[test]
fn clips_of_the_wrong_shape_are_refused() {
    let device = Device::flex();
    let tower = InternVideo2Config::mini().init(&device).unwrap();
    let extractor = InternVideo2Features::new(tower);
    for shape in [
        [1, 7, 3, 56, 56],
        [1, 8, 1, 56, 56],
        [1, 8, 3, 56, 70],
        [0, 8, 3, 56, 56],
    ] {
        let error = extractor
            .extract(Tensor::zeros(shape, &device))
            .unwrap_err();
        assert!(matches!(error, HeadsError::Shape { .. }), "{error}");
    }
    let mut input = ClipInput::one_per_second(64);
    input.frames_per_second = f64::NAN;
    let encoder = VideoEncoder::new(&UmtConfig::mini(), &device).unwrap();
    assert!(ClipTower::of_encoder(encoder, "umt", input).is_err());
}

fn tokenizer() -> Tokenizer {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/byte_tokenizer.json");
    let mut tokenizer =
        Tokenizer::from_tokenizer_json_bytes(&std::fs::read(file).unwrap()).unwrap();
    tokenizer.set_eos_id(tokenizer.token_to_id("</s>"));
    tokenizer
}

#[test]
fn a_query_has_one_feature_per_token() {
    let device = Device::flex();
    let query = QueryTokenizer::new(tokenizer());
    let config = TextTowerConfig::mini(query.tokenizer().vocab_size());
    let n = query.encode("who waves?").unwrap();
    let n = n.iter().filter(|id| **id != query.pad_id()).count();
    let extractor = TextTowerFeatures::new(config.init(&device).unwrap(), query);
    let features = extractor.extract("who waves?").unwrap();
    assert_eq!(features.dims(), [n, extractor.width()]);

    let tokens = tokenizer();
    let lm = LlmConfig::mini(tokens.vocab_size()).init(&device).unwrap();
    let extractor = LanguageModelFeatures::new(lm, tokens, "mini");
    let long = "word ".repeat(500);
    assert_eq!(extractor.extract(&long).unwrap().dims(), [100, 128]);
}

/// A `.npy` file as numpy writes it.
fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let text = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({},), }}\n",
        shape.join(", ")
    );
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(data);
    out
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn npz(path: &Path, members: &[(&str, Vec<u8>)], method: CompressionMethod) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn features_of_a_dataset_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let (slowfast, clip, text) = (path("slowfast.npz"), path("clip.npz"), path("qid7.npz"));
    let a = npy("<f4", &[3, 2], &f32_bytes(&[3.0, 4.0, 0.0, 2.0, 6.0, 8.0]));
    npz(&slowfast, &[("features", a)], CompressionMethod::Deflated);
    let half: Vec<u8> = [1.0, -2.0]
        .iter()
        .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
        .collect();
    npz(
        &clip,
        &[
            ("extra", npy("<f4", &[1], &[0; 4])),
            ("features", npy("<f2", &[2, 1], &half)),
        ],
        CompressionMethod::Stored,
    );
    let hidden = npy("<f4", &[2, 2], &f32_bytes(&[1.0, 2.0, 3.0, 4.0]));
    let pooled = npy("<f4", &[2], &f32_bytes(&[1.0, 2.0]));
    npz(
        &text,
        &[("pooler_output", pooled), ("last_hidden_state", hidden)],
        CompressionMethod::Stored,
    );

    let device = Device::flex();
    let options = PrecomputedOptions::default();
    let video = options.read(&[&slowfast, &clip]).unwrap();
    let text = options.read(&[&text]).unwrap();
    let found = TemporalFeatures {
        video: Some(video.to_tensor(&device)),
        text: Some(text.to_tensor(&device)),
    };
    let video = found.features(TEMPORAL_VIDEO_FEATURES).unwrap().unwrap();
    assert_eq!(video.dims(), [2, 3]);
    assert_eq!(values(video), [3.0, 4.0, 1.0, 0.0, 2.0, -2.0]);
    let text = found.features(TEMPORAL_TEXT_FEATURES).unwrap().unwrap();
    assert_eq!(values(text), [1.0, 2.0, 3.0, 4.0]);
    assert!(found.features("other").unwrap().is_none());

    let options = PrecomputedOptions {
        normalise: true,
        max_rows: Some(1),
        ..options
    };
    let row = options.read(&[&slowfast, &clip]).unwrap();
    for (got, expected) in row.values().iter().zip([0.6, 0.8, 1.0]) {
        assert!((got - expected).abs() < 1e-4, "{row:?}");
    }
    let error = options.read(&[path("absent.npz")]).unwrap_err();
    assert!(matches!(error, HeadsError::FeatureFile { .. }), "{error}");
}

#[test]
fn safetensors_features_are_read_in_every_float_type() {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.safetensors");
    for (dtype, data) in [
        (Dtype::F32, f32_bytes(&[1.0, -2.0])),
        (Dtype::BF16, vec![0x80, 0x3f, 0x00, 0xc0]),
        (Dtype::F16, vec![0x00, 0x3c, 0x00, 0xc0]),
        (
            Dtype::F64,
            [1.0f64, -2.0]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect(),
        ),
    ] {
        let view = TensorView::new(dtype, vec![1, 2, 1], &data).unwrap();
        safetensors::serialize_to_file([("anything", view)], None, &path).unwrap();
        let found = read_features(&path, &PrecomputedOptions::default()).unwrap();
        assert_eq!((found.rows(), found.width()), (2, 1));
        assert_eq!(found.values(), [1.0, -2.0]);
    }
    let view = TensorView::new(Dtype::I32, vec![2, 1], &[0; 8]).unwrap();
    safetensors::serialize_to_file([("features", view)], None, &path).unwrap();
    let error = read_features(&path, &PrecomputedOptions::default()).unwrap_err();
    assert!(error.to_string().contains("I32"), "{error}");
}

#[test]
fn hostile_feature_files_give_errors() {
    let dir = tempfile::tempdir().unwrap();
    let small = PrecomputedOptions {
        max_bytes: 1000,
        ..PrecomputedOptions::default()
    };
    let mut cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a.npz", b"not a zip".to_vec(), "archive"),
        ("b.npz", Vec::new(), "archive"),
        ("c.npy", npy("<f4", &[2], &[0; 8]), "[rows, width]"),
        ("d.npy", npy("<f4", &[0, 5], &[]), "[rows, width]"),
        (
            "e.npy",
            npy("<f4", &[1, 1], &f32_bytes(&[f32::NAN])),
            "not finite",
        ),
        ("f.npy", npy("<f4", &[400, 1], &[0; 1600]), "max_bytes"),
        ("g.safetensors", vec![0xff; 64], "header"),
        ("h.txt", b"x".to_vec(), "ends in none"),
    ];
    // 10 MB of zeros in a few kilobytes.
    let path = dir.path().join("bomb.npz");
    let zeros = npy("<f4", &[2_500_000, 1], &vec![0; 10_000_000]);
    npz(&path, &[("features", zeros)], CompressionMethod::Deflated);
    cases.push(("bomb.npz", std::fs::read(&path).unwrap(), "max_bytes"));
    let path = dir.path().join("two.npz");
    let one = npy("<f4", &[1, 1], &[0; 4]);
    npz(
        &path,
        &[("x", one.clone()), ("y", one.clone())],
        CompressionMethod::Stored,
    );
    cases.push(("two.npz", std::fs::read(&path).unwrap(), "more than one"));
    // Every cut of a good archive is an error or, at full length, a success.
    npz(&path, &[("features", one)], CompressionMethod::Deflated);
    let good = std::fs::read(&path).unwrap();
    for len in 0..good.len() {
        cases.push(("cut.npz", good[..len].to_vec(), "feature file"));
    }
    for (name, bytes, part) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read_features(&path, &small).unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains(name),
            "{error}: {part}"
        );
    }
    assert!(read_features(dir.path(), &small).is_err());
    assert!(read_features(&dir.path().join("absent.npz"), &small).is_err());
    let keyed = PrecomputedOptions {
        key: Some("clip".into()),
        ..small
    };
    std::fs::write(&path, &good).unwrap();
    let error = read_features(&path, &keyed).unwrap_err().to_string();
    assert!(
        error.contains("`clip`") && error.contains("features"),
        "{error}"
    );
    assert!(PrecomputedOptions::default().read::<&Path>(&[]).is_err());
}
