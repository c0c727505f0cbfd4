//! A fixture: a JSON with config and tolerances beside a safetensors file with tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// What a fixture or a module under test can fail with.
pub type Failure = Box<dyn std::error::Error>;

/// A tensor that a check reads and its fixture does not hold.
#[derive(Debug)]
pub struct Missing(pub String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the fixture has no tensor `{}`", self.0)
    }
}

impl std::error::Error for Missing {}

/// One stored tensor, as numbers.
#[derive(Debug, Clone)]
pub struct Stored {
    pub shape: Vec<usize>,
    pub values: Values,
}

#[derive(Debug, Clone)]
pub enum Values {
    Float(Vec<f32>),
    Int(Vec<i64>),
}

#[derive(Debug)]
pub struct Fixture {
    pub name: String,
    pub dir: PathBuf,
    pub json: Value,
    pub tensors: BTreeMap<String, Stored>,
}

impl Fixture {
    /// Reads `NAME.json` and, where there is one, `NAME.safetensors`.
    pub fn open(dir: &Path, name: &str) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(dir.join(format!("{name}.json")))?;
        let file = dir.join(format!("{name}.safetensors"));
        Ok(Self {
            name: name.into(),
            dir: dir.into(),
            json: serde_json::from_str(&text)?,
            tensors: if file.exists() {
                read_tensors(&file)?
            } else {
                BTreeMap::new()
            },
        })
    }

    pub fn weights_file(&self) -> PathBuf {
        self.dir.join(format!("{}.safetensors", self.name))
    }

    pub fn config(&self) -> &Value {
        &self.json["config"]
    }

    /// A number of `config` by name.
    pub fn usize(&self, key: &str) -> Result<usize, Failure> {
        self.json["config"][key]
            .as_u64()
            .map(|v| v as usize)
            .ok_or_else(|| format!("config has no integer `{key}`").into())
    }

    pub fn f64(&self, key: &str) -> Result<f64, Failure> {
        self.json["config"][key]
            .as_f64()
            .ok_or_else(|| format!("config has no number `{key}`").into())
    }

    /// Tolerance of a class: `out`, `mid` or `grad`.
    pub fn tolerance(&self, class: &str) -> Result<f64, Failure> {
        self.json["tolerance"][class]
            .as_f64()
            .ok_or_else(|| format!("no tolerance for `{class}`").into())
    }

    pub fn stored(&self, key: &str) -> Result<&Stored, Failure> {
        self.tensors
            .get(key)
            .ok_or_else(|| Missing(key.into()).into())
    }

    pub fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    pub fn floats(&self, key: &str) -> Result<Vec<f32>, Failure> {
        match &self.stored(key)?.values {
            Values::Float(v) => Ok(v.clone()),
            Values::Int(v) => Ok(v.iter().map(|x| *x as f32).collect()),
        }
    }

    pub fn ints(&self, key: &str) -> Result<Vec<i64>, Failure> {
        match &self.stored(key)?.values {
            Values::Int(v) => Ok(v.clone()),
            Values::Float(_) => Err(format!("`{key}` holds floats, integers were expected").into()),
        }
    }

    /// Rows of a 2-D integer tensor.
    pub fn int_rows(&self, key: &str) -> Result<Vec<Vec<i64>>, Failure> {
        let width = *self.stored(key)?.shape.last().unwrap_or(&1);
        Ok(self
            .ints(key)?
            .chunks(width.max(1))
            .map(<[i64]>::to_vec)
            .collect())
    }

    pub fn tensor<const D: usize>(&self, key: &str, device: &Device) -> Result<Tensor<D>, Failure> {
        let shape = self.stored(key)?.shape.clone();
        if shape.len() != D {
            return Err(format!("`{key}` has {} axes, {D} were expected", shape.len()).into());
        }
        Ok(Tensor::from_data(
            TensorData::new(self.floats(key)?, shape),
            device,
        ))
    }

    pub fn int_tensor<const D: usize>(
        &self,
        key: &str,
        device: &Device,
    ) -> Result<Tensor<D, Int>, Failure> {
        let shape = self.stored(key)?.shape.clone();
        Ok(Tensor::from_data(
            TensorData::new(self.ints(key)?, shape),
            device,
        ))
    }
}

/// Names of all fixtures of a directory, sorted.
pub fn discover(dir: &Path) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json")
            && let Some(stem) = path.file_stem().and_then(|s| s.to_str())
        {
            names.push(stem.to_string());
        }
    }
    names.sort();
    Ok(names)
}

fn read_tensors(file: &Path) -> Result<BTreeMap<String, Stored>, Failure> {
    let bytes = std::fs::read(file)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        macro_rules! read {
            ($t:ty) => {
                data.chunks_exact(std::mem::size_of::<$t>())
                    .map(|b| <$t>::from_le_bytes(b.try_into().unwrap_or_default()))
            };
        }
        let values = match view.dtype() {
            Dtype::F32 => Values::Float(read!(f32).collect()),
            Dtype::F64 => Values::Float(read!(f64).map(|v| v as f32).collect()),
            Dtype::I64 => Values::Int(read!(i64).collect()),
            Dtype::I32 => Values::Int(read!(i32).map(i64::from).collect()),
            Dtype::I16 => Values::Int(read!(i16).map(i64::from).collect()),
            Dtype::I8 => Values::Int(read!(i8).map(i64::from).collect()),
            Dtype::U8 | Dtype::BOOL => Values::Int(data.iter().map(|b| *b as i64).collect()),
            other => return Err(format!("`{name}` has dtype {other:?}").into()),
        };
        tensors.insert(
            name,
            Stored {
                shape: view.shape().to_vec(),
                values,
            },
        );
    }
    Ok(tensors)
}
