//! SAM 2 from a checkpoint, or that of the mini model.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use tpo_core::weights::{Checkpoint, DtypePolicy, KeyRules, KeyScope, LoadOptions, load_module};
use tpo_heads::mask::sam2::{
    Sam2, Sam2Config, Sam2Version, sam2_hugging_face_keys, sam2_keys, sam2_videochat_tpo_keys,
};

use super::args::{Args, Generation, Size};
use crate::cli::shared::{Outcome, loading, read};
use crate::presets;
use crate::session::SessionOptions;

/// Number format of the weights.
pub fn dtype(args: &Args) -> FloatDType {
    args.dtype.float().unwrap_or(FloatDType::F32)
}

pub fn open(args: &Args, device: &Device) -> Outcome<Sam2> {
    let version = match args.sam {
        Generation::V2_0 => Sam2Version::V2_0,
        Generation::V2_1 => Sam2Version::V2_1,
    };
    let Some(path) = &args.weights else {
        if args.dtype.float().is_some() {
            return Err("--dtype is for --weights, or for a model that --ask goes to".into());
        }
        let Some(size) = args.size else {
            eprintln!("(no --weights: the mini model's SAM 2, which knows coloured shapes only)");
            let session = presets::mini(device, SessionOptions::default())?;
            return Ok(session.model().heads.mask.sam.clone());
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
    let model = config.init(device)?;
    let loaded = loading(|heard| {
        let options = LoadOptions {
            dtype: DtypePolicy::Cast(dtype(args)),
            scope: if begins("sam.") {
                KeyScope::Part
            } else {
                KeyScope::Whole
            },
            progress: Some(heard),
            ..LoadOptions::default()
        };
        load_module(model, &checkpoint, &rules, &options)
    });
    Ok(loaded?.0.no_grad())
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
    let text = read(&file).map_err(|e| format!("{e}; it must be beside the weights"))?;
    let json = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(Sam2Config::from_hf_json(&json)?)
}
