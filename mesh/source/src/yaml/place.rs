//! Where a field of an object stands in its file: asked when a finding is shown, so that nobody has to count lines. Objects are read
//! without it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::{Location, Spanned};
use tropis_crds::{ObjectRef, decode};

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: u64,
    /// The first character of what is meant, from 1.
    pub column: u64,
    /// How many characters of the line are meant; at least 1.
    pub width: u64,
    /// The whole line.
    pub text: String,
}

/// Finds `field` (`spec.http[1].timeout`, `metadata.labels[istio.io/use-waypoint]`) of the object whose document begins at `line` of a
/// file: a key with its scalar, or the key of what is larger. A field that is not there is looked for where it is missing: at what would hold
/// it. What comes by an alias stands where it is written. `None` if there is no such document or nothing of the field.
pub fn of(file: &str, line: u64, object: &ObjectRef, field: &str) -> Option<Place> {
    let (_, document) = super::split(file).into_iter().find(|(begin, _)| *begin == line)?;
    let root = serde_saphyr::from_str_with_options::<Spanned<Node>>(document, super::options()).ok()?;
    let of_list = entry(document, object).map(|index| format!("items[{index}]"));
    let (mut at, mut depth) = (Found::entry(&root), 0);
    for path in of_list.iter().map(String::as_str).chain([field]) {
        let mut rest = path;
        while let Some((next, left)) = at.node.step(rest) {
            (at, rest, depth) = (next, left, depth + 1);
        }
    }
    (depth > 0).then_some(())?;
    // What stands behind `---` begins in the middle of a line.
    let offset = document.as_ptr() as usize - file.as_ptr() as usize;
    let indent = file[..offset].chars().rev().take_while(|character| *character != '\n').count() as u64;
    let text = file.lines().nth(usize::try_from(line + at.location.line() - 2).ok()?)?;
    let column = at.location.column() + if at.location.line() == 1 { indent } else { 0 };
    let left = (text.trim_end().chars().count() as u64 + 1).saturating_sub(column);
    Some(Place { line: line + at.location.line() - 1, column, width: at.width.min(left).max(1), text: text.to_owned() })
}

/// Which entry of a list an object is; `None` if its document is no list.
fn entry(document: &str, object: &ObjectRef) -> Option<usize> {
    let value = super::parse(document).ok()?;
    value.get("kind").and_then(Value::as_str).filter(|kind| kind.ends_with("List"))?;
    let entries = super::documents(document);
    entries.iter().position(|entry| entry.content.as_ref().is_ok_and(|value| decode::reference(value).as_ref() == Some(object)))
}

/// A document with the places of its keys and values.
#[derive(Debug)]
enum Node {
    Scalar,
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// A node, and what of it is shown.
struct Found<'n> {
    location: Location,
    /// In characters.
    width: u64,
    node: &'n Node,
}

impl Node {
    /// The node that the first step of a path leads to, and the rest of the path.
    fn step<'n, 'p>(&'n self, path: &'p str) -> Option<(Found<'n>, &'p str)> {
        match (self, path.strip_prefix('[')) {
            (Self::List(entries), Some(path)) => {
                let (index, rest) = path.split_once(']')?;
                let entry = entries.get(index.parse::<usize>().ok()?)?;
                Some((Found::entry(entry), rest))
            }
            (Self::Map(entries), Some(path)) => {
                let (wanted, rest) = path.split_once(']')?;
                let (key, value) = entries.iter().find(|(key, _)| key.value == wanted)?;
                Some((Found::of(key, value), rest))
            }
            (Self::Map(entries), None) => {
                let path = path.strip_prefix('.').unwrap_or(path);
                let rest =
                    |key: &Spanned<String>| path.strip_prefix(&*key.value).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
                // A key may have dots itself: the longest is meant.
                let (key, value) = entries.iter().filter(|(key, _)| rest(key).is_some()).max_by_key(|(key, _)| key.value.len())?;
                Some((Found::of(key, value), rest(key)?))
            }
            (Self::List(_), None) | (Self::Scalar, _) => None,
        }
    }
}

