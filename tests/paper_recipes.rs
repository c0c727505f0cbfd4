//! From published files to a model that answers: `assemble`, then the paper's own recipes, in small, in the
//! reference's names, with Mistral's real tokenizer and its 32,007 ids.

#[path = "common/alone.rs"]
mod alone;
#[path = "onevision_doors/files.rs"]
mod onevision;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alone::alone;
use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use serde_json::{Value, json};
use tpo::VideoChatTpo;
use tpo::data::MediaLimits;
use tpo::data::synthetic::{RowsConfig, WorldRows, WorldTask};
use tpo::export::{ExportOptions, export_model};
use tpo::features::{FeatureTowers, OwnClips, TemporalTowers};
use tpo::heads::mask::sam2::{Sam2Config, Sam2Version, sam2_keys};
use tpo::heads::temporal::CgDetrConfig;
use tpo::llm::LlmConfig;
use tpo::model::assemble::{AssembleOptions, Assembly, PartFiles, assemble};
use tpo::model::inspect::{LayoutChoice, inspect, videochat_tpo_layout};
use tpo::model::{ConnectorConfig, Names, VisionConfig};
use tpo::prelude::*;
use tpo::pretrain::{PerceptionPretraining, PretrainStep, Schedule, pretrain_perception};
use tpo::train::recipe::{ModelSpec, Recipe};
use tpo::train::trainer::Purpose;
use tpo::train::{Muon, TrainError};
use tpo::training::{
    DataContext, RecipeModel, RunOptions, RunSummary, model_config, recipe_model, run_recipe,
    stage_data,
};
use tpo::vision::connector::qformer::QFORMER_KEYS_INVERSE;
use tpo::vision::umt::UMT_KEYS_INVERSE;
use tpo::vision::{QFormerConfig, QFormerConnectorConfig, UmtConfig};
use tpo::weights::{
    Checkpoint, DtypePolicy, KeyRules, PathStack, SaveOptions, TensorSource, module_tensors,
    read_tensor, save_module, save_tensors, write_sparse,
};

/// Width of the language model and of everything else.
const WIDTH: usize = 64;

/// The published build with every size cut down.
fn sizes() -> TpoConfig {
    let mut config = TpoConfig::videochat_tpo();
    let umt = UmtConfig::new(64, 16, WIDTH, 3, 4).with_num_frames(8);
    let qformer = QFormerConfig::new(WIDTH, 2, 1, 2 * WIDTH, WIDTH)
        .with_vocab_size(50)
        .with_max_position_embeddings(16)
        .with_num_query_token(4)
        .with_extra_num_query_token(4);
    config.input.frames = 8;
    config.input.size = 64;
    config.vision = VisionConfig::Umt(umt);
    config.connector = ConnectorConfig::QFormer(
        QFormerConnectorConfig::new(qformer, WIDTH).with_unused_projections(true),
    );
    let adapters = config
        .llm
        .lora
        .take()
        .map(|lora| tpo::llm::LoraConfig { rank: 4, ..lora });
    // Heads of Mistral's width.
    config.llm = LlmConfig::new(32_007, WIDTH, 2 * WIDTH, 2, 2, 1, 128)
        .with_rope_theta(1e6)
        .with_max_position_embeddings(32_768);
    config.llm.lora = adapters;
    let detr = CgDetrConfig::new(WIDTH, WIDTH, 32, 64)
        .with_num_dummies(4)
        .with_total_prompts(4)
        .with_encoder_layers(1)
        .with_decoder_layers(2)
        .with_t2v_layers(1)
        .with_dummy_layers(1)
        .with_text_positions(32);
    let heads = tpo::core::head::HeadConfigs::default()
        .with::<RegionHead>(&RegionHeadConfig::new(WIDTH, 32))
        .and_then(|h| h.with::<TemporalHead>(&TemporalHeadConfig::new(detr).with_start_end(true)))
        .and_then(|h| {
            h.with::<MaskHead>(&MaskHeadConfig::new(
                WIDTH,
                WIDTH,
                Sam2Config::nano(Sam2Version::V2_0),
            ))
        });
    config.heads = heads.unwrap();
    assert_eq!(config.features, FeatureTowers::InternVideo2);
    config
}

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tpo-llm/tests/fixtures/mistral_v1/tokenizer.model")
}

/// Mistral as on the hub: `config.json`, shards with their index, `tokenizer.model`.
fn write_mistral(dir: &Path, config: &TpoConfig) {
    let llm = LlmConfig {
        vocab_size: 32_000,
        lora: None,
        ..config.llm.clone()
    };
    let lm = llm.init(&Device::flex()).unwrap();
    let save = SaveOptions {
        max_shard_bytes: 5_000_000,
        dtype: DtypePolicy::Cast(FloatDType::BF16),
        ..SaveOptions::default()
    };
    save_module(&lm, &KeyRules::new(), dir, &save).unwrap();
    assert!(dir.join("model.safetensors.index.json").is_file());
    let json = json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
        "vocab_size": 32_000, "hidden_size": WIDTH, "intermediate_size": llm.intermediate_size,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": null, "torch_dtype": "bfloat16",
        "tie_word_embeddings": false, "max_position_embeddings": 32_768,
    });
    std::fs::write(dir.join("config.json"), json.to_string()).unwrap();
    std::fs::copy(tokenizer(), dir.join("tokenizer.model")).unwrap();
}

