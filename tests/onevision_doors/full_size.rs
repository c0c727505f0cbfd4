//! The 0.5B at full size, with random values: seconds of every stage and memory at the peak.

use std::path::Path;
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, TensorData};
use tpo::core::ops;
use tpo::core::traits::{Connector, LanguageModel, VisionEncoder, VisualShape};
use tpo::heads::mask::sam2::{Sam2Config, Sam2Version, sam2_keys};
use tpo::model::Names;
use tpo::model::assemble::{AssembleOptions, BaseFiles, assemble};
use tpo::model::memory::ModelMemory;
use tpo::prelude::*;
use tpo::weights::{SaveOptions, TensorSource, module_params, save_module, save_tensors};

use crate::files::tokenizer_json;

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Peak of this process in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// GFLOP/s of a product of matrices in f32 and bf16 weights, as this machine gives them now.
fn rate(dtype: FloatDType) -> f64 {
    let device = Device::flex();
    let (rows, inner, out) = (1458_usize, 1152, 4304);
    let x = Tensor::<2>::random([rows, inner], Distribution::Default, &device);
    let w = Tensor::<2>::random([out, inner], Distribution::Default, &device).cast(dtype);
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let y = ops::linear(x.clone(), w.clone().transpose(), None);
        std::hint::black_box(y.into_data());
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * [rows, inner, out].map(|n| n as f64).iter().product::<f64>() / best / 1e9
}

#[test]
#[ignore = "writes 4 GB to the temporary folder and takes ten minutes"]
fn the_half_billion_answers() {
    let root = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let mut config = TpoConfig::llava_ov_tpo_0_5b();
    let nano = Sam2Config::nano(Sam2Version::V2_0);
    let mask = config.heads.get::<MaskHead>().unwrap();
    let mask = MaskHeadConfig { sam: nano, ..mask };
    config.heads = config.heads.with::<MaskHead>(&mask).unwrap();
    write_base(&root.path().join("base"), &config);
    let sam2 = root.path().join("sam2.safetensors");
    let sam = config.init::<BuiltInHeads>(&device).unwrap().heads.mask.sam;
    save_module(&sam, &sam2_keys().unwrap(), &sam2, &SaveOptions::default()).unwrap();
    let files = BaseFiles {
        base: root.path().join("base"),
        sam2,
        temporal: None,
    };
    let options = AssembleOptions {
        sizes: Some(config.clone()),
        ..AssembleOptions::default()
    };
    reset_peak();
    let start = Instant::now();
    let dir = root.path().join("model");
    let done = assemble(&files, &dir, &options, None).unwrap();
    assert_eq!(done.parts[0].tensors, 714);
    println!(
        "assemble   {:.1} s, peak {:.2} GiB",
        start.elapsed().as_secs_f64(),
        gib(peak())
    );
    let estimate = ModelMemory::of::<BuiltInHeads>(&config, FloatDType::BF16, 16).unwrap();
    println!(
        "estimate   weights {:.2}, cache {:.2}, activations {:.2} GiB",
        gib(estimate.weights),
        gib(estimate.cache),
        gib(estimate.activations)
    );
    let options = SessionOptions {
        dtype: Some(FloatDType::BF16),
        max_new_tokens: 16,
        ..SessionOptions::default()
    };
    reset_peak();
    let start = Instant::now();
    let (mut session, _) = Session::open(&dir, &device, options, None).unwrap();
    println!(
        "open       {:.1} s, peak {:.2} GiB",
        start.elapsed().as_secs_f64(),
        gib(peak())
    );

    let image = root.path().join("image.png");
    image::RgbImage::from_fn(640, 480, |x, y| {
        image::Rgb([x as u8, y as u8, (x ^ y) as u8])
    })
    .save(&image)
    .unwrap();
    let media = std::env::var("TPO_VIDEO").ok();
    for what in ["image", "video"] {
        if what == "video" && media.is_none() {
            continue;
        }
        println!(
            "{what}: {:.0} GFLOP/s f32, {:.0} bf16",
            rate(FloatDType::F32),
            rate(FloatDType::BF16)
        );
        reset_peak();
        let start = Instant::now();
        let shape = match (&media, what) {
            (Some(video), "video") => {
                let media = session.load_video(video, None).unwrap();
                VisualShape::video(media.size, media.frames.len())
            }
            _ => {
                session.load_image(&image).unwrap();
                let packing = session.config().connector.packing().unwrap();
                VisualShape {
                    pictures: packing.tiling.canvas((640, 480)).unwrap().pictures(),
                    ..VisualShape::image((640, 480))
                }
            }
        };
        let rows = session.config().rows(&shape).unwrap();
        println!(
            "  read and encode {} pictures  {:.2} s, {rows} rows, peak {:.2} GiB",
            shape.pictures,
            start.elapsed().as_secs_f64(),
            gib(peak())
        );
        reset_peak();
        let start = Instant::now();
        let question = Question::new("Where is it?").with_task("region");
        let mut times = Vec::new();
        for event in session.ask(question).unwrap() {
            event.unwrap();
            times.push(start.elapsed().as_secs_f64());
        }
        let (first, all) = (times[0], start.elapsed().as_secs_f64());
        println!(
            "  first event {first:.2} s, all {all:.2} s, {} events, peak {:.2} GiB",
            times.len(),
            gib(peak())
        );
        session.clear_media();
        stages(&session, shape);
    }
}

