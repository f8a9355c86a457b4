//! A document becomes an object, or findings that say why not.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    codes, core,
    finding::{Finding, ObjectRef},
    gateway_api::gateway,
    istio::{authorization_policy, destination_rule, peer_authentication, virtual_service},
    kind::{Kind, Named, Support},
    names, nearest,
    object::{Metadata, Object, Typed},
    reader::{self, Misfit, Unknown},
    unread,
};

/// What a refused document says until someone knows whether a good version of it is in force.
pub const EFFECT_REFUSED: &str = "the document is refused";
/// The namespace of a namespaced object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// What is the matter with a field of no meaning.
const UNKNOWN_FIELD: &str = "is in a field that the schema does not know";
/// All of an object's annotations together (the API server's limit).
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Decodes one document.
///
/// `Ok` holds the object and whatever is worth telling about it (unknown fields of a Kubernetes kind, a kind that nothing obeys).
///
/// # Errors
/// The findings that refuse it, at least one of [`Level::Error`](crate::Level): nothing may change because of this document; its last
/// good version stays in force. Their `effect` is [`EFFECT_REFUSED`]; a caller that knows better replaces it.
pub fn decode(value: Value) -> Result<(Object, Vec<Finding>), Vec<Finding>> {
    let header = header(&value).map_err(|finding| vec![*finding])?;
    let mut findings = Vec::new();
    let mut about = About { object: header.object, findings: &mut findings };
    let Some(metadata) = metadata(&mut about, &value) else { return Err(findings) };
    let typed = typed(&mut about, header.kind, &value);
    if about.findings.iter().any(|finding| finding.level == crate::Level::Error) {
        return Err(findings);
    }
    let Some(typed) = typed else { return Err(findings) };
    unread::tell(&mut about, header.kind, &metadata, &typed);
    if header.kind.support() == Support::NotHonoured {
        about.push(
            Finding::warning(codes::KIND_NOT_HONOURED, about.object.clone())
                .problem(format!("{} is accepted, but nothing in the mesh obeys this kind yet", header.written))
                .effect("traffic is as if the object did not exist"),
        );
    } else if header.kind == Kind::Other {
        about.push(
            Finding::info(codes::KIND_NOT_READ, about.object.clone())
                .field("kind")
                .found(header.written)
                .problem("means nothing to the mesh")
                .effect("the object is skipped"),
        );
    }
    Ok((Object { kind: header.kind, metadata, value: value.into(), typed }, findings))
}

/// The key of a document, as far as one can be read: enough to tell which object a refused document was meant to be.
pub fn reference(value: &Value) -> Option<ObjectRef> {
    header(value).ok().map(|header| header.object)
}

struct Header {
    kind: Kind,
    object: ObjectRef,
    /// `apiVersion` and kind as the user wrote them.
    written: String,
}

fn header(value: &Value) -> Result<Header, Box<Finding>> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let unreadable = |field: &str, problem: &str| {
        let finding = Finding::error(codes::UNREADABLE_DOCUMENT, ObjectRef::cluster(Kind::File, ""));
        Box::new(finding.field(field).problem(problem).effect(EFFECT_REFUSED))
    };
    if !value.is_object() {
        return Err(Box::new(
            Finding::error(codes::UNREADABLE_DOCUMENT, ObjectRef::cluster(Kind::File, ""))
                .found(reader::shorten(value))
                .problem("is not an object")
                .accepted("a mapping with apiVersion, kind and metadata")
                .effect(EFFECT_REFUSED),
        ));
    }
    let api_version = text("/apiVersion").ok_or_else(|| unreadable("apiVersion", "is missing or not a string"))?;
    let written = text("/kind").ok_or_else(|| unreadable("kind", "is missing or not a string"))?;
    let (kind, served) = match Kind::named(api_version, written) {
        Named::Known(kind) => (kind, true),
        Named::Version(kind) => (kind, false),
        Named::Other => (Kind::Other, true),
    };
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    if kind == Kind::Other && group.ends_with(".istio.io") {
        // A misspelt policy must not pass for a kind of somebody else's.
        let known = Kind::ALL.iter().filter(|kind| kind.group() == group).map(|kind| kind.as_str());
        return Err(Box::new(
            Finding::error(codes::SCHEMA_VALIDATION_ERROR, ObjectRef::cluster(Kind::File, ""))
                .field("kind")
                .found(format!("{written:?}"))
                .problem(format!("is not a kind of {group}"))
                .accepted(known.collect::<Vec<_>>().join(", "))
                .effect(EFFECT_REFUSED),
        ));
    }
    let name = text("/metadata/name").unwrap_or_default();
    let namespace = match (kind.is_namespaced(), text("/metadata/namespace")) {
        (false, _) => "",
        (true, Some(namespace)) => namespace,
        (true, None) => DEFAULT_NAMESPACE,
    };
    let object = ObjectRef::new(kind, namespace, name);
    if !served {
        let (group, accepted) = (kind.group(), kind.versions());
        let prefix = if group.is_empty() { String::new() } else { format!("{group}/") };
        let accepted: Vec<String> = accepted.iter().map(|version| format!("{prefix}{version}")).collect();
        return Err(Box::new(
            Finding::error(codes::SCHEMA_VALIDATION_ERROR, object)
                .field("apiVersion")
                .found(format!("{api_version:?}"))
                .problem(format!("is not a version of {written}"))
                .accepted(accepted.join(", "))
                .effect(EFFECT_REFUSED),
        ));
    }
    if name.is_empty() {
        return Err(Box::new(
            Finding::error(codes::UNREADABLE_DOCUMENT, object)
                .field("metadata.name")
                .problem("is missing or not a string")
                .effect(EFFECT_REFUSED),
        ));
    }
    Ok(Header { kind, object, written: format!("{api_version} {written}") })
}

