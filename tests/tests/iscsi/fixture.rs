//! A daemon with one volume, and initiators that speak to it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use rootstock_tests::daemon::DaemonOptions;
use rootstock_tests::{Daemon, disk, tool};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
/// What the names of targets begin with.
pub(crate) const PREFIX: &str = "iqn.2026-11.example.site";
/// The initiator that most tests are.
pub(crate) const INITIATOR: &str = "iqn.2026-11.example:tests";
/// The system's own Python.
const PYTHON: &str = "/usr/bin/python3";

/// An initiator made by hand, for what real ones do not do: `Session(address,
/// initiator, target)` logs in, `command(cdb, out, expect)` gives status and data.
const PYTHON_INITIATOR: &str = r#"
import socket, struct, sys
class Session:
    def __init__(self, address, initiator, target):
        host, port = address.rsplit(':', 1)
        self.s = socket.create_connection((host, int(port)))
        self.s.settimeout(20)
        self.number, self.tag = 1, 1
        text = 'InitiatorName=%s\0TargetName=%s\0SessionType=Normal\0' % (initiator, target)
        self.send(0x43, 0x87, text.encode(), struct.pack('>6sHIHHII16x', b'\x80\0\0\0\0\1', 0, 1, 0, 0, 1, 0))
        header, _ = self.receive()
        assert header[36:38] == b'\0\0', header[36:38].hex()
    def send(self, opcode, flags, data, rest):
        header = struct.pack('>BBHBBH', opcode, flags, 0, 0, len(data) >> 16, len(data) & 0xffff) + rest
        assert len(header) == 48, len(header)
        self.s.sendall(header + data + bytes(-len(data) % 4))
    def receive(self):
        header = self.s.recv(48, socket.MSG_WAITALL)
        if len(header) < 48:
            raise EOFError
        length = int.from_bytes(header[5:8], 'big')
        data = self.s.recv(length + -length % 4, socket.MSG_WAITALL) if length else b''
        return header, data[:length]
    def begin(self, cdb, out=b'', expect=0, lun=bytes(8)):
        self.tag += 1
        flags = 0x80 | (0x20 if out else 0) | (0x40 if expect else 0)
        rest = struct.pack('>8sIIII16s', lun, self.tag, len(out) or expect, self.number, 1, bytes(cdb).ljust(16, b'\0'))
        self.send(0x01, flags, out, rest)
        self.number += 1
    def command(self, cdb, out=b'', expect=0, lun=bytes(8)):
        self.begin(cdb, out, expect, lun)
        got = b''
        while True:
            header, data = self.receive()
            if header[0] == 0x25:
                got += data
                if header[1] & 1:
                    return header[3], got
            else:
                assert header[0] == 0x21, header[0]
                return header[3], data
address, initiator, target = sys.argv[1:4]
"#;

pub(crate) struct Fixture {
    pub(crate) daemon: Daemon,
    pub(crate) base: PathBuf,
    pub(crate) address: String,
    pub(crate) directory: TempDir,
}

impl Fixture {
    /// A daemon with the volume `v`, 64 MiB of which 4 are noise, shared with
    /// nobody.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base.img");
        disk::noise(&base, 4 * MIB, 1).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&base).unwrap();
        file.set_len(64 * MIB).unwrap();
        // It has to be the same after a restart, which a chosen one would not be.
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut options = DaemonOptions::new(&directory.path().join("run")).unwrap();
        options.config = format!("[iscsi]\nlisten = [\"{address}\"]\nprefix = \"{PREFIX}\"\n");
        let daemon = Daemon::start_with(options).unwrap();
        daemon
            .run(["image", "import", "base", base.to_str().unwrap()])
            .unwrap();
        daemon
            .run(["volume", "create", "v", "--from", "base"])
            .unwrap();
        Self {
            daemon,
            base,
            address: address.to_string(),
            directory,
        }
    }

    /// Lets an initiator use the volume `v`.
    pub(crate) fn share(&self, initiator: &str, more: &[&str]) -> Value {
        let words = ["volume", "share", "v", "--initiator", initiator];
        let words = words.iter().chain(more).copied();
        self.daemon.json(words).unwrap()
    }

    /// A libiscsi address of the volume's target.
    pub(crate) fn url(&self, user: &str) -> String {
        self.url_of(user, &target("v"))
    }

    /// A libiscsi address of a target's first disk.
    pub(crate) fn url_of(&self, user: &str, target: &str) -> String {
        format!("iscsi://{user}{}/{target}/0", self.address)
    }

    /// The volume as QEMU's tools take it, with `--image-opts`.
    pub(crate) fn image(&self, initiator: &str) -> String {
        format!(
            "driver=iscsi,transport=tcp,portal={},target={},lun=0,initiator-name={initiator}",
            self.address,
            target("v")
        )
    }

    /// Runs a script with the initiator made by hand, and gives what it printed.
    pub(crate) fn python(&self, initiator: &str, script: &str) -> String {
        let mut command = self.python_command(initiator, script);
        tool::run_command(&mut command).unwrap().trim().to_owned()
    }

    /// A script with the initiator made by hand.
    pub(crate) fn python_command(&self, initiator: &str, script: &str) -> Command {
        self.python_command_with(&target("v"), initiator, script)
    }

    /// The same with another target.
    pub(crate) fn python_command_with(
        &self,
        target: &str,
        initiator: &str,
        script: &str,
    ) -> Command {
        let mut command = Command::new(PYTHON);
        command
            .args(["-u", "-c"])
            .arg(format!("{PYTHON_INITIATOR}{script}"))
            .args([self.address.as_str(), initiator, target]);
        command
    }
}

pub(crate) fn target(volume: &str) -> String {
    format!("{PREFIX}:volume.{volume}")
}