/// The files of the parts, drawn from `seed`. UMT has the block after the last one that is used; the
/// Q-Former's file has the projection under VideoChat2's name, and neither it nor the two projections that
/// never run are in the model's own.
fn write_parts(dir: &Path, config: &TpoConfig, one_file: bool) -> PartFiles {
    let text = burn::tensor::TensorData::new(vec![1.0_f32; 4], [2, 2]);
    let device = Device::flex();
    device.seed(5);
    std::fs::create_dir_all(dir.join("mistral")).unwrap();
    write_mistral(&dir.join("mistral"), config);
    let mut whole = config.clone();
    if let VisionConfig::Umt(umt) = &mut whole.vision {
        umt.return_index = -1;
    }
    if let ConnectorConfig::QFormer(connector) = &mut whole.connector {
        connector.unused_projections = false;
    }
    whole.llm.vocab_size = 32_000;
    whole.tasks = tpo::model::videochat_tasks(31_990);
    let model = whole.init::<BuiltInHeads>(&device).unwrap();
    let of = |module: &VideoChatTpo, keys: &KeyRules, field: &str| {
        module_tensors(module, keys, DtypePolicy::Keep, &|path| {
            path.starts_with(field)
        })
        .unwrap()
    };
    let vision = KeyRules::new()
        .rewrite(&[], UMT_KEYS_INVERSE)
        .unwrap()
        .within("vision.");
    let mut projection = vec![(r"^project_up\.", "mistral_proj.")];
    projection.extend(QFORMER_KEYS_INVERSE);
    let connector = KeyRules::new()
        .rewrite(&[], &projection)
        .unwrap()
        .within("connector.");
    let adapters = KeyRules::new()
        .prefix("mistral_model.base_model.model.", "")
        .lora("default")
        .within("llm.");
    let mut vision = of(&model, &vision, "vision.");
    let mut rest = of(&model, &connector, "connector.");
    rest.extend(
        module_tensors(&model, &adapters, DtypePolicy::Keep, &|path| {
            path.starts_with("llm.") && path.contains(".lora.")
        })
        .unwrap(),
    );
    rest.push(TensorSource::from_data("text_encoder.layer.0.weight", &text).unwrap());
    let save = SaveOptions::default();
    let (umt, qformer) = (dir.join("umt.safetensors"), dir.join("qformer.safetensors"));
    if one_file {
        rest.append(&mut vision);
    } else {
        save_tensors(vision, &umt, &save).unwrap();
    }
    save_tensors(rest, &qformer, &save).unwrap();
    let sam2 = dir.join("sam2.safetensors");
    save_module(&model.heads.mask.sam, &sam2_keys().unwrap(), &sam2, &save).unwrap();
    PartFiles {
        llm: dir.join("mistral"),
        vision: if one_file { qformer.clone() } else { umt },
        qformer,
        sam2,
    }
}

fn options() -> AssembleOptions {
    AssembleOptions {
        sizes: Some(sizes()),
        seed: 3,
        export: ExportOptions {
            dtype: Some(FloatDType::BF16),
            ..ExportOptions::default()
        },
    }
}

fn assembled(dir: &Path, one_file: bool) -> (PathBuf, Assembly) {
    let files = write_parts(&dir.join("parts"), &sizes(), one_file);
    let out = dir.join("model");
    let seen = std::cell::Cell::new((0, 0));
    let done = assemble(&files, &out, &options(), Some(&|a, b| seen.set((a, b)))).unwrap();
    let (read, total) = seen.get();
    assert!(read == total && total > 10_000_000, "{read} of {total}");
    (out, done)
}

fn floats(checkpoint: &Checkpoint, key: &str) -> Vec<f32> {
    let entry = checkpoint.get(key).unwrap_or_else(|| panic!("{key}"));
    read_tensor(entry).unwrap().iter::<f32>().collect()
}

/// Parameters by path.
fn values(model: &VideoChatTpo) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Read {
        stack: PathStack,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.stack.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.stack.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data();
            self.found
                .insert(self.stack.path(), data.iter::<f32>().collect());
        }
    }
    let mut read = Read::default();
    model.visit(&mut read);
    read.found
}

#[test]
fn published_files_become_a_directory_that_opens() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for one_file in [false, true] {
        let dir = dir.path().join(one_file.to_string());
        let (model, done) = assembled(&dir, one_file);
        let taken: Vec<&str> = done.parts.iter().map(|p| p.part).collect();
        let parts = [
            "language model",
            "vision encoder",
            "Q-Former",
            "adapters",
            "SAM 2",
        ];
        assert_eq!(taken, parts);
        // The block that is not used, by name; of the text encoder, how many.
        assert_eq!(
            done.parts[1].ignored.len(),
            13,
            "{:?}",
            done.parts[1].ignored
        );
        assert!(
            done.parts[1]
                .ignored
                .iter()
                .all(|(key, _)| key.contains("blocks.2."))
        );
        assert_eq!(done.not_taken.len(), 1, "{:?}", done.not_taken);
        assert_eq!(
            (done.not_taken[0].1.as_str(), done.not_taken[0].2),
            ("text_encoder.layer", 1)
        );
        let drawn: BTreeSet<&str> = done.drawn.iter().map(|(of, _)| of.as_str()).collect();
        for of in [
            "heads.region",
            "heads.temporal",
            "task_tokens.mask",
            "connector.merge_proj",
        ] {
            assert!(drawn.contains(of), "{of}: {drawn:?}");
        }
        assert!(
            !drawn
                .iter()
                .any(|of| of.starts_with("vision") || of.starts_with("llm"))
        );

        // Names of the published checkpoint, and all of them.
        let written = Checkpoint::open(&model).unwrap();
        let own: HashSet<String> = written.tensors().map(|t| plain(&t.key)).collect();
        let published = videochat_tpo_layout().unwrap();
        let theirs: HashSet<String> = published.tensors.iter().map(|t| plain(&t.key)).collect();
        let foreign: Vec<_> = own.difference(&theirs).collect();
        assert!(foreign.is_empty(), "{foreign:?}");
        let lacking: Vec<_> = theirs.difference(&own).collect();
        assert!(
            lacking.iter().all(|key| key.contains("position_ids")),
            "{lacking:?}"
        );

        // Words as they were, and for every task token the mean of them.
        let mistral = Checkpoint::open(dir.join("parts/mistral")).unwrap();
        for (from, to) in [
            ("model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("lm_head.weight", "lm_head.base_layer.weight"),
        ] {
            let words = floats(&mistral, from);
            let rows = floats(&written, &format!("lm.base_model.model.{to}"));
            assert_eq!(rows.len(), 32_007 * WIDTH);
            assert_eq!(&rows[..words.len()], &words[..]);
            for column in 0..WIDTH {
                let column_of = words.iter().skip(column).step_by(WIDTH);
                let mean = column_of.map(|v| f64::from(*v)).sum::<f64>() / 32_000.0;
                for row in 32_000..32_007 {
                    let found = f64::from(rows[row * WIDTH + column]);
                    // bf16 has eight bits.
                    assert!(
                        (found - mean).abs() <= mean.abs() / 256.0 + 1e-9,
                        "{found} and {mean}"
                    );
                }
            }
        }
        let first = "layers.0.self_attn.q_proj.lora_A.default.weight";
        let adapter = Checkpoint::open(dir.join("parts/qformer.safetensors")).unwrap();
        let adapter = floats(
            &adapter,
            &format!("mistral_model.base_model.model.model.{first}"),
        );
        let own = floats(&written, &format!("lm.base_model.model.model.{first}"));
        assert!(
            adapter
                .iter()
                .zip(&own)
                .all(|(a, b)| (a - b).abs() <= a.abs() / 128.0)
        );

        let (session, report) =
            Session::open(&model, &Device::flex(), SessionOptions::default(), None).unwrap();
        assert!(report.is_complete());
        for (token, id) in [
            ("<box_begin>", 32_000),
            ("<boxes>", 32_003),
            ("<track_box>", 32_006),
        ] {
            assert_eq!(session.tokenizer().token_to_id(token), Some(id));
        }
    }
}

