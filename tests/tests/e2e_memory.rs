//! Memory stays within its bounds: 200 clients at once, and a very large sparse disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use rootstock_tests::{Daemon, DaemonOptions, Process, disk, peer, wait};

const MIB: u64 = 1024 * 1024;
/// What the daemon may hold beside its cache, and an import altogether.
const MEMORY_BYTES_MAX: u64 = 300 * MIB;
const CACHE_BYTES: u64 = 64 * MIB;
const CLIENTS: u32 = 200;
const IMPORT_LIMIT: Duration = Duration::from_secs(300);

/// Opens all connections, keeps several large reads in flight on each, and
/// leaves half of the answers lying until all have been asked for.
const MANY_CLIENTS: &str = "
import random
random.seed(1)
clients = int(sys.argv[2])
size = h.get_size()
handles = []
for _ in range(clients):
    handle = nbd.NBD()
    handle.connect_uri(sys.argv[1])
    handles.append(handle)
for round in range(4):
    pending = []
    for handle in handles:
        for _ in range(4):
            buffer = nbd.Buffer(262144)
            offset = random.randrange(0, size - 262144) & ~4095
            pending.append((handle, handle.aio_pread(buffer, offset)))
    for handle, cookie in reversed(pending):
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)
print('served')
";

#[test]
fn two_hundred_clients_stay_within_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.img");
    disk::noise(&source, 256 * MIB, 1).unwrap();
    let mut options = DaemonOptions::new(directory.path()).unwrap();
    options.config = format!("[store]\ncache_bytes = {CACHE_BYTES}\n");
    let mut daemon = Daemon::start_with(options).unwrap();
    daemon
        .run(["image", "import", "base", source.to_str().unwrap()])
        .unwrap();
    daemon
        .run(["volume", "create", "shared", "--from", "base"])
        .unwrap();

    let script = format!("sys.argv += ['{CLIENTS}']\n{MANY_CLIENTS}");
    let served = peer::libnbd(&daemon.nbd_uri("volume/shared"), &script).unwrap();
    assert_eq!(served.trim(), "served");
    let peak = daemon.process().memory_peak_bytes().unwrap();
    assert!(
        peak < MEMORY_BYTES_MAX + CACHE_BYTES,
        "the daemon held {} MiB at its peak",
        peak / MIB
    );
    daemon.stop().unwrap();
}

#[test]
fn a_terabyte_of_holes_is_imported_within_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("sparse.img");
    disk::noise(&source, MIB, 1).unwrap();
    File::options()
        .write(true)
        .open(&source)
        .unwrap()
        .set_len(1024 * 1024 * MIB)
        .unwrap();
    let mut daemon = Daemon::start(directory.path()).unwrap();
    let mut import = daemon.command();
    import.args(["image", "import", "sparse"]).arg(&source);
    let peak = peak_of(&mut import, directory.path());
    assert!(
        peak < MEMORY_BYTES_MAX,
        "the import held {} MiB at its peak",
        peak / MIB
    );
    let peak = daemon.process().memory_peak_bytes().unwrap();
    assert!(
        peak < MEMORY_BYTES_MAX,
        "the daemon held {} MiB at its peak",
        peak / MIB
    );
    daemon.stop().unwrap();
}

/// Runs it to its successful end and gives the most memory that it was seen to hold.
fn peak_of(command: &mut Command, directory: &std::path::Path) -> u64 {
    let mut process = Process::start("import", command, &directory.join("import.log")).unwrap();
    let mut peak = 0;
    let status = wait::until("the end of the import", IMPORT_LIMIT, || {
        // It cannot be asked any more when it has just ended.
        peak = process
            .memory_peak_bytes()
            .map_or(peak, |seen| seen.max(peak));
        Ok(process.ended()?)
    });
    assert!(status.unwrap().success(), "{}", process.log_end());
    peak
}
