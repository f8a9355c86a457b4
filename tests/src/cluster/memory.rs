//! What the API server assigned once and keeps over restarts of the harness in the same state directory: uids, creation times, and the
//! places of services in the address ranges. Pods are not remembered: their processes end with the harness.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::object::Key;
use super::render::Assigned;

/// What was not asked for by then is of an object that went while nobody looked.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// What is remembered of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    uid: String,
    /// Seconds since 1970.
    created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<u16>,
}

impl Remembered {
    fn new(assigned: &Assigned, place: Option<u16>) -> Self {
        let created = assigned.created.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        Self { uid: assigned.uid.clone(), created, place }
    }
}

/// The file, and what of it nobody asked for yet.
#[derive(Debug, Default)]
pub struct Memory {
    file: Option<PathBuf>,
    earlier: BTreeMap<String, Remembered>,
    written: BTreeMap<String, Remembered>,
    opened: Option<SystemTime>,
}

impl Memory {
    /// Reads what an earlier run left; a file that cannot be read is as none.
    pub fn open(file: PathBuf, now: SystemTime) -> Self {
        let earlier: BTreeMap<_, _> = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file: Some(file), written: earlier.clone(), earlier, opened: Some(now) }
    }

    /// What the object had, once: one that is taken away and made again is another.
    pub fn recall(&mut self, key: &Key) -> Option<(Assigned, Option<u16>)> {
        let Remembered { uid, created, place } = self.earlier.remove(&key.to_string())?;
        Some((Assigned { uid, created: UNIX_EPOCH + Duration::from_secs(created) }, place))
    }

    /// Writes down what is assigned now, if that is something else than before.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep<'a>(&mut self, assigned: impl Iterator<Item = (&'a Key, &'a Assigned, Option<u16>)>, now: SystemTime) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if self.opened.is_some_and(|opened| now.duration_since(opened).is_ok_and(|elapsed| elapsed > FORGOTTEN_AFTER)) {
            self.earlier.clear();
        }
        let mut all = self.earlier.clone();
        let lasting = assigned.filter(|(key, ..)| key.kind != "Pod");
        all.extend(lasting.map(|(key, assigned, place)| (key.to_string(), Remembered::new(assigned, place))));
        if all != self.written {
            tropis_source::write::replace(file, &serde_json::to_vec_pretty(&all).map_err(io::Error::other)?)?;
            self.written = all;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_assigned_is_recalled_once_and_for_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state/assigned.json");
        let [service, pod] = ["Service", "Pod"].map(|kind| Key::new(kind, "shop", "web"));
        let assigned = Assigned { uid: "u-1".into(), created: UNIX_EPOCH + Duration::from_secs(7) };
        let mut memory = Memory::open(file.clone(), UNIX_EPOCH);
        assert_eq!(memory.recall(&service), None);
        memory.keep([(&service, &assigned, Some(30)), (&pod, &assigned, None)].into_iter(), UNIX_EPOCH).expect("written");

        let mut memory = Memory::open(file.clone(), UNIX_EPOCH);
        // Objects come one by one: those that did not come yet are not forgotten.
        memory.keep(std::iter::empty(), UNIX_EPOCH).expect("nothing to write");
        let mut again = Memory::open(file.clone(), UNIX_EPOCH);
        assert_eq!(again.recall(&service), Some((assigned, Some(30))));
        assert_eq!(again.recall(&service), None, "made again, it is another");
        assert_eq!(again.recall(&pod), None, "a pod ends with the harness");
        memory.keep(std::iter::empty(), UNIX_EPOCH + 2 * FORGOTTEN_AFTER).expect("written");
        assert_eq!(Memory::open(file, UNIX_EPOCH).recall(&service), None, "nobody asked for it");
    }
}
