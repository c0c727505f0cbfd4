//! What a model takes in memory, said before a weight is read.

use std::num::NonZeroUsize;
use std::path::Path;

use burn::tensor::{Device, FloatDType};
use tpo_core::head::{HeadSet, TaskHead};
use tpo_core::model::cache_positions;
use tpo_core::ops::QuantFormat;
use tpo_core::weights::{ParamKind, module_params};
use tpo_heads::mask::MaskHead;

use super::{Quantize, TpoConfig};
use crate::error::{Error, Result};

/// Working memory of SAM 2 for each pixel of its square input: Hiera-L at 1024² has 137 MB in use at the most beside
/// the maps of the frame before, and the allocator keeps what was freed a moment ago.
const MASK_BYTES_PER_PIXEL: u64 = 3 << 7;
/// The same where losses go through it and its memory is recorded; not measured on the published size.
const TRAINED_MASK_BYTES_PER_PIXEL: u64 = 1 << 10;

/// Bytes a model takes, by what takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelMemory {
    /// All parameters.
    pub weights: u64,
    /// Keys and values of a usual prompt ([`TpoConfig::usual_prompt`]) and the answer.
    pub cache: u64,
    /// The largest intermediate results, about: of a usual prompt, and of a picture that the
    /// mask head looks at.
    pub activations: u64,
    /// Of the weights, those that every token of an answer reads: the decoder without its table of
    /// embeddings.
    pub per_token: u64,
    /// Of cache and activations, what every question takes that is answered at the same time.
    pub per_question: u64,
}

impl ModelMemory {
    /// Of a model with its floats as `dtype` that answers in up to `answer` tokens. No weight is
    /// initialised. Quantised layers are those that the configuration says.
    ///
    /// # Errors
    /// Those of [`TpoConfig::init`].
    pub fn of<H: HeadSet>(config: &TpoConfig, dtype: FloatDType, answer: usize) -> Result<Self> {
        let float = burn::tensor::DType::from(dtype).size() as u64;
        let model = config.init::<H>(&Device::flex())?;
        let llm = &config.llm;
        let (mut weights, mut per_token) = (0, 0);
        for param in module_params(&model) {
            let elements: usize = param.shape.iter().product();
            let bytes = match param.kind {
                ParamKind::Float => elements as u64 * float,
                ParamKind::Int | ParamKind::Bool => elements as u64 * 4,
            };
            weights += bytes;
            let table = param.path.contains("embed_tokens") && !llm.tie_word_embeddings;
            if param.path.starts_with("llm.") && !table {
                per_token += bytes;
            }
        }
        // As `TpoModel::generate` allocates for a prompt of this length.
        let longest = config.usual_prompt()?;
        let room = llm.max_position_embeddings.saturating_sub(longest).max(1);
        let answer = answer.min(room);
        let cached = cache_positions(longest, answer) as u64;
        let positions = (longest + answer).min(llm.max_position_embeddings) as u64;
        let token = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim;
        // The gated MLP holds three rows of its width at once, the block some of the model's own;
        // products are added up in 32 bits.
        let row = 3 * llm.intermediate_size + 6 * llm.hidden_size;
        let cache = cached * token as u64 * float;
        let prompt = positions * row as u64 * 4;
        Ok(Self {
            weights,
            per_token,
            per_question: cache + prompt,
            cache,
            activations: prompt + mask_scratch(config, false)?,
        })
    }

    /// [`ModelMemory::of`] a model in a number format, whatever its own.
    pub(crate) fn in_format<H: HeadSet>(
        config: &TpoConfig,
        format: WeightFormat,
        answer: usize,
    ) -> Result<Self> {
        let mut config = config.clone();
        config.set_quantization(format.quantize);
        Self::of::<H>(&config, format.dtype, answer)
    }

    /// Questions that can be answered at once where `available` bytes are left beside the weights; at
    /// least one. Half of them is for heads and what else there is.
    pub fn batch(&self, available: u64) -> NonZeroUsize {
        let questions = available / 2 / self.per_question.max(1);
        NonZeroUsize::new(questions.min(usize::MAX as u64) as usize).unwrap_or(NonZeroUsize::MIN)
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.activations
    }
}

/// Working memory of the mask head for a picture, if the model has one; `trained` says that losses go through it.
pub(crate) fn mask_scratch(config: &TpoConfig, trained: bool) -> Result<u64> {
    if !config.heads.0.contains_key(MaskHead::NAME) {
        return Ok(0);
    }
    let side = config.heads.get::<MaskHead>()?.sam.image_size as u64;
    let per_pixel = if trained {
        TRAINED_MASK_BYTES_PER_PIXEL
    } else {
        MASK_BYTES_PER_PIXEL
    };
    Ok(side * side * per_pixel)
}

/// Whether losses of the mask head go through SAM 2.
pub(crate) fn trains_through_masks(config: &TpoConfig) -> Result<bool> {
    Ok(config.heads.0.contains_key(MaskHead::NAME)
        && config.heads.get::<MaskHead>()?.loss.video.is_some())
}

/// Bytes that this process may still take: what the system has available, or less where the limit
/// of a control group says so. `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let free = kib << 10;
    Some(group_memory(Path::new("/sys/fs/cgroup")).map_or(free, |group| group.min(free)))
}

/// What the control group of this process leaves it (version 2, or the memory controller of 1).
fn group_memory(root: &Path) -> Option<u64> {
    let number = |dir: &Path, name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(dir.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            let (dir, limit, usage) = match controllers {
                "" => (root.join(path), "memory.max", "memory.current"),
                "memory" => {
                    let dir = root.join("memory").join(path);
                    (dir, "memory.limit_in_bytes", "memory.usage_in_bytes")
                }
                _ => return None,
            };
            // Every group above has a say too.
            dir.ancestors()
                .take_while(|dir| dir.starts_with(root))
                .filter_map(|dir| Some(number(dir, limit)?.saturating_sub(number(dir, usage)?)))
                .min()
        })
        .min()
}

