//! Comparing what was computed with what the fixture holds.

use std::collections::{BTreeSet, HashMap};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{FloatDType, Gradients, Tensor};
use tpo::weights::PathStack;

use super::fixture::{Failure, Fixture, Missing, Values};

/// Verdict on one fixture.
#[derive(Debug)]
pub enum Verdict {
    /// Every expected tensor was compared.
    Checked(Report),
    /// There is no module for it yet.
    NotBuilt,
    /// Not a check: inputs of others, or information.
    Input,
}

/// Comparisons of one fixture.
#[derive(Debug, Default)]
pub struct Report {
    /// Tensors or items compared.
    pub compared: usize,
    /// Error over tolerance of the worst comparison, with its name, error and tolerance.
    pub worst: Option<(f64, String, f64, f64)>,
    /// What failed, in words.
    pub failures: Vec<String>,
    /// Tensors that the fixture does not hold, and what could not be compared without them.
    pub skipped: BTreeSet<String>,
    /// Whether a part was left before its end.
    cut_short: bool,
    seen: BTreeSet<String>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.compared > 0
    }

    /// Runs a part of a check that stands by itself. A tensor that the fixture lacks ends the part,
    /// not the check.
    pub fn part(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match part(self).map_err(|e| e.downcast::<Missing>()) {
            Ok(()) => Ok(()),
            Err(Ok(missing)) => {
                self.skipped.insert(missing.0);
                self.cut_short = true;
                Ok(())
            }
            Err(Err(e)) => Err(e),
        }
    }

    /// Whether the fixture holds `key`; notes it as skipped where not.
    fn holds(&mut self, fixture: &Fixture, key: &str) -> bool {
        let holds = fixture.has(key);
        if !holds {
            self.skipped.insert(key.into());
        }
        holds
    }

    /// Relative L2 distance `||got - ref|| / max(||ref||, 1e-7)` of a tensor against `key`, at
    /// the tolerance of its class (the part of the key before the first dot).
    pub fn close<const D: usize>(
        &mut self,
        fixture: &Fixture,
        key: &str,
        got: Tensor<D>,
    ) -> Result<(), Failure> {
        let shape = got.dims().to_vec();
        let got = floats(got)?;
        self.close_values(fixture, key, &shape, &got, |_| true)
    }

    /// As [`Report::close`], only where `keep` of the element's index is true. An output that the
    /// fixture does not hold is skipped.
    pub fn close_values(
        &mut self,
        fixture: &Fixture,
        key: &str,
        shape: &[usize],
        got: &[f32],
        keep: impl Fn(usize) -> bool,
    ) -> Result<(), Failure> {
        if !self.holds(fixture, key) {
            return Ok(());
        }
        let class = key.split('.').next().unwrap_or_default();
        let tolerance = fixture.tolerance(class)?;
        let stored = fixture.stored(key)?;
        let same = stored.shape == shape
            || (stored.shape.is_empty() && shape.iter().product::<usize>() == 1);
        if !same {
            self.fail(key, format!("shape {shape:?}, expected {:?}", stored.shape));
            return Ok(());
        }
        let expected = fixture.floats(key)?;
        let (mut diff, mut norm) = (0f64, 0f64);
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            if !keep(i) {
                continue;
            }
            if !e.is_finite() {
                // Not-a-number and the sign of an infinity must be the same.
                if g.to_string() != e.to_string() {
                    self.note(key);
                    self.fail(key, format!("element {i} is {g}, expected {e}"));
                    return Ok(());
                }
            } else {
                diff += ((g - e) as f64).powi(2);
                norm += (*e as f64).powi(2);
            }
        }
        self.measure(key, diff.sqrt() / norm.sqrt().max(1e-7), tolerance);
        Ok(())
    }

    /// Exact equality of integers with `key`; skipped where the fixture does not hold it.
    pub fn equal(&mut self, fixture: &Fixture, key: &str, got: &[i64]) -> Result<(), Failure> {
        if !self.holds(fixture, key) {
            return Ok(());
        }
        let Values::Int(expected) = &fixture.stored(key)?.values else {
            return Err(format!("`{key}` is not integer").into());
        };
        self.note(key);
        if expected != got {
            self.fail(key, format!("got {got:?}, expected {expected:?}"));
        }
        Ok(())
    }

    /// Notes an error against its tolerance.
    pub fn measure(&mut self, name: &str, error: f64, tolerance: f64) {
        self.note(name);
        let share = error / tolerance;
        if self
            .worst
            .as_ref()
            .is_none_or(|w| share > w.0 || share.is_nan())
        {
            self.worst = Some((share, name.into(), error, tolerance));
        }
        if error.is_nan() || error > tolerance {
            self.fail(
                name,
                format!("error {error:.2e}, tolerance {tolerance:.0e}"),
            );
        }
    }

    /// Notes a comparison that is either right or wrong.
    pub fn expect(&mut self, name: &str, right: bool, otherwise: impl FnOnce() -> String) {
        self.note(name);
        if !right {
            self.fail(name, otherwise());
        }
    }

    pub fn fail(&mut self, name: &str, why: String) {
        self.failures.push(format!("{name}: {why}"));
    }

    /// Marks a key of the fixture as compared.
    pub fn note(&mut self, key: &str) {
        self.compared += 1;
        self.seen.insert(key.to_string());
    }

    /// Marks an output of which the library has no part.
    pub fn leave(&mut self, key: &str) {
        self.seen.insert(key.into());
    }

    /// Fails if the fixture holds outputs, activations or gradients that were not compared. Where
    /// a part was cut short they are skipped.
    pub fn nothing_left(&mut self, fixture: &Fixture) {
        let left: Vec<&str> = fixture
            .tensors
            .keys()
            .filter(|k| ["out.", "mid.", "grad."].iter().any(|c| k.starts_with(c)))
            .filter(|k| !self.seen.contains(*k))
            .map(String::as_str)
            .collect();
        if self.cut_short {
            self.skipped.extend(left.into_iter().map(String::from));
        } else if !left.is_empty() {
            self.failures
                .push(format!("not compared: {}", left.join(", ")));
        }
    }
}

/// A tensor's values in f32.
pub fn floats<const D: usize>(t: Tensor<D>) -> Result<Vec<f32>, Failure> {
    t.cast(FloatDType::F32)
        .into_data()
        .try_into_vec::<f32>()
        .map_err(|e| format!("{e:?}").into())
}

/// Shape and values of tensors by module path.
pub type ByPath = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Gradients of all parameters by module path; a parameter without gradient is absent.
pub fn gradients<M: Module>(module: &M, grads: &Gradients) -> ByPath {
    collect(module, Some(grads))
}

/// Values of all parameters by module path.
pub fn parameters<M: Module>(module: &M) -> ByPath {
    collect(module, None)
}

fn collect<M: Module>(module: &M, grads: Option<&Gradients>) -> ByPath {
    struct Collect<'a> {
        grads: Option<&'a Gradients>,
        path: PathStack,
        found: ByPath,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = match self.grads {
                Some(grads) => param.val().grad(grads),
                None => Some(param.val()),
            };
            if let Some(tensor) = tensor {
                let shape = tensor.dims().to_vec();
                if let Ok(values) = floats(tensor) {
                    self.found.insert(self.path.path(), (shape, values));
                }
            }
        }
    }
    let mut collect = Collect {
        grads,
        path: PathStack::default(),
        found: HashMap::new(),
    };
    module.visit(&mut collect);
    collect.found
}
