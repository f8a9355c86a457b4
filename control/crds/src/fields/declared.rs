//! The fields that our types have, as serde knows them: a deserializer that writes down what each type of a spec asks for.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::{
    Deserialize, Deserializer,
    de::{
        Error as _, IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
};
use serde_json::{Error, Value};

use crate::{
    gateway_api::gateway,
    istio::{authorization_policy, destination_rule, peer_authentication, virtual_service},
    kind::Kind,
};

/// The names of a type's fields by the path at which the type stands, list markers left out.
pub(super) type Declared = BTreeMap<String, BTreeSet<&'static str>>;

/// Adds the fields of the types that `spec` leads to.
pub(super) fn add(kind: Kind, spec: &Value, declared: &RefCell<Declared>) {
    let walk = Walk { value: spec, path: String::new(), declared };
    let read = match kind {
        Kind::VirtualService => virtual_service::Spec::deserialize(walk).err(),
        Kind::DestinationRule => destination_rule::Spec::deserialize(walk).err(),
        Kind::Gateway => gateway::Spec::deserialize(walk).err(),
        Kind::AuthorizationPolicy => authorization_policy::Spec::deserialize(walk).err(),
        Kind::PeerAuthentication => peer_authentication::Spec::deserialize(walk).err(),
        other => panic!("{other} has no spec here"),
    };
    assert!(read.is_none(), "{kind} {spec}: {read:?}");
}

struct Walk<'a> {
    value: &'a Value,
    path: String,
    declared: &'a RefCell<Declared>,
}

impl<'de> Walk<'de> {
    fn below(&self, name: &str, value: &'de Value) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { value, path, declared: self.declared }
    }
}

impl<'de> IntoDeserializer<'de, Error> for Walk<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Walk<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Number(number) => match number.as_u64() {
                Some(number) => visitor.visit_u64(number),
                None => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::Array(entries) => {
                let entries = entries.iter().map(|value| Self { value, path: self.path.clone(), declared: self.declared });
                visitor.visit_seq(SeqDeserializer::new(entries))
            }
            Value::Object(map) => {
                visitor.visit_map(MapDeserializer::new(map.iter().map(|(name, value)| (name.as_str(), self.below(name, value)))))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        let text = self.value.as_str().ok_or_else(|| Error::custom("not a word"))?;
        visitor.visit_enum(IntoDeserializer::<Error>::into_deserializer(text))
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.declared.borrow_mut().entry(self.path.clone()).or_default().extend(fields);
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
        ignored_any
    }
}
