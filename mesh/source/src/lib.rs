//! mesh/source.
