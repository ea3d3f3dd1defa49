//! The command line: what may be written, and where it leads.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{command, error, session::Session};

const ABOUT: &str = "\
Keeps disk images as verified, deduplicated versions and runs machines from them.

An image is a name; what you import becomes a version of it (lab:1, lab:2), and a
tag such as lab@production points at one. A volume is a writable clone of a
version. Labs and cafés that know other systems: their 'super client' is a volume
that you change and commit, 'apply' or 'keep' is volume commit, 'writeback' is the
volume's own writes, and 'drop on reboot' is volume reset or --ephemeral.";

const EXAMPLES: &str = "\
Examples:
  rootstock serve --data ~/rootstock --api unix:/tmp/rootstock.sock
  rootstock image import lab disk.qcow2 --tag test
  rootstock image import lab /dev/sda -m 'seat 7 as installed'
  rootstock image show lab@test
  rootstock volume create seat-7 --from lab@test
  rootstock volume commit seat-7 lab --tag production
  rootstock image export lab@production lab.vmdk --format vmdk

The daemon is found by --api, or ROOTSTOCK_API, or at unix:/run/rootstock/api.sock.";

/// The longest word of a mistake that is repeated whole.
const WORD_CHARS_MAX: usize = 200;
/// How much of a longer one is.
const WORD_CHARS_SHOWN: usize = 40;

/// Everything that may be written.
#[derive(Debug, Parser)]
#[command(
    name = "rootstock",
    version,
    about = "Disk images in, versions kept, clones out",
    long_about = ABOUT,
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    infer_subcommands = false,
    max_term_width = 90
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where the daemon is: unix:PATH or https://HOST:PORT (or set ROOTSTOCK_API);
    /// for serve, where it listens, and repeatable
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) api: Vec<String>,
    /// Print one JSON document (or one a line) instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress and no remarks
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// A file with the bearer token for --api https:… (or set ROOTSTOCK_TOKEN)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// A file of PEM certificates to trust instead of the system's
    #[arg(long, global = true, value_name = "FILE", env = "ROOTSTOCK_CA")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(command::serve::ServeArgs),
    /// Import, export and look after images
    #[command(subcommand)]
    Image(command::image::ImageCommand),
    /// Look after imports that are not finished
    #[command(subcommand)]
    Import(command::import::ImportCommand),
    /// Make and look after writable clones (a seat's writeback, a super client)
    #[command(subcommand)]
    Volume(command::volume::VolumeCommand),
    /// Add and look after machines (seats, PCs), and see them boot
    #[command(subcommand)]
    Node(command::node::NodeCommand),
    /// Look at the installers of distributions that machines can be started with
    #[command(subcommand)]
    Installer(command::installer::InstallerCommand),
    /// Make and look after settings that nodes inherit
    #[command(subcommand)]
    Profile(command::profile::ProfileCommand),
    /// Bring a version to many nodes, a few at first
    #[command(subcommand)]
    Rollout(command::rollout::RolloutCommand),
    /// Say what something would take, such as 300 machines that boot at once
    #[command(subcommand)]
    Plan(command::plan::PlanCommand),
    /// Look after the services that boot machines
    #[command(subcommand)]
    Boot(command::boot::BootCommand),
    /// Export versions over NFS, for machines in the mode nfs
    #[command(subcommand)]
    Nfs(command::nfs::NfsCommand),
    /// Free the space of what nothing needs
    Gc(command::gc::GcArgs),
    /// Start and watch the check of all stored data
    #[command(subcommand)]
    Scrub(command::scrub::ScrubCommand),
    /// Let other machines use the API
    #[command(subcommand)]
    Token(command::token::TokenCommand),
    /// Show the daemon, its store and who uses it
    Status(command::status::StatusArgs),
    /// Print a shell's completion script
    Completions(command::completions::CompletionsArgs),
}

/// Reads the command line, does what it says, and says how it ended.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Clap prints help to stdout, mistakes to stderr, and counts as we do.
        Err(error) => {
            if error.use_stderr() {
                eprint!("{}", shortened(&error.to_string()));
            } else {
                let _ = error.print();
            }
            return ExitCode::from(if error.use_stderr() {
                error::WRONG_USE
            } else {
                0
            });
        }
    };
    let global = cli.global.clone();
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => error::report(&failure, &global),
    }
}

/// A message in which no word, such as a name of 10,000 letters, is too long.
fn shortened(message: &str) -> String {
    let word = |word: &str| {
        if word.chars().count() <= WORD_CHARS_MAX {
            return word.to_owned();
        }
        let start: String = word.chars().take(WORD_CHARS_SHOWN).collect();
        format!("{start}…")
    };
    let words: Vec<String> = message.split(' ').map(word).collect();
    words.join(" ")
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let session = Session::new(&cli.global);
    match &cli.command {
        Command::Serve(args) => command::serve::run(args, &cli.global),
        Command::Image(verb) => command::image::run(verb, &session),
        Command::Import(verb) => command::import::run(verb, &session),
        Command::Volume(verb) => command::volume::run(verb, &session),
        Command::Node(verb) => command::node::run(verb, &session),
        Command::Installer(verb) => command::installer::run(verb, &session),
        Command::Profile(verb) => command::profile::run(verb, &session),
        Command::Rollout(verb) => command::rollout::run(verb, &session),
        Command::Plan(verb) => command::plan::run(verb, &session),
        Command::Boot(verb) => command::boot::run(verb, &session),
        Command::Nfs(verb) => command::nfs::run(verb, &session),
        Command::Gc(args) => command::gc::run(args, &session),
        Command::Scrub(verb) => command::scrub::run(verb, &session),
        Command::Token(verb) => command::token::run(verb, &session),
        Command::Status(args) => command::status::run(args, &session),
        Command::Completions(args) => command::completions::run(args),
    }
}

#[cfg(test)]
mod tests;
