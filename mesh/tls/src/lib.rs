//! Certificates and TLS of the mesh: keys, requests to the certificate authority, rotation, and who may talk to whom.
//!
//! It makes every TLS configuration of the proxies. A workload's identity is proven by an X.509 certificate with a SPIFFE URI
//! (X.509-SVID); both ends of every tunnel show one. Start with [`store`] for how certificates come and are renewed, [`verify`] for
//! who is trusted, and [`control`] for the connection to the control plane.

pub mod authority;
pub mod certificate;
pub mod control;
mod crypto;
pub mod peer;
pub mod request;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod verify;
