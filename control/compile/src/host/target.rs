//! The service that a destination of a route means.

use std::sync::Arc;

use tropis_crds::{Object, istio::virtual_service::Destination};
use tropis_model::{address::NamespacedHostname, pool::PoolKey};

use crate::{Index, service};

/// What a host in a route means.
pub(crate) struct Target<'a> {
    /// The service's key, whether it exists or not.
    pub(crate) host: NamespacedHostname,
    /// The Service, if it exists.
    pub(crate) service: Option<&'a Arc<Object>>,
}

impl<'a> Target<'a> {
    /// Finds what a full host means to an object of `namespace`. A Service of type ExternalName stands for the host that it names.
    pub(crate) fn find(index: &'a Index, namespace: &str, host: &str) -> Self {
        let Some(service) = index.service_named(host) else { return Self::unknown(namespace, host) };
        let spec = service.service().and_then(|service| service.spec.as_ref());
        let external = spec.filter(|spec| spec.type_.as_deref() == Some("ExternalName")).and_then(|spec| spec.external_name.as_deref());
        let Some(external) = external else { return Self::known(index, service) };
        let external = external.trim_end_matches('.').to_ascii_lowercase();
        // Once: a name that leads to another ExternalName leads nowhere.
        match index.service_named(&external) {
            Some(service) if service::compile(index.settings(), service).0.is_some() => Self::known(index, service),
            _ => Self::unknown(&service.metadata.namespace, &external),
        }
    }

    /// The pool of a destination for traffic that came to `port`: the destination's port, or the service's only one, or the same.
    pub(crate) fn pool(&self, destination: &Destination, port: u16) -> PoolKey {
        let chosen = destination.port.and_then(|port| u16::try_from(port.number).ok());
        let port = chosen.or_else(|| self.only_port()).unwrap_or(port);
        let subset = (!destination.subset.is_empty()).then(|| destination.subset.as_str().into());
        PoolKey { host: self.host.clone(), port, subset }
    }

    /// The ports of the service that the mesh carries.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let spec = self.service.and_then(|service| service.service()?.spec.as_ref());
        let ports = spec.into_iter().flat_map(|spec| spec.ports.iter().flatten()).filter(|port| service::is_tcp(port));
        ports.filter_map(|port| u16::try_from(port.port).ok()).collect()
    }

    fn only_port(&self) -> Option<u16> {
        match self.ports().as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }

    fn known(index: &Index, service: &'a Arc<Object>) -> Self {
        Self { host: service::key(index.settings(), service), service: Some(service) }
    }

    fn unknown(namespace: &str, host: &str) -> Self {
        Self { host: NamespacedHostname { namespace: namespace.into(), hostname: host.into() }, service: None }
    }
}
