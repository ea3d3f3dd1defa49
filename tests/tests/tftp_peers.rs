//! The TFTP server of the daemon held against real clients and a bad line, in namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rootstock_tests::{
    daemon::{Daemon, DaemonOptions},
    namespace::Namespace,
    tool, wait,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// How long anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const SERVER: &str = "10.98.0.1";
const CLIENT_MAC: &str = "02:00:00:00:98:02";

/// Around the block sizes of the clients, and what takes a while.
const SIZES: [usize; 9] = [0, 1, 511, 512, 513, 1428, 1429, 14_280, 3_000_001];

/// The least that a client without options cannot count in blocks.
const TOO_LARGE: usize = 65_535 * 512;

/// A daemon in one namespace and clients in another, with a cable between them.
struct Lab {
    _daemon: Daemon,
    server: Namespace,
    client: Namespace,
    dir: TempDir,
}

impl Lab {
    fn new() -> Result<Self> {
        let (server, client) = (Namespace::new("tftp")?, Namespace::new("client")?);
        server.cable("boot", &client, "card")?;
        server.ip(&format!("addr add {SERVER}/24 dev boot"))?;
        client.ip(&format!("link set card address {CLIENT_MAC}"))?;
        client.ip("addr add 10.98.0.2/24 dev card")?;
        let dir = tempfile::tempdir()?;
        let files = dir.path().join("files");
        fs::create_dir(&files)?;
        fs::write(dir.path().join("secret"), "secret")?;
        for size in SIZES.into_iter().chain([TOO_LARGE]) {
            fs::write(files.join(name(size)), content(size))?;
        }
        let mut options = DaemonOptions::new(dir.path())?;
        options.namespace = Some(server.name().to_owned());
        options.config = format!(
            "[boot]\ninterfaces = [\"boot=proxy\"]\nfiles = [\"{}\"]\n",
            files.display()
        );
        let daemon = Daemon::start_with(options)?;
        let lab = Self {
            _daemon: daemon,
            server,
            client,
            dir,
        };
        wait::until("a socket on port 69", LIMIT, || {
            let mut list = lab.server.command("cat");
            let sockets = tool::run_command(list.arg("/proc/net/udp"))?;
            Ok(sockets.contains(":0045 ").then_some(()))
        })?;
        Ok(lab)
    }

    /// A program of the client's machine.
    fn program(&self, words: &str) -> Command {
        let mut words = words.split_whitespace();
        let mut command = self.client.command(words.next().unwrap_or_default());
        command.args(words).current_dir(self.dir.path());
        command
    }

    /// What a client says, however it ends.
    fn said(&self, words: &str) -> Result<String> {
        let output = tool::output(&mut self.program(words))?;
        let all = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&all).into_owned())
    }

    /// Runs a client that stores what it gets as `got`.
    fn get(&self, words: &str) -> Result<Vec<u8>> {
        let got = self.dir.path().join("got");
        if got.exists() {
            fs::remove_file(&got)?;
        }
        let said = self.said(words)?;
        fs::read(&got).with_context(|| format!("{words}: {said}"))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }
}

fn name(size: usize) -> String {
    format!("size-{size}.efi")
}

