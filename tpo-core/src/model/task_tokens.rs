//! The learnable task tokens of a model, by the names of their heads.

use burn::module::{
    Content, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};

/// One learnable token `[1, 1, d_llm]` per head. Their paths are `task_tokens.NAME`.
///
/// Burn derives modules of structs whose fields are known; here the names come from the heads.
#[derive(Debug, Clone)]
pub struct TaskTokenSet {
    tokens: Vec<(String, Param<Tensor<3>>)>,
}

const CONTAINER: &str = "Struct:TaskTokenSet";

impl TaskTokenSet {
    /// Tokens drawn from the standard normal distribution on first use (reference implementation).
    pub fn init(names: impl IntoIterator<Item = String>, d_llm: usize, device: &Device) -> Self {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 1.0,
        };
        let token = |name| (name, normal.init([1, 1, d_llm], device));
        Self {
            tokens: names.into_iter().map(token).collect(),
        }
    }

    /// The token of a head.
    pub fn get(&self, name: &str) -> Option<&Param<Tensor<3>>> {
        let found = self.tokens.iter().find(|(n, _)| n == name);
        found.map(|(_, token)| token)
    }

    /// Sets the values of the token of a head; `false` when there is none.
    pub fn set(&mut self, name: &str, value: Tensor<3>) -> bool {
        let found = self.tokens.iter_mut().find(|(n, _)| n == name);
        let Some((_, token)) = found else {
            return false;
        };
        *token = token.clone().map(|_| value);
        true
    }

    /// Names and tokens in the order of the registry, whatever that of the program is.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param<Tensor<3>>)> {
        self.tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token))
    }

    fn each(self, change: impl Fn(Param<Tensor<3>>) -> Param<Tensor<3>>) -> Self {
        let tokens = self.tokens.into_iter();
        Self {
            tokens: tokens.map(|(name, token)| (name, change(token))).collect(),
        }
    }
}

impl Module for TaskTokenSet {
    fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        let tokens = self.tokens.iter();
        tokens.fold(devices, |devices, (_, token)| {
            token.collect_devices(devices)
        })
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|token| token.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|token| token.to_device(device))
    }

    fn train(self) -> Self {
        self.each(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().each(|token| token.valid())
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for (name, token) in &self.tokens {
            visitor.enter_module(name, CONTAINER);
            token.visit(visitor);
            visitor.exit_module(name, CONTAINER);
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let map = |(name, token): (String, Param<Tensor<3>>)| {
            mapper.enter_module(&name, CONTAINER);
            let token = Module::map(token, mapper);
            mapper.exit_module(&name, CONTAINER);
            (name, token)
        };
        Self {
            tokens: self.tokens.into_iter().map(map).collect(),
        }
    }
}

impl ModuleDisplayDefault for TaskTokenSet {
    fn content(&self, content: Content) -> Option<Content> {
        self.tokens
            .iter()
            .fold(content, |content, (name, token)| content.add(name, token))
            .optional()
    }
}

impl ModuleDisplay for TaskTokenSet {}
