//! The TCP sockets of a pod, from its own `/proc/net/tcp{,6}`: nothing crosses the network to learn of them, and what the mesh does to
//! addresses that applications see does not show here.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::network::namespace::Namespace;

/// Ports in LISTEN.
pub type Listening = BTreeSet<u16>;
/// Connections: the own address, and the other end's.
pub type Established = BTreeSet<(SocketAddr, SocketAddr)>;

/// States in the tables (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// The ports in LISTEN inside `namespace`; empty when it cannot be looked at.
pub fn listening(namespace: &Namespace) -> Listening {
    tables(namespace).iter().flat_map(|table| in_state(table, LISTEN)).map(|(local, _)| local.port()).collect()
}

/// The connections inside `namespace`; empty when it cannot be looked at.
pub fn established(namespace: &Namespace) -> Established {
    tables(namespace).iter().flat_map(|table| in_state(table, ESTABLISHED)).collect()
}

fn tables(namespace: &Namespace) -> [String; 2] {
    let read = || ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default());
    namespace.run(read).unwrap_or_default()
}

/// The sockets of one table in a state: `sl local_address rem_address st …`, addresses as `HEX:PORT`.
fn in_state(table: &str, wanted: &str) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        (state == wanted).then_some((socket(local)?, socket(remote)?))
    })
}

/// `HEX:PORT`: words of the address as this machine keeps them, the port as people write it. A mapped address becomes IPv4.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words = address.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let address = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_ports_are_told_from_connections() {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let own = word([127, 0, 0, 1]);
        let mapped = [[0; 4], [0; 4], [0, 0, 255, 255], [10, 1, 2, 3]].map(word).concat();
        let table = format!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: {own}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
             1: {own}:1F91 {own}:8000 01 00000000:00000000 00:00000000 00000000     0\n\
             2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0 0 0\n\
             3: {mapped}:1B58 {mapped}:9000 01 0 0 0\n\
             4: nonsense:1F92 {own}:8000 01\n"
        );
        let ports: Vec<u16> = in_state(&table, LISTEN).map(|(local, _)| local.port()).collect();
        assert_eq!(ports, [8080, 80]);
        let connections: Vec<String> = in_state(&table, ESTABLISHED).map(|(local, remote)| format!("{local} {remote}")).collect();
        assert_eq!(connections, ["127.0.0.1:8081 127.0.0.1:32768", "10.1.2.3:7000 10.1.2.3:36864"]);
    }
}
