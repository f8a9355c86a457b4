//! Files that a pod sees: resolver settings, hosts, service account tokens, the mesh's root certificate.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tropis_crds::{Finding, Kind, ObjectRef, codes, names};

use super::Kubelet;
use crate::cluster::Snapshot;
use crate::cluster::object::Key;
use crate::cluster::pods::{self, PodRecord};
use crate::layout::Layout;
use crate::network::addresses::AddressPlan;
use crate::token_files::TokenFile;
use crate::tokens::{Bearer, DEFAULT_AUDIENCE, DEFAULT_LIFETIME, TokenError};

/// Where every pod finds a token for the API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The config map in which the mesh publishes its root certificate.
const ROOT_CERTIFICATE: &str = "istio-ca-root-cert";

/// A pod's files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A file could not be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// A token could not be issued.
    #[error("token")]
    Token(#[from] TokenError),
    /// The pod asks for what no API server would take.
    #[error("{0}")]
    Refused(Box<Finding>),
}

/// A token that a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WantedToken {
    /// The volume, and the file in it.
    file: PathBuf,
    audience: String,
    lifetime: Duration,
}

impl WantedToken {
    /// Pods run as root.
    fn file_in(self, folder: &Path) -> TokenFile {
        TokenFile::new(folder.join(self.file), &self.audience, self.lifetime, 0)
    }
}

/// A path of the host, and where a pod sees it.
type Bind = (PathBuf, PathBuf);

/// Makes the files of a pod; gives what is shown where, and the tokens that need renewing.
pub fn create(kubelet: &Kubelet, key: &Key, record: &PodRecord) -> Result<(Vec<Bind>, Vec<TokenFile>), VolumeError> {
    if let Some(finding) = refusal(key, &record.template) {
        return Err(VolumeError::Refused(Box::new(finding)));
    }
    let folder = folder(&kubelet.layout, &record.uid);
    write(&folder.join("resolv.conf"), &resolver(kubelet.network.plan, &key.namespace))?;
    let hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    write(&folder.join("hosts"), hosts)?;
    let mut binds =
        vec![(folder.join("resolv.conf"), PathBuf::from("/etc/resolv.conf")), (folder.join("hosts"), PathBuf::from("/etc/hosts"))];
    write(&folder.join("serviceaccount").join("namespace"), &key.namespace)?;
    let mut tokens: Vec<TokenFile> = wanted_tokens(&record.template).into_iter().map(|wanted| wanted.file_in(&folder)).collect();
    refresh_tokens(kubelet, key, record, &mut tokens)?;
    binds.push((folder.join("serviceaccount"), PathBuf::from(SERVICE_ACCOUNT)));
    for volume in record.template["spec"]["volumes"].as_array().into_iter().flatten() {
        let Some(name) = volume["name"].as_str() else { continue };
        let content = folder.join("volumes").join(name);
        fs::create_dir_all(&content).map_err(|error| VolumeError::Write(content.clone(), error))?;
        write_config(kubelet, key, volume, &content)?;
        binds.extend(mount_paths(record, name).map(|target| (content.clone(), target)));
    }
    Ok((binds, tokens))
}

/// Writes the tokens of a pod whose time has come.
pub fn refresh_tokens(kubelet: &Kubelet, key: &Key, record: &PodRecord, tokens: &mut [TokenFile]) -> Result<(), VolumeError> {
    let now = SystemTime::now();
    for token in tokens {
        token.refresh(&kubelet.tokens, || bearer(key, record, &kubelet.cluster.snapshot()), now)?;
    }
    Ok(())
}

