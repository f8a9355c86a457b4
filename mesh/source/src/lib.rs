//! Objects in, reports out: one trait, whatever the objects come from.
//!
//! A [`Source`] tells each [`Watch`] what exists now, says [`SourceEvent::Synced`], and then tells what changes. What a program has to
//! say about an object (a status, an annotation, an object of its own) goes back as a [`Report`]. Today there is one source:
//! [`DirSource`], a folder of YAML ([`open`] with `dir:PATH`); the Kubernetes API server is the other that the trait is made for.
//! What the objects mean is `tropis-compile`'s business. [`write`](mod@write) is for those who put objects into the folder.

pub mod dir;
pub mod merge;
pub mod watch;
pub mod write;
pub mod yaml;

use std::{path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::Value;
use thiserror::Error;
use tropis_crds::{Finding, Object, ObjectRef};

pub use dir::{DirSource, snapshot::Snapshot};
pub use watch::Watch;

/// What a source tells.
#[derive(Debug, Clone)]
pub enum SourceEvent {
    /// The object exists, in this form. Told for every object at first, then when one changes. An object that was deleted and made
    /// again in quick succession may be told once, with its new uid.
    Applied(Arc<Object>),
    /// The object exists no more. May name one that this watch never heard of.
    Deleted(ObjectRef),
    /// What there is to say about a file (or whatever the source calls one); replaces what was said about it before, none clears it.
    Findings {
        /// The file, relative to the folder.
        file: String,
        /// All of its findings.
        findings: Vec<Finding>,
    },
    /// Everything that exists was told once.
    Synced,
}

/// What a program has to say about an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Who says it (`redirector.NODE`, `tropisd`). A field has one writer.
    pub writer: String,
    /// The object.
    pub object: ObjectRef,
    /// The fields, as in the object: `{"metadata": {"annotations": {..}}, "status": {..}}`. Replaces what the writer said before. With
    /// `metadata.uid` it holds only for the object of that uid; without, for the one that exists now.
    pub fields: Value,
    /// The object is the writer's own: it exists because of this report. Otherwise the fields wait for an object to belong to.
    pub owned: bool,
}

impl Report {
    /// Fields of an object that someone else made.
    pub fn new(writer: impl Into<String>, object: ObjectRef, fields: Value) -> Self {
        Self { writer: writer.into(), object, fields, owned: false }
    }

    /// A whole object of the writer's own.
    pub fn owned(writer: impl Into<String>, object: ObjectRef, fields: Value) -> Self {
        Self { writer: writer.into(), object, fields, owned: true }
    }
}

/// A report was not taken.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Another writer has this field with another value. Leave the field out, or agree who owns it.
    #[error("{object}: {field} belongs to {owner}")]
    Conflict {
        /// The object.
        object: ObjectRef,
        /// The field's path.
        field: String,
        /// Who owns it.
        owner: String,
    },
    /// The writer's name cannot be a folder's.
    #[error("{writer:?} is not a writer's name: letters, digits, -, _ and .")]
    Writer {
        /// What was given.
        writer: String,
    },
    /// It could not be stored; try again.
    #[error("store what is reported about {object}")]
    Store {
        /// The object.
        object: ObjectRef,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// Where objects come from and reports go to.
pub trait Source: Send + Sync {
    /// Begins to watch: everything that exists, [`SourceEvent::Synced`], then changes. A slow reader never loses the last state of an
    /// object and never makes the source wait: what it has not read yet is replaced by what came after.
    fn watch(&self) -> Watch;

    /// Reports; comes back when it is stored, which is before watches hear of it.
    ///
    /// # Errors
    /// See [`ReportError`].
    fn report(&self, report: Report) -> BoxFuture<'_, Result<(), ReportError>>;

    /// Takes back everything that `writer` reported about `object`; nothing happens if that was nothing.
    ///
    /// # Errors
    /// See [`ReportError`].
    fn withdraw<'a>(&'a self, writer: &'a str, object: &'a ObjectRef) -> BoxFuture<'a, Result<(), ReportError>>;
}

/// A source could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The text names no source.
    #[error("{found:?} is not an object source (dir:PATH)")]
    Unknown {
        /// What was given.
        found: String,
    },
    /// The folder could not be watched.
    #[error("watch the folder {path}")]
    Folder {
        /// The folder.
        path: String,
        /// Why.
        #[source]
        cause: dir::WatchError,
    },
}

/// Opens the source that `text` names: `dir:PATH` (a state directory), or `dir:PATH,manifests=DIR` to take the user's objects from
/// another folder than `PATH/objects`.
///
/// # Errors
/// See [`OpenError`].
pub fn open(text: &str) -> Result<Arc<dyn Source>, OpenError> {
    let rest = text.strip_prefix("dir:").filter(|rest| !rest.is_empty()).ok_or_else(|| OpenError::Unknown { found: text.to_owned() })?;
    let (state, manifests) = match rest.split_once(",manifests=") {
        Some((state, manifests)) => (Path::new(state), Some(Path::new(manifests))),
        None => (Path::new(rest), None),
    };
    let source = DirSource::open(state, manifests).map_err(|cause| OpenError::Folder { path: state.display().to_string(), cause })?;
    Ok(Arc::new(source))
}
