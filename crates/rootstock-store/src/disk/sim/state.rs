//! What the simulated disk keeps, and what a power cut leaves of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use rootstock_core::{ByteRange, SECTOR_BYTES};

use super::Fault;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

pub(super) type Names = BTreeMap<String, Node>;

/// Names that change together or not at all.
pub(super) type NameChange = Vec<(String, Option<Node>)>;

#[derive(Default)]
pub(super) struct State {
    pub(super) names: Names,
    pub(super) durable_names: Names,
    pub(super) pending_names: Vec<NameChange>,
    pub(super) inodes: HashMap<u64, Inode>,
    pub(super) next_inode: u64,
    pub(super) operations: u64,
    pub(super) faults: HashMap<u64, Fault>,
    pub(super) powerless: bool,
    pub(super) capacity_bytes: Option<u64>,
    /// How often the power came back.
    pub(super) boot: u64,
    pub(super) rng: Rng,
}

/// Whether the power went during an operation that began.
#[must_use]
pub(super) struct Cut(bool);

impl Cut {
    pub(super) fn finish(self) -> io::Result<()> {
        if self.0 { Err(io_error()) } else { Ok(()) }
    }
}

impl State {
    /// Counts a change and says how it goes. After a cut the change is still
    /// applied, unsynced, so that the crash may keep, tear or drop it.
    pub(super) fn begin(&mut self) -> io::Result<Cut> {
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

    pub(super) fn has_power(&self) -> bool {
        !self.powerless
    }

    pub(super) fn must_have_power(&self) -> io::Result<()> {
        if self.powerless {
            Err(io_error())
        } else {
            Ok(())
        }
    }

    pub(super) fn dir_must_exist(&self, dir: &str) -> io::Result<()> {
        if dir.is_empty() || self.names.get(dir) == Some(&Node::Dir) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    pub(super) fn parent_must_exist(&self, path: &str) -> io::Result<()> {
        self.dir_must_exist(parent(path))
    }

    pub(super) fn file(&self, path: &str) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(id)) => Ok(*id),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn inode(&mut self, id: u64) -> &mut Inode {
        self.inodes.entry(id).or_default()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let files = self.names.values().filter_map(|node| match node {
            Node::File(id) => self.inodes.get(id),
            Node::Dir => None,
        });
        files.map(|inode| inode.content.len() as u64).sum()
    }

    pub(super) fn change_names(&mut self, change: NameChange) {
        apply_names(&change, &mut self.names);
        self.pending_names.push(change);
    }

    /// Makes the changes that `dir` holds durable, and with them the earlier
    /// ones that they build on.
    pub(super) fn settle_names(&mut self, dir: &str) {
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

    pub(super) fn names_after_crash(&self, rng: &mut Rng) -> Names {
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

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) content: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Changes since the last sync, in order.
    pub(super) pending: Vec<Change>,
}

impl Inode {
    pub(super) fn at_rest(content: Vec<u8>) -> Self {
        Self {
            durable: content.clone(),
            content,
            pending: Vec::new(),
        }
    }

    pub(super) fn apply(&mut self, change: Change) {
        change.apply_to(&mut self.content);
        self.pending.push(change);
    }

    pub(super) fn after_crash(&self, rng: &mut Rng) -> Vec<u8> {
        // Most states of interest are at the ends: all gone, or all there.
        match rng.below(4) {
            0 => return self.durable.clone(),
            1 => return self.content.clone(),
            2 => return self.after_losing_some(rng),
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

    /// Each change is there whole, or not at all.
    fn after_losing_some(&self, rng: &mut Rng) -> Vec<u8> {
        let mut result = self.durable.clone();
        for change in &self.pending {
            if rng.below(2) == 0 {
                change.apply_to(&mut result);
            }
        }
        result
    }
}

#[derive(Clone)]
pub(super) enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Punch(ByteRange),
}

impl Change {
    pub(super) fn len_after(&self, len: usize) -> usize {
        match self {
            Self::Write(offset, data) => len.max(*offset as usize + data.len()),
            Self::SetLen(len) => *len as usize,
            Self::Punch(_) => len,
        }
    }

    /// Applies the change to the sectors whose bytes `reached` names; the
    /// length of `content` is fixed and enough.
    pub(super) fn apply_where(&self, content: &mut [u8], reached: impl Fn(usize) -> bool) {
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

    pub(super) fn apply_to(&self, content: &mut Vec<u8>) {
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
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

pub(super) fn io_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}
