//! The names of LLaVA-OneVision's tensors in files, and what else differs between its files.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::DType;
use serde::Serialize;
use tpo_core::weights::{
    Checkpoint, KeyRules, MismatchedTensor, Refusal, TensorEntry, WeightsError, read_tensor_as,
};
use tpo_llm::LlmConfig;
use tpo_vision::siglip::SIGLIP_UNUSED_KEYS;

use crate::error::Result;

/// What a conversion to llava-hf's files adds to the vocabulary before it fills it up, and to a multiple of what.
const ADDED_TOKENS: usize = 2;
const ROWS_MULTIPLE: usize = 64;
/// Lines of the two tables that are compared at a time.
const LINES: usize = 1024;

/// The names that the tensors of a LLaVA-OneVision have in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Names {
    /// Those of the published files of lmms-lab, whose code they are for.
    #[default]
    Original,
    /// Those of llava-hf's files, of transformers 4.
    HuggingFace,
    /// Those that transformers 5 writes.
    HuggingFace5,
    /// Those that parameters have in transformers 5.
    InMemory,
}

/// What the names of the parts begin with.
struct Beginnings {
    tower: &'static str,
    projector: [&'static str; 2],
    newline: &'static str,
    decoder: &'static str,
    output: &'static str,
}

impl Names {
    /// All layouts.
    pub const ALL: [Self; 4] = [
        Self::Original,
        Self::HuggingFace,
        Self::HuggingFace5,
        Self::InMemory,
    ];

    /// The names of the tensors of `checkpoint`, by most of those of its tower; `None` when it has no tower of
    /// LLaVA-OneVision.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let mut votes: BTreeMap<Self, usize> = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            let Some((tower, _)) = tensor.key.split_once("encoder.layers.") else {
                continue;
            };
            let layout = Self::ALL.into_iter();
            for layout in layout.filter(|layout| layout.beginnings().tower == tower) {
                *votes.entry(layout).or_default() += 1;
            }
        }
        let most = votes.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(layout, _)| layout)
    }

    /// What it is called in reports.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Original => "names of lmms-lab",
            Self::HuggingFace => "names of llava-hf",
            Self::HuggingFace5 => "names that transformers 5 writes",
            Self::InMemory => "names of transformers 5 in memory",
        }
    }

    /// The parts of the base, and what their names begin with.
    pub(crate) fn parts(self) -> [(&'static str, Vec<String>); 4] {
        let of = self.beginnings();
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        [
            ("vision_tower", own(&[of.tower])),
            ("projector", own(&of.projector)),
            ("image_newline", own(&[of.newline])),
            ("language model", owned_by_llm(self)),
        ]
    }

    fn beginnings(self) -> Beginnings {
        match self {
            Self::Original => Beginnings {
                tower: "model.vision_tower.vision_tower.vision_model.",
                projector: ["model.mm_projector.0.", "model.mm_projector.2."],
                newline: "model.image_newline",
                decoder: "model.",
                output: "lm_head.",
            },
            Self::HuggingFace => Beginnings {
                tower: "vision_tower.vision_model.",
                projector: [
                    "multi_modal_projector.linear_1.",
                    "multi_modal_projector.linear_2.",
                ],
                newline: "image_newline",
                decoder: "language_model.model.",
                output: "language_model.lm_head.",
            },
            Self::HuggingFace5 => Beginnings {
                tower: "vision_tower.",
                ..Self::HuggingFace.beginnings()
            },
            Self::InMemory => Beginnings {
                tower: "model.vision_tower.",
                projector: [
                    "model.multi_modal_projector.linear_1.",
                    "model.multi_modal_projector.linear_2.",
                ],
                newline: "model.image_newline",
                decoder: "model.language_model.",
                output: "lm_head.",
            },
        }
    }
}

/// What the names of the language model's tensors begin with.
fn owned_by_llm(names: Names) -> Vec<String> {
    let of = names.beginnings();
    let parts = ["embed_tokens.", "layers.", "norm."];
    let decoder = parts.map(|part| format!("{}{part}", of.decoder));
    decoder.into_iter().chain([of.output.to_string()]).collect()
}

/// Names of the tower's parameters in checkpoints.
pub(crate) fn tower_keys(names: Names) -> Result<Vec<KeyRules>> {
    let tower = names.beginnings().tower;
    let rules = KeyRules::new().owns([tower]).prefix(tower, "");
    Ok(vec![rules.ignore_all(SIGLIP_UNUSED_KEYS)?])
}

/// Names of the projector's parameters and of the newline in checkpoints.
pub(crate) fn connector_keys(names: Names) -> Vec<KeyRules> {
    let of = names.beginnings();
    let [first, second] = of.projector;
    let rules = KeyRules::new().owns([first, second, of.newline]);
    let rules = rules.prefix(first, "linear_1.").prefix(second, "linear_2.");
    vec![rules.prefix(of.newline, "image_newline")]
}

