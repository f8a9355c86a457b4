//! `tropis explain` says what the programs do: random rules, routes and policies, each in force in a mesh of two nodes and a waypoint, and
//! random questions about them, each answered by the program and by real calls. The same is drawn as for the thousand questions of
//! `cli/tests/it/agreement.rs`, which ask the proxies' decisions alone.

mod called;
#[path = "../../cli/tests/it/agreement/drawn.rs"]
mod drawn;
mod expected;
mod in_force;
mod shown;

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, stream};
use tropis_model::resolve::Draw;
use tropis_tests::observe::AccessLine;
use tropis_tests::{Family, Lab, PodHandle, wait};

use crate::shop::CHANGE;
use crate::support::{Company, play};
use drawn::{Drawn, PODS, PORTS, Places, Question, document};
use expected::Explained;

/// Worlds of each stage.
const WORLDS: u64 = 8;
/// Questions asked about each.
const QUESTIONS: usize = 8;
/// Questions under way at once.
const AT_ONCE: usize = 3;
/// The pod that is not in the mesh.
const OUTSIDE: &str = "plain-1";
/// Nobody has this address in the lab.
const NOBODY: &str = "192.0.2.1:80";
/// Service `app` has no such port.
const NO_PORT: &str = "app.shop:81";
/// The file that holds what is drawn.
const FILE: &str = "drawn.yaml";

/// What goes through the waypoint. It only becomes more: what leaves a waypoint stays known there for a while.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Nothing,
    Service,
    PodsToo,
}

#[test]
fn explain_agrees_with_what_the_programs_do() {
    // Policies of the root namespace hold for everybody.
    play(Company::Alone, |lab| Box::pin(explain(lab)));
}

async fn explain(lab: &Lab) -> anyhow::Result<()> {
    let told = ask_all(lab).await;
    // Also after a failure: nobody else could call anybody.
    let _ = lab.remove(FILE);
    leave(lab)?;
    told
}

async fn ask_all(lab: &Lab) -> anyhow::Result<()> {
    lab.apply(&objects())?;
    let mesh = Mesh::gather(lab).await?;
    let (mut asked, mut kinds, mut disagreements) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for (number, stage) in [Stage::Nothing, Stage::Service, Stage::PodsToo].into_iter().enumerate() {
        attach(lab, stage).await?;
        for seed in (0..WORLDS).map(|world| number as u64 * WORLDS + world) {
            let drawn = Drawn::new(&mut Draw::new(seed), &mesh.places);
            lab.write(FILE, &drawn.yaml)?;
            in_force::wait(lab).await.with_context(|| format!("seed {seed}"))?;
            let questions = drawn.questions.iter().filter(|question| can_be_seen(question)).take(QUESTIONS);
            let answers = questions.enumerate().map(|(number, question)| mesh.ask(question, format!("{seed}-{number}")));
            let answers: Vec<_> = stream::iter(answers).buffered(AT_ONCE).collect().await;
            for answer in answers {
                let Answer { kind, disagreement } = answer?;
                asked += 1;
                *kinds.entry(kind).or_default() += 1;
                disagreements.extend(disagreement.map(|it| format!("{stage:?}, seed {seed}, {it}")));
            }
        }
    }
    println!("{asked} questions: {kinds:?}");
    ensure!(disagreements.is_empty(), "{} of {asked} disagree:\n{}", disagreements.len(), disagreements.join("\n"));
    // Questions that all end alike would show nothing.
    for kind in ["waypoint: allowed", "waypoint: refused", "tunnel: allowed", "tunnel: refused", "direct", "uncaptured"] {
        ensure!(kinds.keys().any(|known| known.starts_with(kind)), "no question ended {kind}: {kinds:?}");
    }
    shown::by_the_program(lab, &mesh.pods["client"]).await
}

/// Whether somebody answers or refuses; to wait in vain shows nothing. Kubernetes is silent about a port that a service has not.
fn can_be_seen(question: &Question) -> bool {
    question.destination != NOBODY && !(question.destination == NO_PORT && question.source.0 == OUTSIDE)
}

/// The mesh that is asked about.
struct Mesh<'a> {
    lab: &'a Lab,
    pods: BTreeMap<&'static str, PodHandle>,
    /// Names of pods, by address as it stands before a port.
    names: BTreeMap<String, String>,
    places: Places,
}

/// What was asked, and seen.
struct Answer {
    kind: String,
    disagreement: Option<String>,
}

impl<'a> Mesh<'a> {
    async fn gather(lab: &'a Lab) -> anyhow::Result<Self> {
        let pods =
            try_join_all(PODS.iter().map(|pod| async { Ok::<_, anyhow::Error>((pod.name, lab.pod(pod.namespace, pod.name).await?)) }));
        let pods: BTreeMap<_, _> = pods.await?.into_iter().collect();
        let mut names = BTreeMap::new();
        for (name, pod) in &pods {
            lab.wait_enrolled(pod, *name != OUTSIDE).await?;
            names.insert(pod.address(Family::V4).to_string(), (*name).to_owned());
            names.insert(format!("[{}]", pod.address(Family::V6)), (*name).to_owned());
        }
        let app = lab.service_address("shop", "app", Family::V4).context("service app has no address")?;
        let places = Places { client: pods["client"].address(Family::V4), app };
        Ok(Self { lab, pods, names, places })
    }

