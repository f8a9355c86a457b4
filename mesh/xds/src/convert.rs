//! Wire to model and back, one resource at a time.
//!
//! A resource that cannot be understood is refused as a whole and by name ([`InvalidResource`]), so that the value which is in force
//! stays in force. Where Istio's proxy drops the part that it does not know, this one refuses: a match that lost one of its values says
//! something else than its author wrote. For a policy without a value in force there is [`denying_policy`]. A file per message:
//! [`workload`], [`service`], [`policy`]; [`address`] has the parts that they share.

use std::{collections::HashSet, sync::Arc};

use prost::Message;
use thiserror::Error;
use tropis_model::{policy::PolicyKey, view::Change};
use tropis_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, security,
    workload::{self as wire, address::Type as AddressKind},
    xds::Resource,
};

mod address;
mod policy;
mod service;
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

/// Decodes a resource of type [`ADDRESS_TYPE`].
pub fn decode_address(resource: &Resource, strings: &mut Interner) -> Result<Change, InvalidResource> {
    let address: wire::Address = body(resource, ADDRESS_TYPE)?;
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

/// Decodes a resource of type [`AUTHORIZATION_TYPE`].
pub fn decode_authorization(resource: &Resource, strings: &mut Interner) -> Result<Change, InvalidResource> {
    let policy = policy::from_wire(body(resource, AUTHORIZATION_TYPE)?, strings)?;
    named(resource, &policy.key.0)?;
    Ok(Change::Policy(Arc::new(policy)))
}

/// What the removal of `name` under `type_url` means; `None` for a type that this mesh does not use.
pub fn removal(type_url: &str, name: &str) -> Option<Change> {
    match type_url {
        ADDRESS_TYPE => Some(Change::RemoveAddress(name.into())),
        AUTHORIZATION_TYPE => Some(Change::RemovePolicy(PolicyKey(name.into()))),
        _ => None,
    }
}

fn body<M: Message + Default>(resource: &Resource, type_url: &'static str) -> Result<M, InvalidResource> {
    let any = resource.resource.as_ref().ok_or(InvalidResource::NoBody)?;
    if any.type_url != type_url {
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
    pub type_url: &'static str,
    /// Name of the resource.
    pub name: Arc<str>,
    /// Other names that it may be asked for by.
    pub aliases: Vec<String>,
    /// The encoded message; `None` when the resource is gone.
    pub body: Option<Vec<u8>>,
}

/// Encodes a change. The same model value always gives the same bytes.
pub fn encode(change: &Change) -> Encoded {
    match change {
        Change::Workload(workload) => {
            let message = wire::Address { r#type: Some(AddressKind::Workload(workload::to_wire(workload))) };
            Encoded {
                type_url: ADDRESS_TYPE,
                name: workload.uid.0.clone(),
                aliases: workload.addresses.iter().map(|address| format!("{}/{address}", workload.network)).collect(),
                body: Some(message.encode_to_vec()),
            }
        }
        Change::Service(service) => {
            let message = wire::Address { r#type: Some(AddressKind::Service(service::to_wire(service))) };
            Encoded {
                type_url: ADDRESS_TYPE,
                name: service.hostname.to_string().into(),
                aliases: service.addresses.iter().map(service::alias).collect(),
                body: Some(message.encode_to_vec()),
            }
        }
        Change::Policy(policy) => {
            let message: security::Authorization = policy::to_wire(policy);
            Encoded { type_url: AUTHORIZATION_TYPE, name: policy.key.0.clone(), aliases: Vec::new(), body: Some(message.encode_to_vec()) }
        }
        Change::RemoveAddress(name) => Encoded { type_url: ADDRESS_TYPE, name: name.clone(), aliases: Vec::new(), body: None },
        Change::RemovePolicy(key) => Encoded { type_url: AUTHORIZATION_TYPE, name: key.0.clone(), aliases: Vec::new(), body: None },
    }
}

#[cfg(test)]
mod tests;
