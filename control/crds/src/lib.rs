//! control/crds.