/// The stages one by one.
fn stages(session: &Session, shape: VisualShape) {
    let (model, device) = (session.model(), session.device());
    let pixels = Tensor::<5>::random(
        [1, shape.pictures, 3, 384, 384],
        Distribution::Uniform(-1.0, 1.0),
        device,
    );
    reset_peak();
    let start = Instant::now();
    let tokens = model.vision.encode(pixels).unwrap();
    let tower = start.elapsed().as_secs_f64();
    println!(
        "  tower {tower:.2} s ({:.0} GFLOP/s), peak {:.2} GiB",
        640.0 * shape.pictures as f64 / tower,
        gib(peak())
    );
    reset_peak();
    let start = Instant::now();
    let rows = model.connector.connect(tokens, &[shape], None).unwrap();
    std::hint::black_box(rows.rows.clone().into_data());
    println!(
        "  connector {:.2} s, peak {:.2} GiB",
        start.elapsed().as_secs_f64(),
        gib(peak())
    );
    let count = rows.rows.dims()[0];
    reset_peak();
    let mut cache = model.llm.cache(1, count + 16, device);
    let start = Instant::now();
    let hidden = model
        .llm
        .step(rows.rows.unsqueeze_dim(0), None, &mut cache)
        .unwrap();
    std::hint::black_box(hidden.clone().into_data());
    println!(
        "  prefill of {count} rows {:.2} s, peak {:.2} GiB",
        start.elapsed().as_secs_f64(),
        gib(peak())
    );
    let one = hidden.narrow(1, count - 1, 1);
    let start = Instant::now();
    for _ in 0..8 {
        let hidden = model.llm.step(one.clone(), None, &mut cache).unwrap();
        std::hint::black_box(model.llm.logits(hidden).into_data());
    }
    println!("  token {:.3} s", start.elapsed().as_secs_f64() / 8.0);
}

/// A base of these sizes with random values, under the original names.
fn write_base(dir: &Path, config: &TpoConfig) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer_json(151_643)).unwrap();
    let mut plain = config.clone();
    plain.llm.lora = None;
    let model = plain.init::<BuiltInHeads>(&Device::flex()).unwrap();
    let keys = plain.keys_named::<BuiltInHeads>(Names::Original).unwrap();
    let params = module_params(&model);
    let has = |path: &str| params.iter().any(|p| p.path == path);
    let of_base = |path: &str| !path.starts_with("heads.") && !path.starts_with("task_tokens.");
    let mut sources = Vec::new();
    for (i, param) in params.iter().enumerate().filter(|(_, p)| of_base(&p.path)) {
        let shape = param.shape.clone();
        let norm = param.path.contains("norm") && param.path.ends_with("weight");
        let read = move || {
            let mut state = i as u64 + 1;
            let count: usize = shape.iter().product();
            let values = (0..count).map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let value = ((state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.06;
                if norm { 1.0 + value } else { value }
            });
            Ok(TensorData::new(values.collect::<Vec<f32>>(), shape.clone()))
        };
        let key = tpo::weights::KeyMap::checkpoint_key(&keys, &param.path, &has).unwrap();
        sources.push(
            TensorSource::when_asked(
                key,
                param.path.clone(),
                param.shape.clone(),
                DType::BF16,
                read,
            )
            .unwrap(),
        );
    }
    save_tensors(sources, dir, &SaveOptions::default()).unwrap();
}
