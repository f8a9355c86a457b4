//! Admin sockets of waypoints: `sockets/waypoint.NAMESPACE.POD.sock` leads to the admin port on the pod's loopback, as a port-forward
//! would on Kubernetes. So whoever looks for programs in the state directory finds waypoints as he finds the agents.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::images::Images;
use super::{Kubelet, RunningPod, spec_containers};
use crate::cluster::object::Key;
use crate::layout::Layout;
use crate::port_forward;

/// Where a waypoint answers questions about itself, on its loopback.
pub const ADMIN_PORT: u16 = 15000;

/// A socket that leads into a pod; it goes when this is dropped.
pub(super) struct AdminSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.task.abort();
        // The state directory goes as a whole at the end; that it is gone already is no matter.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the admin socket of a waypoint's pod is.
pub fn socket(layout: &Layout, pod: &Key) -> PathBuf {
    layout.sockets().join(format!("waypoint.{}.{}.sock", pod.namespace, pod.name))
}

/// Makes the socket of a pod, if it is a waypoint's.
pub(super) fn publish(kubelet: &Kubelet, pod: &Arc<RunningPod>, template: &Value) -> Option<AdminSocket> {
    spec_containers(template).find(|container| Images::is_waypoint(container["image"].as_str().unwrap_or_default()))?;
    let path = socket(&kubelet.layout, &pod.key);
    match listen(&path, pod.clone()) {
        Ok(task) => Some(AdminSocket { path, task }),
        Err(error) => {
            kubelet.progress.step(format!("{}: no admin socket at {}: {error}", pod.key, path.display()));
            None
        }
    }
}

fn listen(path: &Path, pod: Arc<RunningPod>) -> io::Result<JoinHandle<()>> {
    let listener = UnixListener::bind(path)?;
    Ok(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(port_forward::pass_on(stream, pod.network.namespace.clone(), ADMIN_PORT));
        }
    }))
}
