//! The optimizer's memory as named tensors.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use serde::{Deserialize, Serialize};
use tpo_core::weights::TensorSource;

use super::{Moments, Optimizer};
use crate::error::{Result, TrainError};

/// Suffixes of the tensors of a parameter (PyTorch's names for the moments).
const FIRST: &str = ".exp_avg";
const SECOND: &str = ".exp_avg_sq";
const MASTER: &str = ".master";
/// Suffix of the one tensor of a parameter that Muon moves (PyTorch's name).
const MOMENTUM: &str = ".momentum_buffer";

/// Everything an [`Optimizer`] remembers, exact to the bit: counters, and flat `f32` tensors
/// called `{path}.exp_avg`, `{path}.exp_avg_sq` (`{path}.momentum_buffer` where Muon moves the
/// parameter) and, for weights that the module holds in fewer bits, `{path}.master`.
///
/// With serde the counters are written and the tensors are not: those go to a file of their own.
/// On the CPU the tensors share the optimizer's storage until its next step, which then copies what
/// is still held.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OptimizerState {
    /// Updates so far, by path of the parameter. One that never had a gradient is absent.
    pub steps: BTreeMap<String, u64>,
    /// The tensors, sorted by name.
    #[serde(skip)]
    pub tensors: Vec<(String, Tensor<1>)>,
}

impl OptimizerState {
    /// The tensors of a file.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] for a tensor that is not `f32`.
    pub(crate) fn read(
        tensors: impl Iterator<Item = (String, TensorData)>,
    ) -> Result<Vec<(String, Tensor<1>)>> {
        let read = |(name, data): (String, TensorData)| {
            if data.dtype() != DType::F32 {
                return Err(problem(
                    &name,
                    format!("is {:?}, must be F32", data.dtype()),
                ));
            }
            let n = data.shape().num_elements();
            let (bytes, _, dtype) = data.into_parts();
            let data = TensorData::from_bytes(bytes, [n], dtype);
            Ok((name, Tensor::from_data(data, &Device::flex())))
        };
        tensors.map(read).collect()
    }

    /// The tensors as they are written.
    ///
    /// # Errors
    /// [`TrainError::Weights`] for a tensor whose type the format lacks.
    pub fn sources(&self) -> Result<Vec<TensorSource<'static>>> {
        let sources = self.tensors.iter().map(|(name, tensor)| {
            let (key, path) = (name.clone(), name.clone());
            let dtype = tensor.dtype();
            Ok(TensorSource::of(key, path, tensor.clone(), dtype)?)
        });
        sources.collect()
    }
}

/// Of counters and values, to the bit.
impl PartialEq for OptimizerState {
    fn eq(&self, other: &Self) -> bool {
        self.steps == other.steps
            && self.tensors.len() == other.tensors.len()
            && self
                .tensors
                .iter()
                .zip(&other.tensors)
                .all(|((a, x), (b, y))| a == b && x.to_data() == y.to_data())
    }
}

fn problem(name: &str, why: String) -> TrainError {
    TrainError::OptimizerState {
        name: name.to_string(),
        why,
    }
}

impl Optimizer {
    /// The state as it is now.
    pub fn state(&self) -> OptimizerState {
        let mut state = OptimizerState::default();
        for (path, moments) in &self.moments {
            if moments.steps > 0 {
                state.steps.insert(path.clone(), moments.steps);
                let pair = match &moments.second {
                    Some(second) => vec![(FIRST, &moments.first), (SECOND, second)],
                    None => vec![(MOMENTUM, &moments.first)],
                };
                for (suffix, tensor) in pair {
                    let name = format!("{path}{suffix}");
                    state.tensors.push((name, tensor.clone()));
                }
            }
            if let Some(master) = &moments.master {
                let name = format!("{path}{MASTER}");
                state.tensors.push((name, master.clone()));
            }
        }
        state.tensors.sort_by(|a, b| a.0.cmp(&b.0));
        state
    }

    /// Replaces the state by one that [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] when a counter or tensor belongs to no parameter of this
    /// optimizer, a tensor is missing, or the two moments differ in size.
    pub fn load_state(&mut self, state: OptimizerState, device: &Device) -> Result<()> {
        let device = device.clone().inner();
        let mut tensors: BTreeMap<String, Tensor<1>> = state.tensors.into_iter().collect();
        let mut take = |path: &str, suffix: &str| {
            let tensor = tensors.remove(&format!("{path}{suffix}"));
            tensor.map(|tensor| tensor.to_device(&device))
        };
        let mut moments = BTreeMap::new();
        let mut counted = state.steps;
        for (path, slot) in &self.slots {
            let steps = counted.remove(path).unwrap_or(0);
            let muon = slot.muon.is_some();
            let (first, second) = if muon {
                (take(path, MOMENTUM), None)
            } else {
                (take(path, FIRST), take(path, SECOND))
            };
            let master = take(path, MASTER);
            let (first, second) = match (first, second) {
                (Some(a), None) if muon => (a, None),
                (Some(a), Some(b)) if a.dims() == b.dims() => (a, Some(b)),
                (Some(a), Some(b)) => {
                    return Err(problem(
                        path,
                        format!("moments of {} and {} values", a.dims()[0], b.dims()[0]),
                    ));
                }
                (None, None) if steps == 0 => match &master {
                    Some(master) => (master.zeros_like(), None),
                    None => continue,
                },
                _ => {
                    return Err(problem(
                        path,
                        format!("{steps} updates are counted, but a moment is missing"),
                    ));
                }
            };
            moments.insert(
                path.clone(),
                Moments {
                    steps,
                    first,
                    second,
                    master,
                },
            );
        }
        let unknown = counted.into_keys().next().or(tensors.into_keys().next());
        if let Some(name) = unknown {
            return Err(problem(
                &name,
                "belongs to no trainable parameter; is this the state of another stage or model?"
                    .into(),
            ));
        }
        self.moments = moments;
        Ok(())
    }
}
