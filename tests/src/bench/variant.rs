//! The labs that are compared: no mesh, Tropis, and a lab for each peer. The pods are the same in all (`pods.yaml`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::measure::{Figure, HTTP_PORT, Placement};
use super::processes::{self, Memory};
use super::report::Resident;
use super::{Options, Peer, SLACK};
use crate::cluster::seed::CONTROL_NODE;
use crate::lab::{Lab, LabOptions, PodHandle};
use crate::network::addresses::Family;
use crate::programs::Program;
use crate::progress::Progress;
use crate::testkit::{Exchange, Load, read};

/// Client and servers; placeholders for what differs between variants.
const PODS: &str = include_str!("pods.yaml");
const NAMESPACE: &str = "bench";
const NODES: [&str; 2] = ["a", "b"];
/// Programs of ours that a peer's lab runs too.
const SHARED: [&str; 6] = ["tropisd", "redirector", "ztunnel", "tropis-testkit", "tropis-lab", "bookinfo"];

/// One side of the comparison: a lab and its pods.
#[derive(Debug)]
pub(super) struct Variant {
    pub(super) name: String,
    lab: Lab,
    client: PodHandle,
    meshed: bool,
    /// A peer's folder of binaries, for as long as its lab lives.
    _folder: Option<TempDir>,
}

/// Starts the variants that always take part: no mesh, which is the baseline, and Tropis.
pub(super) async fn own(options: &Options, folder: &Path, progress: &Progress) -> anyhow::Result<Vec<Variant>> {
    let mut variants = Vec::new();
    for (name, run, meshed) in [("no mesh", format!("{}base", options.run), false), ("Tropis", options.run.clone(), true)] {
        match Variant::start(name, &run, folder, None, meshed, options.family(), progress).await {
            Ok(variant) => variants.push(variant),
            Err(error) => {
                down(variants).await;
                return Err(error.context(format!("the lab for {name:?}")));
            }
        }
    }
    Ok(variants)
}

/// Starts a lab with the peer's binary in place of our ztunnel, under our redirector, which captures for it as for a proxy that does
/// not know our maps, and tropisd.
pub(super) async fn of_peer(options: &Options, folder: &Path, peer: &Peer, number: usize, progress: &Progress) -> anyhow::Result<Variant> {
    let replaced = replace_ztunnel(folder, &peer.binary)?;
    let path = replaced.path().to_owned();
    let run = format!("{}peer{number}", options.run);
    Variant::start(peer.kind.name(), &run, &path, Some(replaced), true, options.family(), progress).await
}

/// Ends all labs; each cleans up after itself even if that fails, so the first error is not worth losing the figures for.
pub(super) async fn down(variants: Vec<Variant>) {
    for variant in variants {
        if let Err(error) = variant.lab.down().await {
            tracing::warn!(variant = variant.name, error = %error, "lab not taken down cleanly");
        }
    }
}

