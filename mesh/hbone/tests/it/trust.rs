//! Who is let in: nobody without a certificate of our authority and trust domain, and nobody who is not who was dialled.

use std::{rc::Rc, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tropis_hbone::{
    client::{Opened, Pool, PoolOptions, TunnelError},
    server::{AcceptError, ServerOptions},
};
use tropis_model::{identity::Identity, outcome::Reason};
use tropis_tls::{
    certificate::WorkloadCertificate,
    store::Certificates,
    testing::{Behaviour, TestAuthority},
};

use crate::fixture::{Callee, Mesh, dialler, echo, identity, key, open, request, run, until};

#[test]
fn the_right_peers_shake_hands_and_know_each_other() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "::1", ServerOptions::default()).await;
        let opened = open(&mesh.pool(PoolOptions::default()), callee.address, echo("::1").await).await.unwrap();
        assert_eq!(opened.peer, identity("reviews"));
    });
}

#[test]
fn a_server_that_is_somebody_else_is_refused() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let pool = mesh.pool(PoolOptions::default());
        let target = "127.0.0.1:1".parse().unwrap();
        for expected in [vec![identity("ratings")], vec![], vec![Identity::new("other.local", "shop", "reviews")]] {
            let key = tropis_hbone::client::TunnelKey { expected: expected.clone().into(), ..key(callee.address) };
            let error = pool.open(&key, &request(target), dialler(callee.address, &Rc::default())).await.err().unwrap();
            assert_eq!(error.reason(), Reason::PeerUntrusted, "{expected:?}");
        }
        assert_eq!(callee.sessions.get(), 0);
        let among = tropis_hbone::client::TunnelKey { expected: [identity("x"), identity("reviews")].into(), ..key(callee.address) };
        let refused = pool.open(&among, &request(target), dialler(callee.address, &Rc::default())).await.err().unwrap();
        assert_eq!(refused.reason(), Reason::TunnelRefused, "TLS was fine, the application is not there");
    });
}

/// What a client with this TLS configuration gets to see: TLS 1.3 tells it of a refusal only when it reads.
async fn is_let_in(callee: &Callee, config: ClientConfig) -> bool {
    let tcp = TcpStream::connect(callee.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    match connector.connect(callee.address.ip().into(), tcp).await {
        Ok(mut tls) => tls.read_u8().await.is_ok(),
        Err(_) => false,
    }
}

fn client_of(certificate: &WorkloadCertificate) -> ClientConfig {
    Arc::unwrap_or_clone(certificate.client_config(&[identity("reviews")]).unwrap())
}

#[test]
fn clients_without_proof_are_refused() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let honest = mesh.authority.issue(&identity("productpage"));
        assert!(is_let_in(&callee, client_of(&honest)).await);
        until(|| callee.ends.borrow().len() == 1).await;

        let mut roots = RootCertStore::empty();
        roots.add(mesh.authority.root().clone()).unwrap();
        // Without any certificate; checks of ours are in the way of none of this, the server alone decides.
        let nameless = || {
            let mut config = client_of(&honest);
            config.client_auth_cert_resolver = Arc::new(NoCertificate);
            config
        };
        let foreign_domain = mesh.authority.issue(&Identity::new("evil.local", "shop", "productpage"));
        let stranger = TestAuthority::new();
        let (chain, stolen_key) = stranger.issue_for(&[&identity("productpage").to_string()]);
        let roots_for_stranger = vec![mesh.authority.root().clone()];
        let strange = WorkloadCertificate::new(&identity("productpage"), stolen_key, chain, roots_for_stranger).unwrap();
        mesh.authority.behave(Behaviour {
            lifetime: Duration::from_secs(60),
            starts_ago: Duration::from_secs(120),
            ..Behaviour::default()
        });
        let expired = mesh.authority.issue(&identity("productpage"));
        for (name, config) in [
            ("no certificate", nameless()),
            ("another trust domain", client_of(&foreign_domain)),
            ("another authority", client_of(&strange)),
            ("expired", client_of(&expired)),
        ] {
            let before = callee.ends.borrow().len();
            assert!(!is_let_in(&callee, config).await, "{name}");
            until(|| callee.ends.borrow().len() > before).await;
            assert!(matches!(callee.ends.borrow()[before], Err(AcceptError::Tls { .. })), "{name}");
        }
    });
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn servers_without_proof_are_refused() {
    run(async {
        let mesh = Mesh::new();
        let stranger = Arc::new(TestAuthority::new());
        let impostor = Mesh { certificates: Certificates::new(Arc::clone(&stranger) as Arc<_>), authority: stranger };
        let callee = Callee::relaying(&impostor, "127.0.0.1", ServerOptions::default()).await;
        let pool = mesh.pool(PoolOptions::default());
        let error = open(&pool, callee.address, callee.address).await.err().unwrap();
        assert_eq!(error.reason(), Reason::PeerUntrusted, "{error}");
    });
}

#[test]
fn a_client_hears_that_the_server_does_not_trust_it() {
    run(async {
        let mesh = Mesh::new();
        let callee = Callee::relaying(&mesh, "127.0.0.1", ServerOptions::default()).await;
        let pool = mesh.pool(PoolOptions::default());
        let stranger = Identity::new("evil.local", "shop", "productpage");
        let key = tropis_hbone::client::TunnelKey { source_identity: stranger, ..key(callee.address) };
        let error = pool.open(&key, &request(callee.address), dialler(callee.address, &Rc::default())).await.err().unwrap();
        assert_eq!(error.reason(), Reason::PeerUntrusted, "{error:?}");
    });
}

#[test]
fn no_certificate_means_no_tunnel() {
    run(async {
        let mesh = Mesh::new();
        mesh.authority.behave(Behaviour { refuses: true, ..Behaviour::default() });
        let pool: Pool = mesh.pool(PoolOptions::default());
        let nobody = "127.0.0.1:1".parse().unwrap();
        let result: Result<Opened, TunnelError> = open(&pool, nobody, nobody).await;
        assert_eq!(result.err().unwrap().reason(), Reason::CertificateUnavailable);
    });
}