/// A name without the number of its layer.
fn plain(key: &str) -> String {
    let parts = key
        .split('.')
        .map(|p| if p.parse::<u32>().is_ok() { "N" } else { p });
    parts.collect::<Vec<_>>().join(".")
}

#[test]
fn files_that_do_not_fit_are_refused_with_what_was_expected() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let files = write_parts(dir.path(), &sizes(), false);
    let out = dir.path().join("out");
    let refused = |files: &PartFiles, options: &AssembleOptions| {
        let error = assemble(files, &out, options, None).unwrap_err();
        assert!(!out.exists() || out.read_dir().unwrap().next().is_none());
        error
    };
    // Files for one another.
    let swapped = PartFiles {
        vision: files.sam2.clone(),
        ..files.clone()
    };
    let error = refused(&swapped, &options());
    assert!(matches!(&error, tpo::Error::Part { flag, .. } if flag == "--vision"));
    let text = error.to_string();
    for says in [
        "vision encoder (--vision",
        "missing",
        "The file holds image_encoder.",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let swapped = PartFiles {
        sam2: files.vision.clone(),
        ..files.clone()
    };
    let text = refused(&swapped, &options()).to_string();
    assert!(
        text.contains("SAM 2 (--sam2") && text.contains("unexpected"),
        "{text}"
    );
    // Of another size.
    let mut wider = options();
    if let Some(VisionConfig::Umt(umt)) = wider.sizes.as_mut().map(|sizes| &mut sizes.vision) {
        umt.patch_size = 8;
    }
    let text = refused(&files, &wider).to_string();
    let says = "`vision_encoder.encoder.patch_embed.proj.weight` in umt.safetensors: expected [64, 3, 1, 8, 8], found [64, 3, 1, 16, 16]";
    assert!(text.contains(says), "{text}");
    // Without the projection.
    let whole = Checkpoint::open(&files.qformer).unwrap();
    let kept: Vec<_> = whole
        .tensors()
        .filter(|t| !t.key.starts_with("mistral_proj"))
        .collect();
    let data: Vec<_> = kept.iter().map(|t| read_tensor(t).unwrap()).collect();
    let sources = kept.iter().zip(&data);
    let sources = sources.map(|(t, data)| TensorSource::from_data(&t.key, data).unwrap());
    let lacking = dir.path().join("lacking.safetensors");
    save_tensors(sources.collect(), &lacking, &SaveOptions::default()).unwrap();
    let lacking = PartFiles {
        qformer: lacking,
        ..files.clone()
    };
    let text = refused(&lacking, &options()).to_string();
    assert!(
        text.contains("Q-Former (--qformer") && text.contains("`project_up.weight`"),
        "{text}"
    );
    // PyTorch's own.
    let torch = PartFiles {
        sam2: dir.path().join("sam2_hiera_large.pt"),
        ..files.clone()
    };
    let text = refused(&torch, &options()).to_string();
    assert!(text.contains("tools/pth_to_safetensors.py"), "{text}");
    // Other words.
    let config = files.llm.join("config.json");
    let json = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, json.replace("32000", "32768")).unwrap();
    let text = refused(&files, &options()).to_string();
    assert!(
        text.contains("32768 entries, expected 32000") && text.contains("v0.2"),
        "{text}"
    );
    std::fs::write(&config, json).unwrap();
    // What is there stays.
    assemble(&files, &out, &options(), None).unwrap();
    let before = std::fs::read(out.join("tpo.json")).unwrap();
    let error = assemble(&files, &out, &options(), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("--overwrite"), "{error}");
    assert_eq!(std::fs::read(out.join("tpo.json")).unwrap(), before);
}

