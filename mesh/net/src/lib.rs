//! mesh/net.
