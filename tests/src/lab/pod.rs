//! A pod in the hands of a test: its addresses, commands run inside it, its interface watched.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};

use crate::capture::Capture;
use crate::cgroup;
use crate::cluster::object::Key;
use crate::kubelet::{Kubelet, RunningPod};
use crate::network::UPLINK;
use crate::network::addresses::Family;
use crate::network::namespace::Namespace;
use crate::port_forward::PortForward;
use crate::process::{self, Launch, LaunchError, Output, Process, User};
use crate::sockets;

/// A command in a pod may take this long unless told otherwise.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// A running pod.
#[derive(Debug, Clone)]
pub struct PodHandle {
    pod: Arc<RunningPod>,
    kubelet: Arc<Kubelet>,
}

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Whether it exited with 0.
    pub ok: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It did not end in time, or its output could not be read.
    #[error("command {0}")]
    Run(String, #[source] io::Error),
    /// Its line is not what was expected.
    #[error("{0} printed {1:?}")]
    Line(String, Said, #[source] serde_json::Error),
}

impl Said {
    /// Standard output as the JSON line of a testkit command.
    pub fn json(&self) -> Value {
        serde_json::from_str(self.stdout.trim()).unwrap_or(Value::Null)
    }
}

impl PodHandle {
    pub(super) fn new(pod: Arc<RunningPod>, kubelet: Arc<Kubelet>) -> Self {
        Self { pod, kubelet }
    }

    /// Which pod.
    pub fn key(&self) -> &Key {
        &self.pod.key
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.pod.key.name
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        &self.pod.uid
    }

    /// The node that it runs on.
    pub fn node(&self) -> &str {
        &self.pod.node
    }

    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        self.pod.network.addresses.of(family)
    }

    /// Its address and a port, as commands take it.
    pub fn socket(&self, family: Family, port: u16) -> String {
        std::net::SocketAddr::new(self.address(family), port).to_string()
    }

    /// Runs a testkit command as another process of the pod.
    pub async fn exec(&self, arguments: &[&str]) -> Result<Said, ExecError> {
        self.exec_for(arguments, COMMAND_DEADLINE).await
    }

    /// The same with a deadline of its own.
    pub async fn exec_for(&self, arguments: &[&str], deadline: Duration) -> Result<Said, ExecError> {
        let command = arguments.join(" ");
        let failed = |error| ExecError::Run(command.clone(), error);
        let (process, pipes) = process::start_piped(self.launch(arguments))?;
        drop(pipes.stdin);
        let mut stdout = tokio::process::ChildStdout::from_std(pipes.stdout).map_err(failed)?;
        let mut stderr = tokio::process::ChildStderr::from_std(pipes.stderr).map_err(failed)?;
        let (mut said, mut complained) = (String::new(), String::new());
        let all = async {
            let (out, err) = tokio::join!(stdout.read_to_string(&mut said), stderr.read_to_string(&mut complained));
            out.and(err)?;
            Ok::<_, io::Error>(process.ended().await)
        };
        let status = match tokio::time::timeout(deadline, all).await {
            Ok(status) => status.map_err(failed)?,
            Err(_) => {
                let _ = process.signal(Signal::SIGKILL);
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, format!("no end after {deadline:?}"))));
            }
        };
        Ok(Said { ok: status.success(), stdout: said, stderr: complained })
    }

    /// Runs a testkit command and reads its line.
    pub async fn run<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, ExecError> {
        self.run_for(arguments, COMMAND_DEADLINE).await
    }

    /// The same with a deadline of its own.
    pub async fn run_for<T: DeserializeOwned>(&self, arguments: &[&str], deadline: Duration) -> Result<T, ExecError> {
        let said = self.exec_for(arguments, deadline).await?;
        serde_json::from_str(said.stdout.trim()).map_err(|error| ExecError::Line(arguments.join(" "), said, error))
    }

    /// Starts a testkit command that is talked to line by line.
    pub fn spawn(&self, arguments: &[&str]) -> Result<PodProcess, ExecError> {
        let command = arguments.join(" ");
        let failed = |error| ExecError::Run(command.clone(), error);
        let (process, pipes) = process::start_piped(self.launch(arguments))?;
        let stdin = tokio::process::ChildStdin::from_std(pipes.stdin).map_err(failed)?;
        let stdout = tokio::process::ChildStdout::from_std(pipes.stdout).map_err(failed)?;
        Ok(PodProcess { process, stdin, lines: BufReader::new(stdout).lines() })
    }

    /// Sees what passes the pod's own interface.
    pub fn capture(&self) -> io::Result<Capture> {
        Capture::start(&self.pod.network.namespace, UPLINK)
    }

    /// A port of the host's loopback that leads to a port of the pod's loopback.
    pub async fn forward(&self, host_port: u16, port: u16) -> io::Result<PortForward> {
        PortForward::start(host_port, self.pod.network.namespace.clone(), port).await
    }

    /// Ports that the pod has in LISTEN, the mesh's among them.
    pub fn listening(&self) -> std::collections::BTreeSet<u16> {
        sockets::listening(&self.pod.network.namespace)
    }

    /// TCP connections of the pod, whoever's they are: the application's, and those that the mesh has inside the pod.
    pub fn connections(&self) -> sockets::Established {
        sockets::established(&self.pod.network.namespace)
    }

    /// Processes of the pod, those of commands included.
    pub fn processes(&self) -> std::collections::BTreeSet<u32> {
        cgroup::processes(&self.pod.group).into_iter().collect()
    }

    /// Its network namespace, for looks from inside.
    pub(super) fn network_namespace(&self) -> Arc<Namespace> {
        self.pod.network.namespace.clone()
    }

    /// Sends a signal to all of its processes.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        for id in cgroup::processes(&self.pod.group) {
            let id = i32::try_from(id).expect("process ids are positive i32");
            match kill(Pid::from_raw(id), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The memory of its processes that is theirs alone, in bytes (`RssAnon` of proc(5)). Fails once they are gone: nobody's memory is not
    /// little memory.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        memory_of(cgroup::processes(&self.pod.group))
    }

    /// Keeps in `highest` the most memory that they have had ([`Self::resident_bytes`]); ends when they are gone.
    pub async fn watch_memory(&self, highest: &mut u64) -> io::Error {
        loop {
            match self.resident_bytes() {
                Ok(bytes) => *highest = bytes.max(*highest),
                Err(gone) => return gone,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn launch(&self, arguments: &[&str]) -> Launch {
        Launch {
            program: self.kubelet.images.folder().join("tropis-testkit"),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: self.pod.environment.clone(),
            namespace: self.pod.network.namespace.clone(),
            group: self.pod.group.clone(),
            user: User::Root,
            sandbox: Some(self.pod.sandbox.clone()),
            output: Output::Pipes,
        }
    }
}

/// A command in a pod that still runs. Dropping it closes its standard input.
#[derive(Debug)]
pub struct PodProcess {
    process: Process,
    stdin: tokio::process::ChildStdin,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl PodProcess {
    /// Writes a line to it.
    pub async fn tell(&mut self, line: &str) -> io::Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        self.stdin.flush().await
    }

    /// The next line that it says, as JSON; an error after `deadline`, or at its end.
    pub async fn hear(&mut self, deadline: Duration) -> io::Result<Value> {
        let line = tokio::time::timeout(deadline, self.lines.next_line()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{line}: {error}")))
    }

    /// Ends it.
    pub fn kill(&self) -> io::Result<()> {
        self.process.signal(Signal::SIGKILL)
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        self.process.status().is_none()
    }
}

/// See [`PodHandle::resident_bytes`]. One of several processes may have ended just now.
fn memory_of(processes: impl IntoIterator<Item = u32>) -> io::Result<u64> {
    let own = |id: u32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    match processes.into_iter().filter_map(own).sum() {
        0 => Err(io::Error::new(io::ErrorKind::NotFound, "none of its processes is there any more")),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_processes_that_are_there() {
        let own = std::process::id();
        assert!(memory_of([own]).unwrap() > 0);
        assert!(memory_of([own, u32::MAX]).unwrap() > 0);
        assert_eq!(memory_of([u32::MAX]).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(memory_of([]).is_err());
    }
}
