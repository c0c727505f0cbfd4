//! Data parallelism: workers that see different micro-batches and take the same step.
//!
//! Every worker has its own copy of the model and of the optimizer, on its own device and thread.
//! After its micro-batches the gradients are averaged over all workers ([`Worker::average`]), so
//! that all copies take the same step: `n` workers with `k` micro-batches each are one worker with
//! `n · k`. A parameter that only some workers reached gets zeros from the others; one that nobody
//! reached stays without gradient and is skipped by the optimizer, as on one device.
//!
//! Burn 0.22 has one random generator per process. With dropout a run of several workers is random,
//! but not repeatable; recomputation, which needs the same dropout twice, is refused.
//!
//! # More than one machine
//! Devices of other machines are devices: start Burn's server there (feature `remote-server`,
//! `burn::server::start_async`), open them here as `Device::remote(..)` with Burn's feature
//! `remote`, and make one worker per device with [`Reduce::Devices`]. Burn 0.22 has no collective
//! between processes; the program that runs the trainer is the one process, and gradients move
//! between the servers.

use std::any::Any;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::backend::DispatchDevice;
use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor, TensorData};

use crate::error::{Result, TrainError};
use crate::optim::GradientSet;

/// How gradients are added up over the workers.
#[derive(Debug, Clone, Default)]
pub enum Reduce {
    /// In the memory of this process, in the order of the workers: on every device, the same to
    /// the bit on every worker.
    #[default]
    Host,
    /// By Burn's all-reduce between the devices, one per worker in order. Burn 0.22 has it for
    /// CUDA and remote devices; CPU devices are refused.
    Devices(Vec<Device>),
}

/// One of the workers of a run. Dropping it lets the others fail instead of wait.
#[derive(Debug)]
pub struct Worker {
    rank: usize,
    world: usize,
    reduce: Reduce,
    meeting: Option<Arc<Meeting>>,
}

impl Worker {
    /// The only worker.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            world: 1,
            reduce: Reduce::Host,
            meeting: None,
        }
    }

    /// `world` workers that belong together; give one to each thread.
    pub fn group(world: usize, reduce: Reduce) -> Vec<Self> {
        let meeting = (world > 1).then(|| Arc::new(Meeting::new(world)));
        (0..world)
            .map(|rank| Self {
                rank,
                world,
                reduce: reduce.clone(),
                meeting: meeting.clone(),
            })
            .collect()
    }

    /// Which worker this is, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Averages gradients over all workers; `device` is this worker's. Every worker must call it.
    ///
    /// # Errors
    /// [`TrainError::Worker`] when another worker is gone.
    pub fn average(&self, grads: &mut GradientSet, device: &Device) -> Result<()> {
        let Some(meeting) = &self.meeting else {
            return Ok(());
        };
        let device = device.clone().inner();
        if let Reduce::Devices(devices) = &self.reduce {
            self.check(devices)?;
        }
        // Who has what, so that all go through the same list.
        let mine: Vec<(String, usize)> = grads
            .paths()
            .filter_map(|p| Some((p.to_string(), grads.get(p)?.dims()[0])))
            .collect();
        let mut all = self.exchange(meeting, mine)?.concat();
        all.sort();
        all.dedup();
        for (path, n) in all {
            let own = grads.remove(&path);
            let sum = match &self.reduce {
                Reduce::Host => self.host_sum(meeting, own, n, &device)?,
                Reduce::Devices(devices) => {
                    let own = own.unwrap_or_else(|| Tensor::zeros([n], &device));
                    let devices = devices.iter().map(|d| d.clone().inner()).collect();
                    all_reduce(own, ReduceOperation::Sum, devices).resolve()
                }
            };
            grads.insert(path, sum);
        }
        grads.scale(1.0 / self.world as f64);
        Ok(())
    }

    /// Burn's all-reduce panics on a device that has none, so it is not called there.
    fn check(&self, devices: &[Device]) -> Result<()> {
        if devices.len() != self.world {
            return Err(self.error("needs one device per worker for the all-reduce"));
        }
        let on_cpu =
            |d: &Device| matches!(d.clone().inner().as_dispatch(), DispatchDevice::Flex(_));
        if devices.iter().any(on_cpu) {
            return Err(self.error("Burn has no all-reduce between CPU devices; use Reduce::Host"));
        }
        Ok(())
    }

    fn host_sum(
        &self,
        meeting: &Meeting,
        own: Option<Tensor<1>>,
        n: usize,
        device: &Device,
    ) -> Result<Tensor<1>> {
        let data = own.map(|t| Arc::new(t.into_data()));
        let mut sum = vec![0.0f32; n];
        for part in self.exchange(meeting, data)?.into_iter().flatten() {
            for (sum, value) in sum.iter_mut().zip(part.iter::<f32>()) {
                *sum += value;
            }
        }
        Ok(Tensor::from_data(TensorData::new(sum, [n]), device))
    }

    /// Sums numbers over all workers, in their order. Every worker must call it.
    ///
    /// # Errors
    /// [`TrainError::Worker`] when another worker is gone.
    pub fn sum(&self, numbers: Vec<f64>) -> Result<Vec<f64>> {
        let Some(meeting) = &self.meeting else {
            return Ok(numbers);
        };
        let n = numbers.len();
        let mut sum = vec![0.0; n];
        for part in self.exchange(meeting, numbers)? {
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        Ok(sum)
    }

    /// Gives `mine` to all and gets everybody's, in the order of the workers.
    fn exchange<T: Any + Send + Sync + Clone>(&self, meeting: &Meeting, mine: T) -> Result<Vec<T>> {
        let all = meeting
            .exchange(self.rank, Arc::new(mine))
            .ok_or_else(|| self.error("another worker failed or ended"))?;
        all.iter()
            .map(|part| part.downcast_ref::<T>().cloned())
            .collect::<Option<Vec<T>>>()
            .ok_or_else(|| self.error("the workers are not at the same place"))
    }

    fn error(&self, why: &str) -> TrainError {
        TrainError::Worker {
            rank: self.rank,
            world: self.world,
            why: why.into(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(meeting) = &self.meeting {
            meeting.leave();
        }
    }
}

type Part = Arc<dyn Any + Send + Sync>;

/// Where workers wait for each other.
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    round: u64,
    parts: Vec<Option<Part>>,
    result: Arc<Vec<Part>>,
    gone: bool,
}

impl std::fmt::Debug for Meeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meeting")
    }
}

impl Meeting {
    fn new(world: usize) -> Self {
        Self {
            state: Mutex::new(State {
                parts: vec![None; world],
                ..State::default()
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }

    /// `None` when a worker left before the round was complete.
    fn exchange(&self, rank: usize, mine: Part) -> Option<Arc<Vec<Part>>> {
        let mut state = self.lock();
        let round = state.round;
        state.parts[rank] = Some(mine);
        if state.parts.iter().all(Option::is_some) {
            state.result = Arc::new(state.parts.iter_mut().filter_map(Option::take).collect());
            state.round += 1;
            self.changed.notify_all();
            return Some(state.result.clone());
        }
        while state.round == round {
            if state.gone {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Some(state.result.clone())
    }
}