#[test]
fn the_program_puts_parts_together_and_replaces_only_a_model() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let files = write_parts(dir.path(), &sizes(), false);
    let json = serde_json::to_string(&sizes()).unwrap();
    std::fs::write(dir.path().join("tpo.json"), json).unwrap();
    let out = dir.path().join("out");
    let tpo = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tpo"));
        command.arg("assemble").arg("--sizes").arg(dir.path());
        command.arg("--llm").arg(&files.llm);
        command.arg("--vision").arg(&files.vision);
        command.arg("--qformer").arg(&files.qformer);
        command
            .arg("--sam2")
            .arg(&files.sam2)
            .arg("--out")
            .arg(&out);
        let done = command.args(more).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        (
            done.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let names = || -> BTreeSet<String> {
        let files = out.read_dir().unwrap().map(|f| f.unwrap().file_name());
        files.map(|n| n.into_string().unwrap()).collect()
    };
    let (fine, said) = tpo(&[]);
    assert!(fine && said.contains("text_encoder.layer.*"), "{said}");
    let model = names();
    let files = [
        "added_tokens.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        "tpo.json",
    ];
    assert_eq!(model, files.map(String::from).into());

    let (fine, said) = tpo(&[]);
    assert!(!fine && said.contains("--overwrite"), "{said}");
    // What is left of another model goes, what is of none stays.
    std::fs::write(out.join("model-00001-of-00002.safetensors"), "").unwrap();
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let (fine, said) = tpo(&["--overwrite"]);
    assert!(fine, "{said}");
    let mut expected = model;
    expected.insert("notes.txt".into());
    assert_eq!(names(), expected);
    Session::open(&out, &Device::flex(), SessionOptions::default(), None).unwrap();
}

/// The reference's own `config.json`, with these sizes.
fn reference_config() -> Value {
    json!({
        "_name_or_path": "",
        "architectures": ["MultiModalLLM_PT"],
        "auto_map": {"AutoConfig": "model_config.VideoChatEConfig", "AutoModel": "modeling_videochate.MultiModalLLM_PT"},
        "model_config": {
            "bridge": {
                "extra_num_query_token": 4, "name": "qformer", "num_query_token": 4,
                "qformer_attention_probs_dropout_prob": 0.1, "qformer_drop_path_rate": 0.2,
                "qformer_hidden_dropout_prob": 0.1
            },
            "freeze_bridge": false, "freeze_llm": false, "freeze_vision_encoder": false,
            "llm": {
                "lora_alpha": 32, "lora_dropout": 0.1, "lora_r": 4, "name": "mistral_7b",
                "pretrained_llm_path": "mistralai/Mistral-7B-Instruct-v0.3", "use_lora": true,
                "hidden_size": WIDTH
            },
            "loss": {"use_vision_regression_loss": false},
            "pretrained_paths": {},
            "vision_encoder": {
                "name": "vit_l14", "img_size": 64, "patch_size": 16, "d_model": WIDTH,
                "encoder_embed_dim": WIDTH, "encoder_depth": 3, "encoder_num_heads": 4,
                "drop_path_rate": 0.0, "num_frames": 8, "tubelet_size": 1, "use_checkpoint": false,
                "checkpoint_num": 0, "return_index": -2, "vit_add_ln": true, "pretrained": null
            }
        },
        "torch_dtype": "float32", "transformers_version": "4.38.0", "use_flash_attention": true,
        "use_cache": true, "build_decoder": true, "hidden_size": WIDTH
    })
}

#[test]
fn the_published_form_is_read_by_its_config_json() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (own, _) = assembled(dir.path(), true);
    let published = dir.path().join("published");
    std::fs::create_dir(&published).unwrap();
    for file in own.read_dir().unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap();
        if name != "tpo.json" {
            std::fs::copy(&file, published.join(name)).unwrap();
        }
    }
    let write = |json: &Value| {
        std::fs::write(published.join("config.json"), json.to_string()).unwrap();
    };
    write(&reference_config());
    let device = Device::flex();
    let open = |dir: &Path| Session::open(dir, &device, SessionOptions::default(), None);
    let (session, report) = open(&published).unwrap();
    assert!(report.is_complete());
    let mut expected = sizes();
    expected.tasks = tpo::model::videochat_tasks(32_000);
    same_config(session.config(), &expected);
    let said = |mut session: Session| {
        session.load_reader(Arc::new(clip(&sizes())), None).unwrap();
        let question = Question::new("Where is the circle?").with_task("region");
        let reply = session.ask(question).unwrap().collect_reply().unwrap();
        (reply.text, format!("{:?}", reply.tasks))
    };
    assert_eq!(said(session), said(open(&own).unwrap().0));
    let found = inspect(&published, LayoutChoice::Auto).unwrap();
    assert!(found.is_fine(), "{:?}", found.problems());
    assert!(found.layout.unwrap().contains("config.json"));
    let converted = dir.path().join("converted");
    let export = ExportOptions::default();
    let report = tpo::export::convert_model::<BuiltInHeads>(
        &published,
        &converted,
        tpo::model::Quantize::default(),
        &export,
        None,
    );
    assert!(report.unwrap().tensors > 300);
    open(&converted).unwrap();

    // What asks for another model, and sizes that are not those of the weights.
    for (at, value, says) in [
        (
            "/model_config/llm/name",
            json!("vicuna1.5_7b"),
            "model_config.llm.name is \"vicuna1.5_7b\"",
        ),
        (
            "/model_config/bridge/name",
            json!("mlp"),
            "bridge.name is \"mlp\", expected \"qformer\"",
        ),
        (
            "/hidden_size",
            json!(4096),
            "hidden_size is 4096, expected 64",
        ),
        (
            "/build_decoder",
            json!(false),
            "build_decoder is false, expected true",
        ),
        (
            "/model_config/vision_encoder/img_size",
            json!("x"),
            "config.json: model_config.vision_encoder: vision encoder config: `img_size` is \"x\"",
        ),
        (
            "/model_config/llm",
            json!("mistral_7b"),
            "model_config.llm is \"mistral_7b\", expected an object",
        ),
        (
            "/model_config/llm/lora_alpha",
            json!("x"),
            "config.json: model_config.llm.lora_alpha is \"x\", expected a number",
        ),
        (
            "/model_config/llm/lora_r",
            json!(4.7),
            "model_config.llm.lora_r is 4.7, expected a whole number",
        ),
        ("/model_config/llm/lora_r", json!(0), "config.json: llm: "),
        (
            "/model_config/llm/use_lora",
            json!("yes"),
            "model_config.llm.use_lora is \"yes\", expected true or false",
        ),
        (
            "/model_config/bridge/num_query_token",
            json!(-4),
            "model_config.bridge.num_query_token is -4, expected a whole number",
        ),
        (
            "/model_config/llm/lora_r",
            json!(8),
            "expected [8, 64], found [4, 64]",
        ),
        (
            "/model_config/bridge/num_query_token",
            json!(8),
            "expected [1, 8, 64], found [1, 4, 64]",
        ),
    ] {
        let mut json = reference_config();
        *json.pointer_mut(at).unwrap() = value;
        write(&json);
        let error = open(&published).unwrap_err().to_string();
        assert!(error.contains(says), "{at}: {error}");
    }

    // A directory that is not there is not taken for the published model.
    let absent = dir.path().join("absent");
    let report = tpo::export::convert_model::<BuiltInHeads>(
        &absent,
        &dir.path().join("never"),
        tpo::model::Quantize::default(),
        &export,
        None,
    );
    for error in [report.unwrap_err(), open(&absent).unwrap_err()] {
        assert!(
            error.to_string().contains("absent: does not exist"),
            "{error}"
        );
    }
}

