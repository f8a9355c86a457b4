//! Accepting without dying: a listener outlives what goes wrong with one connection, and waits when descriptors run out.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};
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
