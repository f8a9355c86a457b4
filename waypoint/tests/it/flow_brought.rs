//! What a route brings to another service of this waypoint: that service's own policies decide about it, as it is sent on, wherever the
//! service goes meanwhile.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tropis_model::{
    request_policy::{Attachment, RequestPolicy},
    route::{Fault, FaultDelay, Host, HttpRoute, PortProtocol, RouteAction, TcpRoute},
    service::{AppProtocol, Service, ServicePort},
    view::Change,
    workload::{GatewayAddress, GatewayDestination},
};

use crate::{
    api_mesh::{Mesh, policy, request},
    flow_connections::{denies, echoes, under},
    world::{PORT, Seen, World, fetch, forward, get, host, name, plain_host, pool, route, run, says, to},
};

/// A policy of `ratings` with one rule about what is asked.
fn of_ratings(action: &str, rule: &Value) -> Value {
    let target = json!([{"group": "", "kind": "Service", "name": "ratings"}]);
    policy("p", &json!({"targetRefs": target, "action": action, "rules": [rule]}))
}

fn operation(field: &str, value: &str) -> Value {
    json!({"to": [{"operation": {field: [value]}}]})
}

#[test]
fn a_policy_of_where_a_route_leads_is_asked_about_the_request_as_it_is_sent() {
    run(async {
        let mesh = Mesh::new();
        let _apps = [mesh.says("reviews", "v1", "near", "v1").await, mesh.says("ratings", "v1", "near", "ratings").await];
        let to_ratings = |more: Value| {
            let mut rule = json!({"route": [{"destination": {"host": "ratings", "port": {"number": 9080}}}]});
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule
        };
        let rewritten = to_ratings(json!({"match": [{"uri": {"prefix": "/pub"}}], "rewrite": {"uri": "/admin"}}));
        let renamed = to_ratings(json!({"rewrite": {"authority": "ratings"}}));
        let changed = to_ratings(json!({"headers": {"request": {"set": {"x-role": "guest"}}}}));
        let header = |value: &str| json!({"when": [{"key": "request.headers[x-role]", "values": [value]}]});
        let called = json!({"when": [{"key": "destination.ip", "values": ["10.96.0.1"]}]});
        for (rule, path, action, asks, status) in [
            (&rewritten, "/pub/users", "DENY", operation("paths", "/admin*"), 403),
            (&rewritten, "/pub/users", "DENY", operation("paths", "/pub*"), 200),
            (&rewritten, "/pub/users", "ALLOW", operation("paths", "/pub*"), 403),
            (&rewritten, "/pub/users", "ALLOW", operation("paths", "/admin/users"), 200),
            (&renamed, "/", "ALLOW", operation("hosts", "ratings"), 200),
            (&renamed, "/", "ALLOW", operation("hosts", "reviews*"), 403),
            (&changed, "/", "ALLOW", header("guest"), 200),
            (&changed, "/", "DENY", header("admin"), 200),
            // Nobody called an address of ratings, so it is in doubt.
            (&changed, "/", "ALLOW", called.clone(), 403),
        ] {
            mesh.apply([of_ratings(action, &asks)]);
            mesh.routes(&json!([rule]));
            let answer = mesh.send(request("GET", path, &[("x-role", "admin")])).await;
            assert_eq!(answer.status, status, "{rule} {action} {asks}: {}", answer.body);
        }
    });
}

#[test]
fn a_mirrored_copy_is_asked_about_as_it_is_sent() {
    run(async {
        let mesh = Mesh::new();
        let _apps = [mesh.says("reviews", "v1", "near", "v1").await, mesh.says("ratings", "v1", "near", "ratings").await];
        mesh.routes(&json!([{
            "match": [{"uri": {"prefix": "/pub"}}], "rewrite": {"uri": "/admin"},
            "route": [{"destination": {"host": "reviews"}}], "mirror": {"host": "ratings", "port": {"number": 9080}},
        }]));
        for (asks, copies) in [(operation("paths", "/admin*"), 0), (operation("paths", "/pub*"), 1)] {
            mesh.apply([of_ratings("DENY", &asks)]);
            mesh.seen.borrow_mut().clear();
            assert_eq!(mesh.send(request("GET", "/pub/users", &[])).await.body, "v1");
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(mesh.seen.borrow().len(), 1 + copies, "{asks}");
        }
    });
}

/// Service `reviews`, all of which goes to `ratings`.
fn leads_to_ratings(protocol: PortProtocol) -> Host {
    let all = route("all", Vec::new(), RouteAction::Forward(Box::new(forward(vec![to("ratings", None)]))));
    let mut host = host("reviews", protocol, vec![all], vec![pool("ratings", None)]);
    for port in host.ports.values_mut() {
        let tcp = TcpRoute { destinations: vec![to("ratings", None)], ..TcpRoute::clone(&port.tcp[0]) };
        port.tcp = vec![Arc::new(tcp)];
    }
    host
}

