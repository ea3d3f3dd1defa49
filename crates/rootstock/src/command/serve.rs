//! `rootstock serve`: the daemon.

use std::{io::IsTerminal as _, path::PathBuf};

use clap::Args;
use rootstock_server::{
    Config, Daemon, Layers,
    config::{LogConfig, LogFormat, Override},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{cli::Global, error::WrongUse, output};

/// Where the daemon's settings come from.
#[derive(Debug, Args)]
#[command(after_help = "\
A flag goes before the environment (ROOTSTOCK_STORE_CACHE_BYTES=2G), that before
the file, and the file before the default. Everything the daemon keeps is in its
data directory; several daemons run beside one another on different ones.

Machines boot on every wired network card with a private address: as its DHCP server
where there is none, beside it where there is one. That takes root, or CAP_NET_RAW and
CAP_NET_BIND_SERVICE; without them the daemon says so and does everything else.

Examples:
  rootstock serve --boot eth1=dhcp --boot eth2=proxy
  rootstock serve --boot off
  rootstock serve --show-config
  rootstock serve --data ~/rootstock --api unix:/tmp/r.sock --nbd 127.0.0.1:10809
  rootstock serve --api unix:/run/rootstock/api.sock --api https://0.0.0.0:8443")]
pub(crate) struct ServeArgs {
    /// The configuration file [default: /etc/rootstock/rootstock.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory of all state
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where NBD clients connect: HOST:PORT or unix:PATH; repeatable
    #[arg(long, value_name = "ADDRESS")]
    nbd: Vec<String>,
    /// Where iSCSI initiators connect: HOST:PORT; repeatable
    #[arg(long, value_name = "ADDRESS")]
    iscsi: Vec<String>,
    /// Where machines are booted: auto, off, or IFACE=dhcp|proxy|observe|auto|off;
    /// repeatable [default: auto]
    #[arg(long, value_name = "WHERE")]
    boot: Vec<String>,
    /// What is logged: info, debug, rootstock_server=debug,info
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Print each setting and where it came from, and do nothing
    #[arg(long)]
    show_config: bool,
}

/// Runs the daemon until SIGINT or SIGTERM.
pub(crate) fn run(args: &ServeArgs, global: &Global) -> anyhow::Result<()> {
    let loaded = layers(args, global).load()?;
    if args.show_config {
        return output::line(loaded.show().trim_end());
    }
    start_log(&loaded.config.log)?;
    keep_rights_to_ourselves();
    keep_memory_to_ourselves();
    let mut config = loaded.config;
    if config.boot.agent.is_none() {
        config.boot.agent = agent_beside();
    }
    if config.boot.time_zone.is_none() {
        config.boot.time_zone = system_time_zone();
    }
    // It is PID 1's or a terminal's process: its threads are its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("rootstock")
        .build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Watched before the start, so that no signal is lost meanwhile.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let daemon = Daemon::start(config).await?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    let again = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    // What was committed is safe; a second signal gives up the rest.
    tokio::select! {
        done = daemon.shutdown() => Ok(done?),
        () = again => anyhow::bail!("stopped at once by a second signal: unfinished imports send their last chunks again"),
    }
}

/// Plug-ins and tools that the daemon runs get none of the rights that its unit gives
/// it. Before there are other threads: each has a set of its own.
fn keep_rights_to_ourselves() {
    if let Err(error) = rustix::thread::clear_ambient_capability_set() {
        tracing::warn!(%error, "plug-ins get the daemon's own capabilities");
    }
}

/// CHAP computes with secrets as they are, and the site's key signs: neither is for core
/// dumps, nor for other processes of the same user.
fn keep_memory_to_ourselves() {
    let behavior = rustix::process::DumpableBehavior::NotDumpable;
    if let Err(error) = rustix::process::set_dumpable_behavior(behavior) {
        tracing::warn!(%error, "core dumps of this process have secrets in them");
    }
}

/// The first stage's program, when it lies beside this one, as after a build.
fn agent_beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let beside = own.parent()?.join("rootstock-agent");
    beside.is_file().then_some(beside)
}

/// The time zone of this machine, where it has a name.
fn system_time_zone() -> Option<String> {
    let zone = jiff::tz::TimeZone::system();
    let name = zone.iana_name().map(str::to_owned);
    if name.is_none() {
        tracing::warn!(
            "the system's time zone has no name: hours are UTC's, unless boot.time_zone says otherwise"
        );
    }
    name
}

pub(super) fn start_log(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| WrongUse {
        message: format!("log.filter = '{}' is not a filter: {error}", config.filter),
        hint: "write info, debug, or rootstock_server=debug,info".to_owned(),
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn layers(args: &ServeArgs, global: &Global) -> Layers {
    let data = args.data.as_ref().map(|dir| dir.display().to_string());
    let list = |values: &[String]| (!values.is_empty()).then(|| values.join(","));
    let flags = [
        ("--data", "data", data),
        ("--api", "api.listen", list(&global.api)),
        ("--nbd", "nbd.listen", list(&args.nbd)),
        ("--iscsi", "iscsi.listen", list(&args.iscsi)),
        ("--boot", "boot.interfaces", list(&args.boot)),
        ("--log", "log.filter", args.log.clone()),
    ];
    let set = |(flag, key, value): (_, _, Option<String>)| {
        value.map(|value| Override { flag, key, value })
    };
    Layers {
        file: args.config.clone(),
        environment: environment(),
        flags: flags.into_iter().filter_map(set).collect(),
    }
}

fn environment() -> std::collections::BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("ROOTSTOCK_"))
        .collect()
}
