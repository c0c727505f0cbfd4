//! Encoders in which nothing is trained.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::error::Result;

/// Whether no parameter requires a gradient and the frames are not part of a graph.
pub(crate) fn is_frozen<M: Module>(module: &M, frames: &Tensor<5>) -> bool {
    struct Trained(bool);
    impl ModuleVisitor for Trained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 = self.0 || param.is_require_grad();
        }
    }
    let mut visitor = Trained(frames.is_tracked());
    module.visit(&mut visitor);
    !visitor.0
}

/// `run` of an encoder; without autodiff when nothing in it is trained.
///
/// On an autodiff device every activation is kept, attention's among them: 630 MB per block of UMT-L for 16 frames in
/// f32. A frozen encoder therefore runs as [`Module::valid`] would and its output joins the graph as a constant.
pub(crate) fn encode_frozen<M: Module>(
    module: &M,
    frames: Tensor<5>,
    run: impl Fn(&M, Tensor<5>) -> Result<Tensor<3>>,
) -> Result<Tensor<3>> {
    match frames.gradient_checkpointing_strategy() {
        Some(strategy) if is_frozen(module, &frames) => {
            let tokens = run(&module.valid(), frames.inner())?;
            Ok(tokens
                .autodiff()
                .with_gradient_checkpointing_strategy(strategy))
        }
        _ => run(module, frames),
    }
}
