//! Objects as facts, found by kind and namespace. Nothing is decided here.

use std::{collections::BTreeMap, sync::Arc};

use tropis_crds::{Kind, Object, ObjectRef};

use crate::Settings;

/// Everything that exists, by kind, namespace and name.
#[derive(Debug, Clone, Default)]
pub struct Index {
    settings: Settings,
    objects: BTreeMap<ObjectRef, Arc<Object>>,
}

impl Index {
    /// An empty index.
    pub fn new(settings: Settings) -> Self {
        Self { settings, objects: BTreeMap::new() }
    }

    /// Puts an object in, or in the place of its older form.
    pub fn apply(&mut self, object: &Arc<Object>) {
        self.objects.insert(object.reference(), object.clone());
    }

    /// Takes an object out.
    pub fn remove(&mut self, object: &ObjectRef) {
        self.objects.remove(object);
    }

    /// What holds for the whole mesh.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Everything, in order.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// Everything of one kind, by namespace and name.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.range(ObjectRef::cluster(kind, "")..).take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    /// Everything of one kind in one namespace, by name.
    pub fn within<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
        let range = self.objects.range(ObjectRef::new(kind, namespace, "")..);
        range.take_while(move |(key, _)| key.kind == kind && key.namespace == namespace).map(|(_, object)| object)
    }

    /// One object.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&ObjectRef::new(kind, namespace, name))
    }
}
