//! What the running proxies hold: certificates and log levels, over their admin sockets.

use anyhow::bail;
use tropis_compile::{index::Key, waypoint::GATEWAY_NAME};
use tropis_model::identity::Identity;

use super::Subject;
use crate::{
    admin,
    arguments::Format,
    commands::ztunnel_config,
    mesh::Mesh,
    output::Listing,
    pods::{self, text},
    state::{Socket, State},
};

/// The program's name in the state directory.
const WAYPOINT: &str = "waypoint";

/// A pod's certificate is held by its node proxy, a waypoint's by itself.
pub(super) async fn secret(state: &State, mesh: &Mesh, subject: &Subject, format: Format) -> anyhow::Result<String> {
    let nothing = "No certificate is held; `tropis logs tropisd` may say why.";
    match subject {
        Subject::Pod(pod) => {
            let proxies = pods::dumps(state, None).await?;
            let own = pods::of_pod(&proxies, pod)?;
            let account = own.pods().find(|state| text(state, "/info/name") == pod.name && text(state, "/info/namespace") == pod.namespace);
            let account = account.map_or("", |state| text(state, "/info/serviceAccount"));
            let identity = Identity::new(mesh.index().settings().trust_domain.clone(), pod.namespace.as_str(), account);
            ztunnel_config::certificates(&proxies, Some(&identity.to_string())).render(format, nothing)
        }
        Subject::Waypoint(key) => {
            let mut rows = Vec::new();
            for socket in waypoint_sockets(state, mesh, key)? {
                let dump = admin::json(&socket.path, "/config_dump").await?;
                let certificates = dump["certificates"].as_array().into_iter().flatten();
                rows.extend(certificates.map(|own| {
                    let parts = [
                        pod_of(&socket, key),
                        text(own, "/identity").to_owned(),
                        text(own, "/state").to_owned(),
                        text(own, "/serial").to_owned(),
                    ];
                    parts.to_vec()
                }));
            }
            Listing::new(&["PROXY", "CERTIFICATE NAME", "STATUS", "SERIAL NUMBER"], rows, Clone::clone).render(format, nothing)
        }
    }
}

/// The log level of a pod's node proxy, or of a waypoint.
pub(super) async fn log(
    (state, format): (&State, Format),
    mesh: &Mesh,
    subject: &Subject,
    level: Option<&str>,
    reset: bool,
) -> anyhow::Result<String> {
    match subject {
        Subject::Pod(pod) => {
            let proxies = pods::dumps(state, None).await?;
            let own = pods::of_pod(&proxies, pod)?;
            let told = ztunnel_config::levels(format, &[ztunnel_config::log(&own.socket, level, reset).await?])?;
            if format != Format::Table {
                return Ok(told);
            }
            let others = own.pods().count().saturating_sub(1);
            Ok(format!(
                "{told}The level is the proxy's: it serves {others} other pods too. `tropis logs {}.{}` shows this pod's lines.\n",
                pod.name, pod.namespace
            ))
        }
        Subject::Waypoint(key) => {
            let mut told = Vec::new();
            for socket in waypoint_sockets(state, mesh, key)? {
                told.push(ztunnel_config::log(&socket, level, reset).await?);
            }
            ztunnel_config::levels(format, &told)
        }
    }
}

/// The admin sockets of a waypoint's pods; an error if it has none.
pub(super) fn waypoint_sockets(state: &State, mesh: &Mesh, key: &Key) -> anyhow::Result<Vec<Socket>> {
    let sockets = sockets_of_waypoint(state, mesh, key)?;
    if sockets.is_empty() {
        bail!("no pod of waypoint {}/{} runs\n`tropis waypoint status {} -n {}` says more", key.0, key.1, key.1, key.0);
    }
    Ok(sockets)
}

/// `waypoint.NAMESPACE.POD.sock` for each pod that is labelled with the Gateway's name.
pub(super) fn sockets_of_waypoint(state: &State, mesh: &Mesh, key: &Key) -> anyhow::Result<Vec<Socket>> {
    let mut sockets = state.sockets()?;
    sockets.retain(|socket| {
        let pod = socket.node.split_once('.').map(|(namespace, pod)| (namespace.to_owned(), pod.to_owned()));
        let pod = pod.filter(|_| socket.program == WAYPOINT).and_then(|pod| mesh.index().pod(&pod));
        pod.is_some_and(|pod| pod.metadata.namespace == key.0 && pod.label(GATEWAY_NAME) == Some(&key.1))
    });
    Ok(sockets)
}

/// The pod behind a waypoint's socket: `waypoint-1.shop`.
pub(super) fn pod_of(socket: &Socket, key: &Key) -> String {
    let pod = socket.node.split_once('.').map_or(socket.node.as_str(), |(_, pod)| pod);
    format!("{pod}.{}", key.0)
}