/// A denial of `account`, attached to the service that it stands with.
fn of_service(account: &str) -> RequestPolicy {
    RequestPolicy { attachment: Attachment::Service, ..denies(account) }
}

/// Service `ratings`, through the waypoint of this name.
fn ratings(waypoint: Option<&str>) -> Change {
    let mut made = Service::new("ratings", name("ratings"));
    made.ports.insert(PORT, ServicePort { target_port: None, app_protocol: AppProtocol::Http11 });
    made.waypoint = waypoint.map(|waypoint| GatewayAddress { destination: GatewayDestination::Service(name(waypoint)), hbone_port: 15008 });
    Change::Service(made.into())
}

#[test]
fn a_service_that_changes_its_waypoint_is_behind_its_policies_or_behind_the_other_waypoint() {
    run(async {
        let world = World::new();
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, leads_to_ratings(PortProtocol::Http));
        let app = world.app(says("ratings", &Seen::default())).await;
        world.endpoint("ratings", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let known = || under(of_service("cart"), plain_host("ratings"));
        let forgotten = || Change::RemoveHost(name("ratings"));
        for (step, changes, status) in [
            ("it goes through none", vec![ratings(None)], 200),
            ("it is about to go through this one", vec![known()], 403),
            ("it goes through this one", vec![ratings(Some("waypoint"))], 403),
            ("it goes through another one, and is not forgotten yet", vec![ratings(Some("other"))], 403),
            ("it is forgotten, and the other one has no instance", vec![forgotten()], 503),
            ("it comes back, its address first", vec![ratings(Some("waypoint"))], 503),
            ("and is known again", vec![known()], 403),
            ("its policy is about somebody else", vec![under(of_service("bank"), plain_host("ratings"))], 200),
        ] {
            world.apply(changes);
            assert_eq!(fetch(&mut sender, get("/")).await.0, status, "{step}");
        }
    });
}

/// The service goes to another waypoint while a request is delayed that a route brings to it.
#[test]
fn a_delayed_request_is_decided_by_the_last_policies_of_where_its_route_leads() {
    run(async {
        let world = World::new();
        let delay = FaultDelay { duration: Duration::from_millis(300), share_ppm: 1_000_000 };
        let mut leads = leads_to_ratings(PortProtocol::Http);
        for port in leads.ports.values_mut() {
            let delayed = HttpRoute { fault: Some(Fault { delay: Some(delay.clone()), abort: None }), ..HttpRoute::clone(&port.http[0]) };
            port.http = vec![Arc::new(delayed)];
        }
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, leads);
        world.apply([ratings(Some("waypoint")), under(of_service("stranger"), plain_host("ratings"))]);
        let app = world.app(says("ratings", &Seen::default())).await;
        world.endpoint("ratings", "v1", &app);
        let (mut cart, mut stranger) = (world.http1("cart", "10.96.0.1:9080").await, world.http1("stranger", "10.96.0.1:9080").await);
        let leaves = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.apply([ratings(Some("other"))]);
            world.apply([Change::RemoveHost(name("ratings"))]);
        };
        let (cart, stranger, ()) = tokio::join!(fetch(&mut cart, get("/")), fetch(&mut stranger, get("/")), leaves);
        assert_eq!((cart.0, stranger.0), (200, 403));
    });
}

#[test]
fn a_policy_of_where_a_route_leads_ends_what_is_open() {
    run(async {
        let world = World::new();
        world.service("reviews", "10.96.0.1", AppProtocol::Http11, leads_to_ratings(PortProtocol::Http));
        world.service("db", "10.96.0.3", AppProtocol::Tcp, Host { name: name("db"), ..leads_to_ratings(PortProtocol::Tcp) });
        world.apply([ratings(Some("waypoint")), Change::Host(plain_host("ratings").into())]);
        let app = echoes(&world).await;
        world.endpoint("ratings", "v1", &app);
        let ask = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n1";
        let mut open = Vec::new();
        for address in ["10.96.0.1:9080", "10.96.0.3:9080"] {
            let mut socket = world.tunnel("cart", address).await.unwrap();
            socket.write_all(ask).await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(b"\r\n\r\n1") {
                assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "{address}: {}", String::from_utf8_lossy(&read));
            }
            open.push(socket);
        }
        world.apply([under(of_service("bank"), plain_host("ratings"))]);
        for socket in &mut open {
            socket.write_all(b"2").await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), b'2', "others are denied");
        }
        // It leaves this waypoint: its last policies hold on for what is open.
        world.apply([under(of_service("bank"), plain_host("ratings")), ratings(Some("other"))]);
        world.apply([Change::RemoveHost(name("ratings"))]);
        for socket in &mut open {
            socket.write_all(b"3").await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), b'3');
        }
        world.apply([under(of_service("cart"), plain_host("ratings"))]);
        for socket in &mut open {
            assert!(matches!(socket.read(&mut [0]).await, Ok(0) | Err(_)));
        }
    });
}
