//! The iSCSI target and initiators that mean no good.

use super::fixture::{Fixture, INITIATOR, MIB};

/// What the daemon may take beside what it has when nobody is there.
const MEMORY_BYTES_MAX: u64 = 96 * MIB;

#[test]
fn half_pdus_giant_lengths_and_noise_leave_the_target_well() {
    let mut it = Fixture::new();
    it.share(INITIATOR, &[]);
    let script = r"
import os
def raw(data, wait=False):
    s = socket.create_connection(tuple([address.rsplit(':', 1)[0], int(address.rsplit(':', 1)[1])]))
    s.settimeout(20)
    try:
        s.sendall(data)
        if wait:
            while s.recv(65536):
                pass
    except OSError:
        pass
    s.close()
login = bytes([0x43, 0x87]) + bytes(46)
for noise in (b'', b'GET / HTTP/1.1\r\n\r\n' * 10, bytes(48), b'\xff' * 100000, os.urandom(100000)):
    raw(noise)
for cut in (1, 47, 48, 60):
    raw((login[:5] + b'\0\x02\0' + login[8:] + b'InitiatorName=' + b'x' * 600)[:cut])
# A length of 16 MiB, text without an end, and far too many pairs.
raw(login[:5] + b'\xff\xff\xff' + login[8:] + bytes(1000), wait=True)
raw((bytes([0x43, 0x40]) + bytes(3) + b'\0\x20\0' + bytes(40) + b'x' * 8192) * 10, wait=True)
raw(login[:5] + b'\0\x20\0' + login[8:] + b'a=b\0' * 2048, wait=True)
# In a session: half a command, half of its data, resets in the middle of a read.
for cut in (1, 47, 48, 500, 5000):
    s = Session(address, initiator, target)
    pdu = struct.pack('>BBHBBH8sIIII16s', 1, 0xa0, 0, 0, 0, 4096, bytes(8), 7, 1 << 20, 1, 1, bytes([0x2a, 0, 0, 0, 0, 0, 0, 8, 0]).ljust(16, b'\0'))
    s.s.sendall((pdu + bytes(4096))[:cut])
    s.s.close()
for round in range(20):
    s = Session(address, initiator, target)
    s.begin([0x28, 0, 0, 0, 0, 0, 0, 0x40, 0], expect=1 << 23)
    s.s.recv(1 + round * 1000)
    s.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.s.close()
# Many writes that are announced and never come.
s = Session(address, initiator, target)
while s.command([0] * 6)[0]:
    pass
for n in range(60):
    s.tag += 1
    s.send(1, 0xa0, b'', struct.pack('>8sIIII16s', bytes(8), s.tag, 1 << 23, s.number, 1, bytes([0x2a, 0, 0, 0, 0, 0, 0, 0x40, 0]).ljust(16, b'\0')))
    s.number += 1
header, _ = s.receive()
assert header[0] == 0x31, header[0]
t = Session(address, initiator, target)
while t.command([0] * 6)[0]:
    pass
assert t.command([0x28, 0, 0, 0, 0, 0, 0, 0, 1], expect=512)[0] == 0
print('well')
";
    let before = it.daemon.process().memory_bytes().unwrap();
    assert_eq!(it.python(INITIATOR, script), "well");
    let after = it.daemon.process().memory_peak_bytes().unwrap();
    assert!(after < before + MEMORY_BYTES_MAX, "{before} {after}");
    it.daemon.stop().unwrap();
}

#[test]
fn silent_connections_do_not_keep_others_out() {
    let mut it = Fixture::new();
    it.share(INITIATOR, &[]);
    let script = "
host, port = address.rsplit(':', 1)
silent = [socket.create_connection((host, int(port))) for _ in range(2000)]
s = Session(address, initiator, target)
while s.command([0] * 6)[0]:
    pass
silent += [socket.create_connection((host, int(port))) for _ in range(500)]
assert s.command([0x28, 0, 0, 0, 0, 0, 0, 0, 1], expect=512)[0] == 0
print('served')
";
    assert_eq!(
        it.python(
            INITIATOR,
            &format!(
                "
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
{script}"
            )
        ),
        "served"
    );
    it.daemon.stop().unwrap();
}
