//! Kernels and the operating system's name, from ext file systems.
//!
//! What is found here is shown to people and decides nothing. The reader of the
//! file system is another project's, so it runs in a thread of its own: it sees
//! the disk through a budget, and whatever it does the import goes on.

use std::{
    collections::BTreeSet,
    io,
    sync::mpsc::{self, Receiver, Sender, SyncSender},
    thread,
};

use ext4_view::{Ext4, Ext4Read};

use crate::read_at::{ReadAt, Window};

/// The most kernels that are listed.
pub const KERNELS_MAX: usize = 64;

/// The longest name that is taken, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// The most directory entries that are looked at in one directory.
const ENTRIES_MAX: usize = 4096;

/// The longest os-release that is read, in bytes.
const OS_RELEASE_BYTES_MAX: u64 = 64 << 10;

/// What the search of a whole disk may cost, in reads and in bytes. A file system
/// takes some tens of reads; one with a journal to be replayed, its length.
const READS_MAX: u32 = 200_000;
const READ_BYTES_MAX: u64 = 512 << 20;

/// The largest single read, in bytes.
const ONE_READ_BYTES_MAX: usize = 16 << 20;

/// Where kernels leave their names.
const MODULE_DIRS: [&str; 2] = ["/lib/modules", "/usr/lib/modules"];
const BOOT_DIRS: [&str; 2] = ["/boot", "/"];
const OS_RELEASES: [&str; 3] = ["/etc/os-release", "/usr/lib/os-release", "/lib/os-release"];

/// What was found in all file systems of a disk.
#[derive(Debug, Default)]
pub(super) struct Facts {
    kernels: BTreeSet<String>,
    os: Option<String>,
    reads: u32,
    read_bytes: u64,
}

impl Facts {
    /// Looks into one more file system.
    ///
    /// # Errors
    /// The source's own errors; what is wrong with the file system is no error.
    pub(super) fn gather(&mut self, window: &Window<'_>) -> io::Result<()> {
        let (requests, serve) = mpsc::channel();
        let reader = Remote { requests };
        let search = thread::Builder::new()
            .name("image-facts".into())
            .spawn(move || Self::search(Box::new(reader)));
        let Ok(search) = search else {
            // No thread is to be had: the facts are not worth an import.
            return Ok(());
        };
        let served = self.serve_reads(window, &serve);
        // The reader's own end of the channel is gone now: it has come to its end.
        drop(serve);
        let found = search.join();
        served?;
        if let Ok(Some(found)) = found {
            self.kernels.extend(found.kernels);
            self.os = self.os.take().or(found.os);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> (Vec<String>, Option<String>) {
        let kernels = self.kernels.into_iter().take(KERNELS_MAX).collect();
        (kernels, self.os)
    }

    /// Answers reads until the searching thread ends.
    fn serve_reads(&mut self, window: &Window<'_>, requests: &Receiver<Request>) -> io::Result<()> {
        let mut outcome = Ok(());
        while let Ok(request) = requests.recv() {
            self.reads = self.reads.saturating_add(1);
            self.read_bytes = self.read_bytes.saturating_add(request.len as u64);
            let allowed = outcome.is_ok()
                && self.reads <= READS_MAX
                && self.read_bytes <= READ_BYTES_MAX
                && request.len <= ONE_READ_BYTES_MAX;
            let mut bytes = None;
            if allowed {
                let mut buffer = vec![0; request.len];
                match window.read_exact_at(request.offset_bytes, &mut buffer) {
                    Ok(()) => bytes = Some(buffer),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Err(error) => outcome = Err(error),
                }
            }
            // The one who asked waits for it; if it is gone there is nothing to do.
            let _ = request.answer.send(bytes);
        }
        outcome
    }

    fn search(reader: Box<dyn Ext4Read>) -> Option<Self> {
        let fs = Ext4::load(reader).ok()?;
        let mut facts = Self::default();
        for dir in MODULE_DIRS {
            facts.kernels.extend(names(&fs, dir, ""));
        }
        for dir in BOOT_DIRS {
            facts.kernels.extend(names(&fs, dir, "vmlinuz-"));
        }
        facts.os = OS_RELEASES.iter().find_map(|path| os_name(&fs, path));
        Some(facts)
    }
}

/// The names in a directory that look like a kernel's version, after a prefix.
fn names(fs: &Ext4, dir: &str, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs.read_dir(dir) else {
        return Vec::new();
    };
    let name = |entry: ext4_view::DirEntry| {
        let name = entry.file_name();
        let version = name.as_str().ok()?.strip_prefix(prefix)?;
        let printable = version.bytes().all(|byte| byte.is_ascii_graphic());
        let kernel = version.starts_with(|c: char| c.is_ascii_digit());
        (kernel && printable && version.len() <= NAME_BYTES_MAX).then(|| version.to_owned())
    };
    entries
        .take(ENTRIES_MAX)
        .map_while(Result::ok)
        .filter_map(name)
        .take(KERNELS_MAX)
        .collect()
}

fn os_name(fs: &Ext4, path: &str) -> Option<String> {
    let metadata = fs.metadata(path).ok()?;
    if !metadata.file_type().is_regular_file() || metadata.len() > OS_RELEASE_BYTES_MAX {
        return None;
    }
    let bytes = fs.read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name: String = value
        .trim()
        .trim_matches(['"', '\''])
        .chars()
        .filter(|c| !c.is_control())
        .take(NAME_BYTES_MAX)
        .collect();
    (!name.is_empty()).then_some(name)
}

/// A read that is asked for, and where its answer goes.
struct Request {
    offset_bytes: u64,
    len: usize,
    answer: SyncSender<Option<Vec<u8>>>,
}

/// The disk as the searching thread sees it.
struct Remote {
    requests: Sender<Request>,
}

/// A read that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("the disk has no such bytes, or too many were asked for")]
struct Refused;

impl Ext4Read for Remote {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let (answer, bytes) = mpsc::sync_channel(1);
        let request = Request {
            offset_bytes: start_byte,
            len: dst.len(),
            answer,
        };
        self.requests.send(request).map_err(|_| Refused)?;
        let bytes = bytes.recv().ok().flatten().ok_or(Refused)?;
        dst.copy_from_slice(&bytes);
        Ok(())
    }
}
