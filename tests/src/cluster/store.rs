//! `cluster/` on disk: whole objects of the cluster's own, and the fields that it assigns to the user's. Each is written atomically,
//! and only when something changed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use tropis_crds::decode;
use tropis_source::write;

use super::object::Key;

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// An object that exists because the cluster has it.
    Whole(Value),
    /// Fields of an object that the user wrote.
    Assigned(Value),
}

impl Content {
    /// The fields.
    pub fn value(&self) -> &Value {
        match self {
            Self::Whole(value) | Self::Assigned(value) => value,
        }
    }
}

/// What `cluster/` holds.
#[derive(Debug)]
pub struct Store {
    state: PathBuf,
    written: BTreeMap<Key, Content>,
    revision: u64,
}

impl Store {
    /// A store over a state directory whose `cluster/` is empty.
    pub fn new(state: PathBuf) -> Self {
        Self { state, written: BTreeMap::new(), revision: 0 }
    }

    /// Makes the folder hold exactly `wanted`. Each object that changed gets a new resource version. Gives the number of changes.
    pub fn set(&mut self, wanted: BTreeMap<Key, Content>) -> io::Result<usize> {
        let mut changes = 0;
        for (key, content) in &wanted {
            let before = self.written.get(key);
            if before == Some(content) {
                continue;
            }
            let other_layer = before.filter(|before| std::mem::discriminant(*before) != std::mem::discriminant(content));
            self.revision += 1;
            let mut value = content.value().clone();
            value["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            match content {
                Content::Whole(_) => write::put(&self.state, &value)?,
                Content::Assigned(_) => write::assign(&self.state, &value)?,
            }
            // After the new one: the object never seems to be gone in between.
            if let Some(before) = other_layer {
                self.take_away(before)?;
            }
            changes += 1;
        }
        for (_, content) in self.written.iter().filter(|(key, _)| !wanted.contains_key(key)) {
            self.take_away(content)?;
            changes += 1;
        }
        self.written = wanted;
        Ok(changes)
    }

    fn take_away(&self, content: &Content) -> io::Result<()> {
        let Some(object) = decode::reference(content.value()) else { return Ok(()) };
        match content {
            Content::Whole(_) => write::remove(&self.state, &object),
            Content::Assigned(_) => write::unassign(&self.state, &object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tropis_crds::{Kind, ObjectRef};
    use tropis_source::DirSource;

    fn object(value: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "shop"}, "data": {"value": value}})
    }

    #[test]
    fn writes_only_what_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::new(folder.path().to_path_buf());
        let key = Key::new("ConfigMap", "shop", "x");
        let wanted = |value| BTreeMap::from([(key.clone(), Content::Whole(object(value)))]);
        assert_eq!(store.set(wanted("1")).expect("written"), 1);
        assert_eq!(store.set(wanted("1")).expect("nothing to do"), 0);
        assert_eq!(store.set(wanted("2")).expect("written"), 1);
        let reference = ObjectRef::new(Kind::ConfigMap, "shop", "x");
        let read = DirSource::open(folder.path(), None).expect("a source").get(&reference).expect("it exists");
        assert_eq!((&read.value["data"]["value"], &read.value["metadata"]["resourceVersion"]), (&json!("2"), &json!("2")));
        assert_eq!(store.set(BTreeMap::new()).expect("removed"), 1);
        assert!(DirSource::open(folder.path(), None).expect("a source").get(&reference).is_none());
    }

    #[test]
    fn what_is_assigned_needs_the_users_object() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::new(folder.path().to_path_buf());
        let key = Key::new("ConfigMap", "shop", "x");
        store.set(BTreeMap::from([(key.clone(), Content::Assigned(object("1")))])).expect("written");
        let reference = ObjectRef::new(Kind::ConfigMap, "shop", "x");
        assert!(DirSource::open(folder.path(), None).expect("a source").get(&reference).is_none());
        store.set(BTreeMap::from([(key, Content::Whole(object("1")))])).expect("written");
        assert!(DirSource::open(folder.path(), None).expect("a source").get(&reference).is_some());
    }
}
