//! What every source file must have, and that the stages' words are the files' names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::front;

/// The words of a connection's journey that are files of the node proxy; `capture` is the kernel's part.
const STAGES: [(&str, &[&str]); 2] = [
    ("ztunnel", &["accept", "identify", "resolve", "authorize", "connect", "relay", "report"]),
    ("waypoint", &["accept", "identify", "resolve", "authorize", "route", "balance", "connect", "forward", "report"]),
];

/// Folders that hold no source of ours.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "testdata"];

pub(super) fn violations() -> anyhow::Result<Vec<String>> {
    let root = front::root();
    let mut violations = Vec::new();
    for path in rust_files(&root)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let shown = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        if !text.starts_with("//! ") {
            violations.push(format!("{shown}: opens without a `//!` line that says what it is"));
        }
        if path.file_name().is_some_and(|name| name == "mod.rs") {
            violations.push(format!("{shown}: is named mod.rs; use the folder's name with .rs beside it"));
        }
    }
    let outcome = fs::read_to_string(root.join("mesh/model/src/outcome.rs")).context("mesh/model/src/outcome.rs")?;
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    for (program, words) in STAGES {
        let list = format!("{program}/src/stages.rs");
        let stages = fs::read_to_string(root.join(&list)).context(list.clone())?;
        for word in words {
            let file = format!("{program}/src/stages/{word}.rs");
            if !root.join(&file).is_file() {
                violations.push(format!("stage {word} has no file {file}"));
            }
            if !stages.contains(&format!("mod {word};")) {
                violations.push(format!("stage {word} is not a module of {list}"));
            }
            if !outcome.contains(&format!("=> \"{word}\"")) {
                violations.push(format!("stage {word} is not a word of mesh/model/src/outcome.rs"));
            }
            if !architecture.contains(&format!("### {word}")) {
                violations.push(format!("stage {word} is not a heading of ARCHITECTURE.md"));
            }
        }
    }
    Ok(violations)
}

/// Every Rust file below `folder`.
pub(super) fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !SKIPPED.contains(&name.as_str()) {
            found.extend(rust_files(&path)?);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
