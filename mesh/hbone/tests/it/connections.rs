//! The pool and the server: who shares a connection, what happens when one goes away, and the limits.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tropis_hbone::{
    client::{PoolOptions, TunnelError},
    headers::{Forwarded, TunnelHeaders},
    server::{AcceptError, ServerOptions, SessionEnd},
    stream::TunnelStream,
};
use tropis_model::outcome::Reason;
use tropis_net::drain::{Drain, Drained};
use tropis_tls::testing::Behaviour;

use crate::fixture::{Callee, Mesh, dialler, echo, identity, key, open, request, run, until};

async fn echoes(stream: &mut TunnelStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut found = vec![0; text.len()];
    stream.read_exact(&mut found).await.unwrap();
    assert_eq!(found, text);
}

#[test]
fn many_at_once_share_few_connections() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions::default());
        let dials = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        for number in 0..500u32 {
            let (pool, dial) = (pool.clone(), dialler(callee.address, &dials));
            let address = callee.address;
            tasks.push(spawn_local(async move {
                let mut opened = pool.open(&key(address), &request(application), dial).await.unwrap();
                echoes(&mut opened.stream, &number.to_le_bytes()).await;
                opened
            }));
        }
        let mut open = Vec::new();
        for task in tasks {
            open.push(task.await.unwrap());
        }
        assert_eq!((dials.get(), callee.sessions.get()), (5, 5), "100 streams on each");
        assert_eq!((pool.connections(), pool.tunnels()), (5, 500));
        assert_eq!(mesh.authority.signed(), 2, "one certificate for each side");
        drop(open);
        until(|| pool.tunnels() == 0).await;
    });
}

