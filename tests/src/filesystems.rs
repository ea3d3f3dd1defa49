//! File systems made by their own tools on disks of noise, and what is found in them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rootstock_core::Digest;
use rootstock_image::inspect::{DiskReport, FreeSpace, FsReport, inspect};

/// Bytes of a mebibyte.
pub const MIB: usize = 1 << 20;

/// Administrators' tools are not on every user's path.
pub const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// What a tool printed; it has to succeed.
pub fn tool(line: &str, paths: &[&Path]) -> String {
    tool_with_input(line, paths, "")
}

/// The same, with something to read.
pub fn tool_with_input(line: &str, paths: &[&Path], input: &str) -> String {
    let mut words = line.split(' ');
    let name = words.next().expect("a tool's name");
    let mut child = Command::new(name)
        .args(words)
        .args(paths)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}: run `cargo xtask setup`"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("the tool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the tool ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{line}: {}\n{text}\n{errors}",
        output.status
    );
    text
}

/// Bytes that do not compress, and differ with the seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(2) + 1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Numbers that look random, the same for each seed.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A directory of files of many sizes, a system's names among them.
pub fn files(dir: &Path, total_mib: usize) {
    let mut random = Random(7);
    for number in 0..120 {
        let sub = dir.join(format!("d{}", number % 7));
        fs::create_dir_all(&sub).expect("creates");
        let len = match number % 4 {
            0 => random.below(200),
            1 => random.below(5_000),
            2 => random.below(70_000),
            _ => random.below(total_mib * MIB / 60),
        };
        let path = sub.join(format!("file{number}.dat"));
        fs::write(path, noise(number, len)).expect("writes");
    }
}

/// The digest of every file below a directory.
pub fn digests(dir: &Path) -> BTreeMap<PathBuf, Digest> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("lists") {
            let path = entry.expect("an entry").path();
            if path.is_symlink() {
                continue;
            } else if path.is_dir() {
                todo.push(path);
            } else {
                let digest = Digest::of(&fs::read(&path).expect("reads"));
                found.insert(path.strip_prefix(dir).expect("below").to_owned(), digest);
            }
        }
    }
    found
}

/// Fails with the names of the files that are not as they were.
pub fn assert_same_files(
    now: &BTreeMap<PathBuf, Digest>,
    before: &BTreeMap<PathBuf, Digest>,
    name: &str,
) {
    let lost: Vec<_> = before
        .keys()
        .filter(|path| !now.contains_key(*path))
        .collect();
    let other: Vec<_> = now
        .iter()
        .filter(|(path, digest)| before.get(*path) != Some(digest))
        .map(|(path, _)| path)
        .collect();
    assert!(
        lost.is_empty() && other.is_empty(),
        "{name}: of {} files, lost: {lost:?}, new or other: {other:?}",
        before.len()
    );
}

/// What is found on an image.
pub fn look(image: &Path) -> DiskReport {
    let bytes = fs::read(image).expect("reads");
    inspect(&bytes, FreeSpace::Drop).expect("memory has no errors")
}

/// The only file system, which is not kept whole.
pub fn only_fs(report: &DiskReport) -> &FsReport {
    assert_eq!(report.partitions.len(), 1);
    let fs = report.partitions[0].fs.as_ref().expect("a file system");
    assert_eq!(fs.kept_whole_because, None);
    fs
}

/// Why the only file system is kept whole.
pub fn why_kept(image: &Path) -> String {
    let report = look(image);
    assert!(report.free.is_empty());
    let fs = report.partitions[0].fs.as_ref().expect("a file system");
    fs.kept_whole_because.clone().expect("it is kept whole")
}

/// Writes the image with zeros wherever the report says it is free.
pub fn zero_free(image: &Path, report: &DiskReport) {
    let mut bytes = fs::read(image).expect("reads");
    for range in report.free.iter() {
        bytes[range.start as usize..range.end() as usize].fill(0);
    }
    fs::write(image, bytes).expect("writes");
}
