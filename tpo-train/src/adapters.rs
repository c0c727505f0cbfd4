//! Low-rank adapters as a run sees them: by the paths of their parameters.

use std::collections::BTreeMap;

use burn::module::Module;

use crate::groups::{ResolvedParam, float_params};

/// Ends of the paths of an adapter's factors below its layer. Burn's own adapters are called so
/// too.
pub(crate) const FACTORS: [&str; 2] = [".lora.a", ".lora.b"];

/// The layers of a module that have an adapter, by path, with its rank. No value is drawn.
pub(crate) fn adapters_of<M: Module>(module: &M) -> BTreeMap<String, usize> {
    adapters_in(&float_params(module))
}

/// [`adapters_of`] a list of parameters.
pub(crate) fn adapters_in(params: &[ResolvedParam]) -> BTreeMap<String, usize> {
    params
        .iter()
        .filter_map(|p| {
            let layer = p.path.strip_suffix(FACTORS[0])?;
            Some((layer.to_string(), *p.shape.first()?))
        })
        .collect()
}

/// Paths of the factors of a layer's adapter.
pub(crate) fn factors(layer: &str) -> [String; 2] {
    FACTORS.map(|end| format!("{layer}{end}"))
}

/// Paths that the weight can have to which an adapter is added: in a float type, and quantised.
pub(crate) fn base_weights(layer: &str) -> [String; 2] {
    ["weight", "weight.packed"].map(|end| format!("{layer}.{end}"))
}

/// Whether the path is that of an adapter's factor.
pub(crate) fn is_factor(path: &str) -> bool {
    FACTORS.iter().any(|end| path.ends_with(end))
}
