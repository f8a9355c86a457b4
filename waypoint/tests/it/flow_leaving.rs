//! What becomes of open connections when what they address goes another way: first the waypoint still knows it, then it forgets it.

use std::time::{Duration, Instant};

use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tropis_model::{
    route::PortProtocol,
    service::{AppProtocol, Service},
    view::Change,
    waypoint::Waypoint,
};

use crate::{
    flow_connections::{behind, denies, echoes, under},
    log,
    world::{App, Http1, Http2, World, echo, full, get, get2, host, name, plain_host, pool, run, text},
};

const REVIEWS: &str = "10.96.0.1:9080";
/// Idle connections of HTTP/1.1 stay for half a second of it.
const SHORT_DRAIN: [(&str, &str); 1] = [("CONNECTION_TERMINATION_DEADLINE", "1s")];
/// Far longer than they stay.
const PATIENCE: Duration = Duration::from_secs(10);

async fn answering(world: &World) -> App {
    world.app(|_| std::future::ready(Response::new(full("served")))).await
}

/// The service goes another way; the waypoint serves it until what is open has ended.
fn leaves(world: &World, service: &str) {
    let view = world.shared.view.load();
    let known = view.service(&name(service)).unwrap();
    world.apply([Change::Service(Service { waypoint: None, ..Service::clone(known) }.into())]);
}

/// The waypoint is told to forget the service.
fn is_forgotten(world: &World, service: &str) {
    world.apply([Change::RemoveHost(name(service)), Change::RemoveAddress(name(service).to_string().into())]);
}

/// An open connection that has been used.
enum Kept {
    Http1(Http1),
    Http2(Http2),
}

impl Kept {
    /// One of each version.
    async fn each(world: &World, authority: &str) -> [Self; 2] {
        let mut each = [Self::Http1(world.http1("cart", authority).await), Self::Http2(world.http2("cart", authority).await)];
        for kept in &mut each {
            assert_eq!(kept.asks().await, Some((200, "served".into())));
        }
        each
    }

