//! The tensors a checkpoint is expected to have.

use std::path::Path;

use safetensors::Dtype;
use serde::Serialize;
use serde::de::Deserialize;

use super::write::bytes_of;
use super::{BlockType, Checkpoint, Result, WeightsError};

/// Most tensors one line of the compact form may stand for.
const MAX_EXPANSION: usize = 100_000;

/// A tensor that is expected, or was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ManifestTensor {
    /// Key in the checkpoint.
    pub key: String,
    /// Data type.
    pub dtype: Dtype,
    /// The blocks it is stored as, in a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockType>,
    /// Shape.
    pub shape: Vec<usize>,
    /// Name of the file it is in, when the manifest says.
    pub shard: Option<String>,
    /// Whether a checkpoint without it is complete too.
    pub optional: bool,
}

impl ManifestTensor {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        match self.blocks {
            Some(blocks) => self.elements() / blocks.elements() as u64 * blocks.bytes() as u64,
            None => bytes_of(self.dtype, &self.shape),
        }
    }

    /// Name of the type it is stored as: `F32`, `Q4_K`.
    pub fn type_name(&self) -> String {
        match self.blocks {
            Some(blocks) => blocks.name().to_string(),
            None => format!("{:?}", self.dtype),
        }
    }

    /// Whether the data type is a floating point type.
    pub fn is_float(&self) -> bool {
        format!("{:?}", self.dtype).contains('F')
    }
}

/// A list of tensors without their data: what a checkpoint should hold, or does.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Manifest {
    /// What it describes.
    pub name: String,
    /// The tensors.
    pub tensors: Vec<ManifestTensor>,
}

impl Manifest {
    /// The tensors of a checkpoint.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            name: checkpoint.path().display().to_string(),
            tensors: checkpoint
                .tensors()
                .map(|t| ManifestTensor {
                    key: t.key.clone(),
                    dtype: t.dtype,
                    blocks: t.blocks,
                    shape: t.shape.clone(),
                    shard: Some(t.file_name()),
                    optional: false,
                })
                .collect(),
        }
    }

    /// Reads `{"tensors": {key: {"shape": [..], "dtype": "bfloat16", "shard": file}}}`; `shard`
    /// may be absent, and data types may be PyTorch's names or the format's.
    ///
    /// # Errors
    /// [`WeightsError::Io`], and [`WeightsError::Manifest`] with the line of the mistake.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Raw {
            tensors: std::collections::BTreeMap<String, RawTensor>,
        }
        #[derive(serde::Deserialize)]
        struct RawTensor {
            shape: Vec<usize>,
            dtype: String,
            shard: Option<String>,
        }
        let text = std::fs::read_to_string(path).map_err(WeightsError::io("reading", path))?;
        let name = path.display().to_string();
        let raw: Raw =
            serde_json::from_str(&text).map_err(|e| mistake(&name, e.line(), e.to_string()))?;
        let tensors = raw
            .tensors
            .into_iter()
            .map(|(key, t)| match parse_dtype(&t.dtype) {
                Some(dtype) => checked(key, dtype, t.shape, t.shard),
                None => Err(format!("`{key}`: unknown data type `{}`", t.dtype)),
            })
            .collect::<Result<_, String>>()
            .map_err(|why| mistake(&name, 0, why))?;
        Ok(Self { name, tensors })
    }

    /// Reads the compact form: one line per name with data type, shape and shard number, where
    /// `{0-2,5}` in a name stands for each of the numbers, after a line `shards N`.
    ///
    /// # Errors
    /// [`WeightsError::Manifest`].
    pub fn from_compact(name: &str, text: &str) -> Result<Self> {
        let mut shards = 0;
        let mut tensors = Vec::new();
        for (i, line) in text.lines().enumerate() {
            parse_line(line, &mut shards, &mut tensors).map_err(|why| mistake(name, i + 1, why))?;
        }
        tensors.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(pair) = tensors.windows(2).find(|p| p[0].key == p[1].key) {
            return Err(mistake(name, 0, format!("`{}` occurs twice", pair[0].key)));
        }
        Ok(Self {
            name: name.into(),
            tensors,
        })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(ManifestTensor::bytes).sum()
    }
}

/// Name of a shard in Hugging Face's scheme.
pub(crate) fn shard_name(number: usize, of: usize) -> String {
    format!("model-{number:05}-of-{of:05}.safetensors")
}

