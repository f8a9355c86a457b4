//! Names that a cluster makes up: uids, hashes of pod templates, suffixes of pod names, times.

use std::hash::Hasher;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use xxhash_rust::xxh3::Xxh3Default;

/// Letters and digits that make no words, as Kubernetes uses for generated names.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random UUID (version 4).
pub fn random_uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The hash that names a version of a pod template: equal templates, equal names.
pub fn template_hash(template: &Value) -> String {
    let mut hasher = Xxh3Default::new();
    hasher.write(template.to_string().as_bytes());
    letters(hasher.finish(), 10)
}

/// A random suffix of five letters.
pub fn suffix() -> String {
    letters(rand::random(), 5)
}

fn letters(mut number: u64, count: usize) -> String {
    let base = SAFE.len() as u64;
    (0..count)
        .map(|_| {
            let letter = SAFE[usize::try_from(number % base).expect("less than 27")];
            number /= base;
            char::from(letter)
        })
        .collect()
}

/// A time as objects carry it: RFC 3339, whole seconds, UTC.
pub fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at).replace_nanosecond(0).expect("zero is a nanosecond");
    at.format(&Rfc3339).expect("years of four digits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_templates_have_equal_hashes() {
        assert_eq!(template_hash(&json!({"a": 1})), template_hash(&json!({"a": 1})));
        assert_ne!(template_hash(&json!({"a": 1})), template_hash(&json!({"a": 2})));
        assert_eq!(template_hash(&json!({})).len(), 10);
    }

    #[test]
    fn uids_are_random_uuids() {
        let uid = random_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"), "{uid}");
        assert_ne!(uid, random_uid());
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500)), "1970-01-01T00:00:01Z");
    }
}
