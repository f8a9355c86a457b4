//! mesh/proto.
