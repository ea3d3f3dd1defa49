//! Initiators that are sent on to another head.

use rootstock_tests::tool;

use crate::fixture::{Fixture, INITIATOR};

/// The login's answer: status class and detail, and its text.
const LOGIN: &str = "
class Refused(Session):
    def receive(self):
        header, data = super().receive()
        print(header[36:38].hex(), data.rstrip(b'\\0').decode())
        sys.exit()
Refused(address, initiator, target)
";

#[test]
fn initiators_follow_to_another_head() {
    let (mut first, mut second) = (Fixture::new(), Fixture::new());
    first.share(INITIATOR, &["--redirect", &second.address]);
    let expected = format!("0101 TargetAddress={}", second.address);
    assert_eq!(first.python(INITIATOR, LOGIN), expected);
    // The head that is named decides for itself.
    let write = |words: &[&str]| tool::run("qemu-io", words.iter().copied());
    assert!(write(&write_words(&first.image(INITIATOR))).is_err());
    second.share(INITIATOR, &[]);
    let said = write(&write_words(&first.image(INITIATOR))).unwrap();
    assert!(said.contains("wrote 4096"), "{said}");
    let read = |it: &Fixture, byte: &str| {
        let read = format!("read -P {byte} 1M 4k");
        let uri = it.daemon.nbd_uri("volume/v");
        let said = tool::run("qemu-io", ["-f", "raw", "-r", "-c", &read, &uri]);
        said.is_ok_and(|said| !said.contains("failed"))
    };
    assert!(read(&second, "7") && !read(&first, "7"));
    // Who has to prove something does so first, and is not told else.
    let shared = first.share(INITIATOR, &["--chap", "--redirect", &second.address]);
    let secret = shared["secret"].as_str().unwrap();
    let inquire = |user: &str| tool::run("iscsi-inq", ["-i", INITIATOR, &first.url(user)]);
    assert!(inquire("me%wrong-wrong-wrong@").is_err());
    let log = first.daemon.process().log_end();
    assert!(!log.contains(secret), "{log}");
    let nowhere = "volume share v --redirect nowhere --initiator iqn.2026-11.example:a";
    first.daemon.refused(nowhere.split(' ')).unwrap();
    second.daemon.stop().unwrap();
    first.daemon.stop().unwrap();
}

fn write_words(image: &str) -> [&str; 4] {
    ["--image-opts", image, "-c", "write -f -P 7 1M 4k"]
}
