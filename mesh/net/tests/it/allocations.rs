//! Counts allocations: a relay allocates when it starts, and nothing for the bytes that it moves.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::relaying::{Relayed, tcp_pair};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() -> usize {
    ALLOCATIONS.with(Cell::get)
}

/// Both applications read and write on a thread of their own, so that only the relay is counted here.
#[test]
fn moving_bytes_allocates_nothing() {
    const WARM_BYTES: usize = 16 * 1024 * 1024;
    const BYTES: usize = 64 * 1024 * 1024;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (caller, downstream) = tcp_pair("127.0.0.1").await;
        let (upstream, callee) = tcp_pair("::1").await;
        let applications = std::thread::spawn({
            let (caller, callee) = (caller.into_std().unwrap(), callee.into_std().unwrap());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let (caller, callee) = (TcpStream::from_std(caller).unwrap(), TcpStream::from_std(callee).unwrap());
                    tokio::join!(
                        async {
                            let (mut read, mut write) = caller.into_split();
                            let sent = async { write.write_all(&vec![1; WARM_BYTES + BYTES]).await };
                            let (sent, _) = tokio::join!(sent, read.read_u8());
                            sent.unwrap();
                        },
                        async {
                            let (mut read, mut write) = callee.into_split();
                            write.write_u8(1).await.unwrap();
                            let mut chunk = vec![0; 1024 * 1024];
                            while read.read(&mut chunk).await.unwrap() > 0 {}
                        }
                    )
                });
            }
        });
        let mut relayed = Relayed::start(downstream, upstream);
        relayed.run_until_sent(WARM_BYTES as u64).await;
        let (before, sent) = (count(), relayed.control.sent());
        relayed.run_until_sent((WARM_BYTES + BYTES / 2) as u64).await;
        let (allocations, moved) = (count() - before, relayed.control.sent() - sent);
        assert!(allocations <= 8, "{allocations} allocations for {moved} bytes");
        relayed.finish().await;
        applications.join().unwrap();
    });
}
