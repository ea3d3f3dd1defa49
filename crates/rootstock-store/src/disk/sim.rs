//! A disk in memory that can lose its power, run full and rot.
//!
//! Every change is counted, so that a test can enumerate all the moments at
//! which the power may go: [`SimDisk::operations`] says how many there were,
//! [`SimDisk::fail_at`] cuts at one of them, and [`SimDisk::crash`] gives a disk
//! in one of the states (chosen by a seed) that the cut may leave. Per sector of
//! 512 bytes a file has any of the contents it had since its last sync; a name
//! change is there or not, but never without an earlier change of the same name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    io::IoSlice,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rootstock_core::{ByteRange, SECTOR_BYTES};

use super::{Disk, DiskFile};

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `ENOSPC`, once; a write may have happened in part.
    NoSpace,
    /// `EIO`, once; a failed sync loses some of what was unsynced.
    Io,
    /// The power goes during this operation: it and all later ones fail.
    PowerCut,
}

/// The simulated disk; clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many changes (writes, syncs, name changes) were asked of it so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Makes the change number `nth` fail, counted from 0 at the disk's start.
    pub fn fail_at(&self, nth: u64, fault: Fault) {
        self.lock().faults.insert(nth, fault);
    }

    /// Makes the next change fail.
    pub fn fail_next(&self, fault: Fault) {
        let mut state = self.lock();
        let nth = state.operations;
        state.faults.insert(nth, fault);
    }

    /// Limits the bytes in all files together; `None` for no limit.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.lock().capacity_bytes = capacity_bytes;
    }

    /// The bytes in all named files together, holes included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Flips one bit of a file at rest, counted from the file's start.
    ///
    /// # Errors
    /// `NotFound` without the file, `InvalidInput` past its end.
    pub fn flip_bit(&self, path: &str, bit: u64) -> io::Result<()> {
        let mut state = self.lock();
        let id = state.file(path)?;
        let inode = state.inode(id);
        let at = usize::try_from(bit / 8).map_err(|_| io::ErrorKind::InvalidInput)?;
        if at >= inode.content.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        inode.content[at] ^= 1 << (bit % 8);
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
        Ok(())
    }

    /// All files' paths, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let state = self.lock();
        let files = state.names.iter();
        files
            .filter(|(_, node)| matches!(node, Node::File(_)))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// The disk as it may be found after a power cut now. This one is left as
    /// it is; the new one has no faults planned and counts from 0.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let state = self.lock();
        let mut rng = Rng::new(seed);
        let names = state.names_after_crash(&mut rng);
        let mut inodes = HashMap::new();
        for node in names.values() {
            if let Node::File(id) = node
                && let Some(inode) = state.inodes.get(id)
            {
                inodes.insert(*id, Inode::at_rest(inode.after_crash(&mut rng)));
            }
        }
        let crashed = State {
            durable_names: names.clone(),
            names,
            inodes,
            next_inode: state.next_inode,
            rng,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(crashed)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        state.parent_must_exist(path)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let cut = state.begin()?;
        let id = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(id, Inode::default());
        state.change_names(vec![(path.to_owned(), Some(Node::File(id)))]);
        cut.finish()?;
        Ok(self.handle(id))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.lock();
        state.must_have_power()?;
        let id = state.file(path)?;
        Ok(self.handle(id))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.parent_must_exist(to)?;
        let id = state.file(from)?;
        let cut = state.begin()?;
        if from != to {
            state.change_names(vec![
                (to.to_owned(), Some(Node::File(id))),
                (from.to_owned(), None),
            ]);
        }
        cut.finish()
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.file(path)?;
        let cut = state.begin()?;
        state.change_names(vec![(path.to_owned(), None)]);
        cut.finish()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.must_have_power()?;
        state.dir_must_exist(dir)?;
        let children = state.names.iter().filter(|(path, _)| parent(path) == dir);
        let mut names: Vec<String> = children
            .map(|(path, node)| {
                let name = path.rsplit('/').next().unwrap_or(path);
                match node {
                    Node::Dir => format!("{name}/"),
                    Node::File(_) => name.to_owned(),
                }
            })
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.parent_must_exist(dir)?;
        match state.names.get(dir) {
            Some(Node::Dir) => return state.must_have_power(),
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => {}
        }
        let cut = state.begin()?;
        state.change_names(vec![(dir.to_owned(), Some(Node::Dir))]);
        cut.finish()
    }

    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.dir_must_exist(dir)?;
        if dir.is_empty() || state.names.keys().any(|path| parent(path) == dir) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let cut = state.begin()?;
        state.change_names(vec![(dir.to_owned(), None)]);
        cut.finish()
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.dir_must_exist(dir)?;
        state.begin()?.finish()?;
        state.settle_names(dir);
        Ok(())
    }
}