/// A folder where `ztunnel` is the peer's binary and all else is ours.
fn replace_ztunnel(folder: &Path, binary: &Path) -> anyhow::Result<TempDir> {
    let binary = fs::canonicalize(binary).with_context(|| format!("{} cannot be found", binary.display()))?;
    ensure!(binary.is_file(), "{} is no file", binary.display());
    let folder = fs::canonicalize(folder).with_context(|| format!("{} cannot be found", folder.display()))?;
    let replaced = tempfile::Builder::new().prefix("tropis-bench-").tempdir().context("cannot make a folder for the binaries")?;
    for program in SHARED {
        let to = if program == Program::Ztunnel.name() { binary.clone() } else { folder.join(program) };
        symlink(&to, replaced.path().join(program)).with_context(|| format!("cannot link to {}", to.display()))?;
    }
    // The proxy runs as a user of its own, which must be able to look into the folder.
    fs::set_permissions(replaced.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .context("cannot open the folder of the binaries")?;
    Ok(replaced)
}

fn manifests(meshed: bool) -> String {
    let mode = if meshed { "ambient" } else { "none" };
    PODS.replace("MODE", mode)
}

impl Variant {
    async fn start(
        name: &str,
        run: &str,
        folder: &Path,
        replaced: Option<TempDir>,
        meshed: bool,
        family: Family,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        progress.step(format!("lab for {name:?}"));
        let lab_options = LabOptions {
            mesh: meshed,
            foreign_proxy: replaced.is_some(),
            programs: Some(folder.to_owned()),
            progress: progress.clone(),
            ..LabOptions::new(run)
        };
        let lab = Lab::start(lab_options).await?;
        let client = match prepare(&lab, meshed).await {
            Ok(client) => client,
            Err(error) => {
                lab.down().await.context("taking the lab down after it failed")?;
                return Err(error);
            }
        };
        let variant = Self { name: name.to_owned(), lab, client, meshed, _folder: replaced };
        if let Err(error) = variant.prove(family).await {
            down(vec![variant]).await;
            return Err(error);
        }
        Ok(variant)
    }

    /// Figures of a mesh that was not in the way would be worthless: each server must be reached, and through the proxy if and only if
    /// this is a mesh.
    async fn prove(&self, family: Family) -> anyhow::Result<()> {
        for placement in [Placement::AcrossNodes, Placement::SameNode] {
            let before = self.lab.access_log(NODES[0]).len();
            let url = format!("http://{}:{HTTP_PORT}/ping", host(placement));
            let answer: Exchange =
                self.client.run(&["get", &url, family.flag()]).await.with_context(|| format!("{url} from {}", self.name))?;
            ensure!(answer.ok, "{url} failed: {answer:?}");
            if self.meshed {
                let seen =
                    self.lab.wait_access_line(NODES[0], "a line of the connection", |_| self.lab.access_log(NODES[0]).len() > before);
                seen.await.with_context(|| format!("connections {placement} do not pass the proxy of {:?}", self.name))?;
            }
        }
        Ok(())
    }

    /// Runs one load from the client pod.
    pub(super) async fn load(&self, figure: Figure, placement: Placement, family: Family, duration: Duration) -> anyhow::Result<Load> {
        let arguments = figure.arguments(host(placement), family.flag(), duration);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = self.client.exec_for(&arguments, duration + SLACK).await?;
        let load: Load = read(&said.stdout)?;
        if !load.ok {
            bail!("the load failed: {}", said.stdout.trim());
        }
        Ok(load)
    }

    /// The processes that the mesh adds: name and process id.
    fn processes(&self) -> Vec<(String, u32)> {
        let per_node = [Program::Ztunnel, Program::Redirector].into_iter().flat_map(|program| NODES.map(|node| (program, node)));
        let all = per_node.chain([(Program::Tropisd, CONTROL_NODE)]);
        all.filter_map(|(program, node)| Some((format!("{program} on {node}"), self.lab.programs().process_id(program, node)?))).collect()
    }

    /// Processor time that they took so far.
    pub(super) fn proxy_time(&self) -> Duration {
        self.processes().iter().filter_map(|(_, process)| processes::processor_time(*process)).sum()
    }

    /// Their memory now.
    pub(super) fn memory(&self) -> Vec<(String, Memory)> {
        self.processes().into_iter().filter_map(|(name, process)| Some((name, processes::memory(process)?))).collect()
    }

    /// Their memory before and after, for the report.
    pub(super) fn resident(&self, idle: Vec<(String, Memory)>) -> Vec<Resident> {
        let loaded = self.memory();
        let after = |name: &str| loaded.iter().find(|(other, _)| other == name).map(|(_, memory)| *memory);
        let rows = idle.into_iter().filter_map(|(program, idle)| {
            let loaded = after(&program)?;
            let (idle_kib, loaded_kib, peak_kib) = (idle.resident_kib, loaded.resident_kib, loaded.peak_kib);
            Some(Resident { variant: self.name.clone(), program, idle_kib, loaded_kib, peak_kib })
        });
        rows.collect()
    }
}

/// Applies the pods and waits until all are ready, and captured if they are to be.
async fn prepare(lab: &Lab, meshed: bool) -> anyhow::Result<PodHandle> {
    lab.apply(&manifests(meshed))?;
    let mut client = None;
    for name in [host(Placement::SameNode), host(Placement::AcrossNodes), "client"] {
        let pod = lab.pod(NAMESPACE, name).await?;
        if meshed {
            lab.wait_enrolled(&pod, true).await?;
        }
        client = Some(pod);
    }
    client.context("the bench has a client")
}

/// Name of the pod and of the Service in front of it.
fn host(placement: Placement) -> &'static str {
    match placement {
        Placement::AcrossNodes => "across-nodes",
        Placement::SameNode => "same-node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_takes_the_place_of_ztunnel_alone() {
        let ours = tempfile::tempdir().unwrap();
        let peer = ours.path().join("peer");
        fs::write(&peer, "peer").unwrap();
        for program in SHARED {
            fs::write(ours.path().join(program), program).unwrap();
        }
        let folder = replace_ztunnel(ours.path(), &peer).unwrap();
        for program in SHARED {
            let expected = if program == "ztunnel" { "peer" } else { program };
            assert_eq!(fs::read_to_string(folder.path().join(program)).unwrap(), expected);
        }
        assert!(replace_ztunnel(ours.path(), Path::new("/nonexistent/ztunnel")).is_err());
    }

    #[test]
    fn manifests_say_who_is_in_the_mesh() {
        assert!(manifests(true).contains("istio.io/dataplane-mode: ambient"));
        assert!(manifests(false).contains("istio.io/dataplane-mode: none"));
        for host in [Placement::AcrossNodes, Placement::SameNode].map(host) {
            assert_eq!(PODS.matches(&format!("name: {host}")).count(), 2, "a pod and a service");
        }
    }
}
