//! Two-way tables between checkpoint keys and paths in the module tree.

use regex::Regex;

use super::{Result, WeightsError};

/// What a table makes of a checkpoint key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyTarget {
    /// The parameter at this path of the module tree takes it.
    Path(String),
    /// Known to be unused, for this reason.
    Ignored(String),
    /// Belongs to a part this table does not cover.
    OtherPart,
}

/// Translates between checkpoint keys and paths of a module tree.
///
/// A path is the names of the fields from the root to the parameter, joined by dots; elements of
/// a `Vec`, array or tuple are numbered, and variants of an enum have no segment.
pub trait KeyMap {
    /// Where the tensor called `key` goes.
    fn module_path(&self, key: &str) -> KeyTarget;

    /// The key under which the parameter at `path` is saved, or `None` when the table does not
    /// cover it. `has` tells whether the module has a parameter at a path.
    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String>;
}

/// The table of one part: ordered rewrite rules in both directions.
///
/// Without rules, a key and a path are the same words.
///
/// ```
/// use tpo_core::weights::{KeyMap, KeyRules, KeyTarget};
///
/// let rules = KeyRules::new()
///     .owns(["vision_encoder.", "vision_layernorm."])
///     .rewrite(
///         &[(r"^vision_encoder\.encoder\.", "encoder.")],
///         &[(r"^encoder\.", "vision_encoder.encoder.")],
///     )?
///     .within("vision.");
/// assert_eq!(
///     rules.module_path("vision_encoder.encoder.norm.bias"),
///     KeyTarget::Path("vision.encoder.norm.bias".into())
/// );
/// assert_eq!(rules.module_path("lm_head.weight"), KeyTarget::OtherPart);
/// # Ok::<(), tpo_core::weights::WeightsError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct KeyRules {
    owned: Vec<String>,
    forward: Vec<(Regex, String)>,
    inverse: Vec<(Regex, String)>,
    ignored: Vec<(Regex, String)>,
    adapter: Option<String>,
    wrappers: Vec<String>,
    nest: String,
}

impl KeyRules {
    /// A table without rules that covers every key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the table to keys that start with one of `prefixes` (or equal one).
    pub fn owns<S: Into<String>>(mut self, prefixes: impl IntoIterator<Item = S>) -> Self {
        self.owned.extend(prefixes.into_iter().map(Into::into));
        self
    }

    /// Adds rewrite rules: `forward` turns keys into paths and `inverse` paths into keys, each
    /// list in order, every rule applied to the result of the one before and to all its matches.
    /// Patterns are regular expressions and replacements may use `$1`, as in the `regex` crate.
    ///
    /// # Errors
    /// [`WeightsError::Pattern`] for a pattern that is not a regular expression.
    pub fn rewrite(mut self, forward: &[(&str, &str)], inverse: &[(&str, &str)]) -> Result<Self> {
        for (pattern, to) in forward {
            self.forward.push((compile(pattern)?, to.to_string()));
        }
        for (pattern, to) in inverse {
            self.inverse.push((compile(pattern)?, to.to_string()));
        }
        Ok(self)
    }

    /// Renames a leading `key_prefix` to `path_prefix`, in both directions.
    pub fn prefix(mut self, key_prefix: &str, path_prefix: &str) -> Self {
        let rule = |from: &str, to: &str| {
            // An escaped literal is always a regular expression.
            let pattern = Regex::new(&format!("^{}", regex::escape(from)));
            pattern.ok().map(|pattern| (pattern, to.replace('$', "$$")))
        };
        self.forward.extend(rule(key_prefix, path_prefix));
        // Paths are undone in the opposite order.
        self.inverse.splice(0..0, rule(path_prefix, key_prefix));
        self
    }

    /// Declares keys that match `pattern` as known and unused. They are listed with `reason` in
    /// the report.
    ///
    /// # Errors
    /// [`WeightsError::Pattern`].
    pub fn ignore(mut self, pattern: &str, reason: &str) -> Result<Self> {
        self.ignored.push((compile(pattern)?, reason.to_string()));
        Ok(self)
    }

    /// [`ignore`](Self::ignore) for several patterns with their reasons.
    ///
    /// # Errors
    /// [`WeightsError::Pattern`].
    pub fn ignore_all(self, unused: &[(&str, &str)]) -> Result<Self> {
        let mut unused = unused.iter();
        unused.try_fold(self, |rules, (pattern, reason)| {
            rules.ignore(pattern, reason)
        })
    }

    /// Reads keys that start with one of `wrappers` as if they did not: the dictionaries which
    /// PyTorch's files hold a model in.
    pub fn wrapped_in(mut self, wrappers: &[&str]) -> Self {
        self.wrappers
            .extend(wrappers.iter().map(ToString::to_string));
        self
    }

    /// Maps PEFT's names of LoRA adapters: `x.lora_A.<adapter>.weight` ↔ `x.lora.a`,
    /// `x.lora_B.<adapter>.weight` ↔ `x.lora.b` and `x.base_layer.weight` ↔ `x.weight`.
    ///
    /// When reading, `lora_A.weight` (an adapter file) and `x.weight` beside the adapter (PEFT
    /// before 0.6) are accepted too. A module without adapters is saved under plain names.
    pub fn lora(mut self, adapter: &str) -> Self {
        self.adapter = Some(adapter.to_string());
        self
    }

    /// Places all paths below `path_prefix` (with its dot), the field the part is in.
    pub fn within(mut self, path_prefix: &str) -> Self {
        self.nest.insert_str(0, path_prefix);
        self
    }

