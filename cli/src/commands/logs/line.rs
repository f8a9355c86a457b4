//! A line of a log: when it was written, which pod it is about, and how it is shown.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::AboutPod;
use crate::{arguments::Format, output};

/// The fields that stand in front without their names. A waypoint's line about a request has a time of its own kind.
const FIRST: [&str; 5] = ["time", "start_time", "level", "scope", "message"];
/// Where a waypoint's line about a request says who called, and who was called.
const ADDRESSES: [&str; 2] = ["downstream_remote_address", "upstream_host"];

/// A line.
#[derive(Debug)]
pub(super) struct Line {
    text: String,
    /// Its fields; `Null` if it is no JSON.
    pub(super) value: Value,
    /// When it was written, or when the request began that it is about.
    pub(super) time: Option<OffsetDateTime>,
}

impl Line {
    pub(super) fn new(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).ok().filter(Value::is_object).unwrap_or_default();
        let time = value["time"].as_str().or(value["start_time"].as_str()).or_else(|| started(text));
        let time = time.and_then(|time| OffsetDateTime::parse(time, &Rfc3339).ok());
        Self { text: text.to_owned(), value, time }
    }

    /// Whether a pod is at one of the ends, or named. A node proxy names it, a waypoint has its address.
    pub(super) fn is_about(&self, pod: &AboutPod) -> bool {
        let AboutPod { name, addresses } = pod;
        let end =
            |end: &str| self.value[format!("{end}.workload")] == *name.name && self.value[format!("{end}.namespace")] == *name.namespace;
        let named = self.value["pod"].as_str().is_some_and(|pod| {
            pod.split_once('/') == Some((&name.namespace, &name.name)) || pod == format!("{}.{}", name.name, name.namespace)
        });
        let own = |text: &str| address(text).is_some_and(|address| addresses.contains(&address));
        let addressed = match self.value.is_null() {
            // Envoy's text: the addresses are words of it.
            true => started(&self.text).is_some() && self.text.split([' ', '"']).any(own),
            false => ADDRESSES.iter().any(|field| self.value[*field].as_str().is_some_and(own)),
        };
        named || end("src") || end("dst") || addressed
    }

    /// For people: time, level, scope and message, then the fields that say something. For programs: a line of JSON, or a document of
    /// YAML; what is no JSON is a message.
    pub(super) fn shown(&self, format: Format) -> anyhow::Result<String> {
        let value = || if self.value.is_null() { json!({"message": self.text}) } else { self.value.clone() };
        Ok(match format {
            Format::Json if self.value.is_null() => value().to_string() + "\n",
            Format::Json => format!("{}\n", self.text),
            Format::Yaml => format!("---\n{}", output::value(format, &value())?),
            Format::Table => self.text_of_fields() + "\n",
        })
    }

    fn text_of_fields(&self) -> String {
        let Some(fields) = self.value.as_object() else { return self.text.clone() };
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut parts: Vec<String> = FIRST.iter().filter_map(|name| Some(plain(fields.get(*name)?))).collect();
        let rest = fields.iter().filter(|(name, value)| !FIRST.contains(&name.as_str()) && !value.is_null());
        parts.extend(rest.map(|(name, value)| match plain(value) {
            text if text.is_empty() || text.contains([' ', '"', '=']) => format!("{name}={text:?}"),
            text => format!("{name}={text}"),
        }));
        parts.join("  ")
    }
}

/// The time in front of a line of Envoy's text: `[2026-01-01T00:00:00.000Z] "GET …`.
fn started(text: &str) -> Option<&str> {
    Some(text.strip_prefix('[')?.split_once(']')?.0)
}

/// The address in `10.0.0.1:80`, in one family as it is in the other.
fn address(text: &str) -> Option<IpAddr> {
    Some(text.parse::<SocketAddr>().ok()?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    fn pod(name: &str, addresses: &[&str]) -> AboutPod {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        AboutPod { name: names::name(name, "shop").unwrap(), addresses }
    }

    #[test]
    fn a_line_is_shown_for_people_and_kept_for_programs() {
        let text = r#"{"level":"info","time":"2026-01-01T00:00:00Z","scope":"access","message":"connection complete","src.workload":"sleep","src.namespace":"shop","bytes_sent":12,"policy":null,"error":"no way"}"#;
        let line = Line::new(text);
        assert_eq!(line.shown(Format::Json).unwrap(), format!("{text}\n"));
        assert!(line.shown(Format::Yaml).unwrap().starts_with("---\nlevel: info\n"));
        assert_eq!(
            line.shown(Format::Table).unwrap(),
            "2026-01-01T00:00:00Z  info  access  connection complete  src.workload=sleep  src.namespace=shop  bytes_sent=12  error=\"no way\"\n"
        );
        let panic = Line::new("thread main panicked");
        assert_eq!(panic.shown(Format::Table).unwrap(), "thread main panicked\n");
        assert_eq!(panic.shown(Format::Json).unwrap(), "{\"message\":\"thread main panicked\"}\n");
        assert!(line.is_about(&pod("sleep", &[])));
        assert!(!line.is_about(&pod("sleep.other", &[])) && !line.is_about(&pod("reviews", &[])));
    }

    #[test]
    fn a_request_is_about_who_called_and_who_was_called() {
        let json = r#"{"start_time":"2026-01-01T00:00:00.500Z","method":"GET","upstream_host":"10.244.2.3:8080","upstream_local_address":"10.244.1.7:40000","downstream_remote_address":"[fd00:10:244:1::2]:46460"}"#;
        let text = "[2026-01-01T00:00:00.500Z] \"GET / HTTP/1.1\" 200 - via_upstream - \"-\" 0 1 2 3 \"-\" \"curl\" \"id\" \"reviews\" \"10.244.2.3:8080\" cluster 10.244.1.7:40000 10.96.0.9:9080 [fd00:10:244:1::2]:46460 - default";
        let caller = pod("sleep", &["10.244.1.2", "fd00:10:244:1::2"]);
        let endpoint = pod("reviews-v1", &["10.244.2.3"]);
        for line in [json, text].map(Line::new) {
            assert!(line.is_about(&caller) && line.is_about(&endpoint), "{line:?}");
            assert!(!line.is_about(&pod("sleep", &["10.244.1.3", "fd00:10:244:1::3"])), "{line:?}");
            assert_eq!(line.time.unwrap().millisecond(), 500);
        }
        assert!(!Line::new("a word 10.244.2.3:8080").is_about(&endpoint), "not every text is about a request");
    }
}
