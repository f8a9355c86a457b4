//! What the relay and the tunnel cost: bytes and requests per second between two applications, straight, through a relay, and through
//! two proxies with a tunnel between them. Every process of the real thing is a thread here.
//!
//! `cargo run --release -p tropis-hbone --example throughput -- [SECONDS]`
#![allow(clippy::unwrap_used, reason = "an experiment ends where something is not as expected")]

use std::{
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tropis_hbone::{
    client::{Pool, PoolOptions, TunnelKey, TunnelRequest},
    headers::TunnelHeaders,
    server::{self, ServerOptions},
};
use tropis_model::{identity::Identity, resolve::Authority, workload::WorkloadUid};
use tropis_net::{
    dial::{DialFrom, DialOptions, connect},
    drain::DrainSignal,
    relay::{RelayOptions, relay},
};
use tropis_tls::{store::Certificates, testing::TestAuthority};

const CHUNK_BYTES: usize = 256 * 1024;
const REQUEST_BYTES: usize = 300;

fn main() {
    let seconds = std::env::args().nth(1).map_or(3.0, |text| text.parse().unwrap());
    let authority = Arc::new(TestAuthority::new());
    let (sink, echo) = (on_a_thread(sink), on_a_thread(echo));
    let ways: [(&str, &dyn Fn(SocketAddr) -> SocketAddr); 3] = [
        ("straight", &|to| to),
        ("relay", &|to| on_a_thread(move |ready| relaying(ready, to))),
        ("tunnel", &|to| {
            let (callee, caller) = (Arc::clone(&authority), Arc::clone(&authority));
            let callee = on_a_thread(move |ready| accepting(ready, callee));
            on_a_thread(move |ready| tunnelling(ready, caller, callee, to))
        }),
    ];
    println!("{:<10} {:>14} {:>14} {:>14} {:>14}", "", "1 stream MB/s", "16 streams", "1 conn req/s", "32 conns");
    for (name, way) in ways {
        let (bulk, requests) = (way(sink), way(echo));
        let mut row = Vec::new();
        for (connections, is_bulk) in [(1, true), (16, true), (1, false), (32, false)] {
            let entry = if is_bulk { bulk } else { requests };
            row.push(measure(entry, connections, is_bulk, seconds));
        }
        println!("{name:<10} {:>14.0} {:>14.0} {:>14.0} {:>14.0}", row[0] / 1e6, row[1] / 1e6, row[2], row[3]);
    }
}

/// Starts something on a thread with a runtime of its own, and gives the address that it serves.
fn on_a_thread<F: Future<Output = ()>>(start: impl FnOnce(mpsc::Sender<SocketAddr>) -> F + Send + 'static) -> SocketAddr {
    let (ready, address) = mpsc::channel();
    std::thread::spawn(move || run(start(ready)));
    address.recv().unwrap()
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

/// Accepts for ever, a task for each connection.
async fn serve<F: Future<Output = ()> + 'static>(ready: mpsc::Sender<SocketAddr>, each: impl Fn(TcpStream) -> F) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    ready.send(listener.local_addr().unwrap()).unwrap();
    loop {
        let (stream, _) = tropis_net::accept::next(&listener).await.unwrap();
        stream.set_nodelay(true).unwrap();
        spawn_local(each(stream));
    }
}

async fn sink(ready: mpsc::Sender<SocketAddr>) {
    serve(ready, async |mut stream: TcpStream| {
        let mut chunk = vec![0; CHUNK_BYTES];
        while stream.read(&mut chunk).await.is_ok_and(|length| length > 0) {}
    })
    .await;
}

async fn echo(ready: mpsc::Sender<SocketAddr>) {
    serve(ready, async |mut stream: TcpStream| {
        let mut request = [0; REQUEST_BYTES];
        while stream.read_exact(&mut request).await.is_ok() && stream.write_all(&request).await.is_ok() {}
    })
    .await;
}

async fn relaying(ready: mpsc::Sender<SocketAddr>, to: SocketAddr) {
    serve(ready, move |stream: TcpStream| async move {
        let upstream = connect(None, DialFrom::Any, to, &DialOptions::default(), |_| Ok(())).await.unwrap();
        relay(stream, upstream, &RelayOptions::default()).await;
    })
    .await;
}

fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "bench", name)
}

async fn accepting(ready: mpsc::Sender<SocketAddr>, authority: Arc<TestAuthority>) {
    let config = authority.issue(&identity("callee")).server_config();
    serve(ready, move |stream: TcpStream| {
        let config = Arc::clone(&config);
        async move {
            let session = server::accept(stream, config, &ServerOptions::default()).await.unwrap();
            let serving = session.serve(DrainSignal::never(), |tunnel| {
                spawn_local(async move {
                    let Authority::Address(to) = *tunnel.authority() else { return };
                    let upstream = connect(None, DialFrom::Any, to, &DialOptions::default(), |_| Ok(())).await.unwrap();
                    if let Ok(stream) = tunnel.accept(None) {
                        relay(stream, upstream, &RelayOptions::default()).await;
                    }
                });
            });
            serving.await;
        }
    })
    .await;
}

async fn tunnelling(ready: mpsc::Sender<SocketAddr>, authority: Arc<TestAuthority>, callee: SocketAddr, to: SocketAddr) {
    let pool = Pool::new(Certificates::new(authority), PoolOptions::default());
    let key = Rc::new(TunnelKey {
        source: WorkloadUid("caller".into()),
        source_identity: identity("caller"),
        destination: WorkloadUid("callee".into()),
        address: callee,
        network: "".into(),
        expected: [identity("callee")].into(),
    });
    let request = Rc::new(TunnelRequest { authority: Authority::Address(to), headers: TunnelHeaders::default() });
    serve(ready, move |stream: TcpStream| {
        let (pool, key, request) = (pool.clone(), Rc::clone(&key), Rc::clone(&request));
        async move {
            let dial = async move || connect(None, DialFrom::Any, callee, &DialOptions::default(), |_| Ok(())).await;
            let opened = pool.open(&key, &request, dial).await.unwrap();
            relay(stream, opened.stream, &RelayOptions::default()).await;
        }
    })
    .await;
}

/// Bytes or requests per second.
fn measure(entry: SocketAddr, connections: usize, is_bulk: bool, seconds: f64) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let client = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            run(async {
                for _ in 0..connections {
                    let done = Arc::clone(&done);
                    spawn_local(async move {
                        let mut stream = TcpStream::connect(entry).await.unwrap();
                        stream.set_nodelay(true).unwrap();
                        if is_bulk { send(&mut stream, &done).await } else { ask(&mut stream, &done).await }
                    });
                }
                // A tenth of the time to get going.
                tokio::time::sleep(Duration::from_secs_f64(seconds / 10.0)).await;
                let (begun, before) = (Instant::now(), done.load(Ordering::Relaxed));
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                (done.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64()
            })
        }
    });
    client.join().unwrap()
}

async fn send(stream: &mut TcpStream, done: &AtomicU64) {
    let chunk = vec![0; CHUNK_BYTES];
    loop {
        stream.write_all(&chunk).await.unwrap();
        done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
}

async fn ask(stream: &mut TcpStream, done: &AtomicU64) {
    let mut request = [7; REQUEST_BYTES];
    loop {
        stream.write_all(&request).await.unwrap();
        stream.read_exact(&mut request).await.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
    }
}
