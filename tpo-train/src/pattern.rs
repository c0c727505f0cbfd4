//! Patterns over the paths of parameters in a module tree.

use std::fmt;

use tpo_core::weights::edit_distance;

/// A glob over a module path such as `vision.encoder.blocks.0.attn.qkv.weight`.
///
/// A path is the names of the fields from the root of the module to the parameter, joined by
/// dots. A member of a `Vec`, an array or a tuple has its index as its name; the variant of an enum
/// has no name of its own. These are the paths that weight import uses.
///
/// The pattern must match the whole path:
///
/// | in the pattern | matches |
/// |---|---|
/// | `**` as a whole segment | any number of segments, also none |
/// | `*` | any characters within one segment, also none |
/// | `?` | one character within a segment |
/// | `!` in front | excludes instead (see [`ParamGroupSpec`](crate::ParamGroupSpec)) |
///
/// So `vision` is a parameter of that name, `vision.**` is everything below it, and
/// `llm.**.lora.*` is every parameter of every `lora` anywhere in the language model.
///
/// Globs and not regular expressions: the dot separates the segments of every path, and as a
/// regular expression it would match anything unless escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    /// Without `!`.
    glob: String,
    exclude: bool,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// `**`
    AnyDepth,
    /// A name with `*` and `?`.
    Name(Vec<char>),
}

