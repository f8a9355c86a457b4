//! Starts a tropisd of its own for each test, and speaks to it as proxies do.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tropis_proto::citadel::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_client::IstioCertificateServiceClient,
};

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Two nodes with a node proxy each, an enrolled namespace with a pod on each node, and one that is not enrolled.
const MESH: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: a, uid: n-a}}
- {apiVersion: v1, kind: Node, metadata: {name: b, uid: n-b}}
- {apiVersion: v1, kind: Namespace, metadata: {name: istio-system, uid: ns-1}}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, uid: ns-2, labels: {istio.io/dataplane-mode: ambient}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: plain, uid: ns-3}}
";

/// A pod as its kubelet describes it.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, account: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": uid(namespace, name), "labels": {"app": name}},
        "spec": {
            "nodeName": node, "serviceAccountName": account, "hostNetwork": account == "ztunnel",
            "containers": [{"name": "main", "image": "tropis/testkit", "ports": [{"containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// The same pod, captured by its redirector.
pub(crate) fn enrolled(mut pod: Value) -> Value {
    pod["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    pod
}

fn uid(namespace: &str, name: &str) -> String {
    format!("uid-{namespace}-{name}")
}

/// A running tropisd with its folder.
pub(crate) struct Tropisd {
    child: Child,
    pub(crate) folder: TempDir,
    pub(crate) key: KeyPair,
    /// IPv4, IPv6.
    pub(crate) addresses: [SocketAddr; 2],
    pub(crate) monitoring: SocketAddr,
    arguments: Vec<String>,
}

impl Tropisd {
    /// With the mesh above and its pods.
    pub(crate) fn start(more: &[&str]) -> Self {
        let stopped = Stopped::new(more);
        stopped.apply("cluster/mesh.yaml", MESH);
        let pods = [
            pod("istio-system", "ztunnel-a", "a", "ztunnel", "10.88.0.11"),
            pod("istio-system", "ztunnel-b", "b", "ztunnel", "10.88.0.12"),
            enrolled(pod("shop", "cart", "a", "cart", "10.244.1.2")),
            enrolled(pod("shop", "web", "b", "web", "10.244.2.2")),
            pod("plain", "old", "a", "old", "10.244.1.3"),
        ];
        for pod in &pods {
            let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
            stopped.apply(&format!("cluster/{}-{}.yaml", namespace.as_str().unwrap(), name.as_str().unwrap()), &pod.to_string());
        }
        stopped.start()
    }

    /// SIGKILL: nothing is said to anybody.
    pub(crate) fn kill(mut self) -> Stopped {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut arguments = std::mem::take(&mut self.arguments);
        // The next one listens where this one did: proxies look for it there.
        let listen = arguments.iter().position(|argument| argument == "--listen").unwrap();
        arguments[listen + 1] = format!("{},{}", self.addresses[0], self.addresses[1]);
        let key = KeyPair::from_pem(&self.key.serialize_pem()).unwrap();
        let folder = std::mem::replace(&mut self.folder, TempDir::new().unwrap());
        Stopped { folder, key, arguments }
    }

    /// SIGTERM; gives the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn apply(&self, name: &str, text: &str) {
        write(self.folder.path(), name, text);
    }

    pub(crate) fn delete(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Waits until a condition holds; `what` names it in the failure.
    pub(crate) async fn until<T>(&self, what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "{what} did not come true");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn ready(&self) {
        let url = format!("http://{}/readyz", self.monitoring);
        self.until("readiness", async || get(&url).await.filter(|(status, _)| *status == 200)).await;
    }

    pub(crate) fn root_pem(&self) -> String {
        fs::read_to_string(self.path("root-cert.pem")).unwrap()
    }

    /// A token of a pod, as the kubelet projects it.
    pub(crate) fn token(&self, namespace: &str, pod: &str, account: &str, node: &str) -> String {
        self.sign(&claims(namespace, pod, account, node))
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        sign(&self.key, claims)
    }

    /// A channel as a proxy opens it; `identity`: with a client certificate.
    pub(crate) async fn channel(&self, address: SocketAddr, identity: Option<Identity>) -> Result<Channel, tonic::transport::Error> {
        channel(address, &self.root_pem(), identity).await
    }

    /// Asks for a certificate.
    pub(crate) async fn certify(&self, token: Option<&str>, ask: Ask<'_>) -> Result<Issued, Status> {
        let channel = self.channel(self.addresses[0], ask.holder.clone()).await.map_err(|error| Status::unknown(error.to_string()))?;
        self.certify_over(channel, token, ask).await
    }

    /// Asks for a certificate over a connection that is there.
    pub(crate) async fn certify_over(&self, channel: Channel, token: Option<&str>, ask: Ask<'_>) -> Result<Issued, Status> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let metadata = ask.identity.map(|identity| prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), prost_types::Value::from(identity))].into(),
        });
        let message = IstioCertificateRequest { csr, validity_duration: ask.seconds, metadata };
        let response = IstioCertificateServiceClient::new(channel).create_certificate(bearer(message, token)).await?;
        Ok(Issued { response: response.into_inner(), key })
    }

    pub(crate) async fn debug(&self, path: &str) -> Value {
        serde_json::from_str(&get_unix(&self.path("debug.sock"), path).await.unwrap()).unwrap()
    }
}

impl Drop for Tropisd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a certificate request asks for.
#[derive(Default)]
pub(crate) struct Ask<'a> {
    pub(crate) identity: Option<&'a str>,
    pub(crate) seconds: i64,
    pub(crate) holder: Option<Identity>,
}

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) response: IstioCertificateResponse,
    pub(crate) key: KeyPair,
}

impl Issued {
    /// To show it in a handshake.
    pub(crate) fn identity(&self) -> Identity {
        Identity::from_pem(&self.response.cert_chain[0], self.key.serialize_pem())
    }

    /// The only name.
    pub(crate) fn name(&self) -> String {
        let pem = x509_parser::pem::parse_x509_pem(self.response.cert_chain[0].as_bytes()).unwrap().1;
        let certificate = pem.parse_x509().unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let [x509_parser::extensions::GeneralName::URI(uri)] = names.value.general_names.as_slice() else { panic!("one name") };
        (*uri).to_owned()
    }
}

/// Everything of a tropisd but the process.
pub(crate) struct Stopped {
    folder: TempDir,
    key: KeyPair,
    arguments: Vec<String>,
}

impl Stopped {
    fn new(more: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        fs::write(path("token.pub"), key.public_key_pem()).unwrap();
        for name in ["objects", "cluster", "reported"] {
            fs::create_dir(path(name)).unwrap();
        }
        let own = [
            ["--source", &format!("dir:{}", folder.path().display())],
            ["--state", &path("state")],
            ["--listen", "127.0.0.1:0,[::1]:0"],
            ["--monitoring", "127.0.0.1:0"],
            ["--debug-socket", &path("debug.sock")],
            ["--token-key", &path("token.pub")],
            ["--root-cert-out", &path("root-cert.pem")],
            ["--log-format", "json"],
        ];
        let arguments = own.iter().flatten().chain(more).map(|argument| (*argument).to_owned()).collect();
        Self { folder, key, arguments }
    }

    pub(crate) fn apply(&self, name: &str, text: &str) {
        write(self.folder.path(), name, text);
    }

    pub(crate) fn start(self) -> Tropisd {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tropisd")).args(&self.arguments).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (found, addresses) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                println!("{line}");
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                let text = line["address"].as_str().unwrap_or_default();
                if let Ok(address) = text.parse::<SocketAddr>() {
                    // Nobody listens any more once all were found.
                    let _ = found.send(address);
                }
            }
        });
        let address = || addresses.recv_timeout(PATIENCE).expect("tropisd says where it listens");
        let (addresses, monitoring) = ([address(), address()], address());
        Tropisd { child, folder: self.folder, key: self.key, addresses, monitoring, arguments: self.arguments }
    }
}

