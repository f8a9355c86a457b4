//! What a peer with a certificate of the mesh may ask a tunnel for, and what not; and peers without one.

use std::{io::Write, net::SocketAddr, sync::Arc};

use tokio::task::LocalSet;
use tropis_hbone::{
    client::{Opened, Pool, PoolOptions, TunnelError, TunnelKey, TunnelRequest},
    headers::{Forwarded, TunnelHeaders},
};
use tropis_model::{identity::Identity, resolve::Authority, workload::WorkloadUid};
use tropis_net::dial::{self, DialFrom, DialOptions};
use tropis_tls::store::Certificates;

use crate::{
    log,
    mesh::{Mesh, MeshPod, PORT, connect, echo},
    network::{self, PodNetwork},
};

/// Asks `server` for a tunnel, as `caller` from `from`.
fn ask(mesh: &Mesh, from: &PodNetwork, caller: &Identity, server: &MeshPod, authority: &str) -> Result<(), TunnelError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let namespace = from.namespace.clone();
    LocalSet::new().block_on(&runtime, async {
        let pool = Pool::new(Certificates::new(mesh.authority.clone()), PoolOptions::default());
        let address = SocketAddr::new(server.network.v4, 15008);
        let key = TunnelKey {
            source: WorkloadUid("caller".into()),
            source_identity: caller.clone(),
            destination: server.workload.uid.clone(),
            address,
            network: "".into(),
            expected: Arc::from([server.workload.identity.clone()]),
        };
        let headers = TunnelHeaders {
            forwarded: Some(Forwarded { source: Some("10.99.99.99:9".parse().unwrap()), host: None }),
            ..TunnelHeaders::default()
        };
        let request = TunnelRequest { authority: authority.parse::<Authority>().unwrap(), headers };
        let dial = async move || dial::connect(Some(&namespace), DialFrom::Any, address, &DialOptions::default(), |_| Ok(())).await;
        pool.open(&key, &request, dial).await.map(|Opened { .. }| ())
    })
}

#[test]
fn a_tunnel_reaches_its_own_pod_and_nothing_else() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("authority");
    let (server, other) = (mesh.pod(1, "server", 2), mesh.pod(1, "other", 3));
    echo(&server.network);
    echo(&other.network);
    let from = mesh.stranger(9);
    let caller = Identity::new("cluster.local", "shop", "caller");
    assert!(ask(&mesh, &from, &caller, &server, &format!("{}:{PORT}", server.network.v4)).is_ok());
    let status = |authority: &str| match ask(&mesh, &from, &caller, &server, authority) {
        Err(TunnelError::Refused { status, .. }) => status.as_u16(),
        other => panic!("{authority}: {other:?}"),
    };
    // Another pod, the same pod by another address, the proxy itself, a closed port, a name that it does not serve.
    assert_eq!(status(&format!("{}:{PORT}", other.network.v4)), 400);
    assert_eq!(status("127.0.0.1:7000"), 400);
    assert_eq!(status(&format!("{}:15001", server.network.v4)), 503);
    assert_eq!(status(&format!("{}:1", server.network.v4)), 503);
    assert_eq!(status("other.shop.svc.cluster.local:80"), 503);
    // What the caller says about its address counts only if it is its own.
    let line = log::wait_for(&[("dst.workload", &server.name), ("reason", "bad_request")]);
    assert!(line["src.addr"].starts_with("10.77.0.9:"), "{}", line["src.addr"]);
}

#[test]
fn who_proves_nothing_gets_no_tunnel() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("untrusted");
    let server = mesh.pod(1, "server", 2);
    let stranger = mesh.stranger(9);
    let mut stream = connect(&stranger, server.network.v4, 15008).unwrap();
    let port = stream.local_addr().unwrap().port();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n").unwrap();
    drop(stream);
    let from = std::net::SocketAddr::from(([10, 77, 0, 9], port));
    let line = log::wait_for(&[("reason", "peer_untrusted"), ("src.addr", &from.to_string())]);
    assert_eq!(line["stage"], "identify");
    assert_eq!((&line["dst.workload"], &line["dst.addr"]), (&server.name, &format!("{}:15008", server.network.v4)));
    // A certificate of another trust domain, signed by the same root, is no better.
    let foreign = Identity::new("elsewhere.example", "shop", "caller");
    let refused = ask(&mesh, &stranger, &foreign, &server, &format!("{}:{PORT}", server.network.v4));
    assert!(matches!(refused, Err(TunnelError::Tls { .. } | TunnelError::Connection { .. })), "{refused:?}");
}
