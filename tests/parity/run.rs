//! Which fixture is checked by what.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::check::{Report, Verdict};
use super::fixture::{Failure, Fixture, discover};
use super::{
    boxes, internvideo, llm, metrics, model, onevision, sam2, temporal, text, track, tracking,
    train, vision,
};

#[derive(Debug, Default)]
pub struct Options {
    /// Only fixtures whose name contains this.
    pub only: Option<String>,
    /// sentencepiece model of the tokenizer fixture.
    pub tokenizer: Option<PathBuf>,
}

/// Verdicts counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub passed: usize,
    pub failed: usize,
    pub not_built: usize,
}

/// Checks every fixture of `dir` and hands each line of the report to `print`.
pub fn run(
    dir: &Path,
    options: &Options,
    device: &Device,
    mut print: impl FnMut(&str),
) -> Result<Summary, Failure> {
    let names = discover(dir)?;
    if names.is_empty() {
        return Err(format!("{}: no *.json fixtures", dir.display()).into());
    }
    let mut summary = Summary::default();
    for name in names {
        if options
            .only
            .as_ref()
            .is_some_and(|o| !name.contains(o.as_str()))
        {
            continue;
        }
        // A panic in one module must not hide the verdicts on the others.
        let verdict = catch_unwind(AssertUnwindSafe(|| {
            let fixture = Fixture::open(dir, &name)?;
            check(&fixture, options, device)
        }))
        .unwrap_or_else(|panic| {
            let why = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            Err(format!("panicked: {}", why.unwrap_or_default()).into())
        });
        match verdict {
            Ok(Verdict::Input) => print(&format!("{name:34} input, not a check")),
            Ok(Verdict::NotBuilt) => {
                summary.not_built += 1;
                print(&format!("{name:34} NOT BUILT"));
            }
            Ok(Verdict::Checked(report)) => {
                if report.passed() {
                    summary.passed += 1;
                } else {
                    summary.failed += 1;
                }
                print(&line(&name, &report));
                for failure in &report.failures {
                    print(&format!("    {failure}"));
                }
            }
            Err(e) => {
                summary.failed += 1;
                print(&format!("{name:34} FAIL  {e}"));
            }
        }
    }
    Ok(summary)
}

fn line(name: &str, report: &Report) -> String {
    let verdict = if report.passed() { "PASS" } else { "FAIL" };
    let worst = match &report.worst {
        Some((_, at, error, tolerance)) => {
            format!("worst {error:.1e} of {tolerance:.0e} at {at}")
        }
        None => "exact".into(),
    };
    let mut line = format!(
        "{name:34} {verdict}  {:4} compared, {worst}",
        report.compared
    );
    if !report.skipped.is_empty() {
        let names: Vec<&str> = report.skipped.iter().map(String::as_str).collect();
        line += &format!("; not in the fixture, skipped: {}", names.join(", "));
    }
    line
}

fn check(fixture: &Fixture, options: &Options, device: &Device) -> Result<Verdict, Failure> {
    let name = fixture.name.as_str();
    let report = match name {
        "tpo_weights" | "sam2_bf16_literal_tables" => return Ok(Verdict::Input),
        "vit_posembed_fullsize" => vision::position_tables(fixture)?,
        _ if name.starts_with("vit_") => vision::vit(fixture, device)?,
        "qformer" => vision::qformer(fixture, device)?,
        "mistral_lora" => llm::mistral_lora(fixture, device)?,
        "small_amplitude" => small_amplitude(fixture, device)?,
        "hf_siglip_vision" => onevision::siglip(fixture, device)?,
        "hf_llava_onevision" => onevision::hugging_face(fixture, device)?,
        _ if name.starts_with("hf_") && fixture.config()["model_type"].is_string() => {
            match fixture.config()["model_type"].as_str() {
                Some("llama" | "mistral" | "qwen2") => llm::hugging_face(fixture, device)?,
                _ => return Ok(Verdict::NotBuilt),
            }
        }
        "sam2_modules" => sam2::modules(fixture, device)?,
        "sam2_decoder_stability" => sam2::stability(fixture, device)?,
        _ if name.starts_with("sam2_hf_video") => track::hugging_face(fixture, device)?,
        _ if name.starts_with("sam2_video_") => track::video(fixture, device)?,
        "preprocess" => text::preprocess(fixture)?,
        "tokenizer" => text::tokenizer(fixture, options.tokenizer.as_deref())?,
        "ov_batch" => onevision::batch(fixture, device)?,
        "ov_original" => onevision::original(fixture, device)?,
        "ov_images" => onevision::images(fixture, device)?,
        "ov_pool" => onevision::pool(fixture, device)?,
        "ov_geometry" => onevision::geometry(fixture)?,
        "siglip_preprocess" => onevision::siglip_pixels(fixture)?,
        "llava_onevision_preprocess" => onevision::preprocess(fixture)?,
        "ov_generate" => onevision::generate(fixture, device)?,
        "ov_small_amplitude" => onevision::small_amplitude(fixture, device)?,
        "ov_tpo_forward" => onevision::forward(fixture, device)?,
        "ov_tpo_generate" => onevision::routed(fixture, device)?,
        "ov_prompt" => text::onevision_prompt(fixture)?,
        "internvideo2_clip_vision" => internvideo::vision(fixture, device)?,
        "internvideo2_clip_text" => internvideo::text(fixture, device)?,
        "internvideo2_clip_loading" => internvideo::loading(fixture, device)?,
        "internvideo2_clip_small_amplitude" => internvideo::small_amplitude(fixture, device)?,
        "internvideo2_clip_tokenizer" => {
            internvideo::query_ids(fixture, options.tokenizer.as_deref())?
        }
        "box_ops" => boxes::box_ops(fixture, device)?,
        "metrics_davis_jf" => metrics::davis_jf(fixture)?,
        "metrics_coco_rle" => metrics::coco_rle(fixture)?,
        "metrics_tracking" => tracking::tracking(fixture)?,
        "tpo_region_units" => boxes::region_units(fixture, device)?,
        "postprocess" => temporal::postprocess(fixture, device)?,
        _ if name.starts_with("cgdetr_") => temporal::cgdetr(fixture, device)?,
        _ if name.starts_with("tpo_forward_") => model::forward(fixture, device)?,
        _ if name.starts_with("tpo_train_trace_") => {
            if !train::can_trace(fixture)? {
                return Ok(Verdict::NotBuilt);
            }
            train::trace(fixture, device)?
        }
        _ if name.starts_with("tpo_generate_") => {
            if !model::can_generate(fixture, device)? {
                return Ok(Verdict::NotBuilt);
            }
            model::generate(fixture, device)?
        }
        _ => return Ok(Verdict::NotBuilt),
    };
    Ok(Verdict::Checked(report))
}

/// Reuses weights and inputs of two other fixtures, scaled down.
fn small_amplitude(fixture: &Fixture, device: &Device) -> Result<Report, Failure> {
    let mut report = Report::default();
    let lm = Fixture::open(&fixture.dir, "mistral_lora")?;
    llm::small(&mut report, fixture, &lm, device)?;
    let qformer = Fixture::open(&fixture.dir, "qformer")?;
    vision::qformer_small(&mut report, fixture, &qformer, device)?;
    report.nothing_left(fixture);
    Ok(report)
}
