//! Accepting without dying: a listener outlives what goes wrong with one connection, and waits when descriptors run out. And ending
//! without loss: closing a listener resets what waits in its queue, and the callers of that were told that they are connected.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockFilter, SockRef};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout_at},
};
use tropis_model::address::canonical;

/// The next connection and the address that it came from (never IPv4-mapped).
///
/// Connections that died in the queue are skipped. When descriptors or memory have run out it waits (10 ms, doubling to 1 s) and
/// tries again, since giving up the listener would turn a shortage into an outage.
///
/// # Errors
/// The listener itself is broken; accepting again would fail again.
pub async fn next(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let mut pause = PAUSE_FIRST;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => return Ok((stream, canonical(from))),
            Err(error) => match judge(&error) {
                Judgement::Skip => {}
                Judgement::Wait => {
                    tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept connections for now");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_LAST);
                }
                Judgement::Stop => return Err(error),
            },
        }
    }
}

/// Ends a listener: `take` gets everything that it had promised to serve. New callers are not answered meanwhile; they ask again within
/// a second, and meet whoever listens then, or nobody. It takes [`HANDSHAKES`]. Dropping the future closes the listener at once.
pub async fn finish(listener: TcpListener, mut take: impl FnMut(TcpStream, SocketAddr)) {
    if let Err(error) = SockRef::from(&listener).attach_filter(&NO_NEW_CALLERS) {
        tracing::debug!(%error, "a listener that ends goes on answering until it is closed");
    }
    let deadline = Instant::now() + HANDSHAKES;
    while let Ok(Ok((stream, from))) = timeout_at(deadline, next(&listener)).await {
        take(stream, from);
    }
    // The runtime may not have noticed yet what came last; the kernel knows.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..MOST_QUEUED {
        match listener.accept() {
            Ok((stream, from)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    take(stream, canonical(from));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if judge(&error) == Judgement::Skip => {}
            Err(error) => return tracing::warn!(%error, "connections that waited to be accepted are lost"),
        }
    }
}

/// How long the answers of callers who were answered last may take: several times what is between two nodes.
pub const HANDSHAKES: Duration = Duration::from_millis(100);
/// More than any queue holds: where new callers could not be kept off, it ends too.
const MOST_QUEUED: usize = 1 << 16;

/// A socket filter that drops what only opens a connection: SYN without ACK. It sees a segment from its TCP header on, whose byte 13 has
/// the flags (RFC 9293 §3.1). What answers a handshake under way passes.
const NO_NEW_CALLERS: [SockFilter; 5] = [
    filter(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
    filter(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
    filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
    filter(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    filter(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
];
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

const fn filter(code: u32, jt: u8, jf: u8, k: u32) -> SockFilter {
    SockFilter::new(code as u16, jt, jf, k)
}

const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LAST: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// It was about that connection only.
    Skip,
    /// A shortage that may pass.
    Wait,
    /// The listener is no good.
    Stop,
}

/// accept(2): errors that are already pending on the new socket are reported here and are to be treated like a retry.
fn judge(error: &io::Error) -> Judgement {
    match error.raw_os_error() {
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EAGAIN
            | libc::EPERM
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::ECONNRESET
            | libc::ETIMEDOUT,
        ) => Judgement::Skip,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Judgement::Wait,
        _ => Judgement::Stop,
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsRawFd};

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_bad_connection_or_a_shortage_never_stops_a_listener() {
        for (errno, expected) in [
            (libc::ECONNABORTED, Judgement::Skip),
            (libc::EPERM, Judgement::Skip),
            (libc::EMFILE, Judgement::Wait),
            (libc::ENOMEM, Judgement::Wait),
            (libc::EBADF, Judgement::Stop),
            (libc::EINVAL, Judgement::Stop),
        ] {
            assert_eq!(judge(&io::Error::from_raw_os_error(errno)), expected, "{errno}");
        }
    }

    /// `TCP_DEFER_ACCEPT`: 10 s.
    fn defer_accept(listener: &TcpListener) {
        let seconds: libc::c_int = 10;
        let (value, length) = (std::ptr::from_ref(&seconds).cast(), size_of_val(&seconds) as libc::socklen_t);
        // SAFETY: the option reads an int, which lives longer than the call.
        let result = unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, length) };
        assert_eq!(result, 0);
    }

    /// Ends a listener and gives how many were accepted before `meanwhile` and during it.
    async fn finished(listener: TcpListener, meanwhile: impl FnOnce() + Send + 'static) -> usize {
        let meanwhile = tokio::task::spawn_blocking(meanwhile);
        let mut taken = Vec::new();
        finish(listener, |stream, from| taken.push((stream, from))).await;
        meanwhile.await.unwrap();
        taken.len()
    }

    #[tokio::test]
    async fn what_waits_in_the_queue_is_served_though_the_runtime_has_not_noticed() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            // It looked, and nobody was there; since then this thread has not waited for anything.
            assert!(next(&listener).now_or_never().is_none());
            let address = listener.local_addr().unwrap();
            let waiting: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            assert_eq!(finished(listener, || {}).await, waiting.len(), "{address}");
            assert!(std::net::TcpStream::connect(address).is_err());
        }
    }

    #[tokio::test]
    async fn a_handshake_under_way_is_finished_and_none_begins() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let address = listener.local_addr().unwrap();
            // The listener takes no notice of the caller's last word of the handshake, as if it were on its way, until data comes.
            defer_accept(&listener);
            let caller = std::net::TcpStream::connect(address).unwrap();
            assert!(next(&listener).now_or_never().is_none(), "not yet in the queue");
            let taken = finished(listener, move || {
                std::thread::sleep(HANDSHAKES / 4);
                let late = std::net::TcpStream::connect_timeout(&address, HANDSHAKES / 4);
                assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
                (&caller).write_all(b"here").unwrap();
            });
            assert_eq!(taken.await, 1, "{address}");
        }
    }

    #[tokio::test]
    async fn accepts_on_both_families_with_one_socket() {
        let options = crate::listen::ListenOptions::default();
        let listening = crate::listen::tcp_listener("[::]:0".parse().unwrap(), &options).unwrap();
        let listener = TcpListener::from_std(listening.listener).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let client = TcpStream::connect(&address).await.unwrap();
            let (accepted, from) = next(&listener).await.unwrap();
            assert_eq!(from, client.local_addr().unwrap());
            assert!(accepted.nodelay().unwrap(), "inherited from the listener");
        }
    }
}
