//! Putting objects into the folders, for those who may: whole or not at all (a new file is renamed into its place).
//!
//! The harness writes machine-made objects with [`put`] and what it assigns to a user's object with [`assign`]; the command line edits
//! the user's folder with [`edit`].

use std::{
    fs, io,
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::Value;
use tropis_crds::{Kind, ObjectRef, decode};

use crate::{dir, yaml};

/// Folder of a cluster-scoped object, where a namespaced one has its namespace.
const CLUSTER_SCOPED: &str = "_";
/// Below a folder of whole objects: fields that belong to objects made elsewhere.
pub(crate) const ASSIGNED: &str = "assigned";
/// Below a writer's folder: its own objects.
pub(crate) const OWNED: &str = "owned";

/// Writes a whole machine-made object into `STATE/cluster`; replaces the one of the same kind, namespace and name.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if `object` has no kind and name; otherwise what the file system says.
pub fn put(state: &Path, object: &Value) -> io::Result<()> {
    let reference = reference(object)?;
    write_object(&file(&state.join(dir::CLUSTER), &reference), object)
}

/// Removes what [`put`] wrote; nothing happens if there is nothing.
///
/// # Errors
/// What the file system says.
pub fn remove(state: &Path, object: &ObjectRef) -> io::Result<()> {
    remove_file(&file(&state.join(dir::CLUSTER), object))
}

/// Writes fields that belong to a user's object (`uid`, `clusterIPs`, defaults) into `STATE/cluster/assigned`. They hold only while the
/// object exists and, if they name a `metadata.uid`, while nobody else gave it another.
///
/// # Errors
/// As [`put`].
pub fn assign(state: &Path, fields: &Value) -> io::Result<()> {
    let reference = reference(fields)?;
    write_object(&file(&state.join(dir::CLUSTER).join(ASSIGNED), &reference), fields)
}

/// Removes what [`assign`] wrote; nothing happens if there is nothing.
///
/// # Errors
/// What the file system says.
pub fn unassign(state: &Path, object: &ObjectRef) -> io::Result<()> {
    remove_file(&file(&state.join(dir::CLUSTER).join(ASSIGNED), object))
}

/// What [`edit`] is to do with the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Write what the value is now.
    Write,
    /// Leave the file as it is.
    Keep,
    /// Take the document away; a file without documents is removed.
    Remove,
}

/// Finds `object` in a folder of YAML, lets `change` change it, and writes its file anew; other documents of the file keep their text.
/// Comes back with whether it was found. The last definition is taken, as it is the one that counts. An entry of a list is not found.
///
/// # Errors
/// What the file system says.
pub fn edit(folder: &Path, object: &ObjectRef, change: impl FnOnce(&mut Value) -> Edit) -> io::Result<bool> {
    let Some(Definition { path, at, mut value, .. }) = definition(folder, object) else { return Ok(false) };
    match change(&mut value) {
        Edit::Keep => {}
        Edit::Write => rewrite(&path, at, Some(to_yaml(&value)?))?,
        Edit::Remove => rewrite(&path, at, None)?,
    }
    Ok(true)
}

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The object was not there; it has a file of its own now.
    Created,
    /// It took the place of its earlier definition, in the same file.
    Configured,
    /// It was there, and the same.
    Unchanged,
}

/// Puts an object's document into a folder of YAML, text as it is: in place of its definition if there is one, else as a file that is
/// named for it.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if `document` is not one document of YAML; otherwise what the file system says.
pub fn apply(folder: &Path, object: &ObjectRef, document: &str) -> io::Result<Applied> {
    let wanted = yaml::parse(document).map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, fault.problem))?;
    let text = document.trim_end().to_owned() + "\n";
    match definition(folder, object) {
        Some(definition) if definition.value == wanted => Ok(Applied::Unchanged),
        Some(definition) => rewrite(&definition.path, definition.at, Some(text)).map(|()| Applied::Configured),
        None => replace(&folder.join(file_name(object)), text.as_bytes()).map(|()| Applied::Created),
    }
}

