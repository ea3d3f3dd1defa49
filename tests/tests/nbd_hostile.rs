//! The NBD server against clients that break the rules, and crowds of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use rootstock_tests::peer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[path = "nbd_memory/server.rs"]
mod server;

use server::MemoryServer;

const MIB: u64 = 1 << 20;

/// What the server may hold at once: its three disks' data, each connection's
/// stack and input buffer, and its code.
const MEMORY_BYTES_MAX: u64 = 300 * MIB;

#[test]
fn broken_requests_are_refused_and_the_stream_stays_in_step() {
    let server = MemoryServer::start(&[]).unwrap();
    let script = "
import errno
size = h.get_size()
h.set_strict_mode(0)
def refused(code, ask):
    try:
        ask()
    except nbd.Error as error:
        assert error.errnum == code, (error.errnum, code, error.string)
    else:
        raise SystemExit('it was let through')
    assert len(h.pread(512, 0)) == 512
refused(errno.EINVAL, lambda: h.pread(512, size))
refused(errno.EINVAL, lambda: h.pread(1024, size - 512))
refused(errno.EINVAL, lambda: h.pread((32 << 20) + 1, 0))
refused(errno.EOVERFLOW, lambda: h.pread((32 << 20) + 1, 0, nbd.CMD_FLAG_DF))
refused(errno.ENOSPC, lambda: h.pwrite(b'x' * 513, size - 512))
refused(errno.ENOSPC, lambda: h.pwrite(b'x' * 512, 1 << 62))
refused(errno.EINVAL, lambda: h.pwrite(bytes((32 << 20) + 512), 0))
refused(errno.ENOSPC, lambda: h.zero(513, size - 512))
refused(errno.EINVAL, lambda: h.trim(513, size - 512))
refused(errno.EINVAL, lambda: h.cache(513, size - 512))
refused(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_REQ_ONE))
refused(errno.EINVAL, lambda: h.pwrite(b'x' * 512, 0, nbd.CMD_FLAG_DF))
refused(errno.EINVAL, lambda: h.trim(512, 0, nbd.CMD_FLAG_NO_HOLE))
refused(errno.ENOTSUP, lambda: h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO))
h.shutdown()
i = nbd.NBD()
i.set_strict_mode(0)
i.connect_uri(sys.argv[1].replace('volume/disk', 'image/disk:1'))
h = i
refused(errno.EPERM, lambda: h.pwrite(b'x' * 512, 0))
refused(errno.EPERM, lambda: h.zero(512, 0))
refused(errno.EPERM, lambda: h.trim(512, 0))
h.flush()
i.shutdown()
print('done')
";
    for uri in [server.tcp("volume/disk"), server.unix("volume/disk")] {
        assert_eq!(peer::libnbd(&uri, script).unwrap().trim(), "done");
    }
    server.finish().unwrap();
}

#[test]
fn resets_and_half_messages_leave_the_server_well() {
    let server = MemoryServer::start(&[]).unwrap();
    let script = "
import socket, struct
host, port = sys.argv[2].split(':')
def go():
    s = socket.create_connection((host, int(port)))
    assert len(s.recv(18, socket.MSG_WAITALL)) == 18
    name = b'volume/disk'
    s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, len(name)) + name)
    assert len(s.recv(10, socket.MSG_WAITALL)) == 10
    return s
def request(command, offset, length):
    return struct.pack('>IHHQQI', 0x25609513, 0, command, 7, offset, length)
for round in range(50):
    s = go()
    s.sendall(request(0, 0, 20 << 20))
    s.recv(1 + round * 1000)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()
for cut in (1, 27, 28, 29, 5000, 400000):
    s = go()
    s.sendall((request(1, 0, 1 << 20) + bytes(1 << 20))[:cut])
    s.close()
for noise in (b'', b'GET / HTTP/1.1', bytes(100), b'\\xff' * 100000):
    s = socket.create_connection((host, int(port)))
    try:
        s.sendall(noise)
    except OSError:
        pass
    s.close()
assert len(h.pread(4096, 0)) == 4096
print('done')
";
    let uri = server.tcp("volume/disk");
    let mut command = peer::libnbd_command(&uri, script);
    let said = rootstock_tests::tool::run_command(command.arg(&server.address)).unwrap();
    assert_eq!(said.trim(), "done");
    server.finish().unwrap();
}

#[test]
fn thousands_of_silent_connections_lock_nobody_out() {
    // Each connection is a descriptor here and one there.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let server = MemoryServer::start(&[]).unwrap();
    let before = server.process.memory_bytes().unwrap();
    let mut crowd = Vec::new();
    for number in 0..3000 {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        // Those that were let in have greeted; some send half an option.
        if number % 3 == 0 && stream.read_exact(&mut [0; 18]).is_ok() {
            let _ = stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0");
        }
        crowd.push(stream);
    }
    let script = "
assert len(h.pread(1 << 20, 5 << 20)) == 1 << 20
h.shutdown()
print('done')
";
    let said = peer::libnbd(&server.tcp("volume/cold"), script).unwrap();
    assert_eq!(said.trim(), "done");
    let grown = server.process.memory_peak_bytes().unwrap() - before;
    assert!(grown < MEMORY_BYTES_MAX, "{} MiB", grown / MIB);
    drop(crowd);
    server.finish().unwrap();
}

#[test]
fn clients_that_never_read_cost_little_and_disturb_nobody() {
    let server = MemoryServer::start(&["--write-timeout-ms", "20000"]).unwrap();
    let before = server.process.memory_bytes().unwrap();
    let script = "
import socket, struct
host, port = sys.argv[2].split(':')
hogs = []
for number in range(50):
    s = socket.create_connection((host, int(port)))
    s.recv(18, socket.MSG_WAITALL)
    name = b'volume/cold' if number % 2 else b'volume/disk'
    s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, len(name)) + name)
    s.recv(10, socket.MSG_WAITALL)
    s.setblocking(False)
    for request in range(200):
        try:
            s.send(struct.pack('>IHHQQI', 0x25609513, 0, 0, request, 0, 20 << 20))
        except BlockingIOError:
            break
    hogs.append(s)
for offset in range(0, 16 << 20, 1 << 20):
    assert len(h.pread(1 << 20, offset)) == 1 << 20
h.shutdown()
print('done')
";
    let uri = server.tcp("volume/cold");
    let mut command = peer::libnbd_command(&uri, script);
    let said = rootstock_tests::tool::run_command(command.arg(&server.address)).unwrap();
    assert_eq!(said.trim(), "done");
    let grown = server.process.memory_peak_bytes().unwrap() - before;
    assert!(grown < MEMORY_BYTES_MAX, "{} MiB", grown / MIB);
    server.finish().unwrap();
}
