//! control/compile.