    fn covers(&self, key: &str) -> bool {
        self.owned.is_empty() || self.owned.iter().any(|p| key.starts_with(p.as_str()))
    }

    /// PEFT's spelling of a key's tail → ours.
    fn lora_to_path(&self, name: String) -> String {
        let Some(adapter) = &self.adapter else {
            return name;
        };
        for (theirs, ours) in [("lora_A", "a"), ("lora_B", "b")] {
            for tail in [
                format!(".{theirs}.{adapter}.weight"),
                format!(".{theirs}.weight"),
            ] {
                if let Some(layer) = name.strip_suffix(&tail) {
                    return format!("{layer}.lora.{ours}");
                }
            }
        }
        match layer_and_base(&name) {
            Some((layer, base)) if layer.ends_with(".base_layer") => {
                let layer = layer.trim_end_matches(".base_layer");
                format!("{layer}.{base}")
            }
            _ => name,
        }
    }

    /// Our spelling → PEFT's. `adapted` tells whether the layer has an adapter.
    fn path_to_lora(&self, name: String, adapted: bool) -> String {
        let Some(adapter) = &self.adapter else {
            return name;
        };
        for (theirs, ours) in [("lora_A", ".lora.a"), ("lora_B", ".lora.b")] {
            if let Some(layer) = name.strip_suffix(ours) {
                return format!("{layer}.{theirs}.{adapter}.weight");
            }
        }
        match layer_and_base(&name) {
            Some((layer, base)) if adapted => format!("{layer}.base_layer.{base}"),
            _ => name,
        }
    }
}

/// Whether the parameter at `path` is the weight or bias of a layer with an adapter.
fn is_adapted(path: &str, has: &dyn Fn(&str) -> bool) -> bool {
    layer_and_base(path).is_some_and(|(layer, _)| has(&format!("{layer}.lora.a")))
}

/// The layer and what an adapter stands beside, of a name that ends so.
fn layer_and_base(name: &str) -> Option<(&str, &str)> {
    ["weight", "weight.packed", "bias"]
        .into_iter()
        .find_map(|base| {
            let layer = name.strip_suffix(base)?.strip_suffix('.')?;
            Some((layer, base))
        })
}

pub(super) fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| WeightsError::Pattern {
        pattern: pattern.into(),
        why: e.to_string(),
    })
}

fn rewrite(rules: &[(Regex, String)], name: &str) -> String {
    let mut name = name.to_string();
    for (pattern, to) in rules {
        name = pattern.replace_all(&name, to.as_str()).into_owned();
    }
    name
}

impl KeyMap for KeyRules {
    fn module_path(&self, key: &str) -> KeyTarget {
        let mut wrappers = self.wrappers.iter();
        let inner = wrappers.find_map(|wrapper| key.strip_prefix(wrapper.as_str()));
        let key = inner.unwrap_or(key);
        if !self.covers(key) {
            return KeyTarget::OtherPart;
        }
        if let Some((_, reason)) = self.ignored.iter().find(|(p, _)| p.is_match(key)) {
            return KeyTarget::Ignored(reason.clone());
        }
        // The adapter's spelling goes first so that rules are written in terms of layers.
        let path = rewrite(&self.forward, &self.lora_to_path(key.to_string()));
        KeyTarget::Path(format!("{}{path}", self.nest))
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        let name = rewrite(&self.inverse, path.strip_prefix(self.nest.as_str())?);
        let key = self.path_to_lora(name, is_adapted(path, has));
        self.covers(&key).then_some(key)
    }
}

/// Tables of several parts, asked in order.
#[derive(Default)]
pub struct KeyTables<'a> {
    tables: Vec<Box<dyn KeyMap + 'a>>,
}

impl<'a> KeyTables<'a> {
    /// No tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the table of a part.
    pub fn with(mut self, table: impl KeyMap + 'a) -> Self {
        self.tables.push(Box::new(table));
        self
    }
}

impl std::fmt::Debug for KeyTables<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyTables({} tables)", self.tables.len())
    }
}

impl KeyMap for KeyTables<'_> {
    fn module_path(&self, key: &str) -> KeyTarget {
        self.tables
            .iter()
            .map(|t| t.module_path(key))
            .find(|t| *t != KeyTarget::OtherPart)
            .unwrap_or(KeyTarget::OtherPart)
    }

    fn checkpoint_key(&self, path: &str, has: &dyn Fn(&str) -> bool) -> Option<String> {
        // Several tables may rewrite the path to something; the right one leads back to it.
        self.tables.iter().find_map(|t| {
            let key = t.checkpoint_key(path, has)?;
            (self.module_path(&key) == KeyTarget::Path(path.into())).then_some(key)
        })
    }
}

/// Checks that every key which leads to a path comes back from it, as saving needs.
///
/// Returns `(key, path, key that came back)` for each that does not.
pub fn check_round_trip<'a>(
    map: &dyn KeyMap,
    keys: impl IntoIterator<Item = &'a str>,
) -> Vec<(String, String, Option<String>)> {
    let pairs: Vec<_> = keys
        .into_iter()
        .filter_map(|key| match map.module_path(key) {
            KeyTarget::Path(path) => Some((key, path)),
            _ => None,
        })
        .collect();
    let paths: std::collections::HashSet<&str> = pairs.iter().map(|(_, p)| p.as_str()).collect();
    pairs
        .iter()
        .filter_map(|(key, path)| {
            let back = map.checkpoint_key(path, &|p| paths.contains(p));
            (back.as_deref() != Some(*key)).then(|| (key.to_string(), path.clone(), back))
        })
        .collect()
}