    /// Asks the program, makes the calls, and compares.
    async fn ask(&self, question: &Question, id: String) -> anyhow::Result<Answer> {
        let explained = self.explained(question).await?;
        let called = called::call(self.lab, &self.pods[question.source.0], question, &id).await?;
        let lines = self.logged(&id, explained.logged(question, &called)).await;
        let holds = explained.holds(question, &called, &lines, &self.names);
        let disagreement = holds.err().map(|error| format!("{question:?}: {error}\n  explained {explained:?}\n  called {called:?}\n"));
        Ok(Answer { kind: explained.kind(), disagreement })
    }

    async fn explained(&self, question: &Question) -> anyhow::Result<Explained> {
        let mut command = Command::new(self.lab.programs().folder.join("tropis"));
        command.arg("--state").arg(self.lab.layout().state()).args(question.arguments());
        let output = tokio::task::spawn_blocking(move || command.output()).await?.context("running tropis; is it built?")?;
        ensure!(output.status.success(), "{question:?}: {}", String::from_utf8_lossy(&output.stderr));
        let explained = expected::read(&String::from_utf8(output.stdout)?)?;
        explained.is_in_force().with_context(|| format!("{question:?}"))?;
        Ok(explained)
    }

    /// The requests of an id in the waypoint's log, which is written a moment after the answer: as soon as there are so many.
    async fn logged(&self, id: &str, count: usize) -> Vec<AccessLine> {
        let mut lines = Vec::new();
        let _ = wait::until(CHANGE, "the requests in the waypoint's log", async || {
            lines = self.lab.waypoint_access_log("shop", "waypoint");
            lines.retain(|line| line.field("request_id") == id);
            (lines.len() >= count).then_some(())
        })
        .await;
        lines
    }
}

/// Brings about a stage that follows the one before it.
async fn attach(lab: &Lab, stage: Stage) -> anyhow::Result<()> {
    let attached = [("istio.io/use-waypoint", Some("waypoint"))];
    match stage {
        Stage::Nothing => {}
        Stage::Service => {
            lab.waypoint("shop", "waypoint", &[("istio.io/waypoint-for", "all")]).await?;
            lab.label("Service", "shop", "app", &attached)?;
        }
        Stage::PodsToo => {
            for pod in PODS.iter().filter(|pod| pod.app == "app") {
                lab.label("Pod", pod.namespace, pod.name, &attached)?;
            }
            // From here on its policies decide about what routes of `app` bring to it.
            lab.label("Service", "shop", "plain", &attached)?;
        }
    }
    Ok(())
}

/// The namespaces, pods and services. No waypoint comes by itself: what has none is explained too.
fn objects() -> String {
    let mut yaml = String::new();
    for namespace in ["shop", "bank"] {
        let labels = "{istio.io/dataplane-mode: ambient, tropis.io/automatic-waypoint: 'false'}";
        document(&mut yaml, "v1", "Namespace", &format!("{{name: {namespace}, labels: {labels}}}"), "");
    }
    for pod in &PODS {
        let drawn::Pod { name, namespace, account, app, version, node } = pod;
        let outside = if *name == OUTSIDE { ", istio.io/dataplane-mode: none" } else { "" };
        let metadata = format!("{{name: {name}, namespace: {namespace}, labels: {{app: {app}, version: {version}{outside}}}}}");
        let arguments = "[serve, --quiet, --app, '8080', --app, '9090', --server-first, '8443']";
        let container = format!("{{name: main, image: tropis/testkit, args: {arguments}}}");
        let spec = format!(
            "spec: {{nodeName: {node}, serviceAccountName: {account}, terminationGracePeriodSeconds: 1, containers: [{container}]}}"
        );
        document(&mut yaml, "v1", "Pod", &metadata, &spec);
        // Two pods may share one; it is written twice, as the same.
        document(&mut yaml, "v1", "ServiceAccount", &format!("{{name: {account}, namespace: {namespace}}}"), "");
    }
    for (name, ports) in [("app", PORTS.join(", ")), ("plain", PORTS[0].to_owned())] {
        let spec = format!("spec: {{selector: {{app: {name}}}, ports: [{ports}]}}");
        document(&mut yaml, "v1", "Service", &format!("{{name: {name}, namespace: shop}}"), &spec);
    }
    yaml
}

/// Takes everything away that is there.
fn leave(lab: &Lab) -> anyhow::Result<()> {
    // After a failure the waypoint may not be there yet.
    let _ = lab.delete("Gateway", "shop", "waypoint");
    for name in ["app", "plain"] {
        lab.delete("Service", "shop", name)?;
    }
    for pod in &PODS {
        lab.delete("Pod", pod.namespace, pod.name)?;
        // The first of several pods took it away.
        let _ = lab.delete("ServiceAccount", pod.namespace, pod.account);
    }
    for namespace in ["shop", "bank"] {
        lab.delete("Namespace", "", namespace)?;
    }
    Ok(())
}
