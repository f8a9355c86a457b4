//! `tropis-lab`: a lab by hand, and the janitor that takes a lab away when the process that had it is gone.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tropis_tests::down::{Files, down};
use tropis_tests::layout::Layout;
use tropis_tests::{Lab, LabOptions, Progress};

/// A mesh on this box without a cluster.
#[derive(Debug, Parser)]
#[command(name = "tropis-lab", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a lab and keep it until Ctrl-C
    Up {
        #[command(flatten)]
        run: Run,
        /// Folder of objects to run
        #[arg(long)]
        manifests: Option<PathBuf>,
        /// Leave the programs of the mesh out
        #[arg(long)]
        no_mesh: bool,
        /// Log level of the programs
        #[arg(long, env = "RUST_LOG", default_value = "info")]
        log: String,
    },
    /// Take away what a run left
    Down {
        #[command(flatten)]
        run: Run,
    },
    /// Wait until standard input ends, then take the run away; its logs stay
    #[command(hide = true)]
    Janitor {
        #[command(flatten)]
        run: Run,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Name of the run
    #[arg(long, default_value = "lab")]
    run: String,
    /// State directory
    #[arg(long)]
    state: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Up { run, manifests, no_mesh, log } => up(run, manifests, !no_mesh, log),
        Command::Down { run } => Lab::clean(&run.run, run.state.as_deref()).context("taking the run away"),
        Command::Janitor { run } => {
            let mut nothing = Vec::new();
            // Ends when the lab's process does, whatever ended it.
            let _ = std::io::stdin().read_to_end(&mut nothing);
            down(&Layout::new(&run.run, run.state.as_deref()), Files::KeepLogs).context("cleaning up after the lab")
        }
    }
}

#[tokio::main]
async fn up(run: Run, manifests: Option<PathBuf>, mesh: bool, log_level: String) -> anyhow::Result<()> {
    let options = LabOptions { state: run.state, manifests, mesh, log_level, progress: Progress::stderr(), ..LabOptions::new(&run.run) };
    let lab = Lab::start(options).await.context("starting the lab")?;
    eprintln!("the lab is up; its files are in {}; Ctrl-C ends it", lab.layout().state().display());
    tokio::signal::ctrl_c().await?;
    lab.down().await.context("ending the lab")
}
