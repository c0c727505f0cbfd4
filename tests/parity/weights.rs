//! Loading a fixture's weights through the library's own strict import, and reading gradients
//! back under the checkpoint's names.

use burn::module::Module;
use burn::tensor::Gradients;
use tpo::weights::{Checkpoint, KeyMap, KeyScope, KeyTarget, LoadOptions, load_module};

use super::check::{Report, gradients};
use super::fixture::{Failure, Fixture};

/// Loads `w.*` of the fixture into a module, strictly: every parameter of the module must be
/// there with its shape.
pub fn load<M: Module>(module: M, fixture: &Fixture, map: &dyn KeyMap) -> Result<M, Failure> {
    load_from(module, &fixture.weights_file(), map)
}

pub fn load_from<M: Module>(
    module: M,
    file: &std::path::Path,
    map: &dyn KeyMap,
) -> Result<M, Failure> {
    let checkpoint = Checkpoint::open(file)?;
    let (module, _) = load_module(
        module,
        &checkpoint,
        map,
        &LoadOptions {
            scope: KeyScope::Part,
            ..LoadOptions::default()
        },
    )?;
    Ok(module)
}

/// A table whose keys carry the fixture's `w.` in front.
pub struct Stored<'a>(pub &'a dyn KeyMap);

impl KeyMap for Stored<'_> {
    fn module_path(&self, key: &str) -> KeyTarget {
        match key.strip_prefix("w.") {
            Some(key) => self.0.module_path(key),
            None => KeyTarget::OtherPart,
        }
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        self.0.checkpoint_key(path, has).map(|k| format!("w.{k}"))
    }
}

/// Compares every `{prefix}<checkpoint key>` of the fixture with the module's gradient.
///
/// Keys for which `map` knows no parameter of the module are left alone (inputs, other parts).
pub fn compare_gradients<M: Module>(
    report: &mut Report,
    fixture: &Fixture,
    prefix: &str,
    module: &M,
    map: &dyn KeyMap,
    grads: &Gradients,
) -> Result<(), Failure> {
    let found = gradients(module, grads);
    for key in fixture.tensors.keys().filter(|k| k.starts_with(prefix)) {
        let KeyTarget::Path(path) = map.module_path(&key[prefix.len()..]) else {
            continue;
        };
        match found.get(&path) {
            Some((shape, values)) => report.close_values(fixture, key, shape, values, |_| true)?,
            None if key[prefix.len()..].starts_with("in.") => {}
            None => report.fail(key, format!("the parameter `{path}` got no gradient")),
        }
    }
    Ok(())
}
