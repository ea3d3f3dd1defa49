//! A disk in memory that can lose its power, run full and rot.
//!
//! Every change is counted, so that a test can enumerate all the moments at
//! which the power may go: [`SimDisk::operations`] says how many there were,
//! [`SimDisk::fail_at`] cuts at one of them, and [`SimDisk::crash`] gives a disk
//! in one of the states (chosen by a seed) that the cut may leave. Per sector of
//! 512 bytes a file has any of the contents it had since its last sync; a name
//! change is there or not, but never without an earlier change of the same name.

use std::{
    collections::HashMap,
    io,
    io::IoSlice,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rootstock_core::ByteRange;

use super::{Boot, Disk, DiskFile};
use state::{Change, Inode, Node, Rng, State, no_space, parent};

mod state;

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
            boot: state.boot + 1,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(crashed)),
        }
    }

    /// The disk as it is found when whoever wrote to it was killed: all that it wrote
    /// is there. As with [`SimDisk::crash`], this one is left as it is.
    #[must_use]
    pub fn killed(&self) -> Self {
        let state = self.lock();
        let left = State {
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            pending_names: state.pending_names.clone(),
            inodes: state.inodes.clone(),
            next_inode: state.next_inode,
            boot: state.boot,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(left)),
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

    fn boot(&self) -> Option<Boot> {
        Some(u128::from(self.lock().boot).to_le_bytes())
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

#[cfg(test)]
mod tests;