/// Names of the parameters of `llm` in checkpoints. An output layer that is the embedding may be in a file all the
/// same; that it is equal is [`prepared`]'s to see.
pub(crate) fn llm_keys(llm: &LlmConfig, names: Names) -> Result<KeyRules> {
    let of = names.beginnings();
    let rules = KeyRules::new()
        .owns(owned_by_llm(names))
        .prefix(of.decoder, "model.")
        .prefix(of.output, "lm_head.")
        .lora("default")
        .ignore(
            r"\.rotary_emb\.inv_freq$",
            "frequencies are computed from the configuration",
        )?;
    if !llm.tie_word_embeddings {
        return Ok(rules);
    }
    Ok(rules.ignore(
        r"(^|\.)lm_head(\.base_layer)?\.weight$",
        "equal to the embedding, which is the output layer",
    )?)
}

/// The weights in `dir` as a model with the language model `llm` reads them, and their names, told by the tensors.
///
/// # Errors
/// [`Error::Weights`](crate::Error::Weights) for files that are damaged, and for an output layer that must be the
/// embedding and is not.
pub(crate) fn open_named(dir: &Path, llm: &LlmConfig) -> Result<(Checkpoint, Names)> {
    let checkpoint = Checkpoint::open(dir)?;
    let names = Names::of(&checkpoint).unwrap_or_default();
    let (checkpoint, differs) = prepared(checkpoint, llm, names)?;
    let Some(differs) = differs else {
        return Ok((checkpoint, names));
    };
    Err(WeightsError::Refused(Box::new(Refusal {
        checkpoint: dir.into(),
        mismatched: vec![differs],
        ..Refusal::default()
    }))
    .into())
}

/// `checkpoint` as a model with the language model `llm` reads it, and what is wrong with its output layer if that
/// is the embedding. Tables of words that a conversion of Hugging Face's has filled up with random rows end where
/// the vocabulary does.
///
/// # Errors
/// For tables that cannot be read.
pub(crate) fn prepared(
    checkpoint: Checkpoint,
    llm: &LlmConfig,
    names: Names,
) -> Result<(Checkpoint, Option<MismatchedTensor>)> {
    let of = names.beginnings();
    let tables = [
        format!("{}embed_tokens.weight", of.decoder),
        format!("{}weight", of.output),
        format!("{}base_layer.weight", of.output),
    ];
    let vocabulary = llm.vocab_size;
    let filled = (vocabulary + ADDED_TOKENS).next_multiple_of(ROWS_MULTIPLE);
    let mut checkpoint = checkpoint;
    if names != Names::Original {
        for key in &tables {
            let table = checkpoint
                .get(key)
                .filter(|t| t.shape.first() == Some(&filled));
            if let Some(cut) = table.and_then(|table| table.lines(0..vocabulary)) {
                checkpoint = checkpoint.with(cut);
            }
        }
    }
    let [embedding, output, _] = tables.each_ref().map(|key| checkpoint.get(key));
    let differs = match (embedding, output) {
        (Some(embedding), Some(output)) if llm.tie_word_embeddings => {
            difference(embedding, output)?
        }
        _ => None,
    };
    Ok((checkpoint, differs))
}

/// What keeps `output` from being `embedding`.
fn difference(embedding: &TensorEntry, output: &TensorEntry) -> Result<Option<MismatchedTensor>> {
    let mismatched = |why: Option<String>| MismatchedTensor {
        key: output.key.clone(),
        path: "llm.lm_head.weight".into(),
        expected: embedding.shape.clone(),
        found: output.shape.clone(),
        file: output.file_name(),
        why,
    };
    if embedding.shape != output.shape {
        return Ok(Some(mismatched(None)));
    }
    let count = embedding.shape.first().copied().unwrap_or_default();
    for first in (0..count).step_by(LINES) {
        let lines = first..(first + LINES).min(count);
        let parts = [embedding, output].map(|table| table.lines(lines.clone()));
        let [Some(a), Some(b)] = parts else {
            continue;
        };
        let (a, b) = (
            read_tensor_as(&a, DType::F32)?,
            read_tensor_as(&b, DType::F32)?,
        );
        if a.as_bytes() != b.as_bytes() {
            return Ok(Some(mismatched(Some(format!(
                "it is not `{}`, from which it differs in rows {} to {}, and the configuration says that both are \
                 one (tie_word_embeddings); take files of one model, or one that is not tied",
                embedding.key,
                lines.start,
                lines.end - 1
            )))));
        }
    }
    Ok(None)
}
