//! An application cannot tell a tunnel from a wire: half-close, resets, single bytes, long streams, readers that stall.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_local,
};
use tropis_model::outcome::Reason;
use tropis_net::sockets::set_linger_reset;

use crate::fixture::{FAMILIES, Mesh, Path, application, run, until};

#[test]
fn each_direction_ends_by_itself() {
    for ip in FAMILIES {
        run(async move {
            let (listener, address) = application(ip).await;
            let path = Path::start(&Mesh::new(), ip, address).await;

            let (mut caller, mut callee) = path.connect(&listener).await;
            caller.write_all(b"question").await.unwrap();
            caller.shutdown().await.unwrap();
            assert_eq!(read_all(&mut callee).await, b"question", "the callee sees the end while it can still answer");
            callee.write_all(b"answer").await.unwrap();
            drop(callee);
            assert_eq!(read_all(&mut caller).await, b"answer");

            let (mut caller, mut callee) = path.connect(&listener).await;
            callee.write_all(b"greeting").await.unwrap();
            callee.shutdown().await.unwrap();
            assert_eq!(read_all(&mut caller).await, b"greeting", "and the other way round: the server ends first");
            caller.write_all(b"late words").await.unwrap();
            drop(caller);
            assert_eq!(read_all(&mut callee).await, b"late words");

            until(|| path.outcomes.borrow().len() == 2).await;
            for outcome in path.outcomes.borrow().iter() {
                assert_eq!(outcome.end.reason(), Reason::Completed);
                assert!(outcome.sent.finished && outcome.received.finished);
            }
            assert_eq!((path.pool.connections(), path.pool.tunnels()), (1, 0), "both on one connection");
        });
    }
}

