//! Putting a module into the shape in which a stage trains it.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};

use burn::module::{Flag, Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor};
use tpo_core::weights::PathStack;

use crate::error::Result;
use crate::groups::{ResolvedGroups, freeze};
use crate::optim::Optimizer;
use crate::stage::Precision;

/// Field name of the flag that Burn's dropout obeys.
const DROPOUT_FLAG: &str = "training";

/// Makes the parameters of `groups` leaves on the autodiff device and takes all others off it, so
/// that parts which do not learn leave no graph. Dropout works in the modules that hold a
/// trainable parameter and nowhere else. Weights get the stage's number format; `optimizer` keeps
/// the 32-bit values of those it moves.
///
/// # Errors
/// As [`freeze`].
pub fn prepare<M: Module>(
    module: M,
    groups: &ResolvedGroups,
    precision: Precision,
    device: &Device,
    optimizer: &mut Optimizer,
) -> Result<M> {
    let module = freeze(module, groups)?;
    // Every module path with whether something below it learns.
    let mut learns: BTreeMap<String, bool> = BTreeMap::new();
    let trainable = groups.groups.iter().flat_map(|g| &g.params);
    let all = trainable
        .map(|p| (p, true))
        .chain(groups.frozen.iter().map(|p| (p, false)));
    for (param, is) in all {
        for path in std::iter::once(&param.path).chain(&param.tied) {
            for (end, _) in path.match_indices('.') {
                *learns.entry(path[..end].to_string()).or_default() |= is;
            }
            learns.insert(path.clone(), is);
        }
    }
    Ok(module.map(&mut Placer {
        stack: PathStack::default(),
        learns,
        precision,
        device: device.clone().autodiff(),
        optimizer,
        tied: HashMap::new(),
    }))
}

struct Placer<'a> {
    stack: PathStack,
    learns: BTreeMap<String, bool>,
    precision: Precision,
    device: Device,
    optimizer: &'a mut Optimizer,
    tied: HashMap<ParamId, Box<dyn Any>>,
}

impl ModuleMapper for Placer<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.stack.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.stack.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.stack.path();
        let learns = self.learns.get(&path).copied().unwrap_or(false);
        let tied = self.tied.get(&param.id);
        if let Some(value) = tied.and_then(|t| t.downcast_ref::<Tensor<D>>()) {
            let value = value.clone();
            return param.map(|_| value);
        }
        let id = param.id;
        let param = param.map(|value| {
            let mut value = value.inner().to_device(&self.device.clone().inner());
            if self.precision == Precision::Bf16 && value.dtype() != DType::BF16 {
                if learns {
                    let n = value.shape().num_elements();
                    let wide = value.clone().cast(FloatDType::F32);
                    self.optimizer.set_master(&path, wide.reshape([n]));
                }
                value = value.cast(FloatDType::BF16);
            } else if self.precision == Precision::F32 && value.dtype() != DType::F32 {
                value = value.cast(FloatDType::F32);
            }
            match self.device.gradient_checkpointing_strategy() {
                Some(strategy) if learns => value
                    .autodiff()
                    .with_gradient_checkpointing_strategy(strategy)
                    .require_grad(),
                _ => value,
            }
        });
        self.tied.insert(id, Box::new(param.val()));
        param
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let device = self.device.clone().inner();
        if !param.is_initialized() && param.lazy_device() == device {
            // Words of a quantised weight that lies there in another form.
            return param;
        }
        param.map(|t| t.inner().to_device(&device))
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        let device = self.device.clone().inner();
        param.map(|t| t.inner().to_device(&device))
    }

    fn map_flag(&mut self, flag: Param<Flag>) -> Param<Flag> {
        let path = self.stack.path();
        let Some(mut module) = path
            .strip_suffix(DROPOUT_FLAG)
            .and_then(|p| p.strip_suffix('.'))
        else {
            return flag;
        };
        // The nearest module around the dropout that holds parameters.
        loop {
            if let Some(learns) = self.learns.get(module) {
                return flag.with_value(*learns);
            }
            match module.rsplit_once('.') {
                Some((outer, _)) => module = outer,
                None => return flag,
            }
        }
    }
}
