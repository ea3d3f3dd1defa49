//! Targets of several disks.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use rootstock_tests::tool;

use crate::fixture::{Fixture, INITIATOR, PREFIX};

const OTHER: &str = "iqn.2026-11.example:other";

/// One session from beginning to end. It stops for each line that it is sent.
const SESSION: &str = "
s = Session(address, initiator, target)
def lun(number, flat=False):
    return bytes([0x40 if flat else 0, number]) + bytes(6)
def ready(number):
    while True:
        status, sense = s.command([0] * 6, lun=lun(number))
        if status == 0:
            return
        print(number, sense[4] & 15, sense[14:16].hex())
        if sense[4] & 15 != 6:
            return
def luns():
    data = s.command([0xa0] + [0] * 8 + [64, 0, 0], expect=64)[1]
    return [data[at + 1] for at in range(8, 8 + int.from_bytes(data[:4], 'big'), 8)]
def byte(number, flat=False):
    return s.command([0x28] + [0] * 7 + [1], expect=512, lun=lun(number, flat))[1][0]
def write(number, byte):
    return s.command([0x2a] + [0] * 7 + [1], bytes([byte] * 512), lun=lun(number))[0]
def wait():
    print('.', flush=True)
    sys.stdin.readline()
for number in (1, 5):
    ready(number)
print(luns(), write(1, 11), write(5, 55), byte(1), byte(5), byte(5, True))
ready(2)
# RESERVE(6) of one of them; LOGICAL UNIT RESET of it, written in the other way.
print(s.command([0x16, 0, 0, 0, 0, 0], lun=lun(5))[0])
wait()
s.send(0x42, 0x85, b'', lun(5, True) + struct.pack('>IIII16x', 999, 0xffffffff, s.number, 1))
print(s.receive()[0][2])
ready(1)
ready(5)
wait()
# Another one has come.
ready(1)
ready(5)
print(luns())
ready(7)
wait()
# It has gone, and so has what it was asked.
print(luns())
ready(1)
ready(5)
ready(7)
";

#[test]
fn a_target_has_several_disks() {
    let mut it = Fixture::new();
    for (volume, lun) in [("a", "1"), ("b", "5"), ("c", "7")] {
        it.daemon
            .run(["volume", "create", volume, "--blank", "8M"])
            .unwrap();
        if volume != "c" {
            share(&it, volume, INITIATOR, lun);
        }
    }
    let taken = "volume share c --initiator iqn.2026-11.example:x --target db --lun 5";
    assert!(it.daemon.refused(taken.split(' ')).is_ok());
    let target = format!("{PREFIX}:target.db");
    let portal = format!("iscsi://{}", it.address);
    let list = |initiator: &str| tool::run("iscsi-ls", ["-i", initiator, "-s", &portal]).unwrap();
    let shown = list(INITIATOR);
    assert!(
        shown.contains("Lun:1") && shown.contains("Lun:5"),
        "{shown}"
    );
    assert_eq!(shown.matches("Target:").count(), 1, "{shown}");
    // Who may use one of them sees that one.
    share(&it, "b", OTHER, "5");
    let shown = list(OTHER);
    assert!(
        shown.contains("Lun:5") && !shown.contains("Lun:1"),
        "{shown}"
    );

    let mut python = it
        .python_command_with(&target, INITIATOR, SESSION)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut steps = python.stdin.take().unwrap();
    let mut said = BufReader::new(python.stdout.take().unwrap());
    let mut hear = || {
        let mut all = Vec::new();
        loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "{all:?}");
            match line.trim() {
                "." => return all.join("; "),
                line => all.push(line.to_owned()),
            }
        }
    };
    // Attentions are each unit's own, and so is what is on it; there is no LUN 2.
    assert_eq!(
        hear(),
        "1 6 2900; 5 6 2900; [1, 5] 0 0 11 55 55; 2 5 2500; 0"
    );
    // The other initiator meets the reservation of that disk.
    let url = |lun: u16| format!("iscsi://{}/{target}/{lun}", it.address);
    let capacity = |initiator: &str, lun| {
        let mut command = Command::new("iscsi-inq");
        tool::run_command(command.args(["-i", initiator, &url(lun)])).is_ok()
    };
    assert!(capacity(OTHER, 5) && !capacity(OTHER, 1));
    steps.write_all(b"\n").unwrap();
    assert_eq!(hear(), "0; 5 6 2903");
    share(&it, "c", INITIATOR, "7");
    steps.write_all(b"\n").unwrap();
    assert_eq!(hear(), "1 6 3f0e; 5 6 3f0e; [1, 5, 7]; 7 6 2900");
    let unshare = ["volume", "unshare", "c", "--initiator", INITIATOR];
    it.daemon.run(unshare).unwrap();
    steps.write_all(b"\n").unwrap();
    drop(steps);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
    assert_eq!(rest, "[1, 5]\n7 5 2500\n");
    assert!(python.wait().unwrap().success());
    // It may have another place now.
    it.daemon.run(["volume", "delete", "c"]).unwrap();
    it.daemon.stop().unwrap();
}

fn share(it: &Fixture, volume: &str, initiator: &str, lun: &str) {
    let words = ["volume", "share", volume, "--initiator", initiator];
    let place = ["--target", "db", "--lun", lun];
    it.daemon.run(words.iter().chain(&place)).unwrap();
}
