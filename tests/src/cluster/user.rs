//! The user's objects, read from `objects/` as the mesh reads them: what it refuses does not exist for the cluster either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::task::JoinHandle;

use super::object::{Key, key_of};
use super::{Cluster, Event};
use crate::progress::Progress;

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Tells `cluster` of every object in `folder`, and of every change.
pub fn start(folder: &Path, cluster: Cluster, progress: Progress) -> JoinHandle<()> {
    let folder = folder.to_path_buf();
    tokio::spawn(async move {
        let mut seen: BTreeMap<PathBuf, (SystemTime, BTreeMap<Key, Value>)> = BTreeMap::new();
        loop {
            let files = files(&folder);
            seen.retain(|path, (_, objects)| {
                let stays = files.contains_key(path);
                if !stays {
                    objects.keys().for_each(|key| cluster.tell(Event::Deleted(key.clone())));
                }
                stays
            });
            for (path, changed) in files {
                if seen.get(&path).is_some_and(|(known, _)| *known == changed) {
                    continue;
                }
                let before = seen.remove(&path).map(|(_, objects)| objects).unwrap_or_default();
                let now = read(&path, &progress).unwrap_or_else(|| before.clone());
                before.keys().filter(|key| !now.contains_key(key)).for_each(|key| cluster.tell(Event::Deleted(key.clone())));
                now.iter().for_each(|(key, object)| cluster.tell(Event::Applied(key.clone(), object.clone())));
                seen.insert(path, (changed, now));
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}

fn files(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|ending| ending == "yaml" || ending == "yml" || ending == "json") {
                let changed = fs::metadata(&entry).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                found.insert(entry, changed);
            }
        }
    }
    found
}

fn read(path: &Path, progress: &Progress) -> Option<BTreeMap<Key, Value>> {
    let text = fs::read_to_string(path).ok()?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).ok()?;
    let mut found = BTreeMap::new();
    for document in documents {
        match tropis_crds::decode(document.clone()) {
            Ok(_) => drop(key_of(&document).map(|key| found.insert(key, document))),
            Err(findings) => findings.iter().for_each(|finding| progress.step(finding.to_string())),
        }
    }
    Some(found)
}
