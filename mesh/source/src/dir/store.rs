//! What the files say, and what follows from it: the objects that exist and what there is to tell about the files.
//!
//! Pure: text in, events out. A document that is refused leaves the last good one of its file in its place; the definitions of an
//! object are merged in the order of [`Layer`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::Value;
use tropis_crds::{Finding, Kind, Level, Object, ObjectRef, Origin, codes, decode};

use crate::{SourceEvent, merge, yaml};

const EFFECT_KEPT: &str = "the last good version stays in force";
/// What a refused document says of which no good version is known.
pub const EFFECT_NEVER: &str = "it was never good, so it does not exist for the mesh";
const EFFECT_UNFINISHED: &str = "until it is closed, what is missing in it stays in force and its last document does not count";

/// Who a definition comes from; a later one lays its fields over an earlier one's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Layer {
    /// A whole object that a program made.
    Owned(Arc<str>),
    /// A whole object that the user made.
    Objects,
    /// A whole object that the cluster made.
    Cluster,
    /// Fields that the cluster assigned.
    Assigned,
    /// Fields that a program reported.
    Reported(Arc<str>),
}

impl Layer {
    /// Whether an object exists because of such a definition.
    fn is_whole(&self) -> bool {
        matches!(self, Self::Owned(_) | Self::Objects | Self::Cluster)
    }
}

/// A file: its layer, and its name as findings show it (which orders the definitions of one layer).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileKey {
    pub(super) layer: Layer,
    pub(super) name: Arc<str>,
}

/// One change of the folder.
#[derive(Debug)]
pub(super) enum FileChange {
    /// The file holds this text.
    Text(FileKey, String),
    /// The file holds this text so far: somebody has it open for writing.
    Unfinished(FileKey, String),
    /// The file is there and cannot be read.
    Unreadable(FileKey, String),
    /// The file is gone.
    Gone(FileKey),
}

