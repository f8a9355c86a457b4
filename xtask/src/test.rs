//! `cargo xtask test`: what the README names and CI runs. Check first, then every test, fast ones before those that build a network.

use clap::Args;

use crate::{check, front, setup};

/// The crates whose tests make namespaces, attach BPF programs or start the whole mesh: they run last, and need root.
const PRIVILEGED: [&str; 3] = ["tropis-redirector", "tropis-ztunnel", "tropis-tests"];

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
    if !options.no_check {
        check::run()?;
    }
    let filter: Vec<&str> = options.filter.as_deref().into_iter().collect();
    front::step("build everything", || front::run(front::cargo().args(["build", "--workspace", "--all-targets", "--quiet"])))?;
    front::step("unit and crate tests", || {
        let mut command = front::cargo();
        command.args(["test", "--quiet", "--workspace"]);
        for package in PRIVILEGED {
            command.args(["--exclude", package]);
        }
        front::run(command.arg("--").args(&filter))
    })?;
    for package in PRIVILEGED {
        front::step(&format!("tests of {package}"), || {
            let mut command = front::cargo();
            command.args(["test", "--package", package]);
            if !setup::is_root() && setup::found("sudo") {
                // Built as this user; only the test binaries run as root.
                command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo --preserve-env=TROPIS_E2E,RUST_LOG");
                command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "sudo --preserve-env=TROPIS_E2E,RUST_LOG");
            }
            front::run(command.arg("--").args(&filter))
        })?;
    }
    Ok(())
}
