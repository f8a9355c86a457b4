//! What a connection and a megabyte cost in allocations, on the workers of both ends of a tunnel together: counted by the allocator, in a
//! program of its own, since the allocator is one for all its threads. No log is written.
//!
//! The limits are about one and a half times what was counted when they were set; the test prints what it counts.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as expected")]
#![allow(unsafe_code, reason = "an allocator that counts")]

#[path = "../it/agent.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod agent;
#[path = "../it/mesh.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod mesh;
#[path = "../it/network.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod network;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    mesh::{Mesh, PORT, connect},
    network::PodNetwork,
};

/// Nothing is caught.
mod log {
    pub(crate) fn start() {}
}

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread plays an application.
    static IGNORED: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    if !IGNORED.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// An application that reads each connection to its end and then says how much it was.
fn count_bytes(network: &PodNetwork) {
    let listener = network.namespace.run(|| TcpListener::bind(("::", PORT)).unwrap()).unwrap();
    thread::spawn(move || {
        IGNORED.set(true);
        let mut buffer = vec![0; 256 * 1024];
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut total = 0u64;
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                total += length as u64;
            }
            // Whoever asked looks at the answer.
            let _ = stream.write_all(&total.to_be_bytes());
        }
    });
}

fn exchange(mut stream: TcpStream, chunk: &[u8], chunks: u64) {
    for _ in 0..chunks {
        stream.write_all(chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut total = [0; 8];
    stream.read_exact(&mut total).unwrap();
    assert_eq!(u64::from_be_bytes(total), chunk.len() as u64 * chunks);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// Allocations of the proxies during `work`.
fn during(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// Of a connection that makes a stream in a tunnel that is there: the journeys at both ends.
const TUNNELLED: usize = 175;
/// Of a plain connection that arrives.
const PASSED: usize = 25;
/// Of a megabyte through a tunnel: HTTP/2 frames and TLS records, sent and received.
const MEGABYTE: usize = 280;

#[test]
fn connections_and_megabytes_cost_what_they_may() {
    if !network::available() {
        return;
    }
    IGNORED.set(true);
    const CONNECTIONS: usize = 200;
    const MEGABYTES: usize = 64;
    let mut mesh = Mesh::new("allocations");
    let (client, server, stranger) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2), mesh.stranger(3));
    count_bytes(&server.network);
    let connections = |from: &PodNetwork, to: IpAddr| {
        let some = |count: usize| (0..count).for_each(|_| exchange(connect(from, to, PORT).unwrap(), b"text", 1));
        // Tunnels, certificates, counters and buffers are there, on each worker.
        some(50);
        during(|| some(CONNECTIONS)) / CONNECTIONS
    };
    let megabyte = vec![7; 1 << 20];
    for to in [server.network.v4, server.network.v6] {
        let tunnelled = connections(&client.network, to);
        let passed = connections(&stranger, to);
        let stream = connect(&client.network, to, PORT).unwrap();
        let a_megabyte = during(|| exchange(stream, &megabyte, MEGABYTES as u64)) / MEGABYTES;
        println!("{to}: allocations of a tunnelled connection {tunnelled}, a passed one {passed}, a megabyte {a_megabyte}");
        assert!(tunnelled <= TUNNELLED, "tunnelled: {tunnelled}, {TUNNELLED} at most");
        assert!(passed <= PASSED, "passed: {passed}, {PASSED} at most");
        assert!(a_megabyte <= MEGABYTE, "a megabyte: {a_megabyte}, {MEGABYTE} at most");
    }
}
