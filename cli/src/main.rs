//! `tropis`: shows, explains and changes the mesh. The arguments are in `arguments`, a command is a file in `commands/`, what a mesh
//! without a cluster keeps where is in `state`.

mod admin;
mod arguments;
mod commands;
mod control;
mod mesh;
mod names;
mod output;
mod place;
mod pods;
mod render;
mod state;

use std::{io::Write, process::ExitCode};

use clap::Parser;

use arguments::{Arguments, Command};
use commands::{
    analyze, apply, completion, delete, explain, get, label, logs, proxy_config, proxy_status, version, waypoint, ztunnel_config,
};

/// It could not be done.
const FAILED: u8 = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(Arguments { options, command }: Arguments) -> anyhow::Result<ExitCode> {
    let text = match command {
        Command::Analyze(arguments) => {
            let (text, code) = analyze::run(&options, &arguments).await?;
            print(&text)?;
            return Ok(code);
        }
        Command::Logs(arguments) => {
            logs::run(&options, &arguments, &mut std::io::stdout().lock()).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Version(arguments) => version::run(&options, &arguments).await?,
        Command::Apply(arguments) => apply::run(&options, &arguments)?,
        Command::Delete(arguments) => delete::run(&options, &arguments)?,
        Command::Label(arguments) => label::run(&options, &arguments)?,
        Command::Get(arguments) => get::run(&options, &arguments)?,
        Command::ProxyStatus(arguments) => proxy_status::run(&options, &arguments).await?,
        Command::ProxyConfig(arguments) => proxy_config::run(&options, &arguments).await?,
        Command::ZtunnelConfig(arguments) => ztunnel_config::run(&options, &arguments).await?,
        Command::Waypoint(arguments) => waypoint::run(&options, &arguments).await?,
        Command::Explain(arguments) => explain::run(&options, &arguments).await?,
        Command::Completion(arguments) => completion::run(&arguments),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// `tropis … | head` is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
