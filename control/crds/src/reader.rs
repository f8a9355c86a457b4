//! Reads a JSON value into a type and remembers where: the path of the first thing that does not fit, and of every field that the
//! type does not know. One pass, so that a type needs to be instantiated for one deserializer only.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor},
};
use serde_json::Value;

/// What did not fit, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The field's path, empty for the document itself.
    pub(crate) path: String,
    /// The value there, shortened; `None` when it is the absence that is wrong.
    pub(crate) found: Option<String>,
    /// What is wrong.
    pub(crate) problem: String,
    /// What is accepted.
    pub(crate) accepted: Option<String>,
    /// The type is right, and the value means nothing.
    pub(crate) unreadable: bool,
}

/// The name under which a mapping is read with those of its entries that are null ([`de::Deserializer::deserialize_newtype_struct`]).
pub(crate) const WITH_NULLS: &str = "tropis::with_nulls";

/// The failure of a value that has the right type but is not what its field means.
pub(crate) fn unreadable<E: de::Error>(meaning: &str, accepted: &str) -> E {
    E::invalid_value(de::Unexpected::Other(meaning), &accepted)
}

/// A value that was read, with the fields that its type does not know.
pub(crate) struct Read<T> {
    /// What was read.
    pub(crate) value: T,
    /// Fields that the type does not know.
    pub(crate) unknown: Vec<Unknown>,
}

/// A field that its type does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// Its path.
    pub(crate) path: String,
    /// Its name.
    pub(crate) name: String,
    /// Its value, shortened.
    pub(crate) found: String,
    /// The fields that there are in its place; empty where that is not known.
    pub(crate) known: &'static [&'static str],
}

/// Reads `value`, which stands at `path` in its document.
pub(crate) fn read<'de, T: Deserialize<'de>>(value: &'de Value, path: &str) -> Result<Read<T>, Misfit> {
    let unknown = RefCell::new(Vec::new());
    let root = if path.is_empty() { Path::Root } else { Path::Base(path) };
    let reader = Reader { value, path: root, unknown: &unknown, with_nulls: false, siblings: &[] };
    match T::deserialize(reader) {
        Ok(value) => Ok(Read { value, unknown: unknown.into_inner() }),
        Err(failure) => {
            let (path, found) = failure.place.unwrap_or_else(|| (path.to_owned(), shorten(value)));
            let found = (!failure.absent).then_some(found);
            Err(Misfit { path, found, problem: failure.problem, accepted: failure.accepted, unreadable: failure.unreadable })
        }
    }
}

