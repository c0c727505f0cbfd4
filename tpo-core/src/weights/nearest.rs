//! Nearest name by edit distance.

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
        if let Some(distance) = distance_within(name.as_bytes(), candidate.as_bytes(), limit)
            && distance < limit
        {
            limit = distance;
            best = Some(candidate);
            if limit <= 1 {
                break;
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

/// Levenshtein distance of two byte strings, or `None` when it is above `limit`.
fn distance_within(a: &[u8], b: &[u8], limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    // A slip leaves most of the name alone; what is equal at both ends costs nothing.
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[head..], &b[head..]);
    let tail = a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);

    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        let mut least = row[0];
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
            least = least.min(row[j + 1]);
        }
        if least > limit {
            return None;
        }
    }
    Some(row[b.len()]).filter(|&d| d <= limit)
}

/// Levenshtein distance: inserted, removed and replaced bytes.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let limit = a.len().max(b.len());
    distance_within(a.as_bytes(), b.as_bytes(), limit).unwrap_or(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_worked_by_hand() {
        assert_eq!(distance_within(b"kitten", b"sitting", 9), Some(3));
        assert_eq!(distance_within(b"", b"abc", 3), Some(3));
        assert_eq!(distance_within(b"abc", b"abc", 0), Some(0));
        assert_eq!(distance_within(b"kitten", b"sitting", 2), None);
    }

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
