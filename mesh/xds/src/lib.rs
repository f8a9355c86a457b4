//! Delta xDS: how the mesh's configuration travels from the control plane to the proxies, and the only place where wire and model meet.
//!
//! [`convert`] turns resources into `tropis-model` and back, [`client`] keeps a proxy's view fed ([`current`]), [`server`] keeps a table
//! of resources and serves it to many clients. Neither end knows about TLS, tokens or objects: the transport of the client and the admission of the
//! server's callers are passed in.

pub mod client;
pub mod convert;
pub mod current;
mod resource_type;
pub mod server;

pub use resource_type::ResourceType;
