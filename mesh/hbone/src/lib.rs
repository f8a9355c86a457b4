//! mesh/hbone.
