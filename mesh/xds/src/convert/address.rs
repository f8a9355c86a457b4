//! Addresses, blocks, ports and gateways: the parts that several messages share.

use std::net::IpAddr;

use ipnet::IpNet;
use tropis_model::{
    address::{NamespacedHostname, NetworkAddress},
    workload::{GatewayAddress, GatewayDestination},
};
use tropis_proto::workload::{self as wire, gateway_address::Destination};

use super::{Interner, InvalidResource};

/// The HBONE port of a gateway that names none (ambient protocol: waypoints always listen there).
const HBONE_PORT: u16 = 15008;

/// Bits before the IPv4 part of an IPv4-mapped IPv6 address.
const MAPPED_PREFIX: u32 = 96;

/// Reads 4 or 16 bytes; an IPv4-mapped address becomes the IPv4 address.
pub(super) fn ip(bytes: &[u8], field: &'static str) -> Result<IpAddr, InvalidResource> {
    Ok(raw_ip(bytes, field)?.to_canonical())
}

fn raw_ip(bytes: &[u8], field: &'static str) -> Result<IpAddr, InvalidResource> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).map_err(|_| InvalidResource::AddressLength { field, length: bytes.len() })?;
    Ok(sixteen.into())
}

/// Reads an address and its prefix length; without one it is a single address.
pub(super) fn block(bytes: &[u8], length: Option<u32>, field: &'static str) -> Result<IpNet, InvalidResource> {
    let found = raw_ip(bytes, field)?;
    let canonical = found.to_canonical();
    let width: u32 = if found.is_ipv4() { 32 } else { 128 };
    let length = length.unwrap_or(width);
    let invalid = InvalidResource::PrefixLength { field, length };
    if length > width {
        return Err(invalid);
    }
    let length = if found == canonical { Some(length) } else { length.checked_sub(MAPPED_PREFIX) };
    let length = length.and_then(|length| u8::try_from(length).ok()).ok_or_else(|| invalid.clone())?;
    Ok(IpNet::new(canonical, length).map_err(|_| invalid)?.trunc())
}

pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

/// Whether a block is a single address, which travels without a length.
pub(super) fn single(block: &IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

pub(super) fn port(found: u32, field: &'static str) -> Result<u16, InvalidResource> {
    u16::try_from(found).map_err(|_| InvalidResource::Port { field, found })
}

pub(super) fn gateway(wire: wire::GatewayAddress, field: &'static str, strings: &mut Interner) -> Result<GatewayAddress, InvalidResource> {
    let destination = match wire.destination.ok_or(InvalidResource::Empty(field))? {
        Destination::Hostname(name) => GatewayDestination::Service(NamespacedHostname {
            namespace: strings.get(&name.namespace),
            hostname: strings.get(&name.hostname),
        }),
        Destination::Address(at) => {
            GatewayDestination::Address(NetworkAddress { network: strings.get(&at.network), address: ip(&at.address, field)? })
        }
    };
    let hbone_port = match port(wire.hbone_mtls_port, field)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(GatewayAddress { destination, hbone_port })
}

pub(super) fn gateway_to_wire(gateway: &GatewayAddress) -> wire::GatewayAddress {
    let destination = match &gateway.destination {
        GatewayDestination::Service(name) => {
            Destination::Hostname(wire::NamespacedHostname { namespace: name.namespace.to_string(), hostname: name.hostname.to_string() })
        }
        GatewayDestination::Address(at) => {
            Destination::Address(wire::NetworkAddress { network: at.network.to_string(), address: bytes(at.address), length: None })
        }
    };
    wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_port.into() }
}
