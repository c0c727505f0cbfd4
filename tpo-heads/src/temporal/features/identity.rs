//! What makes two towers the same.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use tpo_core::weights::PathStack;

/// A hash of every parameter of a module: its path, shape, data type and values (BLAKE3, hex).
///
/// Parameters are copied from the device one at a time. Takes about a second per two gigabytes.
pub fn weights_fingerprint<M: Module>(module: &M) -> String {
    let mut visitor = Fingerprint {
        hasher: blake3::Hasher::new(),
        path: PathStack::default(),
    };
    module.visit(&mut visitor);
    visitor.hasher.finalize().to_hex().to_string()
}

struct Fingerprint {
    hasher: blake3::Hasher,
    path: PathStack,
}

impl Fingerprint {
    fn add(&mut self, data: TensorData) {
        let head = format!(
            "{}|{:?}|{:?}\n",
            self.path.path(),
            data.shape(),
            data.dtype()
        );
        self.hasher.update(head.as_bytes());
        self.hasher.update(data.as_bytes());
    }
}

impl ModuleVisitor for Fingerprint {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(param.val().into_data());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add(param.val().into_data());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.add(param.val().into_data());
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use tpo_core::nn::{Linear, LinearConfig};

    use super::*;

    #[test]
    fn every_value_counts_and_autodiff_does_not() {
        let linear = LinearConfig::new(3, 2).init(&Device::flex().autodiff());
        let first = weights_fingerprint(&linear);
        assert_eq!(first.len(), 64);
        assert_eq!(first, weights_fingerprint(&linear.clone()));
        assert_eq!(first, weights_fingerprint(&linear.valid()));
        let plain = linear.valid();
        let other = Linear {
            weight: plain.weight.val().slice_fill([0..1, 0..1], 9.0).into(),
            bias: plain.bias,
        };
        assert_ne!(first, weights_fingerprint(&other));
    }
}