/// Bytes in GiB.
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

/// The number format of a model's weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightFormat {
    /// Of everything that is not quantised.
    pub dtype: FloatDType,
    /// Of the linear layers of language model and vision encoder.
    pub quantize: Quantize,
}

impl WeightFormat {
    /// Those a model can be opened in on a CPU whose files are as `config` says, the most exact one
    /// first: parts that are quantised there stay so. `asked` is among them, and the vision encoder is
    /// in all of them as in it.
    pub fn of(config: &TpoConfig, asked: Option<Self>) -> Vec<Self> {
        let vision = asked.and_then(|format| format.quantize.vision);
        let mut formats = Vec::new();
        for (dtype, llm) in [
            (FloatDType::F32, None),
            (FloatDType::BF16, None),
            (FloatDType::BF16, Some(QuantFormat::Q8_0)),
            (FloatDType::BF16, Some(QuantFormat::Q4_0)),
        ] {
            let mut config = config.clone();
            if config.quantize(Quantize { llm, vision }).is_ok() {
                let quantize = config.quantization();
                formats.push(Self { dtype, quantize });
            }
        }
        formats.dedup();
        if let Some(asked) = asked.filter(|asked| !formats.contains(asked)) {
            formats.insert(0, asked);
        }
        formats
    }

    /// How it is asked for on the command line.
    pub fn flags(self) -> String {
        let mut flags = format!("--dtype {}", format!("{:?}", self.dtype).to_lowercase());
        for (flag, format) in [
            ("--quantize", self.quantize.llm),
            ("--quantize-vision", self.quantize.vision),
        ] {
            if let Some(format) = format {
                flags += &format!(" {flag} {}", format.name());
            }
        }
        flags
    }
}

/// The float type in which a model is opened on a CPU with `available` bytes, whose files are as `config`
/// says and whose parts are to be quantised as `quantize` says: the one that is asked for, or the most
/// exact one that fits beside `towers` bytes, which towers will take there
/// ([`TemporalTowers::bytes_to_open`](crate::features::TemporalTowers::bytes_to_open)).
///
/// # Errors
/// [`Error::Memory`] with what each format takes when the model does not fit; [`Error::Config`] when its
/// parts are quantised otherwise already.
pub fn choose_format<H: HeadSet>(
    config: &TpoConfig,
    dtype: Option<FloatDType>,
    quantize: Quantize,
    answer: usize,
    towers: u64,
    available: Option<u64>,
) -> Result<FloatDType> {
    let mut opened = config.clone();
    opened.quantize(quantize)?;
    let quantize = opened.quantization();
    let need = |format: WeightFormat| ModelMemory::in_format::<H>(config, format, answer);
    let candidates = match dtype {
        Some(dtype) => vec![dtype],
        None => vec![FloatDType::F32, FloatDType::BF16],
    };
    for dtype in candidates {
        let needed = need(WeightFormat { dtype, quantize })?.total() + towers;
        if available.is_none_or(|available| needed <= available) {
            return Ok(dtype);
        }
    }
    let wanted = WeightFormat {
        dtype: dtype.unwrap_or(FloatDType::BF16),
        quantize,
    };
    let formats = WeightFormat::of(config, Some(wanted)).into_iter();
    let rows = formats.map(|format| {
        let m = need(format)?;
        Ok((format.flags(), [m.weights, towers, m.cache, m.activations]))
    });
    Err(refused(
        ["weights", "towers", "cache", "activations"],
        rows.collect::<Result<Vec<_>>>()?,
        &wanted.flags(),
        available.unwrap_or_default(),
        otherwise(towers),
    ))
}

/// What can be done where no format fits, with towers of so many bytes.
pub(crate) fn otherwise(towers: u64) -> &'static str {
    if towers > 0 {
        "leave --towers out (features that were computed before take their place: --features DIR, or \
         `features` of a recipe's source), give them another device (--towers-device), or free memory"
    } else {
        "free memory, or use a machine with more"
    }
}

/// What is said of a model that does not fit into `available` bytes: a row for each way to hold it, the
/// most exact one first, with the bytes of its `columns`; `asked` is one of them, and `otherwise` what can be
/// done where none fits.
pub(crate) fn refused<const N: usize>(
    columns: [&str; N],
    rows: Vec<(String, [u64; N])>,
    asked: &str,
    available: u64,
    otherwise: &str,
) -> Error {
    let first = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    let mut table = format!("{:first$}", "format");
    for column in columns.iter().chain(&["need"]) {
        table += &format!(" {column:>11}");
    }
    table += "  GiB\n";
    let mut fits = None;
    for (flags, bytes) in rows {
        table += &format!("{flags:first$}");
        let need = bytes.iter().sum();
        for bytes in bytes.into_iter().chain([need]) {
            table += &format!(" {:>11.1}", gib(bytes));
        }
        table += if need <= available {
            "  fits"
        } else {
            "  too much"
        };
        table += if flags == asked {
            ", asked for\n"
        } else {
            "\n"
        };
        if need <= available {
            fits.get_or_insert(flags);
        }
    }
    let remedy = match fits {
        Some(flags) => format!("give {flags}"),
        None => otherwise.into(),
    };
    Error::Memory {
        available: format!("{:.1}", gib(available)),
        table,
        remedy,
    }
}
