//! `redirector`: arguments, logging, what runs, and the exit code.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser as _;
use tokio_util::sync::CancellationToken;
use tropis_redirector::{
    admin,
    config::{Arguments, Command, RunOptions},
    enrol::Enroller,
    foreign::ForeignProxies,
    kernel::{self, Capture},
    zds,
};
use tropis_telemetry::{admin::AdminAddress, logs, metrics::Metrics, readiness::Readiness};

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(options) => run(options),
        Command::Check(options) => {
            let probes = kernel::probe::all(&options.cgroup);
            println!("{}", kernel::probe::table(&probes));
            match kernel::probe::missing(&probes) {
                None => Ok(()),
                Some(what) => Err(anyhow::anyhow!("this machine cannot capture: {what}")),
            }
        }
        Command::Cleanup(options) => kernel::cleanup(&options.pins).context("remove what is pinned"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("redirector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(options: RunOptions) -> anyhow::Result<()> {
    let (control, _guard) = logs::start(options.log_format, &options.log)?;
    let stop = stop_on_signals()?;
    let readiness = Readiness::default();
    let (kernel_ready, pods_ready) = (readiness.task("kernel programs"), readiness.task("pods of this node"));
    let metrics = Metrics::default();

    let capture = Capture::open(&options.capture()).context("prepare the kernel; `redirector check` says what is missing")?;
    kernel_ready.ready();
    tracing::info!(node = options.node, pins = %options.pins.display(), cgroup = %options.cgroup.display(), "capture is in place");

    let source = tropis_source::open(&options.source)?;
    let (zds, zds_events) = zds::Zds::new();
    let enroller = Enroller::new(options.enrolment(), &options.cgroup, capture, source, zds.clone(), zds_events);
    let status = enroller.status();
    metrics.register(|registry| admin::register(registry, &status, &zds));

    let router = admin::routes(status).merge(tropis_telemetry::admin::metrics_routes(metrics));
    let router = router.merge(tropis_telemetry::admin::readiness_routes(readiness)).merge(tropis_telemetry::admin::logging_routes(control));
    let router = router.merge(tropis_telemetry::admin::version_routes(env!("CARGO_PKG_VERSION")));
    let listener = tropis_telemetry::admin::AdminListener::bind(&AdminAddress::Unix(options.admin.clone())).await?;
    tokio::spawn(listener.serve(router, stop.clone().cancelled_owned()));

    let foreign = options.foreign_proxy.then(|| ForeignProxies::open(&options.capture())).transpose()?;
    let listen = zds::Listen { path: options.zds.clone(), proxy: options.proxy(), foreign: foreign.map(Arc::new) };
    enroller.run(listen, pods_ready, stop).await?;
    tracing::info!("ended; capture stays in place");
    Ok(())
}

fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(token)
}
