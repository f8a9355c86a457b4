//! Who carries a label, and who asks for it: both ways of a selector without looking at everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Key;

type Labels = BTreeMap<String, String>;

/// Objects by their labels.
#[derive(Debug, Default)]
pub(super) struct Labelled {
    /// label key → value → namespace → names.
    postings: HashMap<String, HashMap<String, HashMap<String, BTreeSet<String>>>>,
}

impl Labelled {
    pub(super) fn set(&mut self, object: &Key, labels: &Labels, present: bool) {
        for (key, value) in labels {
            if present {
                let values = self.postings.entry(key.clone()).or_default();
                values.entry(value.clone()).or_default().entry(object.0.clone()).or_default().insert(object.1.clone());
                continue;
            }
            let Some(values) = self.postings.get_mut(key) else { continue };
            if let Some(namespaces) = values.get_mut(value) {
                if let Some(names) = namespaces.get_mut(&object.0) {
                    names.remove(&object.1);
                    if names.is_empty() {
                        namespaces.remove(&object.0);
                    }
                }
                if namespaces.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                self.postings.remove(key);
            }
        }
    }

    /// Objects of a namespace that carry all of these labels; none for no labels. Lazy: whether there is one costs little.
    pub(super) fn selected<'a>(&'a self, namespace: &'a str, selector: &Labels) -> impl Iterator<Item = Key> + use<'a> {
        let postings = selector.iter().map(|(key, value)| self.postings.get(key)?.get(value)?.get(namespace));
        let mut postings: Vec<&BTreeSet<String>> = postings.collect::<Option<_>>().unwrap_or_default();
        // Walk the rarest label.
        postings.sort_by_key(|names| names.len());
        let mut postings = postings.into_iter();
        let rarest = postings.next();
        let others: Vec<_> = postings.collect();
        let all = rarest.into_iter().flatten().filter(move |name| others.iter().all(|names| names.contains(*name)));
        all.map(|name| (namespace.to_owned(), name.clone()))
    }

    /// The values that objects of a namespace have for a label.
    pub(super) fn values<'a>(&'a self, namespace: &str, key: &str) -> impl Iterator<Item = &'a str> {
        let values = self.postings.get(key).into_iter().flatten();
        values.filter(move |(_, namespaces)| namespaces.contains_key(namespace)).map(|(value, _)| value.as_str())
    }

    /// The same for every namespace.
    pub(super) fn selected_anywhere<'a>(&'a self, selector: &'a Labels) -> impl Iterator<Item = Key> + 'a {
        let first = selector.iter().next().and_then(|(key, value)| self.postings.get(key)?.get(value));
        first.into_iter().flatten().flat_map(|(namespace, _)| self.selected(namespace, selector))
    }
}

/// Names with their selectors.
type Selectors = BTreeMap<String, Labels>;

/// Objects by a label that their selector asks for.
#[derive(Debug, Default)]
pub(super) struct Selecting {
    /// namespace → (label key, value) → selectors that begin with it.
    postings: HashMap<String, HashMap<(String, String), Selectors>>,
}

impl Selecting {
    pub(super) fn set(&mut self, object: &Key, selector: &Labels, present: bool) {
        let Some((key, value)) = selector.iter().next() else { return };
        let first = (key.clone(), value.clone());
        if present {
            let postings = self.postings.entry(object.0.clone()).or_default();
            postings.entry(first).or_default().insert(object.1.clone(), selector.clone());
            return;
        }
        let Some(postings) = self.postings.get_mut(&object.0) else { return };
        if let Some(selectors) = postings.get_mut(&first) {
            selectors.remove(&object.1);
            if selectors.is_empty() {
                postings.remove(&first);
            }
        }
        if postings.is_empty() {
            self.postings.remove(&object.0);
        }
    }

    /// Objects of a namespace whose selector matches these labels.
    pub(super) fn selecting(&self, namespace: &str, labels: &Labels) -> BTreeSet<Key> {
        let Some(postings) = self.postings.get(namespace) else { return BTreeSet::new() };
        let candidates = labels.iter().filter_map(|(key, value)| postings.get(&(key.clone(), value.clone()))).flatten();
        let matching = candidates.filter(|(_, selector)| selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
        matching.map(|(name, _)| (namespace.to_owned(), name.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn key(namespace: &str, name: &str) -> Key {
        (namespace.to_owned(), name.to_owned())
    }

    #[test]
    fn labels_are_found_and_forgotten() {
        let mut pods = Labelled::default();
        pods.set(&key("a", "one"), &labels(&[("app", "web"), ("version", "v1")]), true);
        pods.set(&key("a", "two"), &labels(&[("app", "web"), ("version", "v2")]), true);
        pods.set(&key("b", "three"), &labels(&[("app", "web")]), true);
        assert_eq!(pods.selected("a", &labels(&[("app", "web")])).count(), 2);
        assert!(pods.selected("a", &labels(&[("app", "web"), ("version", "v1")])).eq([key("a", "one")]));
        assert_eq!(pods.selected_anywhere(&labels(&[("app", "web")])).count(), 3);
        assert_eq!(pods.selected("a", &labels(&[])).count(), 0);
        pods.set(&key("a", "one"), &labels(&[("app", "web"), ("version", "v1")]), false);
        assert_eq!(pods.selected("a", &labels(&[("version", "v1")])).count(), 0);
    }

    #[test]
    fn selectors_are_found_and_forgotten() {
        let mut services = Selecting::default();
        services.set(&key("a", "web"), &labels(&[("app", "web")]), true);
        services.set(&key("a", "v1"), &labels(&[("app", "web"), ("version", "v1")]), true);
        let pod = labels(&[("app", "web"), ("version", "v2"), ("x", "y")]);
        assert_eq!(services.selecting("a", &pod), [key("a", "web")].into());
        assert!(services.selecting("b", &pod).is_empty());
        services.set(&key("a", "web"), &labels(&[("app", "web")]), false);
        assert!(services.selecting("a", &pod).is_empty());
    }
}
