//! Wire types of the mesh, generated at build time from `proto/*.proto`.
//!
//! Numbers and packages are those of Istio and Envoy, so that either end may be theirs; the words in the files are ours. [`waypoint`] is
//! our own (ADR 6). Only the crates at the wire use these types: [`xds`], [`workload`], [`security`] and [`waypoint`] become `tropis-model`
//! in `tropis-xds::convert`, [`citadel`] serves `tropis-tls` and the certificate authority, [`zds`] the redirector and the node proxy.

macro_rules! generated {
    ($(#[$doc:meta])* $module:ident, $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; proto/ has the documentation")]
        pub mod $module {
            tonic::include_proto!($package);
        }
    };
}

generated!(
    /// Workloads and services (`proto/workload.proto`).
    workload,
    "istio.workload"
);
generated!(
    /// Authorization policies (`proto/security.proto`).
    security,
    "istio.security"
);
generated!(
    /// The envelope of delta xDS, client and server (`proto/discovery.proto`).
    xds,
    "envoy.service.discovery.v3"
);
generated!(
    /// Certificate signing, client and server (`proto/citadel.proto`).
    citadel,
    "istio.v1.auth"
);
generated!(
    /// The node agent hands pods to the node proxy (`proto/zds.proto`).
    zds,
    "istio.workload.zds"
);
generated!(
    /// What a waypoint is told about hosts and about itself (`proto/waypoint.proto` and what it imports).
    waypoint,
    "tropis.waypoint.v1"
);

/// `type_url` of a resource that holds a [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// `type_url` of a resource that holds a [`security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// `type_url` of a resource that holds a [`waypoint::Host`].
pub const HOST_TYPE: &str = "type.googleapis.com/tropis.waypoint.v1.Host";
/// `type_url` of a resource that holds a [`waypoint::Waypoint`].
pub const WAYPOINT_TYPE: &str = "type.googleapis.com/tropis.waypoint.v1.Waypoint";
/// `type_url` of [`waypoint::Labels`] in an extension of a workload.
pub const LABELS_TYPE: &str = "type.googleapis.com/tropis.waypoint.v1.Labels";
/// Name of the extension of a workload that carries [`waypoint::Labels`].
pub const LABELS_EXTENSION: &str = "tropis.labels";
/// Key in [`citadel::IstioCertificateRequest::metadata`] under which a node proxy names the identity that it asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::{security, waypoint, workload, zds};

    /// Numbers are the contract with other implementations: these bytes were written by hand from the reference tables.
    #[test]
    fn field_numbers_are_those_of_the_reference() {
        let del = zds::WorkloadRequest { payload: Some(zds::workload_request::Payload::Del(zds::DelWorkload { uid: "u".into() })) };
        assert_eq!(del.encode_to_vec(), [0x12, 0x03, 0x12, 0x01, b'u']);
        let hello = zds::ZdsHello { version: zds::Version::V1.into() };
        assert_eq!(hello.encode_to_vec(), [0x08, 0x01]);
        let clause = security::Clause { matches: vec![security::Match { destination_ports: vec![80], ..Default::default() }] };
        assert_eq!(clause.encode_to_vec(), [0x12, 0x03, 0x4a, 0x01, 80]);
        let pod = workload::Workload { uid: "u".into(), capacity: Some(0), ..Default::default() };
        let host = waypoint::Host { namespace: "n".into(), hostname: "h".into(), ..Default::default() };
        assert_eq!(host.encode_to_vec(), [0x0a, 0x01, b'n', 0x12, 0x01, b'h']);
        assert_eq!(pod.encode_to_vec(), [0xa2, 0x01, 0x01, b'u', 0xda, 0x01, 0x00]);
    }
    /// The server's versions are hashes of the bytes.
    #[test]
    fn equal_messages_have_equal_bytes() {
        let ports = |keys: [&str; 3]| workload::Workload {
            services: keys.into_iter().map(|key| (key.to_owned(), workload::PortList::default())).collect(),
            ..Default::default()
        };
        assert_eq!(ports(["a", "b", "c"]).encode_to_vec(), ports(["c", "a", "b"]).encode_to_vec());
    }
}
