//! Kills the daemon in the middle of a client's writes: what was flushed is there afterwards, and no block is a mix.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use rootstock_tests::peer::{self, Script};
use rootstock_tests::{Daemon, disk};

const DISK_BYTES: u64 = 64 * 1024 * 1024;
const BLOCK_BYTES: u64 = 4096;
/// The blocks that the client writes to, spread over the disk.
const BLOCK_COUNT: u64 = 256;
const BLOCK_STRIDE_BYTES: u64 = DISK_BYTES / BLOCK_COUNT;
const ENDED_LIMIT: Duration = Duration::from_secs(60);

/// Writes blocks filled with a growing number at shuffled places, many at once,
/// and says which numbers a flush has covered.
const WRITER: &str = "
import random, struct
count, stride = int(sys.argv[2]), int(sys.argv[3])
random.seed(int(sys.argv[4]))
number = int(sys.argv[5])
size = 4096
while True:
    places = random.sample(range(count), random.randint(1, 24))
    pending = []
    for place in places:
        number += 1
        print('write', place, number)
        buffer = nbd.Buffer.from_bytearray(bytearray(struct.pack('<Q', number) * (size // 8)))
        pending.append((h.aio_pwrite(buffer, place * stride), buffer))
    for cookie, buffer in pending:
        while not h.aio_command_completed(cookie):
            h.poll(-1)
    h.flush()
    print('flushed')
";

/// Prints the number in each block, or how many different ones it holds.
const READER: &str = "
import struct
count, stride = int(sys.argv[2]), int(sys.argv[3])
for place in range(count):
    words = set(struct.unpack('<512Q', h.pread(4096, place * stride)))
    print(place, words.pop() if len(words) == 1 else 'mix')
";

/// What the client knows of one block.
#[derive(Clone, Copy, Default)]
struct Known {
    /// The newest number that a flush covered: no older one may be found.
    flushed: u64,
    /// The newest number that was sent: no newer one may be found.
    sent: u64,
}

#[test]
fn what_was_flushed_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.img");
    disk::noise(&source, DISK_BYTES, 1).unwrap();
    // The blocks to be written begin as zeroes, which is number 0 and no mix.
    zero_the_blocks(&source);
    let mut daemon = Daemon::start(directory.path()).unwrap();
    daemon
        .run(["image", "import", "base", source.to_str().unwrap()])
        .unwrap();
    daemon
        .run(["volume", "create", "victim", "--from", "base"])
        .unwrap();

    let uri = daemon.nbd_uri("volume/victim");
    let mut known = vec![Known::default(); usize::try_from(BLOCK_COUNT).unwrap()];
    let mut number = 0;
    for (round, flushes) in [3, 20, 1, 57, 8, 120].into_iter().enumerate() {
        number = write_and_kill(
            &mut daemon,
            &uri,
            directory.path(),
            round,
            flushes,
            number,
            &mut known,
        );
        daemon.restart().unwrap();
        check(&uri, &mut known);
    }
    // What lies between the written blocks is the image's own, still.
    let whole = directory.path().join("whole.img");
    rootstock_tests::tool::run("nbdcopy", [uri.as_str(), whole.to_str().unwrap()]).unwrap();
    zero_the_blocks(&whole);
    assert_eq!(
        disk::sha256(&whole).unwrap(),
        disk::sha256(&source).unwrap()
    );
    daemon.stop().unwrap();
}

/// Runs the writer until it has flushed so often, kills the daemon under its next
/// writes, and gives the last number that was sent.
fn write_and_kill(
    daemon: &mut Daemon,
    uri: &str,
    directory: &Path,
    round: usize,
    flushes: usize,
    number: u64,
    known: &mut [Known],
) -> u64 {
    let script = with_arguments(
        WRITER,
        &[BLOCK_COUNT, BLOCK_STRIDE_BYTES, round as u64, number],
    );
    let mut writer = Script::start(uri, &script, &directory.join("writer.log")).unwrap();
    let mut last = number;
    let mut flushed = 0;
    while let Some(line) = writer.line().unwrap() {
        if line == "flushed" {
            flushed += 1;
            for block in known.iter_mut() {
                block.flushed = block.sent;
            }
            if flushed == flushes {
                daemon.kill().unwrap();
            }
        } else {
            let words: Vec<&str> = line.split(' ').collect();
            let place: usize = words[1].parse().unwrap();
            last = words[2].parse().unwrap();
            known[place].sent = last;
        }
    }
    writer.process.wait(ENDED_LIMIT).unwrap();
    assert!(
        flushed >= flushes,
        "the writer ended after {flushed} flushes:\n{}",
        writer.process.log_end()
    );
    last
}

fn check(uri: &str, known: &mut [Known]) {
    let script = with_arguments(READER, &[BLOCK_COUNT, BLOCK_STRIDE_BYTES]);
    let found = peer::libnbd(uri, &script).unwrap();
    assert_eq!(found.lines().count(), known.len());
    for (line, block) in found.lines().zip(known) {
        let (place, value) = line.split_once(' ').unwrap();
        let value: u64 = value
            .parse()
            .unwrap_or_else(|_| panic!("block {place} is a mix"));
        assert!(
            (block.flushed..=block.sent).contains(&value),
            "block {place} holds {value}, but {} was flushed and {} was the last sent",
            block.flushed,
            block.sent
        );
        // An unflushed write that survived once stays, as far as reads tell.
        *block = Known {
            flushed: value,
            sent: value,
        };
    }
}

/// The numbers follow the address as the script's arguments.
fn with_arguments(script: &str, numbers: &[u64]) -> String {
    let words: Vec<String> = numbers.iter().map(|number| format!("'{number}'")).collect();
    format!("sys.argv += [{}]\n{script}", words.join(", "))
}

fn zero_the_blocks(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for place in 0..BLOCK_COUNT {
        let zeroes = vec![0; usize::try_from(BLOCK_BYTES).unwrap()];
        file.write_all_at(&zeroes, place * BLOCK_STRIDE_BYTES)
            .unwrap();
    }
}
