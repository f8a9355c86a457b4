//! `cargo xtask setup`: installs what the machine lacks, or says what to install.

use std::process::{Command, Stdio};

use anyhow::bail;
use clap::Subcommand;

use crate::{ebpf, front};

#[derive(Subcommand, Clone, Copy)]
pub(crate) enum Part {
    /// What building and running need: a C compiler, `make`, `nft` and `ip`.
    Run,
    /// What the test of the page needs: a headless browser.
    Browser,
    /// What rebuilding the BPF object needs: the standard library's sources and bpf-linker.
    Ebpf,
}

/// A program that building or running needs, and the Debian package that has it.
const NEEDED: [(&str, &str, &str); 4] = [
    ("cc", "gcc", "link Rust programs"),
    ("make", "make", "build the allocator of the proxies"),
    ("nft", "nftables", "stand in for kube-proxy"),
    ("ip", "iproute2", "make the test network"),
];

/// The names of the browser, and the Debian package that has it.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const BROWSER_PACKAGE: &str = "chromium";

pub(crate) fn run(part: Part) -> anyhow::Result<()> {
    match part {
        Part::Run => ensure_programs(),
        Part::Browser => ensure_browser(),
        Part::Ebpf => ebpf::setup(),
    }
}

/// Installs the missing programs where that is possible, else says which and how.
pub(crate) fn ensure_programs() -> anyhow::Result<()> {
    let missing: Vec<_> = NEEDED.iter().filter(|(program, ..)| !found(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    let why: Vec<String> = missing.iter().map(|(program, _, why)| format!("{program} (to {why})")).collect();
    if !found("apt-get") {
        bail!("{} missing; install your distribution's packages for: {}", why.join(", "), packages.join(" "));
    }
    if !can_be_root() {
        bail!("{} missing, and there is no sudo to install it with: run `apt-get install {}` as root", why.join(", "), packages.join(" "));
    }
    install(&packages, || match missing.iter().find(|(program, ..)| !found(program)) {
        Some((program, package, _)) => bail!("{program} is still missing although {package} is installed"),
        None => Ok(()),
    })
}

/// Installs a headless browser where there is none and that is possible, else says why not.
pub(crate) fn ensure_browser() -> anyhow::Result<()> {
    let there = || BROWSERS.iter().any(|program| found(program));
    if there() {
        return Ok(());
    }
    if !found("apt-get") || !can_be_root() {
        bail!("no browser ({}); install your distribution's package for: {BROWSER_PACKAGE}", BROWSERS.join(", "));
    }
    install(&[BROWSER_PACKAGE], || if there() { Ok(()) } else { bail!("{BROWSER_PACKAGE} is installed, and there still is no browser") })
}

/// Installs Debian packages, and sees whether that helped.
fn install(packages: &[&str], helped: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    front::step(&format!("install {}", packages.join(", ")), || {
        front::run(as_root("apt-get")?.args(["update", "-q"]))?;
        front::run(as_root("apt-get")?.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages))?;
        helped()
    })
}

/// Fails, before anything is built, when what comes after the build needs root and this user has no way to it.
pub(crate) fn ensure_root_is_possible() -> anyhow::Result<()> {
    if can_be_root() {
        return Ok(());
    }
    bail!("network namespaces, control groups and BPF need root, and there is no sudo here: run this command as root, or install sudo")
}

/// Whether `program` is on the path, or where administrators' programs are.
pub(crate) fn found(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| std::path::Path::new(folder).join(program).is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this process is root, or can ask sudo.
pub(crate) fn can_be_root() -> bool {
    is_root() || found("sudo")
}

/// Whether sudo lets this user run `program`, without asking once more.
pub(crate) fn sudo_allows(program: &str) -> bool {
    let asked = Command::new("sudo").args(["--non-interactive", "--list", program]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// A command that runs as root: directly, or through sudo.
pub(crate) fn as_root(program: &str) -> anyhow::Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if !found("sudo") {
        bail!("`{program}` needs root, and there is no sudo: run this command as root");
    }
    let mut command = Command::new("sudo");
    command.args(["--preserve-env=TROPIS_E2E,RUST_LOG,NO_COLOR", program]);
    Ok(command)
}
