//! `tropis version`: this program's, and what runs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    admin,
    arguments::{Format, Options},
    output,
    state::State,
};

const OWN: &str = env!("CARGO_PKG_VERSION");
/// The control plane.
const CONTROL: &str = "tropisd";
const WAYPOINT: &str = "waypoint";

const EXAMPLES: &str = "\
Examples:
  tropis version --short    one line a role
  tropis version --client   nothing that runs is asked";

/// What may be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Only this program's version; nothing that runs is asked.
    #[arg(long)]
    client: bool,
    /// One line a role, not a program.
    #[arg(long)]
    short: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<Vec<Program>>,
}

#[derive(Debug, Serialize)]
struct Program {
    program: String,
    node: String,
    /// What it says, or why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(crate) async fn run(options: &Options, arguments: &Arguments) -> anyhow::Result<String> {
    let programs = match State::open(&options.state) {
        Ok(state) if !arguments.client => Some(programs(&state).await?),
        _ => None,
    };
    let versions = Versions { client_version: OWN, programs };
    match options.output {
        Format::Table => Ok(text(&versions, arguments.short || arguments.client)),
        format => output::value(format, &versions),
    }
}

async fn programs(state: &State) -> anyhow::Result<Vec<Program>> {
    let mut programs = Vec::new();
    for socket in state.sockets()? {
        // A waypoint says it among the rest.
        let target = if socket.program == WAYPOINT { "/config_dump" } else { "/version" };
        let (version, problem) = match admin::json(&socket.path, target).await {
            Ok(answer) => (answer["version"].as_str().map(str::to_owned), None),
            Err(error) => (None, error.to_string().lines().next().map(str::to_owned)),
        };
        programs.push(Program { program: socket.program, node: socket.node, version, problem });
    }
    Ok(programs)
}

fn text(versions: &Versions, short: bool) -> String {
    let mut text = format!("client version: {}\n", versions.client_version);
    let Some(programs) = &versions.programs else { return text };
    let of = |control: bool| -> Vec<&Program> { programs.iter().filter(|one| (one.program == CONTROL) == control).collect() };
    text += &format!("control plane version: {}\n", mixed(&of(true), false));
    text += &format!("data plane version: {}\n", mixed(&of(false), true));
    if !short && !programs.is_empty() {
        let rows: Vec<Vec<String>> = programs
            .iter()
            .map(|one| {
                let said = one.version.clone().or_else(|| one.problem.clone()).unwrap_or_default();
                vec![one.program.clone(), one.node.clone(), said]
            })
            .collect();
        text += &format!("\n{}", output::table(&["PROGRAM", "NODE", "VERSION"], &rows));
    }
    text
}

/// The versions of some programs, each once.
fn mixed(programs: &[&Program], counted: bool) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for program in programs {
        *counts.entry(program.version.as_deref().unwrap_or("unknown")).or_default() += 1;
    }
    let one = |(version, count): (&&str, &usize)| match (counted, count) {
        (false, _) => (*version).to_owned(),
        (true, 1) => format!("{version} (1 program)"),
        (true, count) => format!("{version} ({count} programs)"),
    };
    let all: Vec<String> = counts.iter().map(one).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_versions_are_all_named() {
        let program = |name: &str, version: Option<&str>| Program {
            program: name.to_owned(),
            node: "a".to_owned(),
            version: version.map(str::to_owned),
            problem: version.is_none().then(|| "is gone".to_owned()),
        };
        let programs = vec![
            program("tropisd", Some("0.1.0")),
            program("ztunnel", Some("0.1.0")),
            program("ztunnel", Some("0.2.0")),
            program("redirector", None),
        ];
        let versions = Versions { client_version: "0.1.0", programs: Some(programs) };
        insta::assert_snapshot!(text(&versions, false), @r"
        client version: 0.1.0
        control plane version: 0.1.0
        data plane version: 0.1.0 (1 program), 0.2.0 (1 program), unknown (1 program)

        PROGRAM      NODE   VERSION
        tropisd      a      0.1.0
        ztunnel      a      0.1.0
        ztunnel      a      0.2.0
        redirector   a      is gone
        ");
    }
}
