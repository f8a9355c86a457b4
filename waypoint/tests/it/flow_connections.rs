//! What happens to connections while they open, and while they are open.

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tropis_model::{
    policy::{PolicyKey, StringMatch},
    request_policy::{Attachment, RequestAction, RequestPolicy, RequestRule, SourceMatch},
    resolve::HBONE_PORT,
    route::{Host, PortProtocol},
    service::AppProtocol,
    view::Change,
};

use crate::world::{World, full, host, own_address, pool, run};

/// The service `db` as plain TCP.
fn db() -> Host {
    host("db", PortProtocol::Tcp, Vec::new(), vec![pool("db", None)])
}

/// A policy that denies `account` of `shop` everything.
pub(crate) fn denies(account: &str) -> RequestPolicy {
    let principal = StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
    let source = SourceMatch { principals: vec![principal], ..SourceMatch::default() };
    RequestPolicy {
        key: PolicyKey("shop/denies".into()),
        attachment: Attachment::Target,
        action: RequestAction::Deny,
        rules: vec![RequestRule { from: vec![source], ..RequestRule::default() }],
        dry_run: false,
    }
}

/// The host with this policy.
pub(crate) fn under(policy: RequestPolicy, host: Host) -> Change {
    Change::Host(Host { policies: vec![policy.into()], ..host }.into())
}

#[test]
fn a_denial_that_comes_while_the_endpoint_is_connected_to_holds() {
    run(async {
        let world = World::new();
        world.service("db", "10.96.0.3", AppProtocol::Tcp, db());
        let mut app = world.tunnelled(own_address(), "db", |_| std::future::ready(Response::new(full("let in")))).await;
        // Where its tunnels seem to arrive, nobody answers before somebody carries them on.
        let listener = TcpListener::bind((own_address(), HBONE_PORT)).await.unwrap();
        let arrives = app.address.ip();
        app.address.set_ip(listener.local_addr().unwrap().ip());
        world.endpoint("db", "v1", &app);
        let mut caller = world.tunnel("cart", "10.96.0.3:9080").await.unwrap();
        let (mut waiting, _) = listener.accept().await.unwrap();
        world.apply([under(denies("cart"), db())]);
        let mut on = TcpStream::connect((arrives, HBONE_PORT)).await.unwrap();
        spawn_local(async move { tokio::io::copy_bidirectional(&mut waiting, &mut on).await });
        // It may be closed before or after this is taken.
        let _ = caller.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = caller.read_to_end(&mut answer).await;
        assert_eq!(String::from_utf8_lossy(&answer), "");
    });
}
