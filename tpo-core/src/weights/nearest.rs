//! Nearest name by edit distance.

pub use strsim::levenshtein as edit_distance;

/// The candidate with the smallest edit distance to `name`, if it is near enough to be a likely
/// slip: at most a third of the name may differ. Ties go to the earlier candidate.
///
/// A difference of whole segments (`a.b.c` against `b.c`) counts as near when one name ends with
/// the other.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut limit = name.len() / 3 + 1;
    let mut best = None;
    let mut suffix: Option<&str> = None;
    for candidate in candidates {
        if candidate == name {
            return Some(candidate);
        }
        if name.len().abs_diff(candidate.len()) < limit {
            let distance = edit_distance(name, candidate);
            if distance < limit {
                limit = distance;
                best = Some(candidate);
                if limit <= 1 {
                    break;
                }
            }
        }
        if is_suffix(name, candidate) && suffix.is_none_or(|s| candidate.len() < s.len()) {
            suffix = Some(candidate);
        }
    }
    best.or(suffix)
}

/// Whether one name is the other with leading segments removed, with at least two segments left.
fn is_suffix(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    short.contains('.')
        && long
            .strip_suffix(short)
            .is_some_and(|head| head.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_an_unrelated_name_is_not() {
        let names = [
            "blocks.0.norm1.weight",
            "blocks.0.norm2.weight",
            "head.bias",
        ];
        assert_eq!(
            nearest("blocks.0.norm1.weigth", names),
            Some("blocks.0.norm1.weight")
        );
        assert_eq!(nearest("completely.else", names), None);
        assert_eq!(
            nearest("model.visual.trunk.encoder.head.bias", names),
            Some("head.bias")
        );
    }
}
