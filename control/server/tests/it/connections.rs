//! What strangers may take of the port that proxies connect to: real connections to a running tropisd.

use std::{sync::Arc, time::Duration};

use rustls::{
    HandshakeKind,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Ask, PATIENCE, Tropisd, get};

/// TLS as proxies speak it; with a certificate if one is given.
fn connector(tropisd: &Tropisd, holder: Option<(&str, &str)>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(tropisd.root_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match holder {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn handshake(connector: &TlsConnector, tropisd: &Tropisd, family: usize) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(tropisd.addresses[family]).await?;
    connector.connect("istiod.istio-system.svc".try_into().unwrap(), stream).await
}

async fn refused(tropisd: &Tropisd, reason: &str) -> u64 {
    let (_, metrics) = get(&format!("http://{}/metrics", tropisd.monitoring)).await.unwrap();
    let name = format!("tropis_server_connections_refused_total{{reason=\"{reason}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn connections_that_prove_nothing_end_and_others_last() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let token = tropisd.token("shop", "cart", "cart", "a");
    let channel = tropisd.channel(tropisd.addresses[0], None).await.unwrap();
    tropisd.certify_over(channel.clone(), Some(&token), Ask::default()).await.unwrap();

    // One that says nothing after its handshake, and one that says nothing at all.
    let started = Instant::now();
    let mut idle = handshake(&connector(&tropisd, None), &tropisd, 0).await.unwrap();
    let mut silent = TcpStream::connect(tropisd.addresses[1]).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, idle.read_to_end(&mut rest)).await.expect("it ends");
    let _ = timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("it ends");
    assert!(started.elapsed() >= Duration::from_secs(9), "not at once: {:?}", started.elapsed());
    // Counted a moment after the caller has seen its end.
    let counted = async || ((refused(&tropisd, "idle").await, refused(&tropisd, "handshake").await) == (1, 1)).then_some(());
    tropisd.until("both are counted", counted).await;

    // The one that had shown its token is the same as before.
    tropisd.certify_over(channel, Some(&token), Ask::default()).await.unwrap();
}

#[tokio::test]
async fn one_address_has_a_share_and_the_others_do_not_notice() {
    // Of sixteen, two may be without proof.
    let tropisd = Tropisd::start(&["--max-connections-per-address", "16"]);
    tropisd.ready().await;
    let connector = connector(&tropisd, None);
    let strangers = [handshake(&connector, &tropisd, 0).await.unwrap(), handshake(&connector, &tropisd, 0).await.unwrap()];
    for _ in 0..20 {
        assert!(handshake(&connector, &tropisd, 0).await.is_err());
    }
    assert_eq!(refused(&tropisd, "address").await, 20);
    handshake(&connector, &tropisd, 1).await.expect("another address");
    // The places are free again as soon as they are left.
    drop(strangers);
    let token = tropisd.token("shop", "cart", "cart", "a");
    tropisd.until("a place", async || tropisd.certify(Some(&token), Ask::default()).await.ok()).await;
}

#[tokio::test]
async fn handshakes_that_go_on_no_further_keep_nobody_out() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    // More than there may be at a time, from a dozen pods, each within its share.
    let mut silent = Vec::new();
    for pod in 2..14 {
        for _ in 0..60 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, pod], 0).into()).unwrap();
            silent.push(socket.connect(tropisd.addresses[0]).await.unwrap());
        }
    }
    let connector = connector(&tropisd, None);
    for _ in 0..10 {
        let shaken = tokio::time::timeout(Duration::from_secs(5), handshake(&connector, &tropisd, 0));
        shaken.await.expect("nobody waits for a place that a silent caller holds").expect("and is served");
    }
    drop(silent);
}

#[tokio::test]
async fn a_connection_ends_when_it_guesses_too_often() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let channel = tropisd.channel(tropisd.addresses[0], None).await.unwrap();
    for _ in 0..40 {
        let _ = tropisd.certify_over(channel.clone(), Some("guess"), Ask::default()).await.unwrap_err();
    }
    tropisd.until("the end", async || (refused(&tropisd, "credentials").await == 1).then_some(())).await;
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let issued = tropisd.certify(Some(&tropisd.token("shop", "cart", "cart", "a")), Ask::default()).await.unwrap();
    let key = issued.key.serialize_pem();
    let connector = connector(&tropisd, Some((&issued.response.cert_chain[0], &key)));
    for _ in 0..3 {
        let mut stream = handshake(&connector, &tropisd, 0).await.unwrap();
        // What the server sends first, tickets among it if there were any.
        let mut settings = [0; 1];
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream.read_exact(&mut settings).await.unwrap();
        assert_ne!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "a certificate would outlive its end");
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
    }
}