#[test]
fn a_peer_that_takes_one_stream_gets_one() {
    run(async {
        let mesh = Mesh::new();
        let options = ServerOptions { streams_per_connection: 1, ..ServerOptions::default() };
        let callee = Callee::relaying(&mesh, "::1", options).await;
        let application = echo("::1").await;
        let pool = mesh.pool(PoolOptions::default());
        let mut tasks = Vec::new();
        for number in 0..30u32 {
            let (pool, address) = (pool.clone(), callee.address);
            tasks.push(spawn_local(async move {
                let mut opened = open(&pool, address, application).await.unwrap();
                echoes(&mut opened.stream, &number.to_le_bytes()).await;
                opened
            }));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        assert_eq!(callee.sessions.get(), 30);
        all.clear();
        until(|| pool.tunnels() == 0).await;
        let opened = open(&pool, callee.address, application).await.unwrap();
        assert!(opened.is_reused, "and they are used again");
        assert_eq!(callee.sessions.get(), 30);
    });
}

#[test]
fn the_request_and_the_answer_carry_what_is_said() {
    run(async {
        let mesh = Mesh::new();
        let seen = Rc::new(RefCell::new(None));
        let callee = {
            let seen = Rc::clone(&seen);
            Callee::start(&mesh, "127.0.0.1", ServerOptions::default(), move |tunnel| {
                let peer = (tunnel.peer().clone(), tunnel.remote(), tunnel.local());
                *seen.borrow_mut() = Some((tunnel.authority().to_string(), tunnel.headers().clone(), peer));
                let mut stream = tunnel.accept(Some("service.name=reviews")).unwrap();
                spawn_local(async move { stream.write_all(b"x").await });
            })
            .await
        };
        let pool = mesh.pool(PoolOptions::default());
        let headers = TunnelHeaders {
            forwarded: Some(Forwarded { source: Some("10.0.0.1:4711".parse().unwrap()), host: Some("reviews.shop".into()) }),
            baggage: Some("k8s.namespace.name=shop".into()),
            traceparent: Some(format!("00-{}-{}-00", "a".repeat(32), "b".repeat(16))),
        };
        let mut request = request("10.0.0.2:9080".parse().unwrap());
        request.headers = headers.clone();
        let opened = pool.open(&key(callee.address), &request, dialler(callee.address, &Rc::default())).await.unwrap();
        assert_eq!((opened.peer, opened.baggage.as_deref()), (identity("reviews"), Some("service.name=reviews")));
        let peer = (identity("productpage"), opened.local, callee.address);
        assert_eq!(*seen.borrow(), Some(("10.0.0.2:9080".to_owned(), headers, peer)));
    });
}

#[test]
fn answers_other_than_200_say_why() {
    run(async {
        let mesh = Mesh::new();
        let statuses = Rc::new(RefCell::new(vec![401, 403, 400, 503]));
        let callee = {
            let statuses = Rc::clone(&statuses);
            Callee::start(&mesh, "127.0.0.1", ServerOptions::default(), move |tunnel| match statuses.borrow_mut().pop() {
                Some(status) => tunnel.refuse(StatusCode::from_u16(status).unwrap()),
                None => drop(tunnel),
            })
            .await
        };
        let pool = mesh.pool(PoolOptions::default());
        let target = "127.0.0.1:1".parse().unwrap();
        for (expected, elsewhere) in [
            (Reason::TunnelRefused, true),
            (Reason::TunnelRefused, false),
            (Reason::TunnelDenied, false),
            (Reason::TunnelDenied, false),
            (Reason::TunnelRefused, true),
        ] {
            let error = open(&pool, callee.address, target).await.err().unwrap();
            assert_eq!((error.reason(), error.may_try_elsewhere()), (expected, elsewhere), "{error}");
        }
        assert_eq!(callee.sessions.get(), 1);
    });
}

#[test]
fn all_who_wait_hear_of_a_failure_and_the_next_one_tries_again() {
    run(async {
        let mesh = Mesh::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = listener.local_addr().unwrap();
        drop(listener);
        let pool = mesh.pool(PoolOptions::default());
        let dials = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let (pool, dial) = (pool.clone(), dialler(nobody, &dials));
            tasks.push(spawn_local(async move { pool.open(&key(nobody), &request(nobody), dial).await.err().unwrap() }));
        }
        for task in tasks {
            assert_eq!(task.await.unwrap().reason(), Reason::ConnectRefused);
        }
        assert_eq!(dials.get(), 1);
        assert!(pool.open(&key(nobody), &request(nobody), dialler(nobody, &dials)).await.is_err());
        assert_eq!(dials.get(), 2);
    });
}

#[test]
fn a_peer_that_drains_loses_no_tunnel_and_gets_no_new_one() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions::default());
        let mut before = open(&pool, callee.address, application).await.unwrap();
        let old = callee.drain.replace(Drain::new());
        old.start();
        let finishing = spawn_local(async move { old.finish(Duration::from_secs(30)).await });
        // Whenever GOAWAY arrives, before or after a CONNECT was sent: every one of these succeeds.
        for _ in 0..20 {
            let mut opened = open(&pool, callee.address, application).await.unwrap();
            echoes(&mut opened.stream, b"new").await;
        }
        assert_eq!(callee.sessions.get(), 2);
        assert!(!finishing.is_finished());
        echoes(&mut before.stream, b"still here").await;
        before.stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        before.stream.read_to_end(&mut rest).await.unwrap();
        drop(before);
        assert_eq!(finishing.await.unwrap(), Drained::Finished);
        assert!(matches!(callee.ends.borrow()[..], [Ok(SessionEnd::Closed)]));
    });
}

#[test]
fn a_drain_that_runs_out_of_time_resets_what_is_open() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions::default());
        let mut opened = open(&pool, callee.address, application).await.unwrap();
        let old = callee.drain.replace(Drain::new());
        assert_eq!(old.finish(Duration::from_millis(50)).await, Drained::Cut);
        assert!(opened.stream.read(&mut [0; 1]).await.is_err());
        assert!(matches!(callee.ends.borrow()[..], [Ok(SessionEnd::Cut)]), "{:?}", callee.ends.borrow());
    });
}

