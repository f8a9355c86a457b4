//! A shop for scenarios of layer 7: two clients on node `a`, an application in three versions on each node, and a waypoint before it.
//! The application of node `a` is service `near`, that of node `b` service `far`; each speaks every protocol, on a port of its own.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use serde::de::DeserializeOwned;
use tropis_tests::lab::waypoint::Addressed;
use tropis_tests::testkit::calls::{Behaviour, Calls, Seen};
use tropis_tests::{Family, Lab, PodHandle, wait};

/// Where the application listens.
pub(crate) const APP: u16 = 8080;
/// Ten times what a change of configuration needs to get everywhere.
pub(crate) const CHANGE: Duration = Duration::from_secs(10);
/// A command with thousands of requests may take this long.
pub(crate) const LOAD: Duration = Duration::from_secs(120);

/// What is spoken to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    Grpc,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    /// The option of the testkit.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Grpc => "grpc",
        }
    }

    /// The port of each service, and its name there.
    fn port(self) -> (u16, &'static str) {
        match self {
            Self::Http1 => (80, "http"),
            Self::Http2 => (82, "http2"),
            Self::Grpc => (83, "grpc"),
        }
    }
}

/// A way to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) family: Family,
    pub(crate) service: &'static str,
    pub(crate) protocol: Protocol,
}

impl Way {
    /// Both families, the same node and the other one, every protocol.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let services = Family::BOTH.into_iter().flat_map(|family| ["near", "far"].map(|service| (family, service)));
        services.flat_map(|(family, service)| Protocol::ALL.map(|protocol| Self { family, service, protocol }))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.service == "near" { "on one node" } else { "across nodes" };
        write!(formatter, "{} by {} {place}", self.protocol.flag(), self.family)
    }
}

/// The namespace with its pods.
pub(crate) struct Shop<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) namespace: &'static str,
    /// Runs as account `client`, on node `a`.
    pub(crate) client: PodHandle,
    /// Runs as account `other`, on node `a`.
    pub(crate) other: PodHandle,
}

/// The versions of each service.
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

impl<'a> Shop<'a> {
    /// Makes the namespace, enrolled, and waits for its pods.
    pub(crate) async fn open(lab: &'a Lab, namespace: &'static str) -> anyhow::Result<Self> {
        lab.apply(&objects(namespace))?;
        let (client, other) = tokio::try_join!(lab.pod(namespace, "client"), lab.pod(namespace, "other"))?;
        let shop = Self { lab, namespace, client, other };
        for pod in [&shop.client, &shop.other].into_iter().chain(&shop.applications().await?) {
            lab.wait_enrolled(pod, true).await?;
        }
        Ok(shop)
    }

    /// The same with a waypoint for the namespace, through which both services' traffic goes.
    pub(crate) async fn with_waypoint(lab: &'a Lab, namespace: &'static str) -> anyhow::Result<Self> {
        let shop = Self::open(lab, namespace).await?;
        lab.waypoint(namespace, "waypoint", &[]).await?;
        lab.label("Namespace", "", namespace, &[("istio.io/use-waypoint", Some("waypoint"))])?;
        for service in ["near", "far"] {
            lab.wait_attached(namespace, Addressed::Service(service), true).await?;
        }
        Ok(shop)
    }

    /// All pods of the application.
    pub(crate) async fn applications(&self) -> anyhow::Result<Vec<PodHandle>> {
        let names = ["near", "far"].into_iter().flat_map(|service| VERSIONS.map(|version| format!("{service}-{version}")));
        Ok(try_join_all(names.map(|name| async move { self.lab.pod(self.namespace, &name).await })).await?)
    }

    /// The pod of a version of a service.
    pub(crate) async fn application(&self, service: &str, version: &str) -> anyhow::Result<PodHandle> {
        Ok(self.lab.pod(self.namespace, &format!("{service}-{version}")).await?)
    }

    /// The URL of a way, by the service's address.
    pub(crate) fn url(&self, way: Way, path: &str) -> anyhow::Result<String> {
        let address = self.lab.service_address(self.namespace, way.service, way.family).context("the service's address")?;
        Ok(format!("http://{}{path}", std::net::SocketAddr::new(address, way.protocol.port().0)))
    }

    /// Calls as `pod`, with more options of the testkit's `call`.
    pub(crate) async fn call(&self, pod: &PodHandle, way: Way, path: &str, options: &[&str]) -> anyhow::Result<Calls> {
        let url = self.url(way, path)?;
        let authority = format!("{}:{}", way.service, way.protocol.port().0);
        let mut arguments = vec!["call", url.as_str(), "--protocol", way.protocol.flag(), "--authority", authority.as_str()];
        arguments.extend(options);
        Ok(pod.run_for(&arguments, LOAD).await?)
    }

    /// Calls as `pod` until the answer is as wanted; it never takes longer than a change needs.
    pub(crate) async fn call_until(
        &self,
        pod: &PodHandle,
        way: Way,
        path: &str,
        options: &[&str],
        wanted: impl Fn(&Calls) -> bool,
    ) -> anyhow::Result<Calls> {
        let mut last = Calls::default();
        let what = format!("{way}: {path} {options:?} to be answered as wanted");
        let found = wait::until(CHANGE, &what, async || {
            last = self.call(pod, way, path, options).await.ok()?;
            wanted(&last).then(|| last.clone())
        });
        found.await.with_context(|| format!("the last answers were {last:?}"))
    }

