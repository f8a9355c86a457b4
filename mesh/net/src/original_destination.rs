//! Where a captured connection was going before it came to us.
//!
//! One function for both kinds of capture: our BPF hook answers `SO_ORIGINAL_DST` from socket storage, netfilter's conntrack answers
//! it where istio-cni redirects. Nothing else in the mesh reads it.

use std::{io, net::SocketAddr, os::fd::AsFd};

use socket2::{SockAddr, SockRef};
use tropis_model::address::{OriginalDestination, canonical};

/// Asks for the original destination at the IPv4 level first, then at the IPv6 level (`getsockopt` 0/80, then 41/80), and makes an
/// IPv4-mapped answer IPv4. `None` when neither knows: the connection was not captured, somebody dialled the listener itself.
///
/// # Errors
/// The socket is not one that can be asked (closed, or not TCP).
pub fn original_destination(socket: &impl AsFd) -> io::Result<Option<OriginalDestination>> {
    let socket = SockRef::from(socket);
    choose(socket.original_dst_v4(), || socket.original_dst_v6())
}

fn choose(v4: io::Result<SockAddr>, v6: impl FnOnce() -> io::Result<SockAddr>) -> io::Result<Option<OriginalDestination>> {
    if let Some(found) = known(v4)? {
        return Ok(Some(found));
    }
    known(v6())
}

fn known(answer: io::Result<SockAddr>) -> io::Result<Option<OriginalDestination>> {
    match answer {
        // An all-zero answer is a hook that had nothing to say about this socket.
        Ok(address) => Ok(address.as_socket().filter(|found| found.port() != 0).map(destination)),
        Err(error) if is_unknown(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn destination(found: SocketAddr) -> OriginalDestination {
    OriginalDestination(canonical(found))
}

/// What the kernel says when nobody answers: no such option (no netfilter, no hook; `EOPNOTSUPP` for the IPv6 level of an IPv4
/// socket), or no entry for this connection.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> io::Result<SockAddr> {
        Ok(text.parse::<SocketAddr>().unwrap().into())
    }

    fn refusal(errno: i32) -> io::Result<SockAddr> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn the_first_level_that_knows_wins() {
        let found = |v4, v6: io::Result<SockAddr>| choose(v4, || v6).unwrap().map(|found| found.0.to_string());
        let cases = [
            (answer("10.0.0.1:80"), refusal(libc::EOPNOTSUPP), Some("10.0.0.1:80")),
            (answer("10.0.0.1:80"), answer("[fd00::1]:80"), Some("10.0.0.1:80")),
            (refusal(libc::ENOPROTOOPT), answer("[fd00::1]:80"), Some("[fd00::1]:80")),
            (refusal(libc::ENOENT), answer("[::ffff:10.0.0.1]:80"), Some("10.0.0.1:80")),
            (answer("[::ffff:10.0.0.1]:80"), refusal(libc::ENOENT), Some("10.0.0.1:80")),
            (answer("0.0.0.0:0"), answer("[fd00::1]:80"), Some("[fd00::1]:80")),
            (refusal(libc::ENOENT), refusal(libc::ENOENT), None),
            (refusal(libc::ENOPROTOOPT), refusal(libc::ENOPROTOOPT), None),
        ];
        for (index, (v4, v6, expected)) in cases.into_iter().enumerate() {
            assert_eq!(found(v4, v6).as_deref(), expected, "case {index}");
        }
    }

    #[test]
    fn a_dead_socket_is_an_error() {
        assert!(choose(refusal(libc::EBADF), || refusal(libc::ENOENT)).is_err());
        assert!(choose(refusal(libc::ENOENT), || refusal(libc::ENOTCONN)).is_err());
    }
}
