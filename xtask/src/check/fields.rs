//! That the tests exist which the reference of fields and the guides to differences and semantics name.

use std::{collections::BTreeSet, fs};

use anyhow::Context;

use super::files::rust_files;
use crate::front;

/// The guides whose tables name tests.
const GUIDES: [&str; 2] = ["docs/guide/differences.md", "docs/guide/semantics.md"];
/// The heading of a column with tests.
const SHOWN_BY: &str = "shown by";

pub(super) fn violations() -> anyhow::Result<Vec<String>> {
    let mut tests = BTreeSet::new();
    for path in rust_files(&front::root())? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        tests.extend(names_of_tests(&text).map(str::to_owned));
    }
    let fields = tropis_crds::FIELDS.iter().flat_map(|(kind, fields)| fields.iter().map(move |field| (kind, field)));
    let named = fields.flat_map(|(kind, field)| field.tests.iter().map(move |test| (kind, field, *test)));
    let missing = named.filter(|(_, _, test)| !tests.contains(*test));
    let mut violations: Vec<String> =
        missing.map(|(kind, field, test)| format!("{kind} {}: there is no test {test}", field.path)).collect();
    for path in GUIDES {
        let guide = fs::read_to_string(front::root().join(path)).context(path)?;
        violations.extend(named_in(&guide).filter(|test| !tests.contains(*test)).map(|test| format!("{path}: there is no test {test}")));
    }
    Ok(violations)
}

/// The tests that tables name in a last column `shown by`.
fn named_in(page: &str) -> impl Iterator<Item = &str> {
    let mut names_tests = false;
    let cells = page.lines().filter_map(move |line| {
        let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            names_tests = false;
            return None;
        };
        let last = row.rsplit('|').next()?.trim();
        names_tests |= last == SHOWN_BY;
        (names_tests && last.starts_with('`')).then_some(last)
    });
    cells.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`'))
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

    #[test]
    fn only_tables_with_the_column_name_tests() {
        let page = "| a | why |\n|---|---|\n| b | `no` |\n\n| a | shown by |\n|---|---|\n| b | `one`, `two` |\n\n| a | c |\n|---|---|\n| b | `no` |\n";
        assert_eq!(named_in(page).collect::<Vec<_>>(), ["one", "two"]);
    }
}