fn mistake(name: &str, line: usize, why: String) -> WeightsError {
    WeightsError::Manifest {
        place: match line {
            0 => name.to_string(),
            n => format!("{name}, line {n}"),
        },
        why,
    }
}

/// Reads a line of the compact form: the number of shards, or tensors.
fn parse_line(
    line: &str,
    shards: &mut usize,
    tensors: &mut Vec<ManifestTensor>,
) -> Result<(), String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [] => {}
        [first, ..] if first.starts_with('#') => {}
        ["shards", n] => *shards = n.parse().map_err(|_| "`shards` takes a number")?,
        [pattern, dtype, shape, ref shard @ ..] if shard.len() <= 1 => {
            let dtype = parse_dtype(dtype).ok_or("unknown data type")?;
            let shape = parse_shape(shape).ok_or("the shape must be numbers and commas")?;
            let shard = match shard.first() {
                Some(n) => {
                    let n = n.parse().ok().filter(|n| (1..=*shards).contains(n));
                    let n = n.ok_or("the shard must be a number up to `shards`")?;
                    Some(shard_name(n, *shards))
                }
                None => None,
            };
            for key in expand(pattern).ok_or("ranges are written {0-2,5}")? {
                tensors.push(checked(key, dtype, shape.clone(), shard.clone())?);
            }
        }
        _ => return Err("expected a name, a data type, a shape and a shard".into()),
    }
    Ok(())
}

/// Builds a tensor whose size in bytes is known not to overflow.
fn checked(
    key: String,
    dtype: Dtype,
    shape: Vec<usize>,
    shard: Option<String>,
) -> Result<ManifestTensor, String> {
    shape
        .iter()
        .try_fold(dtype.bitsize() as u64, |n, &d| n.checked_mul(d as u64))
        .ok_or_else(|| format!("`{key}`: the size overflows"))?;
    Ok(ManifestTensor {
        key,
        dtype,
        blocks: None,
        shape,
        shard,
        optional: false,
    })
}

/// A data type by the format's name or PyTorch's.
pub fn parse_dtype(name: &str) -> Option<Dtype> {
    Some(match name.strip_prefix("torch.").unwrap_or(name) {
        "bfloat16" => Dtype::BF16,
        "float16" | "half" => Dtype::F16,
        "float32" | "float" => Dtype::F32,
        "float64" | "double" => Dtype::F64,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "bool" => Dtype::BOOL,
        other => {
            return Dtype::deserialize(serde_json::Value::String(other.to_string())).ok();
        }
    })
}

fn parse_shape(text: &str) -> Option<Vec<usize>> {
    match text {
        "-" => Some(Vec::new()),
        _ => text.split(',').map(|d| d.parse().ok()).collect(),
    }
}

/// Expands every `{0-2,5}` of a pattern.
fn expand(pattern: &str) -> Option<Vec<String>> {
    let mut out = vec![String::new()];
    let mut rest = pattern;
    while let Some(open) = rest.find('{') {
        let close = open + rest[open..].find('}')?;
        let mut numbers = Vec::new();
        for part in rest[open + 1..close].split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            if last.checked_sub(first)? >= MAX_EXPANSION {
                return None;
            }
            numbers.extend(first..=last);
        }
        if numbers.len() * out.len() > MAX_EXPANSION {
            return None;
        }
        out = out
            .iter()
            .flat_map(|head| {
                numbers
                    .iter()
                    .map(move |n| format!("{head}{}{n}", &rest[..open]))
            })
            .collect();
        rest = &rest[close + 1..];
    }
    for key in &mut out {
        key.push_str(rest);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_expand_in_order() {
        assert_eq!(
            expand("a.{0-1,4}.b.{7}.c").unwrap(),
            ["a.0.b.7.c", "a.1.b.7.c", "a.4.b.7.c"]
        );
        assert_eq!(expand("plain").unwrap(), ["plain"]);
        assert_eq!(expand("a.{3-1}"), None);
        assert_eq!(expand("a.{0-99999999}"), None);
        assert_eq!(expand("a.{0"), None);
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, part) in [
            ("shards 1\na BF16 2,x 1", "line 2"),
            ("a BF16 2 1", "shard must be"),
            ("a WHAT 2", "unknown data type"),
            ("a BF16 2\na BF16 2", "twice"),
            ("a BF16 99999999999,99999999999", "overflows"),
        ] {
            let error = Manifest::from_compact("m.txt", text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
