//! The program itself: settings from the environment, readiness that names what it waits for, admin, a drain that loses nothing.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use http::Response;
use serde_json::Value;
use tokio::sync::Notify;

use crate::world::{World, fetch, full, get, run};

/// A running program; it ends with the test.
struct Proxy {
    child: Child,
    metrics: SocketAddr,
    readiness: SocketAddr,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn start(folder: &Path, settings: &[(&str, &str)]) -> Proxy {
    let (metrics, readiness) = (free(), free());
    let child = Command::new(env!("CARGO_BIN_EXE_waypoint"))
        .args(["proxy", "waypoint"])
        .env_clear()
        .env("POD_NAMESPACE", "shop")
        .env("TROPIS_ADMIN_SOCKET", folder.join("admin.sock"))
        .env("TROPIS_HBONE_ADDRESS", "127.0.0.1:0")
        .env("TROPIS_METRICS_ADDRESS", metrics.to_string())
        .env("TROPIS_PROMETHEUS_ADDRESS", metrics.to_string())
        .env("TROPIS_READINESS_ADDRESS", readiness.to_string())
        .env("XDS_ADDRESS", "https://127.0.0.1:1")
        .env("CA_ADDRESS", "https://127.0.0.1:1")
        .env("LOG_FORMAT", "json")
        .envs(settings.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Proxy { child, metrics, readiness }
}

fn request(mut stream: impl Read + Write, method: &str, path: &str) -> (u16, String) {
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn connected(address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn says_what_it_waits_for_shows_what_it_knows_and_ends_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = start(folder.path(), &[]);
    let (status, text) = request(connected(proxy.readiness), "GET", "/healthz/ready");
    assert_eq!((status, text.as_str()), (500, "not ready, pending: certificate, state manager\n"));
    let (status, text) = request(connected(proxy.metrics), "GET", "/stats/prometheus");
    assert!(status == 200 && text.contains("istio_build{component=\"waypoint\""), "{text}");
    let admin = || UnixStream::connect(folder.path().join("admin.sock")).unwrap();
    let (status, text) = request(admin(), "GET", "/config_dump");
    let dump: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, dump["gateway"].as_str(), dump["identity"].as_str()),
        (200, Some("shop/waypoint"), Some("spiffe://cluster.local/ns/shop/sa/waypoint"))
    );
    assert_eq!(request(admin(), "GET", "/clusters"), (200, "[]".to_owned()));
    assert!(request(admin(), "GET", "/stats/prometheus").1.contains("istio_build{component=\"waypoint\""));
    assert_eq!(request(admin(), "POST", "/logging?level=debug"), (200, "current log level is debug\n".to_owned()));
    assert_eq!(request(admin(), "POST", "/quitquitquit"), (200, "shutdown now\n".to_owned()));
    assert!(proxy.child.wait().unwrap().success());
    let lines = BufReader::new(proxy.child.stdout.take().unwrap()).lines();
    let messages: Vec<_> =
        lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["message"].as_str().unwrap().to_owned()).collect();
    assert!(messages.iter().any(|message| message == "waypoint started"), "{messages:?}");
    assert_eq!(messages.last().map(String::as_str), Some("waypoint stopped"));
}

#[test]
fn a_setting_that_cannot_be_read_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = start(folder.path(), &[("TROPIS_MAX_STREAMS", "many")]);
    assert!(!proxy.child.wait().unwrap().success());
    let mut said = String::new();
    proxy.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("TROPIS_MAX_STREAMS") && said.contains("many"), "{said}");
}

#[test]
fn a_drain_finishes_what_is_under_way() {
    run(async {
        let world = World::new();
        world.reviews();
        let (told, arrived) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let app = world
            .app({
                let (told, arrived) = (told.clone(), arrived.clone());
                move |_| {
                    let (told, arrived) = (told.clone(), arrived.clone());
                    async move {
                        arrived.notify_one();
                        told.notified().await;
                        Response::new(full("finished"))
                    }
                }
            })
            .await;
        world.endpoint("reviews", "v1", &app);
        let mut sender = world.http1("cart", "10.96.0.1:9080").await;
        let under_way = tokio::task::spawn_local(async move { fetch(&mut sender, get("/draining")).await });
        arrived.notified().await;
        let shared = world.shared.clone();
        let drained = tokio::spawn(async move { shared.drain.finish(Duration::from_secs(30)).await });
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(world.bound.hbone).is_ok() {
            assert!(Instant::now() < deadline, "it still accepts");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        told.notify_one();
        assert_eq!(under_way.await.unwrap(), (200, "finished".into()));
        assert_eq!(drained.await.unwrap(), tropis_net::drain::Drained::Finished);
    });
}

#[test]
fn what_comes_on_open_connections_early_in_a_drain_is_answered() {
    run(async {
        let world = World::new();
        world.reviews();
        let app = world.app(|_| std::future::ready(Response::new(full("served")))).await;
        world.endpoint("reviews", "v1", &app);
        let mut idle = world.http1("cart", "10.96.0.1:9080").await;
        assert_eq!(fetch(&mut idle, get("/before")).await.0, 200);
        // Their tunnels are open, and they have said nothing yet.
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(world.http1("cart", "10.96.0.1:9080").await);
        }
        let shared = world.shared.clone();
        let drained = tokio::spawn(async move { shared.drain.finish(Duration::from_secs(30)).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        for sender in silent.iter_mut().chain([&mut idle]) {
            let answer = sender.send_request(get("/during")).await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.headers()["connection"].to_str().unwrap()), (200, "close"));
        }
        assert_eq!(drained.await.unwrap(), tropis_net::drain::Drained::Finished);
    });
}
