//! The rivals: NBD, HTTP, two clients of BitTorrent, and multicast.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rootstock_tests::namespace::Namespace;
use rootstock_tests::undo::{Action, Undo};
use rootstock_tests::{Process, tool, wait};

use super::clients::{Clients, Done, Outcome, gated};
use super::net::{LINK, Net};
use super::{FILE, Site};
use crate::bench::lab::{self, Port, SERVER};

const NBD_PORT: u16 = 10809;
/// Between the first connections of its clients.
const NBD_APART_SECONDS: f64 = 0.02;
const HTTP_PORT: u16 = 80;
const TRACKER_PORT: u16 = 6969;
const BITTORRENT_PORT: u16 = 6881;
/// The system's own, for which the package of libtorrent is.
const PYTHON: &str = "/usr/bin/python3";
/// How long a server may take until it listens.
const READY_LIMIT: Duration = Duration::from_secs(30);
const SCRIPT: &str = include_str!("bittorrent.py");
/// What aria2 runs when it has all, before it goes on as a seed.
const SAY_COMPLETE: &str = "#!/bin/sh\necho complete\n";

/// nbd-server, read by nbdcopy into nothing.
pub(super) fn nbd(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    let config = site.directory.join("nbd.conf");
    fs::write(
        &config,
        format!(
            "[generic]\nuser = root\ngroup = root\nlistenaddr = {SERVER}\nport = {NBD_PORT}\n\
             [image]\nexportname = {}\nreadonly = true\n",
            site.image().display()
        ),
    )?;
    let server = nbd_server(site, &net.head, &config)?;
    let uri = format!("nbd://{SERVER}/image");
    // It lets ten connections wait, and forgets those beyond without a word.
    let read = "sleep \"$1\"; exec nbdcopy \"$2\" null:";
    let outcome = site.fetch(net, Done::Ends, |number, node| {
        let after = format!("{}", number as f64 * NBD_APART_SECONDS);
        gated(node, &["sh", "-c", read, "sh", &after, &uri])
    })?;
    server.now()?;
    Ok(outcome)
}

/// It serves many clients only as a daemon, which tells its process in a file.
fn nbd_server(site: &Site<'_>, head: &Namespace, config: &Path) -> Result<Undo> {
    let told = site.directory.join("nbd-server.pid");
    let mut command = head.command("nbd-server");
    command.arg("-C").arg(config).arg("-p").arg(&told);
    tool::run_command(&mut command)?;
    let id = wait::until("nbd-server's process", READY_LIMIT, || {
        let id = fs::read_to_string(&told).ok();
        Ok(id.and_then(|id| id.trim().parse().ok()))
    })?;
    let undo = Undo::new(Action::Kill(id));
    fs::remove_file(&told)?;
    wait::until("nbd-server to listen", READY_LIMIT, || {
        Ok(lab::listens(head, Port::Tcp(NBD_PORT))?.then_some(()))
    })?;
    Ok(undo)
}

/// nginx, read by curl into nothing.
pub(super) fn http(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    let server = lab::nginx(&net.head, &site.directory, &site.files, HTTP_PORT)?;
    let url = format!("http://{SERVER}/{FILE}");
    let outcome = site.fetch(net, Done::Ends, |_, node| {
        gated(node, &["curl", "--fail", "-sS", "-o", "/dev/null", &url])
    })?;
    lab::end(server)?;
    Ok(outcome)
}

/// udpcast, which multicasts and sends again what somebody lacks.
pub(super) fn udpcast(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    let words = ["--nokbd", "--no-progress", "--interface", LINK];
    let mut clients = Clients::at_gate(&net.nodes, &site.logs()?, Done::Ends, |_, node| {
        let mut receiver = gated(node, &["udp-receiver"]);
        receiver.args(words).args(["--file", "/dev/null"]);
        // It has all, and would wait for half a second whether the sender heard that.
        receiver.args(["--exit-wait", "10"]);
        receiver.args(["--receive-timeout", "60"]);
        receiver
    })?;
    let mut sender = net.head.command("udp-sender");
    let receivers = net.nodes.len().to_string();
    sender.args(words).arg("--full-duplex");
    sender.args(["--min-receivers", &receivers]);
    // A receiver that is busy for a while would be left out for ever.
    sender.args(["--retries-until-drop", "2000"]);
    sender.arg("--file").arg(site.image());
    let log = site.directory.join("udp-sender.log");
    let mut sender = Process::start("udp-sender", &mut sender, &log)?;
    let outcome = clients.run(site.limit(net))?;
    let status = sender.wait(site.limit(net))?;
    ensure!(status.success(), "{}", sender.log_end());
    clients.end()?;
    Ok(outcome)
}

