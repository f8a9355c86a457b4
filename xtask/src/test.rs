//! `cargo xtask test`: what the README names and CI runs. Check first, then every test, fast ones before those that build a network.
//!
//! Everything is built once, for the whole workspace: selecting packages would choose other features and compile again. The test binaries
//! are then run one by one, the privileged ones as root.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::{check, front, setup};

/// The packages whose outside tests make namespaces, attach BPF programs or start the whole mesh: they run last, as root.
const PRIVILEGED: [&str; 4] = ["tropis-net", "tropis-redirector", "tropis-ztunnel", "tropis-tests"];

#[derive(Args)]
pub(crate) struct Options {
    /// Leave the checks out.
    #[arg(long)]
    no_check: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure_programs()?;
    // Everything else can be tested without; where it is required, the test that needs it fails.
    if let Err(error) = setup::ensure_browser() {
        eprintln!("▸ the page will not be looked at: {error:#}");
    }
    if !options.no_check {
        check::run()?;
    }
    let binaries = front::step("build everything", build)?;
    let (privileged, fast): (Vec<_>, Vec<_>) = binaries.into_iter().partition(TestBinary::is_privileged);
    front::step("unit and crate tests", || fast.iter().try_for_each(|binary| binary.run(options, Command::new(&binary.path))))?;
    if options.filter.is_none() {
        front::step("examples in documentation", || front::run(front::cargo().args(["test", "--workspace", "--doc", "--quiet"])))?;
    }
    for binary in &privileged {
        front::step(&format!("{} of {}", binary.target, binary.package), || {
            let command = if setup::can_be_root() { setup::as_root(&binary.path.to_string_lossy())? } else { Command::new(&binary.path) };
            binary.run(options, command)
        })?;
    }
    Ok(())
}

/// One binary of tests.
struct TestBinary {
    package: String,
    folder: PathBuf,
    target: String,
    /// Outside tests, or a crate's own.
    outside: bool,
    path: PathBuf,
}

impl TestBinary {
    fn is_privileged(&self) -> bool {
        self.outside && PRIVILEGED.contains(&self.package.as_str())
    }

    fn run(&self, options: &Options, mut command: Command) -> anyhow::Result<()> {
        command.current_dir(&self.folder).args(&options.filter);
        front::run(&mut command).with_context(|| format!("tests of {} ({})", self.package, self.target))
    }
}

/// Builds every test of the workspace, and the programs that they start.
fn build() -> anyhow::Result<Vec<TestBinary>> {
    front::run(front::cargo().args(["build", "--workspace", "--bins", "--quiet"]))?;
    let mut command = front::cargo();
    command.args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let binaries: Vec<_> = messages.lines().filter_map(|line| binary(&serde_json::from_str(line).ok()?)).collect();
    if binaries.is_empty() {
        bail!("cargo named no test binary");
    }
    Ok(binaries)
}

/// Reads one of cargo's `compiler-artifact` messages.
fn binary(message: &Value) -> Option<TestBinary> {
    let path = PathBuf::from(message["executable"].as_str()?);
    if message["profile"]["test"] != true {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let package = std::fs::read_to_string(manifest).ok()?;
    let package = package.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"').map(str::to_owned))?;
    let kinds = message["target"]["kind"].as_array()?;
    Some(TestBinary {
        package,
        folder: manifest.parent()?.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        outside: kinds.iter().any(|kind| kind == "test"),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_binaries_are_run_and_outside_tests_of_the_programs_are_privileged() {
        let manifest = front::root().join("ztunnel/Cargo.toml");
        let message = |test: bool, kind: &str| {
            serde_json::json!({
                "executable": "/x", "profile": {"test": test}, "manifest_path": manifest, "target": {"name": "it", "kind": [kind]}
            })
        };
        assert!(binary(&message(false, "bin")).is_none());
        assert!(!binary(&message(true, "lib")).unwrap().is_privileged());
        let outside = binary(&message(true, "test")).unwrap();
        assert_eq!((outside.package.as_str(), outside.is_privileged()), ("tropis-ztunnel", true));
    }
}
