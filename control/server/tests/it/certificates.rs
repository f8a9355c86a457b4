//! What is signed, for how long, and that tropisd's own certificate renews itself.

use std::sync::Arc;

use tonic::Code;
use tropis_model::identity::Identity;
use tropis_tls::{
    authority::{Citadel, CitadelOptions},
    control::{self, ControlEndpoint, Credentials, RootSource, TokenSource},
    store::Certificates,
};
use x509_parser::pem::parse_x509_pem;

use crate::harness::{Ask, Tropisd};

#[tokio::test]
async fn a_certificate_comes_with_its_root_last_and_lives_as_long_as_asked() {
    let tropisd = Tropisd::start(&["--max-certificate-lifetime", "172800"]);
    tropisd.ready().await;
    let token = tropisd.token("shop", "cart", "cart", "a");
    for (seconds, lives) in [(0, 86_400), (3600, 3600), (172_800, 172_800)] {
        let issued = tropisd.certify(Some(&token), Ask { seconds, ..Ask::default() }).await.unwrap();
        let [leaf, root] = issued.response.cert_chain.as_slice() else { panic!("leaf and root") };
        assert_eq!(*root, tropisd.root_pem());
        let (leaf, root) = (parse_x509_pem(leaf.as_bytes()).unwrap().1, parse_x509_pem(root.as_bytes()).unwrap().1);
        let (leaf, root) = (leaf.parse_x509().unwrap(), root.parse_x509().unwrap());
        leaf.verify_signature(Some(root.public_key())).unwrap();
        let rest = leaf.validity().not_after.timestamp() - time::OffsetDateTime::now_utc().unix_timestamp();
        assert!((lives - 60..=lives).contains(&rest), "{rest} of {lives}");
    }
    for seconds in [172_801, -1] {
        let status = tropisd.certify(Some(&token), Ask { seconds, ..Ask::default() }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test]
async fn a_certificate_renews_itself_and_nothing_else() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    let token = tropisd.token("istio-system", "ztunnel-a", "ztunnel", "a");
    let first = tropisd.certify(Some(&token), Ask::default()).await.unwrap();
    let renewed = tropisd.certify(None, Ask { holder: Some(first.identity()), ..Ask::default() }).await.unwrap();
    assert_eq!(renewed.name(), "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    let other = Ask { holder: Some(first.identity()), identity: Some("spiffe://cluster.local/ns/shop/sa/cart"), ..Ask::default() };
    let status = tropisd.certify(None, other).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    // Of another authority: the handshake fails.
    let stranger = Tropisd::start(&[]);
    stranger.ready().await;
    let status = stranger.certify(None, Ask { holder: Some(first.identity()), ..Ask::default() }).await.unwrap_err();
    // The connection broke (the words are the HTTP client's); an answer, were it a refusal, would have one of tropisd's own codes.
    assert!(matches!(status.code(), Code::Cancelled | Code::Unknown | Code::Unavailable), "{status:?}");
}

#[tokio::test]
async fn the_server_certificate_is_replaced_while_connections_go_on() {
    let tropisd = Tropisd::start(&["--default-certificate-lifetime", "2"]);
    tropisd.ready().await;
    let serials = async || {
        let mut found = Vec::new();
        for address in tropisd.addresses {
            found.push(serial(&tropisd, address).await);
        }
        found
    };
    let first = serials().await;
    assert_eq!(first[0], first[1], "one certificate on both families");
    tropisd.until("the renewal", async || Some(serials().await).filter(|serials| serials[0] != first[0])).await;
    let token = tropisd.token("shop", "cart", "cart", "a");
    tropisd.certify(Some(&token), Ask::default()).await.unwrap();
}

/// Serial number of the certificate that a handshake shows; checks its names as a proxy would.
async fn serial(tropisd: &Tropisd, address: std::net::SocketAddr) -> String {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(tropisd.root_pem().as_bytes()).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let stream = connector.connect("istiod.istio-system.svc".try_into().unwrap(), stream).await.unwrap();
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&certificates[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.iter().map(|name| name.to_string());
    assert!(names.into_iter().any(|name| name.contains("spiffe://cluster.local/ns/istio-system/sa/istiod")));
    leaf.raw_serial_as_string()
}

#[tokio::test]
async fn the_node_proxys_own_client_is_served_on_both_families() {
    let tropisd = Tropisd::start(&[]);
    tropisd.ready().await;
    for address in tropisd.addresses {
        let endpoint = ControlEndpoint {
            address: address.to_string(),
            root: RootSource::File(tropisd.path("root-cert.pem")),
            server_name: Some("istiod.istio-system.svc".into()),
        };
        let token = tropisd.path("token");
        std::fs::write(&token, tropisd.token("istio-system", "ztunnel-b", "ztunnel", "b")).unwrap();
        let credentials = Credentials::new(TokenSource::File(token), [("clusterid", "Kubernetes")]).unwrap();
        let citadel = Citadel::new(control::channel(&endpoint).unwrap(), credentials, CitadelOptions::default());
        let certificates = Certificates::new(Arc::new(citadel));
        let web = Identity::new("cluster.local", "shop", "web");
        let certificate = certificates.get(&web).await.unwrap();
        assert_eq!((certificate.identity(), certificate.roots().len()), (&web, 1));
        let refused = certificates.get(&Identity::new("cluster.local", "shop", "cart")).await.map(|_| ()).unwrap_err();
        assert!(tropis_telemetry::chain(&refused).contains("no pod runs as account shop/cart on node b"), "{refused:?}");
    }
}
