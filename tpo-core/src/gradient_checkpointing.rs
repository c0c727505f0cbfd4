//! Activation recomputation: trading a second forward pass for memory.
//!
//! Burn 0.22 can recompute cheap operations one by one
//! ([`Device::gradient_checkpointing`](burn::tensor::Device::gradient_checkpointing)), but has
//! nothing that forgets a whole block. A [`Tape`] does: of every segment it keeps the input only,
//! and runs the segment again when its gradient is due. Peak memory is then one input per block
//! plus the activations of one block, for about a third more time.

use burn::tensor::{Gradients, Tensor};

use crate::seed::mix;

/// What to run and where its gradient goes.
struct Segment<'m> {
    /// The input as the caller gave it, part of the graph before this segment.
    input: Tensor<3>,
    /// The output, as a leaf of the graph after this segment.
    output: Tensor<3>,
    run: Box<dyn Fn(Tensor<3>) -> Tensor<3> + 'm>,
    seed: Option<u64>,
}

/// Segments of one forward pass whose activations were dropped, in order.
///
/// The tape belongs to one pass: fill it with [`Tape::segment`], then call [`Tape::backward`] on
/// the loss in place of [`Tensor::backward`].
#[derive(Default)]
pub struct Tape<'m> {
    segments: Vec<Segment<'m>>,
    seed: Option<u64>,
}

impl std::fmt::Debug for Tape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape")
            .field("segments", &self.segments.len())
            .field("seed", &self.seed)
            .finish()
    }
}

impl<'m> Tape<'m> {
    /// An empty tape. With a seed the device's generator is seeded before every segment, so that
    /// dropout drops the same elements when the segment runs again; without one a segment must
    /// not be random.
    pub fn new(seed: Option<u64>) -> Self {
        Self {
            segments: Vec::new(),
            seed,
        }
    }

    /// Number of segments so far.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there are no segments.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Runs `run` on `x` and forgets everything but `x` and the result. On a device without
    /// autodiff it just runs.
    ///
    /// # Shapes
    /// - `x` and output `[batch, length, width]`
    pub fn segment(
        &mut self,
        x: Tensor<3>,
        run: impl Fn(Tensor<3>) -> Tensor<3> + 'm,
    ) -> Tensor<3> {
        let Some(strategy) = x.gradient_checkpointing_strategy() else {
            return run(x);
        };
        let seed = self.seed.map(|s| mix(s, self.segments.len() as u64));
        if let Some(seed) = seed {
            x.device().seed(seed);
        }
        let leaf = x.clone().detach().require_grad();
        let output = run(leaf);
        let values = output.clone().inner();
        forget(output);
        let output = values
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy)
            .require_grad();
        self.segments.push(Segment {
            input: x,
            output: output.clone(),
            run: Box::new(run),
            seed,
        });
        output
    }

    /// Backpropagates from `loss` through everything, segments included. `collect` gets the
    /// gradients in several parts, which add up: a parameter may be in more than one.
    ///
    /// # Panics
    /// When `loss` is not part of a graph, as [`Tensor::backward`].
    pub fn backward(self, loss: &Tensor<1>, mut collect: impl FnMut(&Gradients)) {
        let mut grads = loss.backward();
        collect(&grads);
        let mut segments = self.segments;
        let mut pending: Vec<Option<Tensor<3>>> = vec![None; segments.len()];
        let take =
            |segments: &[Segment<'m>], pending: &mut [Option<Tensor<3>>], grads: &mut Gradients| {
                for (segment, pending) in segments.iter().zip(pending) {
                    if let Some(grad) = segment.output.grad_remove(grads) {
                        *pending = Some(match pending.take() {
                            Some(sum) => sum + grad,
                            None => grad,
                        });
                    }
                }
            };
        take(&segments, &mut pending, &mut grads);
        while let Some(segment) = segments.pop() {
            let Some(grad) = pending.pop().flatten() else {
                continue;
            };
            let Segment {
                input,
                output,
                run,
                seed,
            } = segment;
            drop(output);
            if let Some(seed) = seed {
                input.device().seed(seed);
            }
            let tracked = input.is_tracked();
            let leaf = input.clone().detach();
            let leaf = if tracked { leaf.require_grad() } else { leaf };
            let again = run(leaf.clone());
            if !again.is_tracked() {
                continue;
            }
            let mut grads = pull(again, grad);
            collect(&grads);
            if tracked && let Some(grad) = leaf.grad_remove(&mut grads) {
                let mut grads = pull(input, grad);
                collect(&grads);
                take(&segments, &mut pending, &mut grads);
            }
        }
    }
}

