//! The bench, played short: every figure is there for both sides, and what it leaves on the box is nothing. The figures themselves
//! mean nothing at this length; `cargo xtask bench` makes the ones that do.

use std::time::Duration;

use tropis_tests::bench::measure::Placement;
use tropis_tests::bench::{self, Options, Peer, PeerKind};
use tropis_tests::{Lab, Progress};

#[test]
fn every_figure_is_measured_with_and_without_the_mesh() {
    if let Some(reason) = Lab::impossible() {
        assert_ne!(std::env::var("TROPIS_E2E").as_deref(), Ok("require"), "the bench cannot run here: {reason}");
        eprintln!("SKIPPED, nothing was shown: {reason}");
        return;
    }
    // A test's binary lies one folder below the programs.
    let own = std::env::current_exe().expect("a running program has a path");
    let programs = own.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    let programs = std::env::var_os("TROPIS_BIN").map_or(programs, Into::into);
    // Started as a peer is, ours knows as little of our maps as Istio's.
    let peer = Peer { kind: PeerKind::IstioZtunnel, binary: programs.join("ztunnel") };
    let absent = Peer { kind: PeerKind::IstioZtunnel, binary: "/nonexistent/ztunnel".into() };
    let options = Options {
        run: "benchtest".to_owned(),
        rounds: 1,
        duration: Duration::from_millis(300),
        ipv6: true,
        placements: vec![Placement::AcrossNodes],
        peers: vec![peer, absent],
        json: None,
        programs: Some(programs),
    };
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let report = runtime.block_on(bench::run(&options, &Progress::stderr())).unwrap_or_else(|error| panic!("{error:?}"));
    println!("{}", report.table());
    assert_eq!(report.comparisons.len(), 5);
    for comparison in &report.comparisons {
        let names: Vec<&str> = comparison.series.iter().map(|series| series.variant.as_str()).collect();
        assert_eq!(names, ["no mesh", "Tropis", "istio-ztunnel"], "{comparison:?}\n{:?}", report.missing);
        for series in &comparison.series {
            assert!(series.samples.len() == 1 && series.median_per_second > 0.0, "{series:?}");
        }
        assert!(comparison.series[1..].iter().all(|series| series.ratio.is_some_and(|ratio| ratio > 0.0)));
        assert_eq!(comparison.series[0].proxy_processors, 0.0, "nothing of ours runs without the mesh");
    }
    let ztunnels = report.resident.iter().filter(|process| process.program.starts_with("ztunnel"));
    assert!(
        ztunnels.filter(|process| process.idle_kib > 0 && process.peak_kib >= process.loaded_kib).count() == 4,
        "{:?}",
        report.resident
    );
    assert!(report.missing.len() == 1 && report.missing[0].contains("/nonexistent/ztunnel"), "{:?}", report.missing);
    let left: Vec<_> = std::fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("benchtest")), "{left:?}");
}
