//! Walking the parameters of a module.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use regex::Regex;
use tpo_core::weights::PathStack;
use tpo_vision::KeyRewrite;

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

/// Shape of every float parameter by path, without initialising it.
pub fn shapes<M: Module>(module: &M) -> BTreeMap<String, Vec<usize>> {
    struct Shapes {
        path: PathStack,
        found: BTreeMap<String, Vec<usize>>,
    }
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found
                .insert(self.path.path(), param.lazy_shape().to_vec());
        }
    }
    let mut visitor = Shapes {
        path: PathStack::default(),
        found: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// Gradient values of every parameter that has one, by path.
pub fn gradients<M: Module>(module: &M, grads: &Gradients) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a> {
        grads: &'a Gradients,
        path: PathStack,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = param.val().grad(self.grads) {
                self.found.insert(self.path.path(), values(grad));
            }
        }
    }
    let mut visitor = Collect {
        grads,
        path: PathStack::default(),
        found: BTreeMap::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

/// The values of a tensor in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}
