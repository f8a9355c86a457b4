//! A redirector beside programs of another version, and a node proxy that knows only those.

use std::{
    fs,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use tropis_maps::{ListenerKind, Pins};
use tropis_proto::zds::workload_request::Payload;

use crate::{
    lab::pod_ip,
    program::{Node, Proxy},
};

/// Makes what is pinned another version's.
fn of_another_version(node: &Node) -> PathBuf {
    let older = node.lab.pins().join("schema-0");
    fs::rename(Pins::new(node.lab.pins()).schema(), &older).unwrap();
    older
}

/// Says yes to everything, until the other end is gone.
fn serve(proxy: Proxy, heed: impl Fn(&Payload) + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while let Some((message, _)) = proxy.receive() {
            heed(&message);
            proxy.acknowledge("");
        }
    })
}

#[test]
fn programs_of_another_version_capture_until_ours_do() {
    let Some((mut node, proxy)) = Node::start_enrolled("schema") else { return };
    node.kill();
    drop(proxy);
    let older = of_another_version(&node);
    node.run();
    let serving = serve(node.proxy(), |_| {});
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(node.is_captured(), "at every moment");
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        assert!(node.captured_namespaces().is_empty(), "the proxy has its listeners in the other version's maps");
        assert!(older.exists() && node.annotation().as_deref() == Some("enabled"));
        node.lab.proxy_maps().add_listener(pod_ip(false), ListenerKind::Outbound, node.proxy.as_fd()).unwrap();
        node.until("ours capture, the others are gone", || !older.exists());
        assert_eq!(node.captured_namespaces(), [node.lab.pod.cookie()]);
        std::thread::sleep(Duration::from_millis(200));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().unwrap();
    });
    node.kill();
    serving.join().unwrap();
}

#[test]
fn a_pod_that_programs_of_another_version_capture_leaves_in_order() {
    let Some((mut node, proxy)) = Node::start_enrolled("leaves") else { return };
    node.kill();
    drop(proxy);
    let link = of_another_version(&node).join(format!("links/netns-{}", node.lab.pod.cookie()));
    node.run();
    let let_go = Arc::new(AtomicBool::new(false));
    let (seen, attached) = (Arc::clone(&let_go), link.clone());
    let serving = serve(node.proxy(), move |message| {
        if matches!(message, Payload::Del(_)) {
            assert!(!attached.exists(), "what arrives would go to listeners that are closed");
            seen.store(true, Ordering::Relaxed);
        }
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(node.is_captured() && node.captured_namespaces().is_empty() && link.exists(), "the others capture");
    node.label(false);
    node.until("withdrawn", || node.annotation().is_none());
    node.until("what it opens passes", || !node.is_captured());
    assert!(!let_go.load(Ordering::Relaxed), "peers have not heard yet");
    node.until("let go", || let_go.load(Ordering::Relaxed));
    node.kill();
    serving.join().unwrap();
}

#[test]
fn a_proxy_of_another_version_serves_no_new_pod() {
    let Some(mut node) = Node::start("newpod") else { return };
    node.kill();
    let older = node.lab.pins().join("schema-0");
    fs::create_dir(&older).unwrap();
    node.run();
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    node.label(true);
    proxy.expect_add(&node);
    proxy.acknowledge("");
    proxy.expect_del();
    node.until("pending", || node.annotation().as_deref() == Some("pending"));
    assert!(node.is_captured() && older.exists());
    drop(proxy);

    node.lab.proxy_maps().add_listener(pod_ip(false), ListenerKind::Outbound, node.proxy.as_fd()).unwrap();
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    node.until("the others are gone", || !older.exists());
    assert!(node.is_captured());
}
