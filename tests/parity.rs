//! The parity runner over the fixtures that travel with the repository.

#[path = "../examples/check_parity/boxes.rs"]
mod boxes;
#[path = "../examples/check_parity/check.rs"]
mod check;
#[path = "../examples/check_parity/fixture.rs"]
mod fixture;
#[path = "../examples/check_parity/internvideo.rs"]
mod internvideo;
#[path = "../examples/check_parity/llm.rs"]
mod llm;
#[path = "../examples/check_parity/metrics.rs"]
mod metrics;
#[path = "../examples/check_parity/model.rs"]
mod model;
#[path = "../examples/check_parity/run.rs"]
mod run;
#[path = "../examples/check_parity/sam2.rs"]
mod sam2;
#[path = "../examples/check_parity/stored.rs"]
mod stored;
#[path = "../examples/check_parity/temporal.rs"]
mod temporal;
#[path = "../examples/check_parity/text.rs"]
mod text;
#[path = "../examples/check_parity/track.rs"]
mod track;
#[path = "../examples/check_parity/tracking.rs"]
mod tracking;
#[path = "../examples/check_parity/train.rs"]
mod train;
#[path = "../examples/check_parity/vision.rs"]
mod vision;
#[path = "../examples/check_parity/weights.rs"]
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
    assert_eq!(summary.passed, 43, "\n{report}");
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