/// Whether an object of a folder stands in a list (`kind: List`), where [`edit`] and [`apply`] do not reach it: the file and the line.
pub fn listed(folder: &Path, object: &ObjectRef) -> Option<(PathBuf, u64)> {
    dir::files(folder).into_iter().find_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        let own = |value: &Value| decode::reference(value).as_ref() == Some(object);
        let lists = yaml::split(&text).into_iter().filter(|(_, document)| yaml::parse(document).is_ok_and(|value| !own(&value)));
        let holds = |document: &str| yaml::documents(document).iter().any(|entry| entry.content.as_ref().is_ok_and(own));
        lists.into_iter().find(|(_, document)| holds(document)).map(|(line, _)| (path.clone(), line))
    })
}

/// Where an object is defined.
struct Definition {
    path: PathBuf,
    /// Its place among the file's documents.
    at: usize,
    value: Value,
}

/// The last definition of an object in a folder; an entry of a list is none.
fn definition(folder: &Path, object: &ObjectRef) -> Option<Definition> {
    let mut found = None;
    for path in dir::files(folder) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (at, (_, document)) in yaml::split(&text).into_iter().enumerate() {
            match yaml::parse(document) {
                Ok(value) if decode::reference(&value).as_ref() == Some(object) => {
                    found = Some(Definition { path: path.clone(), at, value })
                }
                _ => {}
            }
        }
    }
    found
}

/// Replaces one document of a file, or takes it away; a file without documents is removed.
fn rewrite(path: &Path, at: usize, replacement: Option<String>) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let documents = yaml::split(&text).into_iter().enumerate().filter_map(|(index, (_, document))| match index == at {
        true => replacement.clone(),
        false => Some(document.to_owned()),
    });
    let documents: Vec<String> = documents.collect();
    if documents.is_empty() {
        return remove_file(path);
    }
    let documents: Vec<&str> = documents.iter().map(|document| document.trim_end()).collect();
    replace(path, (documents.join("\n---\n") + "\n").as_bytes())
}

/// What the file of an object is called in the user's folder.
fn file_name(object: &ObjectRef) -> String {
    let parts = [object.kind.folder(), object.namespace.clone(), object.name.clone()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(".") + ".yaml"
}

/// Writes a file so that a reader sees the old content or the new, never a part.
///
/// # Errors
/// What the file system says.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The leading dot keeps it out of every reader's sight.
    let temporary = folder.join(format!(".{name}.{}.{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let written = fs::File::create_new(&temporary).and_then(|mut file| file.write_all(content));
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// An object as YAML text.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it cannot be expressed.
pub fn to_yaml(value: &Value) -> io::Result<String> {
    serde_saphyr::to_string(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))
}

/// The file of an object below `folder`: `KIND/NAMESPACE/NAME.yaml`, `_` for the namespace of a cluster-scoped one.
pub(crate) fn file(folder: &Path, object: &ObjectRef) -> PathBuf {
    let namespace = if object.namespace.is_empty() { CLUSTER_SCOPED } else { &object.namespace };
    // Names of RBAC objects may hold a colon or begin with a dot; only the separator matters, and no name holds one.
    folder.join(object.kind.folder()).join(namespace).join(format!("{}.yaml", object.name))
}

pub(crate) fn write_object(path: &Path, object: &Value) -> io::Result<()> {
    // JSON is YAML, and nothing in it needs guessing. People read it as well when it is indented.
    let mut text = serde_json::to_vec_pretty(object).map_err(io::Error::other)?;
    text.push(b'\n');
    replace(path, &text)
}

/// Writes values that only this user may read, in folders that only this user may enter.
pub(crate) fn replace_private(path: &Path, values: &[Arc<Value>]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let values: Vec<&Value> = values.iter().map(AsRef::as_ref).collect();
    replace(path, &serde_json::to_vec(&values).map_err(io::Error::other)?)
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn reference(object: &Value) -> io::Result<ObjectRef> {
    decode::reference(object)
        .filter(|reference| reference.kind != Kind::Other && !reference.name.contains('/') && !reference.namespace.contains('/'))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an object without a known kind and a name"))
}