impl SimDisk {
    fn handle(&self, id: u64) -> Box<dyn DiskFile> {
        Box::new(SimFile {
            disk: self.clone(),
            id,
        })
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
}

impl DiskFile for SimFile {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.must_have_power()?;
        let content = &state.inode(self.id).content;
        let start = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let source = start
            .checked_add(buffer.len())
            .and_then(|end| content.get(start..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(source);
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let end = offset_bytes + data.len() as u64;
        let growth = end.saturating_sub(state.inode(self.id).content.len() as u64);
        let free = state.capacity_bytes.map_or(u64::MAX, |capacity| {
            capacity.saturating_sub(state.used_bytes())
        });
        let change = |data: &[u8]| Change::Write(offset_bytes, data.to_vec());
        match state.begin() {
            Ok(_) if growth > free => {
                let lacking = (growth - free).min(data.len() as u64) as usize;
                let part = &data[..data.len() - lacking];
                state.inode(self.id).apply(change(part));
                Err(no_space())
            }
            Ok(cut) => {
                state.inode(self.id).apply(change(data));
                cut.finish()
            }
            Err(error) => {
                // A write that failed may have happened in part.
                if state.has_power() {
                    state.inode(self.id).apply(change(&data[..data.len() / 2]));
                }
                Err(error)
            }
        }
    }

    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.write_at(offset_bytes, &flatten(parts))
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.lock();
        state.must_have_power()?;
        Ok(state.inode(self.id).content.len() as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Change::SetLen(len_bytes))
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.change(Change::Punch(range))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let result = match state.begin() {
            Ok(cut) => cut.finish(),
            Err(error) => {
                if state.has_power() {
                    // The kernel marks pages clean after a failed write-back.
                    let mut rng = state.rng;
                    let inode = state.inode(self.id);
                    inode.durable = inode.after_crash(&mut rng);
                    inode.pending.clear();
                    state.rng = rng;
                }
                Err(error)
            }
        };
        result?;
        let inode = state.inode(self.id);
        for change in std::mem::take(&mut inode.pending) {
            change.apply_to(&mut inode.durable);
        }
        Ok(())
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.lock();
        let cut = state.begin()?;
        state.inode(self.id).apply(change);
        cut.finish()
    }
}

/// The parts as one run of bytes.
pub(crate) fn flatten(parts: &[IoSlice<'_>]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

type Names = BTreeMap<String, Node>;

/// Names that change together or not at all.
type NameChange = Vec<(String, Option<Node>)>;

#[derive(Default)]
struct State {
    names: Names,
    durable_names: Names,
    pending_names: Vec<NameChange>,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    operations: u64,
    faults: HashMap<u64, Fault>,
    powerless: bool,
    capacity_bytes: Option<u64>,
    rng: Rng,
}

/// Whether the power went during an operation that began.
#[must_use]
struct Cut(bool);

impl Cut {
    fn finish(self) -> io::Result<()> {
        if self.0 { Err(io_error()) } else { Ok(()) }
    }
}

impl State {
    /// Counts a change and says how it goes. After a cut the change is still
    /// applied, unsynced, so that the crash may keep, tear or drop it.
    fn begin(&mut self) -> io::Result<Cut> {
        self.must_have_power()?;
        let nth = self.operations;
        self.operations += 1;
        match self.faults.remove(&nth) {
            None => Ok(Cut(false)),
            Some(Fault::NoSpace) => Err(no_space()),
            Some(Fault::Io) => Err(io_error()),
            Some(Fault::PowerCut) => {
                self.powerless = true;
                Ok(Cut(true))
            }
        }
    }

    fn has_power(&self) -> bool {
        !self.powerless
    }

    fn must_have_power(&self) -> io::Result<()> {
        if self.powerless {
            Err(io_error())
        } else {
            Ok(())
        }
    }

    fn dir_must_exist(&self, dir: &str) -> io::Result<()> {
        if dir.is_empty() || self.names.get(dir) == Some(&Node::Dir) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn parent_must_exist(&self, path: &str) -> io::Result<()> {
        self.dir_must_exist(parent(path))
    }

    fn file(&self, path: &str) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(id)) => Ok(*id),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn inode(&mut self, id: u64) -> &mut Inode {
        self.inodes.entry(id).or_default()
    }

    fn used_bytes(&self) -> u64 {
        let files = self.names.values().filter_map(|node| match node {
            Node::File(id) => self.inodes.get(id),
            Node::Dir => None,
        });
        files.map(|inode| inode.content.len() as u64).sum()
    }

    fn change_names(&mut self, change: NameChange) {
        apply_names(&change, &mut self.names);
        self.pending_names.push(change);
    }

    /// Makes the changes that `dir` holds durable, and with them the earlier
    /// ones that they build on.
    fn settle_names(&mut self, dir: &str) {
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        let mut settled = vec![false; self.pending_names.len()];
        for (index, change) in self.pending_names.iter().enumerate().rev() {
            // The first name of a change is the one that decides: a rename is
            // durable with its new name's directory.
            let here = change.first().is_some_and(|(path, _)| parent(path) == dir);
            if here
                || change
                    .iter()
                    .any(|(path, _)| wanted.contains(path.as_str()))
            {
                settled[index] = true;
                wanted.extend(change.iter().map(|(path, _)| path.as_str()));
            }
        }
        let mut settled = settled.into_iter();
        let durable = &mut self.durable_names;
        self.pending_names.retain(|change| {
            let settle = settled.next().unwrap_or(false);
            if settle {
                apply_names(change, durable);
            }
            !settle
        });
    }

    fn names_after_crash(&self, rng: &mut Rng) -> Names {
        let mut names = self.durable_names.clone();
        let keep_of_4 = [0, 1, 2, 3, 4][rng.below(5) as usize];
        let mut dropped: BTreeSet<&str> = BTreeSet::new();
        for change in &self.pending_names {
            let builds_on_dropped = change
                .iter()
                .any(|(path, _)| dropped.contains(path.as_str()));
            if builds_on_dropped || rng.below(4) >= keep_of_4 {
                dropped.extend(change.iter().map(|(path, _)| path.as_str()));
            } else {
                apply_names(change, &mut names);
            }
        }
        // Parents sort before their children.
        let mut kept = Names::new();
        for (path, node) in names {
            let dir = parent(&path);
            if dir.is_empty() || kept.get(dir) == Some(&Node::Dir) {
                kept.insert(path, node);
            }
        }
        kept
    }
}

fn apply_names(change: &NameChange, names: &mut Names) {
    for (path, node) in change {
        match node {
            Some(node) => names.insert(path.clone(), *node),
            None => names.remove(path),
        };
    }
}

#[derive(Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync, in order.
    pending: Vec<Change>,
}

impl Inode {
    fn at_rest(content: Vec<u8>) -> Self {
        Self {
            durable: content.clone(),
            content,
            pending: Vec::new(),
        }
    }

    fn apply(&mut self, change: Change) {
        change.apply_to(&mut self.content);
        self.pending.push(change);
    }

    fn after_crash(&self, rng: &mut Rng) -> Vec<u8> {
        // Most states of interest are at the ends: all gone, or all there.
        match rng.below(4) {
            0 => return self.durable.clone(),
            1 => return self.content.clone(),
            _ => {}
        }
        // A sector has all changes up to one of its own: what the page cache
        // held when the sector was last written back.
        let sector_bytes = SECTOR_BYTES as usize;
        let stages = self.pending.len() as u64 + 1;
        let len_stage = rng.below(stages);
        let mut len = self.durable.len();
        let mut len_max = len;
        let mut now = len;
        for (stage, change) in (1..).zip(&self.pending) {
            now = change.len_after(now);
            len_max = len_max.max(now);
            if stage == len_stage {
                len = now;
            }
        }
        let mut result = self.durable.clone();
        result.resize(len_max, 0);
        let stops: Vec<u64> = (0..len_max.div_ceil(sector_bytes))
            .map(|_| rng.below(stages))
            .collect();
        for (stage, change) in (1..).zip(&self.pending) {
            let reached = |at: usize| stops[at / sector_bytes] >= stage;
            change.apply_where(&mut result, reached);
        }
        result.truncate(len);
        result
    }
}

enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Punch(ByteRange),
}

impl Change {
    fn len_after(&self, len: usize) -> usize {
        match self {
            Self::Write(offset, data) => len.max(*offset as usize + data.len()),
            Self::SetLen(len) => *len as usize,
            Self::Punch(_) => len,
        }
    }