impl Segment {
    fn matches(&self, name: &str) -> bool {
        match self {
            Segment::AnyDepth => true,
            Segment::Name(glob) => {
                let name: Vec<char> = name.chars().collect();
                wildcard(glob, &name, |g| *g == '*', |g, c| *g == '?' || g == c)
            }
        }
    }
}

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in words: it is empty, has an empty segment, mixes `**` with other
    /// characters, or holds a character that no path has.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (exclude, glob) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let glob = glob.to_string();
        if glob.is_empty() {
            return Err("is empty; write `**` for every parameter".into());
        }
        let segments = glob
            .split('.')
            .map(|segment| {
                if segment.is_empty() {
                    return Err("has an empty segment: two dots in a row, or one at an end".into());
                }
                if segment == "**" {
                    return Ok(Segment::AnyDepth);
                }
                if segment.contains("**") {
                    return Err(format!(
                        "`**` must be a segment of its own, found `{segment}`"
                    ));
                }
                let known = |c: &char| c.is_alphanumeric() || "_-#*?".contains(*c);
                match segment.chars().find(|c| !known(c)) {
                    None => Ok(Segment::Name(segment.chars().collect())),
                    Some(c) => Err(format!(
                        "`{c}` does not occur in module paths; this is a glob (`*`, `**`, `?`), \
                         not a regular expression"
                    )),
                }
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            text: text.to_string(),
            glob,
            exclude,
            segments,
        })
    }

    /// Whether it is an exclusion (`!` in front).
    pub fn is_exclusion(&self) -> bool {
        self.exclude
    }

    /// Whether the glob matches the whole of `path`. Exclusions answer as if the `!` were not
    /// there.
    pub fn matches(&self, path: &str) -> bool {
        self.matches_segments(&path.split('.').collect::<Vec<_>>())
    }

    pub(crate) fn matches_segments(&self, path: &[&str]) -> bool {
        matches_all(&self.segments, path)
    }

    /// Patterns close to this one that match one of `paths`: up to `limit`, best first.
    ///
    /// Looks for the first segment that fits nowhere and offers what stands at its place, by edit
    /// distance; or the subtree, when the pattern names an inner node.
    pub(crate) fn nearest(&self, paths: &[Vec<&str>], limit: usize) -> Vec<String> {
        let mut subtree = self.segments.clone();
        subtree.push(Segment::AnyDepth);
        if paths.iter().any(|path| matches_all(&subtree, path)) {
            return vec![format!("{}.**", self.glob)];
        }
        // The first segment with which nothing fits any more.
        let fits = |n: usize| {
            let mut head = self.segments[..n].to_vec();
            head.push(Segment::AnyDepth);
            paths.iter().any(|path| matches_all(&head, path))
        };
        let Some(failing) = (0..self.segments.len()).find(|&i| !fits(i + 1)) else {
            return Vec::new();
        };
        let Segment::Name(wanted) = &self.segments[failing] else {
            return Vec::new();
        };
        let wanted: String = wanted.iter().collect();
        let head = &self.segments[..failing];
        let mut found: Vec<(usize, &str)> = Vec::new();
        for path in paths {
            for (k, name) in path.iter().enumerate() {
                if matches_all(head, &path[..k]) && !found.iter().any(|(_, n)| n == name) {
                    found.push((edit_distance(&wanted, name), name));
                }
            }
        }
        // Stable: equal distances stay in the order of the module.
        found.sort_by_key(|(distance, _)| *distance);
        // Likely slips alone if there are any, else whatever stands there.
        let slip = wanted.chars().count() / 3 + 1;
        if found.first().is_some_and(|(distance, _)| *distance <= slip) {
            found.retain(|(distance, _)| *distance <= slip);
        }
        let written: Vec<&str> = self.glob.split('.').collect();
        let mut near: Vec<String> = Vec::new();
        for (_, name) in found {
            let mut repaired = written.clone();
            repaired[failing] = name;
            let repaired = repaired.join(".");
            let subtree = [&written[..failing], &[name, "**"]].concat().join(".");
            for candidate in [repaired, subtree] {
                let matched = Self::parse(&candidate)
                    .is_ok_and(|p| paths.iter().any(|path| p.matches_segments(path)));
                if matched {
                    near.push(candidate);
                    break;
                }
            }
            if near.len() == limit {
                break;
            }
        }
        near
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn matches_all(pattern: &[Segment], path: &[&str]) -> bool {
    wildcard(
        pattern,
        path,
        |s| *s == Segment::AnyDepth,
        |s, name| s.matches(name),
    )
}

/// Glob matching over any alphabet. Returns to the last star only, so its time is at most the
/// product of the lengths.
fn wildcard<P, T>(
    pattern: &[P],
    text: &[T],
    is_star: impl Fn(&P) -> bool,
    equal: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut last_star = None;
    while t < text.len() {
        if p < pattern.len() && is_star(&pattern[p]) {
            last_star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && equal(&pattern[p], &text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star, taken)) = last_star {
            last_star = Some((star, taken + 1));
            p = star + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(is_star)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        PathPattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn globs_match_whole_paths() {
        for (pattern, path, expected) in [
            ("vision.**", "vision.encoder.blocks.0.norm1.weight", true),
            ("vision.**", "vision", true),
            ("vision.**", "visions.weight", false),
            ("vision", "vision.weight", false),
            ("vision.*", "vision.weight", true),
            ("vision.*", "vision.norm.weight", false),
            ("**", "a.b.c", true),
            ("**.bias", "bias", true),
            ("**.bias", "a.q_bias", false),
            ("**.*bias", "a.q_bias", true),
            (
                "llm.**.lora.*",
                "llm.model.layers.31.mlp.up_proj.lora.a",
                true,
            ),
            ("llm.**.lora.*", "llm.lm_head.lora.b", true),
            ("llm.**.lora.*", "llm.lm_head.weight", false),
            ("a.**.b.**.c", "a.x.b.y.b.z.c", true),
            ("a.**.b.**.c", "a.x.y.c", false),
            ("blocks.?.w", "blocks.7.w", true),
            ("blocks.?.w", "blocks.17.w", false),
            ("n*m1.*", "norm1.weight", true),
            ("!vision.**", "vision.w", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_not_exponential() {
        let stars = format!("{}b", "a*".repeat(40));
        assert!(!matches(&stars, &"a".repeat(200)));
        let deep = format!("{}.zz", vec!["**.a"; 40].join("."));
        assert!(!matches(&deep, &vec!["a"; 200].join(".")));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, says) in [
            ("", "is empty"),
            ("!", "is empty"),
            ("a..b", "empty segment"),
            ("a.", "empty segment"),
            ("a**.b", "segment of its own"),
            ("^vision", "not a regular expression"),
            ("a.(b|c)", "not a regular expression"),
        ] {
            let why = PathPattern::parse(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn what_would_match_instead() {
        let paths = [
            "vision.encoder.blocks.0.weight",
            "vision.encoder.blocks.1.weight",
            "vision.vision_layernorm.weight",
            "heads.mask.sam.weight",
            "heads.region.decoder.weight",
            "task_tokens.0",
        ];
        let paths: Vec<Vec<&str>> = paths.iter().map(|p| p.split('.').collect()).collect();
        let nearest = |text: &str| PathPattern::parse(text).unwrap().nearest(&paths, 2);
        assert_eq!(nearest("vision"), ["vision.**"]);
        assert_eq!(
            nearest("vision.encodr.blocks.**"),
            ["vision.encoder.blocks.**"]
        );
        // nothing alike: what is there
        assert_eq!(
            nearest("vision.blocks.**"),
            ["vision.encoder.**", "vision.vision_layernorm.**"]
        );
        // encoder.weight: `weight` against `blocks`, the only thing below `encoder`
        assert_eq!(
            nearest("vision.encoder.weight"),
            ["vision.encoder.blocks.**"]
        );
        assert_eq!(nearest("heads.regoin.**"), ["heads.region.**"]);
        assert_eq!(nearest("**.weigth"), ["**.weight"]);
        assert_eq!(nearest("task_tokens.1"), ["task_tokens.0"]);
        // nothing stands below a parameter
        assert!(nearest("task_tokens.0.weight").is_empty());
    }
}
