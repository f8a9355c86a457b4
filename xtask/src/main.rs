//! `cargo xtask`: the one front door of the repository. Each command has a file; this one only reads arguments.

mod bench;
mod check;
mod demo;
mod ebpf;
mod front;
mod generate;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything one does with this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See the mesh work: two nodes, real pods, every claim with its proof.
    Demo(demo::Options),
    /// Take away what an interrupted run left.
    Down(demo::DownOptions),
    /// Measure: no mesh and Tropis (and a peer's binary) in turns, medians and ratios, as table and JSON.
    Bench(bench::Options),
    /// Fast checks: format, lints, crate directions, stage words, file headers, paths in ARCHITECTURE.md, freshness of the BPF object.
    Check,
    /// Everything a contributor needs: `check`, then every test, fast ones first. Root (or sudo) runs the privileged ones too.
    Test(test::Options),
    /// Write the pages of docs/reference that come from code.
    Gen,
    /// Build or refresh what is compiled for the kernel.
    Ebpf(ebpf::Options),
    /// Install what this machine lacks.
    Setup {
        /// Which part.
        #[command(subcommand)]
        part: Option<setup::Part>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Down(options) => demo::down(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Check => check::run(),
        Command::Test(options) => test::run(&options),
        Command::Gen => generate::run(),
        Command::Ebpf(options) => ebpf::run(&options),
        Command::Setup { part } => setup::run(part.unwrap_or(setup::Part::Run)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{} {error:#}", front::red("error:"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_of_every_command_fit_together() {
        Arguments::command().debug_assert();
    }
}