    /// Sends a request; `None` if the connection ended before it was answered.
    async fn asks(&mut self) -> Option<(u16, String)> {
        let answer = match self {
            Self::Http1(sender) => sender.send_request(get("/")).await,
            Self::Http2(sender) => sender.send_request(get2("/")).await,
        };
        Some(text(answer.ok()?).await)
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    /// Waits until the waypoint has ended it.
    async fn ends(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_closed() {
            let version = if matches!(self, Self::Http1(_)) { "HTTP/1.1" } else { "HTTP/2" };
            assert!(Instant::now() < deadline, "the connection of {version} is kept open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[test]
fn idle_connections_end_while_the_service_that_leaves_is_still_served() {
    run(async {
        let world = World::at("127.0.0.1:0", &SHORT_DRAIN);
        world.reviews();
        let app = answering(&world).await;
        world.endpoint("reviews", "v1", &app);
        let kept = Kept::each(&world, REVIEWS).await;
        let mut busy = Kept::each(&world, REVIEWS).await;
        let mut silent = world.tunnel("cart", REVIEWS).await.unwrap();
        leaves(&world, "reviews");
        for kept in &mut busy {
            assert_eq!(kept.asks().await, Some((200, "served".into())), "what is on its way is served");
        }
        for kept in kept.iter().chain(&busy) {
            kept.ends().await;
        }
        let said = tokio::time::timeout(PATIENCE, silent.read(&mut [0])).await.expect("who has said nothing is not kept either");
        assert!(matches!(said, Ok(0) | Err(_)));
        // Who has not heard of it opens another connection here.
        let mut late = world.http1("cart", REVIEWS).await;
        let answer = late.send_request(get("/")).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["connection"].to_str().unwrap()), (200, "close"));
    });
}

#[test]
fn a_head_that_has_begun_to_come_is_answered_before_its_connection_ends() {
    run(async {
        let world = World::at("127.0.0.1:0", &SHORT_DRAIN);
        world.reviews();
        let app = answering(&world).await;
        world.endpoint("reviews", "v1", &app);
        let mut caller = world.tunnel("cart", REVIEWS).await.unwrap();
        caller.write_all(b"GET /whole HTTP/1.1\r\nHost: reviews\r\n\r\nGET /in-part HTTP/1.1\r\nHo").await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"served") {
            assert_ne!(caller.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
        }
        leaves(&world, "reviews");
        // Twice as long as connections without requests stay.
        tokio::time::sleep(Duration::from_secs(1)).await;
        caller.write_all(b"st: reviews\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, caller.read_to_end(&mut rest)).await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(ended.is_ok() && rest.starts_with("HTTP/1.1 200") && rest.contains("connection: close"), "{ended:?} {rest:?}");
    });
}

#[test]
fn idle_connections_end_while_the_pod_that_leaves_is_still_served() {
    run(async {
        let world = World::at("127.0.0.1:0", &SHORT_DRAIN);
        let app = answering(&world).await;
        let workload = world.endpoint("reviews", "v1", &app);
        world.apply([behind("waypoint", &workload)]);
        let address = app.address.to_string();
        let kept = Kept::each(&world, &address).await;
        let mut busy = Kept::each(&world, &address).await;
        let known = world.shared.view.load().waypoint("shop/waypoint").unwrap().clone();
        world.apply([Change::Waypoint(Waypoint { elsewhere: [workload.uid].into(), ..Waypoint::clone(&known) }.into())]);
        for kept in &mut busy {
            assert_eq!(kept.asks().await, Some((200, "served".into())), "what is on its way is served");
        }
        for kept in kept.iter().chain(&busy) {
            kept.ends().await;
        }
    });
}

#[test]
fn connections_to_a_service_that_comes_back_are_kept() {
    run(async {
        let world = World::at("127.0.0.1:0", &SHORT_DRAIN);
        world.reviews();
        let app = answering(&world).await;
        world.endpoint("reviews", "v1", &app);
        let mut kept = Kept::each(&world, REVIEWS).await;
        leaves(&world, "reviews");
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.reviews();
        tokio::time::sleep(Duration::from_millis(1000)).await;
        for kept in &mut kept {
            assert_eq!(kept.asks().await, Some((200, "served".into())));
        }
    });
}

#[test]
fn idle_connections_end_when_their_service_is_forgotten() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = answering(&world).await;
        world.endpoint("reviews", "v1", &app);
        let kept = Kept::each(&world, REVIEWS).await;
        is_forgotten(&world, "reviews");
        for kept in &kept {
            kept.ends().await;
        }
    });
}

#[test]
fn idle_connections_end_when_their_pod_goes_to_another_waypoint() {
    run(async {
        let world = World::new();
        let app = answering(&world).await;
        let workload = world.endpoint("reviews", "v1", &app);
        world.apply([behind("waypoint", &workload)]);
        let kept = Kept::each(&world, &app.address.to_string()).await;
        world.apply([behind("other", &workload)]);
        for kept in &kept {
            kept.ends().await;
        }
    });
}

/// Who asks in the very moment may be refused, and is then not kept.
#[test]
fn no_connection_answers_twice_that_nothing_is_attached() {
    run(async {
        let world = World::new();
        let app = answering(&world).await;
        let workload = world.endpoint("reviews", "v1", &app);
        for _ in 0..20 {
            world.apply([behind("waypoint", &workload)]);
            let mut kept = Kept::each(&world, &app.address.to_string()).await;
            world.apply([behind("other", &workload)]);
            for kept in &mut kept {
                let answered = kept.asks().await;
                assert!(answered.as_ref().is_none_or(|(status, _)| *status == 404), "{answered:?}");
                kept.ends().await;
            }
        }
    });
}

#[test]
fn a_tcp_connection_goes_on_when_its_service_is_forgotten() {
    run(async {
        let world = World::new();
        world.service("db", "10.96.0.3", AppProtocol::Tcp, host("db", PortProtocol::Tcp, Vec::new(), vec![pool("db", None)]));
        let app = App::elsewhere(echo().await);
        let workload = world.endpoint("db", "v1", &app);
        let mut caller = world.tunnel("cart", "10.96.0.3:9080").await.unwrap();
        caller.write_all(b"1").await.unwrap();
        assert_eq!(caller.read_u8().await.unwrap(), b'1');
        leaves(&world, "db");
        is_forgotten(&world, "db");
        world.apply([Change::RemoveAddress(workload.uid.0.clone())]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        caller.write_all(b"2").await.unwrap();
        assert_eq!(caller.read_u8().await.unwrap(), b'2', "nobody denied it");
        // Known again, its policies are asked again.
        let db = || host("db", PortProtocol::Tcp, Vec::new(), vec![pool("db", None)]);
        world.service("db", "10.96.0.3", AppProtocol::Tcp, db());
        world.apply([under(denies("cart"), db())]);
        assert!(matches!(caller.read(&mut [0]).await, Ok(0) | Err(_)));
    });
}

#[test]
fn a_websocket_goes_on_when_its_service_is_forgotten() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = echoes(&world).await;
        let workload = world.endpoint("reviews", "v1", &app);
        let mut socket = world.tunnel("cart", REVIEWS).await.unwrap();
        let head = b"GET /outlives HTTP/1.1\r\nHost: reviews\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(head).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
        }
        leaves(&world, "reviews");
        is_forgotten(&world, "reviews");
        world.apply([Change::RemoveAddress(workload.uid.0.clone())]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        socket.write_all(b"2").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'2', "nobody denied it");
        world.reviews();
        world.apply([under(denies("cart"), plain_host("reviews"))]);
        assert!(matches!(socket.read(&mut [0]).await, Ok(0) | Err(_)));
        let line = log::wait_for(&[("path", "/outlives")]).await;
        assert_eq!(log::text(&line["reason"]), "permit_revoked");
    });
}
