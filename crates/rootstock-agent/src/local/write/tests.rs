//! Starts are written and cut off at every change of the disk.

use rootstock_core::ByteRange;
use rootstock_store::disk::{Disk, DiskFile, Fault, SimDisk};

use super::*;
use crate::service::CallError;

/// The smallest that FAT32 takes, nearly; behind a hole, as on a disk.
const PLACE: ByteRange = ByteRange::new(8192, 36 << 20);

fn disk() -> SimDisk {
    let disk = SimDisk::new();
    let file = disk.create("disk").expect("made");
    file.set_len(PLACE.end()).expect("long");
    StartFiles::format(&*file, PLACE, 7).expect("formatted");
    disk.sync_dir("").expect("kept");
    disk
}

fn bytes(what: &str) -> Vec<u8> {
    // Some clusters, the last of them in part.
    what.as_bytes().repeat(2000 / what.len() + 7)
}

fn file(name: &str, what: &str) -> LocalFile {
    let bytes = bytes(what);
    LocalFile {
        name: name.to_owned(),
        len_bytes: bytes.len() as u64,
        digest: Digest::of(&bytes),
    }
}

/// A start whose kernel is that of `kernel`.
fn start(version: &str, kernel: &str, document: &str) -> NewStart {
    NewStart {
        title: format!("n1: lab:{version}"),
        words: vec!["quiet".to_owned(), "console=ttyS0".to_owned()],
        kernel: file("kernel", kernel),
        first_stage: file("first-stage", &format!("first stage {version}")),
        document: bytes(document),
    }
}

fn put(disk: &SimDisk, start: &NewStart) -> Result<Written, WriteError> {
    let file = disk.open("disk").expect("there");
    put_on(&*file, start)
}

fn put_on(disk: &dyn DiskFile, start: &NewStart) -> Result<Written, WriteError> {
    let files = StartFiles::open(disk, PLACE)?;
    let kernels = ["kernel a", "kernel b"].map(bytes);
    let stages = ["1", "2", "3"].map(|version| bytes(&format!("first stage {version}")));
    let known = kernels.into_iter().chain(stages);
    let known: Vec<Vec<u8>> = known.collect();
    let written = write(&files, start, &mut |wanted| {
        let found = known
            .iter()
            .find(|bytes| Digest::of(bytes) == wanted.digest);
        let bytes = found.cloned().ok_or_else(|| CallError::NoSession)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    })?;
    files.close()?;
    Ok(written)
}

/// The titles of what is started, newest first. Every file of theirs must be whole.
fn started(disk: &SimDisk) -> Vec<String> {
    let file = disk.open("disk").expect("there");
    let files = StartFiles::open(&*file, PLACE).expect("opens");
    let entries = entries(&files).expect("read");
    for entry in &entries {
        assert_eq!(entry.files.len(), 4, "{entry:?}");
        for name in &entry.files {
            let bytes = files.read(&path(name), 1 << 20).expect("read");
            let bytes = bytes.unwrap_or_else(|| panic!("{name} of {entry:?} is not there"));
            assert_eq!(file_name(Digest::of(&bytes)), *name, "{entry:?}");
        }
    }
    entries.into_iter().map(|entry| entry.title).collect()
}

#[test]
fn the_newest_is_first_and_another_version_second() {
    let disk = disk();
    assert!(started(&disk).is_empty());
    for (version, kernel, document, expected) in [
        ("1", "kernel a", "one", &["n1: lab:1"][..]),
        ("1", "kernel a", "another of one", &["n1: lab:1"]),
        ("2", "kernel a", "two", &["n1: lab:2", "n1: lab:1"]),
        ("2", "kernel b", "two", &["n1: lab:2", "n1: lab:1"]),
        ("3", "kernel b", "three", &["n1: lab:3", "n1: lab:2"]),
        ("2", "kernel b", "two", &["n1: lab:2", "n1: lab:3"]),
    ] {
        let start = start(version, kernel, document);
        assert_eq!(put(&disk, &start).expect("written"), Written::Now);
        assert_eq!(put(&disk, &start).expect("there"), Written::Already);
        assert_eq!(started(&disk), expected);
    }
    let file = disk.open("disk").expect("there");
    let files = StartFiles::open(&*file, PLACE).expect("opens");
    // Two starts that share a kernel, and what names them.
    assert_eq!(files.names(KEPT).expect("read").len(), 8);
}

#[test]
fn what_is_not_as_it_was_signed_is_never_named() {
    let disk = disk();
    put(&disk, &start("1", "kernel a", "one")).expect("written");
    let mut other = start("2", "kernel a", "two");
    other.first_stage.len_bytes += 1;
    let error = put(&disk, &other).expect_err("another length");
    assert!(error.to_string().contains("first-stage"), "{error}");
    let unknown = start("2", "kernel c", "two");
    assert!(matches!(
        put(&disk, &unknown),
        Err(WriteError::Fetch { .. })
    ));
    for word in ["a'b", "a\nb", "ü"] {
        let mut strange = start("2", "kernel a", "two");
        strange.words.push(word.to_owned());
        assert!(matches!(put(&disk, &strange), Err(WriteError::Word { .. })));
    }
    assert_eq!(started(&disk), ["n1: lab:1"]);
}

#[test]
fn the_power_may_go_at_any_moment() {
    let ready = disk();
    put(&ready, &start("1", "kernel a", "one")).expect("written");
    put(&ready, &start("2", "kernel b", "two")).expect("written");
    let next = start("3", "kernel b", "three");
    let operations = {
        let disk = ready.crash(0);
        put(&disk, &next).expect("written");
        disk.operations()
    };
    for cut in 0..operations {
        let disk = ready.crash(cut);
        disk.fail_at(cut, Fault::PowerCut);
        // The last change may be to take away what is not needed any more.
        let _ = put(&disk, &next);
        let disk = disk.crash(cut * 7 + 1);
        let found = started(&disk);
        let is_old = found == ["n1: lab:2", "n1: lab:1"];
        assert!(
            is_old || found == ["n1: lab:3", "n1: lab:2"],
            "{cut}: {found:?}"
        );
        // Nothing that is left over is in the way.
        put(&disk, &next).expect("written after all");
        assert_eq!(started(&disk), ["n1: lab:3", "n1: lab:2"]);
    }
}

#[test]
fn a_loader_is_replaced_by_one_sector() {
    let ready = disk();
    let replace = |disk: &SimDisk, what: &str| -> io::Result<()> {
        let file = disk.open("disk").expect("there");
        let files = StartFiles::open(&*file, PLACE)?;
        files.replace("BOOTX64.EFI", &bytes(what))?;
        files.close()
    };
    let found = |disk: &SimDisk| {
        let file = disk.open("disk").expect("there");
        let files = StartFiles::open(&*file, PLACE).expect("opens");
        files.read("EFI/BOOT/BOOTX64.EFI", 1 << 20).expect("read")
    };
    replace(&ready, "old").expect("written");
    let operations = {
        let disk = ready.crash(0);
        replace(&disk, "new one").expect("written");
        assert_eq!(found(&disk), Some(bytes("new one")));
        disk.operations()
    };
    for cut in 0..operations {
        let disk = ready.crash(cut);
        disk.fail_at(cut, Fault::PowerCut);
        let _ = replace(&disk, "new one");
        let disk = disk.crash(cut * 3 + 2);
        let is_whole = [bytes("old"), bytes("new one")]
            .map(Some)
            .contains(&found(&disk));
        assert!(is_whole, "{cut}");
        replace(&disk, "new one").expect("written after all");
        assert_eq!(found(&disk), Some(bytes("new one")));
    }
}
