//! Kubernetes, Istio and Gateway API objects as users write them, and findings about them.
//!
//! [`decode()`] turns one document into an [`Object`] or says, field by field, why it cannot. It is strict where the API server is: a
//! wrong type or a value out of range refuses the object, an unknown field refuses it in Istio's kinds and is a warning in
//! Kubernetes' own. What the mesh then does with an object is `tropis-compile`'s business; where documents come from is
//! `tropis-source`'s. Start with [`Object`] and [`Finding`]; [`CODES`] lists every code.

pub mod codes;
mod core;
pub mod decode;
pub mod fields;
pub mod finding;
pub mod gateway_api;
pub mod istio;
pub mod kind;
pub mod names;
pub mod nearest;
pub mod object;
mod reader;
mod unread;

pub use codes::{CODES, Code};
pub use decode::decode;
pub use fields::{FIELDS, Field, FieldSupport};
pub use finding::{Finding, Level, ObjectRef, Origin};
pub use kind::{Kind, Support};
pub use object::{Metadata, Object, OwnerReference};
