//! Calling heads and task tokens by name in patterns.

use tpo_core::head::{HeadSet, HeadSpec};

use crate::suggest::near;

/// What `head:NAME` and `token:NAME` at the start of a pattern stand for.
///
/// A [`HeadSet`] is a list of nodes `head` and `rest`, so the third head is at
/// `heads.rest.rest.head` of a [`TpoModel`](tpo_core::model::TpoModel) and its task token at
/// `task_tokens.2`. Which is the third is the model's business, not a recipe's: the names are
/// those of [`HeadSpec`].
///
/// ```
/// use tpo_train::HeadNames;
///
/// let names = HeadNames::new(["region", "temporal"]);
/// assert_eq!(names.expand("head:temporal.**").unwrap(), "heads.rest.head.**");
/// assert_eq!(names.expand("token:region").unwrap(), "task_tokens.0");
/// assert_eq!(names.expand("vision.**").unwrap(), "vision.**");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadNames(Vec<String>);

impl HeadNames {
    /// Names in the order of the heads.
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }

    /// The names of a model's heads.
    pub fn of<H: HeadSet>(heads: &H) -> Self {
        Self::from_specs(&heads.specs())
    }

    /// The names in these specs.
    pub fn from_specs(specs: &[HeadSpec]) -> Self {
        Self::new(specs.iter().map(|s| s.name.as_str()))
    }

    /// The names in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The pattern with the name written out as the path it stands for.
    ///
    /// # Errors
    /// What is wrong, in words: a name that no head has, or another word before the colon.
    pub fn expand(&self, pattern: &str) -> Result<String, String> {
        let Some((kind, rest)) = pattern.split_once(':') else {
            return Ok(pattern.to_string());
        };
        if !matches!(kind, "head" | "token") {
            return Err(format!(
                "`{kind}:` is not known; write `head:NAME` or `token:NAME`"
            ));
        }
        let (name, tail) = match rest.split_once('.') {
            Some((name, tail)) => (name, Some(tail)),
            None => (rest, None),
        };
        let Some(at) = self.0.iter().position(|n| n == name) else {
            return Err(self.unknown(name));
        };
        let root = match kind {
            "head" => format!("heads.{}head", "rest.".repeat(at)),
            _ => format!("task_tokens.{at}"),
        };
        Ok(match tail {
            Some(tail) => format!("{root}.{tail}"),
            None => root,
        })
    }

    fn unknown(&self, name: &str) -> String {
        if self.0.is_empty() {
            return format!("names the head `{name}`, and this model has no named heads");
        }
        let known = self.0.join(", ");
        match near(name, self.names()) {
            Some(near) => {
                format!("the model has no head `{name}`, did you mean `{near}`? It has: {known}")
            }
            None => format!("the model has no head `{name}`; it has: {known}"),
        }
    }

    /// The name in a pattern that calls a head or token by one.
    pub(crate) fn name_in(pattern: &str) -> Option<&str> {
        let (kind, rest) = pattern
            .strip_prefix('!')
            .unwrap_or(pattern)
            .split_once(':')?;
        let name = rest.split('.').next()?;
        matches!(kind, "head" | "token").then_some(name)
    }

    /// The pattern with a path to a head or token replaced by its name.
    pub(crate) fn shorten(&self, pattern: &str) -> String {
        // The longest path first: `heads.head` is not a prefix of `heads.rest.head`.
        for (at, name) in self.0.iter().enumerate().rev() {
            for (path, kind) in [
                (format!("heads.{}head", "rest.".repeat(at)), "head"),
                (format!("task_tokens.{at}"), "token"),
            ] {
                match pattern.strip_prefix(&path) {
                    Some("") => return format!("{kind}:{name}"),
                    Some(tail) if tail.starts_with('.') => return format!("{kind}:{name}{tail}"),
                    _ => {}
                }
            }
        }
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_places() {
        let names = HeadNames::new(["region", "temporal", "mask"]);
        for (written, path) in [
            ("head:region.**", "heads.head.**"),
            (
                "head:mask.track_embed.*",
                "heads.rest.rest.head.track_embed.*",
            ),
            ("token:mask", "task_tokens.2"),
        ] {
            assert_eq!(names.expand(written).unwrap(), path);
            assert_eq!(names.shorten(path), written);
        }
        assert_eq!(
            names.shorten("heads.rest.rest.rest.x"),
            "heads.rest.rest.rest.x"
        );
        let why = names.expand("head:regoin.**").unwrap_err();
        assert!(why.contains("did you mean `region`"), "{why}");
        let why = names.expand("heads:region").unwrap_err();
        assert!(why.contains("`heads:` is not known"), "{why}");
        let why = HeadNames::default().expand("head:region").unwrap_err();
        assert!(why.contains("no named heads"), "{why}");
        assert_eq!(HeadNames::name_in("!head:region.a"), Some("region"));
        assert_eq!(HeadNames::name_in("region.a"), None);
    }
}
