//! Many connections at once, and many bytes on one.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
};

use crate::{
    mesh::{Mesh, PORT, connect, echo, ping},
    network,
};

#[test]
fn hundreds_of_connections_at_once() {
    if !network::available() {
        return;
    }
    let mut mesh = Mesh::new("storm");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    let started = std::time::Instant::now();
    thread::scope(|scope| {
        for number in 0..300 {
            let (from, to) = (&client.network, if number % 2 == 0 { server.network.v4 } else { server.network.v6 });
            scope.spawn(move || {
                let mut stream = connect(from, to, PORT).unwrap();
                for round in 0..3 {
                    ping(&mut stream, &format!("{number} {round}")).unwrap();
                }
            });
        }
    });
    println!("300 connections at once: {:?}", started.elapsed());
}

#[test]
fn a_long_stream_arrives_whole() {
    if !network::available() {
        return;
    }
    const BYTES: usize = 64 * 1024 * 1024;
    let mut mesh = Mesh::new("stream");
    let (client, server) = (mesh.pod(0, "client", 1), mesh.pod(1, "server", 2));
    echo(&server.network);
    for to in [server.network.v4, server.network.v6] {
        let mut stream = connect(&client.network, to, PORT).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let started = std::time::Instant::now();
        let writing = thread::spawn(move || {
            let chunk: Vec<u8> = (0..=250u8).cycle().take(251 * 256).collect();
            let mut left = BYTES;
            while left > 0 {
                let length = left.min(chunk.len());
                writer.write_all(&chunk[..length]).unwrap();
                left -= length;
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut buffer = vec![0; 256 * 1024];
        let mut at = 0;
        loop {
            let length = stream.read(&mut buffer).unwrap();
            if length == 0 {
                break;
            }
            for byte in &buffer[..length] {
                assert_eq!(usize::from(*byte), at % 251, "byte {at}");
                at += 1;
            }
        }
        assert_eq!(at, BYTES);
        writing.join().unwrap();
        println!("{} MiB there and back: {:?}", BYTES >> 20, started.elapsed());
    }
}
