//! The parity runner over the fixtures that travel with the repository.

mod boxes;
mod check;
mod fixture;
mod internvideo;
mod llm;
mod metrics;
mod model;
mod onevision;
mod run;
mod sam2;
mod stored;
mod temporal;
mod text;
mod track;
mod tracking;
mod train;
mod vision;
mod weights;

use std::path::Path;

use burn::tensor::Device;

#[test]
fn every_fixture_passes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut lines = Vec::new();
    let summary = run::run(&dir, &Default::default(), &Device::flex(), |line| {
        lines.push(line.to_string());
    })
    .unwrap();
    let report = lines.join("\n");
    assert_eq!((summary.failed, summary.not_built), (0, 0), "\n{report}");
    assert_eq!(summary.passed, 51, "\n{report}");
}

/// Fixtures that are with the parts that they are of.
#[test]
fn fixtures_of_the_parts_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (part, name) in [
        ("tpo-vision", "hf_siglip_vision"),
        ("tpo-vision", "ov_images"),
        ("tpo-vision", "ov_pool"),
        ("tpo-data", "siglip_preprocess"),
        ("tpo-data", "llava_onevision_preprocess"),
        ("tpo-core", "ov_geometry"),
    ] {
        let options = run::Options {
            only: Some(name.into()),
            ..Default::default()
        };
        let dir = root.join(part).join("tests/fixtures");
        let mut lines = Vec::new();
        let summary = run::run(&dir, &options, &Device::flex(), |line| {
            lines.push(line.to_string());
        })
        .unwrap();
        let counts = (summary.passed, summary.failed, summary.not_built);
        assert_eq!(counts, (1, 0, 0), "{}", lines.join("\n"));
    }
}

#[test]
fn a_wrong_weight_or_a_missing_comparison_fails() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = tempfile::tempdir().unwrap();
    for name in ["qformer.json", "qformer.safetensors"] {
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    // One bit of the exponent of one weight.
    let file = dir.path().join("qformer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let key = "w.qformer.bert.encoder.layer.0.output_query.dense.weight";
    let start = json[key]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header + start + 3] ^= 0x02;
    std::fs::write(&file, bytes).unwrap();
    let summary = run::run(dir.path(), &Default::default(), &Device::flex(), |_| {}).unwrap();
    assert_eq!((summary.passed, summary.failed), (0, 1));
}

#[test]
fn a_tensor_that_a_fixture_lacks_is_skipped_by_name() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = tempfile::tempdir().unwrap();
    let name = "internvideo2_clip_vision";
    let json = format!("{name}.json");
    std::fs::copy(source.join(&json), dir.path().join(&json)).unwrap();
    let file = format!("{name}.safetensors");
    let bytes = std::fs::read(source.join(&file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (lacking, unused) = ("in.frames8fps", ["out.v_feat_mask", "out.v_feat_tef"]);
    let kept = tensors.tensors().into_iter().filter(|(k, _)| k != lacking);
    safetensors::serialize_to_file(kept, None, &dir.path().join(&file)).unwrap();
    // A fixture that no check knows.
    std::fs::write(dir.path().join("unheard_of.json"), "{}").unwrap();
    let mut lines = Vec::new();
    let summary = run::run(dir.path(), &Default::default(), &Device::flex(), |line| {
        lines.push(line.to_string());
    })
    .unwrap();
    let counts = (summary.passed, summary.failed, summary.not_built);
    assert_eq!(counts, (1, 0, 1), "{lines:?}");
    let skipped = format!("skipped: {lacking}, {}", unused.join(", "));
    assert!(lines[0].ends_with(&skipped), "{lines:?}");
    assert!(lines[1].ends_with("NOT BUILT"), "{lines:?}");
}