/// That two configurations are equal, by the first line that is not.
fn same_config(found: &TpoConfig, expected: &TpoConfig) {
    let [found, expected] = [found, expected].map(|c| serde_json::to_string_pretty(c).unwrap());
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

/// The reference's `config.json` beside the published tensors, of full size and without their data.
#[test]
fn the_references_config_json_gives_the_published_sizes() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let layout = videochat_tpo_layout().unwrap();
    write_sparse(&layout, dir.path()).unwrap();
    std::fs::copy(tokenizer(), dir.path().join("tokenizer.model")).unwrap();
    let mut json = reference_config();
    for (at, value) in [
        ("/hidden_size", 4096),
        ("/model_config/llm/hidden_size", 4096),
        ("/model_config/llm/lora_r", 16),
        ("/model_config/bridge/num_query_token", 32),
        ("/model_config/bridge/extra_num_query_token", 64),
        ("/model_config/vision_encoder/img_size", 224),
        ("/model_config/vision_encoder/d_model", 1024),
        ("/model_config/vision_encoder/encoder_embed_dim", 1024),
        ("/model_config/vision_encoder/encoder_depth", 24),
        ("/model_config/vision_encoder/encoder_num_heads", 16),
        ("/model_config/vision_encoder/num_frames", 16),
    ] {
        *json.pointer_mut(at).unwrap() = value.into();
    }
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let spec = ModelSpec {
        directory: Some(dir.path().into()),
        ..ModelSpec::default()
    };
    let found = model_config::<BuiltInHeads>(&spec).unwrap();
    let preset = ModelSpec {
        preset: Some("videochat-tpo".into()),
        ..ModelSpec::default()
    };
    same_config(&found, &model_config::<BuiltInHeads>(&preset).unwrap());
    assert!(inspect(dir.path(), LayoutChoice::Auto).unwrap().is_fine());

    // Rows that are no whole number of heads.
    let mut layout = layout;
    let k_proj = "layers.0.self_attn.k_proj.base_layer.weight";
    for tensor in layout
        .tensors
        .iter_mut()
        .filter(|t| t.key.ends_with(k_proj))
    {
        tensor.shape[0] = 1000;
    }
    let other = dir.path().join("other");
    write_sparse(&layout, &other).unwrap();
    let spec = ModelSpec {
        directory: Some(other.clone()),
        ..ModelSpec::default()
    };
    std::fs::write(other.join("config.json"), json.to_string()).unwrap();
    let refused = || model_config::<BuiltInHeads>(&spec).unwrap_err().to_string();
    let error = refused();
    assert!(error.contains("is 1000, no multiple"), "{error}");
    // A file that cannot be read is not a file that is not there.
    std::fs::write(other.join("config.json"), [0xff]).unwrap();
    let error = refused();
    assert!(
        error.contains("config.json") && error.contains("UTF-8"),
        "{error}"
    );
}

/// A clip of the world.
fn clip(config: &TpoConfig) -> impl tpo::data::VideoReader + use<> {
    let rows = RowsConfig::new([WorldTask::Region], 1, 3);
    let rows = WorldRows::new(rows, config.input.frames, config.input.size).unwrap();
    rows.row(0, &MediaLimits::default()).unwrap().1
}

/// A recipe with other data, fewer steps and larger rates, as on the command line.
fn recipe(folder: &str, file: &str, changes: &[String]) -> Recipe {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recipes")
        .join(folder);
    Recipe::open(folder.join(file), changes).unwrap_or_else(|e| panic!("{e}"))
}

/// A recipe of the paper.
fn paper(file: &str, changes: &[String]) -> Recipe {
    recipe("videochat_tpo", file, changes)
}

/// Data of the synthetic world for a stage.
fn world(stage: &str, steps: usize, tasks: &str) -> Vec<String> {
    let rows = format!(
        "{{ tasks = [{tasks}], rows = 12, seed = 3, queries_per_clip = 3, max_objects = 2 }}"
    );
    vec![
        format!("stages.{stage}.data={{ sources = [{{ name = \"world\", synthetic = {rows} }}] }}"),
        format!("stages.{stage}.length={{ steps = {steps} }}"),
        format!("stages.{stage}.batch_size=4"),
        format!("stages.{stage}.accumulation=1"),
    ]
}