impl FileChange {
    pub(super) fn key(&self) -> &FileKey {
        match self {
            Self::Text(key, _) | Self::Unfinished(key, _) | Self::Unreadable(key, _) | Self::Gone(key) => key,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<FileKey, File>,
    /// Where each object is defined.
    definitions: HashMap<ObjectRef, BTreeSet<FileKey>>,
    /// What exists.
    objects: HashMap<ObjectRef, Arc<Object>>,
    /// What is to tell about objects as merged, by the file that shows it.
    merged: HashMap<ObjectRef, (FileKey, Vec<Finding>)>,
    /// What was told about each file, where that was anything.
    told: HashMap<FileKey, Vec<Finding>>,
    /// Last good versions from before this process began, for files that were not read yet.
    remembered: HashMap<FileKey, BTreeMap<ObjectRef, Document>>,
}

/// The last good versions that stand in for refused documents of a file.
#[derive(Debug, PartialEq)]
pub(super) enum Kept {
    /// No document is refused, or the file is gone: nothing is to be remembered.
    Nothing,
    /// Documents are refused and no good version of them is known here.
    Unknown,
    /// These are in force.
    Versions(Vec<Arc<Value>>),
}

#[derive(Debug, Default)]
struct File {
    /// Documents by object; of several for one object the last counts.
    documents: BTreeMap<ObjectRef, Document>,
    findings: Vec<Finding>,
    /// Some document was refused.
    refused: bool,
}

#[derive(Debug, Clone)]
struct Document {
    line: u64,
    value: Arc<Value>,
    /// It is the last good version of what now stands there.
    kept: bool,
}

impl Store {
    pub(super) fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    pub(super) fn object(&self, object: &ObjectRef) -> Option<&Arc<Object>> {
        self.objects.get(object)
    }

    /// Where each object of the user's stands: the definition that counts.
    pub(super) fn origins(&self) -> BTreeMap<ObjectRef, Origin> {
        let users = self.files.iter().filter(|(key, _)| key.layer == Layer::Objects);
        let all = users.flat_map(|(key, file)| {
            let origin = |line| Origin { file: key.name.to_string(), line };
            file.documents.iter().map(move |(object, document)| (object.clone(), origin(document.line)))
        });
        all.collect()
    }

    /// What a new watch is told.
    pub(super) fn everything(&self) -> Vec<SourceEvent> {
        let mut events: Vec<SourceEvent> = self.objects.values().cloned().map(SourceEvent::Applied).collect();
        let told = self.told.iter().map(|(key, findings)| (key.name.to_string(), findings.clone()));
        events.extend(told.map(|(file, findings)| SourceEvent::Findings { file, findings }));
        events.push(SourceEvent::Synced);
        events
    }

    /// Takes changes that happened together (a rename is two of them) and says what follows.
    pub(super) fn apply(&mut self, changes: Vec<FileChange>) -> Vec<SourceEvent> {
        let (mut touched, mut told) = (BTreeSet::new(), BTreeSet::new());
        // What files that go away held, for a file of another name that comes instead.
        let mut orphans: BTreeMap<Layer, BTreeMap<ObjectRef, Document>> = BTreeMap::new();
        let mut gone = Vec::new();
        let mut arrived = Vec::new();
        for change in changes {
            match change {
                FileChange::Gone(key) => {
                    if let Some(file) = self.files.remove(&key) {
                        touched.extend(file.documents.keys().cloned());
                        self.forget(&key, file.documents.keys());
                        orphans.entry(key.layer.clone()).or_default().extend(file.documents);
                        gone.push(key);
                    }
                }
                other => arrived.push(other),
            }
        }
        for change in arrived {
            let unfinished = matches!(change, FileChange::Unfinished(..));
            let (key, content) = match change {
                FileChange::Text(key, text) => (key, yaml::documents(&text)),
                FileChange::Unfinished(key, text) => {
                    let mut documents = yaml::documents(&text);
                    // Half a policy can be a valid one that says something else.
                    documents.pop();
                    (key, documents)
                }
                FileChange::Unreadable(key, problem) => {
                    let content = Err(yaml::Unreadable { line: 1, problem, limit: false });
                    (key, vec![yaml::Document { line: 1, content }])
                }
                FileChange::Gone(_) => continue,
            };
            let old = self.files.remove(&key);
            let remembered = self.remembered.remove(&key);
            let known = old.as_ref().map(|file| &file.documents).or(remembered.as_ref()).or_else(|| orphans.get(&key.layer));
            let file = read(&key, content, known.unwrap_or(&BTreeMap::new()), unfinished);
            if let Some(old) = old {
                touched.extend(old.documents.keys().cloned());
                self.forget(&key, old.documents.keys());
            }
            for object in file.documents.keys() {
                touched.insert(object.clone());
                self.definitions.entry(object.clone()).or_default().insert(key.clone());
            }
            self.files.insert(key.clone(), file);
            told.insert(key);
        }
        let mut events = Vec::new();
        for object in touched {
            told.extend(self.settle(&object, &mut events));
        }
        for key in told.into_iter().chain(gone) {
            let findings = self.findings_of(&key);
            let before = if findings.is_empty() { self.told.remove(&key) } else { self.told.insert(key.clone(), findings.clone()) };
            if before.unwrap_or_default() != findings {
                events.push(SourceEvent::Findings { file: key.name.to_string(), findings });
            }
        }
        events
    }

    /// Gives the last good versions of a file's documents from before this process began; they count only if they are refused now.
    pub(super) fn remember(&mut self, key: FileKey, values: Vec<Value>) {
        let good = values.into_iter().filter_map(|value| Some((decode(value.clone()).ok()?.0.reference(), value)));
        let documents = good.map(|(object, value)| (object, Document { line: 1, value: Arc::new(value), kept: true }));
        self.remembered.insert(key, documents.collect());
    }

    /// What of a file is to be remembered beyond this process: without it, a restart would take a refused policy's last good version
    /// away.
    pub(super) fn kept(&self, key: &FileKey) -> Kept {
        let Some(file) = self.files.get(key).filter(|file| file.refused) else { return Kept::Nothing };
        let kept: Vec<_> = file.documents.values().filter(|document| document.kept).map(|document| document.value.clone()).collect();
        if kept.is_empty() { Kept::Unknown } else { Kept::Versions(kept) }
    }

    /// The first field that `document` sets and another writer set differently, and that writer.
    pub(super) fn conflict(&self, writer: &str, object: &ObjectRef, document: &Value) -> Option<(String, String)> {
        self.definitions.get(object)?.iter().find_map(|key| match &key.layer {
            Layer::Reported(owner) if **owner != *writer => {
                let theirs = &self.files.get(key)?.documents.get(object)?.value;
                // What another writer says about an earlier object of this name is no conflict.
                let same = uid(theirs).is_none() || uid(document).is_none() || uid(theirs) == uid(document);
                let field = merge::conflict(document, theirs).filter(|_| same)?;
                Some((field, owner.to_string()))
            }
            _ => None,
        })
    }

    fn forget<'a>(&mut self, key: &FileKey, objects: impl Iterator<Item = &'a ObjectRef>) {
        for object in objects {
            if let Some(keys) = self.definitions.get_mut(object) {
                keys.remove(key);
                if keys.is_empty() {
                    self.definitions.remove(object);
                }
            }
        }
    }

    /// Merges what is said about an object and tells if that changed something. Gives the files whose findings may have changed.
    fn settle(&mut self, object: &ObjectRef, events: &mut Vec<SourceEvent>) -> Vec<FileKey> {
        let previous = self.merged.remove(object);
        let spoken = previous.is_some();
        let mut stale: Vec<FileKey> = previous.map(|(key, _)| key).into_iter().collect();
        let definitions: Vec<(FileKey, Document)> = self.winners(object);
        stale.extend(self.definitions.get(object).into_iter().flatten().cloned());
        if !definitions.iter().any(|(key, _)| key.layer.is_whole()) {
            if self.objects.remove(object).is_some() {
                events.push(SourceEvent::Deleted(object.clone()));
            }
            return stale;
        }
        let (value, mut findings) = self.merge(object, &definitions);
        let by_user = definitions.iter().any(|(key, _)| key.layer == Layer::Objects);
        let Some((shown, line)) = definitions.last().map(|(key, document)| (key.clone(), document.line)) else { return stale };
        let current = self.objects.get(object);
        let unchanged = current.is_some_and(|current| *current.value == value);
        if !unchanged || spoken {
            match decode(value) {
                Ok((decoded, notes)) => {
                    // What there is to say about the user's own document was said when it was read.
                    findings.extend(notes.into_iter().filter(|_| !by_user));
                    if unchanged {
                        return self.show(object, shown, line, findings, stale);
                    }
                    let decoded = Arc::new(decoded);
                    self.objects.insert(object.clone(), decoded.clone());
                    events.push(SourceEvent::Applied(decoded));
                }
                Err(refused) => {
                    let effect = if current.is_some() { EFFECT_KEPT } else { EFFECT_NEVER };
                    findings
                        .extend(refused.into_iter().filter(|finding| finding.level == Level::Error).map(|finding| finding.effect(effect)));
                }
            }
        }
        self.show(object, shown, line, findings, stale)
    }

    /// Keeps what is to tell about an object as merged, at the file that shows it.
    fn show(&mut self, object: &ObjectRef, at: FileKey, line: u64, findings: Vec<Finding>, stale: Vec<FileKey>) -> Vec<FileKey> {
        if !findings.is_empty() {
            let findings = findings.into_iter().map(|finding| finding.origin(&*at.name, line)).collect();
            self.merged.insert(object.clone(), (at, findings));
        }
        stale
    }

    /// The definitions that count, in order: the last one of each layer.
    fn winners(&self, object: &ObjectRef) -> Vec<(FileKey, Document)> {
        let mut winners: Vec<(FileKey, Document)> = Vec::new();
        for key in self.definitions.get(object).into_iter().flatten() {
            let Some(document) = self.files.get(key).and_then(|file| file.documents.get(object)) else { continue };
            if winners.last().is_some_and(|(last, _)| last.layer == key.layer) {
                winners.pop();
            }
            winners.push((key.clone(), document.clone()));
        }
        winners
    }

    fn merge(&self, object: &ObjectRef, definitions: &[(FileKey, Document)]) -> (Value, Vec<Finding>) {
        let mut merged = Value::Object(serde_json::Map::new());
        let mut findings = Vec::new();
        for (index, (key, document)) in definitions.iter().enumerate() {
            let current = uid(&merged).map(str::to_owned);
            if !key.layer.is_whole() && current.is_some() && uid(&document.value).is_some() && uid(&document.value) != current.as_deref() {
                // It speaks of an earlier object of the same name.
                continue;
            }
            if let Layer::Reported(writer) = &key.layer {
                let earlier = definitions[..index].iter().filter_map(|(key, document)| match &key.layer {
                    Layer::Reported(other) => Some((other, &document.value)),
                    _ => None,
                });
                for (other, value) in earlier {
                    if let Some(field) = merge::conflict(value, &document.value) {
                        findings.push(
                            Finding::warning(codes::FIELD_CONFLICT, object.clone())
                                .field(field)
                                .problem(format!("is reported by {other} and, differently, by {writer}"))
                                .accepted("one writer a field")
                                .effect(format!("the value of {writer} is in force")),
                        );
                    }
                }
            }
            merge::merge(&mut merged, &document.value);
        }
        (merged, findings)
    }

    /// Everything there is to say about a file.
    fn findings_of(&self, key: &FileKey) -> Vec<Finding> {
        let Some(file) = self.files.get(key) else { return Vec::new() };
        let mut findings = file.findings.clone();
        for (object, document) in &file.documents {
            if let Some((_, merged)) = self.merged.get(object).filter(|(shown, _)| shown == key) {
                findings.extend(merged.iter().cloned());
            }
            // A definition in a later file of the same layer makes this one void.
            let later = self.definitions.get(object).into_iter().flatten().rfind(|other| other.layer == key.layer && *other > key);
            if let Some((other, line)) = later.and_then(|other| Some((other, self.files.get(other)?.documents.get(object)?.line))) {
                findings.push(duplicate(object, document.line, &key.name, &other.name, line));
            }
        }
        findings
    }
}

fn uid(value: &Value) -> Option<&str> {
    value.pointer("/metadata/uid").and_then(Value::as_str).filter(|uid| !uid.is_empty())
}

fn duplicate(object: &ObjectRef, line: u64, file: &str, other: &str, other_line: u64) -> Finding {
    Finding::warning(codes::DUPLICATE_OBJECT, object.clone())
        .origin(file, line)
        .field("metadata.name")
        .found(format!("{:?}", object.name))
        .problem(format!("is defined again in {other}:{other_line}"))
        .accepted("one definition an object; the last one counts, as when kubectl applies them in order")
        .effect("this definition is ignored")
}

/// Reads the documents of a file. `known` is what the file (or the ones that it replaces) held before; `unfinished`: what is missing may
/// still come.
fn read(key: &FileKey, content: Vec<yaml::Document>, known: &BTreeMap<ObjectRef, Document>, unfinished: bool) -> File {
    let mut file = File::default();
    let mut unreadable = Vec::new();
    // Documents of which nobody can tell what object they were meant to be.
    let mut nameless: Option<u64> = None;
    let mut of_nameless = Vec::new();
    // Objects whose document here was refused for a fault of its own.
    let mut refused = BTreeSet::new();
    for yaml::Document { line, content } in content {
        let value = match content {
            Ok(value) => value,
            Err(fault) => {
                nameless.get_or_insert(fault.line);
                unreadable.push(fault);
                continue;
            }
        };
        let (object, findings) = match check(&key.layer, &value) {
            Checked::Good(object, findings) => (object, findings),
            Checked::Skipped(findings) => {
                file.findings.extend(findings.into_iter().map(|finding| finding.origin(&*key.name, line)));
                continue;
            }
            Checked::Refused(None, findings) => {
                nameless.get_or_insert(line);
                of_nameless.extend(findings.into_iter().map(|finding| finding.origin(&*key.name, line)));
                continue;
            }
            Checked::Refused(Some(object), findings) => {
                let kept = known.get(&object);
                let effect = if kept.is_some() { EFFECT_KEPT } else { EFFECT_NEVER };
                let errors = findings.into_iter().map(|finding| match finding.level {
                    Level::Error => finding.effect(effect),
                    _ => finding,
                });
                file.findings.extend(errors.map(|finding| finding.origin(&*key.name, line)));
                if let (Some(kept), false) = (kept, file.documents.contains_key(&object)) {
                    file.documents.insert(object.clone(), Document { line, value: kept.value.clone(), kept: true });
                }
                refused.insert(object);
                continue;
            }
        };
        file.findings.extend(findings.into_iter().map(|finding| finding.origin(&*key.name, line)));
        let document = Document { line, value: Arc::new(value), kept: false };
        match file.documents.insert(object.clone(), document) {
            Some(earlier) if !refused.contains(&object) => {
                file.findings.push(duplicate(&object, earlier.line, &key.name, &key.name, line));
            }
            _ => {}
        }
    }
    // It may be any of those that are missed.
    let missed: Vec<_> = known.iter().filter(|(object, _)| !file.documents.contains_key(object) && !refused.contains(*object)).collect();
    file.refused = unfinished || nameless.is_some() || !refused.is_empty();
    if let Some(line) = nameless.or(unfinished.then_some(1)) {
        for (object, document) in &missed {
            file.documents.insert((*object).clone(), Document { line, value: document.value.clone(), kept: true });
        }
    }
    let effect = match missed.as_slice() {
        [] => EFFECT_NEVER.to_owned(),
        [(object, _)] => format!("the last good version of {object} stays in force"),
        [(object, _), rest @ ..] => format!("the last good versions of {object} and {} more stay in force", rest.len()),
    };
    file.findings.extend(of_nameless.into_iter().map(|finding| finding.effect(&*effect)));
    if unfinished {
        file.findings.push(
            Finding::warning(codes::FILE_UNFINISHED, ObjectRef::cluster(Kind::File, ""))
                .origin(&*key.name, 1)
                .problem("is being written and was not closed for seconds")
                .accepted("a file that is written at once, or renamed into its place")
                .effect(EFFECT_UNFINISHED),
        );
    }
    file.findings.extend(unreadable.into_iter().map(|fault| unreadable_document(fault, &key.name).effect(&*effect)));
    file
}

/// What cannot be parsed has no fields; its line stands for one. The text of the line may be a secret and is not told.
fn unreadable_document(fault: yaml::Unreadable, file: &str) -> Finding {
    let code = if fault.limit { codes::LIMIT_EXCEEDED } else { codes::UNREADABLE_DOCUMENT };
    Finding::error(code, ObjectRef::cluster(Kind::File, ""))
        .origin(file, fault.line)
        .field(format!("line {}", fault.line))
        .found(fault.problem)
        .problem(if fault.limit { "is refused" } else { "makes the document unreadable" })
        .accepted("YAML with apiVersion, kind and metadata.name")
}

enum Checked {
    Good(ObjectRef, Vec<Finding>),
    Skipped(Vec<Finding>),
    Refused(Option<ObjectRef>, Vec<Finding>),
}

/// Checks one document by itself. Only whole objects can be: fields of others are judged once they are merged.
fn check(layer: &Layer, value: &Value) -> Checked {
    if *layer == Layer::Objects {
        return match decode(value.clone()) {
            Ok((object, findings)) if object.kind == Kind::Other => Checked::Skipped(findings),
            Ok((object, findings)) => Checked::Good(object.reference(), findings),
            Err(findings) => Checked::Refused(decode::reference(value), findings),
        };
    }
    match decode::reference(value) {
        Some(object) if object.kind == Kind::Other => Checked::Skipped(Vec::new()),
        Some(object) => Checked::Good(object, Vec::new()),
        None => Checked::Refused(None, decode(value.clone()).err().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
