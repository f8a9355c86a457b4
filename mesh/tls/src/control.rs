//! The connection to the control plane, for certificates and for xDS alike: gRPC over TLS, the client known by its token.
//!
//! The channel connects when first used and again after it broke; each time it reads the root certificates anew, so a rotated root
//! needs no restart. The token file is read for every request, as kubelet renews it under our feet.

mod connector;
mod credentials;
mod roots;

use std::time::Duration;

use http::Uri;
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

use self::connector::Connector;
pub use self::{
    credentials::{Credentials, InvalidHeader, TokenSource},
    roots::{RootError, RootSource},
};

/// Where the control plane is and how it proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlEndpoint {
    /// `https://HOST:PORT` (`XDS_ADDRESS`, `CA_ADDRESS`); `https://` may be left out.
    pub address: String,
    /// The roots that its certificate must chain to (`XDS_ROOT_CA`, `CA_ROOT_CA`).
    pub root: RootSource,
    /// The name that its certificate must have, if not the host of the address (`ALT_XDS_HOSTNAME`, `ALT_CA_HOSTNAME`).
    pub server_name: Option<String>,
}

impl ControlEndpoint {
    /// From settings as Istio's charts make them, with Istio's defaults; `in_kubernetes` says which address that is.
    pub fn from_settings(address: Option<&str>, root_ca: Option<&str>, server_name: Option<&str>, in_kubernetes: bool) -> Self {
        let default = if in_kubernetes { "istiod.istio-system.svc:15012" } else { "localhost:15012" };
        let found = address.unwrap_or(default);
        Self {
            address: if found.contains("://") { found.to_owned() } else { format!("https://{found}") },
            root: RootSource::from_setting(root_ca.unwrap_or("./var/run/secrets/istio/root-cert.pem")),
            server_name: server_name.map(str::to_owned),
        }
    }
}

/// The address cannot be used. Settings are checked at start, so this stops the program there.
#[derive(Debug, Error)]
#[error("{address:?} is not an address of a control plane such as https://istiod.istio-system.svc:15012: {detail}")]
pub struct InvalidEndpoint {
    /// What was set.
    pub address: String,
    /// What is wrong with it.
    pub detail: String,
}

/// Resolving, connecting and shaking hands together.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// HTTP/2 PING interval: finds a control plane that vanished without a word.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer to a PING may take.
const PING_LIMIT: Duration = Duration::from_secs(10);

/// A channel that connects lazily and reconnects by itself when used after it broke. To be called within a runtime, whose the
/// channel's work then is.
///
/// # Errors
/// The address or the server name cannot be used.
pub fn channel(endpoint: &ControlEndpoint) -> Result<Channel, InvalidEndpoint> {
    let invalid = |detail: String| InvalidEndpoint { address: endpoint.address.clone(), detail };
    let target = Target::parse(endpoint).map_err(invalid)?;
    // TLS is the connector's: the URI that tonic dials must not be https, the one that it sends must.
    let dialled = Endpoint::from_shared(format!("http://{}", target.authority)).map_err(|error| invalid(error.to_string()))?;
    let origin = Uri::builder().scheme("https").authority(target.authority.as_str()).path_and_query("/").build();
    let dialled = dialled
        .origin(origin.map_err(|error| invalid(error.to_string()))?)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true);
    let connector =
        Connector::new(&target.host, target.port, &target.server_name, endpoint.root.clone(), CONNECT_LIMIT).map_err(invalid)?;
    Ok(dialled.connect_with_connector_lazy(connector))
}

#[derive(Debug, PartialEq, Eq)]
struct Target {
    authority: String,
    host: String,
    port: u16,
    server_name: String,
}

impl Target {
    fn parse(endpoint: &ControlEndpoint) -> Result<Self, String> {
        let address = endpoint.address.trim();
        let bare = match address.split_once("://") {
            None => address,
            Some(("https", rest)) => rest,
            Some((scheme, _)) => return Err(format!("the scheme is {scheme}, and only https is spoken")),
        };
        let uri: Uri =
            format!("https://{}", bare.trim_end_matches('/')).parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        if uri.path() != "/" {
            return Err("it has a path".to_owned());
        }
        let host =
            uri.host().filter(|host| !host.is_empty()).ok_or("there is no host")?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().ok_or("there is no port")?;
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let server_name = endpoint.server_name.clone().unwrap_or_else(|| host.clone());
        Ok(Self { authority, host, port, server_name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(address: &str, server_name: Option<&str>) -> Result<Target, String> {
        let root = RootSource::Pem(String::new());
        Target::parse(&ControlEndpoint { address: address.to_owned(), root, server_name: server_name.map(str::to_owned) })
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (address, name, authority, host, server_name) in [
            (
                "https://istiod.istio-system.svc:15012",
                None,
                "istiod.istio-system.svc:15012",
                "istiod.istio-system.svc",
                "istiod.istio-system.svc",
            ),
            ("10.88.0.2:15012", Some("istiod.istio-system.svc"), "10.88.0.2:15012", "10.88.0.2", "istiod.istio-system.svc"),
            ("https://[fd00:10:88::2]:15012/", None, "[fd00:10:88::2]:15012", "fd00:10:88::2", "fd00:10:88::2"),
        ] {
            let expected = Target { authority: authority.into(), host: host.into(), port: 15012, server_name: server_name.into() };
            assert_eq!(parse(address, name), Ok(expected), "{address}");
        }
    }

    #[test]
    fn what_cannot_be_dialled_safely_is_refused() {
        for address in ["http://istiod:15010", "istiod", "", "https://istiod:15012/path", "https://:15012", "https://a b:1"] {
            assert!(parse(address, None).is_err(), "{address}");
        }
    }
}
