//! The stand-in cluster itself: pods outside the mesh reach each other by name and address in both families.

use anyhow::ensure;
use tropis_tests::testkit::{Exchange, Resolved};
use tropis_tests::{Family, Lab};

use crate::support::{Case, Cast, Company, play, port};

#[test]
fn pods_without_mesh_talk_by_service_name_in_both_families() {
    play(Company::Welcome, |lab| Box::pin(talk(lab)));
}

#[test]
fn a_capture_sees_what_is_not_encrypted() {
    play(Company::Welcome, |lab| Box::pin(see(lab)));
}

/// The proof of encryption rests on this: the same capture finds the canary where there is no mesh.
async fn see(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "openly", false).await?;
    for case in Case::all() {
        let server = cast.server(case);
        let mut captures = vec![("the client's interface", cast.client.capture()?), ("the server's interface", server.capture()?)];
        if case.across_nodes {
            captures.push(("the node link", lab.capture_link("a")?));
        }
        let said = cast.echo(&cast.client, &server.socket(case.family, port::ECHO), "a canary in the open").await?;
        ensure!(said.ok, "{case}: {said:?}");
        let ours = [cast.client.address(case.family), server.address(case.family)];
        for (place, capture) in captures {
            let captured = capture.finish()?;
            ensure!(captured.contains(b"a canary in the open"), "{case}: {place} does not show the payload");
            let plain = captured.plaintext(|socket| ours.contains(&socket.ip()));
            ensure!(plain.len() == 2, "{case}: {place} shows question and answer: {plain:?}");
        }
    }
    cast.leave()
}

async fn talk(lab: &Lab) -> anyhow::Result<()> {
    let cast = Cast::gather(lab, "wiring", false).await?;
    for case in Case::all() {
        let server = cast.server(case);
        let family = case.family;
        for target in [
            format!("{}:{}", server.name(), port::ECHO),
            format!("servers.wiring.svc.cluster.local:{}", port::ECHO),
            server.socket(family, port::ECHO),
        ] {
            let said: Exchange = cast.client.run(&["echo", family.flag(), &target, "hello"]).await?;
            ensure!(said.ok, "{case}: echo through {target}: {said:?}");
        }
        let service = lab.service_address("wiring", server.name(), family).expect("both families");
        let said: Exchange =
            cast.client.run(&["connect", family.flag(), &format!("{}:{}", server.name(), port::ECHO), "--send", "x"]).await?;
        let peer: std::net::SocketAddr = said.peer.clone().unwrap_or_default().parse()?;
        ensure!(said.ok && peer.ip() == service, "{case}: the name leads to the service's address {service}: {said:?}");
    }
    for (family, transport) in Family::BOTH.into_iter().flat_map(|family| [(family, "udp"), (family, "tcp")]) {
        let mut command =
            vec!["resolve", "servers.wiring.svc.cluster.local", "--type", if family == Family::V4 { "A" } else { "AAAA" }, family.flag()];
        if transport == "tcp" {
            command.push("--tcp");
        }
        let said: Resolved = cast.client.run(&command).await?;
        let mut expected: Vec<String> =
            Case::all().filter(|case| case.family == family).map(|case| cast.server(case).address(family).to_string()).collect();
        let mut answers = said.answers.clone();
        answers.sort();
        expected.sort();
        ensure!(said.ok && answers == expected, "{family} by {transport}: {said:?}, expected {expected:?}");
    }
    let none: Resolved = cast.client.run(&["resolve", "example.org"]).await?;
    ensure!(none.rcode.as_deref() == Some("NXDOMAIN"), "the cluster DNS has no upstream: {none:?}");
    cast.leave()
}