fn rate(stage: &str, group: &str, rate: f64) -> String {
    format!("stages.{stage}.groups.{group}.learning_rate={rate:?}")
}

const ALL: &str = r#""region", "temporal", "mask""#;

/// The features that InternVideo2-CLIP would make, one a second, of a small encoder's.
fn towers(model: &RecipeModel) -> TemporalTowers {
    let clips = OwnClips {
        frames_per_second: 1.0,
        frames_per_clip: 1,
        features_per_clip: 1,
    };
    let size = model.config.input.size;
    TemporalTowers::of_model(&model.model, &model.tokenizer, size, clips).unwrap()
}

/// Losses of every head and of the language model on the same rows.
fn losses(
    model: &RecipeModel,
    recipe: &Recipe,
    towers: &Option<TemporalTowers>,
) -> BTreeMap<String, f32> {
    let mut context = DataContext::new(&model.config, &model.tokenizer);
    context.towers = towers.clone();
    let mut stage = recipe.stages[0].clone();
    stage.batch_size = 12;
    let data = stage_data::<BuiltInHeads>(Purpose::Evaluate, &stage, 0, &context);
    let mut data = data.unwrap();
    let batch = tpo::train::TrainData::next_batch(&mut data, &Device::flex()).unwrap();
    let output = model.model.forward(batch.batch, &batch.samples).unwrap();
    let heads = output.head_losses.iter();
    let heads = heads.map(|(name, terms)| (name.clone(), terms.total().unwrap()));
    let language = ("lm".to_string(), output.lm_loss.unwrap());
    let all = heads.chain([language]);
    all.map(|(name, loss)| (name, loss.cast(FloatDType::F32).into_scalar()))
        .collect()
}

/// Which parameters of the groups did not move, after it is checked that no other one did.
fn unmoved(
    recipe: &Recipe,
    before: &BTreeMap<String, Vec<f32>>,
    after: &RecipeModel,
) -> Vec<String> {
    let now = values(&after.model);
    let mut learns = BTreeSet::new();
    for stage in &recipe.stages {
        let groups = stage.resolve(&after.model).unwrap();
        learns.extend(groups.trainable().map(|p| p.path.clone()));
    }
    let mut still = Vec::new();
    for (path, values) in before {
        let moved = values
            .iter()
            .zip(&now[path])
            .any(|(a, b)| a.to_bits() != b.to_bits());
        if !learns.contains(path) {
            assert!(!moved, "{path} has no rate and moved");
        } else if !moved {
            still.push(path.clone());
        }
    }
    still
}

/// What need not move of that which has a rate: paths that hold all of these.
const SPARED: [&[&str]; 13] = [
    // Nobody asks with a box here.
    &["heads.region.encoder."],
    // Carried by the published model, and never run.
    &["txt_proj_linear"],
    &["txt_position_embed"],
    &["connector.merge_proj"],
    &["connector.project_down"],
    // The Q-Former's text, which the published code does not give it.
    &["qformer.bert.embeddings.position_"],
    &["qformer.bert.embeddings.word_"],
    &["qformer.bert.encoder.layer.", ".intermediate.dense."],
    &["qformer.bert.encoder.layer.", ".output.", ".bert.encoder"],
    // The content of the first layer of the decoder is zero, and a bias of keys changes no soft-max.
    &["transformer.decoder.layers.0.sa_"],
    &["transformer.decoder.layers.", "a_k", "_proj.bias"],
    // Steps below what 16 bits tell apart beside one, and beside a quarter.
    &["norm", ".weight"],
    &["activation.weight"],
];

