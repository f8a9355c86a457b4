//! The commands, a file each. What a command decides or explains belongs to `model` and `compile`; here it is asked and shown.

pub(crate) mod analyze;
pub(crate) mod apply;
pub(crate) mod completion;
pub(crate) mod delete;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod label;
pub(crate) mod logs;
pub(crate) mod proxy_config;
pub(crate) mod proxy_status;
pub(crate) mod version;
pub(crate) mod waypoint;
pub(crate) mod ztunnel_config;
