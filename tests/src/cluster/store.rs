//! `cluster/` on disk: one file an object, replaced atomically, written only when something changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Value, json};

use super::object::Key;

/// What `cluster/` holds.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    written: BTreeMap<Key, Value>,
    revision: u64,
}

impl Store {
    /// A store over an empty folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, written: BTreeMap::new(), revision: 0 }
    }

    /// The object under `key`, without its resource version.
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.written.get(key)
    }

    /// Makes the folder hold exactly `wanted`. Each object that changed gets a new resource version. Gives the number of changes.
    pub fn set(&mut self, wanted: BTreeMap<Key, Value>) -> io::Result<usize> {
        let mut changes = 0;
        for (key, object) in &wanted {
            if self.written.get(key) == Some(object) {
                continue;
            }
            self.revision += 1;
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            write_atomically(&self.file(key), &serde_json::to_vec_pretty(&object).expect("JSON values print"))?;
            changes += 1;
        }
        for key in self.written.keys().filter(|key| !wanted.contains_key(key)) {
            match fs::remove_file(self.file(key)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => changes += 1,
            }
        }
        self.written = wanted;
        Ok(changes)
    }

    fn file(&self, key: &Key) -> PathBuf {
        let folder = self.folder.join(&key.kind);
        match key.namespace.as_str() {
            "" => folder.join(format!("{}.yaml", key.name)),
            namespace => folder.join(namespace).join(format!("{}.yaml", key.name)),
        }
    }
}

/// Writes beside the file and renames: readers see the old or the new content, never a part.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.new"));
    fs::write(&beside, content)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_only_what_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::new(folder.path().to_path_buf());
        let key = |name: &str| Key::pod("shop", name);
        let object = |value: u8| json!({"kind": "Pod", "metadata": {"name": "x"}, "value": value});
        let first = BTreeMap::from([(key("one"), object(1)), (key("two"), object(1))]);
        assert_eq!(store.set(first.clone()).expect("written"), 2);
        assert_eq!(store.set(first).expect("nothing to do"), 0);
        assert_eq!(store.set(BTreeMap::from([(key("two"), object(2))])).expect("written"), 2, "one change, one removal");
        let left = fs::read_to_string(folder.path().join("Pod/shop/two.yaml")).expect("there");
        assert!(left.contains("\"resourceVersion\": \"3\""), "{left}");
        assert!(!folder.path().join("Pod/shop/one.yaml").exists());
    }
}
