//! Certificates from an authority that speaks Istio's RPC over TLS, as the control plane does.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use prost_types::value::Kind;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Identity as ServerIdentity, Server, ServerTlsConfig},
};
use tropis_model::identity::Identity;
use tropis_proto::citadel::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use tropis_tls::{
    authority::{CertificateAuthority, Citadel, CitadelOptions, SignError},
    certificate::InvalidCertificate,
    control::{ControlEndpoint, Credentials, RootSource, TokenSource, channel},
    peer::identities_in,
    store::Certificates,
    testing::TestAuthority,
};

const NAME: &str = "istiod.istio-system.svc";

/// What a request said: token, cluster, lifetime, and whom it is for.
type Seen = (String, String, i64, BTreeMap<String, String>);

struct ControlPlane {
    authority: TestAuthority,
    seen: Mutex<Vec<Seen>>,
    /// Who is certified instead of the one who asked, and how many parts the answer has.
    answers: Mutex<(Option<Identity>, usize)>,
}

impl ControlPlane {
    async fn start(ip: &str) -> (Arc<Self>, SocketAddr) {
        let plane = Arc::new(Self { authority: TestAuthority::new(), seen: Mutex::default(), answers: Mutex::new((None, 2)) });
        let (certificate, key) = plane.authority.issue_server(NAME);
        let tls = ServerTlsConfig::new().identity(ServerIdentity::from_pem(certificate, key));
        let listener = TcpListener::bind((ip.parse::<std::net::IpAddr>().unwrap(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = IstioCertificateServiceServer::from_arc(Arc::clone(&plane));
        let server = Server::builder().tls_config(tls).unwrap().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (plane, address)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for ControlPlane {
    async fn create_certificate(&self, request: Request<IstioCertificateRequest>) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let (token, cluster) = (header("authorization"), header("clusterid"));
        let asked = request.into_inner();
        let metadata: BTreeMap<_, _> = asked.metadata.unwrap_or_default().fields.into_iter().collect();
        let metadata: BTreeMap<_, _> = metadata
            .into_iter()
            .map(|(key, value)| match value.kind {
                Some(Kind::StringValue(value)) => (key, value),
                other => panic!("{other:?}"),
            })
            .collect();
        self.seen.lock().unwrap().push((token, cluster, asked.validity_duration, metadata.clone()));
        let (instead, parts) = self.answers.lock().unwrap().clone();
        let identity = match instead {
            Some(identity) => identity,
            None => metadata.get("ImpersonatedIdentity").ok_or_else(|| Status::unauthenticated("who?"))?.parse().unwrap(),
        };
        let cert_chain = self.authority.sign_csr(&asked.csr, &identity).into_iter().take(parts).collect();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

fn endpoint(address: SocketAddr, root: RootSource) -> ControlEndpoint {
    ControlEndpoint { address: format!("https://{address}"), root, server_name: Some(NAME.to_owned()) }
}

fn citadel(endpoint: &ControlEndpoint, token: TokenSource, options: CitadelOptions) -> Citadel {
    let credentials = Credentials::new(token, [("clusterid", "Kubernetes")]).unwrap();
    Citadel::new(channel(endpoint).unwrap(), credentials, options)
}

fn identity() -> Identity {
    Identity::new("cluster.local", "shop", "cart")
}

#[tokio::test]
async fn a_certificate_is_asked_for_as_istio_does() {
    for ip in ["127.0.0.1", "::1"] {
        let (plane, address) = ControlPlane::start(ip).await;
        let endpoint = endpoint(address, RootSource::Pem(plane.authority.root_pem()));
        let citadel = citadel(&endpoint, TokenSource::Literal("token".into()), CitadelOptions::default());
        let certificates = Certificates::new(Arc::new(citadel));
        let certificate = certificates.get(&identity()).await.unwrap();
        assert_eq!(certificate.identity(), &identity());
        assert_eq!(identities_in(&certificate.chain()[0]), [identity()]);
        assert_eq!((certificate.chain().len(), certificate.roots().len()), (1, 1));
        let named = BTreeMap::from([("ImpersonatedIdentity".to_owned(), identity().to_string())]);
        assert_eq!(*plane.seen.lock().unwrap(), [("Bearer token".to_owned(), "Kubernetes".to_owned(), 86400, named)]);
    }
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_errors() {
    let (plane, address) = ControlPlane::start("127.0.0.1").await;
    let endpoint = endpoint(address, RootSource::Pem(plane.authority.root_pem()));
    let citadel = citadel(&endpoint, TokenSource::None, CitadelOptions::default());
    let refused = |result: Result<_, SignError>| result.err().unwrap();

    *plane.answers.lock().unwrap() = (Some(Identity::new("cluster.local", "shop", "thief")), 2);
    let other = refused(citadel.sign(&identity()).await);
    assert!(matches!(other, SignError::Answer(InvalidCertificate::OtherIdentity { .. })), "{other:?}");
    *plane.answers.lock().unwrap() = (None, 1);
    let short = refused(citadel.sign(&identity()).await);
    assert!(matches!(short, SignError::Answer(InvalidCertificate::ShortChain { found: 1 })), "{short:?}");
}

#[tokio::test]
async fn without_impersonation_nobody_is_named() {
    let (plane, address) = ControlPlane::start("127.0.0.1").await;
    let endpoint = endpoint(address, RootSource::Pem(plane.authority.root_pem()));
    let options = CitadelOptions { impersonate: false, ..CitadelOptions::default() };
    let answer = citadel(&endpoint, TokenSource::None, options).sign(&identity()).await;
    assert!(matches!(answer, Err(SignError::Refused { code: Code::Unauthenticated, .. })));
    assert_eq!(plane.seen.lock().unwrap()[0].3, BTreeMap::new());
}

#[tokio::test]
async fn root_and_token_files_are_read_again_by_a_running_channel() {
    let (plane, address) = ControlPlane::start("127.0.0.1").await;
    let folder = tempfile::tempdir().unwrap();
    let (root, token) = (folder.path().join("root-cert.pem"), folder.path().join("istio-token"));
    let citadel = citadel(&endpoint(address, RootSource::File(root.clone())), TokenSource::File(token.clone()), CitadelOptions::default());

    std::fs::write(&token, "first").unwrap();
    let code = |answer: Result<_, SignError>| match answer {
        Err(SignError::Refused { code, .. }) => code,
        other => panic!("{:?}", other.err()),
    };
    assert_eq!(code(citadel.sign(&identity()).await), Code::Unavailable, "no root, no connection");
    std::fs::write(&root, TestAuthority::new().root_pem()).unwrap();
    assert_eq!(code(citadel.sign(&identity()).await), Code::Unavailable, "somebody else's root");
    std::fs::write(&root, plane.authority.root_pem()).unwrap();
    citadel.sign(&identity()).await.unwrap();
    std::fs::write(&token, "second").unwrap();
    citadel.sign(&identity()).await.unwrap();
    std::fs::remove_file(&token).unwrap();
    assert_eq!(code(citadel.sign(&identity()).await), Code::Unauthenticated, "no token, no request");
    let tokens: Vec<_> = plane.seen.lock().unwrap().iter().map(|(token, ..)| token.clone()).collect();
    assert_eq!(tokens, ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn a_control_plane_with_another_name_is_not_believed() {
    let (plane, address) = ControlPlane::start("127.0.0.1").await;
    let other = ControlEndpoint {
        server_name: Some("istiod.elsewhere.svc".into()),
        ..endpoint(address, RootSource::Pem(plane.authority.root_pem()))
    };
    let answer = citadel(&other, TokenSource::Literal("secret".into()), CitadelOptions::default()).sign(&identity()).await;
    assert!(matches!(answer, Err(SignError::Refused { code: Code::Unavailable, .. })));
    assert!(plane.seen.lock().unwrap().is_empty(), "the token was not shown to it");
}