fn content(size: usize) -> Vec<u8> {
    let mut state = 9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

#[test]
fn real_clients_get_whole_files() -> Result<()> {
    let lab = Lab::new()?;
    for size in SIZES {
        let (file, expected) = (name(size), content(size));
        for words in [
            format!("tftp -m binary {SERVER} -c get {file} got"),
            format!("tftp -m binary {SERVER} -c get /../x/..\\{file} got"),
            format!("atftp --get -r {file} -l got {SERVER}"),
            format!("curl -sS -o got tftp://{SERVER}/{file}"),
            format!("curl -sS --tftp-no-options -o got tftp://{SERVER}//{file}"),
            format!("curl -sS --tftp-blksize 65464 -o got tftp://{SERVER}/{file}"),
        ] {
            // A client makes no file of nothing, or one without bytes.
            let got = lab.get(&words).or_else(|error| match size {
                0 => Ok(Vec::new()),
                _ => Err(error),
            })?;
            ensure!(got == expected, "{words}: {} bytes", got.len());
        }
        for options in [
            &["blksize 1428", "tsize 0"][..],
            &["blksize 1428", "windowsize 8"],
            &["windowsize 64", "timeout 3"],
        ] {
            let got = atftp(&lab, &file, options)?;
            ensure!(got == expected, "{options:?}: {} bytes", got.len());
        }
    }
    wait::until("the step of a boot in the log", LIMIT, || {
        let log = fs::read_to_string(lab.log())?;
        let mut steps = log.lines().filter(|line| line.contains("boot step"));
        let told = |line: &str| line.contains(CLIENT_MAC) && line.contains("by TFTP");
        Ok(steps.any(told).then_some(()))
    })
}

/// Options of atftp are words with a blank in them.
fn atftp(lab: &Lab, file: &str, options: &[&str]) -> Result<Vec<u8>> {
    let got = lab.dir.path().join("got");
    if got.exists() {
        fs::remove_file(&got)?;
    }
    let mut command = lab.program("atftp");
    for option in options {
        command.args(["--option", option]);
    }
    command.args(["--get", "-r", file, "-l", "got", SERVER]);
    let output = tool::output(&mut command)?;
    fs::read(&got).with_context(|| format!("{options:?}: {output:?}"))
}

#[test]
fn refusals_reach_the_person_before_the_screen() -> Result<()> {
    let lab = Lab::new()?;
    fs::write(lab.dir.path().join("mine"), "mine")?;
    let (small, large) = (name(513), name(TOO_LARGE));
    for (words, expected) in [
        // The client's default is netascii.
        (
            format!("tftp {SERVER} -c get {small}"),
            "transfer mode netascii is not served: use octet (binary)",
        ),
        (
            format!("tftp -m binary {SERVER} -c put mine mine"),
            "this server only sends files",
        ),
        (
            format!("tftp -m binary {SERVER} -c get ../secret got"),
            "there is no boot file secret",
        ),
        (
            format!("tftp -m binary {SERVER} -c get /etc/passwd got"),
            "there is no boot file etc/passwd",
        ),
        (
            format!("tftp -m binary {SERVER} -c get {large} got"),
            "do not fit in 65535 blocks of 512",
        ),
        (
            format!("curl -sS -o got tftp://{SERVER}/none.efi"),
            // By its number: this curl's text for it is another's.
            "curl: (68)",
        ),
        (
            format!("curl -sS -T mine tftp://{SERVER}/mine"),
            "curl: (71)",
        ),
    ] {
        let said = lab.said(&words)?;
        ensure!(said.contains(expected), "{words}: {said}");
    }
    ensure!(!lab.dir.path().join("files/mine").exists());
    Ok(())
}

#[test]
fn numbers_wrap_and_narrow_paths_are_kept_to() -> Result<()> {
    let lab = Lab::new()?;
    // More than 65,535 blocks, for a client that asks options.
    let words = format!("curl -sS -o got tftp://{SERVER}/{}", name(TOO_LARGE));
    ensure!(lab.get(&words)? == content(TOO_LARGE));
    lab.server.ip("link set boot mtu 1280")?;
    lab.client.ip("link set card mtu 1280")?;
    let file = name(14_280);
    for options in [&["blksize 65464"][..], &["blksize 1468", "windowsize 16"]] {
        ensure!(
            atftp(&lab, &file, options)? == content(14_280),
            "{options:?}"
        );
    }
    in_namespace(&lab.client, move || {
        let mut line = Line::open(&format!("{file}|octet|blksize|1468"))?;
        let first = line.receive()?;
        ensure!(first == b"\0\x06blksize\x001248\0", "{first:?}");
        Ok(())
    })
}

#[test]
fn what_is_made_is_served() -> Result<()> {
    let lab = Lab::new()?;
    let own = format!("grub/grub.cfg-01-{}", CLIENT_MAC.replace(':', "-"));
    for (name, expected) in [
        ("autoexec.ipxe", "chain --replace http://10.98.0.1:8480/"),
        (
            "EFI/BOOT/autoexec.ipxe",
            "chain --replace http://10.98.0.1:8480/",
        ),
        ("grub/grub.cfg", "(tftp,10.98.0.1)/boot/grub/"),
        // Beside another DHCP server, an unknown machine is left alone.
        (&own, "is not managed here"),
    ] {
        let words = format!("curl -sS -o got tftp://{SERVER}/{name}");
        let text = String::from_utf8(lab.get(&words)?)?;
        ensure!(text.contains(expected), "{name}: {text}");
    }
    Ok(())
}

#[test]
fn a_bad_line_loses_time_and_no_bytes() -> Result<()> {
    let lab = Lab::new()?;
    // Each loss without a window costs the second that is waited.
    let size = 15_001;
    fs::write(lab.dir.path().join("files").join(name(size)), content(size))?;
    for (fields, window) in [
        ("octet|timeout|1", 1),
        ("octet|timeout|1|blksize|1024|windowsize|8", 8),
    ] {
        let fields = format!("{}|{fields}", name(size));
        let got = in_namespace(&lab.client, move || lossy(&fields, window))?;
        ensure!(got == content(size), "{window}: {} bytes", got.len());
    }
    // What is acknowledged twice is not sent twice.
    let fields = format!("{}|octet", name(size));
    let packets = in_namespace(&lab.client, move || doubled(&fields))?;
    ensure!(packets == size / 512 + 1, "{packets} packets");
    Ok(())
}

/// Does something as a machine of the namespace would.
fn in_namespace<T: Send + 'static>(
    namespace: &Namespace,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let handle = File::open(format!("/run/netns/{}", namespace.name()))?;
    // A thread of its own, which ends inside.
    let thread = thread::spawn(move || {
        move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    });
    thread.join().unwrap()
}

