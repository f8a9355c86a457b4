//! `tropisd`, the control plane: watch objects, compile them, serve the proxies, sign certificates, report back.
//!
//! This file has arguments and exit code; what runs is wired in [`app`].

use std::process::ExitCode;

use clap::Parser;
use tropis_telemetry::{chain, logs};

use crate::config::{Arguments, Config};

mod app;
mod attach;
mod automatic;
mod ca;
mod caller;
mod certify;
mod config;
mod connections;
mod debug;
mod deploy;
mod exits;
mod graph;
mod handshakes;
mod in_force;
mod metrics;
mod report;
mod scope;
mod serve;
mod sparing;
mod watch;

fn main() -> ExitCode {
    let config = match Config::validate(Arguments::parse()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tropisd: {}", chain(&error));
            return ExitCode::from(2);
        }
    };
    let (log_control, _log_guard) = match logs::start(config.log_format, &config.log) {
        Ok(started) => started,
        Err(error) => {
            eprintln!("tropisd: {}", chain(&error));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("tropisd").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(app::run(config, log_control)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(error.as_ref()), "tropisd cannot run");
            ExitCode::FAILURE
        }
    }
}