/// As a whole or not at all, as the harness and the CLI write.
fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    let fresh = path.with_extension("tmp");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, &path).unwrap();
}

pub(crate) fn claims(namespace: &str, pod: &str, account: &str, node: &str) -> Value {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    json!({
        "iss": "https://kubernetes.default.svc", "aud": ["istio-ca"], "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "iat": now, "nbf": now, "exp": now + 3600,
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": "sa"},
            "pod": {"name": pod, "uid": uid(namespace, pod)},
            "node": {"name": node, "uid": format!("n-{node}")},
        },
    })
}

pub(crate) fn sign(key: &KeyPair, claims: &Value) -> String {
    let key = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
}

pub(crate) async fn channel(address: SocketAddr, root_pem: &str, identity: Option<Identity>) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root_pem)).domain_name("istiod.istio-system.svc");
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect_timeout(PATIENCE).connect().await
}

pub(crate) fn bearer<M>(message: M, token: Option<&str>) -> Request<M> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Status and body of an HTTP answer; `None` if nobody answers.
pub(crate) async fn get(url: &str) -> Option<(u16, String)> {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    exchange(tokio::net::TcpStream::connect(host).await.ok()?, &format!("/{path}")).await
}

async fn get_unix(socket: &Path, path: &str) -> Option<String> {
    let (status, body) = exchange(tokio::net::UnixStream::connect(socket).await.ok()?, path).await?;
    (status == 200).then_some(body)
}

async fn exchange(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