    /// Applies the change to the sectors whose bytes `reached` names; the
    /// length of `content` is fixed and enough.
    fn apply_where(&self, content: &mut [u8], reached: impl Fn(usize) -> bool) {
        let (start, end) = match self {
            Self::Write(offset, data) => (*offset as usize, *offset as usize + data.len()),
            Self::SetLen(len) => (*len as usize, content.len()),
            Self::Punch(range) => (range.start as usize, range.end() as usize),
        };
        let mut at = start;
        let end = end.min(content.len());
        while at < end {
            let sector_end = (at / SECTOR_BYTES as usize + 1) * SECTOR_BYTES as usize;
            let until = sector_end.min(end);
            if reached(at) {
                match self {
                    Self::Write(_, data) => {
                        content[at..until].copy_from_slice(&data[at - start..until - start]);
                    }
                    Self::SetLen(_) | Self::Punch(_) => content[at..until].fill(0),
                }
            }
            at = until;
        }
    }

    fn apply_to(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let start = *offset as usize;
                let end = start + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(data);
            }
            Self::SetLen(len) => content.resize(*len as usize, 0),
            Self::Punch(range) => {
                let end = (range.end() as usize).min(content.len());
                if let Some(hole) = content.get_mut(range.start as usize..end) {
                    hole.fill(0);
                }
            }
        }
    }
}

/// splitmix64: a seed is a whole history.
#[derive(Debug, Clone, Copy, Default)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
