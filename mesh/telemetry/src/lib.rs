//! mesh/telemetry.
