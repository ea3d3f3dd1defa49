//! The other ways to bring an image up to date, each with the settings that suit it best.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rootstock_tests::namespace::Namespace;
use rootstock_tests::tool;

use super::super::lab::{self, SERVER};
use super::super::process::{self, Server};
use super::Pair;

/// One rival with its settings.
pub(super) struct Rival {
    pub(super) name: &'static str,
    /// The bytes of an update, made in an empty directory.
    pub(super) run: fn(&Pair, &Path) -> Result<u64>,
}

pub(super) const ALL: [Rival; 8] = [
    Rival {
        name: "rsync",
        run: |pair, directory| rsync(pair, directory, &[]),
    },
    Rival {
        name: "rsync -z",
        run: |pair, directory| rsync(pair, directory, &["--compress"]),
    },
    Rival {
        name: "rsync -z, 4 KiB blocks",
        run: |pair, directory| rsync(pair, directory, &["--compress", "--block-size=4096"]),
    },
    Rival {
        name: "rsync, zstd 19",
        run: |pair, directory| {
            let options = [
                "--compress",
                "--compress-choice=zstd",
                "--compress-level=19",
            ];
            rsync(pair, directory, &options)
        },
    },
    Rival {
        name: "zsync, 4 KiB blocks",
        run: |pair, directory| zsync(pair, directory, &[]),
    },
    Rival {
        name: "zsync -z, 4 KiB blocks",
        run: |pair, directory| zsync(pair, directory, &["-z"]),
    },
    Rival {
        name: "casync, 64 KiB",
        run: |pair, directory| casync(pair, directory, 64 << 10),
    },
    Rival {
        name: "casync, 16 KiB",
        run: |pair, directory| casync(pair, directory, 16 << 10),
    },
];

/// Where zsync's server listens.
const HTTP_PORT: u16 = 8080;
/// What is served, whatever the image's file is called.
const SERVED: &str = "new.img";

/// A daemon has the new image, and a copy of the old one is brought up to date in its
/// place: what the client sent and received.
fn rsync(pair: &Pair, directory: &Path, options: &[&str]) -> Result<u64> {
    let config = directory.join("rsyncd.conf");
    let from = pair.new.parent().context("the image has a directory")?;
    fs::write(
        &config,
        format!(
            "use chroot = no\nuid = root\ngid = root\n[files]\npath = {}\nread only = yes\n",
            from.display()
        ),
    )?;
    let port = process::free_port()?;
    let mut daemon = Command::new("rsync");
    daemon
        .args(["--daemon", "--no-detach", "--address=127.0.0.1"])
        .arg(format!("--port={port}"))
        .arg(format!("--config={}", config.display()))
        .arg(format!("--log-file={}", directory.join("log").display()));
    let server = Server::start(&mut daemon, || process::listens(port))?;

    let copy = directory.join("copy.img");
    copy_sparsely(&pair.old, &copy)?;
    let name = pair.new.file_name().context("the image has a name")?;
    let url = format!("rsync://127.0.0.1:{port}/files/{}", name.to_string_lossy());
    let mut client = Command::new("rsync");
    client
        .args(["--inplace", "--no-whole-file", "--ignore-times"])
        .args(["--stats", "--no-human-readable"])
        .args(options)
        .arg(url)
        .arg(&copy)
        .env("LC_ALL", "C");
    let said = tool::run_command(&mut client)?;
    server.stop()?;
    must_equal(&copy, &pair.new)?;
    total_bytes(&said).with_context(|| format!("rsync said no bytes: {said}"))
}

/// What went over the connection in both directions, as `--stats` tells it.
fn total_bytes(stats: &str) -> Option<u64> {
    let of = |title: &str| {
        let mut lines = stats.lines();
        let number = lines.find_map(|line| line.strip_prefix(title))?;
        number.trim().parse::<u64>().ok()
    };
    Some(of("Total bytes sent:")? + of("Total bytes received:")?)
}