    /// Tells a pod of the application how to behave from now on; from inside, past the mesh.
    pub(crate) async fn behave(&self, pod: &PodHandle, behaviour: &Behaviour) -> anyhow::Result<()> {
        let text = serde_json::to_string(behaviour)?;
        let url = format!("http://127.0.0.1:{APP}/-/behaviour");
        let said: Calls = pod.run(&["call", &url, "-X", "PUT", "--text", &text]).await?;
        ensure!(said.statuses.contains_key(&200), "{}: {said:?}", pod.key());
        Ok(())
    }

    /// What a pod of the application saw so far, and which of these requests were among it.
    pub(crate) async fn seen(&self, pod: &PodHandle, nonces: &[&str]) -> anyhow::Result<Seen> {
        self.ask(pod, &format!("/-/seen?nonces={}", nonces.join(","))).await
    }

    /// How many different numbered requests have reached the application, and how many of these `lost` ones; an error if one came twice.
    pub(crate) async fn reached(&self, lost: &[&str]) -> anyhow::Result<(u64, u64)> {
        let (mut reached, mut known) = (0, 0);
        for pod in self.applications().await? {
            let seen = self.seen(&pod, lost).await?;
            ensure!(seen.repeated.is_empty(), "{} got requests twice: {:?}", pod.key(), seen.repeated);
            reached += seen.nonces;
            known += seen.known.len() as u64;
        }
        Ok((reached, known))
    }

    /// Holds what has reached the application since it was `before` to what was served, and those of the others that got through: nothing
    /// came twice, neither to one pod nor to two.
    pub(crate) async fn none_twice(&self, before: u64, loads: &[Calls]) -> anyhow::Result<()> {
        let lost: Vec<&str> = loads.iter().flat_map(|calls| calls.lost.iter().map(String::as_str)).collect();
        let (reached, late) = self.reached(&lost).await?;
        let (reached, served) = (reached - before, loads.iter().map(Calls::served).sum::<u64>());
        println!("{reached} requests reached the application: {served} were served, {late} of {} others had got through", lost.len());
        ensure!(reached == served + late, "{reached} requests reached the application, {served} were served, {late} got through");
        Ok(())
    }

    async fn ask<T: DeserializeOwned>(&self, pod: &PodHandle, path: &str) -> anyhow::Result<T> {
        let said: Calls = pod.run(&["call", &format!("http://127.0.0.1:{APP}{path}")]).await?;
        serde_json::from_str(&said.last_body).with_context(|| format!("{}: {said:?}", pod.key()))
    }

    /// Takes the namespace away, with these objects besides its own: `(kind, name)`.
    pub(crate) fn close(self, more: &[(&str, &str)]) -> anyhow::Result<()> {
        for (kind, name) in more {
            self.lab.delete(kind, self.namespace, name)?;
        }
        for service in ["near", "far"] {
            self.lab.delete("Service", self.namespace, service)?;
            for version in VERSIONS {
                self.lab.delete("Pod", self.namespace, &format!("{service}-{version}"))?;
            }
        }
        for name in ["client", "other"] {
            self.lab.delete("Pod", self.namespace, name)?;
        }
        self.lab.delete("Namespace", "", self.namespace).context("taking the namespace away")
    }
}

/// Milliseconds since 1970, as timelines of the testkit have them.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

fn objects(namespace: &str) -> String {
    let mut yaml =
        format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels: {{istio.io/dataplane-mode: ambient}}\n");
    for account in ["client", "other", "near", "far"] {
        yaml += &format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}\n");
    }
    for name in ["client", "other"] {
        yaml += &pod(namespace, name, name, "a", "", &[]);
    }
    for (service, node) in [("near", "a"), ("far", "b")] {
        for version in VERSIONS {
            yaml += &pod(namespace, &format!("{service}-{version}"), service, node, version, &[("app", service)]);
        }
        yaml += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {namespace}}}\nspec:\n  selector: {{app: {service}}}\n  ports:\n"
        );
        for protocol in Protocol::ALL {
            let (port, name) = protocol.port();
            yaml += &format!("  - {{name: {name}, port: {port}, targetPort: {APP}}}\n");
        }
    }
    yaml
}

/// A pod of the application.
pub(crate) fn pod(namespace: &str, name: &str, account: &str, node: &str, version: &str, labels: &[(&str, &str)]) -> String {
    let labels: String = labels.iter().map(|(label, value)| format!(", {label}: {value}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{version: \"{version}\"{labels}}}\nspec:\n  serviceAccountName: {account}\n  \
         nodeName: {node}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: testkit\n    image: tropis/testkit\n    \
         args: [\"serve\", \"--app\", \"{APP}\", \"--quiet\", \"--service-version\", \"{version}\"]\n    ports: [{{containerPort: {APP}}}]\n"
    )
}
