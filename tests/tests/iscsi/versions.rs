//! Versions as disks that are only read.

use std::process::Command;

use rootstock_tests::tool;

use crate::fixture::{Fixture, INITIATOR, PREFIX, target};

/// WRITE(10), WRITE SAME(16), UNMAP, COMPARE AND WRITE; then WP of MODE SENSE, and that
/// of a volume would be 0x10.
const WRITES: &str = "
s = Session(address, initiator, target)
while s.command([0] * 6)[0]:
    pass
def refused(cdb, out):
    status, sense = s.command(cdb, out)
    if status == 2 and sense[4] & 15 == 7 and sense[14:16] == b'\\x27\\0':
        return True
    return status, sense.hex()
print(refused([0x2a] + [0] * 7 + [1], bytes(512)),
      refused([0x93] + [0] * 12 + [1], bytes(512)),
      refused([0x42] + [0] * 7 + [24], struct.pack('>HHIQII', 22, 16, 0, 0, 8, 0)),
      refused([0x89] + [0] * 12 + [1], bytes(1024)))
print(hex(s.command([0x1a, 0, 0x3f, 0, 192], expect=192)[1][2]))
print(s.command([0x28] + [0] * 7 + [8], expect=4096)[1][:4096] == open(sys.argv[4], 'rb').read(4096))
";

#[test]
fn a_version_is_read_and_not_written() {
    let mut it = Fixture::new();
    let version = format!("{PREFIX}:image.base.1");
    it.daemon
        .run(["image", "share", "base:1", "--initiator", INITIATOR])
        .unwrap();
    it.share(INITIATOR, &[]);
    let portal = format!("iscsi://{}", it.address);
    let list = || tool::run("iscsi-ls", ["-i", INITIATOR, &portal]).unwrap();
    let shown = list();
    assert!(
        shown.contains(&version) && shown.contains(&target("v")),
        "{shown}"
    );
    let mut writes = it.python_command_with(&version, INITIATOR, WRITES);
    let said = tool::run_command(writes.arg(&it.base)).unwrap();
    assert_eq!(said.trim(), "True True True True\n0x90\nTrue");
    let image = it.image(INITIATOR).replace(&target("v"), &version);
    let base = format!("driver=file,filename={}", it.base.display());
    let same = ["compare", "--image-opts", &image, &base];
    let said = tool::run("qemu-img", same).unwrap();
    assert!(said.contains("identical"), "{said}");

    // It stays for as long as somebody may read it.
    it.daemon.run(["volume", "delete", "v"]).unwrap();
    let shown = it.daemon.run(["image", "show", "base:1"]).unwrap();
    assert!(
        shown.contains(INITIATOR) && shown.contains(&version),
        "{shown}"
    );
    let refused = it.daemon.refused(["image", "delete", "base:1"]).unwrap();
    assert!(refused.contains(INITIATOR), "{refused}");
    it.daemon
        .run(["image", "unshare", "base:1", "--initiator", INITIATOR])
        .unwrap();
    assert!(!list().contains(&version));
    let mut inquiry = Command::new("iscsi-inq");
    let url = it.url_of("", &version);
    let output = tool::output(inquiry.args(["-i", INITIATOR, &url])).unwrap();
    assert!(!output.status.success());
    it.daemon.run(["image", "delete", "base:1"]).unwrap();
    it.daemon.stop().unwrap();
}