#[test]
fn draining_a_source_says_goodbye_at_once_or_after_the_last_tunnel() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions::default());
        let mut opened = open(&pool, callee.address, application).await.unwrap();
        pool.drain_source(&key(callee.address).destination);
        assert_eq!(pool.connections(), 1, "that is another workload");
        pool.drain_source(&key(callee.address).source);
        assert_eq!(pool.connections(), 0);
        echoes(&mut opened.stream, b"to the end").await;
        assert!(callee.ends.borrow().is_empty());
        drop(opened);
        until(|| !callee.ends.borrow().is_empty()).await;
        assert!(matches!(callee.ends.borrow()[..], [Ok(SessionEnd::Closed)]), "{:?}", callee.ends.borrow());
        let again = open(&pool, callee.address, application).await.unwrap();
        assert!(!again.is_reused);
        drop(again);
        drop(pool);
        until(|| callee.ends.borrow().len() == 2).await;
    });
}

#[test]
fn a_peer_that_vanished_is_noticed_and_replaced() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        // A wire that can be cut without a word.
        let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (wire_address, cut) = (wire.local_addr().unwrap(), Rc::new(Cell::new(false)));
        let is_cut = Rc::clone(&cut);
        let to = callee.address;
        spawn_local(async move {
            loop {
                let (mut one, _) = wire.accept().await.unwrap();
                let mut other = TcpStream::connect(to).await.unwrap();
                let is_cut = Rc::clone(&is_cut);
                spawn_local(async move {
                    let cut = async {
                        until(|| is_cut.get()).await;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut one, &mut other) => {}
                        () = cut => std::future::pending().await,
                    }
                });
            }
        });
        let pool = mesh.pool(PoolOptions {
            ping_interval: Duration::from_millis(50),
            ping_limit: Duration::from_millis(100),
            ..PoolOptions::default()
        });
        let mut opened = open(&pool, wire_address, application).await.unwrap();
        echoes(&mut opened.stream, b"alive").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        echoes(&mut opened.stream, b"alive still").await;
        cut.set(true);
        assert!(opened.stream.read(&mut [0; 1]).await.is_err());
        until(|| pool.connections() == 0).await;
        cut.set(false);
        let mut again = open(&pool, wire_address, application).await.unwrap();
        echoes(&mut again.stream, b"again").await;
    });
}

#[test]
fn unused_connections_are_let_go() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions { unused_release: Duration::from_secs(1), ..PoolOptions::default() });
        drop(open(&pool, callee.address, application).await.unwrap());
        until(|| pool.tunnels() == 0).await;
        assert_eq!(pool.connections(), 1);
        tokio::time::sleep(Duration::from_secs(16)).await;
        assert_eq!(pool.connections(), 0);
        until(|| !callee.ends.borrow().is_empty()).await;
    });
}

#[test]
fn who_never_speaks_is_shown_the_door() {
    run(async {
        let mesh = Mesh::new();
        let options = ServerOptions {
            handshake_limit: Duration::from_millis(100),
            first_tunnel_limit: Duration::from_millis(100),
            ..ServerOptions::default()
        };
        let callee = Callee::relaying(&mesh, "127.0.0.1", options).await;
        let silent = TcpStream::connect(callee.address).await.unwrap();
        until(|| !callee.ends.borrow().is_empty()).await;
        assert!(matches!(callee.ends.borrow()[0], Err(AcceptError::Timeout { doing: "TLS", .. })));
        drop(silent);

        let config = mesh.certificates.get(&identity("productpage")).await.unwrap().client_config(&[identity("reviews")]).unwrap();
        let tcp = TcpStream::connect(callee.address).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(config).connect(callee.address.ip().into(), tcp).await.unwrap();
        let (_send, connection) = h2::client::handshake(tls).await.unwrap();
        let connection = spawn_local(connection);
        until(|| callee.ends.borrow().len() == 2).await;
        assert!(matches!(callee.ends.borrow()[1], Ok(SessionEnd::Unused)), "{:?}", callee.ends.borrow());
        let _ = connection.await;
    });
}

