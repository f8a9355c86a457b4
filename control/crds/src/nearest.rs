//! What somebody meant who wrote a name that does not exist: the nearest of those that do, or all of them.

use std::collections::BTreeSet;

/// A longer list would not be read.
const LISTED_MAX: usize = 20;
/// One edit in so many characters is taken for a slip of the fingers; more is another name.
const CHARACTERS_PER_SLIP: usize = 3;

/// The one of `known` that `word` is a misspelling of, if there is one.
///
/// ```
/// use tropis_crds::nearest;
/// assert_eq!(nearest::name("reveiws", ["ratings", "reviews"]), Some("reviews"));
/// assert_eq!(nearest::name("v3", ["v1", "v2"]), None);
/// ```
pub fn name<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let allowed = word.chars().count() / CHARACTERS_PER_SLIP;
    let near = known.into_iter().map(|name| (strsim::osa_distance(word, name), name));
    near.filter(|(distance, _)| *distance <= allowed).min().map(|(_, name)| name)
}

/// What a finding accepts in the place of `word`: the name that was meant, or else those that there are; `otherwise` if there are none
/// or too many to read.
pub fn accepted<'k>(word: &str, known: impl IntoIterator<Item = &'k str>, otherwise: &str) -> String {
    let known: BTreeSet<&str> = known.into_iter().collect();
    match name(word, known.iter().copied()) {
        Some(meant) => format!("did you mean {meant}"),
        None if known.is_empty() || known.len() > LISTED_MAX => otherwise.to_owned(),
        None => format!("there is {}", Vec::from_iter(known).join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_another_name() {
        for (word, wanted) in [("timeouts", Some("timeout")), ("tiemout", Some("timeout")), ("retry", None), ("", None)] {
            assert_eq!(name(word, ["timeout", "retries", "match"]), wanted, "{word}");
        }
    }

    #[test]
    fn names_are_listed_where_none_is_near() {
        assert_eq!(accepted("v9", ["v2", "v1"], "a subset"), "there is v1, v2");
        assert_eq!(accepted("v9", [], "a subset"), "a subset");
        let many: Vec<String> = (0..=LISTED_MAX).map(|number| format!("name-{number}")).collect();
        assert_eq!(accepted("other", many.iter().map(String::as_str), "a name"), "a name");
    }
}
