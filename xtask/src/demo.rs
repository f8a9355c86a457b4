//! `cargo xtask demo`: the mesh on this box, one claim after another, each with what was observed. `cargo xtask down` takes away what an
//! interrupted run left.
//!
//! This file is the demo's life: build as whoever called, become root, start the lab, tell the story, clean up on every way out. The
//! claims are in `story`; the lab is the harness of `tests/`.

mod claims;
mod page;
mod story;
mod traffic;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use tropis_tests::{Lab, LabOptions, Progress, page::PageForward, port_forward::PortForward};

use crate::{front, setup};
use claims::Claims;

#[derive(Args)]
pub(crate) struct Options {
    /// Leave the mesh up after the story, until Ctrl-C, and say how to look at it.
    #[arg(long)]
    keep: bool,
    /// A folder of your own YAML, run instead of the story; it is read, watched and never written.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// A program of your own, as the image of that name. May be repeated.
    #[arg(long, value_name = "NAME=PATH", value_parser = image)]
    image: Vec<(String, PathBuf)>,
    /// The run's name: 1 to 24 lower-case letters and digits. Runs of different names do not disturb each other.
    #[arg(long, default_value = "demo")]
    run: String,
    /// The state folder; by default /run/tropis/RUN.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where productpage is reachable from this host with --keep.
    #[arg(long, default_value_t = 9080, value_name = "PORT")]
    page_port: u16,
    /// Where the live graph is drawn for a browser on this host, with --keep.
    #[arg(long, default_value_t = 9081, value_name = "PORT")]
    graph_port: u16,
    /// The programs were built already, into this folder.
    #[arg(long, hide = true)]
    built: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct DownOptions {
    /// The run's name.
    #[arg(long, default_value = "demo")]
    run: String,
    /// The state folder; by default /run/tropis/RUN.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

fn image(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=PATH"))?;
    let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    if name.is_empty() || !path.is_file() {
        return Err(format!("{} is not a program", path.display()));
    }
    Ok((name.to_owned(), path))
}

/// Runs the demo; an error if any claim was not observed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Some(folder) = &options.built else {
        setup::ensure_root_is_possible()?;
        setup::ensure_programs()?;
        let folder = build()?;
        return again_as_root(&folder);
    };
    in_runtime(options, folder)
}

/// Takes away what a run left.
pub(crate) fn down(options: &DownOptions) -> anyhow::Result<()> {
    if !setup::is_root() {
        let program = std::env::current_exe().context("finding this program")?;
        return front::run(setup::as_root(&program.to_string_lossy())?.args(std::env::args_os().skip(1)));
    }
    Lab::clean(&options.run, options.state.as_deref())?;
    eprintln!("nothing of run {} is left", options.run);
    Ok(())
}

