//! The parameters of a module, listed without initialising them, or cast.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, FloatDType, Int, Tensor};

/// Kind of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// Floating point.
    Float,
    /// Integer.
    Int,
    /// Boolean.
    Bool,
}

/// A parameter: where it is and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Path in the module tree.
    pub path: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Kind.
    pub kind: ParamKind,
    /// Burn's identity of the parameter; two paths with one identity share their values.
    pub id: ParamId,
}

/// Lists the parameters of a module in the order of its fields. Parameters that are not
/// initialised yet stay so.
pub fn module_params<M: Module>(module: &M) -> Vec<ParamInfo> {
    let mut lister = Lister::default();
    module.visit(&mut lister);
    lister.params
}

/// Casts the float parameters of a module. Quantised weights stay as they are.
pub fn cast_params<M: Module>(module: M, dtype: FloatDType) -> M {
    struct Cast(FloatDType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(self.0))
        }
    }
    module.map(&mut Cast(dtype))
}

/// The path of the parameter being visited, for your own visitors and mappers: call it from
/// `enter_module` and `exit_module`. Variants of an enum have no segment.
#[derive(Debug, Default)]
pub struct PathStack(Vec<String>);

impl PathStack {
    /// Goes into a field.
    pub fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.push(name.to_string());
        }
    }

    /// Leaves it.
    pub fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.pop();
        }
    }

    /// Path from the root.
    pub fn path(&self) -> String {
        self.0.join(".")
    }
}

#[derive(Default)]
struct Lister {
    stack: PathStack,
    params: Vec<ParamInfo>,
}

impl Lister {
    fn push(&mut self, shape: Vec<usize>, kind: ParamKind, id: ParamId) {
        self.params.push(ParamInfo {
            path: self.stack.path(),
            shape,
            kind,
            id,
        });
    }
}

impl ModuleVisitor for Lister {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.push(param.lazy_shape().to_vec(), ParamKind::Float, param.id);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.push(param.lazy_shape().to_vec(), ParamKind::Int, param.id);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.push(param.lazy_shape().to_vec(), ParamKind::Bool, param.id);
    }
}

/// Paths of `params` as a set.
pub(crate) fn path_set(params: &[ParamInfo]) -> HashSet<&str> {
    params.iter().map(|p| p.path.as_str()).collect()
}