/// Goes through the three recipes of a folder from a model directory whose adapters have this rank, in `dir`: all
/// that has a rate moves, but for `spared`, nothing else does, the losses fall stage by stage, and the export
/// answers each task. Hands back the session of the export.
fn goes_through_the_stages(
    folder: &str,
    (directory, rank): (&Path, usize),
    dir: &Path,
    towers: impl Fn(&RecipeModel) -> Option<TemporalTowers>,
    spared: &[&[&str]],
) -> Session {
    let device = Device::flex();
    let paper = |file: &str, changes: &[String]| recipe(folder, file, changes);
    let model = format!("model.directory={}", directory.display());
    let start = |stage: &str| format!("model.start={}", dir.join(stage).display());
    let small = [
        format!("model.lora.rank={rank}"),
        "logging.curves=false".into(),
        model,
    ];

    let mut changes = small.to_vec();
    changes.extend(world("task-assignment", 24, ALL));
    changes.push(rate("task-assignment", "lora", 1e-2));
    let first = paper("stage1.toml", &changes);

    let mut changes = small.to_vec();
    changes.push(start("one"));
    for (stage, task, head, token) in [
        ("region-head", "\"region\"", "region_head", "region_token"),
        (
            "temporal-head",
            "\"temporal\"",
            "temporal_head",
            "temporal_token",
        ),
        ("mask-adapter", "\"mask\"", "mask_adapter", "mask_token"),
    ] {
        changes.extend(world(stage, 12, task));
        changes.extend([
            rate(stage, head, 5e-3),
            rate(stage, token, 2e-2),
            rate(stage, "lora", 1e-3),
        ]);
    }
    let second = paper("stage2.toml", &changes);

    let mut changes = small.to_vec();
    changes.push(start("two"));
    for (stage, tasks) in [
        ("tasks", ALL.to_string()),
        ("tasks-and-conversation", format!("{ALL}, \"chat\"")),
    ] {
        changes.extend(world(stage, 24, &tasks));
        let groups = [
            "temporal_head",
            "region_head",
            "mask_adapter",
            "temporal_token",
            "region_token",
            "mask_token",
        ];
        changes.extend(groups.map(|group| rate(stage, group, 3e-3)));
        changes.extend(["vision", "connector", "lora"].map(|group| rate(stage, group, 1e-3)));
    }
    let third = paper("stage3.toml", &changes);

    let begun = recipe_model::<BuiltInHeads>(&first, &device).unwrap();
    let towers = towers(&begun);
    let held_out = third.clone();
    let mut told = vec![losses(&begun, &held_out, &towers)];
    let mut still = Vec::new();
    let mut ended: Option<RunSummary> = None;
    for (name, recipe) in [("one", &first), ("two", &second), ("three", &third)] {
        let before = values(&recipe_model::<BuiltInHeads>(recipe, &device).unwrap().model);
        let options = RunOptions {
            towers: towers.clone(),
            ..RunOptions::new(dir.join(name), &device)
        };
        let done = run_recipe::<BuiltInHeads>(recipe, &options).unwrap();
        still.extend(unmoved(recipe, &before, &done.model));
        told.push(losses(&done.model, &held_out, &towers));
        ended = Some(done);
    }
    for losses in &told {
        println!("{losses:?}");
    }
    still.retain(|path| {
        !spared
            .iter()
            .any(|parts| parts.iter().all(|part| path.contains(part)))
    });
    assert!(still.is_empty(), "{still:#?}");
    let fell = |from: usize, to: usize, what: &str, at_most: f32| {
        let (from, to) = (told[from][what], told[to][what]);
        assert!(to < at_most * from, "{what}: {from}, then {to}");
    };
    fell(0, 1, "lm", 0.7);
    for head in ["region", "temporal", "mask"] {
        fell(1, 2, head, 0.9);
        fell(2, 3, head, 1.0);
    }

    // The export answers.
    let built = ended.unwrap().model;
    let exported = dir.join("exported");
    let export = ExportOptions::default();
    export_model(
        built.model,
        &built.config,
        &built.tokenizer_files,
        &exported,
        &export,
    )
    .unwrap();
    let options = SessionOptions {
        towers,
        max_new_tokens: 12,
        ..SessionOptions::default()
    };
    let (mut session, _) = Session::open(&exported, &device, options, None).unwrap();
    let video = clip(session.config());
    session.load_reader(Arc::new(video), None).unwrap();
    let mut ask = |text: &str, task: &str| {
        session.clear_history();
        let own = session
            .ask(Question::new(text))
            .unwrap()
            .collect_reply()
            .unwrap();
        println!("{task}: {:?}", own.said);
        session.clear_history();
        let question = Question::new(text).with_task(task);
        session.ask(question).unwrap().collect_reply().unwrap()
    };
    let reply = ask("Where is the circle?", "region");
    let region: &RegionPrediction = reply.prediction().expect("a box");
    region.normalised.check("the answer").unwrap();
    let reply = ask("When does the circle blink?", "temporal");
    let temporal: &TemporalPrediction = reply.prediction().expect("spans");
    assert!(temporal.best().is_some());
    let reply = ask("Follow the circle.", "mask");
    let mask: &MaskPrediction = reply.prediction().expect("a mask");
    assert_eq!(mask.frames.len(), 16);
    session
}

#[test]
fn the_papers_stages_train_every_head() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (directory, _) = assembled(folder.path(), true);
    let towers = |model: &RecipeModel| Some(towers(model));
    let model = (&*directory, 4);
    let session = goes_through_the_stages("videochat_tpo", model, folder.path(), towers, &SPARED);
    assert_eq!(session.tokenizer().token_to_id("<tracking>"), Some(32_005));
}

/// The same on the second base, whose own tower and language model make the temporal head's features.
#[test]
fn the_stages_train_every_head_of_the_second_base() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let files = onevision::base_files(&dir.join("parts"), true, Names::Original);
    let sizes = onevision::small(true);
    let rank = sizes.llm.lora.as_ref().unwrap().rank;
    let options = AssembleOptions {
        sizes: Some(sizes),
        ..options()
    };
    let directory = dir.join("model");
    assemble(&files, &directory, &options, None).unwrap();
    let mut spared = SPARED.to_vec();
    // A bias of keys changes no soft-max.
    spared.push(&["vision.", "k_proj.bias"]);
    let model = (&*directory, rank);
    let session = goes_through_the_stages("llava_ov_tpo", model, dir, |_| None, &spared);
    // As the recipes say, and as many as it was trained with.
    assert_eq!(session.config().input.frames, 16);
    let first = onevision::WORDS as u32 + 5;
    assert_eq!(
        session.tokenizer().token_to_id("<tracking>"),
        Some(first + 5)
    );
}

