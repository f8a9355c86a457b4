//! mesh/xds.
