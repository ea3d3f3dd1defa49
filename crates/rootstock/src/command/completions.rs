//! `rootstock completions`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{cli::Cli, output};

/// For which shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  rootstock completions bash > /etc/bash_completion.d/rootstock")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints a shell's completion script.
pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rootstock", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}
