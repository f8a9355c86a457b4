//! Values as bytes and back, and addresses as the programs write them.

use std::net::{IpAddr, Ipv6Addr};

use tropis_abi::{Address, Connection, InboundCounters, ListenerKey, OutboundCounters, Pod, Resolver, ResolverKey, Socket, mapped};

/// A type whose bytes the kernel may read and write.
///
/// # Safety
/// `repr(C)` or a number, without padding, and valid for any bytes.
pub(crate) unsafe trait Raw: Copy {
    /// The bytes that the kernel sees.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, by the trait's contract.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The same, to be written.
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: any bytes are valid, by the trait's contract.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(self).cast(), size_of::<Self>()) }
    }

    /// All bytes zero.
    fn zeroed() -> Self {
        // SAFETY: any bytes are valid, by the trait's contract.
        unsafe { std::mem::zeroed() }
    }
}

// SAFETY: numbers and arrays of them.
unsafe impl Raw for u32 {}
// SAFETY: as above.
unsafe impl Raw for u64 {}
// SAFETY: as above.
unsafe impl Raw for Address {}
// SAFETY: repr(C), sizes asserted in the abi, fields without gaps.
unsafe impl Raw for Pod {}
// SAFETY: as above.
unsafe impl Raw for Socket {}
// SAFETY: as above.
unsafe impl Raw for Connection {}
// SAFETY: as above.
unsafe impl Raw for ListenerKey {}
// SAFETY: as above.
unsafe impl Raw for ResolverKey {}
// SAFETY: as above.
unsafe impl Raw for Resolver {}
// SAFETY: as above.
unsafe impl Raw for OutboundCounters {}
// SAFETY: as above.
unsafe impl Raw for InboundCounters {}

/// An address as the programs write it.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => mapped(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An address as we write it: never IPv4-mapped.
pub(crate) fn ip(address: Address) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_canonical() {
        for text in ["10.244.1.7", "fd00:10:244:1::7", "::1", "0.0.0.0"] {
            let parsed: IpAddr = text.parse().unwrap();
            assert_eq!(ip(address(parsed)), parsed);
        }
        assert_eq!(address("10.0.0.1".parse().unwrap()), address("::ffff:10.0.0.1".parse().unwrap()));
    }
}
