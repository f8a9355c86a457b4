//! Which ports a pod listens on, from its own `/proc/net/tcp{,6}`: no probe crosses the network.

use std::collections::BTreeSet;
use std::fs;

use crate::network::namespace::Namespace;

/// Ports in LISTEN.
pub type Listening = BTreeSet<u16>;

/// State `LISTEN` in the tables (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// The ports in LISTEN inside `namespace`; empty when it cannot be looked at.
pub fn listening(namespace: &Namespace) -> Listening {
    let tables =
        namespace.run(|| ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()));
    tables.unwrap_or_default().iter().flat_map(|table| ports(table)).collect()
}

/// The ports in LISTEN of one table: `sl local_address rem_address st …`, addresses as `HEX:PORT`.
fn ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (state == LISTEN).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_listening_ports_only() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
             1: 0100007F:1F91 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0\n\
             2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0 0 0\n";
        assert_eq!(ports(table).collect::<Vec<_>>(), [8080, 80]);
    }
}
