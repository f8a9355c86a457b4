//! What there is now, read once: for those who look and go (the command line). Nothing is watched, made or written down.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tropis_crds::{Finding, Object, ObjectRef, Origin};

use super::{
    CLUSTER, OBJECTS, REPORTED, files,
    follow::{self, ReadError},
    manifests,
    store::{FileChange, FileKey, Layer, Store},
};
use crate::SourceEvent;

/// Objects, and what there is to say about the files that they come from.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every object, in no order.
    pub objects: Vec<Arc<Object>>,
    /// Findings about files and documents, in order of the files. Those about what objects mean together are `tropis-compile`'s.
    pub findings: Vec<Finding>,
    /// Where each object of the user's stands.
    pub origins: BTreeMap<ObjectRef, Origin>,
}

/// Reads a state directory as a source that was opened on it would: `objects/`, `cluster/` and `reported/` merged, a refused document
/// replaced by its last good version if this user may read that.
pub fn of_state(state: &Path) -> Snapshot {
    let roots = [state.join(OBJECTS), state.join(CLUSTER), state.join(REPORTED)];
    let mut store = Store::default();
    for (key, values) in follow::kept(&state.join(super::KEPT)) {
        store.remember(key, values);
    }
    let paths = roots.iter().flat_map(|root| files(root));
    let changes = paths.filter_map(|path| Some(change(follow::key(&roots, &path)?, &path)));
    taken(store, changes.collect())
}

/// Reads files and folders of the user's own, in this order; findings name the files as they were given.
///
/// # Errors
/// A path that is not there, or a folder without any YAML.
pub fn of_files(paths: &[PathBuf]) -> io::Result<Snapshot> {
    let mut changes = Vec::new();
    for path in paths {
        let found = manifests(path);
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} holds no .yaml, .yml or .json file", path.display())));
        }
        for file in found {
            file.metadata().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
            let key = FileKey { layer: Layer::Objects, name: file.display().to_string().into() };
            changes.push(change(key, &file));
        }
    }
    Ok(taken(Store::default(), changes))
}

/// Reads one text as if it were a file of this name (standard input).
pub fn of_text(name: &str, text: String) -> Snapshot {
    let key = FileKey { layer: Layer::Objects, name: name.into() };
    taken(Store::default(), vec![FileChange::Text(key, text)])
}

fn change(key: FileKey, path: &Path) -> FileChange {
    match follow::read_file(path) {
        Ok((text, _)) => FileChange::Text(key, text),
        Err(ReadError::Gone) => FileChange::Gone(key),
        Err(ReadError::Unreadable(problem)) => FileChange::Unreadable(key, problem),
    }
}

fn taken(mut store: Store, changes: Vec<FileChange>) -> Snapshot {
    let mut findings: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for event in store.apply(changes) {
        if let SourceEvent::Findings { file, findings: told } = event {
            findings.insert(file, told);
        }
    }
    let objects = store.objects().cloned().collect();
    Snapshot { objects, findings: findings.into_values().flatten().collect(), origins: store.origins() }
}
