//! The system bench: what a mesh costs, in figures. The same pods run in several labs side by side: without a mesh, with Tropis, and for
//! each peer with its binary in place of our ztunnel. All take turns within each round, so that a noisy minute hits them alike;
//! medians and ratios are made in [`report`]. What waypoints cost is measured by [`l7`] in labs of its own.
//!
//! Start reading at [`run`].

pub mod l7;
pub mod measure;
mod processes;
pub mod report;
mod variant;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::network::addresses::Family;
use crate::progress::Progress;
use measure::{FIGURES, Figure, Placement};
use report::{Comparison, Machine, Report, Resident, Sample};
use variant::Variant;

/// What a load may take beyond its duration: warm-up, connecting, reading what is still on its way.
const SLACK: Duration = Duration::from_secs(60);

/// A proxy of somebody else, to be measured beside or in place of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Whose it is.
    pub kind: PeerKind,
    /// Its binary.
    pub binary: PathBuf,
}

/// Proxies that the bench knows how to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerKind {
    /// Istio's ztunnel, with the environment that Istio documents: ZDS, xDS and certificates as ours, and nothing of our maps.
    IstioZtunnel,
    /// Envoy, beside the waypoint's plain HTTP path, with the same routes in its own configuration.
    Envoy,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Connections and bytes, without a mesh and with one.
    L4,
    /// Requests through a waypoint within the mesh, and without one.
    L7Hbone,
    /// Requests through the waypoint's plain HTTP path, beside Envoy if it is a peer.
    L7Plain,
}

impl PeerKind {
    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::IstioZtunnel => "istio-ztunnel",
            Self::Envoy => "envoy",
        }
    }
}

/// A peer that cannot be measured.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not KIND=PATH with a known kind (istio-ztunnel=PATH, envoy=PATH)")]
pub struct InvalidPeer(String);

impl FromStr for Peer {
    type Err = InvalidPeer;

    fn from_str(text: &str) -> Result<Self, InvalidPeer> {
        let parsed = text.split_once('=').filter(|(_, path)| !path.is_empty()).and_then(|(name, path)| {
            let kind = [PeerKind::IstioZtunnel, PeerKind::Envoy].into_iter().find(|kind| kind.name() == name)?;
            Some(Self { kind, binary: path.into() })
        });
        parsed.ok_or_else(|| InvalidPeer(text.to_owned()))
    }
}

/// What to measure, and how long.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The run's name: 1 to 18 lower-case letters and digits. The labs beside Tropis' get it with a word behind.
    #[arg(long, default_value = "bench")]
    pub run: String,
    /// Rounds, each of all variants; at least 3 for a median that means something.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Length of each measurement.
    #[arg(long = "seconds", value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub duration: Duration,
    /// Connect by IPv6.
    #[arg(long)]
    pub ipv6: bool,
    /// Between which pods.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Placement::AcrossNodes, Placement::SameNode])]
    pub placements: Vec<Placement>,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Section::L4, Section::L7Hbone, Section::L7Plain])]
    pub only: Vec<Section>,
    /// Only figures whose name has this in it, for example "HTTP/1.1, 16".
    #[arg(long, value_name = "TEXT")]
    pub figure: Option<String>,
    /// Worker threads of each L7 proxy, ours and a peer's.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub workers: usize,
    /// Another proxy to measure: istio-ztunnel=PATH in place of our node proxy, envoy=PATH beside our waypoint. May be repeated.
    #[arg(long = "peer", value_name = "KIND=PATH")]
    pub peers: Vec<Peer>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Folder of the programs; by default `TROPIS_BIN`, else that of the running one.
    #[arg(skip)]
    pub programs: Option<PathBuf>,
}

impl Options {
    fn family(&self) -> Family {
        if self.ipv6 { Family::V6 } else { Family::V4 }
    }

