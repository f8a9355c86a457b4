//! mesh/tls.