/// aria2 on all machines.
pub(super) fn aria2(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    let torrent = Torrent::new(site, net)?;
    let hook = site.directory.join("complete.sh");
    fs::write(&hook, SAY_COMPLETE)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let client = |mut command: Command| {
        command
            .args(["--bt-max-peers=0", "--seed-ratio=0.0"])
            .args(["--enable-dht=false", "--enable-dht6=false"])
            .arg(format!("--listen-port={BITTORRENT_PORT}"))
            .args(["--file-allocation=none", "--summary-interval=0"])
            .args(["--console-log-level=warn", "--no-conf"]);
        command
    };
    let mut seed = client(net.head.command("aria2c"));
    seed.arg("--check-integrity=true").arg("--dir");
    seed.arg(&site.files).arg(&torrent.file);
    let outcome = race(site, net, seed, |number, node| {
        let mut peer = client(gated(node, &["aria2c"]));
        peer.arg("--on-bt-download-complete").arg(&hook);
        peer.arg("--dir").arg(site.memory_of(number));
        peer.arg(&torrent.file);
        peer
    })?;
    lab::end(torrent.tracker)?;
    Ok(outcome)
}

/// libtorrent on all machines, in a client of our own.
pub(super) fn libtorrent(site: &Site<'_>, net: &Net) -> Result<Outcome> {
    let torrent = Torrent::new(site, net)?;
    let mut seed = net.head.command(PYTHON);
    seed.arg(&torrent.script).arg("seed").arg(&torrent.file);
    seed.arg(&site.files);
    let outcome = race(site, net, seed, |number, node| {
        let mut peer = node.command(PYTHON);
        peer.arg(&torrent.script).arg("peer").arg(&torrent.file);
        peer.arg(site.memory_of(number));
        peer
    })?;
    lab::end(torrent.tracker)?;
    Ok(outcome)
}

/// The image as BitTorrent has it, and a tracker that knows it.
struct Torrent {
    script: PathBuf,
    file: PathBuf,
    tracker: Process,
}

impl Torrent {
    fn new(site: &Site<'_>, net: &Net) -> Result<Self> {
        let script = site.directory.join("bittorrent.py");
        fs::write(&script, SCRIPT)?;
        let file = site.directory.join("image.torrent");
        let mut make = Command::new(PYTHON);
        make.arg(&script).arg("make").arg(site.image()).arg(&file);
        make.arg(format!("http://{SERVER}:{TRACKER_PORT}/announce"));
        let id = tool::run_command(&mut make)?;
        let tracker = tracker(site, &net.head, &id)?;
        Ok(Self {
            script,
            file,
            tracker,
        })
    }
}

/// Clients that write, each into memory of its own, and serve others when they have all.
fn race(
    site: &Site<'_>,
    net: &Net,
    mut seed: Command,
    peer: impl Fn(usize, &Namespace) -> Command,
) -> Result<Outcome> {
    let log = site.directory.join("seed.log");
    let port = Port::Tcp(BITTORRENT_PORT);
    let seed = lab::serve(&net.head, "the seed", &mut seed, port, &log)?;
    site.make_memory(net.nodes.len())?;
    let outcome = site.fetch(net, Done::Says, peer);
    site.drop_memory()?;
    lab::end(seed)?;
    outcome
}

/// opentracker, which serves nobody as root and only what is on its list.
fn tracker(site: &Site<'_>, head: &Namespace, id: &str) -> Result<Process> {
    let root = site.directory.join("tracker");
    fs::create_dir_all(&root)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    fs::write(root.join("list"), id).context("write the tracker's list")?;
    let config = site.directory.join("tracker.conf");
    fs::write(
        &config,
        format!(
            "listen.tcp {SERVER}:{TRACKER_PORT}\naccess.whitelist list\n\
             tracker.user nobody\ntracker.rootdir {}\n",
            root.display()
        ),
    )?;
    let mut command = head.command("opentracker");
    command.arg("-f").arg(&config);
    let log = site.directory.join("tracker.log");
    let port = Port::Tcp(TRACKER_PORT);
    lab::serve(head, "opentracker", &mut command, port, &log)
}