    fn wants(&self, figure: impl ToString) -> bool {
        self.figure.as_ref().is_none_or(|part| figure.to_string().to_lowercase().contains(&part.to_lowercase()))
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

/// Runs the bench, writes the JSON if asked to, and cleans up after itself. [`Report::table`] is for people.
///
/// # Errors
/// A lab does not start, pods are not captured, or a load fails; the error says which. A peer that does not work is no error: the
/// report says what is missing and why.
pub async fn run(options: &Options, progress: &Progress) -> anyhow::Result<Report> {
    ensure!(options.rounds > 0, "the bench needs at least one round");
    ensure!(options.workers > 0, "an L7 proxy needs at least one worker thread");
    let envoys = options.peers.iter().filter(|peer| peer.kind == PeerKind::Envoy).count();
    ensure!(envoys <= 1, "one Envoy can be a peer, not {envoys}");
    let folder = match &options.programs {
        Some(folder) => folder.clone(),
        None => own_folder()?,
    };
    let mut report =
        Report { machine: machine(&folder), rounds: options.rounds, seconds: options.duration.as_secs_f64(), ..Report::default() };
    for section in &options.only {
        match section {
            Section::L4 => l4(options, &folder, &mut report, progress).await?,
            Section::L7Hbone => report.l7.push(l7::through_the_mesh(options, &folder, progress).await?),
            Section::L7Plain => report.l7.push(l7::beside_peers(options, &folder, &mut report.missing, progress).await?),
        }
    }
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&report).context("the report does not fit JSON")?;
        fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(report)
}

async fn l4(options: &Options, folder: &Path, report: &mut Report, progress: &Progress) -> anyhow::Result<()> {
    let mut variants = variant::own(options, folder, progress).await?;
    let peers = options.peers.iter().filter(|peer| peer.kind == PeerKind::IstioZtunnel);
    for (number, peer) in peers.enumerate() {
        match variant::of_peer(options, folder, peer, number + 1, progress).await {
            Ok(variant) => variants.push(variant),
            Err(error) => report.missing.push(format!("{}: {error:#}", peer.kind.name())),
        }
    }
    let measured = measure_all(options, &variants, progress).await;
    variant::down(variants).await;
    (report.comparisons, report.resident) = measured?;
    Ok(())
}

async fn measure_all(options: &Options, variants: &[Variant], progress: &Progress) -> anyhow::Result<(Vec<Comparison>, Vec<Resident>)> {
    let idle: Vec<_> = variants.iter().map(Variant::memory).collect();
    let mut samples = vec![vec![Vec::new(); variants.len()]; rows(options).count()];
    for round in 0..options.rounds {
        for (row, (placement, figure)) in rows(options).enumerate() {
            progress.step(format!("round {} of {}: {figure}, {placement}", round + 1, options.rounds));
            for index in turn(round, variants.len()) {
                samples[row][index].push(one_sample(options, &variants[index], figure, placement).await?);
            }
        }
    }
    let resident = variants.iter().zip(idle).flat_map(|(variant, idle)| variant.resident(idle)).collect();
    let comparisons = rows(options).zip(samples).map(|((placement, figure), samples)| {
        let named = variants.iter().map(|variant| variant.name.clone()).zip(samples).collect();
        Comparison::new(figure, placement, named)
    });
    Ok((comparisons.collect(), resident))
}

fn rows(options: &Options) -> impl Iterator<Item = (Placement, Figure)> {
    let all = options.placements.iter().flat_map(|placement| FIGURES.map(|figure| (*placement, figure)));
    all.filter(|(_, figure)| options.wants(figure))
}

/// Who goes when: another one first in each round, so that none always inherits a warm or a tired machine.
fn turn(round: usize, variants: usize) -> impl Iterator<Item = usize> {
    (0..variants).map(move |index| (index + round) % variants)
}

async fn one_sample(options: &Options, variant: &Variant, figure: Figure, placement: Placement) -> anyhow::Result<Sample> {
    let before = variant.proxy_time();
    let load = variant
        .load(figure, placement, options.family(), options.duration)
        .await
        .with_context(|| format!("{figure}, {placement}, {}", variant.name))?;
    let spent = variant.proxy_time().saturating_sub(before);
    Ok(Sample {
        per_second: figure.per_second(&load),
        latency_microseconds: load.latency_microseconds,
        // What the warm-up took is in the time spent too.
        proxy_processors: spent.as_secs_f64() / (load.seconds + figure.warm_up().as_secs_f64()),
    })
}

fn machine(folder: &Path) -> Machine {
    let (kernel, processor, processors) = processes::machine();
    let profile = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Machine { kernel, processor, processors, profile }
}

/// `TROPIS_BIN`, or where the running program is.
fn own_folder() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TROPIS_BIN") {
        return Ok(folder.into());
    }
    let own = std::env::current_exe().context("the running program has no path")?;
    Ok(own.parent().context("the running program lies in no folder")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_their_path() {
        let peer: Peer = "istio-ztunnel=/opt/z".parse().unwrap();
        assert_eq!((peer.kind.name(), peer.binary.as_path()), ("istio-ztunnel", Path::new("/opt/z")));
        assert_eq!("envoy=/e".parse::<Peer>().map(|peer| peer.kind).ok(), Some(PeerKind::Envoy));
        for bad in ["envoy", "istio-ztunnel", "istio-ztunnel=", "other=/x", ""] {
            assert!(bad.parse::<Peer>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_round_starts_with_another_variant() {
        let turns = [0, 1, 2].map(|round| turn(round, 2).collect::<Vec<_>>());
        assert_eq!(turns, [vec![0, 1], vec![1, 0], vec![0, 1]]);
    }

    #[test]
    fn all_figures_for_all_placements() {
        let options = options(&[]);
        assert_eq!(rows(&options).count(), 2 * FIGURES.len());
        assert_eq!(options.family(), Family::V4);
    }

    #[test]
    fn options_as_typed() {
        let options = options(&["--seconds", "0.5", "--placements", "same-node", "--ipv6", "--peer", "istio-ztunnel=/z"]);
        assert_eq!((options.duration, &options.placements[..]), (Duration::from_millis(500), &[Placement::SameNode][..]));
        assert_eq!((options.family(), options.peers.len(), options.only.len()), (Family::V6, 1, 3));
        let options = self::options(&["--only", "l7-plain,l4", "--figure", "1 STREAM", "--workers", "2"]);
        assert_eq!((&options.only[..], options.workers), (&[Section::L7Plain, Section::L4][..], 2));
        assert_eq!(rows(&options).count(), 2, "one figure, two placements");
    }

    fn options(words: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        <Line as clap::Parser>::parse_from([&["bench"], words].concat()).options
    }
}
