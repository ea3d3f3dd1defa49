//! Boot files that are held in memory: what many machines fetch is read once.
//!
//! A file that is read for each client costs a copy and fresh memory for each; held,
//! the socket copies from the same bytes for all. The kernel's `sendfile` copies
//! nothing and yet needs more of both processors for one client: it hands over page
//! by page, and the client then reads from memory what a copy has just brought into
//! the cache.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::body::Content;

/// The most bytes of all held files together.
const HELD_BYTES_MAX: u64 = 256 << 20;

/// The longest file that is held, in bytes; longer ones are read for each client.
const FILE_BYTES_MAX: u64 = 128 << 20;

/// How long a file is held after it was last asked for.
const UNUSED_LIFE: Duration = Duration::from_secs(600);

/// How old a file's last change has to be. Of two changes in one tick of the file
/// system's clock the second cannot be seen; the slowest clock, FAT's, has 2 s.
const SETTLED_AGE: Duration = Duration::from_secs(3);

/// Whether a file's bytes may change under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changes {
    /// An administrator may write into it.
    Possible,
    /// It is ours, and written once.
    Never,
}

/// The files that are held.
#[derive(Debug, Default)]
pub(crate) struct HeldFiles(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    files: HashMap<Mark, Entry>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    used: Instant,
    /// Filled by whoever asks first, while others wait.
    content: Arc<OnceCell<Bytes>>,
}

