//! `cargo xtask check`: what can be known without running anything, in seconds once built.

mod architecture;
mod directions;
mod fields;
mod files;

use anyhow::bail;

use crate::{ebpf, front, generate};

pub(crate) fn run() -> anyhow::Result<()> {
    front::step("format", || front::run(front::cargo().args(["fmt", "--all", "--check"])))?;
    front::step("crate directions", || report(directions::violations()?))?;
    front::step("stage words and file headers", || report(files::violations()?))?;
    front::step("paths and symbols in ARCHITECTURE.md", || report(architecture::violations()?))?;
    front::step("tests of the fields of objects", || report(fields::violations()?))?;
    front::step("generated pages", || report(generate::stale()))?;
    front::step("freshness of the BPF object", ebpf::check)?;
    front::step("lints", || {
        front::run(front::cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"]))
    })
}

/// Fails with every violation on a line of its own.
fn report(violations: Vec<String>) -> anyhow::Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    bail!("{} found:\n  {}", violations.len(), violations.join("\n  "))
}
