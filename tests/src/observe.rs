//! Reading what the programs say: access log lines, metrics, readiness.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::network::namespace::Namespace;

/// How long one question over HTTP may take.
const QUESTION: Duration = Duration::from_secs(5);

/// A line of an access log, with its fields as Istio names them.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLine(pub Value);

impl AccessLine {
    /// A field as text; empty when the line has none.
    pub fn field(&self, name: &str) -> String {
        match self.0.get(name).or_else(|| self.0.get("fields")?.get(name)) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => String::new(),
            Some(other) => other.to_string(),
        }
    }

    /// Whether every one of these fields has this value.
    pub fn has(&self, fields: &[(&str, &str)]) -> bool {
        fields.iter().all(|(name, value)| self.field(name) == *value)
    }
}

/// The access log lines in a log file, oldest first.
pub fn access_log(file: &Path) -> Vec<AccessLine> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| ["scope", "target"].iter().any(|field| line[*field] == "access")).map(AccessLine).collect()
}

/// A sample of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Samples of one program.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// The sum over the samples of `name` that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |sample: &&Sample| {
            sample.name == name && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        self.0.iter().filter(matches).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (head, rest) = match line.find('{') {
        Some(brace) => (&line[..brace], &line[brace + 1..]),
        None => {
            let (name, value) = line.split_once(' ')?;
            return Some(Sample { name: name.to_owned(), labels: BTreeMap::new(), value: value.split(' ').next()?.parse().ok()? });
        }
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once("=\"")?;
        let end = closing_quote(after)?;
        let value = after[..end].replace("\\\"", "\"").replace("\\n", "\n").replace("\\\\", "\\");
        labels.insert(label.trim_start_matches(',').to_owned(), value);
        rest = &after[end + 1..];
    }
    let value = rest[1..].split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: head.to_owned(), labels, value })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, letter)| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends.then_some(index)
    })
}

/// GETs `path` from inside `namespace`: the status and the body. Blocks.
pub fn get(namespace: &Namespace, address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let stream = namespace.run(|| TcpStream::connect_timeout(&address, QUESTION))??;
    stream.set_read_timeout(Some(QUESTION))?;
    stream.set_write_timeout(Some(QUESTION))?;
    exchange(stream, path)
}

/// GETs `path` over a unix socket: the status and the body. Blocks.
pub fn get_unix(socket: &Path, path: &str) -> io::Result<(u16, String)> {
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(QUESTION))?;
    exchange(stream, path)
}

fn exchange(mut stream: impl Read + Write, path: &str) -> io::Result<(u16, String)> {
    // HTTP/1.0: the answer ends with the connection and has no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: */*\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_metrics() {
        let text = "# HELP x y\n# TYPE x counter\nx_total{a=\"1\",b=\"say \\\"hi\\\", {you}\"} 3\nx_total{a=\"2\",b=\"\"} 4 1234\nplain 5\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("x_total", &[]), 7.0);
        assert_eq!(metrics.sum("x_total", &[("a", "2")]), 4.0);
        assert_eq!(metrics.sum("plain", &[]), 5.0);
        assert_eq!(metrics.0[0].labels["b"], "say \"hi\", {you}");
    }

    #[test]
    fn access_lines_are_told_from_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("log");
        let lines =
            "{\"level\":\"info\",\"scope\":\"ztunnel\"}\nnot json\n{\"scope\":\"access\",\"direction\":\"inbound\",\"bytes_sent\":7}\n";
        fs::write(&file, lines).expect("written");
        let read = access_log(&file);
        assert_eq!(read.len(), 1);
        assert!(read[0].has(&[("direction", "inbound"), ("bytes_sent", "7")]));
    }
}
