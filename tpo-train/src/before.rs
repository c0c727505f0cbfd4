//! What was written before heads had names of their own in paths: they were a list of nodes `head` and
//! `rest`, their tokens were numbered, and patterns called them `head:NAME` and `token:NAME`.

use burn::module::Module;
use serde::{Deserialize, Deserializer};
use tpo_core::weights::module_params;

/// Reads patterns, those of before as they are written now.
pub(crate) fn patterns<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<String>::deserialize(from)?
        .into_iter()
        .map(|pattern| {
            let (mark, glob) = match pattern.strip_prefix('!') {
                Some(glob) => ("!", glob),
                None => ("", pattern.as_str()),
            };
            for (then, now) in [("head:", "heads."), ("token:", "task_tokens.")] {
                if let Some(rest) = glob.strip_prefix(then) {
                    return format!("{mark}{now}{rest}");
                }
            }
            pattern
        })
        .collect())
}

/// Keys of before to the paths of a model, whose task tokens are in the same order.
pub(crate) struct Renaming {
    names: Vec<String>,
}

impl Renaming {
    /// For a model with the fields `heads` and `task_tokens`; for any other nothing is renamed.
    pub(crate) fn of<M: Module>(model: &M) -> Self {
        let params = module_params(model).into_iter();
        let name = |path: String| Some(path.strip_prefix("task_tokens.")?.to_string());
        Self {
            names: params.filter_map(|p| name(p.path)).collect(),
        }
    }

    /// Whether a path is of a head that the model does not have; the name of that head.
    pub(crate) fn foreign<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (head, _) = crate::stage::place(path)?;
        let known = self.names.is_empty() || self.names.iter().any(|name| name == head);
        (!known).then_some(head)
    }

    /// The path that a key stands for, which may have a further word at its end.
    pub(crate) fn key(&self, key: &str) -> String {
        self.renamed(key).unwrap_or_else(|| key.to_string())
    }

    fn renamed(&self, key: &str) -> Option<String> {
        if let Some(rest) = key.strip_prefix("task_tokens.") {
            let (at, tail) = rest.split_once('.').unwrap_or((rest, ""));
            let name = self.names.get(at.parse::<usize>().ok()?)?;
            let dot = if tail.is_empty() { "" } else { "." };
            return Some(format!("task_tokens.{name}{dot}{tail}"));
        }
        // Heads of these names are heads of now.
        if self
            .names
            .iter()
            .any(|name| name == "head" || name == "rest")
        {
            return None;
        }
        let (mut at, mut rest) = (0, key.strip_prefix("heads.")?);
        while let Some(next) = rest.strip_prefix("rest.") {
            (at, rest) = (at + 1, next);
        }
        let tail = rest.strip_prefix("head.")?;
        Some(format!("heads.{}.{tail}", self.names.get(at)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_before() {
        let renaming = Renaming {
            names: ["region", "temporal", "mask"].map(String::from).to_vec(),
        };
        for (then, now) in [
            (
                "heads.head.decoder.output.weight",
                "heads.region.decoder.output.weight",
            ),
            ("heads.rest.rest.head.sam.x", "heads.mask.sam.x"),
            ("task_tokens.1", "task_tokens.temporal"),
            ("task_tokens.2.exp_avg", "task_tokens.mask.exp_avg"),
            (
                "heads.region.decoder.output.weight",
                "heads.region.decoder.output.weight",
            ),
            ("task_tokens.mask", "task_tokens.mask"),
            ("vision.head.weight", "vision.head.weight"),
        ] {
            assert_eq!(renaming.key(then), now);
        }
        let renaming = Renaming {
            names: ["region", "head"].map(String::from).to_vec(),
        };
        for now in ["heads.head.mlp.weight", "task_tokens.head"] {
            assert_eq!(renaming.key(now), now);
        }
        let toml = "patterns = ['head:region.**', '!token:mask', 'heads.mask.**']";
        #[derive(Deserialize)]
        struct Group {
            #[serde(deserialize_with = "patterns")]
            patterns: Vec<String>,
        }
        let read: Group = toml::from_str(toml).unwrap();
        assert_eq!(
            read.patterns,
            ["heads.region.**", "!task_tokens.mask", "heads.mask.**"]
        );
    }
}
