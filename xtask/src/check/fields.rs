//! That the tests which the reference of fields names exist.

use std::{collections::BTreeSet, fs};

use anyhow::Context;

use super::files::rust_files;
use crate::front;

pub(super) fn violations() -> anyhow::Result<Vec<String>> {
    let mut tests = BTreeSet::new();
    for path in rust_files(&front::root())? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        tests.extend(names_of_tests(&text).map(str::to_owned));
    }
    let fields = tropis_crds::FIELDS.iter().flat_map(|(kind, fields)| fields.iter().map(move |field| (kind, field)));
    let named = fields.flat_map(|(kind, field)| field.tests.iter().map(move |test| (kind, field, *test)));
    let missing = named.filter(|(_, _, test)| !tests.contains(*test));
    Ok(missing.map(|(kind, field, test)| format!("{kind} {}: there is no test {test}", field.path)).collect())
}

/// The functions of a file that a test's attribute stands on, alone or above further attributes.
fn names_of_tests(text: &str) -> impl Iterator<Item = &str> {
    let mut pending = false;
    text.lines().map(str::trim_start).filter_map(move |line| {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            pending = true;
            return None;
        }
        if !pending || line.starts_with("#[") || line.starts_with("//") {
            return None;
        }
        pending = false;
        line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?.split('(').next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_tests_attribute_stands_on_is_a_test() {
        let text = "fn helper() {}\n    #[test]\n    #[should_panic]\n    fn one() {}\n#[tokio::test(start_paused = true)]\nasync fn two() {}\n\
                    #[derive(Debug)]\nstruct A;\nfn three() {}\n";
        assert_eq!(names_of_tests(text).collect::<Vec<_>>(), ["one", "two"]);
    }
}
