//! What the node proxies say about themselves: one dump a node, and which of them serves a pod.

use anyhow::bail;
use serde_json::Value;

use crate::{
    admin,
    names::Name,
    state::{Socket, State},
};

/// The node proxy.
pub(crate) const ZTUNNEL: &str = "ztunnel";

/// The dump of one node proxy.
#[derive(Debug)]
pub(crate) struct NodeProxy {
    /// Where it is asked.
    pub(crate) socket: Socket,
    /// Its `/config_dump`.
    pub(crate) dump: Value,
}

impl NodeProxy {
    /// The entries of a list of the dump.
    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.dump[name].as_array().into_iter().flatten()
    }

    /// The pods that it serves, each with its state.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Value> {
        self.dump["workloadState"].as_object().into_iter().flat_map(|pods| pods.values())
    }

    /// What the proxy is called among the control plane's clients: its own pod, `ztunnel-x7k2p.istio-system`.
    pub(crate) fn name(&self) -> String {
        let own = self.list("workloads").find(|own| own["node"] == *self.socket.node && own["serviceAccount"] == ZTUNNEL);
        match own {
            Some(own) => format!("{}.{}", text(own, "/name"), text(own, "/namespace")),
            None => format!("{}.{}", self.socket.program, self.socket.node),
        }
    }

    fn serves(&self, pod: &Name) -> bool {
        self.pods().any(|state| state["info"]["name"] == *pod.name && state["info"]["namespace"] == *pod.namespace)
    }
}

/// The dumps of all node proxies, or of the one on `node`.
pub(crate) async fn dumps(state: &State, node: Option<&str>) -> anyhow::Result<Vec<NodeProxy>> {
    let mut sockets = state.sockets_of(ZTUNNEL)?;
    if let Some(node) = node {
        let known: Vec<String> = sockets.iter().map(|socket| socket.node.clone()).collect();
        sockets.retain(|socket| socket.node == node);
        if sockets.is_empty() {
            bail!("no {ZTUNNEL} runs on node {node:?}\nNodes with one: {}", known.join(", "));
        }
    }
    let mut proxies = Vec::new();
    for socket in sockets {
        let dump = admin::json(&socket.path, "/config_dump").await?;
        proxies.push(NodeProxy { socket, dump });
    }
    Ok(proxies)
}

/// The node proxy that serves a pod.
pub(crate) fn of_pod<'a>(proxies: &'a [NodeProxy], pod: &Name) -> anyhow::Result<&'a NodeProxy> {
    proxies.iter().find(|proxy| proxy.serves(pod)).ok_or_else(|| {
        anyhow::anyhow!(
            "pod {}/{} is served by no node proxy\n`tropis get pods -n {}` shows whether it exists and is in the mesh; \
             `tropis label namespace {} istio.io/dataplane-mode=ambient` puts it there",
            pod.namespace,
            pod.name,
            pod.namespace,
            pod.namespace
        )
    })
}

/// The text at a place of a dump; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
