//! Sockets made in another network namespace. Needs root; where it is missing the tests say so, and fail under `TROPIS_E2E=require`.

use std::net::SocketAddr;

use nix::sched::{CloneFlags, unshare};
use tropis_net::{
    dial::{DialError, DialFrom, DialOptions, connect},
    listen::{ListenOptions, tcp_listener},
    namespace::NetworkNamespace,
};

/// A new, empty network namespace, kept alive by the handle alone.
fn empty_namespace() -> Option<NetworkNamespace> {
    let made = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).map(|()| NetworkNamespace::current().expect("just made")));
    match made.join().unwrap() {
        Ok(namespace) => Some(namespace),
        Err(error) => {
            assert!(std::env::var("TROPIS_E2E").as_deref() != Ok("require"), "needs root: {error}");
            eprintln!("skipped: making a network namespace needs root ({error})");
            None
        }
    }
}

#[test]
fn work_runs_there_and_the_thread_comes_back() {
    let Some(there) = empty_namespace() else { return };
    let here = NetworkNamespace::current().unwrap();
    assert_ne!(here, there);
    let cookie = || NetworkNamespace::current().unwrap().cookie();
    assert_eq!(there.run(cookie).unwrap(), there.cookie());
    assert_eq!(cookie(), here.cookie());
    let nested = there.run(|| (here.run(cookie).unwrap(), cookie())).unwrap();
    assert_eq!(nested, (here.cookie(), there.cookie()), "nested runs come back to where they were");
    let panicked = std::panic::catch_unwind(|| there.run(|| panic!("on purpose")));
    assert!(panicked.is_err());
    assert_eq!(cookie(), here.cookie(), "a panic comes back too");
}

#[test]
fn a_listener_belongs_to_its_namespace() {
    let Some(there) = empty_namespace() else { return };
    let options = ListenOptions { reuse_port: false, ..ListenOptions::default() };
    let here = tcp_listener("[::]:0".parse().unwrap(), &options).unwrap().listener;
    let same = SocketAddr::new("::".parse().unwrap(), here.local_addr().unwrap().port());
    assert!(tcp_listener(same, &options).is_err(), "taken here");
    there.run(|| tcp_listener(same, &options)).unwrap().unwrap();
}

#[tokio::test]
async fn dialling_leaves_from_the_namespace_given() {
    let Some(there) = empty_namespace() else { return };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    assert!(connect(None, DialFrom::Any, to, &DialOptions::default(), |_| Ok(())).await.is_ok());
    // Its loopback is down, so nothing is reachable from there.
    let unreachable = connect(Some(&there), DialFrom::Any, to, &DialOptions::default(), |_| Ok(())).await;
    assert!(matches!(unreachable, Err(DialError::Connect { .. })), "{unreachable:?}");
}