impl<'n> Found<'n> {
    fn entry(value: &'n Spanned<Node>) -> Self {
        Self { location: value.defined, width: value.defined.span().len(), node: &value.value }
    }

    /// A scalar is shown with its key, if it is on the same line.
    fn of(key: &Spanned<String>, value: &'n Spanned<Node>) -> Self {
        let (first, last) = (key.defined, value.defined);
        let own = matches!(value.value, Node::Scalar) && first.line() == last.line() && last.column() > first.column();
        let width = if own { last.column() - first.column() + last.span().len() } else { first.span().len() };
        Self { location: first, width, node: &value.value }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

/// Every scalar is alike.
macro_rules! scalars {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Node, E> {
            Ok(Node::Scalar)
        })*
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    scalars!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64, visit_str: &str);

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_element()? {
            entries.push(entry);
        }
        Ok(Node::List(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use tropis_crds::Kind;

    use super::*;

    const FILE: &str = "\
# Routes of the shop.
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop, labels: {istio.io/use-waypoint: none, a.b: x}}
spec:
  hosts: [reviews]
  http:
  - name: first
    timeout: 5x
    route:
    - destination: {host: reviews, subset: \"v3\"} # the newest
  - &rest
    match:
    - uri:
        regex: |
          /a(
    retries: ~
  - *rest
--- {apiVersion: v1, kind: Service, metadata: {name: other, namespace: shop}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: one, namespace: shop}}
- apiVersion: v1
  kind: Service
  metadata: {name: two, namespace: shop}
  spec:
    ports: [{name: ü, port: 80}]
";

    /// The line, and what of it is meant.
    fn meant(line: u64, name: &str, field: &str) -> Option<(u64, String)> {
        let kind = if name == "reviews" { Kind::VirtualService } else { Kind::Service };
        let place = of(FILE, line, &ObjectRef::new(kind, "shop", name), field)?;
        assert_eq!(FILE.lines().nth(place.line as usize - 1), Some(&*place.text));
        let meant = place.text.chars().skip(place.column as usize - 1).take(place.width as usize).collect();
        Some((place.line, meant))
    }

    #[test]
    fn a_field_is_found_where_it_stands() {
        for (field, line, text) in [
            ("spec.http[0].timeout", 9, "timeout: 5x"),
            ("spec.http[0].route[0].destination.subset", 11, "subset: \"v3\""),
            ("spec.http[0].route[0].destination", 11, "destination"),
            ("spec.hosts[0]", 6, "reviews"),
            ("spec.http[1].match[0].uri.regex", 15, "regex"),
            ("spec.http[1].retries", 17, "retries: ~"),
            ("spec.http[2].retries", 17, "retries: ~"),
            ("metadata.labels[istio.io/use-waypoint]", 4, "istio.io/use-waypoint: none"),
            ("metadata.labels.a.b", 4, "a.b: x"),
        ] {
            assert_eq!(meant(2, "reviews", field), Some((line, text.to_owned())), "{field}");
        }
    }

    #[test]
    fn a_field_that_is_missing_is_missed_at_what_would_hold_it() {
        assert_eq!(meant(2, "reviews", "spec.http[0].route[0].weight").unwrap().0, 11);
        assert_eq!(meant(2, "reviews", "spec.gateways"), Some((5, "spec".to_owned())));
        assert_eq!(meant(2, "reviews", "data[x]"), None);
        assert_eq!(meant(3, "reviews", "spec"), None, "no document begins there");
    }

    #[test]
    fn documents_behind_dashes_and_entries_of_lists_have_their_places_too() {
        assert_eq!(meant(19, "other", "metadata.name"), Some((19, "name: other".to_owned())));
        assert_eq!(meant(21, "two", "metadata.name"), Some((27, "name: two".to_owned())));
        assert_eq!(meant(21, "two", "spec.ports[0].name"), Some((29, "name: ü".to_owned())));
        assert_eq!(meant(21, "one", "items").unwrap().0, 24, "the list's own fields are not the entry's");
    }
}