#[test]
fn what_is_not_a_tunnel_request_is_answered_400() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::start(&mesh, "127.0.0.1", ServerOptions::default(), |_| panic!("not for the handler")).await;
        let config = mesh.certificates.get(&identity("productpage")).await.unwrap().client_config(&[identity("reviews")]).unwrap();
        let tcp = TcpStream::connect(callee.address).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(config).connect(callee.address.ip().into(), tcp).await.unwrap();
        let (send, connection) = h2::client::handshake(tls).await.unwrap();
        spawn_local(connection);
        for (method, uri) in [("GET", "https://10.0.0.1:80/"), ("CONNECT", "10.0.0.1"), ("CONNECT", "reviews:0")] {
            let mut send = send.clone().ready().await.unwrap();
            let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
            let (response, _) = send.send_request(request, true).unwrap();
            assert_eq!(response.await.unwrap().status(), StatusCode::BAD_REQUEST, "{method} {uri}");
        }
    });
}

#[test]
fn a_caller_who_gives_up_is_not_served() {
    run(async {
        let mesh = Mesh::new();
        let abandoned = Rc::new(Cell::new(false));
        let callee = {
            let abandoned = Rc::clone(&abandoned);
            Callee::start(&mesh, "127.0.0.1", ServerOptions::default(), move |mut tunnel| {
                let abandoned = Rc::clone(&abandoned);
                spawn_local(async move {
                    tunnel.abandoned().await;
                    abandoned.set(true);
                });
            })
            .await
        };
        let pool = mesh.pool(PoolOptions { response_limit: Duration::from_millis(200), ..PoolOptions::default() });
        let target = "127.0.0.1:1".parse().unwrap();
        assert!(matches!(open(&pool, callee.address, target).await.err().unwrap(), TunnelError::Timeout { .. }));
        until(|| abandoned.get()).await;
        assert_eq!((pool.connections(), pool.tunnels()), (1, 0));
    });
}

#[test]
fn a_connection_takes_no_tunnels_beyond_its_certificate() {
    run(async {
        let mesh = Mesh::new();
        mesh.authority.behave(Behaviour { lifetime: Duration::from_secs(3), starts_ago: Duration::ZERO, ..Behaviour::default() });
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions::default());
        let mut opened = open(&pool, callee.address, application).await.unwrap();
        assert!(open(&pool, callee.address, application).await.unwrap().is_reused);
        tokio::time::sleep(Duration::from_millis(3100)).await;
        assert!(!open(&pool, callee.address, application).await.unwrap().is_reused);
        echoes(&mut opened.stream, b"what is open lives on").await;
    });
}

#[test]
fn certificates_rotate_under_use() {
    run(async {
        let mesh = Mesh::new();
        let certificates = &mesh.certificates;
        mesh.authority.behave(Behaviour { lifetime: Duration::from_secs(4), starts_ago: Duration::ZERO, ..Behaviour::default() });
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let application = echo("127.0.0.1").await;
        let pool = mesh.pool(PoolOptions::default());
        let mut opened = open(&pool, callee.address, application).await.unwrap();
        let first = certificates.get(&identity("productpage")).await.unwrap();
        let mut rotation = certificates.subscribe(&identity("productpage"));
        until(|| certificates.current(&identity("productpage")).is_none_or(|now| now.serial() != first.serial())).await;
        let second = rotation.next().await.unwrap();
        assert_ne!(first.serial(), second.serial());
        echoes(&mut opened.stream, b"on the old one").await;
        pool.drain();
        let mut fresh = open(&pool, callee.address, application).await.unwrap();
        echoes(&mut fresh.stream, b"on the new one").await;
        echoes(&mut opened.stream, b"on the old one").await;
        assert_eq!(callee.sessions.get(), 2);
    });
}
