//! The L7 proxy: arguments, the control runtime, the exit code.
//!
//! Settings come from the environment (`config.rs`); what runs is in `app.rs`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tropis_telemetry::logs;
use tropis_waypoint::{app, config::Config};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The L7 proxy of the Tropis mesh. Everything is set by environment variables, named as Istio's where Istio has them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// What Istio's templates pass (`proxy waypoint`); nothing depends on it.
    #[arg(hide = true)]
    _role: Vec<String>,
}

fn main() -> ExitCode {
    let _arguments = Arguments::parse();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("waypoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    spare_memory();
    let config = Config::from_environment()?;
    let (log, _written_at_the_end) = logs::start(config.log_format, &config.log_filter)?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the control runtime cannot be started")?;
    runtime.block_on(app::run(config, log))?;
    Ok(())
}

/// Small pages only: where hosts give huge ones to everybody, each first touch costs 2 MiB.
fn spare_memory() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::warn!(%error, "huge pages cannot be turned off: more memory will be used");
    }
}

/// Each connection takes descriptors: as many as we may have.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}