/// What is wrong with the volumes that a pod asks for, if anything: nothing of it may lead out of the pod's own folder, or elsewhere than
/// it seems to. The rules are the API server's.
fn refusal(key: &Key, template: &Value) -> Option<Finding> {
    let refuse = |field: String, found: &Value, problem: &str, accepted: &str| {
        let pod = ObjectRef::new(Kind::Pod, &*key.namespace, &*key.name);
        let finding = Finding::error(codes::SCHEMA_VALIDATION_ERROR, pod).field(field).found(found.to_string()).problem(problem);
        Some(finding.accepted(accepted).effect("the pod does not run; everything else does"))
    };
    let spec = &template["spec"];
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        if !volume["name"].as_str().is_some_and(names::is_dns_label) {
            let field = format!("spec.volumes[{index}].name");
            return refuse(field, &volume["name"], "is not a volume name", "at most 63 of a-z, 0-9 and -");
        }
        for (number, source) in volume["projected"]["sources"].as_array().into_iter().flatten().enumerate() {
            let path = &source["serviceAccountToken"]["path"];
            if !path.is_null() && !path.as_str().is_some_and(stays_below) {
                let field = format!("spec.volumes[{index}].projected.sources[{number}].serviceAccountToken.path");
                return refuse(field, path, "leads out of its volume", "a relative path without ..");
            }
        }
    }
    for (index, container) in spec["containers"].as_array().into_iter().flatten().enumerate() {
        for (number, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
            if !mount["mountPath"].as_str().is_some_and(is_mount_path) {
                let field = format!("spec.containers[{index}].volumeMounts[{number}].mountPath");
                return refuse(field, &mount["mountPath"], "is no place for a volume", "an absolute path without .. and :, not / itself");
            }
        }
    }
    None
}

