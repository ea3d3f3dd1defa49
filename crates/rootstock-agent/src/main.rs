//! The first stage of a machine's boot, and the server of its root device.
//!
//! One program in two processes. As the kernel's first process it finds the
//! network and its orders, has the root device served, mounts the root and
//! becomes the image's own init. The other process it starts on the way: that
//! one serves the device until the machine stops. docs/decisions says why.

mod cmdline;
mod confined;
mod console;
mod control;
mod cow;
mod dbus;
mod dhcp;
mod disk;
mod engine;
mod guest;
mod hold;
mod identity;
mod init;
mod install;
mod inventory;
mod iscsi;
mod keep;
mod local;
mod mapper;
mod metered;
mod modules;
mod native;
mod nbd;
mod netlink;
mod nfs;
mod nic;
mod order;
mod others;
mod overlay;
mod personal;
mod pool;
mod power;
mod ram;
mod rehearse;
mod rejoin;
mod remote;
mod replay;
mod report;
mod restart;
mod room;
mod server;
mod service;
mod sources;
mod stats;
mod steer;
mod swarm;
mod switch;
mod sys;
#[cfg(test)]
mod testing;
mod tiers;
mod trace;
mod uevent;

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let role = env::args().nth(1);
    match role.as_deref() {
        _ if std::process::id() == 1 => match env::args().next() {
            Some(name) if name == iscsi::PROGRAM => iscsi::run(),
            _ => init::run(),
        },
        Some("serve") => serve("the root's server", server::run),
        Some(iscsi::ROLE) => serve("the initiator", iscsi::serve),
        Some("rescue") => {
            eprintln!("rootstock-agent: {}", switch::rescue_shell());
            ExitCode::FAILURE
        }
        Some(keep::ROLE) => {
            let words: Vec<String> = env::args().skip(2).collect();
            let error = switch::run_in_root(&words);
            eprintln!("rootstock-agent: {error}");
            match error.kind() {
                io::ErrorKind::NotFound => ExitCode::from(keep::NO_PROGRAM),
                _ => ExitCode::FAILURE,
            }
        }
        Some("cache") => {
            let words: Vec<String> = env::args().skip(2).collect();
            match disk::prepare::run(&words) {
                Ok(said) => {
                    println!("{said}");
                    ExitCode::SUCCESS
                }
                Err(why) => {
                    eprintln!("rootstock-agent: {why}");
                    ExitCode::FAILURE
                }
            }
        }
        Some("hold") => {
            let words: Vec<String> = env::args().skip(2).collect();
            eprintln!("rootstock-agent: {}", hold::run(&words));
            ExitCode::FAILURE
        }
        Some("rehearse") => {
            let words: Vec<String> = env::args().skip(2).collect();
            eprintln!("rootstock-agent: {}", rehearse::run(&words));
            ExitCode::FAILURE
        }
        _ => {
            eprintln!(
                "rootstock-agent {}: the /init of a first stage that `rootstock serve` makes\n\n{}\n\n{}\n\n{}",
                env!("CARGO_PKG_VERSION"),
                disk::prepare::USAGE,
                hold::USAGE,
                rehearse::USAGE
            );
            ExitCode::from(2)
        }
    }
}

/// A process beside the first one, which speaks to it over standard input.
fn serve(name: &str, run: fn(&UnixStream) -> io::Result<()>) -> ExitCode {
    let control = io::stdin().as_fd().try_clone_to_owned();
    match control
        .map(UnixStream::from)
        .and_then(|control| run(&control))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::error(format_args!("{name} ends: {error}"));
            ExitCode::FAILURE
        }
    }
}