#[test]
fn a_reset_is_a_reset_at_the_other_end() {
    for ip in FAMILIES {
        run(async move {
            let (listener, address) = application(ip).await;
            let path = Path::start(&Mesh::new(), ip, address).await;

            let (mut caller, mut callee) = path.connect(&listener).await;
            exchange(&mut caller, &mut callee, b"x").await;
            set_linger_reset(&caller).unwrap();
            drop(caller);
            assert_eq!(callee.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            until(|| path.outcomes.borrow().len() == 1).await;
            assert_eq!(path.outcomes.borrow()[0].end.reason(), Reason::DownstreamReset);

            let (mut caller, mut callee) = path.connect(&listener).await;
            exchange(&mut caller, &mut callee, b"x").await;
            set_linger_reset(&callee).unwrap();
            drop(callee);
            assert_eq!(caller.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            until(|| path.outcomes.borrow().len() == 2).await;
            assert_eq!(path.outcomes.borrow()[1].end.reason(), Reason::UpstreamReset);
            assert_eq!(path.pool.connections(), 1, "the connection below is none the worse");
        });
    }
}

#[test]
fn a_reset_after_the_end_is_noticed_through_the_tunnel() {
    run(async {
        let (listener, address) = application("::1").await;
        let path = Path::start(&Mesh::new(), "::1", address).await;
        let (mut caller, mut callee) = path.connect(&listener).await;
        caller.shutdown().await.unwrap();
        assert!(read_all(&mut callee).await.is_empty());
        set_linger_reset(&caller).unwrap();
        drop(caller);
        callee.ready(tokio::io::Interest::ERROR).await.unwrap();
        assert!(callee.take_error().unwrap().is_some());
    });
}

#[test]
fn single_bytes_arrive_one_by_one() {
    run(async {
        let (listener, address) = application("127.0.0.1").await;
        let path = Path::start(&Mesh::new(), "127.0.0.1", address).await;
        let (mut caller, mut callee) = path.connect(&listener).await;
        for byte in 0..2000u32 {
            let byte = byte as u8;
            caller.write_u8(byte).await.unwrap();
            assert_eq!(callee.read_u8().await.unwrap(), byte);
            callee.write_u8(!byte).await.unwrap();
            assert_eq!(caller.read_u8().await.unwrap(), !byte);
        }
    });
}

#[test]
fn a_long_stream_arrives_whole_both_ways_at_once() {
    const BYTES: usize = 160 * 1024 * 1024;
    for ip in FAMILIES {
        run(async move {
            let (listener, address) = application(ip).await;
            let path = Path::start(&Mesh::new(), ip, address).await;
            let (caller, callee) = path.connect(&listener).await;
            let begun = Instant::now();
            let (caller_read, caller_write) = caller.into_split();
            let (callee_read, callee_write) = callee.into_split();
            let tasks = [
                spawn_local(send(caller_write, BYTES, 1)),
                spawn_local(send(callee_write, BYTES, 2)),
                spawn_local(digest(caller_read)),
                spawn_local(digest(callee_read)),
            ];
            let mut results = Vec::new();
            for task in tasks {
                results.push(task.await.unwrap());
            }
            assert_eq!((results[0], results[1]), (results[3], results[2]));
            let rate = 2.0 * BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6;
            println!("{ip}: {rate:.0} MB/s through two proxies, with both applications, on one thread");
            until(|| path.outcomes.borrow().len() == 1).await;
            let outcomes = path.outcomes.borrow();
            assert_eq!((outcomes[0].sent.bytes, outcomes[0].received.bytes), (BYTES as u64, BYTES as u64));
        });
    }
}

#[test]
fn a_reader_that_stalls_holds_up_nobody_else() {
    run(async {
        let (listener, address) = application("127.0.0.1").await;
        let path = Path::start(&Mesh::new(), "127.0.0.1", address).await;
        // More than the connection's window in stalled streams, in both directions, on the one connection that there is.
        let mut stalled = Vec::new();
        for number in 0..12 {
            let (caller, callee) = path.connect(&listener).await;
            let (writes, rests) = if number % 2 == 0 { (caller, callee) } else { (callee, caller) };
            let (read, write) = writes.into_split();
            spawn_local(async move { fill(write).await });
            stalled.push((read, rests));
        }
        let (mut caller, mut callee) = path.connect(&listener).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = Instant::now();
        for _ in 0..40 {
            let chunk = vec![7; 256 * 1024];
            for (from, to) in [(&mut caller, &mut callee)] {
                exchange(from, to, &chunk).await;
                exchange(to, from, &chunk).await;
            }
        }
        println!("10 MiB each way beside 12 stalled streams: {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (mut one, mut other) = path.connect(&listener).await;
        exchange(&mut one, &mut other, b"new").await;
        assert_eq!(path.pool.connections(), 2, "who comes later is not put beside streams that stall for long");
    });
}

#[test]
fn single_bytes_to_a_reader_that_stalls_do_not_break_the_connection() {
    const BYTES: usize = 200_000;
    run(async {
        let (listener, address) = application("127.0.0.1").await;
        let path = Path::start(&Mesh::new(), "127.0.0.1", address).await;
        let (caller, mut callee) = path.connect(&listener).await;
        // Fill what the kernel and the tunnel hold, so that single bytes wait as frames.
        let (_read, mut write) = caller.into_split();
        let mut sent = 0;
        let filler = vec![0; 64 * 1024];
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(100), write.write_all(&filler)).await {
            sent += filler.len();
            if sent > 6 * 1024 * 1024 {
                break;
            }
        }
        for _ in 0..BYTES {
            if tokio::time::timeout(Duration::from_millis(50), write.write_u8(1)).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(path.outcomes.borrow().is_empty(), "{:?}", path.outcomes.borrow());
        spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(write);
        });
        assert!(read_all(&mut callee).await.len() >= sent);
        assert_eq!(path.pool.connections(), 1);
    });
}

async fn exchange(from: &mut TcpStream, to: &mut TcpStream, chunk: &[u8]) {
    let mut found = vec![0; chunk.len()];
    let (sent, received) = tokio::join!(from.write_all(chunk), to.read_exact(&mut found));
    sent.unwrap();
    received.unwrap();
    assert!(found == chunk);
}

async fn fill(mut write: tokio::net::tcp::OwnedWriteHalf) {
    let chunk = vec![0; 64 * 1024];
    while write.write_all(&chunk).await.is_ok() {}
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut found = Vec::new();
    stream.read_to_end(&mut found).await.unwrap();
    found
}

async fn send(mut write: tokio::net::tcp::OwnedWriteHalf, bytes: usize, seed: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut chunk = vec![0u8; 512 * 1024];
    let mut state = seed;
    let mut left = bytes;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = &chunk[..left.min(chunk.len())];
        hash.update(part);
        write.write_all(part).await.unwrap();
        left -= part.len();
    }
    write.shutdown().await.unwrap();
    hash.finalize().into()
}

async fn digest(mut read: tokio::net::tcp::OwnedReadHalf) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 512 * 1024];
    loop {
        match read.read(&mut chunk).await.unwrap() {
            0 => return hash.finalize().into(),
            length => hash.update(&chunk[..length]),
        }
    }
}
