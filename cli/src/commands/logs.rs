//! `tropis logs`: the log of a program or of a waypoint, or every line that the mesh wrote about a pod.
//!
//! A program of a node logs to `PROGRAM.NODE.log`, a container to `NAMESPACE.POD.CONTAINER.log`. What applications say is not the
//! mesh's: it is neither searched nor believed.

mod line;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use tropis_compile::waypoint::GATEWAY_NAME;
use tropis_crds::{Kind, Object};

use crate::{
    arguments::Options,
    names::{self, Name},
    state::State,
};
use line::Line;

/// What a log is called besides its program and node: `ztunnel.a.log`.
const ENDING: &str = ".log";
/// The programs of nodes; what else logs is a container.
const PROGRAMS: [&str; 3] = ["redirector", "tropisd", "ztunnel"];
/// How often a followed log is looked at.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  tropis logs tropisd
  tropis logs ztunnel.a --tail 20
  tropis logs waypoint.shop -f          a waypoint, all its pods
  tropis logs reviews-v1.shop           what every proxy said about the pod, waypoints too
  tropis logs shop.reviews-v1.reviews   what a container wrote: NAMESPACE.POD.CONTAINER";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// A program (ztunnel, ztunnel.NODE, tropisd, redirector), a waypoint, or a pod.
    #[arg(value_name = "PROGRAM|WAYPOINT|POD")]
    name: String,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
}

/// A pod that lines are asked about.
#[derive(Debug)]
struct AboutPod {
    name: Name,
    /// Its addresses, of both families.
    addresses: Vec<IpAddr>,
}

/// Which lines are shown.
#[derive(Debug)]
struct Selection {
    paths: Vec<PathBuf>,
    /// Only those about this pod.
    about: Option<AboutPod>,
}

pub(crate) async fn run(options: &Options, arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let state = State::open(&options.state)?;
    let Selection { paths, about } = select(&files(&state)?, &state.snapshot().objects, &arguments.name, options.namespace())?;
    let mut logs = paths.iter().map(|path| Log::open(path)).collect::<anyhow::Result<Vec<Log>>>()?;
    let lines = read_all(&mut logs, about.as_ref())?;
    let from = lines.len().saturating_sub(arguments.tail.unwrap_or(usize::MAX));
    for line in &lines[from..] {
        write!(out, "{}", line.shown(options.output)?)?;
    }
    if !arguments.follow {
        return Ok(());
    }
    drop(lines);
    loop {
        out.flush()?;
        tokio::time::sleep(FOLLOW_PERIOD).await;
        for line in read_all(&mut logs, about.as_ref())? {
            write!(out, "{}", line.shown(options.output)?)?;
        }
    }
}

/// The logs, by name without ending.
fn files(state: &State) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let folder = state.logs();
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let named = |entry: fs::DirEntry| Some((entry.file_name().to_str()?.strip_suffix(ENDING)?.to_owned(), entry.path()));
    let mut files: Vec<_> = entries.flatten().filter_map(named).collect();
    files.sort();
    Ok(files)
}

/// What a name means, in this order: one log by its whole name, a program, a waypoint (its Gateway, or a pod of it), another pod.
fn select(logs: &[(String, PathBuf)], objects: &[Arc<Object>], text: &str, namespace: &str) -> anyhow::Result<Selection> {
    let pods: Vec<&Object> = objects.iter().map(AsRef::as_ref).filter(|object| object.kind == Kind::Pod).collect();
    let paths = |wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        logs.iter().filter(|(log, _)| wanted(log)).map(|(_, path)| path.clone()).collect()
    };
    // A namespace may be called like a program.
    let program = |log: &str| {
        let program = PROGRAMS.into_iter().find(|program| log.split_once('.').is_some_and(|(first, _)| first == *program))?;
        (!pods.iter().any(|pod| is_of(log, pod))).then_some(program)
    };
    for own in [paths(&|log| log == text), paths(&|log| program(log) == Some(text))] {
        if !own.is_empty() {
            return Ok(Selection { paths: own, about: None });
        }
    }
    let name = names::name(text, namespace)?;
    let of_waypoint = |pod: &&Object| pod.label(GATEWAY_NAME).is_some();
    let pod = pods.iter().copied().find(|pod| pod.metadata.namespace == name.namespace && pod.metadata.name == name.name);
    let own_pods = |pod: &&Object| pod.metadata.namespace == name.namespace && pod.label(GATEWAY_NAME) == Some(&name.name);
    let mut instances: Vec<&Object> = pods.iter().copied().filter(own_pods).collect();
    if instances.is_empty() {
        instances.extend(pod.filter(of_waypoint));
    }
    if !instances.is_empty() {
        let own = paths(&|log| instances.iter().any(|pod| is_of(log, pod)));
        anyhow::ensure!(!own.is_empty(), "no pod of waypoint {}/{} has written a log yet", name.namespace, name.name);
        return Ok(Selection { paths: own, about: None });
    }
    let Some(pod) = pod else {
        let known: Vec<&str> = logs.iter().map(|(name, _)| name.as_str()).collect();
        bail!(
            "{text:?} is neither a program with a log, nor a waypoint or a pod in namespace {}\nLogs: {}",
            name.namespace,
            known.join(", ")
        );
    };
    let proxies: Vec<&Object> = pods.iter().copied().filter(of_waypoint).collect();
    let of_mesh = paths(&|log| program(log).is_some() || proxies.iter().any(|pod| is_of(log, pod)));
    Ok(Selection { paths: of_mesh, about: Some(AboutPod { addresses: addresses(pod), name }) })
}

/// Whether a log, `NAMESPACE.POD.CONTAINER`, is a pod's. A pod's name may have dots in it, the others have none.
fn is_of(log: &str, pod: &Object) -> bool {
    let container = log.split_once('.').and_then(|(namespace, rest)| Some((namespace, rest.rsplit_once('.')?)));
    container.is_some_and(|(namespace, (name, _))| namespace == pod.metadata.namespace && name == pod.metadata.name)
}

/// The addresses that a pod has.
fn addresses(pod: &Object) -> Vec<IpAddr> {
    let Some(status) = pod.pod().and_then(|pod| pod.status.as_ref()) else { return Vec::new() };
    let texts = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// A log that is read on.
struct Log {
    reader: BufReader<fs::File>,
    /// A half-written line waits here for its end.
    rest: String,
}

impl Log {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = fs::File::open(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { reader: BufReader::new(file), rest: String::new() })
    }
}

/// The lines that logs have more, in the order of their times.
fn read_all(logs: &mut [Log], about: Option<&AboutPod>) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for log in logs {
        let mut last = None;
        for mut line in read(&mut log.reader, &mut log.rest)? {
            // What has no time belongs to what was written before it; in front, a program says why it did not start.
            last = line.time.or(last);
            line.time = last;
            lines.push(line);
        }
    }
    lines.retain(|line| about.is_none_or(|pod| line.is_about(pod)));
    lines.sort_by_key(|line| line.time);
    Ok(lines)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_line_waits_for_its_end() {
        let mut rest = String::new();
        assert_eq!(read(&mut "{\"a\":1}\n{\"b\"".as_bytes(), &mut rest).unwrap().len(), 1);
        let lines = read(&mut ":2}\n".as_bytes(), &mut rest).unwrap();
        assert_eq!(lines[0].value["b"], 2);
    }
}