/// A file as it was at some time: who changes it, changes one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Mark {
    device: u64,
    inode: u64,
    len_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl HeldFiles {
    /// A file's bytes from memory, read now when they were not held. What cannot be
    /// held is given back as it is.
    pub(crate) async fn hold(&self, content: Content, changes: Changes) -> Content {
        let Content::File(file, _) = &content else {
            return content;
        };
        let Some(mark) = mark_of(file, changes) else {
            return content;
        };
        let cell = self.entry(mark);
        let read = cell.get_or_try_init(|| {
            let file = Arc::clone(file);
            async move {
                let read = tokio::task::spawn_blocking(move || read(&file, mark)).await;
                read.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
        });
        match read.await {
            Ok(bytes) => Content::Bytes(bytes.clone()),
            Err(error) => {
                // Whoever reads it for a client meets the same fault, and tells it.
                tracing::debug!(%error, "a boot file is not held in memory");
                self.forget(&mark, &cell);
                content
            }
        }
    }

    /// Lets go what nobody asked for in a while.
    pub(crate) fn tidy(&self) {
        let now = Instant::now();
        self.held()
            .retain(|entry| now.duration_since(entry.used) < UNUSED_LIFE);
    }

    /// The place of a file's bytes, made when it is not there.
    fn entry(&self, mark: Mark) -> Arc<OnceCell<Bytes>> {
        let mut held = self.held();
        let used = Instant::now();
        if let Some(entry) = held.files.get_mut(&mark) {
            entry.used = used;
            return Arc::clone(&entry.content);
        }
        held.make_room(mark.len_bytes);
        held.bytes += mark.len_bytes;
        let content = Arc::<OnceCell<_>>::default();
        let entry = Entry {
            used,
            content: Arc::clone(&content),
        };
        held.files.insert(mark, entry);
        content
    }

    fn forget(&self, mark: &Mark, cell: &Arc<OnceCell<Bytes>>) {
        let mut held = self.held();
        let is_it = |entry: &Entry| Arc::ptr_eq(&entry.content, cell);
        if held.files.get(mark).is_some_and(is_it) {
            held.remove(mark);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Lets go what was not used longest until `more` bytes fit in.
    fn make_room(&mut self, more: u64) {
        while self.bytes + more > HELD_BYTES_MAX {
            let oldest = self.files.iter().min_by_key(|(_, entry)| entry.used);
            let Some(mark) = oldest.map(|(mark, _)| *mark) else {
                return;
            };
            self.remove(&mark);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.files.retain(|_, entry| keep(entry));
        self.bytes = self.files.keys().map(|mark| mark.len_bytes).sum();
    }

    fn remove(&mut self, mark: &Mark) {
        if self.files.remove(mark).is_some() {
            self.bytes -= mark.len_bytes;
        }
    }
}

/// What a file is held under; `None` when it is not to be held.
fn mark_of(file: &File, changes: Changes) -> Option<Mark> {
    let metadata = file.metadata().ok()?;
    let is_settled = || {
        let age = SystemTime::now().duration_since(metadata.modified().ok()?);
        Some(age.ok()? > SETTLED_AGE)
    };
    let is_fit = (1..=FILE_BYTES_MAX).contains(&metadata.len())
        && (changes == Changes::Never || is_settled() == Some(true));
    is_fit.then(|| Mark::of(&metadata))
}

/// Reads all of a file, unless it changes meanwhile.
fn read(file: &File, mark: Mark) -> io::Result<Bytes> {
    // At most [`FILE_BYTES_MAX`].
    let mut bytes = vec![0; mark.len_bytes as usize];
    file.read_exact_at(&mut bytes, 0)?;
    if Mark::of(&file.metadata()?) != mark {
        return Err(io::Error::other("it was changed while it was read"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn file(path: &Path, bytes: &[u8], age: Duration) -> Content {
        fs::write(path, bytes).expect("writes");
        let file = File::options().write(true).open(path).expect("opens");
        file.set_modified(SystemTime::now() - age).expect("is set");
        Content::open(path).expect("opens")
    }

    fn bytes(content: &Content) -> Option<&[u8]> {
        match content {
            Content::Bytes(bytes) => Some(bytes),
            Content::File(..) => None,
        }
    }

    #[tokio::test]
    async fn a_file_is_read_once_and_again_when_it_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kernel");
        let held = HeldFiles::default();
        let old = file(&path, b"first", SETTLED_AGE * 2);
        let first = held.hold(old.clone(), Changes::Possible).await;
        let again = held.hold(old.clone(), Changes::Possible).await;
        assert_eq!(bytes(&first), Some(&b"first"[..]));
        let place = |content: &Content| bytes(content).map(<[u8]>::as_ptr);
        assert_eq!(place(&first), place(&again));
        // Written just now, it may be written again without a trace.
        let young = file(&path, b"other", Duration::ZERO);
        let none = held.hold(young.clone(), Changes::Possible).await;
        assert_eq!(bytes(&none), None);
        let own = held.hold(young, Changes::Never).await;
        assert_eq!(bytes(&own), Some(&b"other"[..]));
        let settled = file(&path, b"third", SETTLED_AGE * 3);
        let third = held.hold(settled, Changes::Possible).await;
        assert_eq!(bytes(&third), Some(&b"third"[..]));
        assert_eq!(bytes(&first), Some(&b"first"[..]));
        assert_eq!(held.held().bytes, 15);
    }

    #[tokio::test]
    async fn what_is_held_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = HeldFiles::default();
        let sparse = |name: &str, len_bytes| {
            let path = dir.path().join(name);
            let file = File::create(&path).expect("is made");
            file.set_len(len_bytes).expect("grows");
            Content::open(&path).expect("opens")
        };
        for (name, len_bytes, is_held) in [
            ("a", FILE_BYTES_MAX + 1, false),
            ("b", 0, false),
            ("c", FILE_BYTES_MAX, true),
            ("d", FILE_BYTES_MAX, true),
            ("e", 1, true),
        ] {
            let content = held.hold(sparse(name, len_bytes), Changes::Never).await;
            assert_eq!(bytes(&content).is_some(), is_held, "{name}");
            assert_eq!(content.len_bytes(), len_bytes, "{name}");
        }
        // The oldest made room.
        assert_eq!(held.held().bytes, FILE_BYTES_MAX + 1);
        held.tidy();
        assert_eq!(held.held().files.len(), 2);
        held.held().retain(|_| false);
        assert_eq!(held.held().bytes, 0);
    }
}