/// A client's end of a transfer.
struct Line {
    socket: UdpSocket,
    server: Option<SocketAddr>,
    request: Vec<u8>,
}

impl Line {
    fn open(fields: &str) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(LIMIT))?;
        let text = fields.replace('|', "\0");
        let request = [b"\0\x01", text.as_bytes(), b"\0"].concat();
        socket.send_to(&request, (SERVER, 69))?;
        Ok(Self {
            socket,
            server: None,
            request,
        })
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut packet = vec![0; 2048];
        let (len, from) = self.socket.recv_from(&mut packet)?;
        ensure!(
            from.ip().to_string() == SERVER && from.port() != 69,
            "{from}"
        );
        ensure!(*self.server.get_or_insert(from) == from, "{from}");
        packet.truncate(len);
        Ok(packet)
    }

    fn acknowledge(&self, block: u64) -> Result<()> {
        let [high, low] = (block as u16).to_be_bytes();
        let server = self.server.context("nothing came yet")?;
        self.socket.send_to(&[0, 4, high, low], server)?;
        Ok(())
    }
}

/// Receives over a line that loses every seventh packet of the server and every
/// fifth of ours, and repeats the request.
fn lossy(fields: &str, window: u64) -> Result<Vec<u8>> {
    let mut line = Line::open(fields)?;
    line.socket.send_to(&line.request, (SERVER, 69))?;
    let (mut file, mut got, mut acked) = (Vec::new(), 0_u64, 0);
    let (mut arrived, mut sent) = (0_u64, 0_u64);
    let mut block_bytes = 0;
    loop {
        let packet = line.receive()?;
        arrived += 1;
        if arrived.is_multiple_of(7) {
            continue;
        }
        let mut is_last = false;
        let answers = if packet[1] == 6 {
            got == 0
        } else {
            ensure!(packet[1] == 3, "{packet:?}");
            let block = u64::from(u16::from_be_bytes([packet[2], packet[3]]));
            let data = &packet[4..];
            if block == got + 1 {
                got = block;
                file.extend(data);
                // The first block of a long file is full.
                block_bytes = block_bytes.max(data.len());
                is_last = data.len() < block_bytes;
            }
            is_last || got - acked >= window || block != got || got == acked
        };
        if !answers {
            continue;
        }
        sent += 1;
        acked = got;
        if is_last || !sent.is_multiple_of(5) {
            line.acknowledge(got)?;
        }
        if is_last {
            return Ok(file);
        }
    }
}

/// Receives, acknowledges each block twice, and counts packets.
fn doubled(fields: &str) -> Result<usize> {
    let mut line = Line::open(fields)?;
    let mut packets = 0;
    loop {
        let packet = line.receive()?;
        packets += 1;
        for _ in 0..2 {
            line.acknowledge(u64::from(u16::from_be_bytes([packet[2], packet[3]])))?;
        }
        if packet.len() < 4 + 512 {
            return Ok(packets);
        }
    }
}
