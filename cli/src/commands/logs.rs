//! `tropis logs`: the log of a program, or every line that the mesh wrote about a pod.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{
    arguments::{Format, Options},
    names::{self, Name},
    state::State,
};

/// What a log is called besides its program and node: `ztunnel.a.log`.
const ENDING: &str = ".log";
/// How often a followed log is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);
/// The fields that stand in front without their names.
const FIRST: [&str; 4] = ["time", "level", "scope", "message"];

const EXAMPLES: &str = "\
Examples:
  tropis logs tropisd
  tropis logs ztunnel.a --tail 20
  tropis logs reviews-v1.shop -f        access lines about the pod, of whichever proxy";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A program (ztunnel, ztunnel.NODE, tropisd, redirector), or a pod.
    #[arg(value_name = "PROGRAM|POD")]
    name: String,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn run(options: &Options, arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let state = State::open(&options.state)?;
    let all = files(&state)?;
    let own: Vec<PathBuf> = all.iter().filter(|(name, _)| is_of(name, &arguments.name)).map(|(_, path)| path.clone()).collect();
    let (paths, pod) = match own.is_empty() {
        false => (own, None),
        true => (all.iter().map(|(_, path)| path.clone()).collect(), Some(pod(options, &state, &arguments.name, &all)?)),
    };
    let raw = options.output != Format::Table;
    let mut logs = Vec::new();
    for path in paths {
        let file = fs::File::open(&path).with_context(|| format!("read {}", path.display()))?;
        logs.push((BufReader::new(file), String::new()));
    }
    let mut lines: Vec<Line> = Vec::new();
    for (log, rest) in &mut logs {
        lines.extend(read(log, rest)?.into_iter().filter(|line| line.is_about(pod.as_ref())));
    }
    // Lines that are no JSON have no time and stay in front, where a program says why it did not start.
    lines.sort_by(|one, other| one.time().cmp(other.time()));
    let from = lines.len().saturating_sub(arguments.tail.unwrap_or(usize::MAX));
    for line in &lines[from..] {
        writeln!(out, "{}", line.shown(raw))?;
    }
    if !arguments.follow {
        return Ok(());
    }
    loop {
        out.flush()?;
        tokio::time::sleep(FOLLOW_PERIOD).await;
        for (log, rest) in &mut logs {
            for line in read(log, rest)?.iter().filter(|line| line.is_about(pod.as_ref())) {
                writeln!(out, "{}", line.shown(raw))?;
            }
        }
    }
}

/// The logs of programs, by `PROGRAM.NODE`.
fn files(state: &State) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let folder = state.logs();
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let named = |entry: fs::DirEntry| Some((entry.file_name().to_str()?.strip_suffix(ENDING)?.to_owned(), entry.path()));
    let mut files: Vec<_> = entries.flatten().filter_map(named).collect();
    files.sort();
    Ok(files)
}

/// Whether a log is the one that is meant: by its whole name, or by its program.
fn is_of(log: &str, wanted: &str) -> bool {
    log == wanted || log.split_once('.').is_some_and(|(program, _)| program == wanted)
}

/// A pod that exists.
fn pod(options: &Options, state: &State, text: &str, logs: &[(String, PathBuf)]) -> anyhow::Result<Name> {
    let pod = names::name(text, options.namespace())?;
    let object = tropis_crds::ObjectRef::new(tropis_crds::Kind::Pod, pod.namespace.as_str(), pod.name.as_str());
    if !state.snapshot().objects.iter().any(|own| own.reference() == object) {
        let known: Vec<&str> = logs.iter().map(|(name, _)| name.as_str()).collect();
        bail!("{text:?} is neither a program with a log nor a pod in namespace {}\nLogs: {}", pod.namespace, known.join(", "));
    }
    Ok(pod)
}

/// The whole lines that a log has more; what is left of a half-written one waits in `rest`.
fn read(log: &mut impl BufRead, rest: &mut String) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    while log.read_line(rest)? > 0 && rest.ends_with('\n') {
        lines.push(Line::new(rest.trim_end()));
        rest.clear();
    }
    Ok(lines)
}

#[derive(Debug)]
struct Line {
    text: String,
    value: Value,
}

impl Line {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), value: serde_json::from_str(text).unwrap_or_default() }
    }

    fn time(&self) -> &str {
        self.value["time"].as_str().unwrap_or_default()
    }

    /// Whether a pod is at one of the ends, or named; every line is about nobody in particular.
    fn is_about(&self, pod: Option<&Name>) -> bool {
        let Some(pod) = pod else { return true };
        let end =
            |end: &str| self.value[format!("{end}.workload")] == *pod.name && self.value[format!("{end}.namespace")] == *pod.namespace;
        let (slash, dot) = (format!("{}/{}", pod.namespace, pod.name), format!("{}.{}", pod.name, pod.namespace));
        let named = |value: &Value| value.as_str().is_some_and(|text| text == slash || text == dot);
        end("src") || end("dst") || self.value["pod"].as_str().is_some() && named(&self.value["pod"])
    }

    /// Time, level, scope and message, then the fields; `raw` as it was written.
    fn shown(&self, raw: bool) -> String {
        let Some(fields) = self.value.as_object().filter(|_| !raw) else { return self.text.clone() };
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let mut parts: Vec<String> = FIRST.iter().filter_map(|name| Some(plain(fields.get(*name)?))).collect();
        let rest = fields.iter().filter(|(name, _)| !FIRST.contains(&name.as_str()));
        parts.extend(rest.map(|(name, value)| match plain(value) {
            text if text.is_empty() || text.contains([' ', '"', '=']) => format!("{name}={text:?}"),
            text => format!("{name}={text}"),
        }));
        parts.join("  ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_for_people_and_kept_for_programs() {
        let text = r#"{"level":"info","time":"2026-01-01T00:00:00Z","scope":"access","message":"connection complete","src.workload":"sleep","src.namespace":"shop","bytes_sent":12,"error":"no way"}"#;
        let line = Line::new(text);
        assert_eq!(line.shown(true), text);
        assert_eq!(
            line.shown(false),
            "2026-01-01T00:00:00Z  info  access  connection complete  src.workload=sleep  src.namespace=shop  bytes_sent=12  error=\"no way\""
        );
        assert_eq!(Line::new("thread main panicked").shown(false), "thread main panicked");
        let pod = |name: &str| names::name(name, "shop").unwrap();
        assert!(line.is_about(Some(&pod("sleep"))) && line.is_about(None));
        assert!(!line.is_about(Some(&pod("sleep.other"))) && !line.is_about(Some(&pod("reviews"))));
    }

    #[test]
    fn a_half_written_line_waits_for_its_end() {
        let mut rest = String::new();
        assert_eq!(read(&mut "{\"a\":1}\n{\"b\"".as_bytes(), &mut rest).unwrap().len(), 1);
        let lines = read(&mut ":2}\n".as_bytes(), &mut rest).unwrap();
        assert_eq!(lines[0].value["b"], 2);
    }

    #[test]
    fn logs_are_found_by_program_or_by_program_and_node() {
        assert!(is_of("ztunnel.a", "ztunnel") && is_of("ztunnel.a", "ztunnel.a"));
        assert!(!is_of("ztunnel.a", "ztunnel.b") && !is_of("ztunnel.a", "zt"));
    }
}