/// nginx has the new image and its sums, and the client makes the image of those parts
/// that the old one lacks: all bodies that nginx sent, the sums' among them.
fn zsync(pair: &Pair, directory: &Path, options: &[&str]) -> Result<u64> {
    let files = directory.join("files");
    fs::create_dir(&files)?;
    symlink(&pair.new, files.join(SERVED))?;
    // Where it is packed, the packed file is put beside it, and fetched from there.
    let url = if options.contains(&"-z") {
        format!("{SERVED}.gz")
    } else {
        SERVED.to_owned()
    };
    let mut make = Command::new("zsyncmake");
    make.current_dir(&files)
        .args(["-b", "4096", "-o", "new.zsync", "-f", SERVED, "-u", &url])
        .args(options)
        .arg(SERVED);
    tool::run_command(&mut make)?;

    let namespace = Namespace::new("update")?;
    namespace.ip(&format!("addr add {SERVER}/32 dev lo"))?;
    let nginx = lab::nginx(&namespace, directory, &files, HTTP_PORT)?;
    let made = directory.join("made.img");
    let mut client = namespace.command("zsync");
    // It keeps what it has so far where it is started.
    client
        .current_dir(directory)
        .args(["-q", "-i"])
        .arg(&pair.old)
        .arg("-o")
        .arg(&made)
        .arg(format!("http://{SERVER}:{HTTP_PORT}/new.zsync"));
    tool::run_command(&mut client)?;
    lab::end(nginx)?;
    must_equal(&made, &pair.new)?;
    let log = fs::read_to_string(directory.join("nginx.access"))?;
    sent_bytes(&log).with_context(|| format!("nginx's log is not what was expected: {log}"))
}

/// The bytes of all answers' bodies in a log of the format `combined`.
fn sent_bytes(log: &str) -> Option<u64> {
    let of = |line: &str| {
        let behind_request = line.split('"').nth(2)?;
        behind_request
            .split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()
    };
    log.lines().map(of).sum()
}

/// Both images in chunks: the index of the new one, and the chunks that the old one has
/// not. Its client fetches no less.
fn casync(pair: &Pair, directory: &Path, chunk_bytes: u64) -> Result<u64> {
    let make = |name: &str, image: &Path| {
        let (store, index) = (
            directory.join(name),
            directory.join(format!("{name}.caibx")),
        );
        let mut casync = Command::new("casync");
        casync
            .arg("make")
            .arg(format!("--store={}", store.display()))
            .args(["--compression=zstd", &format!("--chunk-size={chunk_bytes}")])
            .arg(&index)
            .arg(image);
        tool::run_command(&mut casync)?;
        anyhow::Ok((store, index))
    };
    let (old, _) = make("old", &pair.old)?;
    let (new, index) = make("new", &pair.new)?;
    let there: BTreeSet<OsString> = chunks(&old)?.into_iter().map(|(name, _)| name).collect();
    let lacking = chunks(&new)?.into_iter();
    let lacking = lacking.filter(|(name, _)| !there.contains(name));
    let lacking_bytes: u64 = lacking.map(|(_, bytes)| bytes).sum();
    ensure!(lacking_bytes > 0, "casync found no difference");
    Ok(fs::metadata(index)?.len() + lacking_bytes)
}

/// Name and length of each chunk of a store.
fn chunks(store: &Path) -> Result<Vec<(OsString, u64)>> {
    let mut found = Vec::new();
    for group in fs::read_dir(store)? {
        for chunk in fs::read_dir(group?.path())? {
            let chunk = chunk?;
            found.push((chunk.file_name(), chunk.metadata()?.len()));
        }
    }
    Ok(found)
}

fn copy_sparsely(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]);
    tool::run_command(cp.arg(from).arg(to))?;
    Ok(())
}

fn must_equal(made: &Path, wanted: &Path) -> Result<()> {
    tool::run("cmp", [made, wanted])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_from_what_rivals_say() {
        let stats = "Matched data: 7 bytes\nTotal bytes sent: 370831\n\
                     Total bytes received: 14829983\n\nsent 370831 bytes";
        assert_eq!(total_bytes(stats), Some(15_200_814));
        assert_eq!(total_bytes("Total bytes sent: 12\n"), None);
        let log = "10.77.0.1 - - [21/Nov/2026:22:26:33 +0000] \"GET /new.zsync HTTP/1.1\" 200 \
                   4194512 \"-\" \"zsync/0.6.2\"\n\
                   10.77.0.1 - - [21/Nov/2026:22:26:40 +0000] \"GET /new.img HTTP/1.1\" 206 \
                   88 \"-\" \"zsync/0.6.2\"\n";
        assert_eq!(sent_bytes(log), Some(4_194_600));
        assert_eq!(sent_bytes("no log\n"), None);
    }
}
