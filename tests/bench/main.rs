//! The bench, played short: every figure is there for both sides, and what it leaves on the box is nothing. The figures themselves
//! mean nothing at this length; `cargo xtask bench` makes the ones that do.

use std::path::PathBuf;
use std::time::Duration;

use tropis_tests::bench::l7::report::Way;
use tropis_tests::bench::measure::Placement;
use tropis_tests::bench::report::Report;
use tropis_tests::bench::{self, Options, Peer, PeerKind, Section};
use tropis_tests::{Lab, Progress};

/// Where the programs are; none where no lab can run, which is told.
fn programs() -> Option<PathBuf> {
    if let Some(reason) = Lab::impossible() {
        assert_ne!(std::env::var("TROPIS_E2E").as_deref(), Ok("require"), "the bench cannot run here: {reason}");
        eprintln!("SKIPPED, nothing was shown: {reason}");
        return None;
    }
    // A test's binary lies one folder below the programs.
    let own = std::env::current_exe().expect("a running program has a path");
    let programs = own.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    Some(std::env::var_os("TROPIS_BIN").map_or(programs, Into::into))
}

fn play(options: &Options) -> Report {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let report = runtime.block_on(bench::run(options, &Progress::stderr())).unwrap_or_else(|error| panic!("{error:?}"));
    println!("{}", report.table());
    let left: Vec<_> = std::fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains(&options.run)), "{left:?}");
    report
}

fn short(run: &str, only: &[Section], programs: PathBuf) -> Options {
    Options {
        run: run.to_owned(),
        rounds: 1,
        duration: Duration::from_millis(300),
        ipv6: true,
        placements: vec![Placement::AcrossNodes],
        only: only.to_vec(),
        figure: None,
        workers: 1,
        peers: Vec::new(),
        json: None,
        programs: Some(programs),
    }
}

#[test]
fn every_figure_is_measured_with_and_without_the_mesh() {
    let Some(programs) = programs() else { return };
    // Started as a peer is, ours knows as little of our maps as Istio's.
    let peer = Peer { kind: PeerKind::IstioZtunnel, binary: programs.join("ztunnel") };
    let absent = Peer { kind: PeerKind::IstioZtunnel, binary: "/nonexistent/ztunnel".into() };
    let report = play(&Options { peers: vec![peer, absent], ..short("benchl4", &[Section::L4], programs) });
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
}

#[test]
fn requests_are_measured_through_waypoints_and_an_absent_peer_is_told() {
    let Some(programs) = programs() else { return };
    let absent = Peer { kind: PeerKind::Envoy, binary: "/nonexistent/envoy".into() };
    let options = short("benchl7", &[Section::L7Hbone, Section::L7Plain], programs);
    // Of each version of HTTP one.
    let report = play(&Options { figure: Some("16 KiB".to_owned()), peers: vec![absent], ..options });
    let variants: Vec<(Way, &[&str])> = vec![(Way::Hbone, &["no waypoint", "waypoint"]), (Way::Plain, &["Tropis"])];
    assert_eq!(report.l7.len(), variants.len());
    for (l7, (way, names)) in report.l7.iter().zip(variants) {
        assert_eq!((l7.way, l7.comparisons.len()), (way, 2), "{l7:?}");
        for comparison in &l7.comparisons {
            let found: Vec<&str> = comparison.series.iter().map(|series| series.variant.as_str()).collect();
            assert_eq!(found, names);
            for series in &comparison.series {
                let one = &series.samples[0];
                assert!(one.per_second > 0.0 && one.steady_per_second > 0.0 && one.per_processor_second > 0.0, "{series:?}");
                assert!(one.steady_latency_microseconds.p50 > 0.0, "{series:?}");
                assert_eq!(one.l7_per_processor_second.is_some(), series.variant != "no waypoint");
            }
        }
        let [proxy] = &l7.footprints[..] else { panic!("{:?}", l7.footprints) };
        assert!(proxy.idle_kib > 0 && proxy.peak_kib >= proxy.loaded_kib, "{proxy:?}");
    }
    assert!(report.missing.len() == 1 && report.missing[0].contains("/nonexistent/envoy"), "{:?}", report.missing);
}