/// The object that findings are about, and where they go.
pub(crate) struct About<'a> {
    pub(crate) object: ObjectRef,
    pub(crate) findings: &'a mut Vec<Finding>,
}

impl About<'_> {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// A value that refuses the object.
    pub(crate) fn refuse(&mut self, field: &str, found: impl Into<String>, problem: &str, accepted: &str) {
        let mut finding =
            Finding::error(codes::SCHEMA_VALIDATION_ERROR, self.object.clone()).field(field).problem(problem).effect(EFFECT_REFUSED);
        let found = found.into();
        if !found.is_empty() {
            finding = finding.found(found);
        }
        if !accepted.is_empty() {
            finding = finding.accepted(accepted);
        }
        self.push(finding);
    }

    pub(crate) fn misfit(&mut self, misfit: Misfit) {
        let code = if misfit.unreadable { codes::UNREADABLE_VALUE } else { codes::SCHEMA_VALIDATION_ERROR };
        let mut finding = Finding::error(code, self.object.clone()).field(misfit.path).problem(misfit.problem).effect(EFFECT_REFUSED);
        finding.found = misfit.found;
        finding.accepted = misfit.accepted;
        self.push(finding);
    }

    /// Reads `value` strictly: an unknown field refuses the object.
    pub(crate) fn read_strict<'de, T: Deserialize<'de>>(&mut self, value: &'de Value, path: &str) -> Option<T> {
        match reader::read::<T>(value, path) {
            Ok(read) => {
                for unknown in read.unknown {
                    let accepted = fields_there(&unknown);
                    self.refuse(&unknown.path, unknown.found, UNKNOWN_FIELD, &accepted);
                }
                Some(read.value)
            }
            Err(misfit) => {
                self.misfit(misfit);
                None
            }
        }
    }

    /// Reads `value` as the API server reads its own kinds: an unknown field is a warning.
    fn read_lenient<'de, T: Deserialize<'de>>(&mut self, value: &'de Value) -> Option<T> {
        match reader::read::<T>(value, "") {
            Ok(read) => {
                for unknown in read.unknown {
                    let accepted = fields_there(&unknown);
                    self.push(
                        Finding::warning(codes::SCHEMA_WARNING, self.object.clone())
                            .field(unknown.path)
                            .found(unknown.found)
                            .problem(UNKNOWN_FIELD)
                            .accepted(accepted)
                            .effect("the field is ignored"),
                    );
                }
                Some(read.value)
            }
            Err(misfit) => {
                self.misfit(misfit);
                None
            }
        }
    }
}

/// The fields that there are where one stands that is none.
fn fields_there(unknown: &Unknown) -> String {
    let accepted = nearest::accepted(&unknown.name, unknown.known.iter().copied(), "");
    if accepted.is_empty() { "check its name and indentation".to_owned() } else { format!("{accepted}; check its indentation too") }
}