/// The sizes of mini-ov. A tower of single pictures does not see what happens: the first half of the language model
/// learns that, and nothing above it moves.
#[test]
fn perception_of_single_pictures_reaches_into_the_language_model() {
    let _alone = alone();
    let json = include_str!("../assets/mini-ov/tpo.json");
    let (config, device) = (TpoConfig::from_json(json).unwrap(), Device::flex());
    device.seed(3);
    let model = config.init::<BuiltInHeads>(&device).unwrap();
    assert!(model.num_params() <= 6_000_000, "{}", model.num_params());
    let before = values(&model);
    let options = PerceptionPretraining {
        schedule: Schedule {
            steps: 20,
            learning_rate: 4e-3,
            warmup: 5,
            weight_decay: 0.02,
            muon: Some(Muon::default()),
        },
        clips: 2,
        world: 1,
        irregular: 0.0,
    };
    let (mut losses, begun) = (Vec::new(), std::time::Instant::now());
    let mut heard = |told: PretrainStep<'_>| {
        losses.push(told.values[0].1);
        Ok(())
    };
    let learned = pretrain_perception(&model, &config, &options, &device, &mut heard).unwrap();
    println!("{losses:?}, {:?}", begun.elapsed());
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    assert!(mean(&losses[15..]) < 0.8 * mean(&losses[..5]), "{losses:?}");
    let after = values(&learned);
    let mut moved = before.keys().filter(|path| before[*path] != after[*path]);
    let may = [
        "vision.",
        "connector.linear_",
        "llm.model.layers.0.",
        "llm.model.layers.1.",
    ];
    let may = |path: &str| {
        may.iter().any(|of| path.starts_with(of)) || path.starts_with("llm.model.layers.2.")
    };
    assert!(
        moved.clone().all(|path| may(path)),
        "{:?}",
        moved.find(|path| !may(path))
    );
    for path in [
        "connector.linear_2.weight",
        "llm.model.layers.2.mlp.down_proj.weight",
    ] {
        assert!(moved.clone().any(|p| p == path), "{path}");
    }
    assert!(moved.any(|path| path.starts_with("vision.")));
}

/// The published sizes of the second base, without files.
#[test]
fn the_second_base_is_explained() {
    let _alone = alone();
    let device = Device::flex();
    // Adapters on all linear layers and the output, which is the embedding in the first.
    for (preset, sizes, adapters) in [
        (
            "llava-ov-tpo-0.5b",
            TpoConfig::llava_ov_tpo_0_5b(),
            11_243_520,
        ),
        ("llava-ov-tpo-7b", TpoConfig::llava_ov_tpo_7b(), 42_860_544),
    ] {
        let explain = |file: &str| {
            let recipe = recipe("llava_ov_tpo", file, &[format!("model.preset={preset}")]);
            tpo::training::explain::<BuiltInHeads>(&recipe).unwrap()
        };
        let first = explain("stage1.toml");
        let learns = |stage: usize, explained: &tpo::train::explain::Explanation| {
            let of = explained.stages[stage].trainable_of.iter();
            let of = of.filter(|(_, values)| *values > 0).cloned();
            of.collect::<BTreeMap<String, u64>>()
        };
        assert_eq!(
            learns(0, &first),
            BTreeMap::from([("llm".into(), adapters)])
        );
        // Tower, projector and newline learn in the last stage only.
        for stage in 0..3 {
            let learns = learns(stage, &explain("stage2.toml"));
            assert!(!learns.contains_key("vision") && !learns.contains_key("connector"));
        }
        let last = explain("stage3.toml");
        let learns = learns(0, &last);
        let d = sizes.llm.hidden_size as u64;
        assert_eq!(learns["connector"], 1152 * d + d * d + 3 * d);
        // Each of 16 frames of 729 tokens is looked at by itself; a prompt has 1,024 tokens of text.
        let llm = &sizes.llm;
        let prompt = 16 * 196 + 1 + 1024;
        let pairs = 26 * 16 * 16 * 729 * 729
            + llm.num_hidden_layers * llm.num_attention_heads * prompt * prompt;
        let stage = &last.stages[0];
        assert_eq!(stage.memory.accelerator, (2 * 6 * pairs) as u64);
        assert_eq!(stage.memory.batches, 3 * 2 * 16 * 3 * 384 * 384 * 4);
        // They do not train.
        let changes = [format!("model.preset={preset}")];
        let recipe = recipe("llava_ov_tpo", "stage1.toml", &changes);
        let error = recipe_model::<BuiltInHeads>(&recipe, &device)
            .err()
            .unwrap();
        let error = error.to_string();
        assert!(error.contains("151648 to 151654"), "{error}");
    }
    // Frames that an encoder sees together are as many as it was made for.
    let changes = ["model.preset=videochat-tpo".into(), "model.frames=8".into()];
    let error = tpo::training::explain::<BuiltInHeads>(&paper("stage1.toml", &changes));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("model.frames"), "{error}");
}

#[test]
fn ids_that_the_tokenizer_does_not_have_are_refused_before_anything_is_drawn() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut changes = vec!["model.preset=videochat-tpo".to_string()];
    changes.extend(world("task-assignment", 1, ALL));
    let recipe = paper("stage1.toml", &changes);
    // The published sizes would take 32 GB.
    let options = RunOptions::new(dir.path().join("run"), &Device::flex());
    for error in [
        run_recipe::<BuiltInHeads>(&recipe, &options).err().unwrap(),
        recipe_model::<BuiltInHeads>(&recipe, &Device::flex())
            .err()
            .unwrap(),
    ] {
        let tpo::Error::Train(TrainError::InvalidRecipe { problems, .. }) = &error else {
            panic!("{error}");
        };
        assert_eq!(problems.len(), 1, "{problems:#?}");
        for says in ["tpo assemble", "32000 to 32006", "259 to 265"] {
            assert!(problems[0].contains(says), "{problems:?}");
        }
    }
    assert!(!options.dir.exists());
    // Sizes can be explained all the same.
    tpo::training::explain::<BuiltInHeads>(&recipe).unwrap();

    // A directory whose tokenizer is another's.
    let (model, _) = assembled(dir.path(), true);
    let json = std::fs::read_to_string(model.join("added_tokens.json")).unwrap();
    std::fs::write(
        model.join("added_tokens.json"),
        json.replace("32000", "32007"),
    )
    .unwrap();
    let mut changes = vec![
        format!("model.directory={}", model.display()),
        "model.lora.rank=4".into(),
    ];
    changes.extend(world("task-assignment", 1, ALL));
    let error = run_recipe::<BuiltInHeads>(&paper("stage1.toml", &changes), &options);
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("`<box_begin>` has id 32000 in the registry and 32007"),
        "{error}"
    );
}
