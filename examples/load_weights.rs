//! Looks into a safetensors checkpoint and loads one part of it, strictly.
//!
//! ```text
//! cargo run --release --example load_weights
//! cargo run --release --example load_weights -- VideoChat-TPO
//! ```
//!
//! The first reads headers only, so that 16 GB take a second. The second part is for directories
//! with a tpo.json.

use tpo::model::inspect::{LayoutChoice, inspect};
use tpo::prelude::*;
use tpo::vision::VideoEncoder;
use tpo::vision::umt::{UMT_KEYS, UMT_KEYS_INVERSE};
use tpo::weights::{Checkpoint, KeyRules, KeyScope, LoadOptions, load_module};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).unwrap_or("assets/mini".into());

    // Parts, counts and dtypes, held against a layout that is known by its names.
    println!("{}", inspect(dir.as_ref(), LayoutChoice::Auto)?);

    // A module's parameters are found under their paths, which the key rules make of the
    // checkpoint's names. Nothing is loaded unless everything fits; the report says what was.
    let checkpoint = Checkpoint::open(&dir)?;
    let device = DeviceChoice::Cpu.open()?;
    let config = TpoConfig::from_json(&std::fs::read_to_string(format!("{dir}/tpo.json"))?)?;
    let (model, report) = load_module(
        config.init::<BuiltInHeads>(&device)?,
        &checkpoint,
        &config.keys::<BuiltInHeads>()?,
        &LoadOptions::default(),
    )?;
    println!("{report}");
    println!("{} parameters", model.num_params());

    // A part alone: tensors of other parts are counted, not refused.
    let options = LoadOptions {
        scope: KeyScope::Part,
        ..LoadOptions::default()
    };
    let rules = KeyRules::new()
        .owns(["vision_encoder."])
        .rewrite(UMT_KEYS, UMT_KEYS_INVERSE)?;
    let umt = config.vision.umt().ok_or("the encoder is not UMT")?;
    let vision = VideoEncoder::new(umt, &device)?;
    let (_, report) = load_module(vision, &checkpoint, &rules, &options)?;
    println!("{report}");
    Ok(())
}