fn metadata(about: &mut About<'_>, value: &Value) -> Option<Metadata> {
    let mut metadata = match reader::read::<Metadata>(value.get("metadata").unwrap_or(&Value::Null), "metadata") {
        Ok(read) => read.value,
        Err(misfit) => {
            about.misfit(misfit);
            return None;
        }
    };
    let kind = about.object.kind;
    metadata.namespace = about.object.namespace.clone();
    let (fits, accepted) = match kind {
        Kind::Namespace => (names::is_dns_label(&metadata.name), "at most 63 of a-z, 0-9 and -"),
        Kind::Service => (names::is_service_name(&metadata.name), "at most 63 of a-z, 0-9 and -, beginning with a letter"),
        Kind::Role | Kind::RoleBinding | Kind::ClusterRole | Kind::ClusterRoleBinding | Kind::Other => {
            (names::is_path_segment(&metadata.name), "neither / nor %")
        }
        _ => (names::is_dns_subdomain(&metadata.name), "at most 253 of a-z, 0-9, - and ."),
    };
    if !fits {
        about.refuse("metadata.name", format!("{:?}", metadata.name), "is not a name for this kind", accepted);
    }
    if kind.is_namespaced() && !names::is_dns_label(&metadata.namespace) {
        let found = format!("{:?}", metadata.namespace);
        about.refuse("metadata.namespace", found, "is not a namespace", "at most 63 of a-z, 0-9 and -");
    }
    for (key, value) in &metadata.labels {
        let field = format!("metadata.labels[{key}]");
        if !names::is_label_key(key) {
            about.refuse(&field, "", "the key is not a label key", "letters, digits, -, _ and ., with an optional DNS prefix/");
        } else if !names::is_label_value(value) {
            about.refuse(&field, format!("{value:?}"), "is not a label value", "at most 63 letters, digits, -, _ and .");
        }
    }
    for key in metadata.annotations.keys().filter(|key| !names::is_label_key(&key.to_ascii_lowercase())) {
        let field = format!("metadata.annotations[{key}]");
        about.refuse(&field, "", "the key is not an annotation key", "letters, digits, -, _ and ., with an optional DNS prefix/");
    }
    if metadata.annotations.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > ANNOTATIONS_MAX_BYTES {
        about.refuse("metadata.annotations", "", "are larger than the API server takes", "262144 bytes together");
    }
    Some(metadata)
}

/// Reads the typed form of the kinds that have one; `None` when it was refused.
fn typed(about: &mut About<'_>, kind: Kind, value: &Value) -> Option<Typed> {
    macro_rules! lenient {
        ($kind:ident) => {
            about.read_lenient(value).map(|typed| Typed::$kind(Box::new(typed)))
        };
    }
    match kind {
        Kind::Namespace => lenient!(Namespace),
        Kind::Node => lenient!(Node),
        Kind::Pod => about.read_lenient(value).map(|pod| {
            core::pod(about, &pod);
            Typed::Pod(Box::new(pod))
        }),
        Kind::Service => about.read_lenient(value).map(|service| {
            core::service(about, &service);
            Typed::Service(Box::new(service))
        }),
        Kind::ServiceAccount => lenient!(ServiceAccount),
        Kind::ConfigMap => lenient!(ConfigMap),
        Kind::Secret => lenient!(Secret),
        Kind::Deployment => about.read_lenient(value).map(|deployment| {
            core::deployment(about, &deployment);
            Typed::Deployment(Box::new(deployment))
        }),
        Kind::ReplicaSet => lenient!(ReplicaSet),
        Kind::StatefulSet => lenient!(StatefulSet),
        Kind::DaemonSet => lenient!(DaemonSet),
        Kind::Job => lenient!(Job),
        Kind::CronJob => lenient!(CronJob),
        Kind::EndpointSlice => about.read_lenient(value).map(|slice| {
            core::endpoint_slice(about, &slice);
            Typed::EndpointSlice(Box::new(slice))
        }),
        Kind::AuthorizationPolicy => about.read_strict(value, "").map(|policy| {
            authorization_policy::validate(about, &policy);
            Typed::AuthorizationPolicy(Box::new(policy))
        }),
        Kind::PeerAuthentication => about.read_strict(value, "").map(|policy| {
            peer_authentication::validate(about, &policy);
            Typed::PeerAuthentication(Box::new(policy))
        }),
        Kind::VirtualService => about.read_strict(value, "").map(|service| {
            virtual_service::validate(about, &service);
            Typed::VirtualService(Box::new(service))
        }),
        Kind::DestinationRule => about.read_strict(value, "").map(|rule| {
            destination_rule::validate(about, &rule);
            Typed::DestinationRule(Box::new(rule))
        }),
        Kind::Gateway => about.read_strict(value, "").map(|gateway| {
            gateway::validate(about, &gateway);
            Typed::Gateway(Box::new(gateway))
        }),
        _ => Some(Typed::Untyped),
    }
}

#[cfg(test)]
mod gateway_tests;
#[cfg(test)]
mod tests;
