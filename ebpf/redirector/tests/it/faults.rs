//! A node proxy that hangs, pins that are lost, entries that should not be there.

use std::time::{Duration, Instant};

use tropis_maps::{NodeMaps, Pins};
use tropis_redirector::kernel;

use crate::program::Node;

#[test]
fn a_proxy_that_hangs_keeps_no_pod_plain() {
    let Some(node) = Node::start("hangs") else { return };
    let proxy = node.proxy();
    proxy.expect_snapshot_sent();
    let labelled = Instant::now();
    node.label(true);
    proxy.expect_add(&node);
    node.until("captured without an answer", || node.captured_namespaces() == [node.lab.pod.cookie()]);
    println!("captured after {:?}", labelled.elapsed());
    assert!(labelled.elapsed() < Duration::from_secs(4), "{:?}", labelled.elapsed());
    assert!(node.is_captured());
    node.until("pending", || node.annotation().as_deref() == Some("pending"));
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));

    // Nor does it keep one captured that leaves.
    node.label(false);
    node.until("what it opens passes", || !node.is_captured());
    let link = Pins::new(node.lab.pins()).inbound_link(node.lab.pod.cookie());
    node.until("it has left, but for the proxy", || !link.exists() && node.get("/enrolled").is_some_and(|text| text.ends_with("[]")));
    node.label(true);
    node.until("captured again", || node.captured_namespaces() == [node.lab.pod.cookie()] && node.is_captured());
    proxy.expect_del();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    node.until("enabled", || node.annotation().as_deref() == Some("enabled"));
    assert!(node.is_captured() && link.exists(), "what was asked before does not take away what came after");
}

#[test]
fn what_was_said_is_withdrawn_though_the_pins_are_lost() {
    let Some((mut node, proxy)) = Node::start_enrolled("lost") else { return };
    node.kill();
    drop(proxy);
    node.label(false);
    kernel::cleanup(&node.lab.pins()).unwrap();
    assert_eq!(node.annotation().as_deref(), Some("enabled"));
    node.run();
    node.until("withdrawn", || node.annotation().is_none());
    assert!(!node.is_captured());
}

#[test]
fn of_several_entries_of_a_pod_those_of_empty_namespaces_go() {
    let Some((mut node, proxy)) = Node::start_enrolled("several") else { return };
    node.kill();
    drop(proxy);
    {
        let maps = NodeMaps::open(&Pins::new(node.lab.pins())).unwrap();
        let entry = maps.pod(node.lab.pod.cookie()).unwrap().expect("enrolled");
        for cookie in [u64::MAX - 1, u64::MAX - 2, u64::MAX - 3] {
            maps.enrol(cookie, &entry).unwrap();
        }
    }
    node.run();
    node.until("the others are gone", || node.captured_namespaces() == [node.lab.pod.cookie()]);
    let proxy = node.proxy();
    proxy.expect_add(&node);
    proxy.acknowledge("");
    proxy.expect_snapshot_sent();
    assert_eq!(node.annotation().as_deref(), Some("enabled"));
    assert!(node.is_captured());
}
