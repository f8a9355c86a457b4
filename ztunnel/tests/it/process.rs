//! The program itself: settings from the environment, readiness that names what it waits for, admin, a clean end.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::agent::Agent;

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
    let child = Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .args(["proxy", "ztunnel"])
        .env_clear()
        .env("NODE_NAME", "n1")
        .env("INPOD_UDS", folder.join("zds.sock"))
        .env("TROPIS_ADMIN_SOCKET", folder.join("admin.sock"))
        .env("TROPIS_METRICS_ADDRESS", metrics.to_string())
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
    let agent = Agent::new(&folder.path().join("zds.sock"));
    let mut proxy = start(folder.path(), &[]);
    let connected_agent = agent.accept();
    assert_eq!(connected_agent.snapshot_sent(), "");
    let (status, text) = request(connected(proxy.readiness), "GET", "/healthz/ready");
    assert_eq!((status, text.as_str()), (500, "not ready, pending: state manager\n"));
    let (status, text) = request(connected(proxy.metrics), "GET", "/stats/prometheus");
    assert!(
        status == 200 && text.contains("istio_build{component=\"ztunnel\"") && text.contains("workload_manager_active_proxy_count 0"),
        "{text}"
    );

    let admin = || UnixStream::connect(folder.path().join("admin.sock")).unwrap();
    assert!(request(admin(), "GET", "/stats/prometheus").1.contains("istio_build{component=\"ztunnel\""));
    let (status, text) = request(admin(), "GET", "/config_dump");
    let dump: Value = serde_json::from_str(&text).unwrap();
    for key in ["workloads", "services", "policies", "stagedServices", "staticConfig", "version", "config", "certificates", "workloadState"]
    {
        assert!(dump.get(key).is_some(), "{key}");
    }
    assert_eq!(status, 200);
    assert_eq!(request(admin(), "POST", "/logging?level=debug"), (200, "current log level is debug\n".to_owned()));
    assert_eq!(request(admin(), "POST", "/logging?reset").1, "current log level is info\n");
    assert_eq!(request(admin(), "POST", "/logging?level=a=b=c").0, 400);
    assert_eq!(request(admin(), "GET", "/quitquitquit").0, 405);
    assert_eq!(request(admin(), "POST", "/quitquitquit"), (200, "shutdown now\n".to_owned()));
    assert!(proxy.child.wait().unwrap().success());
    let lines = BufReader::new(proxy.child.stdout.take().unwrap()).lines();
    let messages: Vec<_> =
        lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["message"].as_str().unwrap().to_owned()).collect();
    assert!(messages.iter().any(|message| message == "ztunnel started"), "{messages:?}");
    assert_eq!(messages.last().map(String::as_str), Some("ztunnel stopped"));
}

#[test]
fn a_setting_that_cannot_be_read_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut proxy = start(folder.path(), &[("SECRET_TTL", "soon")]);
    assert!(!proxy.child.wait().unwrap().success());
    let mut said = String::new();
    proxy.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("SECRET_TTL") && said.contains("soon"), "{said}");
}
