//! The name that was probably meant.

use tpo_core::weights::edit_distance;

/// The name nearest to `wrong`, if it is near enough to be a slip: up to a third of the letters,
/// and two in short names, where swapping two letters counts as two.
pub(crate) fn near<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.len() / 3).max(2.min(wrong.len().saturating_sub(1)));
    known
        .into_iter()
        .map(|name| (edit_distance(wrong, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn slips_are_found_and_other_words_are_not() {
        assert_eq!(near("nmae", ["model", "name", "seed"]), Some("name"));
        assert_eq!(near("lr", ["rl", "learning_rate"]), None);
        assert_eq!(near("x", ["y"]), None);
        assert_eq!(
            near("learning_rat", ["batch", "learning_rate"]),
            Some("learning_rate")
        );
    }
}
