//! How answers are printed: tables in the way of `kubectl` and `istioctl`, or JSON and YAML of the same facts.

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use tropis_crds::ObjectRef;

use crate::arguments::Format;

/// Rows under headings, and the facts behind them.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    headings: &'static [&'static str],
    rows: Vec<Vec<String>>,
    facts: Vec<T>,
}

impl<T: Serialize> Listing<T> {
    /// A row for each fact.
    pub(crate) fn new(headings: &'static [&'static str], facts: Vec<T>, row: impl Fn(&T) -> Vec<String>) -> Self {
        Self { headings, rows: facts.iter().map(row).collect(), facts }
    }

    /// Text for people or programs. `nothing` is for people, when there is nothing to list.
    pub(crate) fn render(&self, format: Format, nothing: &str) -> anyhow::Result<String> {
        match format {
            Format::Table if self.rows.is_empty() => Ok(format!("{nothing}\n")),
            Format::Table => Ok(table(self.headings, &self.rows)),
            Format::Json | Format::Yaml => value(format, &self.facts),
        }
    }
}

/// Something that a command did.
#[derive(Debug, Serialize)]
pub(crate) struct Done {
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    /// A word: `created`, `deleted`, `labeled`.
    done: &'static str,
    /// A line for people.
    #[serde(skip)]
    told: String,
}

impl Done {
    /// What was done to an object, as `kubectl` tells it: `virtualservice/reviews created`.
    pub(crate) fn new(object: &ObjectRef, done: &'static str) -> Self {
        let told = format!("{}/{} {done}", object.kind.folder(), object.name);
        Self { kind: object.kind.as_str(), namespace: object.namespace.clone(), name: object.name.clone(), done, told }
    }

    /// With another line for people.
    pub(crate) fn told(self, told: String) -> Self {
        Self { told, ..self }
    }
}

/// What was done, a line each; for programs a list of it.
pub(crate) fn done(format: Format, done: &[Done]) -> anyhow::Result<String> {
    match format {
        Format::Table => Ok(done.iter().map(|one| format!("{}\n", one.told)).collect()),
        Format::Json | Format::Yaml => value(format, &done),
    }
}

/// JSON or YAML of something; for people too, who get YAML.
pub(crate) fn value(format: Format, value: &impl Serialize) -> anyhow::Result<String> {
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(value)? + "\n");
    }
    tropis_source::write::to_yaml(&serde_json::to_value(value)?).context("print YAML")
}

/// Columns with blanks between them and nothing else, so that every tool can cut them.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(headings);
    for row in rows {
        table.add_row(row.iter().map(|cell| if cell.is_empty() { "-" } else { cell.as_str() }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_can_be_cut_by_blanks() {
        let rows = vec![vec!["shop".to_owned(), "10.0.0.1".to_owned()], vec!["a".to_owned(), String::new()]];
        assert_eq!(table(&["NAMESPACE", "ADDRESS"], &rows), "NAMESPACE   ADDRESS\nshop        10.0.0.1\na           -\n");
    }

    #[test]
    fn an_empty_listing_says_so_to_people_only() {
        let nothing: Listing<u8> = Listing::new(&["A"], Vec::new(), |_| Vec::new());
        assert_eq!(nothing.render(Format::Table, "nothing there").unwrap(), "nothing there\n");
        assert_eq!(nothing.render(Format::Json, "nothing there").unwrap(), "[]\n");
    }
}
