//! `rootstock node watch` on a terminal: a table that follows what happens.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rootstock_tests::console::Console;
use rootstock_tests::{Daemon, Process};

const LIMIT: Duration = Duration::from_secs(60);

/// The command on a terminal of its own that has room for 6 lines of 60 characters.
fn watched(daemon: &Daemon, directory: &Path) -> (Console, Process) {
    let rootstock = daemon.command();
    let program = rootstock.get_program().to_str().unwrap();
    let shell = format!("stty rows 6 cols 60; exec '{program}' node watch");
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &shell, "/dev/null"])
        .env("ROOTSTOCK_API", daemon.api());
    let log = directory.join("watch.log");
    let mut process = Process::start_piped("watch", &mut command, &log).unwrap();
    let child = process.child();
    let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let console = Console::new(input, output, &directory.join("watch.console")).unwrap();
    (console, process)
}

fn add(daemon: &Daemon, name: &str, last: u8) {
    let mac = format!("52:54:00:00:02:{last:02x}");
    daemon.run(["node", "add", name, "--mac", &mac]).unwrap();
}

#[test]
fn a_terminal_shows_a_table_that_follows() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&dir.path().join("daemon")).unwrap();
    add(&daemon, "n1", 1);
    let (mut console, mut process) = watched(&daemon, dir.path());
    console.expect("1 node: 1 ready\x1b[K", LIMIT).unwrap();
    console.expect("n1    ready  -", LIMIT).unwrap();

    // Three lines stand there, and are drawn over.
    add(&daemon, "n2", 2);
    console.expect("\x1b[3A\r2 nodes: 2 ready", LIMIT).unwrap();
    console.expect("n2    ready  -", LIMIT).unwrap();

    // There is room for two nodes and for a line that says so.
    add(&daemon, "n3", 3);
    console.expect("3 nodes: 3 ready", LIMIT).unwrap();
    console.expect("and 1 more node\x1b[K", LIMIT).unwrap();
    daemon.run(["node", "delete", "n3"]).unwrap();
    console.expect("\x1b[5A\r2 nodes: 2 ready", LIMIT).unwrap();

    // The view ends with the daemon.
    daemon.stop().unwrap();
    process.wait(LIMIT).unwrap();
}
