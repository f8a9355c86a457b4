//! What a connection costs in memory before it carries a byte: the futures that are spawned for it.

use std::{rc::Rc, sync::Arc};

use tokio::{net::TcpListener, task::LocalSet};
use tropis_ztunnel::{
    inbound,
    node::{Pod, PodInfo},
    outbound, passthrough,
    worker::Node,
};

use crate::{mesh::Mesh, network};

/// Bytes for a connection of an application: the relay's two directions and the plan.
const CONNECTION_BYTES: usize = 4 * 1024;
/// Bytes for a tunnel connection, which many applications' connections share: TLS and HTTP/2 state.
const TUNNEL_BYTES: usize = 12 * 1024;

#[test]
fn journeys_are_small() {
    if !network::available() {
        return;
    }
    let mesh = Mesh::new("size");
    let shared = mesh.nodes[0].shared.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let node = Rc::new(Node::new(shared));
        let info = PodInfo { name: "a".into(), namespace: "b".into(), service_account: "c".into() };
        let pod = Arc::new(Pod::new("u".into(), info, None, Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = || async { tokio::net::TcpStream::connect(address).await.unwrap() };
        let sizes = [
            ("outbound", CONNECTION_BYTES, size_of_val(&outbound::serve(node.clone(), pod.clone(), stream().await, address))),
            ("passthrough", CONNECTION_BYTES, size_of_val(&passthrough::serve(node.clone(), pod.clone(), false, stream().await, address))),
            ("inbound", TUNNEL_BYTES, size_of_val(&inbound::serve(node.clone(), pod.clone(), false, stream().await, address))),
        ];
        for (name, limit, size) in sizes {
            println!("{name}: {size} bytes");
            assert!(size <= limit, "{name}: {size} bytes, {limit} at most");
        }
    });
}