fn is_mount_path(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    let below_root = parts.next() == Some(Component::RootDir) && parts.clone().next().is_some();
    below_root && !path.contains(':') && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Who a pod is to the token issuer.
pub fn bearer(key: &Key, record: &PodRecord, snapshot: &Snapshot) -> Bearer {
    let account = pods::service_account(&record.template["spec"]);
    let node = record.node.clone().unwrap_or_default();
    let uid = |key: &Key| snapshot.uids.get(key).cloned().unwrap_or_default();
    Bearer {
        namespace: key.namespace.clone(),
        service_account: account.to_owned(),
        service_account_uid: uid(&Key::new("ServiceAccount", &key.namespace, account)),
        pod: key.name.clone(),
        pod_uid: record.uid.clone(),
        node_uid: snapshot.nodes.iter().find(|one| one.name == node).map(|one| one.uid.clone()).unwrap_or_default(),
        node,
    }
}

/// Removes a pod's files.
pub fn remove(layout: &Layout, uid: &str) {
    // What cannot be removed now goes with the state directory.
    let _ = fs::remove_dir_all(folder(layout, uid));
}

fn folder(layout: &Layout, uid: &str) -> PathBuf {
    layout.volumes().join(uid)
}

/// `resolv.conf` as the kubelet writes it, with the cluster DNS in both families.
fn resolver(plan: AddressPlan, namespace: &str) -> String {
    let [v4, v6] = plan.dns().both();
    format!("nameserver {v4}\nnameserver {v6}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")
}

fn wanted_tokens(template: &Value) -> Vec<WantedToken> {
    let mut wanted = vec![WantedToken {
        file: Path::new("serviceaccount").join("token"),
        audience: DEFAULT_AUDIENCE.to_owned(),
        lifetime: DEFAULT_LIFETIME,
    }];
    for volume in template["spec"]["volumes"].as_array().into_iter().flatten() {
        let Some(name) = volume["name"].as_str() else { continue };
        for source in volume["projected"]["sources"].as_array().into_iter().flatten() {
            let token = &source["serviceAccountToken"];
            let Some(path) = token["path"].as_str().filter(|path| stays_below(path)) else { continue };
            let seconds = token["expirationSeconds"].as_u64().unwrap_or(3600);
            wanted.push(WantedToken {
                file: Path::new("volumes").join(name).join(path),
                audience: token["audience"].as_str().unwrap_or(DEFAULT_AUDIENCE).to_owned(),
                // Kubernetes accepts nothing shorter.
                lifetime: Duration::from_secs(seconds.max(600)),
            });
        }
    }
    wanted
}

/// Writes what a volume takes from config maps, its own or projected ones.
fn write_config(kubelet: &Kubelet, key: &Key, volume: &Value, content: &Path) -> Result<(), VolumeError> {
    let direct = std::iter::once(&volume["configMap"]);
    let projected = volume["projected"]["sources"].as_array().into_iter().flatten().map(|source| &source["configMap"]);
    let snapshot = kubelet.cluster.snapshot();
    for map in direct.chain(projected) {
        let Some(name) = map["name"].as_str() else { continue };
        if name == ROOT_CERTIFICATE {
            // Published by tropisd into its state folder here; not there yet is no error: it appears with the next start of the pod.
            let certificate = fs::read_to_string(kubelet.layout.root_certificate()).unwrap_or_default();
            write(&content.join("root-cert.pem"), &certificate)?;
        }
        let object = snapshot.objects.get(&Key::new("ConfigMap", &key.namespace, name));
        for (file, text) in object.and_then(|object| object["data"].as_object()).into_iter().flatten() {
            if let Some(text) = text.as_str().filter(|_| stays_below(file)) {
                write(&content.join(file), text)?;
            }
        }
    }
    Ok(())
}

fn mount_paths(record: &PodRecord, volume: &str) -> impl Iterator<Item = PathBuf> {
    let containers = record.template["spec"]["containers"].as_array().into_iter().flatten();
    let mounts = containers.flat_map(|container| container["volumeMounts"].as_array().into_iter().flatten());
    mounts.filter(move |mount| mount["name"] == volume).filter_map(|mount| {
        let path = PathBuf::from(mount["mountPath"].as_str()?);
        // Only where nothing of the host has to be made for it.
        (path.starts_with("/var/run") || path.starts_with("/run") || path.is_dir()).then_some(path)
    })
}

fn stays_below(path: &str) -> bool {
    let path = Path::new(path);
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn write(path: &Path, content: &str) -> Result<(), VolumeError> {
    tropis_source::write::replace(path, content.as_bytes()).map_err(|error| VolumeError::Write(path.to_path_buf(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_resolver_asks_the_cluster_in_both_families() {
        let text = resolver(AddressPlan::new(0), "shop");
        assert!(text.starts_with("nameserver 10.96.0.10\nnameserver fd00:10:96::a\nsearch shop.svc.cluster.local "), "{text}");
    }

    #[test]
    fn projected_tokens_have_their_audience_and_stay_in_their_volume() {
        let source = |path: &str| json!({"serviceAccountToken": {"path": path, "audience": "istio-ca", "expirationSeconds": 43200}});
        let template =
            json!({"spec": {"volumes": [{"name": "t", "projected": {"sources": [source("istio-token"), source("../../etc/x")]}}]}});
        let wanted = wanted_tokens(&template);
        assert_eq!(wanted.len(), 2, "{wanted:?}");
        assert_eq!((wanted[1].file.to_str(), wanted[1].audience.as_str()), (Some("volumes/t/istio-token"), "istio-ca"));
    }

    #[test]
    fn volumes_that_would_lead_elsewhere_are_refused_with_a_finding() {
        let refused = |spec: Value| refusal(&Key::pod("shop", "cart"), &json!({ "spec": spec })).map(|finding| finding.to_string());
        let mount = |path: &str| json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": path}]}]});
        let token = |path: &str| json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": path}}]}}]});
        let volume = |name: &str| json!({"volumes": [{"name": "good"}, {"name": name}]});
        for bad in ["../..", "a/b", "..", "/etc", "", "A", "a\u{0}"] {
            assert!(refused(volume(bad)).is_some(), "{bad:?}");
        }
        for bad in ["/", "/var/run/../../etc", "var/run", "", "/run/a:b", ".."] {
            assert!(refused(mount(bad)).is_some(), "{bad:?}");
        }
        for bad in ["../token", "/token", "a/../../b", ""] {
            assert!(refused(token(bad)).is_some(), "{bad:?}");
        }
        assert!(refused(json!({"volumes": [{}]})).is_some(), "a volume without a name");
        for good in [volume("istio-token-1"), mount("/var/run/secrets/tokens"), mount("/run/x/"), token("deep/istio-token"), json!({})] {
            assert_eq!(refused(good.clone()), None, "{good}");
        }
        assert_eq!(
            refused(volume("../..")).as_deref(),
            Some(
                "Error [IST0106] (Pod shop/cart) spec.volumes[1].name: \"../..\" is not a volume name (at most 63 of a-z, 0-9 and -); the \
                 pod does not run; everything else does"
            )
        );
    }
}