/// A value as the user wrote it, in at most about 80 characters.
pub(crate) fn shorten(value: &Value) -> String {
    match value {
        Value::Object(map) if map.is_empty() => "an empty mapping".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Null => "null".to_owned(),
        scalar => {
            let text = scalar.to_string();
            match text.char_indices().nth(80) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

/// The path to a value, a chain through the frames that read it.
enum Path<'p> {
    Root,
    Base(&'p str),
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Base(path) => f.write_str(path),
            Self::Field(Path::Root, name) => f.write_str(name),
            // A key with dots or slashes (a label) is set apart.
            Self::Field(parent, name) if name.contains(['.', '/']) => write!(f, "{parent}[{name}]"),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Debug)]
struct Failure {
    place: Option<(String, String)>,
    problem: String,
    accepted: Option<String>,
    absent: bool,
    unreadable: bool,
}

impl Failure {
    fn at(mut self, path: &Path<'_>, value: &Value) -> Self {
        if self.place.is_none() {
            self.place = Some((path.to_string(), shorten(value)));
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { place: None, problem: message.to_string(), accepted: None, absent: false, unreadable: false }
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self {
            place: None,
            problem: "has the wrong type".to_owned(),
            accepted: Some(plain(&expected.to_string())),
            absent: false,
            unreadable: false,
        }
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let (problem, unreadable) = match found {
            // Made by `unreadable`.
            de::Unexpected::Other(meaning) => (format!("is not {meaning}"), true),
            _ => ("is not accepted".to_owned(), false),
        };
        Self { place: None, problem, accepted: Some(plain(&expected.to_string())), absent: false, unreadable }
    }

    fn unknown_variant(_: &str, variants: &'static [&'static str]) -> Self {
        Self {
            place: None,
            problem: "is not one of its values".to_owned(),
            accepted: Some(variants.join(", ")),
            absent: false,
            unreadable: false,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { place: None, problem: format!("the field {field:?} is missing"), accepted: None, absent: true, unreadable: false }
    }
}

/// An expectation in words that a user of YAML knows.
fn plain(expected: &str) -> String {
    match expected {
        "a string" | "a borrowed string" | "String" => "a string".to_owned(),
        "i32" | "i64" | "u16" | "u32" | "u64" | "usize" => "an integer in range".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a map" => "a mapping".to_owned(),
        "a sequence" => "a list".to_owned(),
        "IntOrString" | "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => "an integer or a string".to_owned(),
        other => match other.strip_prefix("struct ") {
            Some(name) => format!("a mapping: {name}"),
            None if other.starts_with(char::is_uppercase) => format!("a mapping: {other}"),
            None => other.to_owned(),
        },
    }
}

struct Reader<'de, 'p> {
    value: &'de Value,
    path: Path<'p>,
    unknown: &'p RefCell<Vec<Unknown>>,
    with_nulls: bool,
    /// The fields that may stand where this one does.
    siblings: &'static [&'static str],
}

impl<'de> Reader<'de, '_> {
    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.visit_fields(&[], visitor)
    }

    /// Visits a value whose fields, if it is a mapping, are `known`.
    fn visit_fields<V: Visitor<'de>>(self, known: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Number(number) => {
                if let Some(number) = number.as_u64() {
                    visitor.visit_u64(number)
                } else if let Some(number) = number.as_i64() {
                    visitor.visit_i64(number)
                } else {
                    visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN))
                }
            }
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), parent: &self.path, unknown: self.unknown }),
            Value::Object(map) => {
                let (fields, parent, unknown) = (map.iter(), &self.path, self.unknown);
                visitor.visit_map(Fields { fields, current: None, parent, unknown, with_nulls: self.with_nulls, known })
            }
        };
        result.map_err(|failure| failure.at(&self.path, self.value))
    }
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(Self { with_nulls: name == WITH_NULLS, ..self })
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Value::String(text) => {
                visitor.visit_enum(text.as_str().into_deserializer()).map_err(|failure: Failure| failure.at(&self.path, self.value))
            }
            _ => Err(<Failure as de::Error>::invalid_type(de::Unexpected::Other("value"), &"a string").at(&self.path, self.value)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, known: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        // Derived types would take a list of their fields' values too.
        match self.value {
            Value::Object(_) => self.visit_fields(known, visitor),
            _ => Err(<Failure as de::Error>::invalid_type(de::Unexpected::Other("value"), &visitor).at(&self.path, self.value)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let name = if let Path::Field(_, name) = self.path { name } else { "" };
        let unknown = Unknown { path: self.path.to_string(), name: name.to_owned(), found: shorten(self.value), known: self.siblings };
        self.unknown.borrow_mut().push(unknown);
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
    }
}

struct Items<'de, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    parent: &'p Path<'p>,
    unknown: &'p RefCell<Vec<Unknown>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        let reader = Reader { value, path: Path::Index(self.parent, index), unknown: self.unknown, with_nulls: false, siblings: &[] };
        match seed.deserialize(reader) {
            Ok(value) => Ok(Some(value)),
            Err(failure) => Err(failure.at(&Path::Index(self.parent, index), value)),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Fields<'de, 'p> {
    fields: serde_json::map::Iter<'de>,
    current: Option<(&'de str, &'de Value)>,
    parent: &'p Path<'p>,
    unknown: &'p RefCell<Vec<Unknown>>,
    with_nulls: bool,
    known: &'static [&'static str],
}

impl<'de> de::MapAccess<'de> for Fields<'de, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        // An explicit null is an absent field (traffic-api.md 0.3).
        self.current =
            self.fields.by_ref().find(|(_, value)| self.with_nulls || !value.is_null()).map(|(name, value)| (name.as_str(), value));
        let Some((name, value)) = self.current else { return Ok(None) };
        seed.deserialize(de::value::BorrowedStrDeserializer::new(name))
            .map(Some)
            .map_err(|failure: Failure| failure.at(&Path::Field(self.parent, name), value))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let (name, value) = self.current.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let path = Path::Field(self.parent, name);
        let reader = Reader { value, path, unknown: self.unknown, with_nulls: false, siblings: self.known };
        seed.deserialize(reader).map_err(|failure| failure.at(&Path::Field(self.parent, name), value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        #[serde(default)]
        items: Vec<Inner>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        port: u16,
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "UPPERCASE")]
    enum Mode {
        Strict,
        Permissive,
    }

    fn misfit(json: Value) -> Misfit {
        read::<Outer>(&json, "spec").map(|read| read.value).unwrap_err()
    }

    #[test]
    fn unknown_fields_are_collected_with_their_paths() {
        let json = serde_json::json!({"items": [{"port": 1, "mode": null, "prot": 2}], "extra": {"a": 1}});
        let read = read::<Outer>(&json, "spec").unwrap();
        assert_eq!(read.value.items, [Inner { port: 1, mode: None }]);
        let told = |unknown: &Unknown| format!("{} {} {:?}", unknown.path, unknown.found, unknown.known);
        let told: Vec<String> = read.unknown.iter().map(told).collect();
        assert_eq!(told, ["spec.items[0].prot 2 [\"port\", \"mode\"]", "spec.extra a mapping [\"items\", \"labels\"]"]);
        assert_eq!(read.unknown[1].name, "extra");
    }

    #[test]
    fn misfits_name_path_found_and_accepted() {
        let wrong = misfit(serde_json::json!({"items": [{"port": 1}, {"port": "80"}]}));
        assert_eq!((wrong.path.as_str(), wrong.found.as_deref()), ("spec.items[1].port", Some("\"80\"")));
        assert_eq!(wrong.accepted.as_deref(), Some("an integer in range"));
        let range = misfit(serde_json::json!({"items": [{"port": 70000}]}));
        assert_eq!((range.path.as_str(), range.found.as_deref()), ("spec.items[0].port", Some("70000")));
        let variant = misfit(serde_json::json!({"items": [{"port": 1, "mode": "STRONG"}]}));
        assert_eq!((variant.path.as_str(), variant.accepted.as_deref()), ("spec.items[0].mode", Some("STRICT, PERMISSIVE")));
        let missing = misfit(serde_json::json!({"items": [{"mode": "STRICT"}]}));
        assert_eq!((missing.path.as_str(), missing.found), ("spec.items[0]", None));
        let label = misfit(serde_json::json!({"labels": {"app.kubernetes.io/version": 1}}));
        assert_eq!(label.path, "spec.labels[app.kubernetes.io/version]");
        assert_eq!(misfit(serde_json::json!([])).path, "spec");
    }
}
