//! SAM 2 from a checkpoint, or that of the mini model.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use tpo::heads::mask::sam2::{
    Sam2, Sam2Config, Sam2Version, sam2_hugging_face_keys, sam2_keys, sam2_videochat_tpo_keys,
};
use tpo::weights::{Checkpoint, DtypePolicy, KeyRules, KeyScope, LoadOptions, load_module};
use tpo::{SessionOptions, presets};

use super::Outcome;
use super::args::{Args, Generation, Size};

pub fn open(args: &Args, device: &Device) -> Outcome<Sam2> {
    let version = match args.sam {
        Generation::V2_0 => Sam2Version::V2_0,
        Generation::V2_1 => Sam2Version::V2_1,
    };
    let Some(path) = &args.weights else {
        let Some(size) = args.size else {
            eprintln!("(no --weights: the mini model's SAM 2, which knows coloured shapes only)");
            let session = presets::mini(device, SessionOptions::default())?;
            return Ok(session.model().heads.rest.rest.head.sam.clone());
        };
        eprintln!("(no --weights: random weights, the masks mean nothing)");
        device.seed(args.seed);
        return Ok(sized(size, version).init(device)?);
    };
    let checkpoint = Checkpoint::open(path)?;
    let begins = |prefix: &str| checkpoint.tensors().any(|t| t.key.starts_with(prefix));
    let (config, rules): (Sam2Config, KeyRules) = if begins("sam.") {
        (Sam2Config::videochat_tpo(), sam2_videochat_tpo_keys()?)
    } else if begins("vision_encoder.") {
        (hugging_face(checkpoint.dir())?, sam2_hugging_face_keys()?)
    } else {
        let size = args.size.unwrap_or(Size::Large);
        (sized(size, version), sam2_keys()?)
    };
    let scope = if begins("sam.") {
        KeyScope::Part
    } else {
        KeyScope::Whole
    };
    let (model, _) = load_module(
        config.init(device)?,
        &checkpoint,
        &rules,
        &LoadOptions {
            dtype: DtypePolicy::Cast(FloatDType::F32),
            scope,
            ..LoadOptions::default()
        },
    )?;
    Ok(model.no_grad())
}

fn sized(size: Size, version: Sam2Version) -> Sam2Config {
    match size {
        Size::Tiny => Sam2Config::tiny(version),
        Size::Small => Sam2Config::small(version),
        Size::BasePlus => Sam2Config::base_plus(version),
        Size::Large => Sam2Config::large(version),
    }
}

/// The architecture a Hugging Face directory describes.
fn hugging_face(dir: &Path) -> Outcome<Sam2Config> {
    let file = dir.join("config.json");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| format!("{}: {e}; it must be beside the weights", file.display()))?;
    let json = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(Sam2Config::from_hf_json(&json)?)
}
