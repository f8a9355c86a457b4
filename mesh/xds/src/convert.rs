//! Wire to model and back, one resource at a time.
//!
//! A resource that cannot be understood is refused as a whole and by name ([`InvalidResource`]), so that the value which is in force
//! stays in force. Where Istio's proxy drops the part that it does not know, this one refuses: a match that lost one of its values says
//! something else than its author wrote. For a policy without a value in force there is [`denying_policy`]. A file per message:
//! [`workload`], [`service`], [`policy`] for everybody, [`waypoint`] with [`route`], [`pool`] and [`request_policy`] for waypoints;
//! [`address`] and [`parts`] have what they share.

use std::{collections::HashSet, sync::Arc};

use prost::Message;
use thiserror::Error;
use tropis_model::{address::NamespacedHostname, policy::PolicyKey, view::Change};
use tropis_proto::{
    workload::{self as wire, address::Type as AddressKind},
    xds::Resource,
};

use crate::ResourceType;

mod address;
mod parts;
mod policy;
mod pool;
mod request_policy;
mod route;
mod service;
mod waypoint;
mod workload;

pub use policy::denying_policy;

/// A resource that was refused, with what is wrong in it. Report it to the sender; what was in force stays in force.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidResource {
    /// The bytes are not the message that the type URL promises.
    #[error("the message cannot be decoded: {0}")]
    Undecodable(String),
    /// The resource has no body.
    #[error("the resource has no body")]
    NoBody,
    /// The body is of another type than the response.
    #[error("the body is of type {0:?}")]
    OtherType(String),
    /// An Address is neither a workload nor a service.
    #[error("the address is neither a workload nor a service")]
    EmptyAddress,
    /// The resource's name is not the key of what it holds: it could never be removed.
    #[error("the resource is named otherwise than its content, {0:?}")]
    OtherName(String),
    /// A field that must be set is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// An address is neither 4 nor 16 bytes long.
    #[error("{field}: an address of {length} bytes")]
    AddressLength {
        /// The field.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A prefix is longer than its address.
    #[error("{field}: a prefix of {length} bits is too long for its address")]
    PrefixLength {
        /// The field.
        field: &'static str,
        /// The prefix length in bits.
        length: u32,
    },
    /// A port is larger than 65535.
    #[error("{field}: {found} is not a port")]
    Port {
        /// The field.
        field: &'static str,
        /// What was found.
        found: u32,
    },
    /// An enum has a value that this version does not know.
    #[error("{field}: the value {found} is not known")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// The number on the wire.
        found: i32,
    },
    /// A value that is known and refused.
    #[error("{field}: {found} is not supported")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What was found.
        found: &'static str,
    },
    /// A key that should be `namespace/hostname`.
    #[error("services: the key {0:?} is not namespace/hostname")]
    ServiceKey(String),
    /// A string match of no kind that is known.
    #[error("{0}: a string match of an unknown kind")]
    UnknownMatch(&'static str),
    /// A match with a condition that this version does not know.
    #[error("a match has the unknown condition {0:?}")]
    UnknownCondition(String),
    /// More entries, or more bytes, than are taken.
    #[error("{field}: {found} are more than {limit}")]
    TooMany {
        /// The field.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A number or a duration that means nothing here.
    #[error("{field}: {found} is not accepted ({accepted})")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// A regular expression that does not compile, or to something too large.
    #[error("{field}: {pattern:?} is not a usable pattern: {reason}")]
    Pattern {
        /// The field.
        field: &'static str,
        /// As it was written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights of a route's destinations do not make shares.
    #[error("destinations: the sum of the weights {0}")]
    Weights(&'static str),
    /// Two entries of one key.
    #[error("{field}: {key} is there twice")]
    Duplicate {
        /// The field.
        field: &'static str,
        /// The key.
        key: String,
    },
    /// Something is wrong in a part that has a name.
    #[error("{part}: {cause}")]
    Within {
        /// The part.
        part: String,
        /// What is wrong in it.
        cause: Box<InvalidResource>,
    },
}

impl InvalidResource {
    fn within(self, part: String) -> Self {
        Self::Within { part, cause: Box::new(self) }
    }
}

/// Gives equal strings one allocation. Names of namespaces, nodes and accounts repeat in every workload; use one a batch.
#[derive(Debug, Default)]
pub struct Interner(HashSet<Arc<str>>);

impl Interner {
    /// The shared copy of `text`.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.0.insert(new.clone());
        new
    }
}

/// Decodes a resource that came in a response of this type.
pub fn decode(r#type: ResourceType, resource: &Resource, strings: &mut Interner) -> Result<Change, InvalidResource> {
    match r#type {
        ResourceType::Address => decode_address(body(resource, r#type)?, resource, strings),
        ResourceType::Authorization => {
            let policy = policy::from_wire(body(resource, r#type)?, strings)?;
            named(resource, &policy.key.0)?;
            Ok(Change::Policy(Arc::new(policy)))
        }
        ResourceType::Host => {
            let host = waypoint::host(body(resource, r#type)?, strings)?;
            named(resource, &host.name.to_string())?;
            Ok(Change::Host(Arc::new(host)))
        }
        ResourceType::Waypoint => {
            let waypoint = waypoint::waypoint(body(resource, r#type)?, strings)?;
            named(resource, &waypoint.key)?;
            Ok(Change::Waypoint(Arc::new(waypoint)))
        }
    }
}

fn decode_address(address: wire::Address, resource: &Resource, strings: &mut Interner) -> Result<Change, InvalidResource> {
    match address.r#type.ok_or(InvalidResource::EmptyAddress)? {
        AddressKind::Workload(wire) => {
            let workload = workload::from_wire(wire, strings)?;
            named(resource, &workload.uid.0)?;
            Ok(Change::Workload(Arc::new(workload)))
        }
        AddressKind::Service(wire) => {
            let service = service::from_wire(wire, strings)?;
            named(resource, &service.hostname.to_string())?;
            Ok(Change::Service(Arc::new(service)))
        }
    }
}

/// What the removal of `name` means; `None` for a name that no resource of the type can have.
pub fn removal(r#type: ResourceType, name: &str) -> Option<Change> {
    Some(match r#type {
        ResourceType::Address => Change::RemoveAddress(name.into()),
        ResourceType::Authorization => Change::RemovePolicy(PolicyKey(name.into())),
        ResourceType::Waypoint => Change::RemoveWaypoint(name.into()),
        ResourceType::Host => {
            let (namespace, hostname) = name.split_once('/')?;
            Change::RemoveHost(NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() })
        }
    })
}

fn body<M: Message + Default>(resource: &Resource, r#type: ResourceType) -> Result<M, InvalidResource> {
    let any = resource.resource.as_ref().ok_or(InvalidResource::NoBody)?;
    if any.type_url != r#type.url() {
        return Err(InvalidResource::OtherType(any.type_url.clone()));
    }
    M::decode(any.value.as_slice()).map_err(|error| InvalidResource::Undecodable(error.to_string()))
}

fn named(resource: &Resource, key: &str) -> Result<(), InvalidResource> {
    if resource.name == key { Ok(()) } else { Err(InvalidResource::OtherName(key.to_owned())) }
}

/// A change as it goes to a client: what the server keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Type of the resource.
    pub r#type: ResourceType,
    /// Name of the resource.
    pub name: Arc<str>,
    /// Other names that it may be asked for by.
    pub aliases: Vec<String>,
    /// The encoded message; `None` when the resource is gone.
    pub body: Option<Vec<u8>>,
}

/// Encodes a change. The same model value always gives the same bytes.
pub fn encode(change: &Change) -> Encoded {
    let present = |r#type, name, body| Encoded { r#type, name, aliases: Vec::new(), body: Some(body) };
    let gone = |r#type, name| Encoded { r#type, name, aliases: Vec::new(), body: None };
    match change {
        Change::Workload(workload) => {
            let message = wire::Address { r#type: Some(AddressKind::Workload(workload::to_wire(workload))) };
            Encoded {
                aliases: workload.addresses.iter().map(|address| format!("{}/{address}", workload.network)).collect(),
                ..present(ResourceType::Address, workload.uid.0.clone(), message.encode_to_vec())
            }
        }
        Change::Service(service) => {
            let message = wire::Address { r#type: Some(AddressKind::Service(service::to_wire(service))) };
            Encoded {
                aliases: service.addresses.iter().map(service::alias).collect(),
                ..present(ResourceType::Address, service.hostname.to_string().into(), message.encode_to_vec())
            }
        }
        Change::Policy(policy) => present(ResourceType::Authorization, policy.key.0.clone(), policy::to_wire(policy).encode_to_vec()),
        Change::Host(host) => present(ResourceType::Host, host.name.to_string().into(), waypoint::host_to_wire(host).encode_to_vec()),
        Change::Waypoint(found) => present(ResourceType::Waypoint, found.key.clone(), waypoint::waypoint_to_wire(found).encode_to_vec()),
        Change::RemoveAddress(name) => gone(ResourceType::Address, name.clone()),
        Change::RemovePolicy(key) => gone(ResourceType::Authorization, key.0.clone()),
        Change::RemoveHost(name) => gone(ResourceType::Host, name.to_string().into()),
        Change::RemoveWaypoint(key) => gone(ResourceType::Waypoint, key.clone()),
    }
}

#[cfg(test)]
mod tests;
