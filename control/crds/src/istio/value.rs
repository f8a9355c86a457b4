//! Values that several of Istio's kinds share: durations, shares, ports, text matches.

use std::{collections::BTreeMap, fmt, time};

use serde::{Deserialize, Deserializer, de};

use crate::reader;

/// A duration as Go writes it: `1h`, `1m30s`, `250ms`, `0.5s`; never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Duration(pub time::Duration);

/// The longest duration that Go can hold.
const NANOSECONDS_MAX: u128 = i64::MAX as u128;

impl Duration {
    /// Reads a duration; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(Self::default());
        }
        let (mut rest, mut total) = (text, 0_u128);
        while !rest.is_empty() {
            let digits = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
            let (number, after) = rest.split_at(digits);
            let unit_length = after.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_length);
            total = total.checked_add(scaled(number, nanoseconds(unit)?)?)?;
            rest = after;
        }
        let positive = !text.is_empty() && total <= NANOSECONDS_MAX;
        positive.then(|| Self(time::Duration::from_nanos(u64::try_from(total).unwrap_or(u64::MAX))))
    }
}

fn nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `number`, perhaps with a fraction, times `unit`; what is less than a nanosecond is cut off.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.into() };
    let (mut value, mut scale) = (whole.checked_mul(unit)?, unit);
    for digit in fraction.bytes() {
        scale /= 10;
        value = value.checked_add(u128::from(digit - b'0') * scale)?;
    }
    Some(value)
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| reader::unreadable("a duration", "for example \"5s\""))
    }
}

/// `Percent`: a share in percent, 0.0 to 100.0.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Percent {
    /// The share.
    pub value: f64,
}

/// `PortSelector`: a port by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: i64,
}

/// `StringMatch`: exactly one of `exact`, `prefix` and `regex`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenMatch")]
pub enum StringMatch {
    /// None of them: presence, where the field allows it.
    Present,
    /// Equal.
    Exact(String),
    /// Starts with.
    Prefix(String),
    /// All of it matches (RE2).
    Regex(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenMatch {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

impl TryFrom<WrittenMatch> for StringMatch {
    type Error = &'static str;

    fn try_from(written: WrittenMatch) -> Result<Self, Self::Error> {
        match (written.exact, written.prefix, written.regex) {
            (None, None, None) => Ok(Self::Present),
            (Some(text), None, None) => Ok(Self::Exact(text)),
            (None, Some(text), None) => Ok(Self::Prefix(text)),
            (None, None, Some(text)) => Ok(Self::Regex(text)),
            _ => Err("has more than one of exact, prefix and regex"),
        }
    }
}

/// Matches by the name of a header or query parameter. An entry that is `null` is kept as `None`: dropping it would match more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StringMatches(pub BTreeMap<String, Option<StringMatch>>);

impl<'de> Deserialize<'de> for StringMatches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> de::Visitor<'de> for Entries {
            type Value = StringMatches;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping from name to {exact, prefix or regex}")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<StringMatches, D::Error> {
                deserializer.deserialize_map(self)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<StringMatches, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, value)) = map.next_entry()? {
                    entries.insert(name, value);
                }
                Ok(StringMatches(entries))
            }
        }
        deserializer.deserialize_newtype_struct(reader::WITH_NULLS, Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let milliseconds = |text: &str| Duration::parse(text).map(|duration| duration.0.as_millis());
        for (text, expected) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000),
            ("250ms", 250),
            ("0.5s", 500),
            (".5s", 500),
            ("1.s", 1_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1500us", 1),
            ("1500µs", 1),
        ] {
            assert_eq!(milliseconds(text), Some(expected), "{text}");
        }
        for text in ["", "5", "5x", "s", ".s", "-1s", "+1s", "1..5s", "5 s", "5S", "1d", "99999999h", "99999999999999999999s", "٣s"] {
            assert_eq!(milliseconds(text), None, "{text}");
        }
    }
}
