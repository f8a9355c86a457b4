//! The certificate authority: the mesh's root key, what it signs, and the certificate that tropisd itself serves with.
//!
//! Who may have which identity is not decided here but in [`crate::scope`]; the RPC is [`crate::certify`].

pub(crate) mod authority;
pub(crate) mod server_certificate;
