//! Reads parity fixtures and puts their weights into a module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use regex::Regex;
use safetensors::{Dtype, SafeTensors};
use tpo_vision::KeyRewrite;

/// A tensor of a fixture.
#[derive(Debug, Clone)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Values,
}

#[derive(Debug, Clone)]
pub enum Values {
    Float(Vec<f32>),
    Int(Vec<i64>),
}

/// One fixture: its JSON and its tensors by key.
pub struct Fixture {
    pub json: serde_json::Value,
    pub tensors: BTreeMap<String, Array>,
}

impl Fixture {
    pub fn read(dir: &Path, name: &str) -> Self {
        let json = std::fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
        let bytes = std::fs::read(dir.join(format!("{name}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .map(|(key, view)| {
                let data = view.data();
                let values = match view.dtype() {
                    Dtype::F32 => Values::Float(
                        data.chunks_exact(4)
                            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                            .collect(),
                    ),
                    Dtype::I64 => Values::Int(
                        data.chunks_exact(8)
                            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
                            .collect(),
                    ),
                    Dtype::U8 | Dtype::BOOL => {
                        Values::Int(data.iter().map(|b| i64::from(*b)).collect())
                    }
                    other => panic!("{key}: dtype {other:?}"),
                };
                let shape = view.shape().to_vec();
                (key.to_string(), Array { shape, values })
            })
            .collect();
        Self {
            json: serde_json::from_str(&json).unwrap(),
            tensors,
        }
    }

    pub fn array(&self, key: &str) -> &Array {
        self.tensors
            .get(key)
            .unwrap_or_else(|| panic!("no tensor {key}"))
    }

    pub fn values(&self, key: &str) -> &[f32] {
        match &self.array(key).values {
            Values::Float(values) => values,
            Values::Int(_) => panic!("{key} is an integer tensor"),
        }
    }

    pub fn float<const D: usize>(&self, key: &str, device: &Device) -> Tensor<D> {
        let data = TensorData::new(self.values(key).to_vec(), self.array(key).shape.clone());
        Tensor::from_data(data, device)
    }

    pub fn int<const D: usize>(&self, key: &str, device: &Device) -> Tensor<D, Int> {
        let Values::Int(values) = &self.array(key).values else {
            panic!("{key} is a float tensor");
        };
        let data = TensorData::new(values.clone(), self.array(key).shape.clone());
        Tensor::from_data(data, device)
    }

    /// Tolerance of a tensor by the first part of its key.
    pub fn tolerance(&self, key: &str) -> f64 {
        let kind = key.split('.').next().unwrap();
        self.json["tolerance"][kind].as_f64().unwrap()
    }

    /// Keys that start with `prefix`, without it.
    pub fn keys<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.tensors
            .keys()
            .filter_map(move |key| key.strip_prefix(prefix))
    }

    /// Puts the `w.` tensors into a module. Every parameter must be there, in its shape, and
    /// every tensor must have its parameter except those matching a pattern of `unused`.
    pub fn load<M: Module>(&self, module: M, rules: &[KeyRewrite], unused: &[(&str, &str)]) -> M {
        let unused: Vec<_> = unused.iter().map(|(p, _)| Regex::new(p).unwrap()).collect();
        let weights: BTreeMap<_, _> = self
            .keys("w.")
            .filter(|key| !unused.iter().any(|pattern| pattern.is_match(key)))
            .map(|key| (rewrite(key, rules), self.array(&format!("w.{key}"))))
            .collect();
        let mut loader = Loader {
            weights: &weights,
            path: Vec::new(),
            used: BTreeSet::new(),
        };
        let module = module.map(&mut loader);
        let left: Vec<_> = weights
            .keys()
            .filter(|path| !loader.used.contains(*path))
            .collect();
        assert!(left.is_empty(), "no parameter for {left:?}");
        module
    }
}

/// Applies rewrite rules in order.
pub fn rewrite(key: &str, rules: &[KeyRewrite]) -> String {
    let mut key = key.to_string();
    for (pattern, replacement) in rules {
        key = Regex::new(pattern)
            .unwrap()
            .replace_all(&key, *replacement)
            .into_owned();
    }
    key
}

struct Loader<'a> {
    weights: &'a BTreeMap<String, &'a Array>,
    path: Vec<String>,
    used: BTreeSet<String>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let array = self
            .weights
            .get(&path)
            .unwrap_or_else(|| panic!("no weight for {path}"));
        assert_eq!(param.lazy_shape().to_vec(), array.shape, "{path}");
        let Values::Float(values) = &array.values else {
            panic!("{path} is an integer tensor");
        };
        let data = TensorData::new(values.clone(), array.shape.clone());
        self.used.insert(path);
        let device = param.lazy_device();
        let tensor = Tensor::from_data(data, &device).set_require_grad(device.is_autodiff());
        Param::initialized(param.id, tensor)
    }
}

/// Shape of every float parameter by path, without initialising it.
pub fn shapes<M: Module>(module: &M) -> BTreeMap<String, Vec<usize>> {
    struct Shapes {
        path: Vec<String>,
        found: BTreeMap<String, Vec<usize>>,
    }
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found
                .insert(self.path.join("."), param.lazy_shape().to_vec());
        }
    }
    let mut visitor = Shapes {
        path: Vec::new(),
        found: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Gradient values of every parameter that has one, by path.
pub fn gradients<M: Module>(module: &M, grads: &Gradients) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a> {
        grads: &'a Gradients,
        path: Vec<String>,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = param.val().grad(self.grads) {
                self.found.insert(self.path.join("."), values(grad));
            }
        }
    }
    let mut visitor = Collect {
        grads,
        path: Vec::new(),
        found: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// The values of a tensor in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}
