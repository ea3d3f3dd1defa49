//! The administrator's binary: `rootstock <noun> <verb>`, and the daemon.

mod cli;
mod command;
mod error;
mod output;
mod progress;
mod screen;
mod session;
mod source;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
