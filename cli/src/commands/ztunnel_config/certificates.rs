//! Certificates that node proxies hold.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{certificate::X509Certificate, pem::parse_x509_pem, prelude::FromDer};

use crate::{
    output::Listing,
    pods::{NodeProxy, text},
};

const HEADINGS: &[&str] = &["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];

/// A certificate without its key, which no dump holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificate {
    name: String,
    r#type: &'static str,
    status: String,
    valid: bool,
    serial_number: String,
    not_after: String,
    not_before: String,
}

/// The certificates of all identities, or of one.
pub(crate) fn listing(proxies: &[NodeProxy], identity: Option<&str>) -> Listing<Certificate> {
    let now = OffsetDateTime::now_utc();
    let entries = proxies.iter().flat_map(|proxy| proxy.list("certificates"));
    let wanted = entries.filter(|entry| identity.is_none_or(|identity| text(entry, "/identity") == identity));
    let mut found: Vec<Certificate> = wanted.flat_map(|entry| of_identity(entry, now)).collect();
    found.sort();
    found.dedup();
    Listing::new(HEADINGS, found, |own| {
        let Certificate { name, r#type, status, valid, serial_number, not_after, not_before } = own.clone();
        vec![name, r#type.to_owned(), status, valid.to_string(), serial_number, not_after, not_before]
    })
}

fn of_identity(entry: &Value, now: OffsetDateTime) -> Vec<Certificate> {
    let list = |name: &str| entry[name].as_array().cloned().unwrap_or_default();
    let chain = list("certChain").into_iter().enumerate().map(|(at, one)| (if at == 0 { "Leaf" } else { "Intermediate" }, one));
    let roots = list("rootCerts").into_iter().map(|one| ("Root", one));
    let mut all: Vec<Certificate> = chain.chain(roots).map(|(kind, one)| certificate(entry, kind, &one, now)).collect();
    if all.is_empty() {
        // Being asked for, or refused: the state says which.
        all.push(certificate(entry, "Leaf", &Value::Null, now));
    }
    all
}

fn certificate(entry: &Value, kind: &'static str, one: &Value, now: OffsetDateTime) -> Certificate {
    let read = read(text(one, "/pem")).unwrap_or_default();
    let time = |time: Option<OffsetDateTime>| time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
    Certificate {
        name: text(entry, "/identity").to_owned(),
        r#type: kind,
        status: text(entry, "/state").to_owned(),
        valid: read.not_before.is_some_and(|begin| begin <= now) && read.not_after.is_some_and(|end| now < end),
        serial_number: read.serial_number,
        not_after: time(read.not_after),
        not_before: time(read.not_before),
    }
}

#[derive(Debug, Default)]
struct Read {
    serial_number: String,
    not_before: Option<OffsetDateTime>,
    not_after: Option<OffsetDateTime>,
}

/// Reads base64 of a PEM text; `None` if it is something else.
fn read(pem: &str) -> Option<Read> {
    let pem = BASE64_STANDARD.decode(pem).ok()?;
    let (_, pem) = parse_x509_pem(&pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    let validity = certificate.validity();
    Some(Read {
        serial_number: certificate.serial.to_str_radix(16),
        not_before: Some(validity.not_before.to_datetime()),
        not_after: Some(validity.not_after.to_datetime()),
    })
}
