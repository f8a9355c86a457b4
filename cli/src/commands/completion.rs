//! `tropis completion SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

/// Example: `tropis completion bash > /etc/bash_completion.d/tropis`
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> String {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::arguments::Arguments::command(), "tropis", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
