//! The TCP sockets that listen in a network namespace, from proc(5).

use std::{
    fs::File,
    io::{self, BufReader},
    net::IpAddr,
    os::fd::BorrowedFd,
};

use nix::sys::socket::{getsockopt, sockopt::Ipv6V6Only};

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) inode: u64,
    pub(super) port: u16,
    ipv6: bool,
}

impl Listening {
    /// Whether `socket`, which this is, takes connections to `address`.
    pub(super) fn serves(&self, address: IpAddr, socket: BorrowedFd<'_>) -> bool {
        match address {
            IpAddr::V4(_) => !self.ipv6 || getsockopt(&socket, Ipv6V6Only).is_ok_and(|only| !only),
            IpAddr::V6(_) => self.ipv6,
        }
    }
}

/// All of them in the namespace that this thread is in.
pub(super) fn listening() -> io::Result<Vec<Listening>> {
    let mut found = Vec::new();
    for (table, ipv6) in [("tcp", false), ("tcp6", true)] {
        match File::open(format!("/proc/thread-self/net/{table}")) {
            Ok(file) => read(BufReader::new(file), ipv6, &mut found)?,
            // A kernel without IPv6.
            Err(error) if ipv6 && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The kernel lists what listens before everything else, so a pod with many connections costs no more than one without.
fn read(table: impl io::BufRead, ipv6: bool, found: &mut Vec<Listening>) -> io::Result<()> {
    for line in table.lines().skip(1) {
        let Some(one) = parse(&line?, ipv6) else { break };
        found.push(one);
    }
    Ok(())
}

/// A line of `/proc/net/tcp`; `None` unless it is of a listener.
fn parse(line: &str, ipv6: bool) -> Option<Listening> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    (*state == LISTEN).then_some(Listening { inode: inode.parse().ok()?, port, ipv6 })
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn listeners_of_this_namespace_are_found_and_connections_are_not() {
        let (v4, v6) = (TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
        let client = TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let found = listening().unwrap();
        let of = |port: u16| found.iter().filter(|one| one.port == port).copied().collect::<Vec<_>>();
        let (four, six) = (of(v4.local_addr().unwrap().port()), of(v6.local_addr().unwrap().port()));
        assert_eq!((four.len(), six.len()), (1, 1));
        assert!(of(client.local_addr().unwrap().port()).is_empty());
        let (ipv4, ipv6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert!(four[0].serves(ipv4, v4.as_fd()) && !four[0].serves(ipv6, v4.as_fd()));
        assert!(six[0].serves(ipv4, v6.as_fd()) && six[0].serves(ipv6, v6.as_fd()), "a dual-stack listener");
    }

    #[test]
    fn reading_ends_at_the_first_connection() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4711 1 0 100 0 0 10 0\n   \
                     1: 0100007F:3A99 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1337        0 4712 1 0 20 4 30 10 -1\n";
        let mut found = Vec::new();
        read(table.as_bytes(), false, &mut found).unwrap();
        assert_eq!(found, [Listening { inode: 4711, port: 15001, ipv6: false }]);
    }
}
