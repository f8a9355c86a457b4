//! `tropis-testkit`: the application at both ends of a test connection. Its servers say whom they see, its clients print one JSON
//! line on what they saw (the lines are `tropis_tests::testkit`). It knows nothing of any mesh.
//!
//! `serve.rs` starts at the accepting side, `client.rs` at the connecting one.

mod bytes;
mod client;
mod connection;
mod serve;
mod websocket;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Servers and clients for tests of connections.
///
/// A client prints exactly one JSON line and exits with 0 when everything it expected happened, else with 1 (2: bad arguments).
/// `hold` and `serve` print a line an event.
#[derive(Debug, Parser)]
#[command(name = "tropis-testkit", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listen, one role a port, until killed; at least one role is needed
    Serve(serve::Options),
    #[command(flatten)]
    Client(client::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Serve(options) => serve::run(options).await,
            Command::Client(command) => client::run(command).await,
        }
    });
    // A thread may still wait for standard input, which nobody needs any more; dropping the runtime would wait for it.
    runtime.shutdown_background();
    code
}

/// Storms and loads need more descriptors than the usual soft limit of 1024; the hard one stays what it is.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Not being allowed to is no error here: a storm that runs out of descriptors says so itself.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// One JSON line on standard output; a reader that went away is not our failure.
fn print_line<T: serde::Serialize>(line: &T) {
    use std::io::Write;
    let mut text = serde_json::to_string(line).expect("report types are plain data with string keys");
    text.push('\n');
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