/// Frees what the pass that ended in `output` kept, of which no other tensor is left.
///
/// Burn 0.22 holds the activations of dropped tensors until the next backward pass through their
/// graph; this is the cheapest one there is. It starts at a leaf that joins the graph here, after all others:
/// where graphs were joined, as those of new parameters are, Burn loses sight of which one an earlier leaf
/// is in, and a pass from there frees nothing.
fn forget(output: Tensor<3>) {
    if output.dims().contains(&0) || !output.is_tracked() {
        return;
    }
    let one = output.slice([0..1, 0..1, 0..1]);
    let last = one.zeros_like().detach().require_grad();
    drop(one * last.clone());
    let _ = last.sum().backward();
}

/// Gradients of `⟨x, grad⟩`: those that `grad` at `x` gives.
fn pull(x: Tensor<3>, grad: Tensor<3>) -> Gradients {
    let strategy = x.gradient_checkpointing_strategy();
    let mut grad = grad.autodiff();
    if let Some(strategy) = strategy {
        grad = grad.with_gradient_checkpointing_strategy(strategy);
    }
    (x * grad).sum().backward()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Linear, LinearConfig};
    use burn::tensor::{Device, Distribution};

    fn grads(layers: &[Linear], grads: &Gradients) -> Vec<Vec<f32>> {
        layers
            .iter()
            .map(|l| {
                let grad = l.weight.val().grad(grads);
                grad.map_or(Vec::new(), |g| g.into_data().iter::<f32>().collect())
            })
            .collect()
    }

    #[test]
    fn gradients_are_those_of_the_plain_pass() {
        let device = Device::flex().autodiff();
        let linear = || LinearConfig::new(4, 4).init(&device);
        let layers: Vec<Linear> = (0..4).map(|_| linear()).collect();
        let x = Tensor::<3>::random([2, 3, 4], Distribution::Default, &device).require_grad();

        let mut y = layers[0].forward(x.clone());
        for layer in &layers[1..] {
            y = layer.forward(y.clone()).tanh() + y;
        }
        let loss = y.square().mean();
        let plain = loss.backward();
        let expected = grads(&layers, &plain);
        let input = x.grad(&plain).unwrap();

        let mut tape = Tape::new(None);
        let mut y = layers[0].forward(x.clone());
        for layer in &layers[1..] {
            y = tape.segment(y, |y| layer.forward(y.clone()).tanh() + y);
        }
        assert_eq!(tape.len(), 3);
        let loss_again = y.square().mean();
        let value = |t: Tensor<1>| t.into_scalar::<f32>();
        assert_eq!(value(loss_again.clone()), value(loss));
        let mut found = vec![vec![0.0; 16]; 4];
        let mut at_input = None;
        tape.backward(&loss_again, |g| {
            for (sum, part) in found.iter_mut().zip(grads(&layers, g)) {
                sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
            }
            at_input = at_input.take().or(x.grad(g));
        });
        for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        let difference = (at_input.unwrap() - input).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-6, "{difference}");
    }

    /// The only test here that draws after seeding; others may draw in between, so it is repeated.
    #[test]
    fn dropout_repeats_in_the_second_run() {
        use burn::nn::DropoutConfig;
        const SEED: u64 = 7;
        let device = Device::flex().autodiff();
        let layers: Vec<Linear> = (0..3)
            .map(|_| LinearConfig::new(8, 8).init(&device))
            .collect();
        let dropout = DropoutConfig::new(0.5).init();
        let x = Tensor::<3>::random([4, 5, 8], Distribution::Default, &device);
        let block = |layer: &Linear, y: Tensor<3>| dropout.forward(layer.forward(y.clone())) + y;
        let agree = || {
            let mut y = x.clone();
            for (i, layer) in layers.iter().enumerate() {
                device.seed(mix(SEED, i as u64));
                y = block(layer, y);
            }
            let plain = y.square().mean().backward();
            let expected = grads(&layers, &plain);
            let mut tape = Tape::new(Some(SEED));
            let mut y = x.clone();
            for layer in &layers {
                y = tape.segment(y, |y| block(layer, y));
            }
            // What is drawn between the two runs must not matter.
            let _ = Tensor::<1>::random([9], Distribution::Default, &device).into_data();
            let mut found = vec![vec![0.0; 64]; 3];
            tape.backward(&y.square().mean(), |g| {
                for (sum, part) in found.iter_mut().zip(grads(&layers, g)) {
                    sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
                }
            });
            let pairs = found.iter().flatten().zip(expected.iter().flatten());
            pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6)
        };
        // Other tests of this process draw from the same generator.
        assert!((0..20).any(|_| agree()));
    }

    #[test]
    fn without_autodiff_nothing_is_kept() {
        let mut tape = Tape::new(Some(1));
        let x = Tensor::<3>::ones([1, 1, 2], &Device::flex());
        let y = tape.segment(x, |x| x * 2.0);
        assert_eq!(y.into_data().iter::<f32>().collect::<Vec<_>>(), [2.0, 2.0]);
        assert!(tape.is_empty());
    }
}