/// Builds what the demo starts; gives the folder.
fn build() -> anyhow::Result<PathBuf> {
    front::step("build the programs (the first time takes minutes)", || {
        front::run(front::cargo().args(["build", "--workspace", "--bins"]))
    })?;
    let own = std::env::current_exe().context("finding this program")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Runs this very command once more, as root, with the programs built.
pub(crate) fn again_as_root(folder: &Path) -> anyhow::Result<()> {
    if !setup::is_root() {
        eprintln!("▸ the rest needs root: network namespaces, control groups, BPF");
    }
    let program = folder.join("xtask");
    let program = program.to_string_lossy();
    let mut command = setup::as_root(&program)?;
    let status = command.args(std::env::args_os().skip(1)).arg("--built").arg(folder).status().context("starting as root")?;
    if status.success() {
        return Ok(());
    }
    if !setup::is_root() && !setup::sudo_allows(&program) {
        bail!("sudo does not let this user run {program} as root: ask for leave to, or run this command as root");
    }
    // The exit code of the child is ours; what went wrong was already said.
    std::process::exit(status.code().unwrap_or(1))
}

fn in_runtime(options: &Options, folder: &Path) -> anyhow::Result<()> {
    if let Some(reason) = Lab::impossible() {
        bail!("the mesh cannot run here: {reason}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(live(options, folder))
}

/// The lab's whole life. Ctrl-C ends the story and cleans up; so does every error.
async fn live(options: &Options, folder: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut lab_options = LabOptions::new(&options.run);
    lab_options.state = options.state.clone();
    lab_options.manifests = options.manifests.clone();
    lab_options.images = options.image.clone();
    lab_options.programs = Some(folder.to_owned());
    lab_options.progress = Progress::new(|line| eprintln!("  {line}"));
    eprintln!("{}", front::bold("▸ start a lab of two nodes and the mesh on it"));
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let lab = tokio::select! {
        lab = Lab::start(lab_options) => lab?,
        () = &mut stop => bail!("interrupted"),
    };
    let mut claims = Claims::default();
    let told = tokio::select! {
        told = tell(&lab, options, &mut claims) => told,
        () = &mut stop => Err(anyhow::anyhow!("interrupted")),
    };
    if options.manifests.is_none() {
        claims.print(begun.elapsed());
    }
    if told.is_ok() && (options.keep || options.manifests.is_some()) {
        let kept = look(&lab, options).await;
        eprintln!("\nCtrl-C ends it and takes everything away.");
        stop.await;
        drop(kept);
    }
    let files = if told.is_err() { tropis_tests::down::Files::KeepLogs } else { lab.files_at_the_end() };
    let logs = lab.layout().logs();
    lab.end(files).await?;
    told.with_context(|| format!("the logs stay in {}", logs.display()))
}

async fn tell(lab: &Lab, options: &Options, claims: &mut Claims) -> anyhow::Result<()> {
    if options.manifests.is_some() {
        return Ok(());
    }
    story::tell(lab, claims).await?;
    traffic::tell(lab, claims).await?;
    page::tell(lab, claims).await?;
    claims.verdict()
}

/// What lasts for as long as the mesh is kept.
#[derive(Default)]
struct Kept {
    _graph: Option<PageForward>,
    _productpage: Option<PortForward>,
    _load: Option<page::Load>,
}

/// Says how to look at the mesh; forwards the graph and the bookstore's page.
async fn look(lab: &Lab, options: &Options) -> Kept {
    let layout = lab.layout();
    let mut kept = Kept::default();
    let row = |name: &str, value: String| eprintln!("  {:<11}{value}", front::bold(name));
    eprintln!("\nThe mesh stays up:");
    row("objects", layout.objects().display().to_string());
    row("sockets", format!("{} (curl --unix-socket …/ztunnel.a.sock http://localhost/config_dump)", layout.sockets().display()));
    row("logs", layout.logs().display().to_string());
    let taken = |port: u16, option: &str, error: &dyn std::fmt::Display| {
        format!("port {port} of this host cannot be used ({error}); choose another with {option}")
    };
    match lab.page(options.graph_port).await {
        Ok(forward) => {
            row("graph", forward.url());
            kept._graph = Some(forward);
        }
        Err(error) => row("graph", taken(options.graph_port, "--graph-port", &error)),
    }
    if options.manifests.is_none() {
        // Something for the graph to show; it is little.
        kept._load = page::Load::start(lab, 5).await.ok();
    }
    let productpage = tokio::time::timeout(Duration::from_secs(5), lab.pod("bookstore", "productpage-v1")).await;
    let Ok(Ok(productpage)) = productpage else { return kept };
    match productpage.forward(options.page_port, 9080).await {
        Ok(forward) => {
            row("page", format!("http://{}/productpage", forward.address()));
            kept._productpage = Some(forward);
        }
        Err(error) => row("page", taken(options.page_port, "--page-port", &error)),
    }
    kept
}

/// Ends with the first SIGINT, SIGTERM or SIGHUP.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}
