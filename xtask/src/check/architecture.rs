//! Whether ARCHITECTURE.md tells the truth: every path and symbol that it names exists.
//!
//! What stands in backticks is looked at: with a slash or a known ending it is a path from the root; `Type::function`
//! and `function()` must stand in some Rust file. Other words in backticks are free.

use std::fs;

use anyhow::Context;
use regex::Regex;

use super::files::rust_files;
use crate::front;

const ENDINGS: [&str; 6] = [".rs", ".md", ".toml", ".yaml", ".proto", ".o"];

pub(super) fn violations() -> anyhow::Result<Vec<String>> {
    let root = front::root();
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let sources: Vec<String> = rust_files(&root)?.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    let named = named(&text)?;
    let missing = named.into_iter().filter_map(|name| match name {
        Name::Path(path) => (!root.join(&path).exists()).then(|| format!("`{path}` does not exist")),
        Name::Symbol(symbol) => {
            let word = Regex::new(&format!(r"\b{}\b", regex::escape(&symbol))).ok()?;
            (!sources.iter().any(|source| word.is_match(source))).then(|| format!("`{symbol}` is in no Rust file"))
        }
    });
    Ok(missing.collect())
}

#[derive(Debug, PartialEq)]
enum Name {
    Path(String),
    Symbol(String),
}

fn named(text: &str) -> anyhow::Result<Vec<Name>> {
    let quoted = Regex::new("`([^`\n]+)`")?;
    let path = Regex::new(r"^[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*/?$")?;
    let symbol = Regex::new(r"^(?:[A-Za-z_][A-Za-z0-9_]*::)*([A-Za-z_][A-Za-z0-9_]*)(\(\))?$")?;
    let mut outside_code = String::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            outside_code.push_str(line);
            outside_code.push('\n');
        }
    }
    let mut names = Vec::new();
    for word in quoted.captures_iter(&outside_code).map(|captures| captures[1].to_owned()) {
        if path.is_match(&word) && (word.contains('/') || ENDINGS.iter().any(|ending| word.ends_with(ending))) {
            names.push(Name::Path(word));
        } else if (word.contains("::") || word.ends_with("()")) && symbol.is_match(&word) {
            names.extend(word.trim_end_matches("()").split("::").map(|part| Name::Symbol(part.to_owned())));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_symbols_are_told_from_words() {
        let names =
            named("see `ztunnel/src/app.rs`, `Cargo.toml`, `View::apply`, `decide()`, `istio.io/rev: x`, `stage`\n```\n`a/b.rs`\n```\n");
        let expected = [
            Name::Path("ztunnel/src/app.rs".into()),
            Name::Path("Cargo.toml".into()),
            Name::Symbol("View".into()),
            Name::Symbol("apply".into()),
            Name::Symbol("decide".into()),
        ];
        assert_eq!(names.unwrap(), expected);
    }
}
