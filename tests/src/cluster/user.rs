//! The user's objects, read as the mesh reads them (`tropis-source`): what it refuses does not exist for the cluster either. And those
//! that a program of the mesh made for itself.

use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tropis_crds::{Level, ObjectRef};
use tropis_source::dir::WatchError;
use tropis_source::{DirSource, Source, SourceEvent};

use super::object::Key;
use super::{Cluster, Event};
use crate::progress::Progress;

/// Whose objects a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The user's.
    User,
    /// A program's own.
    Program,
}

/// Where the control plane keeps what it made, below the folder of reports; no other program makes objects.
pub const OWNED_BY_TROPISD: &str = "tropisd/owned";

/// Tells `cluster` of every object in `objects`, and of every change. Only of the user's: `nothing` is a folder for the source's
/// other layers, which stay empty, so that the cluster never hears itself.
pub fn start(whose: Whose, objects: &Path, nothing: &Path, cluster: Cluster, progress: Progress) -> Result<JoinHandle<()>, WatchError> {
    let source = Arc::new(DirSource::open(nothing, Some(objects))?);
    Ok(tokio::spawn(async move {
        let mut watch = source.watch();
        while let Some(event) = watch.recv().await {
            match event {
                SourceEvent::Applied(object) => {
                    let (key, value) = (key(&object.reference()), object.value.as_ref().clone());
                    cluster.tell(match whose {
                        Whose::User => Event::Applied(key, value),
                        Whose::Program => Event::Owned(key, value),
                    });
                }
                SourceEvent::Deleted(object) => cluster.tell(match whose {
                    Whose::User => Event::Deleted(key(&object)),
                    Whose::Program => Event::Disowned(key(&object)),
                }),
                SourceEvent::Findings { file, findings } => {
                    let errors = findings.iter().filter(|finding| finding.level == Level::Error);
                    errors.for_each(|finding| progress.step(format!("{file}: {finding}")));
                }
                SourceEvent::Synced => {}
            }
        }
    }))
}

fn key(object: &ObjectRef) -> Key {
    Key::new(object.kind.as_str(), &object.namespace, &object.name)
}
