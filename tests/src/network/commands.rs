//! `ip`, `nft` and kernel settings, run inside a namespace. The only place where such a tool is started.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::{fs, path::Path};

use super::namespace::Namespace;

/// A tool refused its input.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The tool could not be started, or the namespace not entered.
    #[error("{tool} in {namespace}")]
    Start {
        /// The program.
        tool: &'static str,
        /// Where.
        namespace: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It ran and said no.
    #[error("{tool} in {namespace}: {said} (input: {input})")]
    Refused {
        /// The program.
        tool: &'static str,
        /// Where.
        namespace: String,
        /// Its words.
        said: String,
        /// What it was given.
        input: String,
    },
    /// A kernel setting could not be written.
    #[error("kernel setting {setting} in {namespace}")]
    Setting {
        /// The path below `/proc/sys`.
        setting: String,
        /// Where.
        namespace: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Runs `ip -batch` with `lines`, a command each.
pub fn ip(namespace: &Namespace, lines: &[String]) -> Result<(), CommandError> {
    run(namespace, "ip", &["-batch", "-"], &lines.join("\n")).map(drop)
}

/// Applies a ruleset in one transaction.
pub fn nft(namespace: &Namespace, ruleset: &str) -> Result<(), CommandError> {
    run(namespace, "nft", &["-f", "-"], ruleset).map(drop)
}

/// Every netfilter rule of a namespace, as text.
pub fn ruleset(namespace: &Namespace) -> Result<String, CommandError> {
    run(namespace, "nft", &["list", "ruleset"], "")
}

/// Writes kernel settings, given as paths below `/proc/sys`. One that this kernel lacks is left out when its path ends in `?`.
pub fn settings(namespace: &Namespace, settings: &[(&str, &str)]) -> Result<(), CommandError> {
    let written = namespace.run(|| {
        settings.iter().try_for_each(|(setting, value)| {
            let (setting, optional) = setting.strip_suffix('?').map_or((*setting, false), |setting| (setting, true));
            match fs::write(Path::new("/proc/sys").join(setting), value) {
                Err(cause) if optional && cause.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(cause) => Err((setting.to_owned(), cause)),
                Ok(()) => Ok(()),
            }
        })
    });
    let failed = |(setting, cause)| CommandError::Setting { setting, namespace: namespace.name().to_owned(), cause };
    written.map_err(|cause| failed((String::new(), cause)))?.map_err(failed)
}

fn run(namespace: &Namespace, tool: &'static str, arguments: &[&str], input: &str) -> Result<String, CommandError> {
    let started = |cause| CommandError::Start { tool, namespace: namespace.name().to_owned(), cause };
    let output = namespace.run(|| {
        let mut child = Command::new(tool)
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("asked for above");
        // A tool that refuses early closes its end; what it said counts, not our broken pipe.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output()
    });
    let output = output.and_then(|output| output).map_err(started)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(CommandError::Refused {
        tool,
        namespace: namespace.name().to_owned(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        input: input.to_owned(),
    })
}
