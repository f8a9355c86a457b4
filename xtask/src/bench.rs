//! `cargo xtask bench`: builds in release mode, becomes root, and measures with the harness' bench. Reads its arguments; the measuring is
//! in `tests/src/bench.rs`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use tropis_tests::{Lab, Progress, bench};

use crate::{demo, front, setup};

#[derive(Args)]
#[group(skip)] // the harness' options bring a group of the same name
pub(crate) struct Options {
    #[command(flatten)]
    bench: bench::Options,
    /// The programs were built already, into this folder.
    #[arg(long, hide = true)]
    built: Option<PathBuf>,
}

/// Measures, and prints the table.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Some(folder) = &options.built else {
        setup::ensure_root_is_possible()?;
        setup::ensure_programs()?;
        front::step("build the programs in release mode (the first time takes minutes)", || {
            front::run(front::cargo().args(["build", "--release", "--workspace", "--bins"]))
        })?;
        let target = std::env::current_exe().context("finding this program")?;
        let folder = target.ancestors().nth(2).context("finding the target folder")?.join("release");
        return demo::again_as_root(&folder);
    };
    if let Some(reason) = Lab::impossible() {
        bail!("the bench cannot run here: {reason}");
    }
    let mut bench = options.bench.clone();
    bench.programs = Some(folder.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let report = runtime.block_on(bench::run(&bench, &Progress::new(|line| eprintln!("  {line}"))))?;
    println!("{}", report.table());
    Ok(())
}
